"""Read and write the rows of task files: TSV, CSV and JSON lines, every column kept.

TSV has no quoting in either direction (a quote is a character), CSV has the usual one, JSON lines
is one object a line. The extension says which.

The contract: every line of a file is used, or left out under a reason that is counted, or refused
with its number. Nothing is guessed by place where a header names one of the columns, and no column
serves two purposes.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import logging
import math
import os
import re
import sys
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from transformer.files import UserError
from transformer.tasks.kinds import CLASSIFICATION
from transformer.tasks.sentences import with_tags
from transformer.tasks.split import held_out_texts, text_hash
from transformer.tasks.table import DEV_PART, TRAIN_PART, TRANSFER, Source, Task

logger = logging.getLogger(__name__)

FORMATS = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".txt": "tsv",
}
DELIMITERS = (",", ";", "\t")  # of CSV, in the order of preference

# Spellings of "there is no label here"; a task may still name one of them by --labels.
NO_LABEL = frozenset(("", "-", "nan", "null", "na", "n/a"))
# Reasons for leaving a row out, as the closing line of a reading says them.
BLANK, NO_TEXT, WITHOUT_LABEL = "blank", "without text", "without a label"
SHORT, LONG = "with too few cells", "with too many cells"
# Of the rows that are not blank, a share left out above the first is a warning, above the second
# an error, unless --allow_short is given.
WARN_SHARE, ERROR_SHARE = 0.01, 0.2

Key = int | str

Cells = Any  # list[str] of a TSV or CSV row, dict[str, Any] of a JSON line; both take cells[key]


class Row(NamedTuple):
    """One row: its line in the file, counted from 1, its cells, and why it cannot be used."""

    line: int
    cells: Cells
    problem: str = ""


class LeftOut(NamedTuple):
    """How many rows were left out for one reason, and the line of the first."""

    rows: int
    line: int


def find_file(data_dir: str | Path, source: Source, *, suffix: str = "") -> Path | None:
    """Return the path of a task's file, None if it is not there.

    Example: suffix "_aug" turns train.tsv into train_aug.tsv.
    """
    name = Path(data_dir) / source.file
    if name.suffix:
        candidates = [name.with_name(name.stem + suffix + name.suffix)]
    else:
        candidates = [name.with_name(name.name + suffix + ending) for ending in source.endings]
    # A file of another directory may also lie in this one. ".." is taken off by name, so that a
    # task directory that is a link has its sisters beside it.
    candidates = [Path(data_dir) / path.name for path in candidates] + candidates
    paths = (Path(os.path.normpath(path)) for path in candidates)
    return next((path for path in paths if path.is_file()), None)


def require_file(data_dir: str | Path, source: Source, purpose: str) -> Path:
    """Return the path of a task's file; UserError names what was looked for."""
    path = find_file(data_dir, source)
    if path is None:
        name = source.file if Path(source.file).suffix else source.file + "/".join(source.endings)
        raise UserError(f"{Path(data_dir) / name}: no such file, needed for {purpose}")
    return path


class RowReader:
    """The rows of one file, with the places of its text, label and index columns.

    Iterating yields the rows that can be used, and can be repeated; nothing is kept in memory. The
    others are counted in `left_out`, by reason. With `keep_all`, for a set that needs a prediction
    on every line, all rows are yielded, missing cells as empty ones. Of a file that is training and
    dev set in one, the rows of the source's part are yielded and the others counted in
    `other_part`.

    Args:
        need_label: an error if the label's column is missing; else `label_key` is None.
        errors: what to do with bytes that are not UTF-8: strict (an error that names the line),
            replace (put U+FFFD in their place) or skip (drop them).

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
        keep_all: bool = False,
        errors: str = "strict",
    ) -> None:
        self.path = Path(path)
        self.format = FORMATS.get(self.path.suffix.lower(), "")
        if not self.format:
            raise UserError(f"{path}: unknown kind of file; allowed are .tsv, .csv, .jsonl, .json")
        if self.path.suffix.lower() == ".txt" and source.part == TRANSFER:
            self.format = "text"  # a text a line, tabs and all
        self.left_out: dict[str, LeftOut] = {}
        self.rows_read = self.other_part = 0
        self.keep_all = keep_all
        self.task, self.source = task, source
        self._held_out: frozenset[int] | None = None
        self.has_header = source.header and self.format != "json"
        self.errors = errors
        self._known_labels = frozenset(task.labels or ())
        self._kind = task.kind
        _check_first_bytes(self.path)
        wanted = (*task.text, task.label) if need_label else task.text
        self.delimiter = self._find_delimiter(wanted) if self.format == "csv" else "\t"
        first = next((row for row in self._parsed() if row.problem != BLANK), None)
        if first is None:
            raise UserError(f"{path}: the file is empty")
        self.first_line = list(first.cells)  # the header, or the keys of a JSON object
        keys = self._find_keys(wanted, len(task.text), source)
        self.text_keys = keys[: len(task.text)]
        self.label_key = keys[-1] if need_label else None
        self._keys = keys  # of all cells that a row needs
        self.index_key = 0 if self.has_header and self.first_line[0] in ("index", "id") else None
        self._needed = 1 + max((key for key in keys if isinstance(key, int)), default=-1)
        self._width = len(self.first_line) if self.has_header else len(source.columns)
        self._width = self._width or len(self.first_line)

    def __iter__(self) -> Iterator[Row]:
        for row in self.every_row():
            if not row.problem:
                yield row
            elif self.keep_all and (row.problem != BLANK or len(self.first_line) == 1):
                yield Row(row.line, self.filled(row.cells), row.problem)

    def every_row(self) -> Iterator[Row]:
        """Yield all rows, those that cannot be used with their `problem`, and count these."""
        self.other_part = 0
        for row in self._counted_rows():
            if row.problem or self._is_in_part(row):
                yield row
            else:
                self.other_part += 1

    def usage(self) -> Iterator[tuple[bool, Row]]:
        """Yield every row that is not blank, and whether iterating yields it as well."""
        for row in self._counted_rows():
            if row.problem != BLANK:
                yield not row.problem and self._is_in_part(row), row

    def _counted_rows(self) -> Iterator[Row]:
        self.left_out, self.rows_read = {}, 0
        rows = self._parsed()
        if self.has_header:
            next(row for row in rows if row.problem != BLANK)
        for row in rows:
            problem = row.problem or self._problem(row)
            if problem:
                known = self.left_out.get(problem, LeftOut(0, row.line))
                self.left_out[problem] = known._replace(rows=known.rows + 1)
            self.rows_read += problem != BLANK
            yield row._replace(problem=problem)

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
            # subtle: cells with a carriage return are quoted only if it is part of the line end.
            writer = csv.writer(buffer, delimiter=self.delimiter, lineterminator="\r\n")
            writer.writerow(cells)
            return buffer.getvalue().removesuffix("\r\n") + "\n"
        if any("\t" in cell or "\n" in cell for cell in cells):
            raise UserError(
                f"{self.path}: a tab or line end inside a cell cannot be written as TSV"
            )
        return "\t".join(cells) + "\n"

    def check_left_out(self, allow_short: bool) -> str:
        """Return what the last full reading used and left out, as a sentence.

        Raises:
            UserError: more than `ERROR_SHARE` of the rows were left out, and not `allow_short`.
        """
        total = sum(held.rows for reason, held in self.left_out.items() if reason != BLANK)
        share = total / max(self.rows_read, 1)
        reasons = ", ".join(
            f"{held.rows:,} {reason} (line {held.line}{' first' if held.rows > 1 else ''})"
            for reason, held in self.left_out.items()
        )
        used = self.rows_read - total - self.other_part
        sentence = f"{used:,} of {self.rows_read:,} rows used"
        if self.other_part:
            other = DEV_PART if self.source.part == TRAIN_PART else TRAIN_PART
            sentence += f"; {self.other_part:,} are the {other} set (--dev_share)"
        if reasons:
            sentence += f"; left out: {reasons}"
        judge_left_out(self.path, sentence, share, "rows", allow_short)
        return sentence

    # ------------------------------------------------------------------------------ the dev share

    def _is_in_part(self, row: Row) -> bool:
        if self.source.part not in (TRAIN_PART, DEV_PART):
            return True
        if self._held_out is None:
            self._held_out = self._choose_dev_texts()
        held_out = text_hash(self.texts(row.cells)) in self._held_out
        return held_out == (self.source.part == DEV_PART)

    def _choose_dev_texts(self) -> frozenset[int]:
        """Read the whole file and choose the texts of its dev set.

        Raises:
            UserError: there are too few rows for such a share.
        """
        whole = RowReader(self.path, self.task, replace(self.source, part=""), errors=self.errors)
        names_labels, read_score = self.task.kind.names_labels, LabelReader.of(self.task)
        hashes, strata, numbers = array("Q"), array("d"), {}
        for row in whole:
            label = whole.label(row.cells)
            hashes.append(text_hash(whole.texts(row.cells)))
            strata.append(
                numbers.setdefault(label, len(numbers))
                if names_labels
                else read_score(label, self.path, row.line)
            )
        values = np.frombuffer(strata)
        if names_labels:  # numbered by their names, whichever comes first in the file
            values = np.argsort(np.argsort(list(numbers)))[values.astype(np.int64)]
        chosen = held_out_texts(
            np.frombuffer(hashes, np.uint64),
            values,
            self.source.dev_share,
            keep_each=self.task.kind is CLASSIFICATION,
        )
        if not chosen:
            raise UserError(
                f"--dev_share {self.source.dev_share} is no row of the {len(hashes):,} in "
                f"{self.path}; give a larger share"
            )
        return chosen

    # ------------------------------------------------------------------------------ one row

    def _problem(self, row: Row) -> str:
        """Say why a row cannot be used, "" if it can."""
        cells = row.cells
        if self.format == "json":
            if any(key not in cells for key in self._keys):
                return SHORT
            self._check_types(row)
        elif len(cells) < self._needed:
            return SHORT
        elif len(cells) > self._width:
            return LONG
        if not any(text.strip() for text in self.texts(cells)):
            return NO_TEXT
        if self.label_key is None or self._kind.may_be_unlabelled:
            return ""
        label = self.label(cells)
        if label.casefold() in NO_LABEL and label not in self._known_labels:
            return WITHOUT_LABEL
        return ""

    def _check_types(self, row: Row) -> None:
        for key in self._keys:
            is_list = isinstance(row.cells[key], list)
            if is_list and key == self.label_key and self._kind.may_be_unlabelled:
                continue
            if is_list or isinstance(row.cells[key], dict):
                kind = "a list" if is_list else "an object"
                raise UserError(
                    f"{self.path}, line {row.line}: {key!r} is {kind}; a text or number is needed"
                )

    def filled(self, cells: Cells) -> Cells:
        """Return the cells of a row with empty ones in place of those that are missing."""
        if self.format == "json":
            return dict.fromkeys(self.text_keys, "") | cells
        return cells + [""] * (self._width - len(cells))

    # ------------------------------------------------------------------------------ the columns

    def _find_keys(self, wanted: Iterable[str], texts: int, source: Source) -> tuple[Key, ...]:
        """Return where the text columns and the label are.

        Raises:
            UserError: one cannot be found, or one column would serve two purposes.
        """
        columns = tuple(wanted)
        found = [self._by_name(column) for column in columns]
        if self.format != "json" and all(key is None for key in found):
            found = [self._by_place(column, source) for column in columns]
        else:
            found = [
                self._by_number(column) if key is None else key
                for column, key in zip(columns, found, strict=True)
            ]
        flags = ["--text_columns"] * texts + ["--label_column"]
        missing = [
            f"no column {column!r} ({flag}{self._meant(column)})"
            for column, key, flag in zip(columns, found, flags, strict=False)
            if key is None
        ]
        if missing:
            raise UserError(f"{self.path}: {' and '.join(missing)}; the file has {self._listed()}")
        for number, key in enumerate(found):
            if key in found[:number]:
                raise UserError(
                    f"{self.path}: {columns[found.index(key)]!r} and {columns[number]!r} are the "
                    f"same column; name two by --text_columns and --label_column. The file has "
                    f"{self._listed()}"
                )
        return tuple(found)

    def _by_name(self, column: str) -> Key | None:
        """Return the column with a name: as it is spelled, else without regard to case and blanks.

        Raises:
            UserError: two columns have the name.
        """
        if not self.has_header and self.format != "json":
            return None
        names = self.first_line
        same = [place for place, name in enumerate(names) if name == column]
        if not same:
            bare = column.strip().casefold()
            same = [place for place, name in enumerate(names) if name.strip().casefold() == bare]
            if len(same) == 1:
                said = f"{self.path}: column {names[same[0]]!r} is read as {column!r}"
                _say_once(logging.INFO, said)
        if len(same) > 1:
            raise UserError(
                f"{self.path}: {len(same)} columns are called {column!r}; the file has "
                f"{self._listed()}"
            )
        if not same:
            return None
        return names[same[0]] if self.format == "json" else same[0]

    def _by_number(self, column: str) -> int | None:
        if self.format == "json" or not re.fullmatch(r"-?\d{1,9}", column):
            return None
        number = int(column)
        place = number if number >= 0 else len(self.first_line) + number
        return place if 0 <= place < len(self.first_line) else None

    def _by_place(self, column: str, source: Source) -> int | None:
        """Return the official place of a column, in a file that names none of the task's."""
        if column not in source.columns:
            return self._by_number(column)
        place = source.columns.index(column)
        if place >= len(self.first_line):
            return None
        if self.has_header:
            _say_once(
                logging.WARNING,
                f"WARNING: {self.path}: its header names none of the task's columns; "
                f"{self.first_line[place]!r}, the {place + 1}. column, is taken as {column!r}",
            )
        return place

    def _meant(self, column: str) -> str:
        """Return a question after a column that the file has under a similar name, else ""."""
        named = self.has_header or self.format == "json"
        bare = {str(name).strip().casefold(): name for name in self.first_line if named}
        close = difflib.get_close_matches(column.strip().casefold(), bare, n=1, cutoff=0.7)
        return f"; did you mean {bare[close[0]]!r}?" if close else ""

    def _listed(self) -> str:
        """Return the columns for a message, shortened."""
        names = [repr(str(name)[:40]) for name in self.first_line[:20]]
        more = ", ..." if len(self.first_line) > 20 else ""
        if self.has_header or self.format == "json":
            hint = ""
            if self.format == "tsv" and len(names) == 1:
                for other in (each for each in ",;" if each in str(self.first_line[0])):
                    hint = f". Its cells seem to be separated by {other!r}: call it .csv"
            return ", ".join(names) + more + hint
        return f"{len(self.first_line)} columns without names"

    # ------------------------------------------------------------------------------ the lines

    def _find_delimiter(self, wanted: Iterable[str]) -> str:
        """Return what separates the cells of a CSV file: what makes its first line have the
        wanted columns, or else most columns."""
        names = {column.strip().casefold() for column in wanted}
        # Bytes that are no UTF-8 are told when the rows are read, with their line.
        with open(self.path, encoding="utf-8-sig", errors="replace", newline="") as file:
            line = next((text for text in file if text.strip()), "")

        def fit(delimiter: str) -> tuple[int, int]:
            cells = next(csv.reader([line], delimiter=delimiter), [])
            found = names & {cell.strip().casefold() for cell in cells}
            return len(found), len(cells)

        best = max(DELIMITERS, key=fit)  # the first of equals
        if best != ",":
            _say_once(logging.INFO, f"{self.path}: cells are separated by {best!r}")
        return best

    def _opened(self) -> IO[str]:
        # subtle: newline="\n" (or "" for CSV) keeps odd line separators inside a cell.
        newline = "" if self.format == "csv" else "\n"
        errors = {"skip": "ignore"}.get(self.errors, self.errors)
        return open(self.path, encoding="utf-8-sig", errors=errors, newline=newline)

    def _parsed(self) -> Iterator[Row]:
        """Yield every row, the header too; blank lines, unless at the end of the file, as BLANK."""
        blank: list[int] = []
        with self._opened() as file:
            try:
                for row in self._csv_rows(file) if self.format == "csv" else self._line_rows(file):
                    if row.cells is None:
                        blank.append(row.line)
                        continue
                    yield from (Row(line, self._nothing(), BLANK) for line in blank)
                    blank.clear()
                    yield row
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self.path}, line {_undecodable_line(self.path)}: not UTF-8 text; convert "
                    "the file, or give --errors replace or --errors skip"
                ) from error

    def _nothing(self) -> Cells:
        return {} if self.format == "json" else []

    def _csv_rows(self, file: IO[str]) -> Iterator[Row]:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        reader = csv.reader(file, delimiter=self.delimiter, strict=True)
        line = 1
        try:
            for cells in reader:
                yield Row(line, cells or None)
                line = reader.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"{self.path}: the row that begins in line {line} is no CSV ({error}); is a quote "
                "opened there and not closed, or text after a closing quote?"
            ) from error

    def _line_rows(self, file: IO[str]) -> Iterator[Row]:
        for line, ended in enumerate(file, start=1):
            text = ended.rstrip("\r\n")
            if self.format == "text":
                yield Row(line, [text] if text.strip() else None)
            elif self.format == "tsv":
                yield Row(line, text.split("\t") if text else None)
            else:
                yield Row(line, self._json_cells(text, line) if text.strip() else None)

    def _json_cells(self, text: str, line: int) -> dict[str, Any]:
        try:
            cells = json.loads(text)
        except ValueError as error:
            cells, reason = None, getattr(error, "msg", str(error))
        except RecursionError:
            cells, reason = None, "nested too deeply"
        else:
            reason = f"a {type(cells).__name__}"
        if line == 1 and (isinstance(cells, list) or text.strip() == "["):
            raise UserError(
                f"{self.path} is a JSON array; one object a line is needed, as `jq -c '.[]' FILE` "
                "writes them"
            )
        if not isinstance(cells, dict):
            raise UserError(
                f"{self.path}, line {line}: no JSON object ({reason}); one object a line is needed"
            )
        if re.search(r"\\u[dD][89a-fA-F]", text):  # half of a character that was cut in two
            whole = json.dumps(cells, ensure_ascii=False).encode("utf-16", "surrogatepass")
            cells = json.loads(whole.decode("utf-16", "replace"))
        return cells


_said: set[str] = set()


def _say_once(level: int, message: str) -> None:
    """Log what every reader of a file finds: labels, rows and dev share are read one by one."""
    if message not in _said and logger.isEnabledFor(level):
        _said.add(message)
        logger.log(level, "%s", message)


def judge_left_out(path: Path, sentence: str, share: float, unit: str, allow_short: bool) -> None:
    """Warn where more of a file is left out than a little, and stop where it is much.

    Args:
        sentence: what was used and what was left out.
        share: of the file's rows, or whatever `unit` calls them, that was left out.

    Raises:
        UserError: the share is above `ERROR_SHARE`, and not `allow_short`.
    """
    if share > ERROR_SHARE and not allow_short:
        raise UserError(
            f"{path}: {sentence}. That is {share:.0%} of the {unit}; is this the right file, and "
            "are these its columns? --allow_short goes on without them"
        )
    if share > WARN_SHARE:
        logger.warning("WARNING: %s: %.1f%% of the %s are left out", path, 100 * share, unit)


def _check_first_bytes(path: Path) -> None:
    """Refuse what is no table of UTF-8 lines, by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    line = head.partition(b"\n")[0]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in line[:1000]:
        raise UserError(f"{path}: looks like UTF-16; convert it to UTF-8")
    if head[:4] == b"PK\x03\x04" or head[:2] == b"\x1f\x8b":
        raise UserError(f"{path}: is compressed; unpack it first")
    if b"\r" in line.rstrip(b"\r") and b"\n" not in head:
        raise UserError(f"{path}: its lines end in a carriage return alone; end them in line feeds")


def _undecodable_line(path: Path) -> int:
    """Return the number of the first line that is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 0


def _as_text(value: object) -> str:
    """Return a cell as text. JSON has numbers, true and null: 3 -> "3", true -> "true"."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class LabelReader:
    """Turn the label cells of a task into what is learnt: the number of the label, or the score."""

    read: Callable[[str], float]

    @classmethod
    def of(cls, task: Task) -> LabelReader:
        """Make one for a task whose labels are known."""
        return cls(task.kind.label_reader(task))

    def __call__(self, label: str, path: Path, line: int) -> float:
        """Return the number for a label; UserError says where an unknown one stands."""
        try:
            return self.read(label)
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}") from None


# ------------------------------------------------------------------------- labels of own tasks


def with_labels(task: Task, data_dir: str | Path, errors: str = "strict") -> Task:
    """Return the task with its labels: those of the table or the flags, else found in training.

    Numbers are sorted by value, other labels by spelling. Labels that a person may have meant to be
    one are named in a warning.

    Raises:
        UserError: the training file is missing or holds fewer than two labels.
    """
    if task.labels or not task.kind.names_labels:
        return task
    path = require_file(data_dir, task.train, "finding the labels (or give them by --labels)")
    if task.kind.reads == "sentences":
        dev = find_file(data_dir, task.dev[0])
        return with_tags(task, [path] if dev is None else [path, dev], errors)
    reader = RowReader(path, task, replace(task.train, part=""), errors=errors)
    split = task.kind.split
    counts = Counter(label for row in reader for label in split(reader.label(row.cells)))
    if len(counts) < 2:
        left_out = sum(held.rows for held in reader.left_out.values())
        why = f" ({left_out:,} of {reader.rows_read:,} rows cannot be used)" if left_out else ""
        raise UserError(
            f"{path}: {len(counts)} label in column {task.label!r}{why}; at least 2 needed"
        )
    ordered = sorted(counts, key=_label_order)
    shown = ", ".join(f"{label} ({counts[label]:,})" for label in ordered[:20])
    more = f", and {len(ordered) - 20} more" if len(ordered) > 20 else ""
    logger.info("%s: %d labels in %s: %s%s", task.name, len(ordered), path.name, shown, more)
    _warn_of_alike(ordered)
    _hint_at_regression(counts, reader)
    return replace(task, labels=tuple(ordered))


def _label_order(label: str) -> tuple[bool, float, str]:
    """Sort numbers by value and before other labels. Example: 9, 10, no, yes."""
    number = _as_number(label)
    return (True, 0.0, label) if number is None else (False, number, label)


def _as_number(label: str) -> float | None:
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _warn_of_alike(labels: Iterable[str]) -> None:
    """Name labels that differ only by case, blanks, invisible characters or a number's spelling."""
    alike: dict[object, list[str]] = {}
    for label in labels:
        number = _as_number(label)
        shown = "".join(c for c in unicodedata.normalize("NFKC", label) if c.isprintable())
        bare = "".join(shown.split()).casefold()
        alike.setdefault(bare if number is None else number, []).append(label)
    for group in alike.values():
        if len(group) > 1:
            logger.warning(
                "WARNING: the labels %s look alike and are learnt as different classes; make them "
                "one in the data if they are one",
                " and ".join(map(ascii, group)),
            )


def _hint_at_regression(counts: Counter[str], reader: RowReader) -> None:
    numbers = [_as_number(label) for label in counts]
    if None in numbers:
        return
    fractions = sum(number != int(number) for number in numbers)
    if fractions or len(counts) > 50:
        logger.warning(
            "WARNING: %s: its %d labels are all numbers; --regression predicts numbers",
            *(reader.path, len(counts)),
        )
