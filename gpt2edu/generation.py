"""How the numba engine continues a text: a step of one token over a cache of keys and values, as one CUDA graph.

The prompt goes once through the forward pass of training, whose queries, keys and values are copied to the cache. From
then on a step computes one row: products with a vector, and attention of one query. It is limited by reading the
weights, and by the time of its launches; so there are six a layer, and the graph that holds them is captured once,
because tokens and position are read from the device.

Shape suffix legend: L layers, B batch, T time, C channels, E = 3C, F = 4C, P padded vocabulary, S scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2edu.config import ModelConfig
from gpt2edu.replay import Replay, Uploader
from kernels.attention import attention_decode, attention_decode_scratch_size
from kernels.launch import PACK, Prepared
from kernels.matmul.vector import matmul_vector
from kernels.next_token import choose_token, embed_token

PROMPT_STEP = 64  # launches of the forward pass are prepared for texts of multiples of this


class Decoder:
    """One text under way: its tokens, keys and values on the device, and what computes the next token.

    Args:
        config: the model's shape.
        weights: the 16 tensors by name, as the kernels read them.
        stream: where launches are captured; None on a CPU.

    Attributes:
        length: tokens whose keys and values are known.
        logits_P: (1, P), the scores of the last step.
    """

    def __init__(self, config: ModelConfig, weights: SimpleNamespace, stream: torch.cuda.Stream | None) -> None:
        self.config, self.length = config, 0
        L, T, C, H = config.n_layers, config.max_seq_len, config.channels, config.n_heads
        real = {"dtype": weights.wte.dtype, "device": weights.wte.device}
        self._qkv_LTE = torch.empty(L, T, 3 * C, **real)
        self._residual_C, self._mixed_C, self._activated_F = (torch.empty(1, n, **real) for n in (C, C, 4 * C))
        self.logits_P = torch.empty(1, config.padded_vocab_size, **real)
        self._tokens_T, self._position_1 = (torch.empty(n, dtype=torch.int32, device=real["device"]) for n in (T, 1))
        scratch_size = attention_decode_scratch_size(1, T, H, C // H)
        self._scratch_S = torch.empty(scratch_size, dtype=torch.float32, device=real["device"])
        self._upload = Uploader(real["device"])
        launch_stream = stream.cuda_stream if stream else 0
        step = self._step_launches(weights, launch_stream)
        choice = choose_token.prepare(
            self._tokens_T, self._position_1, self.logits_P, config.vocab_size, stream=launch_stream
        )
        self._step, self._step_and_choose = Replay(step, stream), Replay(Prepared([*step, *choice]), stream)

    def _step_launches(self, w: SimpleNamespace, stream: Any) -> Prepared:
        """Return the launches that make of the newest token its row of the cache and the scores of the next."""
        launches: list = []

        def do(operation: Callable, *arguments: object, **keywords: object) -> None:
            launches.extend(operation.prepare(*arguments, stream=stream, **keywords))

        x_C, mixed_C, activated_F, position_1 = self._residual_C, self._mixed_C, self._activated_F, self._position_1
        do(embed_token, x_C, self._tokens_T, position_1, w.wte, w.wpe)
        for n, qkv_TE in enumerate(self._qkv_LTE):
            ln1, ln2 = (w.ln1w[n], w.ln1b[n]), (w.ln2w[n], w.ln2b[n])
            do(matmul_vector, qkv_TE, x_C, w.qkvw[n], w.qkvb[n], norm=ln1, position_1=position_1)
            do(attention_decode, mixed_C, self._scratch_S, qkv_TE[None], self.config.n_heads, position_1)
            do(matmul_vector, x_C, mixed_C, w.attprojw[n], w.attprojb[n], residual_N=x_C)
            do(matmul_vector, activated_F, x_C, w.fcw[n], w.fcb[n], norm=ln2, gelu=True)
            do(matmul_vector, x_C, activated_F, w.fcprojw[n], w.fcprojb[n], residual_N=x_C)
        do(matmul_vector, self.logits_P, x_C, w.wte, norm=(w.lnfw, w.lnfb))
        return Prepared(launches)

    def clear(self) -> None:
        """Begin a new text."""
        self.length = 0

    def begin(self, tokens_T: np.ndarray, qkv_LTE: Tensor) -> None:
        """Take over a prompt and what the forward pass computed of it."""
        self.length = len(tokens_T)
        for ours_TE, theirs_TE in zip(self._qkv_LTE, qkv_LTE, strict=True):
            ours_TE[: self.length].copy_(theirs_TE[: self.length])  # in one piece: a plain copy of memory
        self._upload((self._tokens_T[: self.length], tokens_T))

    def step(self, token: int) -> Tensor:
        """Append a token; return the scores (1, P) of the one after it.

        Raises:
            ValueError: the text is as long as the context.
        """
        self._append(token, 1)
        self._step()
        return self.logits_P

    def continue_likeliest(self, token: int, n_tokens: int) -> list[int]:
        """Append a token and return the `n_tokens` likeliest after it, each chosen on the device.

        All but the last of them are appended, too. The host waits once, at the end.

        Raises:
            ValueError: they do not fit the context.
        """
        first = self.length + 1
        self._append(token, n_tokens)
        for _ in range(n_tokens):
            self._step_and_choose()
        return self._tokens_T[first : first + n_tokens].tolist()

    def _append(self, token: int, n_steps: int) -> None:
        """Put a token at the end of the text, which then grows by `n_steps`."""
        if self.length + n_steps > self.config.max_seq_len:
            raise ValueError(
                f"{self.length} and {n_steps} tokens do not fit the context of {self.config.max_seq_len}; ask for fewer"
            )
        place = slice(self.length, self.length + 1)
        self._upload((self._tokens_T[place], np.array([token])), (self._position_1, np.array([self.length])))
        self.length += n_steps


class Text:
    """What stands for a text in `sample.generate`: its tokens. Keys and values are the decoder's, which it may lose."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        """Tokens so far."""
        return len(self.tokens)


class SampleModel:
    """What `sample.generate` needs of a model, computed by the engine.

    All texts share one decoder, so that its graph is captured once. A text that finds it taken by another one begins
    anew with all its tokens.

    Args:
        config: the model's shape.
        weights: the 16 tensors by name, as the kernels read them.
        flat_parameters: the fp32 weights.
        stream: where launches are captured; None on a CPU.
        forward: returns the activations of a batch of tokens, which stay until the next batch.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: SimpleNamespace,
        flat_parameters: Tensor,
        stream: torch.cuda.Stream | None,
        forward: Callable[[np.ndarray], SimpleNamespace],
    ) -> None:
        self.config, self.flat_parameters = config, flat_parameters
        self._weights, self._stream, self._forward = weights, stream, forward
        self._decoder: Decoder | None = None
        self._owner: Text | None = None  # of the decoder

    def new_cache(self) -> list[Text]:
        """Return the cache of a text; none, so that every step computes the whole text, where kernels ask for more."""
        return [] if self.config.head_size % PACK else [Text()]

    def __call__(self, tokens_BT: Tensor, cache: list[Text] | None = None) -> Tensor:
        """Return the logits (B, T, P) on the host, where tokens are chosen.

        Args:
            tokens_BT: token ids; with a cache those of one text that come after the cached ones.
            cache: from `new_cache`; grows by T.

        Raises:
            ValueError: the text would become longer than the context.
        """
        tokens_BT = tokens_BT.cpu()
        with torch.inference_mode(False):  # buffers that are made here serve training, too
            return self._append(tokens_BT, cache[0]) if cache else self._whole(tokens_BT)[1]

    def _append(self, tokens_1T: Tensor, text: Text) -> Tensor:
        new = tokens_1T.flatten().tolist()
        text.tokens += new
        if self._owner is text and len(new) == 1:
            return _on_host(self._decoder.step(*new))[None]
        activations, logits_1TP = self._whole(torch.tensor([text.tokens]))
        if self._decoder is None:
            self._decoder = Decoder(self.config, self._weights, self._stream)
        self._decoder.begin(np.array(text.tokens), activations.qkv[:, 0])
        self._owner = text
        return logits_1TP[:, -len(new) :]

    def _whole(self, tokens_BT: Tensor) -> tuple[SimpleNamespace, Tensor]:
        """Return the activations of whole texts, and their logits."""
        B, T = tokens_BT.shape
        if T > self.config.max_seq_len:
            raise ValueError(f"{T} tokens do not fit the context of {self.config.max_seq_len}; begin a new text")
        width = min(-(-T // PROMPT_STEP) * PROMPT_STEP, self.config.max_seq_len)
        inputs = np.zeros((B, width), np.int32)
        inputs[:, :T] = tokens_BT  # what comes after a token does not change its logits
        activations = self._forward(inputs)
        return activations, _on_host(activations.logits)[:, :T]

    def likeliest(self, prompt_ids: Sequence[int], n_tokens: int) -> list[int]:
        """Return what `sample.generate` gives at temperature 0, without a wait for each token.

        Raises:
            ValueError: prompt and new tokens do not fit the context, or there is no cache for this model.
        """
        cache = self.new_cache()
        if not cache:
            raise ValueError(f"heads of {self.config.head_size} channels have no cache: use sample.generate")
        logits_1TP = self(torch.tensor([list(prompt_ids)]), cache)
        first = int(logits_1TP[0, -1, : self.config.vocab_size].argmax())
        new = [first, *self._decoder.continue_likeliest(first, n_tokens - 1)]
        cache[0].tokens += new[:-1]
        return new


def _on_host(x: Tensor) -> Tensor:
    """Return a copy in the host's memory, on a CPU, too."""
    return x.to("cpu", copy=True)
