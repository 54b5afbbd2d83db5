"""Losses and accuracies that others have published, to draw beside a run's own."""

from __future__ import annotations

# OpenAI's GPT-2 on the validation split of FineWeb, nats a token. Source: llm.c dev/vislog.ipynb @ f1e2ace.
GPT2_FINEWEB_LOSS = {"gpt2-124m": 3.424958, "gpt2-350m": 3.083089, "gpt2-774m": 3.000580}

# HellaSwag acc_norm as llm.c measures it. Source: the same notebook; GPT-3's from its paper (arXiv:2005.14165).
GPT2_HELLASWAG = {"gpt2-124m": 0.294463, "gpt2-350m": 0.375224, "gpt2-774m": 0.431986, "gpt2-1558m": 0.488946}
GPT3_HELLASWAG = {"gpt2-124m": 0.337, "gpt2-350m": 0.436, "gpt2-774m": 0.510, "gpt2-1558m": 0.547}

# llm.c's own 124M run of October 2024, 8 x H100, 19,560 steps of 524,288 tokens: step -> validation loss on FineWeb.
# Source: modded-nanogpt records/track_1_short/2024-10-13_llmc/main.log @ f411b3d.
LLMC_124M_STEPS = 19_560
LLMC_TOKENS_PER_STEP = 524_288
LLMC_124M_CURVE = {
    0: 11.0092,
    250: 6.1710,
    500: 5.3743,
    1000: 4.3170,
    2000: 3.8585,
    5000: 3.5535,
    10000: 3.3924,
    15000: 3.3003,
    19560: 3.2722,
}

LLMC_A100_STEP_MS = 300.0  # of its 124M recipe on 8 x A100 80GB. Source: llm.c scripts/run_gpt2_124M.sh @ f1e2ace.
