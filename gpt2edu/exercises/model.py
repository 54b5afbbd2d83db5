"""Checks of chapter 3's exercises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from gpt2edu.config import ModelConfig
from gpt2edu.exercises import check_cases
from gpt2edu.model import GPT2, causal_attention
from gpt2edu.parameters import n_parameters
from gpt2edu.sample import generate
from gpt2edu.show import Verdict


def _close(got: Tensor, expected: Tensor) -> bool:
    return got.shape == expected.shape and torch.allclose(got, expected, atol=1e-5)


def check_count_parameters(answer: Callable[[int, int, int, int], int]) -> Verdict:
    """Exercise 1: `answer(V, T, C, L)` is the number of parameters without padding."""
    cases = []
    for descriptor in ("d12", "d24", "gpt3:c2048", "d3,h2,c10,t7,v13"):
        config = ModelConfig.from_descriptor(descriptor)
        config = dataclasses.replace(config, padded_vocab_size=config.vocab_size)
        sizes = (config.vocab_size, config.max_seq_len, config.channels, config.n_layers)
        cases.append((sizes, n_parameters(config)))
    return check_cases("count_parameters", answer, cases)


def check_loss_of_one(answer: Callable[[Tensor, int, int], float]) -> Verdict:
    """Exercise 2: `answer(logits_P, target, vocab_size)` is the loss of one position, padding left out."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for vocab_size, target in ((10, 3), (100, 99), (127, 0), (128, 64)):
        logits_P = 3 * torch.randn(128, generator=generator)
        expected = functional.cross_entropy(logits_P[:vocab_size], torch.tensor(target))
        cases.append(((logits_P, target, vocab_size), float(expected)))
    return check_cases("loss_of_one", answer, cases, same=lambda got, expected: abs(float(got) - expected) < 1e-4)


def check_attend(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """Exercise 3: `answer(query_TD, key_TD, value_TD)` is causal attention of one head, (T, D)."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for T, D in ((1, 4), (5, 4), (7, 64)):
        qkv_TE = 2 * torch.randn(T, 3 * D, generator=generator)
        cases.append((tuple(qkv_TE.split(D, dim=1)), causal_attention(qkv_TE[None], 1)[0]))
    return check_cases("attend", answer, cases, same=_close)


def check_continue_greedily(answer: Callable[[GPT2, list[int], int], list[int]]) -> Verdict:
    """Exercise 4: `answer(model, ids, n)` are n new tokens, each the one with the highest score."""
    cases = []
    for descriptor, prompt, n in (("d1,h1,c16,t12,v50", [7], 8), ("d2,h2,c32,t20,v131", [5, 130, 0], 10)):
        model = GPT2(ModelConfig.from_descriptor(descriptor))
        model.init_weights(seed=1)
        model.flat_parameters *= 8  # far from the start, so that the text does not only repeat itself
        padding = model.wte.weight.data[model.config.vocab_size :]
        padding.copy_(9 * torch.randn(padding.shape, generator=torch.Generator().manual_seed(0)))
        cases.append(((model, prompt, n), list(generate(model, prompt, n, temperature=0))))
    return check_cases("continue_greedily", answer, cases, same=lambda got, expected: list(got) == expected)
