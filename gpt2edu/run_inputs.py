"""What a run reads and how it cuts it: shards, tokenizer, HellaSwag file, batch sizes; each checked before training."""

from __future__ import annotations

import glob
import math
from pathlib import Path
from typing import Any

from gpt2edu.config import GPT2_VOCAB_SIZE, ModelConfig, TrainConfig
from gpt2edu.distributed import Communicator
from gpt2edu.engine_protocol import Engine
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.files import data_dir
from gpt2edu.hellaswag import N_ENDINGS, read_hellaswag
from gpt2edu.manifest import Manifest, verify
from gpt2edu.tokenizer import Tokenizer, load_tokenizer

LLMC_MICRO_BATCH = 4
RECIPE_124M = (524_288, 1024)  # -d and -t of the 124M recipe, whose data order is that of 8 GPUs with -b 64
ORDER_124M = (8, 64)


def check_data(settings: TrainConfig, communicator: Communicator) -> Manifest | None:
    """Verify the shards against their manifests; return that of the training shards."""
    for flag, pattern in (("-i", settings.train_pattern), ("-j", settings.val_pattern)):
        if not glob.glob(pattern):
            raise Gpt2EduError(
                f"{flag} {pattern}: no such file; make the data with python -m gpt2edu.data tinyshakespeare "
                "(or kjv, fineweb, text ...) and give the patterns that it prints to -i and -j"
            )
    folder = Path(settings.train_pattern).parent
    manifest = None
    if communicator.rank == 0:
        manifest = verify(folder)
        if Path(settings.val_pattern).parent != folder:
            verify(Path(settings.val_pattern).parent)
    return communicator.broadcast(manifest)


def check_model(settings: TrainConfig, config: ModelConfig, manifest: Manifest | None) -> None:
    """Refuse a model whose context or vocabulary is too small for the run."""
    if settings.seq_len > config.max_seq_len:
        raise UsageError(f"-t {settings.seq_len} is longer than the model's context of {config.max_seq_len} tokens")
    if manifest and manifest.vocab_size > config.vocab_size:
        raise UsageError(
            f"-i {settings.train_pattern} has {manifest.vocab_size:,} token ids, the model only {config.vocab_size:,}; "
            f"give the model that vocabulary: -e {settings.model.split(',v')[0]},v{manifest.vocab_size}"
        )


def find_tokenizer(
    settings: TrainConfig, config: ModelConfig, manifest: Manifest | None
) -> tuple[Tokenizer | None, str]:
    """Return the chosen tokenizer or the data's, None when none is known for this vocabulary; and a note about it."""
    spec = settings.tokenizer
    if spec is None and manifest:
        spec = "gpt2" if manifest.tokenizer == "gpt2" else str(Path(settings.train_pattern).parent / manifest.tokenizer)
    if spec is None and config.vocab_size == GPT2_VOCAB_SIZE:
        spec = "gpt2"
    try:
        if spec is None:
            raise UsageError(f"no tokenizer is known for a vocabulary of {config.vocab_size}; name it with --tokenizer")
        tokenizer = load_tokenizer(spec)
        if tokenizer.vocab_size != config.vocab_size:
            raise UsageError(
                f"--tokenizer {spec} has {tokenizer.vocab_size} tokens but the model {config.vocab_size}; "
                f"give -e that vocabulary (...,v{tokenizer.vocab_size}) or the tokenizer that made its data"
            )
    except Gpt2EduError as problem:
        if settings.tokenizer:
            raise
        return None, f"samples are token ids, and there are no bits a byte: {problem}"
    return tokenizer, f"tokenizer: {tokenizer.source}"


def find_hellaswag(settings: TrainConfig, config: ModelConfig) -> tuple[Path | None, str]:
    """Return the HellaSwag file when -h 1 asks for it and it fits the model, otherwise None; and why."""
    if not settings.hellaswag:
        return None, ""
    path = Path(settings.hellaswag_path or data_dir() / "hellaswag" / "hellaswag_val.bin")
    if not path.exists():
        if settings.hellaswag_path:
            raise UsageError(f"--hellaswag {path}: no such file; make it with python -m gpt2edu.data hellaswag")
        return None, (
            f"HellaSwag eval not found at {path}, skipping its evaluation\n"
            "You can run `python -m gpt2edu.data hellaswag` to make it and use it with `-h 1`."
        )
    if config.vocab_size != GPT2_VOCAB_SIZE:
        return (
            None,
            f"HellaSwag is skipped: its file holds GPT-2's tokens, the model has {config.vocab_size} of its own",
        )
    if settings.micro_batch < N_ENDINGS:
        raise UsageError(f"-h 1 needs -b {N_ENDINGS} or more, not {settings.micro_batch}; raise -b, or leave out -h")
    longest = max((example.n_tokens for example in read_hellaswag(path)), default=0)
    if longest > settings.seq_len:
        raise UsageError(f"-h 1: the longest example of {path} has {longest} tokens, more than -t {settings.seq_len}")
    return path, ""


def decide_batch(settings: TrainConfig, world_size: int, saved: dict[str, Any]) -> None:
    """Fill in -d and the data order; what is not given is as it was in the saved run, or as in llm.c."""
    rows = settings.micro_batch or 1
    unit = rows * settings.seq_len * world_size
    if settings.total_batch is None:
        default = (settings.micro_batch or LLMC_MICRO_BATCH) * settings.seq_len * world_size
        settings.total_batch = saved.get("total_batch") or default
        if settings.micro_batch is None and settings.total_batch == default:
            settings.micro_batch = LLMC_MICRO_BATCH
    if settings.total_batch % unit:
        lower = settings.total_batch // unit * unit
        nearest = [str(total) for total in (lower, lower + unit) if total]
        raise UsageError(
            f"-d {settings.total_batch} is not a multiple of -b {rows} x -t {settings.seq_len} x {world_size} ranks "
            f"= {unit}; the nearest that work: -d {' or '.join(nearest)}"
        )
    is_recipe = (settings.total_batch, settings.seq_len) == RECIPE_124M
    ranks, batch = ORDER_124M if is_recipe and settings.order_ranks is None else (1, None)
    settings.order_ranks = settings.order_ranks or saved.get("order_ranks") or ranks
    same_cut = (settings.total_batch, settings.order_ranks) == (saved.get("total_batch"), saved.get("order_ranks"))
    settings.order_batch = settings.order_batch or (saved["order_batch"] if same_cut else batch)


def choose_micro_batch(engine: Engine, n_sequences: int, communicator: Communicator) -> int:
    """Return the largest micro-batch that divides the rank's `n_sequences` a step and fits every rank's memory."""
    rows = min(communicator.gather(engine.largest_micro_batch(divisors(n_sequences))))
    if not rows:
        raise Gpt2EduError("-t: not one sequence fits the GPU's memory; use -r 2, a shorter -t or a smaller model -e")
    return rows


def out_of_memory(settings: TrainConfig, engine: Engine, n_sequences: int) -> Gpt2EduError:
    """Return the error for a micro-batch that was too large; it names the largest -b that fits."""
    smaller = [rows for rows in divisors(n_sequences) if rows < settings.micro_batch]
    rows = engine.largest_micro_batch(smaller) if smaller else 0  # a careful estimate
    for larger in smaller:
        if larger > rows and not engine.fits(larger):
            break
        rows = max(rows, larger)
    remedy = f"the largest that fits is -b {rows}" if rows else "use -r 2, a shorter -t or a smaller model -e"
    return Gpt2EduError(f"-b {settings.micro_batch}: the GPU's memory is too small for so many sequences; {remedy}")


def divisors(n: int) -> list[int]:
    """Return all divisors of n, ascending."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})
