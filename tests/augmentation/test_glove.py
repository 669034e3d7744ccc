"""Reading word vectors of every kind, the cache, nearest words. Run: pytest tests/test_glove.py"""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

from transformer.augmentation import glove
from transformer.augmentation.glove import WordVectors, load_word_vectors, nearest_words
from transformer.files import UserError

LINES = "the 1 0 0.5\ncat -1e-1 2 3\ndog 0.25 -.5 7\n"
VECTORS = np.array([[1, 0, 0.5], [-0.1, 2, 3], [0.25, -0.5, 7]], np.float32)


@pytest.fixture
def read(tmp_path: Path):
    """Return a function that writes a file of word vectors and reads it."""

    def read(content: str | bytes, limit: int = 0, name: str = "vectors.txt") -> WordVectors:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_word_vectors(path, limit, tmp_path / "cache")

    return read


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.rstrip("\n"),
        "3 3\n" + LINES,
        LINES.replace("\n", " \n"),
        LINES.replace("\n", "\r\n"),
        LINES.replace(" ", "\t"),
        "\ufeff" + LINES,
        LINES + "\n\n",
    ],
    ids=["glove", "no-end", "word2vec", "blank-end", "crlf", "tabs", "mark", "empty-lines"],
)
def test_reads_every_kind_of_text(read, content: str) -> None:
    table = read(content)
    assert table.words == ["the", "cat", "dog"]
    np.testing.assert_array_equal(table.vectors, VECTORS)
    assert table.vectors.dtype == np.float32


def test_reads_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "v.txt.gz").write_bytes(gzip.compress(LINES.encode()))
    for name, members in (("one.zip", ["a.txt"]), ("two.zip", ["a.txt", "sub/b.txt"])):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.writestr(member, LINES if member == members[-1] else "x 1\n")
    for path in ("v.txt.gz", "one.zip", "one.zip/a.txt", "two.zip/sub/b.txt"):
        table = load_word_vectors(tmp_path / path, 0, tmp_path / "cache")
        assert table.words == ["the", "cat", "dog"], path
    with pytest.raises(
        UserError, match=r"two.zip holds a.txt, sub/b.txt: give one, as .*two.zip/a"
    ):
        load_word_vectors(tmp_path / "two.zip", 0, tmp_path / "cache")
    with pytest.raises(UserError, match=r"one.zip holds a.txt"):
        load_word_vectors(tmp_path / "one.zip" / "c.txt", 0, tmp_path / "cache")


def test_tokens_may_hold_blanks_and_any_bytes(read) -> None:
    content = (
        "at name@domain.com 1 2 3\n. . . 4 5 6\na\u00a0b 7 8 9\nc\u2028d 1 1 1\n".encode()
        + b"\xff\xfe 2 2 2\nplain 3 3 3\nword 1 1 2\n"
    )
    table = read(content)
    expected = ["at name@domain.com", ". . .", "a\u00a0b", "c\u2028d", "\ufffd\ufffd", "plain"]
    assert table.words == [*expected, "word"]
    np.testing.assert_array_equal(table.vectors[1], [4, 5, 6])


@pytest.mark.parametrize(
    ("bad_line", "message"),
    [
        ("bird 1 2", "line 4: 2 numbers after the word; the others have 3"),
        ("bird 0.1 0.2 0.3 0.4", "line 4: 4 numbers after the word; the others have 3"),
        ("bird 1 x 3", "line 4: 'x' is not a number"),
        ("bird 1 nan 3", "line 4: 'nan' is not a number"),
        ("bird", "line 4: 0 numbers after the word; the others have 3"),
    ],
)
def test_a_bad_line_is_named(read, bad_line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(LINES + bad_line + "\nfish 1 2 3\n")
    with pytest.raises(UserError, match=message.replace("line 4", "line 5")):
        read("9 3\n" + LINES + bad_line + "\n", name="with_header.txt")


def test_bad_lines_are_named_in_later_chunks(read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glove, "CHUNK_BYTES", 64)
    lines = [f"w{i} {i} 1 2" for i in range(200)]
    lines[150] = "w150 oh 1 2"
    with pytest.raises(UserError, match="line 151: 'oh' is not a number"):
        read("\n".join(lines))


def test_nothing_to_read(read, tmp_path: Path) -> None:
    for content, message in (("", "empty"), ("\n\n", "empty"), ("word\n", "no numbers")):
        with pytest.raises(UserError, match=message):
            read(content)
    with pytest.raises(UserError, match="no such file"):
        load_word_vectors(tmp_path / "absent.txt", 0, tmp_path / "cache")


def test_limit_counts_lines_and_zero_means_all(read) -> None:
    assert read(LINES, limit=2).words == ["the", "cat"]
    assert read("3 3\n" + LINES, limit=2, name="header").words == ["the", "cat"]
    assert read(LINES, limit=0).words == ["the", "cat", "dog"]
    assert read(LINES, limit=99).words == ["the", "cat", "dog"]


def test_workers_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(500, 7))
    path = tmp_path / "many.txt"
    path.write_text("".join(f"w{i} {' '.join(map(str, row))}\n" for i, row in enumerate(rows)))
    alone = load_word_vectors(path, 0, tmp_path / "alone")
    monkeypatch.setattr(glove, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(glove, "CHUNK_BYTES", 2000)
    shared = load_word_vectors(path, 0, tmp_path / "shared")
    assert shared.words == alone.words == [f"w{i}" for i in range(500)]
    np.testing.assert_array_equal(shared.vectors, alone.vectors)
    np.testing.assert_array_equal(alone.vectors, rows.astype(np.float32))


def test_parsed_once_until_the_file_changes(
    read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read(LINES)
    with monkeypatch.context() as patch:
        patch.setattr(glove, "_parse_chunk", None)  # parsing again would fail
        again = _read_unchanged(tmp_path)
    assert again.words == first.words
    assert isinstance(again.vectors, np.memmap)
    assert read(LINES + "fish 1 2 3\n").words == [*first.words, "fish"]


def _read_unchanged(directory: Path) -> WordVectors:
    return load_word_vectors(directory / "vectors.txt", 0, directory / "cache")


def test_a_torn_cache_is_read_again(read, tmp_path: Path) -> None:
    read(LINES)
    (vectors,) = (tmp_path / "cache").glob("*.f32")
    whole = vectors.read_bytes()
    vectors.write_bytes(whole + b"more")
    _read_unchanged(tmp_path)
    assert vectors.read_bytes() == whole
    vectors.write_bytes(whole[:-4])
    np.testing.assert_array_equal(_read_unchanged(tmp_path).vectors, VECTORS)
    (words,) = (tmp_path / "cache").glob("*.json")
    words.write_text("{")
    assert _read_unchanged(tmp_path).words == ["the", "cat", "dog"]


def test_find_prefers_the_word_as_written() -> None:
    table = WordVectors(["Paris", "paris", "rome", "rome"], np.eye(4, dtype=np.float32))
    assert [table.find(word) for word in ("Paris", "PARIS", "Rome", "oslo")] == [
        *("Paris", "paris", "rome"),
        None,
    ]
    assert table.index["rome"] == 2


def test_nearest_words_are_those_of_a_full_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a plain ranking by cosine, through several blocks of both kinds."""
    monkeypatch.setattr(glove, "QUERY_BLOCK", 3)
    monkeypatch.setattr(glove, "TABLE_BLOCK", 16)
    rng = np.random.default_rng(3)
    vectors = (rng.normal(size=(50, 6)) * rng.uniform(0.1, 9, size=(50, 1))).astype(np.float32)
    words = [f"w{i}" for i in range(50)]
    words[7], words[8], words[20] = ".", "<unk>", "W3"
    asked = ["w3", "w0", "w49", "w12", "w30"]
    nearest = nearest_words(WordVectors(words, vectors), asked, 5)
    assert list(nearest) == asked
    for word in asked:
        own = vectors[words.index(word)].astype(float)
        cosine = {
            other: own @ v / np.linalg.norm(own) / np.linalg.norm(v)
            for other, v in zip(words, vectors.astype(float), strict=True)
            if other not in (".", "<unk>") and other.lower() != word
        }
        assert nearest[word] == sorted(cosine, key=cosine.get, reverse=True)[:5]


def test_fewer_words_than_wanted_and_vectors_of_zeros() -> None:
    table = WordVectors(["a", "b", "zero"], np.array([[1, 0], [1, 1], [0, 0]], np.float32))
    assert nearest_words(table, ["a", "zero"], 15) == {"a": ["b", "zero"], "zero": []}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("cut.zip", b"PK\x03\x04cut", "damaged or cut-off archive"),
        ("cut.gz", gzip.compress(b"film 0.1 0.2\n" * 99)[:-20], "damaged or cut-off archive"),
        ("vectors.bin", b"3000000 300\n</s> \x00\x01\x02\x00", "is binary"),
    ],
)
def test_files_that_hold_no_text(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told):
        load_word_vectors(tmp_path / name, cache_dir=tmp_path / "cache")


def test_aligned_columns_and_gzip_by_any_name(tmp_path: Path) -> None:
    lines = b"film   0.1  -0.2\ncity  -0.3   0.4\n"
    (tmp_path / "v.txt").write_bytes(gzip.compress(lines))
    vectors = load_word_vectors(tmp_path / "v.txt", cache_dir=tmp_path / "cache")
    assert vectors.words == ["film", "city"]
    np.testing.assert_allclose(vectors.vectors, [[0.1, -0.2], [-0.3, 0.4]], rtol=1e-6)
