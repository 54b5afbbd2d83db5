"""Evaluation against plain computations: one sequence, one ending at a time."""

import math
import struct

import numpy as np
import pytest
import torch
from torch.nn import functional

from gpt2edu import evaluate
from gpt2edu.config import ModelConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.evaluate import EvaluationModel, hellaswag_accuracy, validation_loss
from gpt2edu.hellaswag import Example, read_hellaswag, write_hellaswag
from gpt2edu.loader import ValLoader
from gpt2edu.model import GPT2
from gpt2edu.parameters import n_parameters
from gpt2edu.shards import write_shard
from gpt2edu.tokenizer import save_tokenizer, train_tokenizer
from gpt2edu.weights import write_model_file

CONFIG = ModelConfig.from_descriptor("d1,h2,c16,t80,v100")


class OneOfMany(SingleProcess):
    """A rank whose `gather` sees only itself."""

    def __init__(self, rank: int, world_size: int):
        self.rank, self.world_size = rank, world_size


@pytest.fixture(scope="module")
def flat():
    """Return weights large enough that losses differ from token to token."""
    return torch.randn(n_parameters(CONFIG), generator=torch.Generator().manual_seed(1)) * 0.5


@pytest.fixture(scope="module")
def engine(flat):
    """Return the model under evaluation."""
    return EvaluationModel(CONFIG, flat, torch.device("cpu"), "fp32")


@torch.no_grad()
def plain_losses(flat, tokens) -> np.ndarray:
    """Return the loss of each token behind the first, for one row, through the logits."""
    model = GPT2(CONFIG)
    model.flat_parameters.copy_(flat)
    tokens = torch.tensor(np.array(tokens, dtype=np.int64))
    logits_TV = model(tokens[None, :-1])[0, :, : CONFIG.vocab_size].double()
    return functional.cross_entropy(logits_TV, tokens[1:], reduction="none").numpy()


@pytest.fixture(scope="module")
def examples(flat):
    """Return 13 random examples whose label is the answer of a plain computation."""
    random = np.random.default_rng(0)
    result = []
    for _ in range(13):
        context = random.integers(0, 100, random.integers(1, 30)).tolist()
        endings = [random.integers(0, 100, random.integers(1, 12)).tolist() for _ in range(4)]
        means = [plain_losses(flat, context + ending)[-len(ending) :].mean() for ending in endings]
        result.append(Example(context, endings, int(np.argmin(means))))
    return result


def test_the_answers_are_those_of_a_plain_computation(tmp_path, engine, examples):
    path = tmp_path / "hellaswag.bin"
    assert len({example.label for example in examples}) > 1
    wrong = [Example(e.context, e.endings, (e.label + 1) % 4) for e in examples[:5]]
    write_hellaswag(path, examples)
    assert hellaswag_accuracy(engine, path, 4, 80, SingleProcess()) == (13, 13)
    write_hellaswag(path, wrong + examples[5:])
    for micro_batch in (4, 7, 16, 64):
        assert hellaswag_accuracy(engine, path, micro_batch, 80, SingleProcess()) == (8, 13)
    for world_size in (2, 4, 8):
        parts = [hellaswag_accuracy(engine, path, 8, 80, OneOfMany(rank, world_size))[0] for rank in range(world_size)]
        assert sum(parts) == 8


def test_hellaswag_bytes_are_llmc(tmp_path):
    """Compare with bytes packed by hand after llm.c's write_evalfile."""
    path = tmp_path / "hellaswag.bin"
    examples = [Example([5, 6, 7], [[1], [2, 3], [4], [50256]], 2), Example([9], [[1], [1], [1], [1, 2]], 0)]
    write_hellaswag(path, examples)
    first = [65535, 38, 0, 2, 4, 3, 5, 6, 7, 1, 1, 2, 2, 3, 1, 4, 1, 50256]
    second = [65535, 32, 1, 0, 4, 1, 9, 1, 1, 1, 1, 1, 1, 2, 1, 2]
    first[1], second[1] = 2 * len(first), 2 * len(second)
    header = struct.pack("<4i", 20240522, 1, 2, 36).ljust(1024, b"\0")
    assert path.read_bytes() == header + struct.pack(f"<{len(first) + len(second)}H", *first, *second)
    assert read_hellaswag(path) == examples


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"text", "is no HellaSwag file"),
        (lambda data: data[:-1], "cut short at example 1 of 2"),
        (lambda data: data[:1040], "cut short at example 0 of 2"),
        (lambda data: data + b"\0\0", "damaged or cut short"),
        (lambda data: data[:1030] + b"\4" + data[1031:], "damaged or cut short at example 0"),
        (lambda data: data[:1026] + b"\4" + data[1027:], "damaged or cut short at example 0"),
    ],
)
def test_damaged_hellaswag_file(tmp_path, damage, message):
    path = tmp_path / "hellaswag.bin"
    write_hellaswag(path, [Example([5], [[1], [2], [3], [4]], 2)] * 2)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Gpt2EduError, match=f"hellaswag.bin.*{message}.*python -m gpt2edu.data hellaswag"):
        read_hellaswag(path)


def test_missing_hellaswag_file(tmp_path):
    with pytest.raises(Gpt2EduError, match="absent.bin cannot be read"):
        read_hellaswag(tmp_path / "absent.bin")


@pytest.mark.parametrize("example", [Example([1], [[1]] * 3, 0), Example([], [[1]] * 4, 0), Example([1], [[1]] * 4, 4)])
def test_impossible_example_is_not_written(tmp_path, example):
    with pytest.raises(ValueError, match="example 0"):
        write_hellaswag(tmp_path / "x.bin", [example])
    assert not list(tmp_path.iterdir())


def test_hellaswag_limits_name_the_flag(tmp_path, engine):
    path = tmp_path / "hellaswag.bin"
    write_hellaswag(path, [Example([1] * 40, [[1] * 41] * 4, 0)])
    with pytest.raises(UsageError, match="has 81 tokens, more than -t 80"):
        hellaswag_accuracy(engine, path, 4, 80, SingleProcess())
    with pytest.raises(UsageError, match="needs -b 4"):
        hellaswag_accuracy(engine, path, 3, 80, SingleProcess())
    write_hellaswag(path, [Example([100], [[1]] * 4, 0)])
    with pytest.raises(Gpt2EduError, match="holds token 100, the model knows only 100"):
        hellaswag_accuracy(engine, path, 4, 80, SingleProcess())


def test_example_as_long_as_the_context(tmp_path, engine):
    write_hellaswag(tmp_path / "x.bin", [Example([1] * 40, [[2] * 40] * 4, 0)])
    assert hellaswag_accuracy(engine, tmp_path / "x.bin", 4, 80, SingleProcess()) == (1, 1)  # equal: the first


@pytest.fixture
def val_pattern(tmp_path):
    """Return the pattern of two validation shards."""
    random = np.random.default_rng(3)
    for name, size in (("a", 85), ("b", 60)):
        write_shard(tmp_path / f"{name}.bin", random.integers(0, 100, size))
    return tmp_path / "?.bin"


def val_loader(pattern, **rank):
    return ValLoader(pattern, 8, n_tokens=100, vocab_size=100, **rank)


def test_validation_loss_is_plain(val_pattern, engine, flat):
    lengths = np.arange(100) % 7
    shards = [np.fromfile(path, "<u2", offset=1024) for path in sorted(val_pattern.parent.glob("?.bin"))]
    rows = [shards[0][8 * i : 8 * i + 9] for i in range(10)] + [shards[1][8 * i : 8 * i + 9] for i in range(2)]
    nats = np.concatenate([plain_losses(flat, row) for row in rows])
    n_bytes = sum(int(lengths[row[1:]].sum()) for row in rows)
    loss, bits = validation_loss(engine, val_loader(val_pattern), 5, SingleProcess(), lengths)
    assert loss == pytest.approx(nats.mean(), rel=1e-6)
    assert bits == pytest.approx(nats.sum() / math.log(2) / n_bytes, rel=1e-6)
    assert math.isnan(validation_loss(engine, val_loader(val_pattern), 5, SingleProcess(), None)[1])


def test_validation_loss_does_not_depend_on_ranks(val_pattern, engine):
    class Sums(OneOfMany):
        def gather(self, value):
            sums.append(value)
            return [value]

    lengths = np.arange(100) % 7
    alone = validation_loss(engine, val_loader(val_pattern), 5, SingleProcess(), lengths)
    sums = []
    for rank in range(8):
        loader = val_loader(val_pattern, rank=rank, world_size=8)
        validation_loss(engine, loader, 5, Sums(rank, 8), lengths)
    nats, n_tokens, n_bytes = (sum(part) for part in zip(*sums, strict=True))
    assert n_tokens == 96
    assert (nats / n_tokens, nats / math.log(2) / n_bytes) == pytest.approx(alone, rel=1e-7)


@pytest.fixture
def checkpoint(tmp_path):
    """Return a model file with a tokenizer of 270 tokens beside it."""
    config = ModelConfig.from_descriptor("d1,h2,c16,t80,v270")
    flat = torch.randn(n_parameters(config), generator=torch.Generator().manual_seed(1)) * 0.1
    write_model_file(tmp_path / "model.bin", config, flat)
    save_tokenizer(
        train_tokenizer("the cat sat on the mat and the dog ate the hat. " * 30, 270), tmp_path / "tokenizer.json"
    )
    return tmp_path / "model.bin"


def test_command(tmp_path, checkpoint, capsys):
    write_shard(tmp_path / "val.bin", np.random.default_rng(0).integers(0, 269, 900))
    write_hellaswag(tmp_path / "hellaswag.bin", [Example([1, 2], [[1], [2], [3, 4], [4]], 2)] * 3)
    arguments = ["--checkpoint", str(checkpoint), "--device", "cpu", "-b", "2"]
    evaluate.main([*arguments, "--val", str(tmp_path / "val.bin"), "--hellaswag", str(tmp_path / "hellaswag.bin")])
    printed = capsys.readouterr().out
    assert "nats a token" in printed and "bits a byte (880 tokens)" in printed
    assert "HellaSwag: 0/3 = 0.000000" in printed or "HellaSwag: 3/3 = 1.000000" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure"),
        (["--val", "x", "-b", "0"], "at least 1"),
        (["--val", "x", "-t", "81"], "longer than the model's context of 80"),
    ],
)
def test_command_refuses(checkpoint, arguments, message):
    with pytest.raises(UsageError, match=message):
        evaluate.main(["--checkpoint", str(checkpoint), "--device", "cpu", *arguments])
