"""Rows of TSV, CSV and JSON lines, read and written back unchanged: pytest tests/test_rows.py"""

from __future__ import annotations

from pathlib import Path

import pytest

from transformer.files import UserError
from transformer.tasks.files import (
    SHORT,
    LabelReader,
    RowReader,
    find_file,
    require_file,
    with_labels,
)
from transformer.tasks.kinds import REGRESSION
from transformer.tasks.table import Source, Task

TASK = Task("mine", ("text",), "label", Source("train"), (Source("dev"),), (), labels=("no", "yes"))


def read(path: Path, content: bytes, **options: bool) -> tuple[RowReader, list]:
    """Write a file and return its reader and its cells."""
    path.write_bytes(content)
    reader = RowReader(path, TASK, TASK.train, **options)
    return reader, [row.cells for row in reader]


def test_a_quote_is_a_character_in_tsv(tmp_path: Path) -> None:
    content = b'id\ttext\tlabel\n1\tthe "cat" runs\tyes\n2\t"unbalanced\tno\n'
    reader, rows = read(tmp_path / "a.tsv", content)
    assert [reader.texts(cells) for cells in rows] == [('the "cat" runs',), ('"unbalanced',)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'id\ttext\tlabel\n1\tsay "x"  twice \tyes\n2\t\x85 odd \u2028 ends\tno\n'),
        ("a.csv", 'id,text,label\n1,"a, ""b""\nand c",yes\n2,x,no\n'),
        ("a.jsonl", '{"id": 1, "text": "中文\\n", "label": "yes", "more": [1, null]}\n'),
    ],
)
def test_rows_are_written_back_unchanged(name: str, content: str, tmp_path: Path) -> None:
    reader, rows = read(tmp_path / name, content.encode())
    written = reader.format_header() + "".join(reader.format_row(cells) for cells in rows)
    assert written == content


def test_other_texts_leave_the_other_cells_and_the_row_itself(tmp_path: Path) -> None:
    reader, rows = read(tmp_path / "a.tsv", b"id\ttext\tlabel\n7\told\tyes\n")
    changed = reader.with_texts(rows[0], ("new",))
    assert (changed, rows[0]) == (["7", "new", "yes"], ["7", "old", "yes"])
    with pytest.raises(UserError, match="tab"):
        reader.format_row(reader.with_texts(rows[0], ("a\tb",)))


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    reader, rows = read(tmp_path / "a.tsv", "\ufefftext\tlabel\r\na\tyes\r\n".encode())
    assert (reader.texts(rows[0]), reader.label(rows[0])) == (("a",), "yes")


def test_short_rows_are_counted_and_left_out(tmp_path: Path) -> None:
    content = b"id\ttext\tlabel\n1\ta\tyes\n2\tb\n3\n4\tc\tno\n"
    reader, rows = read(tmp_path / "a.tsv", content)
    assert [cells[0] for cells in rows] == ["1", "4"]
    assert reader.left_out == {SHORT: (2, 3)}  # two rows, line 3 first
    assert len(list(reader)) == 2 and reader.left_out[SHORT].rows == 2  # a second reading


def test_short_rows_of_a_test_set_are_filled(tmp_path: Path) -> None:
    """A file for the leaderboard needs a prediction for every row."""
    reader, rows = read(
        tmp_path / "a.tsv", b"id\ttext\n1\ta\n2\n\n", need_label=False, keep_all=True
    )
    assert [reader.texts(cells) for cells in rows] == [("a",), ("",)]
    assert reader.left_out[SHORT].rows == 1
    reader, rows = read(
        tmp_path / "b.jsonl", b'{"text": "a"}\n{}\n', need_label=False, keep_all=True
    )
    assert [reader.texts(cells) for cells in rows] == [("a",), ("",)]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.tsv", b"", "empty"),
        ("a.xlsx", b"x", "unknown kind"),
        ("a.tsv", b"a\tb\n1\t2\n", "no column 'text'.*the file has 'a', 'b'"),
        ("a.tsv", b"text\tlabel\n\xff\tyes\n", "not UTF-8"),
        (
            "a.jsonl",
            b'{"text": "a", "label": 1}\n[1]\n',
            "line 2: no JSON object .a list.; one object",
        ),
        ("a.jsonl", b"{oops\n", "line 1: no JSON"),
    ],
)
def test_bad_files_are_told_in_one_line(
    name: str, content: bytes, told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        read(tmp_path / name, content)


def test_unknown_labels_are_told_with_their_place(tmp_path: Path) -> None:
    reader = LabelReader.of(TASK)
    with pytest.raises(UserError, match=r"x\.tsv, line 7: label 'maybe'; the labels are no, yes"):
        reader("maybe", Path("x.tsv"), 7)
    regression = LabelReader.of(Task("r", ("t",), "l", Source("t"), (), (), kind=REGRESSION))
    assert regression("2.50", Path("x"), 1) == 2.5
    for bad in ("", "nan", "high"):
        with pytest.raises(UserError, match="not a number"):
            regression(bad, Path("x"), 1)


def test_labels_are_found_in_the_training_file(tmp_path: Path) -> None:
    unknown = Task("mine", ("text",), "label", Source("train"), (), ())
    lines = [f'{{"text": "t", "label": {label}}}\n' for label in ('"b"', "true", "3", '"b"')]
    (tmp_path / "train.json").write_text("".join(lines), encoding="utf-8")
    assert with_labels(unknown, tmp_path).labels == ("3", "b", "true")
    (tmp_path / "train.json").write_text(lines[0], encoding="utf-8")
    with pytest.raises(UserError, match="1 label"):
        with_labels(unknown, tmp_path)


def test_files_are_found_by_extension_and_beside_the_task(tmp_path: Path) -> None:
    task_dir = tmp_path / "MNLI"
    task_dir.mkdir()
    (task_dir / "train_aug.jsonl").write_text("{}")
    assert find_file(task_dir, Source("train"), suffix="_aug") == task_dir / "train_aug.jsonl"
    (tmp_path / "diagnostic").mkdir()
    (tmp_path / "diagnostic" / "diagnostic.tsv").write_text("x")
    beside = Source("../diagnostic/diagnostic.tsv")
    assert find_file(task_dir, beside) == tmp_path / "diagnostic" / "diagnostic.tsv"
    (task_dir / "diagnostic.tsv").write_text("x")
    assert find_file(task_dir, beside) == task_dir / "diagnostic.tsv"
    with pytest.raises(UserError, match=r"dev\.tsv/\.csv/\.jsonl/\.json: no such file"):
        require_file(task_dir, Source("dev"), "the evaluation")
