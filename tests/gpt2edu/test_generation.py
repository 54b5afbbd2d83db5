"""Texts that the numba engine continues: the cache, the graph and the choice on the device change no token."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import kernels
from gpt2edu.config import ModelConfig
from gpt2edu.sample import generate

sys.path.insert(0, str(Path(__file__).parent))
from engine_cases import make_engine

pytestmark = [] if kernels.SIMULATED else [pytest.mark.gpu]

if kernels.SIMULATED:
    CONFIG, PROMPTS = ModelConfig.from_descriptor("d2,h2,c16,t5,v61"), [[60, 0, 7]]
    DTYPES = ["fp32", pytest.param("bf16", marks=pytest.mark.slow)]
else:  # more than one part of keys, and longer prompts
    CONFIG, PROMPTS = ModelConfig.from_descriptor("d2,h2,c128,t300,v300"), [[5], list(range(150))]
    DTYPES = ["fp32", "bf16"]


NEAR = {"fp32": 1e-4, "bf16": 2**-5}  # of the greatest score: how far two orders of summing may lead


def bold_engine(config=CONFIG, **settings):
    """An engine whose likeliest token depends on the text, and is seldom nearly equal to the next."""
    engine = make_engine(config, **settings)
    engine.flat_parameters *= 4
    return engine


def greedy(engine, prompt, n, **options):
    return list(generate(engine.model, prompt, n, temperature=0, **options))


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_the_likeliest_tokens_are_those_of_the_whole_text(prompt):
    engine = bold_engine(dtype="fp32")
    n = CONFIG.max_seq_len - len(prompt)  # up to the end of the context
    tokens = greedy(engine, prompt, n)
    assert tokens == greedy(engine, prompt, n, use_cache=False)
    assert tokens == engine.model.likeliest(prompt, n)
    assert len(set(tokens)) > min(n, 20) // 3
    assert max(tokens) < CONFIG.vocab_size


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_in_bf16_the_likeliest_tokens_are_nearly_so_in_the_whole_text(prompt):
    engine = make_engine(CONFIG, dtype="bf16")
    n = CONFIG.max_seq_len - len(prompt)
    tokens = greedy(engine, prompt, n)
    assert tokens == engine.model.likeliest(prompt, n)
    whole = engine.model(torch.tensor([prompt + tokens[:-1]]))[0, len(prompt) - 1 :, : CONFIG.vocab_size].float()
    behind = whole.amax(1) - whole[torch.arange(n), torch.tensor(tokens)]
    assert behind.max() <= NEAR["bf16"] * whole.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scores_of_a_step_are_those_of_the_whole_text(dtype):
    engine = make_engine(CONFIG, dtype=dtype)
    text = torch.from_numpy(np.random.default_rng(1).integers(0, CONFIG.vocab_size, (1, CONFIG.max_seq_len)))
    whole = engine.model(text)[0].float()
    cache = engine.model.new_cache()
    steps = [engine.model(text[:, :2], cache)[0, -1].float()]
    steps += [engine.model(text[:, t : t + 1], cache)[0, -1].float() for t in range(2, CONFIG.max_seq_len)]
    near = NEAR[dtype] * whole.abs().max()
    assert (torch.stack(steps) - whole[1:]).abs().max() <= near
    engine.model(text[:, :2], engine.model.new_cache())  # takes the decoder away
    cache[0].tokens = cache[0].tokens[:-1]
    assert (engine.model(text[:, -1:], cache)[0, -1].float() - whole[-1]).abs().max() <= near
    with pytest.raises(ValueError, match="do not fit the context"):
        engine.model(text[:, :1], cache)


@pytest.mark.slow
def test_texts_do_not_disturb_each_other_and_drawn_tokens_depend_on_the_seed_alone():
    engine = bold_engine()
    alone = [list(generate(engine.model, [seed], 3, seed=seed)) for seed in (1, 2)]
    under_way = [generate(engine.model, [seed], 3, seed=seed) for seed in (1, 2)]
    together = [list(tokens) for tokens in zip(*under_way, strict=True)]
    assert [list(tokens) for tokens in zip(*together, strict=True)] == alone
    assert alone[0] != alone[1]
    assert alone[0] == list(generate(engine.model, [1], 3, seed=1, use_cache=False))


def test_a_model_whose_heads_are_not_whole_packs_has_no_cache():
    engine = bold_engine(ModelConfig.from_descriptor("d1,h3,c18,t8,v61"))
    assert engine.model.new_cache() == []
    assert len(greedy(engine, [3], 1)) == 1
    with pytest.raises(ValueError, match="heads of 6 channels have no cache"):
        engine.model.likeliest([3], 4)
