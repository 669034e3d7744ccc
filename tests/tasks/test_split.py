"""One file as training and dev set: bash tests/run.sh tests/tasks/test_split.py"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import data_augmentation
import task_distill
from transformer.files import UserError
from transformer.tasks.files import RowReader, with_labels
from transformer.tasks.options import check_args
from transformer.tasks.table import Task, resolve_task
from transformer.tasks.token_cache import TokenCache
from transformer.tokenization import BertTokenizer

COUNTS = {"no": 233, "yes": 57, "maybe": 10, "never": 1}


def write(directory: Path, rows: list[tuple[str, str]], name: str = "train.tsv") -> Path:
    directory.mkdir(exist_ok=True)
    lines = ["text\tlabel", *("\t".join(row) for row in rows)]
    (directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def task_of(*flags: str, share: float = 0.1) -> Task:
    described = ["--task_name", "own", "--text_columns", "text", "--label_column", "label"]
    described += ["--student_model", "x", "--dev_share", str(share), *flags]
    return resolve_task(task_distill.build_parser().parse_args(described))


def parts(directory: Path, task: Task) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the texts and labels of the training and of the dev set."""
    found = []
    for source in (task.train, task.dev[0]):
        reader = RowReader(directory / "train.tsv", task, source)
        found.append([(*reader.texts(row.cells), reader.label(row.cells)) for row in reader])
    return found[0], found[1]


@pytest.fixture
def rows() -> list[tuple[str, str]]:
    rows = [(f"{label} {n}", label) for label, count in COUNTS.items() for n in range(count)]
    random.Random(1).shuffle(rows)
    return rows


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_of_every_label_the_share_is_held_out(rows, share, tmp_path) -> None:
    train, dev = parts(write(tmp_path, rows), task_of(share=share))
    assert sorted(train + dev) == sorted(rows)
    held_out = Counter(label for _, label in dev)
    for label, count in COUNTS.items():
        assert abs(held_out[label] - share * count) <= 1, label
    assert held_out["never"] == 0, "the only text of a label stays in training"
    assert abs(len(dev) - share * len(rows)) <= 2
    assert [row for row in rows if row in set(dev)] == dev, "in the order of the file"


def test_the_order_of_rows_does_not_matter(rows, tmp_path) -> None:
    _, dev = parts(write(tmp_path / "a", rows), task_of())
    _, again = parts(write(tmp_path / "b", rows[::-1]), task_of())
    assert set(dev) == set(again)


def test_rows_of_one_text_stay_together(rows, tmp_path) -> None:
    twice = [*rows, *rows, *((text, "no") for text, _ in rows)]
    train, dev = parts(write(tmp_path, twice), task_of())
    assert dev and {text for text, _ in train}.isdisjoint(text for text, _ in dev)


def test_scores_of_all_sizes_are_held_out(tmp_path) -> None:
    rows = [(f"text {n}", f"{n / 10}") for n in range(200)]
    random.Random(2).shuffle(rows)
    _, dev = parts(write(tmp_path, rows), task_of("--regression"))
    tenths = Counter(int(float(score) // 2) for _, score in dev)
    assert tenths == dict.fromkeys(range(10), 2)  # scores are 0 to 19.9


def test_rows_that_cannot_be_used_are_in_neither_part(rows, tmp_path, vocab_file) -> None:
    write(tmp_path, [*rows, ("", "no"), ("text without label", "")])
    task = with_labels(task_of(), tmp_path)
    assert set(task.labels) == set(COUNTS)
    cache = TokenCache(tmp_path / "cache", BertTokenizer(vocab_file), max_seq_length=9)
    path = tmp_path / "train.tsv"
    train, dev = cache.open(path, task, task.train), cache.open(path, task, task.dev[0])
    assert len(train) + len(dev) == len(rows) and len(dev) == 30
    assert dev.meta["reading"] == (
        "30 of 303 rows used; 271 are the training set (--dev_share); left out: 1 without text "
        "(line 303), 1 without a label (line 304)"
    )
    other = with_labels(replace(task_of(share=0.2)), tmp_path)
    assert len(cache.open(path, other, other.dev[0])) > 50, "not the store of another share"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--dev_share", "0"], "--dev_share 0.0: give a share above 0, at most 0.5"),
        (["--dev_share", "10"], "--dev_share 10.0: give a share above 0, at most 0.5"),
        (["--dev_file", "d.tsv"], "--dev_file and --dev_share contradict each other; give one"),
    ],
)
def test_mistakes_of_the_flags(flags, line) -> None:
    with pytest.raises(UserError) as told:
        task_of(*flags)
    assert str(told.value) == line


def test_a_dev_set_that_is_there_is_not_passed_over(rows, tmp_path) -> None:
    write(write(tmp_path, rows), rows[:5], "dev.csv")
    flags = ["--task_name", "own", "--text_columns", "text", "--label_column", "label"]
    flags += ["--dev_share", "0.1", "--data_dir", str(tmp_path), "--output_dir", "out"]
    args = task_distill.build_parser().parse_args(
        [*flags, "--finetune", "--student_model", "nowhere"]
    )
    with pytest.raises(UserError, match="there is a dev set, .*dev.csv; leave the flag out"):
        check_args(args)


def test_a_share_that_is_no_row(tmp_path) -> None:
    with pytest.raises(UserError, match="is no row of the 3 in .*train.tsv; give a larger"):
        parts(write(tmp_path, [("a", "no"), ("b", "no"), ("c", "yes")]), task_of())


def test_augmented_rows_are_those_of_the_training_part(rows, tmp_path, vocab_file) -> None:
    write(tmp_path, rows)
    flags = ["--task_name", "own", "--text_columns", "text", "--label_column", "label"]
    flags += ["--data_dir", str(tmp_path), "--recombine", "1"]
    task, path = with_labels(task_of(), tmp_path), tmp_path / "train_aug.tsv"
    cache = TokenCache(tmp_path / "cache", BertTokenizer(vocab_file), max_seq_length=9)

    def opened():
        source, original = replace(task.train, part=""), tmp_path / "train.tsv"
        return cache.open(path, task, source, is_augmented=True, originals=original)

    data_augmentation.main([*flags, "--dev_share", "0.1"])
    train, dev = parts(tmp_path, task)
    written = {line.split("\t")[0] for line in path.read_text().splitlines()[1:]}
    assert written >= {text for text, _ in train} and written.isdisjoint(text for text, _ in dev)
    flags_of_rows = opened().flags[:]
    assert (flags_of_rows == 0).sum() == len(train) and (flags_of_rows == 1).sum() > 100
    data_augmentation.main([*flags, "--overwrite_output"])  # of the whole file
    with pytest.raises(UserError, match="train_aug.tsv holds texts of the dev set; make it again"):
        opened()
