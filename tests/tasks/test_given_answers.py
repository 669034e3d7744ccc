"""A teacher's answers from files: bash tests/run.sh tests/tasks/test_given_answers.py"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, softmax

from transformer.files import UserError
from transformer.tasks.files import RowReader
from transformer.tasks.given_answers import named_labels, read_logits
from transformer.tasks.kinds import MULTI_LABEL, REGRESSION
from transformer.tasks.table import TRAIN_PART, Source, Task

TASK = Task("own", ("text",), "label", Source("train.tsv"), (), (), labels=("bad", "fair", "good"))
ROWS = "text\tlabel\na  film\tgood\n\nno label\t\nb\tfair\n\tbad\nc\tbad\n"
LOGITS = np.array([[-1.5, 0.25, 3], [0.5, 0.25, 0], [2, 1, -4]], np.float32)  # of a, b and c


@pytest.fixture
def reader(tmp_path: Path) -> RowReader:
    (tmp_path / "train.tsv").write_text(ROWS)
    return RowReader(tmp_path / "train.tsv", TASK, TASK.train)


def write(path: Path, content: str | np.ndarray) -> Path:
    if isinstance(content, str):
        path.write_text(content)
    else:
        np.save(path, content)
    return path


def read(reader: RowReader, *paths: Path, task: Task = TASK, probabilities: bool = False):
    return read_logits(paths, task, reader, are_probabilities=probabilities)


EVERY_ROW = np.insert(LOGITS, [1, 2], np.float32(7), axis=0)  # and of the two that are not used


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", LOGITS),
        ("a.npy", EVERY_ROW.astype(np.float64)),
        ("a.npy", np.asfortranarray(LOGITS.astype(np.float16))),
        ("a.tsv", "Good\tbad\tfair\n3\t-1.5\t.25\n0\t0.5\t25e-2\n-4\t2\t1\n"),
        ("a.csv", "index;bad;fair;good\n1;-1.5;.25;3\n2;.5;.25;0\n3;2;1;-4\n"),
        ("a.tsv", "text\tgood\tfair\tbad\na film\t3\t.25\t-1.5\nb\t0\t.25\t.5\nc\t-4\t1\t2\n"),
        (
            "a.jsonl",
            '{"bad": -1.5, "fair": 0.25, "good": 3}\n\n{"good": 0, "fair": 0.25, "bad": 0.5}\n'
            '{"bad": 2, "fair": 1, "good": -4}\n',
        ),
    ],
)
def test_a_file_has_a_row_for_each_that_is_used_or_for_all(name, content, reader, tmp_path):
    found = read(reader, write(tmp_path / name, content))
    assert found.dtype == np.float32
    assert np.array_equal(found, LOGITS)


def test_of_a_split_file_the_answers_are_those_of_the_part(tmp_path):
    rows = [f"text {n}\t{TASK.labels[n % 3]}" for n in range(60)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    source = replace(TASK.train, part=TRAIN_PART, dev_share=0.2)
    reader = RowReader(tmp_path / "train.tsv", TASK, source)
    answers = np.arange(180.0).reshape(60, 3)
    numbers = [int(row.cells[0].split()[1]) for row in reader]
    assert 40 < len(numbers) < 55
    assert np.array_equal(read(reader, write(tmp_path / "a.npy", answers)), answers[numbers])


def test_files_are_averaged(reader, tmp_path):
    other = LOGITS[::-1] * 2
    paths = write(tmp_path / "a.npy", LOGITS), write(tmp_path / "b.npy", other)
    np.testing.assert_allclose(read(reader, *paths), (LOGITS + other) / 2)
    paths = [
        write(tmp_path / f"{name}.npy", softmax(each, axis=1))
        for name, each in (("a", LOGITS), ("b", other))
    ]
    found = softmax(read(reader, *paths, probabilities=True), axis=1)
    expected = (softmax(LOGITS, axis=1) + softmax(other, axis=1)) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_probabilities_become_logits(reader, tmp_path):
    rounded = np.array([[0, 1, 0], [0.33, 0.33, 0.33], [0.2, 0.3, 0.5]])
    found = read(reader, write(tmp_path / "a.npy", rounded), probabilities=True)
    assert np.isfinite(found).all()
    expected = [[0, 1, 0], [1 / 3] * 3, [0.2, 0.3, 0.5]]
    np.testing.assert_allclose(softmax(found, axis=1), expected, atol=1e-6)
    each = np.array([[0, 1, 0.5], [0.9, 0.8, 0.7], [0, 0, 0]])  # of labels by themselves
    several = replace(TASK, kind=MULTI_LABEL)
    found = read(reader, write(tmp_path / "a.npy", each), task=several, probabilities=True)
    np.testing.assert_allclose(expit(found), each, atol=1e-6)


def test_scores_have_one_column(tmp_path):
    task = replace(TASK, kind=REGRESSION, labels=None)
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t1\nb\t2.5\n")
    reader = RowReader(tmp_path / "train.tsv", task, task.train)
    for name, content in (("a.npy", np.array([0.5, 1.5])), ("a.tsv", "score\n0.5\n1.5\n")):
        found = read(reader, write(tmp_path / name, content), task=task)
        assert found.tolist() == [[0.5], [1.5]]


def test_columns_name_labels(tmp_path):
    table = write(tmp_path / "a.csv", "id,no,text,yes\n1,0,x,1\n")
    task = replace(TASK, labels=None)
    assert named_labels([tmp_path / "b.npy", table], task) == ("no", "yes")
    assert named_labels([tmp_path / "b.npy"], task) == ()


TSV = "bad\tfair\tgood\n"


def test_an_archive_is_no_array(reader, tmp_path):
    np.savez(tmp_path / "a.npz", LOGITS)
    with pytest.raises(UserError, match="a.npy: no .npy array of numbers, but an archive"):
        read(reader, (tmp_path / "a.npz").rename(tmp_path / "a.npy"))


@pytest.mark.parametrize(
    ("name", "content", "probabilities", "told"),
    [
        ("a.npy", LOGITS[:2], False, "holds 2 answers; .*train.tsv has 5 rows, 3 of them used"),
        ("a.npy", LOGITS[:, :2], False, r"array \(3, 2\) of float32; needed .* \(rows, 3\)"),
        ("a.npy", np.array([["x"] * 3] * 3), False, "needed are numbers"),
        ("a.npy", "no array", False, "a.npy: no .npy array of numbers"),
        ("a.npy", LOGITS * np.float32(np.nan), False, "row 1: nan, nan, nan: give finite"),
        ("a.npy", LOGITS.astype(float) * 1e300, False, "row 1: -inf, inf, inf: give finite"),
        ("a.tsv", "", False, "the file is empty"),
        ("a.tsv", TSV, False, "holds 0 answers"),
        ("a.tsv", "-1\t2\t3\n1\t2\t3\n", False, "its columns are -1, 2, 3; needed is one for each"),
        ("a.tsv", "bad\tgood\n1\t2\n", False, "its columns are bad, good; needed is one for each"),
        ("a.tsv", "bad\tfair\tgood\tx\n1\t2\t3\t4\n", False, "called by its name: bad, fair, good"),
        ("a.tsv", TSV + "1\t2\t3\n1\t2\n", False, "line 3: a row with too few cells"),
        ("a.tsv", TSV + "1\t2\tx\n", False, "a.tsv, line 2: 'x' is no number"),
        ("a.tsv", TSV + "1\t2\tinf\n" * 3, False, "row 1: 1, 2, inf: give finite numbers"),
        ("a.csv", "bad,bad,fair,good\n1,1,2,3\n", False, "its columns are bad, bad, fair, good"),
        (
            "a.tsv",
            "text\tbad\tfair\tgood\na film\t1\t2\t3\nc\t1\t2\t3\nb\t1\t2\t3\n",
            False,
            "a.tsv, row 2: the text is not that of the same row of .*train.tsv",
        ),
        ("a.npy", softmax(LOGITS, axis=1), False, "give them by --teacher_probabilities"),
        ("a.npy", LOGITS, True, "row 1: -1.5, 0.25, 3: a probability is from 0 to 1"),
        (
            "a.npy",
            LOGITS * 0 + 0.3,
            True,
            "row 1: .* 0.3, 0.3, 0.3 have the sum 0.9 and",
        ),
    ],
)
def test_mistakes(name, content, probabilities, told, reader, tmp_path):
    with pytest.raises(UserError, match=told) as error:
        read(reader, write(tmp_path / name, content), probabilities=probabilities)
    assert "\n" not in str(error.value)
