import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from gpt2edu import report
from gpt2edu.errors import UsageError
from gpt2edu.logger import MainLog
from gpt2edu.presets import PRESETS
from gpt2edu.published import LLMC_124M_CURVE
from gpt2edu.report_plots import smoothed
from gpt2edu.stages import RunFolder

BASELINES = [
    {"name": "unigram", "bits_per_byte": 3.31, "nats_per_token": 5.2},
    {"name": "gzip", "bits_per_byte": 2.56, "nats_per_token": None},
]


def make_run(tmp_path, preset, *, n_steps, every, finished):
    """Write a run folder as gpt2edu.reproduce leaves it, with made-up losses."""
    run = RunFolder(tmp_path / preset)
    log = MainLog(run.train_folder)
    for step in range(0, n_steps + 1, every):
        loss = 3.27 + 7.7 * math.exp(-step / 700)
        log.log_validation(step, loss)
        log.log_train(min(step, n_steps - 1), loss + 0.1 * math.sin(step), 1e-3, 1.0)
        if PRESETS[preset].settings.hellaswag and step:
            log.log_hellaswag(step, 0.25 + 0.05 * step / n_steps)
    with run.working_on("plan", {"preset": preset}) as stamp:
        stamp.result = {
            "plan": "the <plan>",
            "command": "python -m gpt2edu.train -e d12",
            "dollars_per_hour": 14.0,
            "n_gpus": 8,
            "gpu": "NVIDIA A100-SXM4-80GB",
            "machine": {"computer": "8 x NVIDIA A100-SXM4-80GB"},
        }
    with run.working_on("train", {}) as stamp:
        stamp.result = {"model": "/runs/model_00018865.bin", "sha256": "ab" * 32} if finished else {}
        stamp.done = finished
        stamp.attempts[-1]["first_step"] = 0
    stamp.attempts[-1]["seconds"] = 5400.0
    run._write("train", stamp)
    model = {"model": "ab" * 32 if finished else "of an earlier training"}
    with run.working_on("evaluate", model) as stamp:
        stamp.result = {"nats_per_token": 3.2812, "bits_per_byte": 0.9876, "val_tokens": 10_485_760}
        stamp.result["baselines"] = BASELINES
    with run.working_on("sample", {**model, "temperature": 0.8, "top_k": 50, "seed": 42}) as stamp:
        stamp.result = {"texts": [{"prompt": "Once <upon>", "text": " a time & more"}]}
    return run


def parts_of(page):
    """Return the page's plots, parsed as XML, and its text without tags."""
    plots = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, flags=re.S)]
    return plots, re.sub(r"<(style|svg).*?</\1>|<[^>]+>", " ", page, flags=re.S)


def test_report_of_the_124m_run(tmp_path):
    run = make_run(tmp_path, "gpt2-124m", n_steps=18_865, every=245, finished=True)
    path = report.write_report(run, PRESETS["gpt2-124m"])
    page = path.read_text()
    plots, text = parts_of(page)
    assert len(plots) == 2
    labels = " ".join("".join(element.itertext()) for element in plots[0].iter() if element.tag.endswith("}text"))
    assert "llm.c, validation" in labels and "OpenAI's GPT-2: 3.4250" in labels and "billions" in labels
    for words in (
        "3.2812",
        "0.9876 bits a byte",
        "9.89B",
        "$21.00",  # 1.5 hours at $14
        "1,831,610",  # tokens a second: 18,865 steps of 524,288 in 5,400 s
        "MFU 59.0% of 312",
        "19,560 steps and this one after 18,865",
        "3.2722",
        "Once &lt;upon&gt;",
        "a time &amp; more",
        "the &lt;plan&gt;",
        "ab" * 32,
        "HellaSwag",
    ):
        assert words in text, words


def test_one_file_without_scripts_or_links(tmp_path):
    run = make_run(tmp_path, "gpt2-124m", n_steps=1000, every=250, finished=True)
    page = report.write_report(run, PRESETS["gpt2-124m"]).read_text()
    assert "<script" not in page and "@import" not in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "prefers-color-scheme: dark" in page and "currentColor" in page
    assert "#010203" not in page


def test_small_runs_are_drawn_beside_the_baselines(tmp_path):
    run = make_run(tmp_path, "laptop", n_steps=200, every=20, finished=True)
    plots, text = parts_of(report.write_report(run, PRESETS["laptop"]).read_text())
    labels = " ".join("".join(element.itertext()) for element in plots[0].iter() if element.tag.endswith("}text"))
    assert len(plots) == 1 and "unigram 3.31" in labels and "gzip 2.56" in labels
    assert "llm.c" not in labels and "HellaSwag" not in text
    assert text.index("unigram") < text.index("gzip", text.index("unigram")) < text.index("this model")


def test_a_run_under_way(tmp_path, capsys):
    run = make_run(tmp_path, "gpt2-350m", n_steps=5000, every=250, finished=False)
    assert report.main([str(run.path)]) == 0
    assert str(run.path / "report.html") in capsys.readouterr().out
    page = (run.path / "report.html").read_text()
    _, text = parts_of(page)
    assert "validation loss so far" in text and "5,000 of 60,000 steps" in text and "cost so far" in text
    assert "llm.c has published no curve of this size" in text
    assert "Beside simple predictors" not in text and "Samples" not in text


def test_no_run_folder(tmp_path):
    with pytest.raises(UsageError, match="is no run folder"):
        report.main([str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_smoothing():
    values = np.random.default_rng(0).normal(size=20)
    expected = [values[max(0, i - 3) : i + 4].mean() for i in range(20)]
    np.testing.assert_allclose(smoothed(values, 3), expected)


def test_published_curve_falls():
    losses = list(LLMC_124M_CURVE.values())
    assert losses == sorted(losses, reverse=True) and losses[-1] == 3.2722


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.42, "0.4 s"), (89, "89 s"), (270, "4 min 30 s"), (5400, "1 h 30 min"), (90_000, "25 h 00 min")],
)
def test_duration(seconds, words):
    assert report.duration(seconds) == words
