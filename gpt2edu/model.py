"""GPT-2 as in the paper: token and position embeddings, L pre-norm blocks, a final layernorm, a tied head.

A plain `torch.nn.Module` whose parameters are views of ONE flat fp32 tensor, laid out as
`gpt2edu.parameters` says, and whose gradients are views of another. So the optimizer, the checkpoints
and the communication between ranks work on flat buffers, and the model still reads like a model.

Shape suffix legend: B batch, T time, C channels, H heads, D = C / H head size, E = 3C, F = 4C,
V vocabulary, P padded vocabulary, S time of the keys, R = B * T rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gpt2edu.config import ModelConfig
from gpt2edu.parameters import n_parameters, parameter_layout

INIT_STD = 0.02


class LayerCache:
    """The keys and values that one layer has computed so far, in buffers as long as the context."""

    def __init__(self, max_seq_len: int) -> None:
        self.max_seq_len = max_seq_len
        self.length = 0

    def append(self, key_BHTD: Tensor, value_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest keys and values; return all of them, oldest first."""
        if self.length == 0:
            B, H, _, D = key_BHTD.shape
            self.keys_BHSD = key_BHTD.new_empty(B, H, self.max_seq_len, D)
            self.values_BHSD = value_BHTD.new_empty(B, H, self.max_seq_len, D)
        start, self.length = self.length, self.length + key_BHTD.shape[2]
        self.keys_BHSD[:, :, start : self.length] = key_BHTD
        self.values_BHSD[:, :, start : self.length] = value_BHTD
        return self.keys_BHSD[:, :, : self.length], self.values_BHSD[:, :, : self.length]


def causal_attention(qkv_BTE: Tensor, n_heads: int, cache: LayerCache | None = None) -> Tensor:
    """Let each position gather values from itself and earlier ones, in H heads at once.

    Args:
        qkv_BTE: queries, keys and values of every position, side by side.
        n_heads: H; each head has D = C / H channels of its own.
        cache: keys and values of earlier positions; grows by the T new ones.

    Returns:
        (B, T, C): the weighted sums of values, heads side by side.
    """
    B, T, E = qkv_BTE.shape
    # B T (three H D) -> three B H T D
    heads_BT3HD = qkv_BTE.view(B, T, 3, n_heads, -1)
    query_BHTD, key_BHSD, value_BHSD = heads_BT3HD.permute(2, 0, 3, 1, 4)
    visible_TS = None
    if cache is not None:
        key_BHSD, value_BHSD = cache.append(key_BHSD, value_BHSD)
        S = cache.length
        # the T newest queries stand at the end of the S keys
        visible_TS = torch.ones(T, S, dtype=torch.bool, device=qkv_BTE.device).tril(S - T)
    mixed_BHTD = functional.scaled_dot_product_attention(
        query_BHTD, key_BHSD, value_BHSD, attn_mask=visible_TS, is_causal=cache is None
    )
    return mixed_BHTD.transpose(1, 2).reshape(B, T, E // 3)


class Block(nn.Module):
    """Attention, then an MLP of two linear layers; each adds to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.channels
        self.n_heads = config.n_heads
        self.ln1 = nn.LayerNorm(C)
        self.qkv = nn.Linear(C, 3 * C)
        self.attproj = nn.Linear(C, C)
        self.ln2 = nn.LayerNorm(C)
        self.fc = nn.Linear(C, 4 * C)
        self.gelu = nn.GELU(approximate="tanh")
        self.fcproj = nn.Linear(4 * C, C)

    def forward(self, hidden_BTC: Tensor, cache: LayerCache | None = None, recompute: int = 0) -> Tensor:
        """Return the residual stream (B, T, C) after this block."""
        qkv_BTE = _apply(self.ln1, self.qkv, hidden_BTC, recompute >= 2)
        mixed_BTC = causal_attention(qkv_BTE, self.n_heads, cache)
        hidden_BTC = hidden_BTC + self.attproj(mixed_BTC)
        expanded_BTF = _apply(self.ln2, self.fc, hidden_BTC, recompute >= 2)
        return hidden_BTC + _apply(self.gelu, self.fcproj, expanded_BTF, recompute >= 1)


def _apply(first: nn.Module, linear: nn.Module, inputs: Tensor, recompute: bool) -> Tensor:
    """Return linear(first(inputs)); with `recompute`, backward makes first(inputs) again instead of keeping it."""
    if not recompute:
        return linear(first(inputs))
    # backward does not need what `linear` returns, so the recomputation stops before the matrix product
    return checkpoint(lambda x: linear(first(x)), inputs, use_reentrant=False, preserve_rng_state=False)


class GPT2(nn.Module):
    """The whole model.

    Do not move it with `.to(device)`: that would tear the parameters off the flat buffer; pass `device` here.

    Attributes:
        flat_parameters: (n,) fp32, all parameters in the order of `gpt2edu.parameters`.
        flat_gradients: (n,) fp32 after `allocate_gradients`, before that None.
        recompute: what the backward pass computes again instead of keeping: 0 nothing, 1 GELU, 2 GELU and layernorm.
    """

    def __init__(self, config: ModelConfig, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config = config
        self.recompute = 0
        with torch.device("meta"):  # shapes only: the memory is the flat buffer
            self.wte = nn.Embedding(config.padded_vocab_size, config.channels)
            self.wpe = nn.Embedding(config.max_seq_len, config.channels)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
            self.lnf = nn.LayerNorm(config.channels)
        self.flat_parameters = torch.zeros(n_parameters(config), device=device)
        self.flat_gradients: Tensor | None = None
        for path, view in named_views(config, self.flat_parameters):
            module_path, _, attribute = path.rpartition(".")
            setattr(self.get_submodule(module_path), attribute, nn.Parameter(view))

    def allocate_gradients(self) -> None:
        """Give every parameter a zero gradient that is a view of `flat_gradients`; backward passes add to it."""
        self.flat_gradients = torch.zeros_like(self.flat_parameters)
        for path, view in named_views(self.config, self.flat_gradients):
            self.get_parameter(path).grad = view

    @torch.no_grad()
    def init_weights(self, seed: int = 42) -> None:
        """Draw the initial weights: the same random numbers in the same order as llm.c.

        Matrices have standard deviation 0.02, those that write to the residual stream 0.02 / sqrt(2L).
        Layernorm weights are 1, biases and the padding rows of `wte` 0.

        Source: compare llm.c train_gpt2.cu, gpt_build_from_descriptor.
        """
        # drawn on the CPU, so that every device gets the same weights
        generator = torch.Generator().manual_seed(seed)
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layers)

        def draw(parameter: Tensor, std: float = INIT_STD) -> None:
            numbers = torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
            parameter.copy_(numbers)

        self.flat_parameters.zero_()
        draw(self.wte.weight[: self.config.vocab_size])
        draw(self.wpe.weight)
        self.lnf.weight.fill_(1.0)
        for block in self.blocks:
            block.ln1.weight.fill_(1.0)
            block.ln2.weight.fill_(1.0)
            draw(block.qkv.weight)
            draw(block.attproj.weight, residual_std)
            draw(block.fc.weight)
            draw(block.fcproj.weight, residual_std)

    def new_cache(self) -> list[LayerCache]:
        """Return one empty key-value cache a layer, for `forward`."""
        return [LayerCache(self.config.max_seq_len) for _ in self.blocks]

    def forward(self, tokens_BT: Tensor, cache: list[LayerCache] | None = None) -> Tensor:
        """Return the scores of every next token.

        Args:
            tokens_BT: int64 token ids; with a cache, only those after the cached ones.
            cache: from `new_cache`; grows by T.

        Returns:
            logits (B, T, P), fp32 or autocast's type; the columns from V on are padding.

        Raises:
            ValueError: the sequence is longer than the model's context.
        """
        start = cache[0].length if cache else 0
        end, context = start + tokens_BT.shape[1], self.config.max_seq_len
        if end > context:
            raise ValueError(f"{end} tokens do not fit the model's context of {context}")
        hidden_BTC = self.wte(tokens_BT) + self.wpe.weight[start:end]
        for layer, block in enumerate(self.blocks):
            hidden_BTC = block(hidden_BTC, cache[layer] if cache else None, self.recompute)
        # the head is the token embedding again
        return functional.linear(self.lnf(hidden_BTC), self.wte.weight)

    def losses(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the cross entropy of every position, (B, T) fp32 in nats, padding left out."""
        logits_BTP = self(tokens_BT).float()
        # masked, not cut off: rows of V = 50257 numbers are not aligned, which slows a GPU down
        columns_P = torch.arange(logits_BTP.shape[-1], device=logits_BTP.device)
        logits_BTP = logits_BTP.masked_fill(columns_P >= self.config.vocab_size, -math.inf)
        logits_RP, targets_R = logits_BTP.flatten(0, 1), targets_BT.flatten()
        losses_R = functional.cross_entropy(logits_RP, targets_R, reduction="none")
        return losses_R.view(targets_BT.shape)


def named_views(config: ModelConfig, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter's name in the module and its view of a flat buffer (parameters or gradients).

    The modules carry llm.c's names: the tensor `fcprojw` is `blocks.<layer>.fcproj.weight`, `wte` is `wte.weight`.
    """
    for tensor in parameter_layout(config):
        view = tensor.view(flat)
        module, kind = (tensor.name, "w") if tensor.name in ("wte", "wpe") else (tensor.name[:-1], tensor.name[-1])
        path = f"{module}.{'weight' if kind == 'w' else 'bias'}"
        if tensor.stacked:
            yield from ((f"blocks.{layer}.{path}", view[layer]) for layer in range(tensor.n_slices))
        else:
            yield path, view
