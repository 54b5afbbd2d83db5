"""GPT-2 weights from and to Hugging Face's format: `config.json` and `model.safetensors`; never pickle.

Two things differ from our layout. Their `Conv1D` stores a matrix as (inputs, outputs), ours are (outputs,
inputs), so the four matrices of a block are transposed; and their vocabulary has no padding rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gpt2edu.bpe import END_OF_TEXT
from gpt2edu.config import VOCAB_PADDING, ModelConfig
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.files import atomic_write, data_dir
from gpt2edu.model import named_views
from gpt2edu.parameters import n_parameters, parameter_layout
from gpt2edu.tokenizer import Tokenizer, byte_characters

# the words of our parameter names that they spell otherwise
WORDS = {
    "blocks": "h",
    "ln1": "ln_1",
    "qkv": "attn.c_attn",
    "attproj": "attn.c_proj",
    "ln2": "ln_2",
    "fc": "mlp.c_fc",
    "fcproj": "mlp.c_proj",
    "lnf": "ln_f",
}
PREFIX = "transformer."  # some checkpoints carry it on every name, OpenAI's own do not
CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias")  # constants that old checkpoints store
# what a GPT-2 may set in config.json and we do not compute: key -> the one value we do
FIXED_SETTINGS = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}


def import_huggingface(source: str | Path) -> tuple[ModelConfig, Tensor]:
    """Read a GPT-2 from a folder, or from the hub by its name ("openai-community/gpt2").

    Returns:
        the shape, with the vocabulary padded to a multiple of 128, and the flat (n,) fp32 parameters on the CPU.

    Raises:
        Gpt2EduError: the folder or the hub lacks something, or the model is not a plain GPT-2.
    """
    folder = Path(source) if Path(source).is_dir() else download(str(source))
    config = _read_config(folder / "config.json")
    theirs = _read_tensors(folder)
    flat = torch.zeros(n_parameters(config))
    for name, target in _their_views(config, flat):
        if name not in theirs:
            raise Gpt2EduError(f"{folder} has no tensor {name}; it is not a whole GPT-2, download or export it again")
        value = theirs.pop(name)
        if value.shape != target.shape:
            raise Gpt2EduError(
                f"{folder}: tensor {name} and config.json disagree about the model's shape; download or export it again"
            )
        target.copy_(value)
    head = theirs.pop("lm_head.weight", None)
    wte = parameter_layout(config)[0].view(flat)[: config.vocab_size]
    if theirs or (head is not None and not torch.equal(head.float(), wte)):
        odd = next(iter(theirs), "lm_head.weight")
        raise Gpt2EduError(f"{folder}: tensor {odd} has no place in a plain GPT-2 with a tied head; use another model")
    return config, flat


def export_huggingface(
    config: ModelConfig, flat: Tensor, folder: str | Path, tokenizer: Tokenizer | None = None
) -> None:
    """Write a folder that `transformers` loads: weights, configurations, and the vocabulary when it is given."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    views = _their_views(config, flat.detach().float().cpu())
    tensors = {PREFIX + name: view.contiguous() for name, view in views}
    with atomic_write(folder / "model.safetensors") as file:
        file.write(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    special = {"bos_token_id": config.vocab_size - 1, "eos_token_id": config.vocab_size - 1}
    if tokenizer:
        _export_tokenizer(tokenizer, config, folder)
    _write_json(folder / "generation_config.json", special)
    _write_json(
        folder / "config.json",  # last: without it the folder is not yet a model
        {
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": config.vocab_size,
            "n_positions": config.max_seq_len,
            "n_embd": config.channels,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "dtype": "float32",
            **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
            **FIXED_SETTINGS,
            **special,
        },
    )


def download(name: str) -> Path:
    """Return the folder that holds a hub model's GPT-2 files, downloading what is missing.

    Raises:
        Gpt2EduError: no such model, or no network.
    """
    import huggingface_hub  # slow to import, and needed only here

    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json", "vocab.json", "merges.txt"]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=wanted, ignore_patterns="*/*", cache_dir=data_dir() / "huggingface"
            )
        )
    except (OSError, ValueError) as problem:  # the hub's errors: no network, no such model, not allowed, a bad name
        raise Gpt2EduError(
            f"{name} is no file or folder here, and it cannot be had from the Hugging Face hub "
            f"({type(problem).__name__}); check the name and the network, or give a folder with config.json "
            "and model.safetensors"
        ) from problem


def _their_views(config: ModelConfig, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield their name of each tensor and our memory seen in their shape: no padding rows, Conv1D transposed."""
    for path, view in named_views(config, flat):
        name = ".".join(WORDS.get(word, word) for word in path.split("."))
        if path == "wte.weight":
            yield name, view[: config.vocab_size]
        else:
            yield name, view.T if path.startswith("blocks.") and view.dim() == 2 else view


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        raise Gpt2EduError(f"{path} is missing; give a folder with config.json and model.safetensors") from problem
    except ValueError as problem:
        raise Gpt2EduError(f"{path} is not whole JSON; download or export it again") from problem
    return content


def _read_config(path: Path) -> ModelConfig:
    """Return the shape that a config.json describes, or say why it is not a GPT-2 that we compute."""
    content = _read_json(path)
    for key, value in FIXED_SETTINGS.items():
        found = content.get(key, value)
        if found != value:
            raise Gpt2EduError(f"{path}: {key} is {found!r}, only {value!r} is supported; use a plain GPT-2")
    try:
        vocab_size, channels = int(content["vocab_size"]), int(content["n_embd"])
        if content.get("n_inner") not in (None, 4 * channels):
            raise Gpt2EduError(f"{path}: n_inner is {content['n_inner']}, only 4 x n_embd is supported")
        return ModelConfig(
            max_seq_len=int(content["n_positions"]),
            vocab_size=vocab_size,
            padded_vocab_size=-(-vocab_size // VOCAB_PADDING) * VOCAB_PADDING,
            n_layers=int(content["n_layer"]),
            n_heads=int(content["n_head"]),
            channels=channels,
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise Gpt2EduError(f"{path} lacks a GPT-2's sizes ({problem}); download or export it again") from problem
    except UsageError as problem:
        raise Gpt2EduError(f"{path}: {problem}") from problem


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder under their bare names, causal masks left out."""
    index = folder / "model.safetensors.index.json"
    parts = sorted(set(_read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for part in parts:
        path = folder / part
        try:
            tensors |= safetensors.torch.load_file(path)
        except FileNotFoundError as problem:
            raise Gpt2EduError(
                f"{path} is missing; weights in pickle files (.bin) are not read, "
                "save the model again with save_pretrained, which writes safetensors"
            ) from problem
        except safetensors.SafetensorError as problem:
            raise Gpt2EduError(f"{path} is damaged or cut short ({problem}); download it again") from problem
    return {name.removeprefix(PREFIX): t for name, t in tensors.items() if not name.endswith(CAUSAL_MASKS)}


def _export_tokenizer(tokenizer: Tokenizer, config: ModelConfig, folder: Path) -> None:
    """Write the vocabulary as GPT-2's vocab.json and merges.txt, in which every byte is a printable character."""
    letters = byte_characters()

    def word(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    encoder = tokenizer.encoder
    words = {word(token): i for i, token in enumerate(encoder.vocab[:-1])} | {END_OF_TEXT: tokenizer.eot}
    pairs = (f"{word(encoder.vocab[left])} {word(encoder.vocab[right])}" for left, right in encoder.merges)
    _write_json(folder / "vocab.json", words)
    with atomic_write(folder / "merges.txt", "w") as file:
        file.write("\n".join(["#version: 0.2", *pairs]) + "\n")
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config.max_seq_len, **special},
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
