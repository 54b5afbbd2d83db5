"""How good a model is: validation loss in nats a token and bits a byte, and HellaSwag's accuracy.

`python -m gpt2edu.evaluate` is the command; the trainer calls the two functions.

Shape suffix legend: B sequences of a batch, T tokens.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gpt2edu.config import ModelConfig
from gpt2edu.distributed import Communicator, make_communicator, rank_zero_print
from gpt2edu.errors import Gpt2EduError, UsageError, run_main
from gpt2edu.hellaswag import N_ENDINGS, Example, read_hellaswag
from gpt2edu.loader import ValLoader
from gpt2edu.sample import find_tokenizer, model_on_device
from gpt2edu.torch_engine import DTYPES, choose_device, choose_dtype
from gpt2edu.weights import load_model

WIDTH_STEP = 64  # HellaSwag batches are as wide as the longest example, rounded up to this


class LossModel(Protocol):
    """Anything that gives the loss of every token: an engine, or `EvaluationModel`."""

    config: ModelConfig

    def losses(self, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> Tensor:
        """Return (B, T) fp32 losses in nats."""


def validation_loss(
    engine: LossModel,
    val_loader: ValLoader,
    micro_batch: int,
    communicator: Communicator,
    token_byte_lengths: np.ndarray | None,
) -> tuple[float, float]:
    """Return the mean loss in nats a token, and in bits a byte of the text that the tokens stand for.

    Every rank gives its sums in float64, added in rank order; so the number of ranks changes only rounding.

    Args:
        engine: the model.
        val_loader: this rank's part of the validation tokens.
        micro_batch: sequences at once.
        communicator: the ranks.
        token_byte_lengths: (vocab_size,) bytes of each token; None gives NaN bits a byte.
    """
    nats, n_tokens, n_bytes = 0.0, 0, 0
    for inputs_BT, targets_BT in val_loader.batches(micro_batch):
        nats += float(_on_host(engine.losses(inputs_BT, targets_BT)).sum())
        n_tokens += targets_BT.size
        if token_byte_lengths is not None:
            n_bytes += int(token_byte_lengths[targets_BT].sum())
    nats, n_tokens, n_bytes = (sum(part) for part in zip(*communicator.gather((nats, n_tokens, n_bytes)), strict=True))
    return nats / n_tokens, nats / math.log(2) / n_bytes if n_bytes else math.nan


def hellaswag_accuracy(
    engine: LossModel, path: str | Path, micro_batch: int, seq_len: int, communicator: Communicator
) -> tuple[int, int]:
    """Return how many of HellaSwag's examples the model gets right, and how many there are (acc_norm).

    Its answer is the ending whose tokens have the lowest mean loss behind the context; of equal ones the first.
    A batch holds `micro_batch // 4` examples in 4 rows each; the ranks share the examples in contiguous parts.

    Args:
        engine: the model.
        path: the file that `write_hellaswag` made.
        micro_batch: B, at least 4.
        seq_len: the longest row; batches are only as wide as the longest example needs.
        communicator: the ranks.

    Raises:
        UsageError: `micro_batch` is below 4, or an example is longer than `seq_len`.
        Gpt2EduError: the file is missing or damaged, or holds tokens that the model has not.

    Source: compare llm.c llmc/dataloader.h, EvalLoader @ f1e2ace.
    """
    if micro_batch < N_ENDINGS:
        raise UsageError(f"HellaSwag needs -b {N_ENDINGS} or more, not {micro_batch}; raise -b, or switch it off: -h 0")
    examples = read_hellaswag(path)
    longest = max((example.n_tokens for example in examples), default=0)
    if longest > seq_len:
        raise UsageError(
            f"the longest example of {path} has {longest} tokens, more than -t {seq_len}; "
            "give a model and a -t of that length, or switch HellaSwag off: -h 0"
        )
    width = min(-(-longest // WIDTH_STEP) * WIDTH_STEP, seq_len)
    share = -(-len(examples) // communicator.world_size)
    own = examples[communicator.rank * share : (communicator.rank + 1) * share]
    correct = 0
    for start in range(0, len(own), micro_batch // N_ENDINGS):
        chosen = own[start : start + micro_batch // N_ENDINGS]
        inputs_BT, targets_BT, mask_BT = _pack(chosen, micro_batch, width)
        if max(inputs_BT.max(), targets_BT.max()) >= engine.config.vocab_size:
            raise Gpt2EduError(
                f"{path} holds token {max(inputs_BT.max(), targets_BT.max())}, the model knows only "
                f"{engine.config.vocab_size}: the file was made for another tokenizer; switch HellaSwag off: -h 0"
            )
        losses_BT = _on_host(engine.losses(inputs_BT, targets_BT)) * mask_BT
        rows = len(chosen) * N_ENDINGS
        mean_B = losses_BT[:rows].sum(axis=1) / mask_BT[:rows].sum(axis=1)
        answers = mean_B.reshape(-1, N_ENDINGS).argmin(axis=1)
        correct += sum(int(answer) == example.label for answer, example in zip(answers, chosen, strict=True))
    return sum(communicator.gather(correct)), len(examples)


def _pack(examples: Sequence[Example], batch_size: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay out each context and ending as a row; the mask is 1 where a token of an ending is predicted."""
    inputs_BT, targets_BT, mask_BT = np.zeros((3, batch_size, width), dtype=np.int64)
    rows = ((example.context, ending) for example in examples for ending in example.endings)
    for row, (context, ending) in enumerate(rows):
        tokens = [*context, *ending]
        inputs_BT[row, : len(tokens) - 1] = tokens[:-1]
        targets_BT[row, : len(tokens) - 1] = tokens[1:]
        mask_BT[row, len(context) - 1 : len(tokens) - 1] = 1
    return inputs_BT, targets_BT, mask_BT


def _on_host(losses_BT: Tensor) -> np.ndarray:
    return losses_BT.cpu().numpy().astype(np.float64)


class EvaluationModel:
    """A model that is only evaluated: no gradients and no optimizer take memory."""

    def __init__(self, config: ModelConfig, flat: Tensor, device: torch.device, dtype: str) -> None:
        self.config = config
        self.device = device
        self._autocast = torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "fp32")
        self._model = model_on_device(config, flat, str(device))

    @torch.inference_mode()
    def losses(self, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> Tensor:
        """Return (B, T) fp32 losses in nats."""
        with self._autocast:
            return self._model.losses(*(torch.from_numpy(tokens).to(self.device) for tokens in (inputs_BT, targets_BT)))


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `python -m gpt2edu.evaluate`."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2edu.evaluate",
        description="Measure a model's validation loss and its accuracy on HellaSwag.",
        epilog="examples:\n"
        "  python -m gpt2edu.evaluate --checkpoint log124M --val 'fineweb_val_*.bin' --hellaswag hellaswag_val.bin\n"
        "  python -m gpt2edu.evaluate --checkpoint openai-community/gpt2 --val 'fineweb_val_*.bin'\n"
        "  mpirun -np 8 python -m gpt2edu.evaluate ...   the same on 8 GPUs\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="run folder, model_*.bin, or Hugging Face folder or hub name")
    add("--val", metavar="PATTERN", help="validation shards, such as 'fineweb_val_*.bin' (quoted)")
    add("--val-tokens", type=int, help="tokens of them to read (default: 10,485,760, or all if they are fewer)")
    add("--hellaswag", metavar="FILE", help="made by: python -m gpt2edu.data hellaswag")
    add("-b", "--micro-batch", type=int, default=16, help="sequences at once on each rank (default 16)")
    add("-t", "--seq-len", type=int, help="tokens of a sequence (default: the model's context)")
    add("--tokenizer", help='"gpt2" or a tokenizer.json (default: the one beside the checkpoint, else gpt2)')
    add("--device", help="cpu, cuda, mps (default: the GPU if there is one)")
    add("--dtype", choices=sorted(DTYPES), help="of the matrix products (default: bf16 where the GPU has it)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the validation loss and HellaSwag's accuracy of a checkpoint."""
    options = build_parser().parse_args(argv)
    if not (options.val or options.hellaswag):
        raise UsageError("there is nothing to measure; give --val PATTERN, --hellaswag FILE, or both")
    if options.micro_batch < 1 or (options.val_tokens or 1) < 1 or (options.seq_len or 1) < 1:
        raise UsageError("--micro-batch, --val-tokens and --seq-len must be at least 1")
    device = choose_device(options.device)
    with make_communicator(device.type) as communicator:
        for line in _report(options, device, communicator):
            rank_zero_print(communicator, line)


def _report(options: argparse.Namespace, device: torch.device, communicator: Communicator) -> Iterator[str]:
    config, flat = load_model(options.checkpoint)
    seq_len = options.seq_len or config.max_seq_len
    if seq_len > config.max_seq_len:
        raise UsageError(f"-t {seq_len} is longer than the model's context of {config.max_seq_len}")
    dtype, reason = choose_dtype(options.dtype, device)
    yield f"precision: {reason}"
    model = EvaluationModel(config, flat, device, dtype)
    if options.val:
        byte_lengths = find_tokenizer(options.checkpoint, config, options.tokenizer).token_byte_lengths
        loader = ValLoader(
            options.val,
            seq_len,
            n_tokens=options.val_tokens,
            rank=communicator.rank,
            world_size=communicator.world_size,
            vocab_size=config.vocab_size,
        )
        nats, bits = validation_loss(model, loader, options.micro_batch, communicator, byte_lengths)
        yield f"val loss {nats:.6f} nats a token, {bits:.6f} bits a byte ({loader.n_tokens:,} tokens)"
    if options.hellaswag:
        rows = max(options.micro_batch, N_ENDINGS)
        correct, total = hellaswag_accuracy(model, options.hellaswag, rows, seq_len, communicator)
        yield f"HellaSwag: {correct}/{total} = {correct / total:f}"


if __name__ == "__main__":
    run_main(main)
