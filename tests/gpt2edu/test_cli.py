"""The command line against llm.c's own reading of it."""

import dataclasses
import shlex

import pytest

from gpt2edu.cli import EPILOG, FLAGS, LONG_NAMES, build_parser, parse_settings
from gpt2edu.config import TrainConfig
from gpt2edu.errors import UsageError

# github.com/karpathy/llm.c/discussions/481
ORIGINAL_POST = """mpirun -np 8 ./train_gpt2cu \
    -i "dev/data/fineweb10B/fineweb_train_*.bin" \
    -j "dev/data/fineweb10B/fineweb_val_*.bin" \
    -o log124M \
    -e "d12" \
    -b 64 -t 1024 \
    -d 524288 \
    -r 1 \
    -z 1 \
    -c 0.1 \
    -l 0.0006 \
    -q 0.0 \
    -u 700 \
    -n 5000 \
    -v 250 -s 20000 \
    -h 1"""


def test_the_original_posts_command_line_parses_to_the_same_settings():
    argv = shlex.split(ORIGINAL_POST)
    settings = parse_settings(argv[argv.index("./train_gpt2cu") + 1 :])
    assert settings == TrainConfig(
        train_pattern="dev/data/fineweb10B/fineweb_train_*.bin",
        val_pattern="dev/data/fineweb10B/fineweb_val_*.bin",
        output_dir="log124M",
        model="d12",
        micro_batch=64,
        seq_len=1024,
        total_batch=524288,
        recompute=1,
        zero_stage=1,
        weight_decay=0.1,
        learning_rate=0.0006,
        final_lr_fraction=0.0,
        warmup_steps=700,
        checkpoint_every=5000,
        val_every=250,
        sample_every=20000,
        hellaswag=1,
    )


def test_the_examples_of_the_help_parse():
    examples = [line for line in EPILOG.replace("\\\n", "").splitlines() if "gpt2edu.train -i" in line]
    assert len(examples) == 2
    for example in examples:
        settings = parse_settings(shlex.split(example.partition("gpt2edu.train ")[2]))
        assert settings.total_batch % (settings.micro_batch * settings.seq_len) == 0


def test_without_flags_the_settings_are_the_defaults():
    assert parse_settings([]) == TrainConfig()


ONE_OF_EACH = [
    ("-i a", "train_pattern", "a"),
    ("-j a", "val_pattern", "a"),
    ("-e d12", "model", "d12"),
    ("-o a", "output_dir", "a"),
    ("-lg 5", "log_gpu_every", 5),
    ("-lg -1", "log_gpu_every", -1),
    ("-n 5", "checkpoint_every", 5),
    ("-nk 2", "checkpoints_keep", 2),
    ("-nm 4", "checkpoint_major_every", 4),
    ("-y 1 -o a", "resume", 1),
    ("-b 8", "micro_batch", 8),
    ("-t 64", "seq_len", 64),
    ("-d 512", "total_batch", 512),
    ("-x -1", "max_steps", -1),
    ("-x 0", "max_steps", 0),
    ("-k wsd", "scheduler", "wsd"),
    ("-l 1e-3", "learning_rate", 1e-3),
    ("-u 7", "warmup_steps", 7),
    ("-q 0.1", "final_lr_fraction", 0.1),
    ("-c 0.1", "weight_decay", 0.1),
    ("-sl 7.0", "skip_loss_z", 7.0),
    ("-sg 7", "skip_grad_z", 7.0),
    ("-v 0", "val_every", 0),
    ("-m -1", "val_max_batches", -1),
    ("-s 0", "sample_every", 0),
    ("-g 144", "sample_length", 144),
    ("-h 1", "hellaswag", 1),
    ("-a 1", "overfit_one_batch", 1),
    ("-f 0", "tf32", 0),
    ("-w 0", "master_weights", 0),
    ("-z 1", "zero_stage", 1),
    ("-r 2", "recompute", 2),
    ("-pn 8", "num_processes", 8),
    ("--overwrite", "overwrite", True),
    ("--deterministic", "deterministic", True),
    ("--hellaswag a", "hellaswag_path", "a"),
    ("--hellaswag-eval 1", "hellaswag", 1),
    ("--order-ranks 8", "order_ranks", 8),
    ("--dtype fp16", "dtype", "fp16"),
]


@pytest.mark.parametrize(("flags", "field", "value"), ONE_OF_EACH)
def test_each_flag_sets_its_field_and_no_other(flags, field, value):
    settings = parse_settings(flags.split())
    assert getattr(settings, field) == value
    others = {field} | ({"output_dir"} if "-o" in flags else set())
    assert dataclasses.replace(settings, **{name: getattr(TrainConfig(), name) for name in others}) == TrainConfig()


def test_every_field_has_a_long_flag_and_every_long_flag_works():
    named = {name for flags in FLAGS.values() for name, *_ in flags}
    assert named | {"overwrite", "deterministic", "num_processes"} == {f.name for f in dataclasses.fields(TrainConfig)}
    parser = build_parser()
    for name in named:
        assert LONG_NAMES.get(name, "--" + name.replace("_", "-")) in parser._option_string_actions


def test_flags_that_mpi_makes_superfluous_are_accepted():
    accepted = "-pi mpi -pn 8 -pr 0 -pg 8 -ge 2"
    assert dataclasses.replace(parse_settings(accepted.split()), num_processes=None) == TrainConfig()


@pytest.mark.parametrize("flags", ["-pi tcp", "-pi fs", "-pr 3", "-ps 10.0.0.1", "-pf /shared"])
def test_another_start_than_mpi_ends_with_the_remedy(flags):
    with pytest.raises(UsageError, match=f"{flags.split()[0]} .*mpirun -np"):
        parse_settings(flags.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-z 2", "-z 2 .*-z 1"),
        ("-z 3", "-z 3 .*-z 1"),
        ("-b 0", "-b.*0 is too small"),
        ("-b four", "-b.*'four' is not a whole number"),
        ("-d 5.5", "-d.*not a whole number"),
        ("-x -2", "-x"),
        ("-l nan", "-l"),
        ("-l -1", "-l"),
        ("-k sine", "-k.*cosine, linear"),
        ("-y 2", "-y"),
        ("-r 3", "-r"),
        ("-m 0", "-m 0"),
        ("-y 1", "-y 1 .*-o"),
        ("-y 1 -o a --overwrite", "--overwrite"),
        ("--backend jax", "--backend torch or --backend numba"),
        ("-h", "-h 1 .*--help"),
        ("-b", "-b"),
        ("--micro 4", "--micro"),
        ("--over", "--over"),
        ("-pm mpi", "-pm"),
        ("-nx 3", "-n"),
        ("stray", "stray"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_naming_the_flag(flags, message, capsys):
    with pytest.raises(UsageError, match=message) as problem:
        parse_settings(flags.split())
    assert "\n" not in str(problem.value)
    assert capsys.readouterr() == ("", "")


def test_help_is_help_and_tells_the_exceptions(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_settings(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for flag in ("-h ", "-m ", "-y 0", "-z 2|3", "-pi", "--hellaswag", "10,485,760", "examples", "--overwrite"):
        assert flag in text
