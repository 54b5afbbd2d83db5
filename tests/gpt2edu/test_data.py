import json
import subprocess
import sys

import numpy as np
import pytest

from gpt2edu import data
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.hellaswag import read_hellaswag
from gpt2edu.loader import TrainLoader, ValLoader
from gpt2edu.manifest import verify
from gpt2edu.shards import read_shard
from gpt2edu.tokenizer import load_tokenizer


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2EDU_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_kjv_from_text_to_batches(data_folder, capsys):
    assert data.main(["kjv", "--tokenizer", "train:300"]) == 0
    folder = data_folder / "kjv-train300"
    assert f"{folder}/kjv_train_*.bin" in capsys.readouterr().out
    manifest = verify(folder)
    tokenizer = load_tokenizer(folder / manifest.tokenizer)
    assert tokenizer.vocab_size == manifest.vocab_size == 300
    val = read_shard(folder / "kjv_val_000000.bin")
    text = tokenizer.decode_bytes(token for token in val.tolist() if token != tokenizer.eot)
    assert text.endswith(b"be with you all. Amen.\n") and abs(len(text) / 4_133_000 - 0.05) < 1e-3
    options = {"vocab_size": 300}
    inputs, targets = next(TrainLoader(manifest.pattern(folder, "train"), 64, 8, **options).step_batches(0, 8))
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    assert ValLoader(manifest.pattern(folder, "val"), 64, **options).n_tokens == (len(val) - 1) // 64 * 64


def test_the_vocabulary_never_saw_the_validation_text(tmp_path):
    # "qj" is the most frequent pair, but only in the part that is held out
    (tmp_path / "a.txt").write_text("hello there\n" * 60 + "qjqjqjqjqjqjqjqj\n" * 40)
    data.main(
        [
            "text",
            str(tmp_path / "a.txt"),
            "--tokenizer",
            "train:262",
            "--val-fraction",
            "0.5",
            "--out",
            str(tmp_path / "o"),
        ]
    )
    assert not any(b"qj" in token for token in load_tokenizer(tmp_path / "o" / "tokenizer.json").vocab)


def test_tinyshakespeare_as_llmc(tmp_path, data_folder):
    sections = [f"SPEAKER {i}:\nSo many words as that, and more." for i in range(4000)]
    (tmp_path / "input.txt").write_text("\n\n".join(sections))
    data.main(["tinyshakespeare", "--source", str(tmp_path / "input.txt")])
    gpt2, expected = load_tokenizer(), []
    for i, section in enumerate(sections):
        expected += [50256, *gpt2.encode(section + ("\n\n" if i < len(sections) - 1 else ""))]
    folder = data_folder / "tinyshakespeare"
    assert read_shard(folder / "tiny_shakespeare_val_000000.bin").tolist() == expected[:32768]
    assert read_shard(folder / "tiny_shakespeare_train_000001.bin").tolist() == expected[32768:]


def test_text_command(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("some words here\n" * 100)
    out = tmp_path / "out"
    data.main(["text", str(tmp_path / "a.txt"), "--name", "mine", "--val-tokens", "50", "--out", str(out)])
    assert len(read_shard(out / "mine_val_000000.bin")) == 50
    assert "val: 50 tokens in 1 shards" in capsys.readouterr().out


def question(**changes):
    item = {"ind": 24, "ctx": "A man is\u2028on a roof. he", "label": 3, "endings": ["is", "rips", "holds", "pulls up"]}
    return json.dumps(item | changes, ensure_ascii=False)


def test_hellaswag(tmp_path, data_folder):
    (tmp_path / "h.jsonl").write_text(question() + "\n" + question(label="0") + "\n", encoding="utf-8")
    data.main(["hellaswag", "--source", str(tmp_path / "h.jsonl")])
    examples = read_hellaswag(data_folder / "hellaswag" / "hellaswag_val.bin")
    gpt2 = load_tokenizer()
    assert [example.label for example in examples] == [3, 0]
    assert list(examples[0].context) == gpt2.encode("A man is\u2028on a roof. he")
    assert [list(ending) for ending in examples[0].endings] == [
        gpt2.encode(s) for s in (" is", " rips", " holds", " pulls up")
    ]


@pytest.mark.parametrize(
    "line", ["", "{", "[]", question(label=4), question(endings=["a"]), question(ctx=""), question(ctx=None)]
)
def test_hellaswag_with_a_bad_line(tmp_path, data_folder, line):
    (tmp_path / "h.jsonl").write_text(question() + "\n" + line + "\n" + question(), encoding="utf-8")
    with pytest.raises(Gpt2EduError, match="h.jsonl: line 2 is not a HellaSwag question"):
        data.main(["hellaswag", "--source", str(tmp_path / "h.jsonl")])
    assert not (data_folder / "hellaswag" / "hellaswag_val.bin").exists()


@pytest.mark.parametrize(
    "argv, words",
    [
        (["fineweb", "--edu", "--ready-made"], "not of edu_fineweb10B; leave --ready-made out"),
        (["fineweb", "--ready-made", "--shard-tokens", "5"], "leave out --tokenizer and --shard-tokens"),
        (["fineweb", "--shards", "0"], "--shards 0"),
        (["fineweb", "--ready-made", "--shards", "104"], "has 103 training shards"),
        (["kjv", "--tokenizer", "train:many"], "as in train:1024"),
        (["kjv", "--tokenizer", "nowhere.json"], "nowhere.json"),
        (["text", "no/such/file.txt"], "no such file or folder"),
        (["tinyshakespeare", "--source", "none.txt"], "--source none.txt: no such file"),
    ],
)
def test_bad_command_lines(argv, words):
    with pytest.raises(UsageError) as problem:
        data.main(argv)
    assert words in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize("command", [["kjv"], ["hellaswag"]])
def test_out_that_is_no_folder(tmp_path, command):
    (tmp_path / "file").touch()
    with pytest.raises(
        Gpt2EduError, match=r"the folder .*file/out cannot be made \(Not a directory\); choose another --out"
    ):
        data.main([*command, "--out", str(tmp_path / "file" / "out")])


def test_command_line_ends_with_one_line_and_a_code(tmp_path):
    def run(*argv):
        command = [sys.executable, "-m", "gpt2edu.data", *argv]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert "fineweb --version 10B --ready-made" in run("--help").stdout
    (tmp_path / "empty.txt").touch()
    done = run("text", "empty.txt")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert run("text", "none.txt").returncode == 2


def test_fineweb_is_tokenized_from_its_stream(tmp_path, monkeypatch, data_folder):
    monkeypatch.setattr(
        data, "FineWeb", lambda version, edu: data.ListCorpus([f"page {i} of {version} {edu}" for i in range(50)])
    )
    data.main(["fineweb", "--edu", "--version", "100B", "--shards", "2", "--shard-tokens", "60"])
    manifest = verify(data_folder / "edu_fineweb100B")
    assert list(manifest.files) == [
        f"edu_fineweb_{name}.bin" for name in ("val_000000", "train_000001", "train_000002")
    ]
    assert read_shard(data_folder / "edu_fineweb100B" / "edu_fineweb_val_000000.bin")[0] == 50256
