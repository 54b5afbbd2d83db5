"""Where a model's weights come from: llm.c's `model_*.bin` files, run folders, Hugging Face, a descriptor.

As a command it converts one kind of weights into another.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2edu.config import ModelConfig
from gpt2edu.errors import Gpt2EduError, UsageError, run_main
from gpt2edu.files import atomic_write
from gpt2edu.huggingface import export_huggingface, import_huggingface
from gpt2edu.model import GPT2
from gpt2edu.parameters import n_parameters
from gpt2edu.tokenizer import Tokenizer, load_tokenizer

MAGIC = 20240326
HEADER_WORDS = 256
HEADER_FIELDS = ("max_seq_len", "vocab_size", "n_layers", "n_heads", "channels", "padded_vocab_size")  # words 2 to 7
VERSIONS = {"fp32": 3, "bf16": 5}
DTYPES = {3: torch.float32, 5: torch.bfloat16}
DESCRIPTOR = re.compile(r"(gpt2:)?d\d+(,.*)?|gpt3:.*")
HUB_NAME = re.compile(r"(distil)?gpt2(-\w+)?|[\w.-]+/[\w.-]+")


def write_model_file(path: str | Path, config: ModelConfig, flat: Tensor, dtype: str = "fp32") -> None:
    """Write llm.c's model file: 256 int32, then the flat parameters as fp32 or bf16, little-endian.

    Source: compare llm.c train_gpt2.cu, gpt2_write_to_checkpoint.
    """
    header = np.zeros(HEADER_WORDS, dtype="<i4")
    header[:8] = [MAGIC, VERSIONS[dtype], *(getattr(config, field) for field in HEADER_FIELDS)]
    values = flat.detach().to("cpu", DTYPES[VERSIONS[dtype]]).contiguous()
    with atomic_write(path) as file:
        file.write(header)
        file.write(values.view(torch.uint8).numpy())


def read_model_file(path: str | Path) -> tuple[ModelConfig, Tensor]:
    """Read llm.c's model file; the flat (n,) parameters come back as fp32 on the CPU.

    Raises:
        Gpt2EduError: the file is missing, of another kind, or not as long as its header says.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            header = np.frombuffer(file.read(HEADER_WORDS * 4), dtype=np.uint8)
    except OSError as problem:
        raise Gpt2EduError(f"the model file {path} cannot be read ({problem.strerror}); check the path") from problem
    if header.size < HEADER_WORDS * 4:
        raise Gpt2EduError(f"{path} is cut short inside its header; copy it again or use an earlier checkpoint")
    magic, version, *sizes = (int(word) for word in header.view("<i4")[:8])
    if magic != MAGIC:
        raise Gpt2EduError(f"{path} is not a model file (it starts with {magic}, not {MAGIC}); give a model_*.bin")
    if version not in DTYPES:
        raise Gpt2EduError(
            f"{path} has version {version} of the model format, only 3 (fp32) and 5 (bf16) can be read; "
            "write it again with a present llm.c or with gpt2edu.weights"
        )
    try:
        config = ModelConfig(**dict(zip(HEADER_FIELDS, sizes, strict=True)))
    except UsageError as problem:
        raise Gpt2EduError(f"the header of {path} is damaged ({problem}); copy the file again") from problem
    dtype = DTYPES[version]
    expected = HEADER_WORDS * 4 + n_parameters(config) * dtype.itemsize
    if path.stat().st_size != expected:
        raise Gpt2EduError(
            f"{path} has {path.stat().st_size:,} bytes but its header promises {expected:,}; "
            "copy it again or use an earlier checkpoint"
        )
    values = torch.from_numpy(np.fromfile(path, dtype=np.uint8, offset=HEADER_WORDS * 4))
    return config, values.view(dtype).float()


def load_model(spec: str | Path, seed: int = 42) -> tuple[ModelConfig, Tensor]:
    """Return a model's shape and flat fp32 parameters on the CPU.

    Args:
        spec: a `.bin` file; a run folder, of which the newest checkpoint that verifies counts; a folder or hub name
            of Hugging Face; or a descriptor such as `d12`, whose weights are drawn with `seed`.
        seed: of a descriptor's weights.

    Raises:
        Gpt2EduError: what `spec` names cannot be read.
        UsageError: `spec` names nothing.
    """
    path, name = Path(spec).expanduser(), str(spec)
    if path.is_dir():
        return import_huggingface(path) if (path / "config.json").exists() else read_model_file(newest_model(path))
    if path.is_file() or path.suffix == ".bin":
        return read_model_file(path)
    if HUB_NAME.fullmatch(name) and not DESCRIPTOR.fullmatch(name):
        return import_huggingface(name)
    config = ModelConfig.from_descriptor(name)
    model = GPT2(config)
    model.init_weights(seed)
    return config, model.flat_parameters


def newest_model(folder: Path) -> Path:
    """Return the model file of a run folder's newest checkpoint that verifies.

    Raises:
        Gpt2EduError: the folder holds no finished checkpoint.
    """
    from gpt2edu.checkpoint import find_checkpoint  # which writes its model files through this module

    found = find_checkpoint(folder)
    if found is None:
        raise Gpt2EduError(
            f"{folder} holds no finished checkpoint (no DONE_ file that verifies) and no config.json; "
            "give a run's output folder or a model_*.bin"
        )
    return found.model_path


def find_tokenizer(spec: str | Path, config: ModelConfig, chosen: str | None = None) -> Tokenizer:
    """Return the tokenizer of a model: the chosen one, the one saved beside the weights, or GPT-2's.

    Raises:
        UsageError: its vocabulary is not the model's.
    """
    path = Path(spec).expanduser()
    beside = (path if path.is_dir() else path.parent) / "tokenizer.json"
    ours = beside.exists() and not (beside.parent / "config.json").exists()  # Hugging Face's file has the same name
    tokenizer = load_tokenizer(chosen or (beside if ours else "gpt2"))
    if tokenizer.vocab_size != config.vocab_size:
        raise UsageError(
            f"{spec} has a vocabulary of {config.vocab_size:,} tokens, tokenizer {tokenizer.name} has "
            f"{tokenizer.vocab_size:,}; give the tokenizer.json of its training data with --tokenizer"
        )
    return tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Convert weights: `python -m gpt2edu.weights SOURCE TARGET`."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2edu.weights",
        description="Convert GPT-2 weights between llm.c's model files and Hugging Face folders.",
        epilog="examples:\n"
        "  python -m gpt2edu.weights log124M gpt2_mine\n"
        "  python -m gpt2edu.weights openai-community/gpt2 gpt2_124M_bf16.bin --dtype bf16\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", help=".bin file, run folder, Hugging Face folder or hub name, or descriptor (d12)")
    parser.add_argument("target", type=Path, help="a name in .bin for llm.c's format, else a folder for Hugging Face's")
    parser.add_argument("--dtype", choices=sorted(VERSIONS), default="fp32", help="of a .bin target (default fp32)")
    parser.add_argument("--tokenizer", help='"gpt2" or a tokenizer.json (default: the one beside the source)')
    arguments = parser.parse_args(argv)
    config, flat = load_model(arguments.source)
    if arguments.target.suffix == ".bin":
        arguments.target.parent.mkdir(parents=True, exist_ok=True)
        write_model_file(arguments.target, config, flat, arguments.dtype)
    else:
        try:
            tokenizer = find_tokenizer(arguments.source, config, arguments.tokenizer)
        except UsageError as problem:
            print(f"without a vocabulary: {problem}")
            tokenizer = None
        export_huggingface(config, flat, arguments.target, tokenizer)
    print(f"wrote {arguments.target}: {config}")


if __name__ == "__main__":
    run_main(main)
