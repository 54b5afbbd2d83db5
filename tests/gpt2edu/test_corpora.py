import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2edu import corpora
from gpt2edu.corpora import FineWeb, KingJamesBible, ListCorpus, TextFiles, shakespeare_sections
from gpt2edu.errors import Gpt2EduError, UsageError


def texts(corpus, position=None):
    return [text for _, text in corpus.documents(position)]


def check_positions(corpus, expected):
    """Every position, through JSON, begins with its own document."""
    listed = list(corpus.documents())
    assert [text for _, text in listed] == expected
    for i, (position, _) in enumerate(listed):
        assert texts(corpus, json.loads(json.dumps(position))) == expected[i:]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("Zwei Zeilen\nsüß\n", encoding="utf-8")
    lines = [{"text": "one"}, {"text": "two\n", "more": 1}]
    (tmp_path / "a.jsonl").write_text(json.dumps(lines[0]) + "\n\n" + json.dumps(lines[1]))
    rows = [f"row {i}" for i in range(7)]
    pq.write_table(pa.table({"id": range(7), "text": rows}), tmp_path / "sub" / "c.parquet", row_group_size=3)
    (tmp_path / "ignored.md").write_text("no")
    return tmp_path


def test_files_of_all_kinds(folder):
    corpus = TextFiles([folder])
    check_positions(corpus, ["one", "two\n", "Zwei Zeilen\nsüß\n", *[f"row {i}" for i in range(7)]])
    assert corpus.text_bytes() == len("onetwo\nZwei Zeilen\nsüß\n".encode()) + 7 * 5
    assert corpus.total_bytes > 0


def test_order_of_the_command_line(folder):
    assert texts(TextFiles([folder / "sub", folder / "b.txt"]))[-1].startswith("Zwei")


def test_description_changes_with_the_files(folder):
    before = TextFiles([folder]).description
    assert before == TextFiles([folder]).description
    (folder / "b.txt").write_text("other")
    assert TextFiles([folder]).description != before


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 1000])
def test_long_text_is_cut_after_lines_and_never_inside_a_character(tmp_path, monkeypatch, size):
    monkeypatch.setattr(corpora, "TEXT_PIECE_BYTES", size)
    text = "kurz\n한국어 문장\n🙂🙂🙂🙂 ende\n\n\nx"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    corpus = TextFiles([tmp_path / "a.txt"])
    pieces = texts(corpus)
    assert "".join(pieces) == text
    check_positions(corpus, pieces)
    if size == 8:
        assert pieces[0] == "kurz\n한국어 문"  # 8 bytes and up to 8 more look for a line end, then the character


def test_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfHello")
    assert texts(TextFiles([tmp_path])) == ["Hello"]


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.txt", b"abc\xe9\n", "a.txt: byte 3 is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "the line at byte 14 is not a JSON object"),
        ("a.jsonl", b'{"body": "x"}\n', 'not a JSON object with a "text"'),
        ("a.jsonl", b"[1]\n", 'not a JSON object with a "text"'),
        ("a.jsonl", b'{"text": 7}\n', '"text" in the line at byte 0 is not a string'),
        ("a.parquet", b"PAR1 not really", "cannot be read as parquet"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Gpt2EduError) as problem:
        texts(TextFiles([tmp_path]))
    assert words in str(problem.value) and "\n" not in str(problem.value)


def test_parquet_without_text(tmp_path):
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(Gpt2EduError, match='has no column "text", only body'):
        TextFiles([tmp_path])


def test_paths_that_cannot_be(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(UsageError, match="no such file or folder"):
        TextFiles([tmp_path / "none"])
    with pytest.raises(UsageError, match=r"a.pdf: only .txt, .jsonl, .parquet"):
        TextFiles([tmp_path / "a.pdf"])
    with pytest.raises(UsageError, match="no file in it ends in"):
        TextFiles([tmp_path])


def test_list_corpus():
    corpus = ListCorpus(["a", "한", "", "\ud800"])
    check_positions(corpus, ["a", "한", "", "\ud800"])
    assert corpus.total_bytes == corpus.text_bytes() == 1 + 3 + 0 + 3
    assert corpus.description == ListCorpus(iter(["a", "한", "", "\ud800"])).description
    assert corpus.description != ListCorpus(["a한", "", "\ud800"]).description


def test_king_james():
    corpus = KingJamesBible()
    documents = texts(corpus)
    assert len(documents) == 1189  # chapters
    assert documents[0].startswith("In the beginning God created the heaven and the earth.\nAnd the earth")
    assert documents[-1].endswith("The grace of our Lord Jesus Christ be with you all. Amen.\n")
    assert 4_000_000 < corpus.total_bytes < 4_300_000


def test_shakespeare_sections():
    assert shakespeare_sections("a\nb\n\nc\n\n\nd") == ["a\nb\n\n", "c\n\n", "\nd"]
    assert "".join(shakespeare_sections("x\n\n\n\ny\n")) == "x\n\n\n\ny\n"


@pytest.fixture
def small_fineweb(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "fineweb"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: sample-10BT\n  data_files: data/*.parquet\n---\n", encoding="utf-8"
    )
    rows = [f"page {i}" for i in range(25)]
    for part in range(2):
        table = pa.table({"text": rows[15 * part : 15 * part + 15], "id": rows[15 * part : 15 * part + 15]})
        pq.write_table(table, folder / "data" / f"{part:03d}.parquet", row_group_size=4)
    return folder, rows


@pytest.mark.parametrize("batch", [3, 256])
def test_fineweb_resumes_at_every_document(small_fineweb, monkeypatch, batch):
    monkeypatch.setattr(corpora, "FINEWEB_BATCH", batch)
    folder, rows = small_fineweb
    check_positions(FineWeb("10B", dataset=str(folder)), rows)


def test_fineweb_is_pinned():
    assert FineWeb("10B").description == (
        "HuggingFaceFW/fineweb sample-10BT at 9bb295ddab0e05d785b879661af7260fed5140fc"
    )
    assert "fineweb-edu sample-100BT at 87f09149" in FineWeb("100B", edu=True).description
    assert FineWeb("100B").total_tokens == 10**11


def test_fineweb_out_of_reach(tmp_path):
    with pytest.raises(Gpt2EduError) as problem:
        texts(FineWeb("10B", dataset=str(tmp_path / "none")))
    assert "cannot be read" in str(problem.value) and "\n" not in str(problem.value)
