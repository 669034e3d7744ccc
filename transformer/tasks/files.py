"""Read and write the rows of task files: TSV, CSV and JSON lines, every column kept.

TSV has no quoting in either direction (a quote is a character), CSV has the usual one, JSON lines
is one object a line. The extension says which.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from transformer.files import UserError
from transformer.tasks.table import Source, Task

logger = logging.getLogger(__name__)

FORMATS = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".txt": "tsv",
}

Key = int | str

Cells = Any  # list[str] of a TSV or CSV row, dict[str, Any] of a JSON line; both take cells[key]


class Row(NamedTuple):
    """One row: its line in the file, counted from 1, and its cells."""

    line: int
    cells: Cells


def find_file(data_dir: str | Path, source: Source, *, suffix: str = "") -> Path | None:
    """Return the path of a task's file, None if it is not there.

    Example: suffix "_aug" turns train.tsv into train_aug.tsv.
    """
    name = Path(data_dir) / source.file
    if name.suffix:
        candidates = [name.with_name(name.stem + suffix + name.suffix)]
    else:
        known = (".tsv", ".csv", ".jsonl", ".json")
        candidates = [name.with_name(name.name + suffix + extension) for extension in known]
    # A file of another directory may also lie in this one. ".." is taken off by name, so that a
    # task directory that is a link has its sisters beside it.
    candidates = [Path(data_dir) / path.name for path in candidates] + candidates
    paths = (Path(os.path.normpath(path)) for path in candidates)
    return next((path for path in paths if path.is_file()), None)


def require_file(data_dir: str | Path, source: Source, purpose: str) -> Path:
    """Return the path of a task's file; UserError names what was looked for."""
    path = find_file(data_dir, source)
    if path is None:
        name = source.file if Path(source.file).suffix else source.file + ".tsv/.csv/.jsonl/.json"
        raise UserError(f"{Path(data_dir) / name}: no such file, needed for {purpose}")
    return path


class RowReader:
    """The rows of one file, with the places of its text, label and index columns.

    Iterating yields `Row`s and can be repeated; nothing is kept in memory. Rows that lack a cell
    are left out and counted in `short_rows` - except with `keep_short`, which fills them with
    empty cells, because a test set needs a prediction for every row.

    Args:
        need_label: an error if the label's column is missing; else `label_key` may be None.

    Raises:
        UserError: no such column, an empty file, not UTF-8, an unknown extension.
    """

    def __init__(
        self,
        path: str | Path,
        task: Task,
        source: Source,
        *,
        need_label: bool = True,
        keep_short: bool = False,
    ) -> None:
        self.path = Path(path)
        self.format = FORMATS.get(self.path.suffix.lower(), "")
        if not self.format:
            raise UserError(f"{path}: unknown kind of file; allowed are .tsv, .csv, .jsonl, .json")
        self.short_rows = 0
        self.keep_short = keep_short
        self.has_header = source.header and self.format != "json"
        first = next(self._parsed(), None)
        if first is None:
            raise UserError(f"{path}: the file is empty")
        self.first_line = list(first.cells)  # the header, or the keys of a JSON object
        self._source = source
        self.text_keys = tuple(self._key(column, "--text_columns") for column in task.text)
        self.label_key = self._key(task.label, "--label_column") if need_label else None
        self.index_key = 0 if self.has_header and self.first_line[0] in ("index", "id") else None
        self._width = len(self.first_line) if self.has_header else self._needed_width()

    def __iter__(self) -> Iterator[Row]:
        self.short_rows = 0
        rows = self._parsed()
        if self.has_header:
            next(rows)
        for row in rows:
            if self.format == "json":
                short = any(key not in row.cells for key in self._keys())
            else:
                short = len(row.cells) < self._width
            if not short:
                yield row
                continue
            self.short_rows += 1
            if self.keep_short:
                yield Row(row.line, self._filled(row.cells))

    def texts(self, cells: Cells) -> tuple[str, ...]:
        """Return the texts of a row: one, or two for a pair."""
        return tuple(_as_text(cells[key]) for key in self.text_keys)

    def label(self, cells: Cells) -> str:
        """Return the label of a row as it is spelled in the file."""
        return _as_text(cells[self.label_key]).strip()

    def with_texts(self, cells: Cells, texts: tuple[str, ...]) -> Cells:
        """Return a copy of the row with other texts and every other cell as it was."""
        changed = cells.copy()
        for key, text in zip(self.text_keys, texts, strict=True):
            changed[key] = text
        return changed

    def format_header(self) -> str:
        """Return the header as a line to write, "" where the file has none."""
        return self.format_row(self.first_line) if self.has_header else ""

    def format_row(self, cells: Cells) -> str:
        """Return a row as a line to write, in the file's own format, with its line end."""
        if self.format == "json":
            return json.dumps(cells, ensure_ascii=False) + "\n"
        if self.format == "csv":
            buffer = io.StringIO()
            csv.writer(buffer, lineterminator="\n").writerow(cells)
            return buffer.getvalue()
        if any("\t" in cell or "\n" in cell for cell in cells):
            raise UserError(
                f"{self.path}: a tab or line end inside a cell cannot be written as TSV"
            )
        return "\t".join(cells) + "\n"

    def _keys(self) -> tuple[Key, ...]:
        return self.text_keys if self.label_key is None else (*self.text_keys, self.label_key)

    def _needed_width(self) -> int:
        return 1 + max((key for key in self._keys() if isinstance(key, int)), default=0)

    def _filled(self, cells: Cells) -> Cells:
        if self.format == "json":
            return dict.fromkeys(self._keys(), "") | cells
        return cells + [""] * (self._width - len(cells))

    def _key(self, column: str, flag: str) -> Key:
        """Return where a column is: by its name, by its official place, or by its number."""
        names = self.first_line
        if (self.has_header or self.format == "json") and column in names:
            return column if self.format == "json" else names.index(column)
        place = None
        if column in self._source.columns:
            place = self._source.columns.index(column)
        elif column.lstrip("-").isdigit():
            place = int(column) if int(column) >= 0 else len(names) + int(column)
        if self.format == "json" or place is None or not 0 <= place < len(names):
            listed = (
                ", ".join(map(str, names))
                if self.has_header or self.format == "json"
                else (f"{len(names)} columns without names")
            )
            raise UserError(f"{self.path}: no column {column!r} ({flag}); the file has {listed}")
        return place

    def _parsed(self) -> Iterator[Row]:
        """Yield every row, the header too, without looking at its width."""
        # subtle: newline="\n" (or "" for CSV) keeps odd line separators inside a cell.
        newline = "" if self.format == "csv" else "\n"
        with open(self.path, encoding="utf-8-sig", newline=newline) as file:
            try:
                if self.format == "csv":
                    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
                    reader = csv.reader(file)
                    yield from (Row(reader.line_num, cells) for cells in reader if cells)
                    return
                for line, text in enumerate(file, start=1):
                    if text.rstrip("\r\n"):
                        yield Row(line, self._split(text.rstrip("\r\n"), line))
            except UnicodeDecodeError as error:
                raise UserError(f"{self.path}: not UTF-8 text ({error.reason})") from error

    def _split(self, text: str, line: int) -> Cells:
        if self.format == "tsv":
            return text.split("\t")
        try:
            cells = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{self.path}, line {line}: no JSON ({error.msg})") from error
        if not isinstance(cells, dict):
            raise UserError(f"{self.path}, line {line}: one JSON object a line is needed")
        return cells


def _as_text(value: object) -> str:
    """Return a cell as text. JSON has numbers, true and null: 3 -> "3", true -> "true"."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class LabelReader:
    """Turn the label cells of a task into numbers: an index into the labels, or the score."""

    task: Task
    index: dict[str, int]

    @classmethod
    def of(cls, task: Task) -> LabelReader:
        """Make one for a task whose labels are known."""
        return cls(task, {label: number for number, label in enumerate(task.labels or ())})

    def __call__(self, label: str, path: Path, line: int) -> float:
        """Return the number for a label; UserError says where an unknown one stands."""
        if not self.task.regression:
            if label not in self.index:
                known = ", ".join(list(self.index)[:20])
                raise UserError(f"{path}, line {line}: label {label!r}; the labels are {known}")
            return float(self.index[label])
        try:
            score = float(label)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise UserError(f"{path}, line {line}: {label!r} is not a number to predict")
        return score


def with_labels(task: Task, data_dir: str | Path) -> Task:
    """Return the task with its labels: those of the table or the flags, else found in training.

    Numbers are sorted by value, other labels by spelling.

    Raises:
        UserError: the training file is missing or holds fewer than two labels.
    """
    if task.regression or task.labels:
        return task
    path = require_file(data_dir, task.train, "finding the labels (or give them by --labels)")
    reader = RowReader(path, task, task.train)
    labels = {reader.label(row.cells) for row in reader}
    if len(labels) < 2:
        raise UserError(f"{path}: {len(labels)} label in column {task.label!r}; at least 2 needed")
    try:
        ordered = sorted(labels, key=lambda label: (float(label), label))
    except ValueError:
        ordered = sorted(labels)
    shown = ", ".join(ordered[:20]) + (", ..." if len(ordered) > 20 else "")
    logger.info("%s: %d labels found in %s: %s", task.name, len(ordered), path.name, shown)
    return replace(task, labels=tuple(ordered))
