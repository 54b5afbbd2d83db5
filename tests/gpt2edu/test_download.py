"""Downloads from a local server that breaks connections, refuses, and lies."""

import errno
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from gpt2edu import download as module
from gpt2edu.download import READY_MADE, TokenDataset, download, download_shards
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.manifest import verify
from gpt2edu.shards import shard_header


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests = {}, []
        self.plan = []  # for the next requests: ("status", 503), or ("break", bytes after which to end)
        self.ranges, self.etags = True, True
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):  # noqa: N802
        server = self.server
        first = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        server.requests.append((self.path, first))
        content = server.files.get(self.path)
        action, number = server.plan.pop(0) if server.plan else (None, None)
        if content is None or action == "status":
            self.send_error(number or 404)
            return
        if not server.ranges:
            first = 0
        if first >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        if server.etags:
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        self.wfile.write(content[first:][:number])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(module, "BLOCK_BYTES", 500)  # what a broken connection loses at most
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


CONTENT = np.random.default_rng(0).bytes(10_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_whole(server, tmp_path):
    server.files["/a"] = CONTENT
    assert download(f"{server.url}/a", tmp_path / "a", sha256=SHA256) == SHA256
    assert (tmp_path / "a").read_bytes() == CONTENT and names(tmp_path) == ["a"]


def test_resumes_where_the_connection_ended(server, tmp_path):
    server.files["/a"] = CONTENT
    server.plan = [("break", 3000), ("status", 503), ("break", 2500)]
    assert download(f"{server.url}/a", tmp_path / "a") == SHA256
    assert [first for _, first in server.requests] == [0, 3000, 3000, 5500]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_later_call_goes_on(server, tmp_path, monkeypatch):
    server.files["/a"] = CONTENT
    monkeypatch.setattr(module, "RETRIES", 1)
    server.plan = [("break", 7000)]
    with pytest.raises(
        Gpt2EduError, match="cannot be downloaded .*run the same command again, what has arrived is kept"
    ):
        download(f"{server.url}/a", tmp_path / "a")
    assert names(tmp_path) == [".a.part"]
    download(f"{server.url}/a", tmp_path / "a", sha256=SHA256)
    assert [first for _, first in server.requests] == [0, 7000]
    assert names(tmp_path) == ["a"]


def test_server_without_ranges_starts_over(server, tmp_path):
    server.files["/a"], server.ranges, server.plan = CONTENT, False, [("break", 3000)]
    download(f"{server.url}/a", tmp_path / "a", sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("part, requests", [(CONTENT, 1), (CONTENT + b"more", 2)])
def test_part_that_is_whole_or_too_long(server, tmp_path, part, requests):
    server.files["/a"] = CONTENT
    (tmp_path / ".a.part").write_bytes(part)
    download(f"{server.url}/a", tmp_path / "a", sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT and len(server.requests) == requests


@pytest.mark.parametrize("declared", [True, False])
def test_wrong_checksum_leaves_nothing(server, tmp_path, declared):
    """The hub's own checksum, sent with the file, counts where we know none."""
    server.files["/a"] = CONTENT
    (tmp_path / ".a.part").write_bytes(b"wrong beginning")
    with pytest.raises(Gpt2EduError, match=f"arrived with SHA-256 .*, not {SHA256}; run the same command again"):
        download(f"{server.url}/a", tmp_path / "a", sha256=None if declared else SHA256)
    assert names(tmp_path) == []
    server.etags = False
    download(f"{server.url}/a", tmp_path / "a", sha256=None if declared else SHA256)


@pytest.mark.parametrize("plan, tries", [([], 1), ([("status", 500)] * 9, 5)])
def test_no_answer_is_one_sentence(server, tmp_path, plan, tries):
    server.plan = plan
    if plan:
        server.files["/a"] = CONTENT
    with pytest.raises(Gpt2EduError) as problem:
        download(f"{server.url}/a", tmp_path / "a")
    assert f"status {500 if plan else 404}" in str(problem.value) and "\n" not in str(problem.value)
    assert len(server.requests) == tries and names(tmp_path) == []


def test_nobody_there(tmp_path, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    with pytest.raises(Gpt2EduError, match=r"http://127.0.0.1:9/a cannot be downloaded \(ConnectionError\)"):
        download("http://127.0.0.1:9/a", tmp_path / "a")


def test_full_disk(server, tmp_path, monkeypatch):
    server.files["/a"] = CONTENT

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(Gpt2EduError, match="the disk is full while writing"):
        download(f"{server.url}/a", tmp_path / "a")
    assert not (tmp_path / "a").exists()


# --------------------------------------------------------------------------------------------------
# ready-made shards


def shard(n, seed):
    return shard_header(n) + np.random.default_rng(seed).integers(0, 50257, n).astype("<u2").tobytes()


@pytest.fixture
def dataset(server):
    for number in range(4):
        split = "train" if number else "val"
        server.files[f"/datasets/some/one/resolve/abc/w_{split}_{number:06d}.bin"] = shard(100 + number, number)
    known = hashlib.sha256(shard(101, 1)).hexdigest()
    return TokenDataset("some/one", "abc", "w", 3, {"w_train_000001.bin": known})


def test_shards(server, dataset, tmp_path):
    manifest = download_shards(dataset, tmp_path, n_train=2, hub=server.url)
    assert names(tmp_path) == [".lock", ".verified.json", "manifest.json", "w_train_000001.bin"] + [
        "w_train_000002.bin",
        "w_val_000000.bin",
    ]
    assert (manifest.tokens("train"), manifest.tokens("val")) == (203, 100)
    assert manifest.source == "some/one at abc" and manifest.tokenizer == "gpt2"
    assert manifest.files["w_train_000002.bin"]["sha256"] == hashlib.sha256(shard(102, 2)).hexdigest()
    assert len(server.requests) == 3
    download_shards(dataset, tmp_path, n_train=2, hub=server.url)
    assert len(server.requests) == 3
    manifest = download_shards(dataset, tmp_path, hub=server.url)  # the rest
    assert len(server.requests) == 4 and verify(tmp_path).tokens("train") == 306


def test_a_lost_shard_must_come_back_the_same(server, dataset, tmp_path):
    download_shards(dataset, tmp_path, hub=server.url)
    (tmp_path / "w_train_000002.bin").unlink()
    server.etags = False
    server.files["/datasets/some/one/resolve/abc/w_train_000002.bin"] = shard(102, 99)
    with pytest.raises(Gpt2EduError, match="w_train_000002.bin: arrived with SHA-256"):
        download_shards(dataset, tmp_path, hub=server.url)
    assert "w_train_000002.bin" not in names(tmp_path)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"<html>please log in</html>", "not a token shard"),
        (shard(50, 0)[:-2], "bytes where 50 tokens"),
        (shard_header(1) + b"\xff\xff", "token id 65535"),
    ],
)
def test_what_is_no_shard_is_refused(server, dataset, tmp_path, content, words):
    server.files["/datasets/some/one/resolve/abc/w_train_000002.bin"] = content
    with pytest.raises(Gpt2EduError, match=words):
        download_shards(dataset, tmp_path, hub=server.url)
    assert "w_train_000002.bin" not in names(tmp_path)


def test_number_of_shards(server, dataset, tmp_path):
    with pytest.raises(UsageError, match="some/one has 3 training shards"):
        download_shards(dataset, tmp_path, n_train=4, hub=server.url)


def test_the_table_is_pinned():
    for dataset in READY_MADE.values():
        assert len(dataset.revision) == 40 and int(dataset.revision, 16)
        assert all(len(value) == 64 and int(value, 16) for value in dataset.sha256.values())
