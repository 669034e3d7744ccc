"""A teacher's answers from files: logits or probabilities, a row for each row that is learnt from.

So whatever answers can teach: models of any architecture, ensembles, language models behind an API.
A file is .npy, (N, C) in the order of the task's labels, or a table with one column a label, called
by its name. A table may hold the task's text columns as well, which are then compared.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformer.files import UserError
from transformer.tasks.classifiers import label_order
from transformer.tasks.files import BLANK, RowReader
from transformer.tasks.kinds import CLASSIFICATION, MULTI_LABEL
from transformer.tasks.split import text_hash
from transformer.tasks.table import Source, Task

logger = logging.getLogger(__name__)

SUM_TOLERANCE = 0.02  # of a row of probabilities, which may be rounded to two digits
SMALLEST = float(np.finfo(np.float32).tiny)  # in place of a probability of 0, which has no logit
NUMBERS = ("index", "id")  # columns of a table that are neither labels nor texts


class AnswerFile(NamedTuple):
    """What one file holds: values (N, C) float32, and a hash of each row's texts if it has them."""

    values: np.ndarray
    texts: np.ndarray | None = None


def read_logits(
    paths: Sequence[Path], task: Task, reader: RowReader, *, are_probabilities: bool
) -> np.ndarray:
    """Return the logits of all rows that are learnt from, (N, C) float32.

    Several files are an ensemble: the mean of its logits, or of its probabilities.

    Args:
        reader: of the file that is learnt from. A file of answers has a row for each of its rows
            that is not blank, or for each that is used.

    Raises:
        UserError: another number of rows, other labels or texts, or values that are none.
    """
    used, texts = _used_rows(reader)
    total = np.zeros((int(used.sum()), task.num_labels))
    for path in paths:
        answers = _read(path, task)
        _check_values(path, answers.values, task, are_probabilities)
        total += _aligned(path, answers, used, texts, reader)
    mean = total / len(paths)
    return (_as_logits(mean, task) if are_probabilities else mean).astype(np.float32)


def named_labels(paths: Sequence[Path], task: Task) -> tuple[str, ...]:
    """Return the labels that the columns of the first table are called by; () without a table."""
    table = next((path for path in paths if path.suffix.lower() != ".npy"), None)
    return () if table is None else tuple(_columns(_open(table), task)[0])


# ------------------------------------------------------------------------------ reading


def _read(path: Path, task: Task) -> AnswerFile:
    answers = _read_array(path, task) if path.suffix.lower() == ".npy" else _read_table(path, task)
    unusable = np.flatnonzero(~np.isfinite(answers.values).all(1))
    if len(unusable):
        row = answers.values[unusable[0]]
        raise UserError(f"{path}, row {unusable[0] + 1}: {_shown(row)}: give finite numbers")
    return answers


def _read_array(path: Path, task: Task) -> AnswerFile:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: no .npy array of numbers ({error})") from None
    if not isinstance(values, np.ndarray):
        raise UserError(f"{path}: no .npy array of numbers, but an archive of several; save one")
    if values.ndim == 1 and task.num_labels == 1:
        values = values[:, None]
    if values.dtype.kind not in "fiu" or values.ndim != 2 or values.shape[1] != task.num_labels:
        raise UserError(
            f"{path}: an array {values.shape} of {values.dtype}; needed are numbers, (rows, "
            f"{task.num_labels})"
        )
    if task.labels:
        logger.info("%s: its columns are taken as %s, in this order", path, ", ".join(task.labels))
    return AnswerFile(_narrow(values))


def _narrow(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is then refused
        return np.asarray(values, np.float32)


def _open(path: Path, *columns: str) -> RowReader:
    task = Task("answers", columns, "", Source(path.name), (), ())
    return RowReader(path, task, task.train, need_label=False)


def _columns(reader: RowReader, task: Task) -> tuple[list[str], list[str]]:
    """Return the columns of a table that are labels, and those that are the task's texts."""
    names = [str(name) for name in reader.first_line]
    bare = {name.strip().casefold(): name for name in names}
    texts = [bare.get(text.strip().casefold()) for text in task.text]
    if None in texts or set(texts) & set(task.labels or ()):
        texts = []
    others = [name for name in names if name not in texts]
    return [name for name in others if name.strip().casefold() not in NUMBERS], texts


def _read_table(path: Path, task: Task) -> AnswerFile:
    labels, texts = _columns(_open(path), task)
    try:
        order = label_order([label.strip() for label in labels], task, str(path))
    except UserError:
        wanted = ", ".join(task.kind.output_names(task))
        raise UserError(
            f"{path}: its columns are {', '.join(labels)}; needed is one for each label, called by "
            f"its name: {wanted}"
        ) from None
    reader = _open(path, *(labels[place] for place in order), *texts)
    values, hashes = array("d"), array("Q")
    for row in reader.every_row():
        if row.problem and row.problem != BLANK:
            raise UserError(f"{path}, line {row.line}: a row {row.problem}")
        if not row.problem:
            cells = reader.texts(row.cells)
            values.extend(_number(path, row.line, cell) for cell in cells[: len(order)])
            hashes.append(_hash(cells[len(order) :]))
    numbers = _narrow(np.frombuffer(values).reshape(-1, len(order)))
    return AnswerFile(numbers, np.frombuffer(hashes, np.uint64) if texts else None)


def _number(path: Path, line: int, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise UserError(f"{path}, line {line}: {cell!r} is no number") from None


def _hash(texts: Sequence[str]) -> int:
    return text_hash([" ".join(text.split()) for text in texts])


# ------------------------------------------------------------------------------ checks


def _used_rows(reader: RowReader) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows of a file are learnt from, and a hash of the texts of these."""
    used, texts = array("b"), array("Q")
    for is_used, row in reader.usage():
        used.append(is_used)
        if is_used:
            texts.append(_hash(reader.texts(row.cells)))
    return np.frombuffer(used, np.bool_), np.frombuffer(texts, np.uint64)


def _aligned(
    path: Path, answers: AnswerFile, used: np.ndarray, texts: np.ndarray, reader: RowReader
) -> np.ndarray:
    """Return the values of the rows that are used."""
    rows = np.flatnonzero(used)
    if len(answers.values) == len(rows):
        places = np.arange(len(rows))
    elif len(answers.values) == len(used):
        places = rows
    else:
        count = f"{len(used):,} rows" + (f", {len(rows):,} of them used" if not used.all() else "")
        raise UserError(
            f"{path} holds {len(answers.values):,} answers; {reader.path} has {count}: one for "
            "each, in the same order, is needed"
        )
    if answers.texts is not None:
        other = np.flatnonzero(answers.texts[places] != texts)
        if len(other):
            raise UserError(
                f"{path}, row {places[other[0]] + 1}: the text is not that of the same row of "
                f"{reader.path}; give the answers in the order of its rows"
            )
    return answers.values[places]


def _check_values(path: Path, values: np.ndarray, task: Task, are_probabilities: bool) -> None:
    """Refuse probabilities that are none, and logits that are probabilities."""
    outside = np.flatnonzero(((values < 0) | (values > 1)).any(1))
    uneven = np.flatnonzero(np.abs(values.sum(1) - 1) > SUM_TOLERANCE)
    excluding = task.kind is CLASSIFICATION  # the labels of a text exclude each other
    if not are_probabilities:
        if excluding and len(values) > 1 and not len(outside) and not len(uneven):
            raise UserError(
                f"--teacher_logits {path}: these are probabilities (from 0 to 1, the sum of each "
                "row is 1); give them by --teacher_probabilities"
            )
        return
    if len(outside):
        raise UserError(
            f"{path}, row {outside[0] + 1}: {_shown(values[outside[0]])}: a probability is from 0 "
            "to 1; logits and log-probabilities are given by --teacher_logits"
        )
    if excluding and len(uneven):
        row = values[uneven[0]]
        raise UserError(
            f"{path}, row {uneven[0] + 1}: the probabilities {_shown(row)} have the sum "
            f"{row.sum():.4g} and not 1"
        )


def _shown(row: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in row[:10]) + (", ..." if len(row) > 10 else "")


def _as_logits(probabilities: np.ndarray, task: Task) -> np.ndarray:
    """Return logits whose softmax, or sigmoid, are these probabilities."""
    logits = np.log(np.maximum(probabilities, SMALLEST))
    if task.kind is MULTI_LABEL:
        logits -= np.log(np.maximum(1 - probabilities, SMALLEST))
    return logits
