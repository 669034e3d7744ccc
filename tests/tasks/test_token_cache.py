"""Task files turned into packed stores, once: pytest tests/tasks/test_token_cache.py"""

from __future__ import annotations

import random
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.files import UserError, file_lock
from transformer.tasks import token_cache as task_data
from transformer.tasks.table import Source, Task
from transformer.tasks.token_cache import TokenCache, truncated_lengths
from transformer.tokenization import BertTokenizer

PAIRS = Task("pairs", ("one", "two"), "label", Source("train.tsv"), (), (), labels=("no", "yes"))


@pytest.fixture
def cache(tmp_path: Path, vocab_file: Path) -> TokenCache:
    return TokenCache(tmp_path / "cache", BertTokenizer(vocab_file), max_seq_length=9)


def write(path: Path, *rows: str) -> Path:
    path.write_text("one\ttwo\tlabel\n" + "".join(row + "\n" for row in rows), encoding="utf-8")
    return path


@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 40))
def test_pairs_lose_tokens_from_the_longer_text(first: int, second: int, limit: int) -> None:
    """The rule of BERT, one token at a time; of two equally long texts the second gives way."""
    slow = [first, second]
    while sum(slow) > limit:
        slow[0 if slow[0] > slow[1] else 1] -= 1
    assert list(truncated_lengths(first, second, limit)) == slow


def test_rows_become_inputs(cache: TokenCache, tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", "good film\tbad\tyes", "the plot\t\tno")
    stored = cache.open(path, PAIRS, PAIRS.train)
    words = cache.tokenizer.ids_to_tokens
    rows = [[words[i] for i in ids] for ids in stored.rows(np.arange(2))]
    assert rows[0] == ["[CLS]", "good", "film", "[SEP]", "bad", "[SEP]"]
    # An empty second text leaves a pair a pair.
    assert rows[1] == ["[CLS]", "the", "plot", "[SEP]", "[SEP]"]
    assert stored.first_length[:].tolist() == [4, 4]
    assert stored.labels[:].tolist() == [1.0, 0.0]


def test_long_rows_are_cut_and_counted(cache: TokenCache, tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", "a b c d e f g h\tx y\tyes", "a b\tc\tno")
    stored = cache.open(path, PAIRS, PAIRS.train)
    assert stored.lengths(np.arange(2)).tolist() == [9, 6]
    assert stored.first_length[0] == 6  # [CLS], four of eight tokens, [SEP]
    assert stored.meta["truncated"] == 1


def test_the_store_is_made_once_and_never_stale(
    cache: TokenCache, tmp_path: Path, vocab_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    original = task_data.PackedWriter.close
    monkeypatch.setattr(
        task_data.PackedWriter, "close", lambda self: made.append(self.path) or original(self)
    )
    path = write(tmp_path / "train.tsv", "a\tb\tyes", "c\td\tno")
    first = cache.open(path, PAIRS, PAIRS.train)
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    again = cache.open(path.rename(copy / "train.tsv"), PAIRS, PAIRS.train)
    assert len(made) == 1 and again.path == first.path  # known by content, not by place
    path = copy / "train.tsv"
    longer = TokenCache(cache.directory, cache.tokenizer, max_seq_length=10)
    cased = TokenCache(cache.directory, BertTokenizer(vocab_file, False), max_seq_length=9)
    for changed in (longer, cased):
        changed.open(path, PAIRS, PAIRS.train)
    flipped = Task(**{**vars(PAIRS), "labels": ("yes", "no")})
    assert cache.open(path, flipped, PAIRS.train).labels[:].tolist() == [0.0, 1.0]
    write(path, "a\tb\tyes", "c\te\tno")
    cache.open(path, PAIRS, PAIRS.train)
    assert len(set(made)) == 5


def test_augmented_rows_are_flagged(cache: TokenCache, tmp_path: Path) -> None:
    original = write(tmp_path / "train.tsv", "a b\tc\tyes", "d\te\tno")
    augmented = write(
        tmp_path / "train_aug.tsv", "a b\tc\tyes", "a x\tc\tyes", "d\te\tno", "d\ty\tno"
    )
    stored = cache.open(augmented, PAIRS, PAIRS.train, is_augmented=True, originals=original)
    assert stored.flags[:].tolist() == [0, 1, 0, 1]
    alone = cache.open(augmented, PAIRS, PAIRS.train, is_augmented=True)
    assert alone.flags[:].tolist() == [1, 1, 1, 1]


def test_workers_give_the_same_store(
    cache: TokenCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_data, "CHUNK_ROWS", 7)
    monkeypatch.setattr(task_data, "PARALLEL_ROWS", 14)
    rng = random.Random(1)
    words = ["good", "bad", "plot", "unknownword", "x"]

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 6)))

    rows = [f"{text()}\t{text()}\t{rng.choice(['no', 'yes'])}" for _ in range(60)]
    path = write(tmp_path / "train.tsv", *rows, "short row")
    alone = cache.open(path, PAIRS, PAIRS.train)
    parallel = TokenCache(tmp_path / "other", cache.tokenizer, max_seq_length=9, workers=2)
    together = parallel.open(path, PAIRS, PAIRS.train)
    assert len(together) == 60 and together.meta["reading"].startswith(
        "60 of 61 rows used; left out: 1 with"
    )
    for column in ("ids", "offsets", "first_length", "labels"):
        assert np.array_equal(getattr(alone, column), getattr(together, column))


def test_mistakes_leave_no_store(cache: TokenCache, tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", "a\tb\tyes", "c\td\tmaybe")
    with pytest.raises(UserError, match="line 3: label 'maybe'"):
        cache.open(path, PAIRS, PAIRS.train)
    write(path, "a\tb")
    with pytest.raises(UserError, match="0 of 1 rows used; left out: 1 with too few cells"):
        cache.open(path, PAIRS, PAIRS.train)
    assert [p for p in cache.directory.iterdir() if p.is_dir()] == []


def test_what_a_killed_process_left_is_removed(cache: TokenCache, tmp_path: Path) -> None:
    """Whatever file it tokenised; not what a living process is writing, which holds the lock."""
    cache.directory.mkdir()
    for name in ("mine", "others"):
        (cache.directory / f".{name}.123.tmp").mkdir()
        (cache.directory / f".{name}.123.tmp" / "ids.bin").write_bytes(b"half")
    with file_lock(cache.directory / ".others.lock", "it writes"):
        cache.open(write(tmp_path / "train.tsv", "a\tb\tyes"), PAIRS, PAIRS.train)
    assert [path.name for path in cache.directory.glob(".*.tmp")] == [".others.123.tmp"]
    cache.open(write(tmp_path / "train.tsv", "a\tc\tyes"), PAIRS, PAIRS.train)
    assert not list(cache.directory.glob(".*.tmp"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
def test_full_disk_leaves_nothing(
    cache: TokenCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.open

    def open_on_a_full_disk(path: Path, *arguments: str, **options: str) -> IO:
        return original(Path("/dev/full") if path.suffix == ".bin" else path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_on_a_full_disk)
    with pytest.raises(OSError, match="No space left"):
        cache.open(write(tmp_path / "train.tsv", "a\tb\tyes"), PAIRS, PAIRS.train)
    assert not [path for path in cache.directory.iterdir() if path.suffix != ".lock"]


def test_store_of_another_user_is_read_without_its_lock(cache: TokenCache, tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", "a\tb\tyes")
    cache.open(path, PAIRS, PAIRS.train)
    for lock in cache.directory.glob(".*.lock"):
        lock.unlink()
        lock.mkdir()  # nobody could open this one
    assert len(cache.open(path, PAIRS, PAIRS.train)) == 1
