"""Write the page that estimates time and cost of a run, from the same formulas and tables as `reproduce --dry-run`.

python book/figures/run_cost.py        # writes ../_static/run_cost.html
"""

from __future__ import annotations

import json
from pathlib import Path

from gpt2edu.config import ModelConfig
from gpt2edu.flops import flop_per_token, peak_flop_per_s
from gpt2edu.plan import GPU_KINDS, SEVERAL_GPUS_EFFICIENCY

TEMPLATE = Path(__file__).with_name("run_cost.template.html")
PAGE = Path(__file__).parents[1] / "_static" / "run_cost.html"
SEQ_LEN, STEP_TOKENS = 1024, 524_288
MODELS = {"124M": ("d12", 9.8907), "350M": ("d24", 31.5), "774M": ("d36", 150.0), "1558M": ("d48", 33.6)}
"""Descriptor and billions of tokens: one pass over the 10B sample, and what llm.c's scripts train the larger on."""


def page() -> str:
    """Return the whole page."""
    models = {
        name: {"flop_per_token": flop_per_token(ModelConfig.from_descriptor(descriptor), SEQ_LEN), "billions": billions}
        for name, (descriptor, billions) in MODELS.items()
    }
    gpus = {}
    for kind in GPU_KINDS:  # of a GPU with two sizes of memory, the larger
        peak = peak_flop_per_s(kind.name, "bf16")
        fields = {"tflop_per_s": peak / 1e12, "mfu": round(100 * kind.mfu), "price": kind.dollars_per_hour}
        gpus.setdefault(kind.name, fields)
    text = TEMPLATE.read_text(encoding="utf-8")
    values = {"MODELS": models, "GPUS": gpus, "EFFICIENCY": SEVERAL_GPUS_EFFICIENCY, "STEP_TOKENS": STEP_TOKENS}
    for name, value in values.items():
        text = text.replace(f"/*{name}*/", json.dumps(value))
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
