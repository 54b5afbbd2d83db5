"""What the chapters on the run show: the recipe's flags, llm.c's points, and small runs that are real ones."""

import re

import pytest

from gpt2edu import show_run
from gpt2edu.checkpoint import find_checkpoint
from gpt2edu.presets import PRESETS
from gpt2edu.published import LLMC_124M_CURVE
from gpt2edu.tokenize_corpus import prepare_text
from gpt2edu.tokenizer import train_tokenizer

TEXT = "the cat sat on the mat and the dog sat on the cat. "
SHAPE = "-e d1,h1,c16,t16,v300 -b 2 -t 16 -d 32 -v 0 -s 0 -l 0.01 -n 5 --order-batch 1"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of shards of a small text, with its manifest."""
    folder = tmp_path_factory.mktemp("shards")
    tokenizer = train_tokenizer("".join(f"{TEXT}{n} {7 * n} " for n in range(60)), 300)
    return folder, prepare_text([TEXT * 40, TEXT * 10], folder, tokenizer, name="cat", val_fraction=0.2)


def flags_of(shards, rest):
    folder, manifest = shards
    return f"{show_run.data_flags(manifest, folder)} {SHAPE} {rest}"


def test_every_flag_of_a_preset_is_explained():
    table = show_run.show_flags(PRESETS["gpt2-124m"])
    words = [word for flag, value, _ in table.rows for word in (flag.strip("`"), value)]
    assert " ".join(words) == PRESETS["gpt2-124m"].flags
    assert all(meaning for _, _, meaning in table.rows)


def test_the_first_line_has_llmcs_numbers():
    line = show_run.first_step_line()
    assert "step    1/18865" in line and "lr 8.57e-07" in line and "56.3% bf16 MFU" in line


def test_milestones_begin_with_nothing_done_and_end_with_all():
    rows = show_run.show_milestones().rows
    assert len(rows) == len(LLMC_124M_CURVE)
    assert (rows[0][-1], rows[-1][-1]) == ("0.0%", "100.0%")


def test_curves_are_labelled_published_and_measured():
    import matplotlib.pyplot as plt

    show_run.plot_curves()
    labels = [line.get_label() for line in plt.gca().get_lines()]
    plt.close("all")
    assert "published" in labels[0] and all("measured" in label for label in labels[1:])


def test_sizes_are_those_of_the_large_presets():
    assert [row[0] for row in show_run.show_sizes().rows] == [f"`{name}`" for name in PRESETS if "gpt2-" in name]


def test_the_small_plan_is_short_and_on_the_processor():
    plan = show_run.small_plan(30)
    assert plan.n_gpus == 0
    assert (plan.preset.settings.max_steps, plan.preset.settings.val_every) == (30, 10)


def test_quietly_returns_what_was_printed(capsys):
    assert show_run.quietly(print, "a\nb") == ["a", "b"]
    assert capsys.readouterr().out == ""


def test_a_short_training_can_be_stopped_and_goes_on(shards, tmp_path):
    said, result = show_run.short_training(flags_of(shards, f"-x 10 -o {tmp_path}"), stop_at=7)
    assert result.steps == 7 and "SIGTERM" in said[-1]
    assert find_checkpoint(tmp_path).step == 7
    said, result = show_run.short_training(flags_of(shards, f"-x 10 -o {tmp_path} -y 1"))
    assert result.steps == 10
    assert [line for line in said if re.match(r"step +8/10", line)]


def test_held_out_bits_are_what_the_trainer_measures(shards, tmp_path):
    _, result = show_run.short_training(flags_of(shards, f"-x 10 -o {tmp_path}"))
    folder, manifest = shards
    assert show_run.held_out_bits(tmp_path, manifest, folder) == pytest.approx(result.val_bits_per_byte, rel=1e-5)


def test_endings_of_a_question_begin_with_a_space(shards):
    from gpt2edu.tokenizer import load_tokenizer

    folder, manifest = shards
    tokenizer = load_tokenizer(folder / manifest.tokenizer)
    asked = show_run.question(tokenizer, "the cat", ["sat", "mat", "dog", "on"], 0)
    assert tokenizer.decode(asked.context) == "the cat"
    assert [tokenizer.decode(ending) for ending in asked.endings] == [" sat", " mat", " dog", " on"]


def test_prose_of_the_book_has_no_code():
    (text,) = show_run.book_prose(["03_model"])
    assert text.startswith("# 3. The model") and "show_source(" not in text
