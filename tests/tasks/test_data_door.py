"""What happens to every line of a task file: used, left out under a reason, or refused.

The tables below read as documentation: the content of a file, and what is made of it.
Run: pytest tests/tasks/test_data_door.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from transformer.files import UserError
from transformer.tasks.files import LabelReader, RowReader, with_labels
from transformer.tasks.kinds import REGRESSION
from transformer.tasks.table import TASKS, Source, Task

ROOT = Path(__file__).resolve().parents[2]
OWN = Task("own", ("text",), "label", Source("train"), (Source("dev"),), (Source("test"),))
RTE = TASKS["rte"]


def rows_of(path: Path, content: bytes, task: Task = OWN, **options: object) -> list[tuple]:
    """Return line, texts and label of all rows that are used."""
    path.write_bytes(content)
    reader = RowReader(path, task, task.train, **options)
    rows = []
    for row in reader:
        label = None if reader.label_key is None else reader.label(row.cells)
        rows.append((row.line, *reader.texts(row.cells), label))
    return rows


# file name, content, rows used as (line, text, label), what is left out
USED = [
    ("a.tsv", b"text\tlabel\na\t1\nb\t0\n", [(2, "a", "1"), (3, "b", "0")], "2 of 2 rows used"),
    # A row is short only if a cell that is read is missing; a comment may be.
    ("a.tsv", b"text\tlabel\tnote\na\t1\nb\t0\tx\n", [(2, "a", "1"), (3, "b", "0")], "2 of 2"),
    ("a.tsv", b"note\ttext\tlabel\nx\ta\t1\ny\tb\n", [(2, "a", "1")], "1 with too few cells"),
    # A tab in the text makes a row long; its label would be a piece of text.
    ("a.tsv", b"label\ttext\n1\ta\tb\n0\tc\n", [(3, "c", "0")], "1 with too many cells (line 2)"),
    ("a.csv", b"text,label\nbad, but long,1\nok,0\n", [(3, "ok", "0")], "too many cells (line 2)"),
    # No label is no class.
    ("a.tsv", b"text\tlabel\na\t\nb\tnan\nc\t-\nd\tNULL\ne\tN/A\nf\t1\n", [(7, "f", "1")], "5 wit"),
    (
        "a.jsonl",
        b'{"text": "a", "label": null}\n{"text": "b", "label": 0}\n',
        [(2, "b", "0")],
        "1 ",
    ),
    ("a.tsv", b"text\tlabel\na\t-1\nb\t1\n", [(2, "a", "-1"), (3, "b", "1")], "2 of 2 rows used"),
    # Blank lines are counted, and those at the end are nothing.
    (
        "a.tsv",
        b"text\tlabel\na\t1\n\nb\t0\n\n\n",
        [(2, "a", "1"), (4, "b", "0")],
        "1 blank (line 3)",
    ),
    ("a.csv", b"text,label\na,1\n\nb,0\n", [(2, "a", "1"), (4, "b", "0")], "1 blank (line 3)"),
    ("a.tsv", b"text\tlabel\n   \t1\nb\t0\n", [(3, "b", "0")], "1 without text (line 2)"),
    # Cells of CSV are separated by commas, semicolons or tabs.
    ("a.csv", b'text;label\n"a; b";1\nc, d;0\n', [(2, "a; b", "1"), (3, "c, d", "0")], "2 of 2"),
    ("a.csv", b"text\tlabel\na, b\t1\n", [(2, "a, b", "1")], "1 of 1"),
    ("a.csv", b'text,label\n"a\nb",1\nc,0\n', [(2, "a\nb", "1"), (4, "c", "0")], "2 of 2"),
    # A name is found without regard to case and blanks, if it is the only one.
    ("a.tsv", b"Label\t Text \n1\ta\n", [(2, "a", "1")], "1 of 1"),
    ("a.jsonl", b'{"text": "cut \\ud83d", "label": 1}\n', [(1, "cut \ufffd", "1")], "1 of 1"),
    ("a.jsonl", b'{"text": "\\ud83d\\ude00", "label": 1}\n', [(1, "\U0001f600", "1")], "1 of 1"),
    ("a.csv", "\ufefftext,label\nä,1\n".encode(), [(2, "ä", "1")], "1 of 1"),
]


@pytest.mark.parametrize(("name", "content", "used", "said"), USED)
def test_rows_that_are_used(
    name: str, content: bytes, used: list[tuple], said: str, tmp_path: Path
) -> None:
    assert rows_of(tmp_path / name, content) == used
    reader = RowReader(tmp_path / name, OWN, OWN.train)
    assert len(list(reader)) == len(used)
    assert said in reader.check_left_out(allow_short=True)


# task, file name, content, the message
REFUSED = [
    (OWN, "a.tsv", b"text\ttext\tlabel\na\tb\t1\n", "2 columns are called 'text'"),
    (OWN, "a.tsv", b"words\tlabel\na\t1\n", "no column 'text'.*the file has 'words', 'label'"),
    (OWN, "a.tsv", b"text,label\na,1\n", "separated by ',': call it .csv"),
    (OWN, "a.csv", b'text,label\na,1\n"b,0\nc,1\n', "row that begins in line 3 is no CSV"),
    (OWN, "a.csv", b'text,label\n"a" b,1\n', "row that begins in line 2 is no CSV"),
    (OWN, "a.tsv", b"text\tlabel\ngood\t1\ncaf\xe9\t0\n", "line 3: not UTF-8.*--errors replace"),
    (OWN, "a.csv", b"caf\xe9,text,label\na,b,1\n", "line 1: not UTF-8"),
    (OWN, "a.tsv", "text\tlabel\na\t1\n".encode("utf-16"), "looks like UTF-16"),
    (OWN, "a.tsv", "text\tlabel\na\t1\n".encode("utf-16-le"), "looks like UTF-16"),
    (OWN, "a.tsv", b"text\tlabel\ra\t1\rb\t0\r", "carriage return alone"),
    (OWN, "a.tsv", b"PK\x03\x04rest", "is compressed"),
    (OWN, "a.json", b'[{"text": "a", "label": 1}]\n', "is a JSON array; one object a line"),
    (OWN, "a.jsonl", b'{"text": ["a", "b"], "label": 1}\n', "line 1: 'text' is a list"),
    (OWN, "a.jsonl", b'{"text": "a", "label": {"x": 1}}\n', "line 1: 'label' is an object"),
    (OWN, "a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "line 1: no JSON object"),
    # Nothing is guessed by place once the header names one of the columns.
    (
        TASKS["qnli"],
        "a.tsv",
        b"question\tcontext\tlabel\na\tb\tentailment\n",
        "no column 'sentence'",
    ),
    (TASKS["sst2"], "a.tsv", b"label\treview\n1\tgood\n", "no column 'sentence'"),
]


@pytest.mark.parametrize(("task", "name", "content", "told"), REFUSED)
def test_files_that_are_refused(
    task: Task, name: str, content: bytes, told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told) as error:
        rows_of(tmp_path / name, content, task)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_no_column_serves_two_purposes(tmp_path: Path) -> None:
    header = b"sentence1 \tsentence2\tlabel\na\tb\tentailment\n"
    assert rows_of(tmp_path / "a.tsv", header, RTE) == [(2, "a", "b", "entailment")]
    numbers = replace(OWN, text=("0", "a"))
    with pytest.raises(UserError, match="'0' and 'a' are the same column"):
        rows_of(tmp_path / "b.tsv", b"a\tlabel\nx\t1\n", numbers)


def test_a_large_share_left_out_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for bad, used in ((1, 99), (2, 98)):  # 1% is no news, more is
        caplog.clear()
        lines = ["a\t1"] * used + ["only text"] * bad
        rows_of(path := tmp_path / "a.tsv", ("text\tlabel\n" + "\n".join(lines)).encode())
        reader = RowReader(path, OWN, OWN.train)
        list(reader)
        assert f"{used} of 100 rows used" in reader.check_left_out(allow_short=False)
        assert ("% of the rows are left out" in caplog.text) == (bad > 1)
    path.write_bytes(b"text\tlabel\n" + b"a\t1\n" * 7 + b"x\n" * 2)
    reader = RowReader(path, OWN, OWN.train)
    list(reader)
    with pytest.raises(UserError, match=r"left out: 2 with too few cells \(line 9 first\).*22%"):
        reader.check_left_out(allow_short=False)


def test_every_line_of_a_set_to_predict_is_a_row(tmp_path: Path) -> None:
    options = {"need_label": False, "keep_all": True}
    one_column = rows_of(tmp_path / "a.tsv", b"text\na\n\nb\n\n", **options)
    assert [(line, text) for line, text, _ in one_column] == [(2, "a"), (3, ""), (4, "b")]
    one_column = rows_of(tmp_path / "a.csv", b"text\na\n\nb\n", **options)
    assert [(line, text) for line, text, _ in one_column] == [(2, "a"), (3, ""), (4, "b")]
    odd = rows_of(tmp_path / "b.tsv", b"id\ttext\n1\ta\n2\n3\tb\tc\n4\t-\n", **options)
    assert [(line, text) for line, text, _ in odd] == [(2, "a"), (3, ""), (4, "b"), (5, "-")]


def test_undecodable_bytes_as_asked(tmp_path: Path) -> None:
    content = b"text\tlabel\ncaf\xe9\t1\n"
    assert rows_of(tmp_path / "a.tsv", content, errors="replace") == [(2, "caf\ufffd", "1")]
    assert rows_of(tmp_path / "a.tsv", content, errors="skip") == [(2, "caf", "1")]


def test_carriage_returns_in_csv_cells_are_written_so_that_they_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    content = b'text,label\n"a\rb",1\n"c\r\nd",0\n'
    rows = rows_of(path, content)
    reader = RowReader(path, OWN, OWN.train)
    lines = [reader.format_header(), *(reader.format_row(row.cells) for row in reader)]
    again = rows_of(tmp_path / "b.csv", "".join(lines).encode())
    assert (
        [row[1:] for row in again] == [row[1:] for row in rows] == [("a\rb", "1"), ("c\r\nd", "0")]
    )


# ------------------------------------------------------------------------------------- labels


def labels_of(tmp_path: Path, *labels: str) -> tuple[str, ...]:
    """Return the labels found in a training file that has them in this order."""
    lines = "".join(f"text {number}\t{label}\n" for number, label in enumerate(labels))
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + lines, encoding="utf-8")
    return with_labels(OWN, tmp_path).labels


def test_labels_have_one_order(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "10", "9", "-1", "9") == ("-1", "9", "10")
    assert labels_of(tmp_path, "1", "nan", "0", "inf", "b") == ("0", "1", "b", "inf")
    program = (
        "from transformer.tasks.files import with_labels; from transformer.tasks.table import *\n"
        "task = Task('own', ('text',), 'label', Source('train'), (), ())\n"
        "print(with_labels(task, '.').labels)"
    )
    orders = set()
    for seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        orders.add(done.stdout)
    assert orders == {"('0', '1', 'b', 'inf')\n"}


@pytest.mark.parametrize(
    ("first", "second"),
    [("Yes", "yes"), ("a b", "ab"), ("x", "x\u200b"), ("1", "1.0"), ("0", "\uff10")],
)
def test_labels_that_look_alike_are_named(
    first: str, second: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(labels_of(tmp_path, first, second, "other")) == 3
    assert f"{ascii(first)} and {ascii(second)} look alike" in caplog.text or (
        f"{ascii(second)} and {ascii(first)} look alike" in caplog.text
    )


def test_class_counts_and_a_hint_at_regression(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    labels_of(tmp_path, "good", "bad", "good")
    assert "2 labels in train.tsv: bad (1), good (2)" in caplog.text
    assert "--regression" not in caplog.text
    labels_of(tmp_path, "0.5", "1.5", "2.25")
    assert "--regression predicts numbers" in caplog.text


def test_a_named_label_may_be_spelled_like_none(tmp_path: Path) -> None:
    task = replace(OWN, labels=("-", "+"))
    rows = rows_of(tmp_path / "a.tsv", b"text\tlabel\na\t-\nb\t+\nc\t\n", task)
    assert [row[-1] for row in rows] == ["-", "+"]


def test_a_number_must_be_one_that_a_model_can_learn() -> None:
    read = LabelReader.of(replace(OWN, kind=REGRESSION))
    assert read("3e38", Path("x"), 1) == 3e38
    with pytest.raises(UserError, match="line 7: '1e39' is too large"):
        read("1e39", Path("x"), 7)
