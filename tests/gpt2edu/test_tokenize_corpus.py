"""Shards of documents: the bytes against a plain re-telling, and the same bytes after any kill."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpt2edu import files
from gpt2edu.corpora import ListCorpus, TextFiles
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.manifest import load_manifest, verify
from gpt2edu.shards import read_shard
from gpt2edu.tokenize_corpus import only_writer, prepare_text, split_documents
from gpt2edu.tokenizer import load_tokenizer, train_tokenizer

EOT = 50256
WORDS = "the of and to in a is that for it as was with be by on not he his but at are this have".split()


def make_documents(n, seed=0):
    rng = random.Random(seed)
    return ["\n".join(" ".join(rng.choices(WORDS, k=9)) for _ in range(rng.randrange(6))) for _ in range(n)]


def all_tokens(documents):
    gpt2 = load_tokenizer()
    return [token for text in documents for token in [EOT, *gpt2.encode(text)]]


def folder_bytes(folder):
    """Every file but the note of what was verified, which holds modification times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (".verified.json", ".lock")}


def read(folder, name):
    return read_shard(folder / name).tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_llmc_placing(tmp_path, workers):
    """Shard 0 is validation, every document begins with EOT, and documents go on in the next shard."""
    documents = make_documents(60)
    expected = all_tokens(documents)
    manifest = prepare_text(documents, tmp_path, load_tokenizer(), name="t", shard_tokens=500, workers=workers)
    pieces = [expected[start : start + 500] for start in range(0, len(expected), 500)]
    assert len(pieces) > 3 and 0 < len(pieces[-1]) < 500
    assert read(tmp_path, "t_val_000000.bin") == pieces[0]
    for number, piece in enumerate(pieces[1:], 1):
        assert read(tmp_path, f"t_train_{number:06d}.bin") == piece
    assert list(manifest.files) == ["t_val_000000.bin"] + [f"t_train_{n:06d}.bin" for n in range(1, len(pieces))]
    assert manifest.tokens_total == len(expected) and manifest.complete and manifest.resume is None
    assert verify(tmp_path).tokens("val") == 500


def test_val_tokens(tmp_path):
    documents = make_documents(60)
    prepare_text(documents, tmp_path, load_tokenizer(), name="t", shard_tokens=500, val_tokens=77)
    expected = all_tokens(documents)
    assert read(tmp_path, "t_val_000000.bin") == expected[:77]
    assert read(tmp_path, "t_train_000001.bin") == expected[77:577]


def test_val_fraction_is_the_end_of_the_text(tmp_path):
    documents = make_documents(60)
    prepare_text(documents, tmp_path, load_tokenizer(), name="t", shard_tokens=500, val_fraction=0.3)
    text = "".join(documents).encode()
    val = load_tokenizer().decode_bytes(t for t in read(tmp_path, "t_val_000000.bin") if t != EOT)
    more = sorted(tmp_path.glob("t_val_*.bin"))[1:]
    val += b"".join(load_tokenizer().decode_bytes(t for t in read_shard(path).tolist() if t != EOT) for path in more)
    assert text.endswith(val)
    assert 0.25 < len(val) / len(text) < 0.301
    train = b"".join(
        load_tokenizer().decode_bytes(t for t in read_shard(path).tolist() if t != EOT)
        for path in sorted(tmp_path.glob("t_train_*.bin"))
    )
    assert train + val == text


def check_split(documents, fraction, expected):
    corpus = ListCorpus(documents)
    parts = list(split_documents(corpus, fraction))
    assert [(part.split, part.text) for part in parts] == expected
    for i, part in enumerate(parts):  # from each position the rest follows
        rest = split_documents(corpus, fraction, json.loads(json.dumps(part.position)))
        assert [(other.split, other.text) for other in rest] == expected[i:]


def test_split_cuts_one_document_after_a_line():
    check_split(
        ["ab\n", "cd\nef\ngh\n", "ij\n"],
        0.5,
        [("train", "ab\n"), ("train", "cd\nef\n")] + [("val", "gh\n"), ("val", "ij\n")],
    )
    check_split(["one line"], 0.5, [("train", "one "), ("val", "line")])
    check_split(["한국"], 0.5, [("train", "한"), ("val", "국")])
    check_split(["한국"], 0.1, [("train", "한국")])
    check_split(["a", "", "b", ""], 0.5, [("train", "a"), ("val", ""), ("val", "b"), ("val", "")])
    check_split(["x\n", "", "y\n"], None, [(None, "x\n"), (None, ""), (None, "y\n")])


def mtimes(folder):
    return {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}


def test_again_does_nothing_and_more_goes_on(tmp_path):
    documents, gpt2 = make_documents(60), load_tokenizer()
    prepare_text(documents, tmp_path / "whole", gpt2, name="t", shard_tokens=300)
    options = {"name": "t", "shard_tokens": 300}
    few = prepare_text(documents, tmp_path / "few", gpt2, max_train_shards=2, **options)
    assert few.complete and few.n_shards("train") == 2 and verify(tmp_path / "few")
    before = mtimes(tmp_path / "few")
    prepare_text(documents, tmp_path / "few", gpt2, max_train_shards=2, **options)
    assert mtimes(tmp_path / "few") == before
    prepare_text(documents, tmp_path / "few", gpt2, **options)
    assert folder_bytes(tmp_path / "few") == folder_bytes(tmp_path / "whole")
    kept = {path: time for path, time in before.items() if path.suffix == ".bin"}
    assert len(kept) == 3 and kept.items() <= mtimes(tmp_path / "few").items()


def test_a_deleted_shard_is_made_again(tmp_path):
    documents, gpt2 = make_documents(60), load_tokenizer()
    prepare_text(documents, tmp_path, gpt2, name="t", shard_tokens=300)
    whole = folder_bytes(tmp_path)
    (tmp_path / "t_train_000002.bin").unlink()
    prepare_text(documents, tmp_path, gpt2, name="t", shard_tokens=300)
    assert folder_bytes(tmp_path) == whole


def test_our_own_vocabulary_lies_beside_the_shards(tmp_path):
    documents = make_documents(60)
    own = train_tokenizer("".join(documents), 300)
    manifest = prepare_text(documents, tmp_path, own, name="t", val_tokens=100)
    assert (manifest.tokenizer, manifest.vocab_size) == ("tokenizer.json", 300)
    found = load_tokenizer(tmp_path / manifest.tokenizer)
    assert read(tmp_path, "t_val_000000.bin")[0] == found.eot == 299
    with pytest.raises(UsageError, match=r"tokenizer.json is another vocabulary"):
        prepare_text(documents, tmp_path, train_tokenizer("".join(documents), 290), name="t", val_tokens=100)


def test_another_preparation_is_refused(tmp_path):
    documents, gpt2 = make_documents(60), load_tokenizer()
    prepare_text(documents, tmp_path, gpt2, name="t", val_tokens=100)
    before = folder_bytes(tmp_path)
    for change, words in [({"val_tokens": 99}, "another settings"), ({"name": "u"}, "another name")]:
        with pytest.raises(UsageError, match=words):
            prepare_text(documents, tmp_path, gpt2, **{"name": "t", "val_tokens": 100} | change)
    with pytest.raises(UsageError, match="another source"):
        prepare_text(documents[1:], tmp_path, gpt2, name="t", val_tokens=100)
    assert folder_bytes(tmp_path) == before


@pytest.mark.parametrize("documents", [[], ["", ""]])
def test_no_text(tmp_path, documents):
    with pytest.raises(Gpt2EduError, match="there is no text in it"):
        prepare_text(documents, tmp_path, load_tokenizer(), name="t")
    assert folder_bytes(tmp_path) == {}


@pytest.mark.parametrize(
    "held_out, words", [({"val_tokens": 1000}, "left for train"), ({"val_fraction": 0.01}, "left for val")]
)
def test_too_little_text(tmp_path, held_out, words):
    with pytest.raises(Gpt2EduError, match=words):
        prepare_text(["a few words\n"], tmp_path, load_tokenizer(), name="t", **held_out)
    assert folder_bytes(tmp_path) == {}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"val_fraction": 1.0}, "--val-fraction 1.0"),
        ({"shard_tokens": 0}, "--shard-tokens 0"),
        ({"val_fraction": 0.1, "max_train_shards": 1}, "use --val-tokens"),
    ],
)
def test_impossible_settings(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        prepare_text(["x"], tmp_path, load_tokenizer(), name="t", **options)


@pytest.mark.parametrize("held_out", [{"val_fraction": 0.3}, {"val_tokens": 70}])
def test_interrupted_at_every_file(tmp_path, monkeypatch, held_out):
    """However far it came, before or after a file got its name, the rest comes out the same."""
    documents, gpt2 = make_documents(40), load_tokenizer()
    options = {"name": "t", "shard_tokens": 300, **held_out}
    prepare_text(documents, tmp_path / "whole", gpt2, **options)
    whole, replace = folder_bytes(tmp_path / "whole"), os.replace
    for stop in range(2 * 2 * len(whole)):
        calls = []

        def interrupted(source, target, stop=stop, calls=calls):
            calls.append(target)
            if len(calls) > stop // 2:
                if stop % 2:
                    replace(source, target)
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(files.os, "replace", interrupted)
        folder = tmp_path / f"stop{stop}"
        try:
            prepare_text(documents, folder, gpt2, **options)
        except KeyboardInterrupt:
            monkeypatch.setattr(files.os, "replace", replace)
            prepare_text(documents, folder, gpt2, **options)
        assert folder_bytes(folder) == whole
        if len(calls) <= stop // 2:
            return
    raise AssertionError("more file operations than expected")


def test_full_disk_keeps_what_is_finished(tmp_path, monkeypatch):
    documents, gpt2 = make_documents(60), load_tokenizer()
    prepare_text(documents, tmp_path / "whole", gpt2, name="t", shard_tokens=300)
    real, calls = os.fsync, []

    def full_later(descriptor):
        calls.append(descriptor)
        if len(calls) > 8:  # two for each file and its folder; shard and manifest in turn
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", full_later)
    with pytest.raises(
        Gpt2EduError, match=r"the disk is full while writing .*t_train_000002.bin.*run the same command"
    ):
        prepare_text(documents, tmp_path / "full", gpt2, name="t", shard_tokens=300)
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == [
        ".lock",
        "manifest.json",
        "t_train_000001.bin",
        "t_val_000000.bin",
    ]
    with pytest.raises(Gpt2EduError, match="stopped after 2 shards"):
        verify(tmp_path / "full")
    prepare_text(documents, tmp_path / "full", gpt2, name="t", shard_tokens=300)
    assert folder_bytes(tmp_path / "full") == folder_bytes(tmp_path / "whole")


def test_one_writer_at_a_time(tmp_path):
    with only_writer(tmp_path), pytest.raises(Gpt2EduError, match="another process is preparing data there"):
        prepare_text(["x"], tmp_path, load_tokenizer(), name="t")


# --------------------------------------------------------------------------------------------------
# kill -9

RUN = """
import os, signal, sys
from gpt2edu import files
kill_at, *argv = sys.argv[1:]
calls = 0

def deadly(function):  # the process dies at its n-th call of one of these, before or after it took effect
    def call(*args):
        global calls
        calls += 1
        if calls == int(kill_at):
            if calls % 2:
                function(*args)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    return call

if __name__ == "__main__":
    files.os.fsync, files.os.replace = deadly(os.fsync), deadly(os.replace)
    from gpt2edu.data import main
    main(argv)
"""


class Killing:
    """A preparation of a corpus in a process of its own, which is killed and run again."""

    def __init__(self, tmp_path, workers):
        (tmp_path / "text").mkdir()
        for i in range(3):
            lines = (json.dumps({"text": text}) for text in make_documents(700, seed=i))
            (tmp_path / "text" / f"{i}.jsonl").write_text("\n".join(lines))
        self.script = tmp_path / "run.py"
        self.script.write_text(RUN)
        self.text, self.workers = tmp_path / "text", workers

    def start(self, out, kill_at=0):
        options = ["--val-fraction", "0.2", "--shard-tokens", "4000", "--workers", str(self.workers)]
        arguments = [str(kill_at), "text", str(self.text), "--out", str(out), *options]
        return subprocess.Popen([sys.executable, self.script, *arguments], stdout=subprocess.DEVNULL)


def parent_and_state(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None, "gone"
    return int(fields[1]), fields[0]


def children_of(pid):
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [child for child in pids if parent_and_state(child)[0] == pid]


def alive(pid):
    return parent_and_state(pid)[1] not in ("gone", "Z")


def check_killed(tmp_path, n_kills, workers, seed):
    rng = random.Random(seed)
    killing = Killing(tmp_path, workers)
    started = time.monotonic()
    assert killing.start(tmp_path / "whole").wait() == 0
    duration_s = time.monotonic() - started
    whole = folder_bytes(tmp_path / "whole")
    assert len(whole) > 12
    folder, kills, times = tmp_path / "killed", 0, {}
    while True:
        # every second kill hits a given file operation, the others come at any moment
        by_call = kills < n_kills and kills % 2 == 0
        started = time.monotonic()
        process = killing.start(folder, rng.randrange(1, 40) if by_call else 0)
        if kills < n_kills and not by_call:
            time.sleep(duration_s * rng.uniform(0.4, 1))
            os.kill(process.pid, signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            kills += 1
        for path in folder.glob("*.bin") if folder.exists() else ():
            assert path.read_bytes() == whole[path.name]  # nothing half-written under a final name
        if (folder / "manifest.json").exists():
            manifest = load_manifest(folder)
            now = {name: (folder / name).stat().st_mtime_ns for name in manifest.files}
            assert times.items() <= now.items()  # a finished shard is not written again
            times = now
        if process.returncode == 0:
            assert folder_bytes(folder) == whole
            if kills == n_kills:
                return
            duration_s = min(duration_s, time.monotonic() - started)  # the next one is to be met alive
            folder, times = tmp_path / f"killed{kills}", {}


@pytest.mark.parametrize("workers, n_kills", [(1, 2), (2, 1)])
def test_killed_and_resumed(tmp_path, workers, n_kills):
    check_killed(tmp_path, n_kills, workers, seed=workers)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_ten_times(tmp_path, workers):
    check_killed(tmp_path, 10, workers, seed=10 + workers)


STALL = """
import sys, time
from gpt2edu.corpora import Corpus
from gpt2edu.tokenize_corpus import prepare_text
from gpt2edu.tokenizer import load_tokenizer

class Stalled(Corpus):
    description = "a network that stopped answering"
    def documents(self, position=None):
        for i in range(3):
            yield i, "word " * 60_000
        open(sys.argv[1] + ".stalled", "w").close()
        time.sleep(1000)

if __name__ == "__main__":
    prepare_text(Stalled(), sys.argv[1], load_tokenizer(), name="t", workers=2)
"""


def test_idle_workers_end_when_the_main_process_is_killed(tmp_path):
    (tmp_path / "stall.py").write_text(STALL)
    process = subprocess.Popen([sys.executable, tmp_path / "stall.py", tmp_path / "out"])
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.stalled").exists() or len(children_of(process.pid)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(1)  # the workers finish what they have
    workers = children_of(process.pid)  # two, and multiprocessing's resource tracker
    process.kill()
    process.wait()
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, workers))


def test_text_files_resume_inside_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(make_documents(50)))
    corpus, gpt2 = TextFiles([tmp_path / "a.txt"]), load_tokenizer()
    prepare_text(corpus, tmp_path / "whole", gpt2, name="t", shard_tokens=100)
    for n in (1, 2, 5, None):
        manifest = prepare_text(corpus, tmp_path / "steps", gpt2, name="t", shard_tokens=100, max_train_shards=n)
    assert manifest.tokens_total == np.sum([len(read_shard(path)) for path in (tmp_path / "whole").glob("*.bin")])
    assert folder_bytes(tmp_path / "steps") == folder_bytes(tmp_path / "whole")
