"""The command line of `gpt2edu.train`: llm.c's flags, with long names beside them."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from gpt2edu.config import TrainConfig
from gpt2edu.errors import UsageError
from gpt2edu.schedule import SCHEDULERS

DESCRIPTION = """\
Train GPT-2. Every flag of llm.c's train_gpt2cu is here with its meaning and default; the long names are ours."""

EPILOG = """\
where this differs from train_gpt2cu
  --help is help; -h switches HellaSwag, as there.
  -b      when left out with -d given, it is chosen from free memory; without both it is 4.
  -m      when left out, validation reads 10,485,760 tokens, or the whole split if that is smaller, whatever the
          number of GPUs; -m N reads N batches of -b sequences a GPU, and -m -1 the whole split.
  -y 0    refuses a folder that holds a finished checkpoint; -y 1 goes on from it, --overwrite begins again.
          -y 1 needs the same model, -t, -d and data order, but not the same number of GPUs.
  -v 0    validates only at the end.
  -z 2|3  is an error; 0 and 1 exist.
  -pi -pn -pr -pg -ps -pf  are accepted, but processes are always started by MPI.
  -ge -w  are accepted: both engines fuse the GELU where they can, and keep fp32 weights.

examples
  a laptop:    python -m gpt2edu.data kjv --out kjv
               python -m gpt2edu.train -i "kjv/kjv_train_*.bin" -j "kjv/kjv_val_*.bin" -e d4,h4,c128,t128,v1024 \\
                 -t 128 -b 16 -d 2048 -x 200 -l 0.004 -v 50 -s 100 -n 100 -o log_kjv
  GPT-2 124M:  mpirun -np 8 python -m gpt2edu.train -i "fineweb_train_*.bin" -j "fineweb_val_*.bin" -o log124M -e d12 \\
                 -b 64 -t 1024 -d 524288 -r 1 -z 1 -c 0.1 -l 0.0006 -q 0.0 -u 700 -n 5000 -v 250 -s 20000 -h 1
  go on with it after a crash: the same command with -y 1

exit codes: 0 finished, 1 something to mend, 2 wrong command line, 130 or 143 stopped by Ctrl-C or SIGTERM."""

HELLASWAG_HINT = "-h 1 or -h 0 switches the HellaSwag evaluation on or off, as in train_gpt2cu; for help type --help"
MPI_REMEDY = "start it with: mpirun -np <GPUs> python -m gpt2edu.train ..."


class CommandParser(argparse.ArgumentParser):
    """An argparse parser whose errors are one sentence, raised as `UsageError`."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing the usage."""
        is_hellaswag = message.startswith("argument -h/")
        raise UsageError(HELLASWAG_HINT if is_hellaswag else f"{message.removeprefix('argument ')} (see --help)")


def integer(minimum: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from `minimum` up."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text} is too small, the least is {minimum}")
        return value

    return read


def number(minimum: float, maximum: float = math.inf) -> Callable[[str], float]:
    """Return a reader of finite numbers between `minimum` and `maximum`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not (math.isfinite(value) and minimum <= value <= maximum):
            upper = f" to {maximum:g}" if maximum < math.inf else " up"
            raise argparse.ArgumentTypeError(f"{text} is out of range, which is {minimum:g}{upper}")
        return value

    return read


def one_of(*values: Any) -> Callable[[str], Any]:
    """Return a reader that takes only `values`."""

    def read(text: str) -> Any:
        for value in values:
            if text == str(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(map(str, values))}")

    return read


switch = one_of(0, 1)

# (field of TrainConfig, short flag, reader, help); the long flag is the field's name
FLAGS: dict[str, list[tuple[str, str | None, Callable[[str], Any], str]]] = {
    "files": [
        ("train_pattern", "-i", str, "training shards, a glob in quotes"),
        ("val_pattern", "-j", str, "validation shards, a glob in quotes"),
        ("model", "-e", str, "model to start from: a .bin file, a checkpoint folder, or a new one: d12, gpt3:c768"),
        ("output_dir", "-o", str, "folder for main.log and checkpoints; none are written without it"),
        ("log_gpu_every", "-lg", integer(-1), "print the GPU's load, clocks, power and heat every N steps; -1 never"),
        ("checkpoint_every", "-n", integer(0), "write a checkpoint every N steps and at the end; 0 never"),
        ("checkpoints_keep", "-nk", integer(0), "keep only the last N checkpoints; 0 keeps all"),
        ("checkpoint_major_every", "-nm", integer(0), "checkpoints of every N-th step are never removed; 0 none"),
        ("resume", "-y", switch, "1 goes on from the newest checkpoint in -o, 0 begins at step 0"),
        ("tokenizer", None, str, 'the vocabulary for samples and bits a byte: "gpt2" or a tokenizer.json'),
    ],
    "batch": [
        ("micro_batch", "-b", integer(1), "sequences a GPU works on at once"),
        ("seq_len", "-t", integer(1), "tokens of a sequence"),
        ("total_batch", "-d", integer(1), "tokens of an optimizer step over all GPUs, a multiple of -b x -t x GPUs"),
        (
            "order_ranks",
            None,
            integer(1),
            "processes of the virtual world whose data order is used (8 for -d 524288)",
        ),
        ("order_batch", None, integer(1), "micro-batch of that virtual world (64 for -d 524288)"),
    ],
    "optimization": [
        ("max_steps", "-x", integer(-1), "optimizer steps; -1 for one epoch"),
        ("scheduler", "-k", one_of(*SCHEDULERS), f"learning rate schedule: {', '.join(SCHEDULERS)}"),
        ("learning_rate", "-l", number(0), "peak learning rate"),
        ("warmup_steps", "-u", integer(0), "steps of linear warm-up"),
        ("final_lr_fraction", "-q", number(0), "last learning rate as a fraction of the peak"),
        ("weight_decay", "-c", number(0), "AdamW weight decay of the six matrices"),
        ("skip_loss_z", "-sl", number(0), "skip an update whose loss z-score is above this; 0 never"),
        ("skip_grad_z", "-sg", number(0), "skip an update whose gradient norm's z-score is above this; 0 never"),
        ("max_bad_steps", None, integer(1), "stop after this many losses in a row that are not finite"),
        ("seed", None, integer(0), "seed of new weights"),
    ],
    "evaluation": [
        ("val_every", "-v", integer(0), "validation loss (and HellaSwag) every N steps and at the end"),
        ("val_max_batches", "-m", integer(-1), "validation batches"),
        ("sample_every", "-s", integer(0), "generate text every N steps and at the end; 0 never"),
        ("sample_length", "-g", integer(1), "tokens of that text"),
        ("hellaswag", "-h", switch, "HellaSwag accuracy on or off"),
        ("hellaswag_path", None, str, "the HellaSwag file, made by: python -m gpt2edu.data hellaswag"),
        ("overfit_one_batch", "-a", switch, "train on one batch of the validation split, for debugging"),
    ],
    "numerics and memory": [
        (
            "backend",
            None,
            str,
            "what does the arithmetic: numba, the hand-written kernels (on an NVIDIA GPU of compute capability 8.0 or "
            "more when left out), or torch",
        ),
        ("arch", None, one_of("sm_80", "sm_90a"), "family of hand-written kernels; the GPU's own when left out"),
        ("device", None, str, "cuda, cpu or mps; the best there is when left out"),
        ("hang_timeout", None, number(0), "seconds that ranks wait for one that is stuck; 0 forever"),
        (
            "dtype",
            None,
            one_of("bf16", "fp16", "fp32"),
            "of the matrix products; by the GPU's kind when left out",
        ),
        (
            "grad_dtype",
            None,
            one_of("fp32", "bf16"),
            "of the gradients that ranks send each other; bf16 halves the bytes, for slow networks",
        ),
        ("compile", None, switch, "torch.compile on or off; on for cuda when left out"),
        ("tf32", "-f", switch, "let fp32 products run as TF32 on tensor cores"),
        ("master_weights", "-w", switch, "fp32 weights beside bf16 ones"),
        ("zero_stage", "-z", one_of(0, 1, 2, 3), "1 shards the optimizer's state over the GPUs"),
        (
            "recompute",
            "-r",
            one_of(0, 1, 2),
            "do again in backward to save memory: 0 nothing, 1 GELU, 2 also layernorm",
        ),
    ],
}
LONG_NAMES = {"hellaswag": "--hellaswag-eval", "hellaswag_path": "--hellaswag"}


def build_parser() -> CommandParser:
    """Return the parser; its results have the fields of `TrainConfig` and llm.c's flags that have no effect."""
    parser = CommandParser(
        prog="python -m gpt2edu.train",
        usage="python -m gpt2edu.train [flags]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--help", action="help", help="show this and exit")
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, short, read, text in flags:
            default = defaults[name]
            long = LONG_NAMES.get(name, "--" + name.replace("_", "-"))
            group.add_argument(
                *([short] if short else []),
                long,
                dest=name,
                type=read,
                default=default,
                metavar="X",
                help=text if default is None else f"{text} (default {default})".replace("%", "%%"),
            )
    parser.add_argument("--overwrite", action="store_true", help="remove the checkpoints in -o and begin again")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="with --backend torch on a GPU: equal results in every run, slower; numba's always are",
    )
    _add_llmc_only_flags(parser)
    return parser


def _add_llmc_only_flags(parser: CommandParser) -> None:
    """Accept the flags of train_gpt2cu whose work MPI, NCCL or torch does here."""
    group = parser.add_argument_group("accepted from train_gpt2cu command lines")
    options: list[tuple[str, str, Callable[[str], Any], Any, str]] = [
        ("-pi", "--nccl-init", one_of("mpi", "tcp", "fs"), "mpi", "only mpi"),
        ("-pn", "--num-processes", integer(1), None, "must be what mpirun started"),
        ("-pr", "--process-rank", integer(0), 0, "MPI gives it"),
        ("-pg", "--gpus-per-node", integer(1), None, "MPI knows it"),
        ("-ps", "--server-ip", str, "", "not used by MPI"),
        ("-pf", "--shared-path", str, "", "not used by MPI"),
        ("-ge", "--gelu-fusion", one_of(-1, 0, 1, 2), -1, "no effect"),
    ]
    for short, long, read, default, text in options:
        group.add_argument(short, long, type=read, default=default, metavar="X", help=text)


def parse_settings(argv: Sequence[str] | None = None) -> TrainConfig:
    """Return the settings of a command line (`sys.argv` when None).

    Raises:
        UsageError: a flag is unknown, its value is out of range, or flags contradict each other.
    """
    arguments = vars(build_parser().parse_args(argv))
    for name, flag, harmless in (
        ("nccl_init", "-pi", "mpi"),
        ("process_rank", "-pr", 0),
        ("server_ip", "-ps", ""),
        ("shared_path", "-pf", ""),
    ):
        if arguments[name] != harmless:
            raise UsageError(f"{flag} {arguments[name]} asks for a start without MPI, which is not there; {MPI_REMEDY}")
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    settings = TrainConfig(**{name: value for name, value in arguments.items() if name in fields})
    check_settings(settings)
    return settings


def check_settings(settings: TrainConfig) -> None:
    """Refuse settings that cannot be met on any machine.

    Raises:
        UsageError: names the flag.
    """
    if settings.zero_stage > 1:
        raise UsageError(f"-z {settings.zero_stage} does not exist here; use -z 1, which shards the optimizer's state")
    if settings.backend not in (None, "torch", "numba"):
        raise UsageError(f"--backend {settings.backend} does not exist; choose --backend torch or --backend numba")
    if settings.val_max_batches == 0:
        raise UsageError("-m 0 leaves nothing to validate on; give at least 1, or -1 for the whole split")
    if settings.output_dir is None and settings.resume:
        raise UsageError("-y 1 needs the folder of the run to go on with; add -o")
    if settings.resume and settings.overwrite:
        raise UsageError("-y 1 goes on with a run and --overwrite removes it; give one of the two")
