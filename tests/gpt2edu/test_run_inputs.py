"""Batch sizes, data order, tokenizer and HellaSwag file of a run."""

import re

import numpy as np
import pytest

from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.hellaswag import Example, write_hellaswag
from gpt2edu.run_inputs import check_data, decide_batch, divisors, find_hellaswag, find_tokenizer, out_of_memory
from gpt2edu.shards import write_shard

GPT2_124M = ModelConfig.from_descriptor("d12")
TINY = ModelConfig.from_descriptor("d2,h2,c64,t64,v512")


def decided(world_size=1, saved=None, **settings):
    settings = TrainConfig(**settings)
    decide_batch(settings, world_size, saved or {})
    return settings.micro_batch, settings.total_batch, settings.order_ranks, settings.order_batch


def test_defaults_are_llmcs():
    assert decided() == (4, 4 * 1024, 1, None)
    assert decided(world_size=8, micro_batch=16, seq_len=64) == (16, 8 * 16 * 64, 1, None)


@pytest.mark.parametrize("world_size", [1, 4, 8])
def test_the_124m_recipe_follows_the_order_of_eight_gpus_on_any_number_of_them(world_size):
    assert decided(world_size, micro_batch=64, total_batch=524_288) == (64, 524_288, 8, 64)
    assert decided(world_size, total_batch=524_288) == (None, 524_288, 8, 64)
    assert decided(world_size, total_batch=524_288, order_ranks=2) == (None, 524_288, 2, None)


def test_a_resumed_run_keeps_what_is_not_said_again():
    saved = {"total_batch": 2048, "order_ranks": 2, "order_batch": 8}
    assert decided(seq_len=64, saved=saved) == (None, 2048, 2, 8)
    assert decided(seq_len=64, saved=saved, micro_batch=4) == (4, 2048, 2, 8)
    assert decided(seq_len=64, saved=saved, total_batch=4096, order_ranks=1) == (None, 4096, 1, None)


def test_a_total_batch_that_does_not_divide_names_everything_and_what_works():
    with pytest.raises(UsageError, match="-d 1000 .*-b 4 x -t 64 x 2 ranks = 512.*-d 512 or 1024") as problem:
        decided(world_size=2, micro_batch=4, seq_len=64, total_batch=1000)
    assert "\n" not in str(problem.value)
    with pytest.raises(UsageError, match="-d 512$"):
        decided(world_size=2, micro_batch=4, seq_len=64, total_batch=100)


@pytest.mark.parametrize("n", [1, 2, 12, 36, 97, 512])
def test_divisors(n):
    assert divisors(n) == [d for d in range(1, n + 1) if n % d == 0]


def test_missing_data_names_the_flag_and_the_command_that_makes_it(tmp_path):
    write_shard(tmp_path / "t_train.bin", np.arange(100))
    with pytest.raises(Gpt2EduError, match=r"-i .*no_such.*python -m gpt2edu\.data"):
        check_data(TrainConfig(train_pattern=str(tmp_path / "no_such_*.bin")), SingleProcess())
    with pytest.raises(Gpt2EduError, match=r"-j .*no_such.*python -m gpt2edu\.data"):
        settings = TrainConfig(train_pattern=str(tmp_path / "t_*.bin"), val_pattern=str(tmp_path / "no_such.bin"))
        check_data(settings, SingleProcess())


def test_the_tokenizer_must_have_the_models_vocabulary():
    assert find_tokenizer(TrainConfig(), GPT2_124M, None)[0].name == "gpt2"
    tokenizer, note = find_tokenizer(TrainConfig(), TINY, None)
    assert tokenizer is None
    assert "--tokenizer" in note
    with pytest.raises(UsageError, match="--tokenizer gpt2 has 50257 tokens but the model 512"):
        find_tokenizer(TrainConfig(tokenizer="gpt2"), TINY, None)


def test_hellaswag_is_off_without_its_file_unless_it_was_named(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2EDU_DATA", str(tmp_path))
    assert find_hellaswag(TrainConfig(hellaswag=0), GPT2_124M) == (None, "")
    path, note = find_hellaswag(TrainConfig(hellaswag=1), GPT2_124M)
    assert path is None
    assert "python -m gpt2edu.data hellaswag" in note
    with pytest.raises(UsageError, match="--hellaswag .*no.bin"):
        find_hellaswag(TrainConfig(hellaswag=1, hellaswag_path=str(tmp_path / "no.bin")), GPT2_124M)


def test_a_hellaswag_file_that_cannot_be_used_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2EDU_DATA", str(tmp_path))
    path = tmp_path / "hellaswag" / "hellaswag_val.bin"
    path.parent.mkdir()
    write_hellaswag(path, [Example([1] * 20, [[2] * n for n in (3, 4, 5, 6)], 0)])
    assert find_hellaswag(TrainConfig(hellaswag=1, micro_batch=4, seq_len=26), GPT2_124M) == (path, "")
    assert find_hellaswag(TrainConfig(hellaswag=1, micro_batch=4), TINY)[0] is None
    with pytest.raises(UsageError, match="-b 4 or more, not 2"):
        find_hellaswag(TrainConfig(hellaswag=1, micro_batch=2), GPT2_124M)
    with pytest.raises(UsageError, match="26 tokens, more than -t 25"):
        find_hellaswag(TrainConfig(hellaswag=1, micro_batch=4, seq_len=25), GPT2_124M)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(Gpt2EduError, match="hellaswag_val.bin"):
        find_hellaswag(TrainConfig(hellaswag=1, micro_batch=4), GPT2_124M)


class FixedMemory:
    """Fits `fits` sequences, of which a careful estimate sees only half."""

    def __init__(self, fits):
        self.limit = fits

    def largest_micro_batch(self, candidates):
        return max((rows for rows in candidates if rows <= self.limit // 2), default=0)

    def fits(self, n_rows):
        return n_rows <= self.limit


@pytest.mark.parametrize(("fits", "named"), [(20, "-b 16"), (40, "-b 32"), (1, "-b 1"), (0, "-r 2, a shorter")])
def test_out_of_memory_names_the_largest_micro_batch_that_fits(fits, named):
    message = str(out_of_memory(TrainConfig(micro_batch=64), FixedMemory(fits), 512))
    assert message.startswith("-b 64: ")
    assert re.search(rf"{named}\b", message)


def test_out_of_memory_with_one_sequence_names_other_ways():
    assert "-r 2, a shorter -t or a smaller model" in str(out_of_memory(TrainConfig(micro_batch=1), FixedMemory(0), 8))
