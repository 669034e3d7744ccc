"""Blocks of rows, and what is told about them. Run: pytest tests/augmentation/test_rows.py"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from transformer.augmentation import rows as augmented_rows
from transformer.augmentation.rows import merge_notes, read_blocks, side_by_side
from transformer.tasks.files import RowReader
from transformer.tasks.table import TASKS


@pytest.fixture
def reader(tmp_path: Path) -> RowReader:
    rows = [f"{'x' * (30 if number == 4 else 2)}\t1" for number in range(9)]
    rows.insert(2, "short")
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    task = TASKS["sst2"]
    return RowReader(path, task, task.train)


def test_blocks_end_at_so_many_rows_or_characters(
    reader: RowReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augmented_rows, "BLOCK_ROWS", 4)
    monkeypatch.setattr(augmented_rows, "BLOCK_CHARACTERS", 30)
    blocks = list(read_blocks(reader))
    # Rows 0 1 and the short one and 2; rows 3 and the long 4; rows 5 to 8.
    assert [(block.first, len(block.rows)) for block in blocks] == [(0, 3), (3, 2), (5, 4)]
    assert [[line for line, _ in block.left_out] for block in blocks] == [[4], [], []]
    assert [len(block.rows) for block in read_blocks(reader)] == [3, 2, 4]


def test_notes_of_blocks_add_up_in_any_order() -> None:
    notes = [
        {"counts": {"rows": 2}, "examples": [[9, "a", "b"], [3, "c", "d"]]},
        {"counts": {"rows": 3, "words": 1}, "examples": [[5, "e", "f"]]},
    ]
    expected = (Counter(rows=5, words=1), [(3, "c", "d"), (5, "e", "f"), (9, "a", "b")])
    assert merge_notes(notes) == expected
    assert merge_notes(notes[::-1]) == expected


def test_columns_side_by_side() -> None:
    width = augmented_rows.COLUMN_WIDTH + 2
    lines = list(side_by_side([("left", "right"), ("word " * 20, "天" * 30), ("", "x")]))
    assert lines[0] == "left" + " " * (width - 4) + "right"
    assert lines[1] == ""
    # Chinese characters are twice as wide, so half as many fit.
    assert lines[2][width:] == "天" * 28
    assert lines[3][width:] == "天" * 2
    assert lines[5] == " " * width + "x"
