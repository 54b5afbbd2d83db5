"""Tokens a second at batch 1: the numba engine and PyTorch, both with a cache of keys and values and a CUDA graph.

Each continues one token to a full context with the likeliest tokens, which both choose on the device. The weights are
random: what they say does not change the time.

Shape suffix legend: C channels, H heads, D head size, S time of the keys, T time, V vocabulary, P padded vocabulary.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gpt2edu.config import ModelConfig
from gpt2edu.errors import Gpt2EduError
from gpt2edu.generation import Decoder
from gpt2edu.model import GPT2, Block
from gpt2edu.parameters import n_parameters, parameter_layout
from gpt2edu.results import Row
from kernels.host import EPSILON

FIRST_TOKEN = 0
WARMUP = 3  # steps before a capture


def add_sampling(actions: Any) -> argparse.ArgumentParser:
    """Add `sampling` to the subcommands of `gpt2edu.bench`; return its parser."""
    parser = actions.add_parser("sampling", help="tokens a second at batch 1", allow_abbrev=False)
    parser.add_argument("-e", "--model", default="d12", help="descriptor of the model (default %(default)s)")
    parser.add_argument("--texts", type=int, default=5, help="timed texts of each (default %(default)s)")
    return parser


# ---- PyTorch -------------------------------------------------------------------------------------------------------


def block_step(block: Block, hidden_1C: Tensor, cache: tuple[Tensor, Tensor], position_1: Tensor) -> Tensor:
    """Return the residual stream of one token after a block; its key and value are put into the cache."""
    keys_HSD, values_HSD = cache
    H, S, D = keys_HSD.shape
    query_HD, key_HD, value_HD = block.qkv(block.ln1(hidden_1C)).view(3, H, D).unbind(0)
    keys_HSD.index_copy_(1, position_1, key_HD[:, None])
    values_HSD.index_copy_(1, position_1, value_HD[:, None])
    visible_S = torch.arange(S, device=position_1.device) <= position_1
    mixed_1HTD = functional.scaled_dot_product_attention(
        query_HD[None, :, None], keys_HSD[None], values_HSD[None], attn_mask=visible_S[None, None, None]
    )
    hidden_1C = hidden_1C + block.attproj(mixed_1HTD.view(1, H * D))
    return hidden_1C + block.fcproj(block.gelu(block.fc(block.ln2(hidden_1C))))


class StaticCacheLoop:
    """The usual fast way in PyTorch: bf16 weights, a cache of fixed size, a compiled block, and one graph a token.

    One compiled block serves all layers, which have the same shapes; so compiling takes seconds. On a CPU nothing is
    compiled or captured.

    Args:
        config: the model's shape.
        flat_parameters: fp32.
        device: where it runs.
    """

    def __init__(self, config: ModelConfig, flat_parameters: Tensor, device: torch.device) -> None:
        self.model = GPT2(config, device=device)
        self.model.flat_parameters.copy_(flat_parameters)
        self.model.bfloat16()
        self.config = config
        cache_shape = config.n_layers, 2, config.n_heads, config.max_seq_len, config.head_size
        cache = torch.zeros(cache_shape, dtype=torch.bfloat16, device=device)
        self.caches = [tuple(layer) for layer in cache]
        self.tokens_T = torch.zeros(config.max_seq_len, dtype=torch.int64, device=device)
        self.position_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.block_step, self.last_step = block_step, self._last_step
        self._play = self.step
        if device.type == "cuda":
            self.block_step, self.last_step = (torch.compile(f, dynamic=False) for f in (block_step, self._last_step))
            self._play = self._capture().replay

    def _last_step(self, hidden_1C: Tensor) -> tuple[Tensor, Tensor]:
        scores_1P = functional.linear(self.model.lnf(hidden_1C), self.model.wte.weight)
        return scores_1P, scores_1P[:, : self.config.vocab_size].argmax(-1)

    def step(self) -> None:
        """Append the likeliest token."""
        model = self.model
        hidden_1C = model.wte(self.tokens_T[self.position_1]) + model.wpe(self.position_1)
        for block, cache in zip(model.blocks, self.caches, strict=True):
            hidden_1C = self.block_step(block, hidden_1C, cache, self.position_1)
        self.scores_1P, token_1 = self.last_step(hidden_1C)
        self.position_1 += 1
        self.tokens_T.index_copy_(0, self.position_1, token_1)

    def _capture(self) -> torch.cuda.CUDAGraph:
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                self.step()
        with torch.cuda.graph(graph, stream=stream):
            self.step()
        return graph

    def text(self) -> list[int]:
        """Return a text as long as the context."""
        self.position_1.zero_()
        self.tokens_T[0] = FIRST_TOKEN
        for _ in range(self.config.max_seq_len - 1):
            self._play()
        return self.tokens_T.tolist()


# ---- the measurement -----------------------------------------------------------------------------------------------


class NumbaLoop:
    """The same by the numba engine's decoder."""

    def __init__(self, config: ModelConfig, flat_parameters: Tensor, device: torch.device) -> None:
        flat = flat_parameters.to(device, torch.bfloat16)
        weights = SimpleNamespace(**{t.name: t.view(flat) for t in parameter_layout(config)})
        self.config = config
        self.decoder = Decoder(config, weights, torch.cuda.Stream(device) if device.type == "cuda" else None)
        self.scores_1P = self.decoder.logits_P

    def text(self) -> list[int]:
        """Return a text as long as the context."""
        self.decoder.clear()
        return [FIRST_TOKEN, *self.decoder.continue_likeliest(FIRST_TOKEN, self.config.max_seq_len - 1)]


@torch.no_grad()
def bench_sampling(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Check the last scores of both, then time whole texts, in turns.

    Raises:
        Gpt2EduError: ours are further from those in fp32 than twice PyTorch's.
    """
    config = ModelConfig.from_descriptor(arguments.model)
    model = GPT2(config, device=device)
    model.init_weights()
    loops = {"numba": NumbaLoop(config, model.flat_parameters, device)}
    loops["torch"] = StaticCacheLoop(config, model.flat_parameters, device)
    errors = {name: _error(model, loop.text(), loop.scores_1P) for name, loop in loops.items()}
    ours, theirs = errors["numba"], errors["torch"]
    if not ours <= 2 * theirs:
        raise Gpt2EduError(f"sampling: our scores are wrong by {ours:.3g}, PyTorch's by {theirs:.3g}; mend the kernels")
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(arguments.texts):
        for name, loop in loops.items():
            times[name].append(_time(loop.text, device) / (config.max_seq_len - 1))
    if not errors["numba"] <= 2 * errors["torch"]:
        raise Gpt2EduError(
            f"sampling: the scores are wrong by {errors['numba']:.3g}, PyTorch's by {errors['torch']:.3g}"
        )
    return sampling_rows(config, times, errors)


def _error(model: GPT2, tokens: list[int], scores_1P: Tensor) -> float:
    """Return the greatest error of the last step's scores, at least one rounding."""
    V = model.config.vocab_size
    text_BT = torch.tensor([tokens[:-1]], device=scores_1P.device)
    expected_V = model(text_BT)[0, -1, :V]
    error = (scores_1P[0, :V].float() - expected_V).abs().max().item()
    return max(error, EPSILON["bfloat16"] * expected_V.abs().max().item())


def _time(work: Callable[[], Any], device: torch.device) -> float:
    """Return the milliseconds of something that waits for its result."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def sampling_rows(config: ModelConfig, times: dict[str, list[float]], errors: dict[str, float]) -> list[Row]:
    """Return the results rows of milliseconds a token; bytes are the weights' and, on average, half a full cache's."""
    L, C, T = config.n_layers, config.channels, config.max_seq_len
    n_bytes = 2 * (n_parameters(config) - T * C) + 2 * L * 2 * C * T / 2
    shape = {"B": 1, "T": T, "L": L, "C": C, "V": config.vocab_size}
    torch_ms = statistics.median(times["torch"])
    rows = []
    for name, values in times.items():
        median_ms = statistics.median(values)
        row = {"op": "sampling", "variant": name, "dtype": "bf16", "shape": shape, "n_runs": len(values)}
        row |= {"median_ms": median_ms, "min_ms": min(values), "max_ms": max(values)}
        row |= {"tokens_per_s": 1e3 / median_ms, "gb_per_s": n_bytes / median_ms / 1e6}
        row |= {"torch_ms": torch_ms, "torch_ratio": torch_ms / median_ms}
        rows.append(row | {"max_error": errors[name], "baseline_error": errors["torch"]})
    return rows
