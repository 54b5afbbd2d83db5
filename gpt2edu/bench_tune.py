"""Measure how this GPU does each matrix product of a model best, and keep it: `python -m gpt2edu.bench tune`.

`kernels.matmul.tuning` says how such a choice is found again. Products that have one keep it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from gpt2edu.bench_kernels import side_stream
from gpt2edu.bench_ops.case import Case, Draw, Sizes
from gpt2edu.bench_ops.matmul import product_cases
from gpt2edu.bench_timing import Plan, n_rotating, time_calls
from gpt2edu.config import ModelConfig
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.files import atomic_write, make_folder
from kernels import SIMULATED
from kernels.architecture import force_architecture
from kernels.matmul import tuning

DEVICE = torch.device("cuda")
GAIN = 0.005
"""An option must be faster than the first one by this part; less is noise."""


def add_tune(actions: Any) -> None:
    """Add `tune` to the subcommands of `gpt2edu.bench`."""
    parser = actions.add_parser(
        "tune", help="choose how this GPU does each matrix product, and keep it", allow_abbrev=False
    )
    option = parser.add_argument
    option("-e", "--model", default="d12", help="descriptor of the model (default %(default)s)")
    option("-b", "--micro-batch", type=int, default=64, help="sequences at once (default %(default)s)")
    option("-t", "--seq-len", type=int, default=1024, help="tokens of a sequence (default %(default)s)")
    option("--square", type=int, nargs="*", default=[], metavar="N", help="also the products of N x N matrices")
    option("--arch", choices=("sm_80", "sm_90a"), help="of these kernels instead of those that are used here")
    option("--bursts", type=int, default=3, help="measurements of each option (default %(default)s)")
    option("--again", action="store_true", help="also measure products that have a choice: results may change in bits")
    option("--output", type=Path, default=None, help="folder of the file (default: where training looks for it)")


def bench_tune(arguments: argparse.Namespace) -> Path:
    """Measure every option of every product, print them, and return the file that holds the choices.

    Raises:
        UsageError: there is no GPU.
        Gpt2EduError: the file that there is cannot be read.
    """
    if SIMULATED:
        raise UsageError("tune measures a GPU, and there is none here; without a file the defaults are taken")
    config = ModelConfig.from_descriptor(arguments.model)
    sizes = Sizes(
        arguments.micro_batch, arguments.seq_len, config.channels, config.n_heads, arguments.model, arguments.square
    )
    gpu = tuning.gpu_name()
    folder = make_folder(arguments.output or tuning.user_folder(), "choose another folder with --output")
    file = tuning.file_in(folder, gpu)
    try:
        choices = tuning.read_choices(file)
    except ValueError as problem:
        raise Gpt2EduError(str(problem)) from problem
    force_architecture(arguments.arch)
    with side_stream(DEVICE) as stream:
        for case in product_cases(DEVICE, sizes):
            asked = _ask(case, stream)
            known = asked.key in (choices if arguments.output else choices | tuning.measured_choices(gpu))
            if len(asked.options) > 1 and (arguments.again or not known):
                choices[asked.key] = _best(case, asked, stream, Plan(arguments.bursts, sustained_s=0.0))
                _write(file, gpu, choices)
            torch.cuda.empty_cache()
    return file


def _ask(case: Case, stream: Any) -> tuning.Trial:
    """Return what the kernels of a case ask to have chosen."""
    with tuning.trying(0) as trial:
        case.ours["production"](case.make(Draw(DEVICE)), stream)
    return trial


def _best(case: Case, asked: tuning.Trial, stream: Any, plan: Plan) -> tuning.Choice:
    """Time all options and return the fastest, or the first if that is as good."""
    first = case.make(Draw(DEVICE))
    bytes_of_set = sum(x.nbytes for x in vars(first).values())
    sets = [first, *(case.make(Draw(DEVICE, seed)) for seed in range(1, n_rotating(bytes_of_set, DEVICE)))]
    calls = {}
    for place, option in enumerate(asked.options):
        with tuning.trying(place):
            calls[json.dumps(option)] = [case.ours["production"](buffers, stream) for buffers in sets]
    times_ms = {name: timing.median_ms for name, timing in time_calls(calls, DEVICE, plan).items()}
    default, best = json.dumps(asked.options[0]), min(times_ms, key=times_ms.__getitem__)
    if times_ms[best] > (1 - GAIN) * times_ms[default]:
        best = default
    print(
        f"{asked.key}: {best} {times_ms[best]:.4f} ms, {times_ms[default] / times_ms[best]:.3f} x the default",
        flush=True,
    )
    for name, ms in sorted(times_ms.items(), key=lambda pair: pair[1]):
        print(f"    {name:40} {ms:9.4f} ms")
    return json.loads(best)


def _write(file: Path, gpu: str, choices: dict[str, tuning.Choice]) -> None:
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(choice)}" for key, choice in sorted(choices.items()))
    with atomic_write(file, "w") as stream:
        stream.write(f'{{\n "gpu": {json.dumps(gpu)},\n "choices": {{\n{lines}\n }}\n}}\n')
