"""Prepare the data: `python -m gpt2edu.data fineweb | hellaswag | tinyshakespeare | kjv | text PATH...`.

Each command leaves a folder of token shards with a manifest (hellaswag: one .bin file) and may be run again: what is
finished is kept, what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from gpt2edu.corpora import Corpus, FineWeb, KingJamesBible, ListCorpus, TextFiles, shakespeare_sections
from gpt2edu.download import HUB, READY_MADE, download, download_shards
from gpt2edu.errors import Gpt2EduError, UsageError, run_main
from gpt2edu.files import data_dir, make_folder
from gpt2edu.hellaswag import N_ENDINGS, Example, write_hellaswag
from gpt2edu.manifest import Manifest
from gpt2edu.tokenize_corpus import SHARD_TOKENS, TOKENIZER_FILE, prepare_text, split_documents
from gpt2edu.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

HELLASWAG_URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
HELLASWAG_SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_VAL_TOKENS = 32_768
VAL_FRACTION = 0.05
TOKENIZER_TRAINING_CHARACTERS = 4_000_000

EXAMPLES = """examples:
  python -m gpt2edu.data kjv                                  4 MB of English that came with the install
  python -m gpt2edu.data fineweb --version 10B --ready-made   20 GB of finished shards, the quickest way
  python -m gpt2edu.data fineweb --version 10B --shards 10    1B tokens, tokenized here
  python -m gpt2edu.data text books/ --val-fraction 0.01      your own .txt, .jsonl and .parquet files
  python -m gpt2edu.data hellaswag                            the 10,042 questions of the evaluation

Run the same command again after an interruption: it goes on where it stopped.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--data-dir", help="folder for all data sets (default: GPT2EDU_DATA, or the user's cache)")
    common.add_argument("--out", help="folder for this one (default: a folder of its own in the data folder)")

    shards = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shards.add_argument(
        "--tokenizer",
        metavar="gpt2|FILE|train:N",
        help='"gpt2", a tokenizer.json, or "train:N" to learn N tokens from this text (kjv: train:1024, else gpt2)',
    )
    shards.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="tokens in a shard (default: 1e8)")
    shards.add_argument("--workers", type=int, help="tokenizing processes (default: one for each core)")

    parser = argparse.ArgumentParser(
        prog="python -m gpt2edu.data",
        description=__doc__.splitlines()[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, words: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=words, description=words, parents=parents, allow_abbrev=False)

    fineweb = command("fineweb", "FineWeb: web pages, the training data of the reproduction", common, shards)
    fineweb.add_argument("--version", choices=("10B", "100B"), default="10B", help="size in tokens (default: 10B)")
    fineweb.add_argument("--edu", action="store_true", help="FineWeb-Edu, the pages of educational value")
    fineweb.add_argument("--shards", type=int, metavar="N", help="stop after N training shards (default: all)")
    fineweb.add_argument("--ready-made", action="store_true", help="download shards that were tokenized before")
    fineweb.add_argument("--hub", default=HUB, help=f"where ready-made shards come from (default: {HUB})")

    hellaswag = command("hellaswag", "HellaSwag's validation questions, as one .bin file", common)
    hellaswag.add_argument("--source", metavar="FILE", help="hellaswag_val.jsonl, if you have it already")

    shakespeare = command("tinyshakespeare", "1.1 MB of Shakespeare, split as llm.c does", common, shards)
    shakespeare.add_argument("--source", metavar="FILE", help="the text file, if you have it already")

    command("kjv", "the King James Bible, 4.1 MB, no network; the last 5 %% held out", common, shards)

    text = command("text", "your own .txt, .jsonl and .parquet files and folders of them", common, shards)
    text.add_argument("paths", nargs="+", metavar="PATH")
    text.add_argument("--name", default="text", help="prefix of the shards (default: text)")
    held_out = text.add_mutually_exclusive_group()
    held_out.add_argument("--val-fraction", type=float, help=f"hold out the end of the text (default: {VAL_FRACTION})")
    held_out.add_argument("--val-tokens", type=int, help="hold out the first N tokens instead")
    return parser


def _choose_tokenizer(spec: str, corpus: Corpus, val_fraction: float | None, folder: Path) -> Tokenizer:
    """Return the tokenizer a `--tokenizer` value names; "train:N" learns from the training split only."""
    kind, _, size = spec.partition(":")
    if kind != "train":
        return load_tokenizer(spec)
    if not size.isdecimal():
        raise UsageError(f"--tokenizer {spec}: write train: and the number of tokens, as in train:1024")
    if (folder / TOKENIZER_FILE).exists():
        found = load_tokenizer(folder / TOKENIZER_FILE)
        if found.vocab_size == int(size):
            return found
    pieces, n_characters = [], 0
    for document in split_documents(corpus, val_fraction):
        if document.split == "val" or n_characters >= TOKENIZER_TRAINING_CHARACTERS:
            break
        pieces.append(document.text)
        n_characters += len(document.text)
    return train_tokenizer("".join(pieces), int(size))


def _prepare(
    args: argparse.Namespace,
    corpus: Corpus,
    name: str,
    folder_name: str | None = None,
    *,
    default_tokenizer: str = "gpt2",
    val_fraction: float | None = None,
    val_tokens: int | None = None,
    max_train_shards: int | None = None,
) -> Manifest:
    spec = args.tokenizer or default_tokenizer
    suffix = "" if spec == default_tokenizer else "-" + Path(spec).stem.replace(":", "")
    folder = Path(args.out) if args.out else data_dir(args.data_dir) / f"{folder_name or name}{suffix}"
    tokenizer = _choose_tokenizer(spec, corpus, val_fraction, folder)
    print(f"tokenizer: {tokenizer.source}")
    manifest = prepare_text(
        corpus,
        folder,
        tokenizer,
        name=name,
        shard_tokens=args.shard_tokens,
        val_fraction=val_fraction,
        val_tokens=val_tokens,
        max_train_shards=max_train_shards,
        workers=args.workers,
    )
    _report(manifest, folder)
    return manifest


def _report(manifest: Manifest, folder: Path) -> None:
    for split in ("train", "val"):
        shards = manifest.n_shards(split)
        print(f"{split}: {manifest.tokens(split):,} tokens in {shards} shards: {manifest.pattern(folder, split)}")


def _fineweb(args: argparse.Namespace) -> Manifest:
    folder_name = f"{'edu_' if args.edu else ''}fineweb{args.version}"
    if args.shards is not None and args.shards < 1:
        raise UsageError(f"--shards {args.shards}: at least 1 training shard is needed")
    if not args.ready_made:
        corpus = FineWeb(args.version, args.edu)
        name = "edu_fineweb" if args.edu else "fineweb"
        return _prepare(args, corpus, name, folder_name, max_train_shards=args.shards)
    if folder_name not in READY_MADE:
        raise UsageError(
            f"--ready-made: there are shards of --version 10B and of --edu --version 100B only, not of {folder_name}; "
            "leave --ready-made out"
        )
    if args.tokenizer not in (None, "gpt2") or args.shard_tokens != SHARD_TOKENS:
        raise UsageError("--ready-made shards hold 1e8 tokens of GPT-2; leave out --tokenizer and --shard-tokens")
    folder = Path(args.out) if args.out else data_dir(args.data_dir) / folder_name
    manifest = download_shards(READY_MADE[folder_name], folder, n_train=args.shards, hub=args.hub)
    _report(manifest, folder)
    return manifest


def _fetched(source: str | None, url: str, path: Path, sha256: str) -> Path:
    """Return the file the user has, or the one downloaded to `path` now or earlier."""
    if source:
        if not Path(source).is_file():
            raise UsageError(f"--source {source}: no such file")
        return Path(source)
    if not path.exists():
        make_folder(path.parent, "choose another --out or --data-dir")
        print(f"downloading {url}")
        download(url, path, sha256=sha256)
    return path


def _tinyshakespeare(args: argparse.Namespace) -> Manifest:
    name = "tiny_shakespeare"
    kept = data_dir(args.data_dir) / "downloads" / "tinyshakespeare.txt"
    path = _fetched(args.source, SHAKESPEARE_URL, kept, SHAKESPEARE_SHA256)
    corpus = ListCorpus(shakespeare_sections(path.read_text(encoding="utf-8")), "tinyshakespeare by sections")
    return _prepare(args, corpus, name, "tinyshakespeare", val_tokens=SHAKESPEARE_VAL_TOKENS)


def _kjv(args: argparse.Namespace) -> Manifest:
    return _prepare(args, KingJamesBible(), "kjv", default_tokenizer="train:1024", val_fraction=VAL_FRACTION)


def _text(args: argparse.Namespace) -> Manifest:
    fraction = None if args.val_tokens else args.val_fraction or VAL_FRACTION
    corpus = TextFiles(args.paths)
    return _prepare(args, corpus, args.name, val_fraction=fraction, val_tokens=args.val_tokens)


def read_hellaswag_jsonl(path: Path, tokenizer: Tokenizer) -> list[Example]:
    """Return HellaSwag's questions, tokenized; an ending goes on after the context with a space, as llm.c has it.

    Raises:
        Gpt2EduError: a line is not a question.
    """
    examples = []
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")  # splitlines() also cuts at U+2028
    for number, line in enumerate(lines, 1):
        try:
            item = json.loads(line)
            endings = [tokenizer.encode(" " + ending) for ending in item["endings"]]
            example = Example(tokenizer.encode(item["ctx"]), endings, int(item["label"]))
            if not example.context or len(endings) != N_ENDINGS or example.label not in range(N_ENDINGS):
                raise ValueError("a context, four endings and a label of 0 to 3 are wanted")
        except (ValueError, KeyError, TypeError) as problem:
            raise Gpt2EduError(f"{path}: line {number} is not a HellaSwag question; get a good copy") from problem
        examples.append(example)
    return examples


def _hellaswag(args: argparse.Namespace) -> None:
    folder = Path(args.out) if args.out else data_dir(args.data_dir) / "hellaswag"
    make_folder(folder, "choose another --out or --data-dir")
    source = _fetched(args.source, HELLASWAG_URL, folder / "hellaswag_val.jsonl", HELLASWAG_SHA256)
    examples = read_hellaswag_jsonl(source, load_tokenizer())
    path = folder / "hellaswag_val.bin"
    write_hellaswag(path, examples)
    print(f"hellaswag: {len(examples):,} questions: {path}")


COMMANDS = {
    "fineweb": _fineweb,
    "hellaswag": _hellaswag,
    "tinyshakespeare": _tinyshakespeare,
    "kjv": _kjv,
    "text": _text,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = build_parser().parse_args(argv)
    COMMANDS[args.command](args)
    return 0


if __name__ == "__main__":
    run_main(main)
