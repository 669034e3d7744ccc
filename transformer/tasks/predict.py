"""Answer every line of a file of any size, of standard input, or one text.

`task_distill.py --student_model DIR --predict WHAT` needs nothing but the directory of the model;
the models themselves are in `text_models.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from transformer.checkpoint.directory import Checkpoint
from transformer.file_utils import model_path
from transformer.files import UserError, atomic_write
from transformer.runtime.output_dir import RunLock
from transformer.runtime.progress import Progress
from transformer.runtime.ranks import Runtime
from transformer.tasks.files import BLANK, RowReader
from transformer.tasks.kinds import TOKEN_LABELS
from transformer.tasks.questions import QuestionReader
from transformer.tasks.table import TASKS, Source, Task, with_question_flags
from transformer.tasks.text_models import QuestionAnswerer, TextModel, open_text_model

logger = logging.getLogger(__name__)

STDIN = "-"
TABLES = (".tsv", ".csv", ".jsonl", ".json")
CHUNK_ROWS = 4096  # that are sorted by length and answered together, by each rank
# Where no --text_columns are given, the first of these that a table has is its text.
KNOWN_TEXTS = (
    *dict.fromkeys(task.text for task in TASKS.values() if task.kind is not TOKEN_LABELS),
    *(("premise", "hypothesis"), ("text_a", "text_b"), ("text",), ("text_a",), ("review",)),
)

Texts = tuple[str, ...]


def check_predict(args: argparse.Namespace) -> None:
    """Find the mistakes in what --predict and --output name.

    Raises:
        UserError: no such file, an output that is there already, or a number out of its range.
    """
    with_question_flags(TASKS["squad"], args)
    source = Path(args.predict)
    looks_like_file = source.suffix.lower() in (*TABLES, ".txt") or "/" in args.predict
    is_text = args.predict == STDIN or source.is_file() or " " in args.predict
    if looks_like_file and not is_text:
        raise UserError(f"--predict {args.predict}: no such file")
    if not args.predict.strip():
        raise UserError("--predict: the text is empty; give a file, - for standard input or a text")
    if args.output is None:
        return
    if args.output.exists() and not args.overwrite_output:
        raise UserError(f"--output {args.output} exists: --overwrite_output replaces it")
    if args.output.is_dir() or not args.output.absolute().parent.is_dir():
        raise UserError(f"--output {args.output}: give a file in a directory that exists")
    if source.is_file() and args.output.resolve() == source.resolve():
        raise UserError(f"--output {args.output} is the input itself")


class Item(NamedTuple):
    """One line of the input: its texts, None where it is blank, and its cells."""

    texts: Texts | None
    cells: Any


class PlainLines:
    """Lines of text: each is a text of its own."""

    def __init__(self, file: Iterable[str], columns: Texts):
        self._file = file
        self.header = "\t".join(("text", *columns)) + "\n"

    def __iter__(self) -> Iterator[Item]:
        for line in self._file:
            text = line.rstrip("\r\n")
            yield Item((text,) if text.strip() else None, text)

    def line(self, cells: str, answer: Any) -> str:
        """Return the line of the output for one of the input."""
        return "\t".join((cells.replace("\t", " "), *map(_cell, answer))) + "\n"


class Table:
    """Rows of TSV, CSV or JSON lines, with the columns that hold texts."""

    def __init__(self, path: Path, args: argparse.Namespace, columns: Texts):
        source = Source(path.name, header=not args.no_header)
        texts = tuple(args.text_columns or ()) or _find_text_columns(path, source, args.errors)
        task = Task("predictions", texts, "", source, (), ())
        self._reader = RowReader(
            *(path, task, source), need_label=False, keep_all=True, errors=args.errors
        )
        names = [str(name).strip() for name in self._reader.first_line]
        self._columns = [f"predicted_{c}" if c in names else c for c in columns]
        self.header = ""
        if self._reader.has_header:
            self.header = self._reader.format_row([*names, *self._columns])

    def __iter__(self) -> Iterator[Item]:
        for row in self._reader.every_row():
            if row.problem == BLANK:
                yield Item(None, None)
            else:
                cells = self._reader.filled(row.cells) if row.problem else row.cells
                yield Item(self._reader.texts(cells), cells)

    def line(self, cells: Any, answer: Any) -> str:
        """Return the line of the output for one of the input."""
        if self._reader.format == "json":
            values = map(_rounded, answer)
            return self._reader.format_row(cells | dict(zip(self._columns, values, strict=True)))
        return self._reader.format_row([*cells, *map(_cell, answer)])


class Questions:
    """Questions in the official JSON of SQuAD, or as JSON lines."""

    header = ""

    def __init__(self, path: Path, args: argparse.Namespace, columns: Texts):
        names = tuple(args.text_columns or TASKS["squad"].text)
        task = replace(TASKS["squad"], text=names)
        self._reader = QuestionReader(path, task, need_answers=False, errors=args.errors)
        self._names = ("id", *names, *columns)

    def __iter__(self) -> Iterator[Item]:
        for asked in self._reader:
            texts = asked.question, asked.context
            yield Item(texts, (asked.id, *texts))

    def line(self, cells: Any, answer: Any) -> str:
        """Return the line of the output for one question."""
        values = (*cells, *map(_rounded, answer))
        return json.dumps(dict(zip(self._names, values, strict=True)), ensure_ascii=False) + "\n"


Lines = PlainLines | Table | Questions


def _rounded(value: Any) -> Any:
    """Return a member of an answer with as many digits as are of use."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _cell(value: Any) -> str:
    """Return a member of an answer as a cell of a table; lists as JSON."""
    value = _rounded(value)
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return " ".join(value.split()) if isinstance(value, str) else str(value)


def _find_text_columns(path: Path, source: Source, errors: str) -> Texts:
    """Return the columns that are named as texts usually are, or the only column.

    Raises:
        UserError: none is.
    """
    first = Task("predictions", (), "", source, (), ())
    reader = RowReader(path, first, source, need_label=False, keep_all=True, errors=errors)
    names = [str(name) for name in reader.first_line]
    if len(names) == 1:
        return ("0",) if reader.format != "json" else (names[0],)
    bare = {name.strip().casefold() for name in names}
    for columns in KNOWN_TEXTS if reader.has_header or reader.format == "json" else ():
        if {column.casefold() for column in columns} <= bare:
            logger.info("%s: the text is in %s", path, " and ".join(map(repr, columns)))
            return columns
    raise UserError(
        f"{path}: which of its columns hold the text? Name one or two by --text_columns; it has "
        + ", ".join(map(repr, names[:20]))
    )


def predict(args: argparse.Namespace, runtime: Runtime) -> None:
    """Answer every line of what --predict names, and write one line for each.

    Raises:
        UserError: the model or the input cannot be read, or another run writes to --output.
    """
    with ExitStack() as stack:
        if args.output is not None:
            runtime.on_main(lambda: _lock_output(args, stack))
        model = open_text_model(
            Checkpoint(model_path("student_model", args)),
            max_seq_length=args.max_seq_length,
            batch_size=args.eval_batch_size,
            runtime=runtime,
            null_threshold=args.null_score_diff_threshold,
            task=with_question_flags(TASKS["squad"], args),
        )
        lines = _open_input(args, model, stack)
        output: IO[str] | None = None
        if runtime.is_main:
            output = sys.stdout
            if args.output is not None:
                output = stack.enter_context(atomic_write(args.output))
        _write_answers(lines, model, output, runtime)
    if model.truncated:
        what = "questions were cut" if isinstance(model, QuestionAnswerer) else "texts were cut"
        logger.warning("%d %s to fit %d tokens", model.truncated, what, model.max_seq_length)


def _lock_output(args: argparse.Namespace, stack: ExitStack) -> None:
    """Hold --output for the length of the run."""
    lock = RunLock(args.output.parent, f"--output {args.output}", args.output.name)
    lock.take()
    stack.callback(lock.release, remove=True)
    check_predict(args)  # another run may have written it meanwhile


def _open_input(args: argparse.Namespace, model: TextModel, stack: ExitStack) -> Lines:
    """Return the lines of what --predict names: standard input, a table, a text file, a text."""
    source, columns = Path(args.predict), model.columns
    if isinstance(model, QuestionAnswerer):
        if source.suffix.lower() not in TABLES:
            raise UserError(
                f"--predict {args.predict}: this model answers questions from contexts; give a "
                ".tsv, .csv, .jsonl or .json file that has both (--text_columns question context)"
            )
        if "json" in source.suffix.lower():
            return Questions(source, args, columns)
    if args.predict == STDIN:
        return PlainLines(sys.stdin, columns)
    if not source.is_file():
        return PlainLines([args.predict], columns)
    if source.suffix.lower() in TABLES:
        return Table(source, args, columns)
    errors = {"skip": "ignore"}.get(args.errors, args.errors)
    file = stack.enter_context(source.open(encoding="utf-8-sig", errors=errors, newline="\n"))
    return PlainLines(file, columns)


def _write_answers(
    lines: Lines, model: TextModel, output: IO[str] | None, runtime: Runtime
) -> None:
    """Answer the lines chunk by chunk; each rank takes a share, and the main rank writes."""
    items, done = iter(lines), 0
    if output is not None:
        output.write(lines.header)
    with Progress(None, description="predict", unit="rows", enabled=runtime.is_main) as progress:
        while chunk := list(islice(items, CHUNK_ROWS * runtime.world_size)):
            texts = [item.texts for item in chunk if item.texts is not None]
            share = texts[runtime.rank :: runtime.world_size]
            parts = runtime.gather_objects(model(share))
            done += len(chunk)
            progress.update(len(chunk))
            if output is None:
                continue
            answers: list[Any] = [None] * len(texts)
            for rank, part in enumerate(parts):
                answers[rank :: runtime.world_size] = part
            following = iter(answers)
            for item in chunk:
                blank = item.texts is None
                output.write("\n" if blank else lines.line(item.cells, next(following)))
            output.flush()
    logger.info("%d lines read, %s", done, "all answered" if done else "nothing to answer")
