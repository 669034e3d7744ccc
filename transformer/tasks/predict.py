"""Use a finished model: texts in, labels and probabilities out.

    from transformer import TextClassifier

    classify = TextClassifier("tinybert_sst2")
    classify(["a fine film", ("a premise", "a hypothesis")])

`task_distill.py --student_model DIR --predict WHAT` does the same for a file of any size, standard
input or one sentence, with nothing but the directory of the model.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from transformer.checkpoint.directory import Checkpoint
from transformer.distillation.students import freeze_teacher
from transformer.file_utils import cached_path
from transformer.files import UserError, atomic_write
from transformer.modeling import TinyBertForSequenceClassification
from transformer.packed_linear import pack_linears
from transformer.runtime.progress import Progress
from transformer.runtime.ranks import Runtime
from transformer.tasks.files import BLANK, RowReader
from transformer.tasks.table import TASKS, Source, Task
from transformer.tasks.token_cache import build_input
from transformer.training.batches import pad_rows

logger = logging.getLogger(__name__)

STDIN = "-"
TABLES = (".tsv", ".csv", ".jsonl", ".json")
WINDOW = 4096  # rows that are sorted by length and answered together
# Where no --text_columns are given, the first of these that a table has is its text.
KNOWN_TEXTS = (
    *dict.fromkeys(task.text for task in TASKS.values()),
    *(("premise", "hypothesis"), ("text_a", "text_b"), ("text",), ("text_a",), ("review",)),
)

Texts = tuple[str, ...]


class Answer(NamedTuple):
    """What a model says of a text: a label and its probability, or, for a regression, a score."""

    label: str | None = None
    probability: float | None = None
    score: float | None = None


class TextClassifier:
    """A classifier or regressor with its tokenizer.

    Args:
        path: a directory, a name on the model hub or an address.
        max_seq_length: limit in tokens; None: the positions of the model.
        batch_size: texts that are computed together.

    Raises:
        UserError: the model has no classifier, or cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_seq_length: int | None = None,
        batch_size: int = 32,
        runtime: Runtime | None = None,
        cache_dir: str | Path | None = None,
    ):
        checkpoint = Checkpoint(cached_path(path, cache_dir))
        self.runtime = runtime or Runtime(torch.device("cpu"))
        self.tokenizer = checkpoint.tokenizer
        model, _ = checkpoint.load(
            TinyBertForSequenceClassification, require=("encoder", "pooler", "classifier")
        )
        # Packed weights serve on a CPU; both say so themselves where they cannot.
        self.model = pack_linears(freeze_teacher(model, self.runtime))
        positions = model.config.max_position_embeddings
        self.max_seq_length = max_seq_length or positions
        if not 5 <= self.max_seq_length <= positions:
            raise UserError(f"--max_seq_length {self.max_seq_length}: give 5 to {positions}")
        self.batch_size = batch_size
        self.labels = [name for _, name in sorted((model.config.id2label or {}).items())]
        self.is_regression = model.config.problem_type == "regression"
        self.truncated = 0  # texts that were longer than the limit, so far

    def __call__(self, texts: Sequence[str | Texts]) -> list[Answer]:
        """Return one answer for each text, or pair of texts, in their order."""
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        return [self._answer(logits) for logits in self.logits(rows)]

    def logits(self, rows: Sequence[Texts]) -> np.ndarray:
        """Return the logits of rows of one or two texts each, (N, C) float32."""
        inputs = [self._input(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda number: len(inputs[number][0]))
        logits = np.empty((len(rows), self.model.config.num_labels), np.float32)
        for start in range(0, len(rows), self.batch_size):
            chosen = order[start : start + self.batch_size]
            logits[chosen] = self._batch_logits([inputs[number] for number in chosen])
        return logits

    def _input(self, row: Texts) -> tuple[list[int], int]:
        pieces = [self.tokenizer.encode(text) for text in row]
        ids, first_length = build_input(self.tokenizer, pieces, self.max_seq_length)
        self.truncated += len(ids) < sum(map(len, pieces)) + 1 + len(pieces)
        return ids, first_length

    def _batch_logits(self, inputs: list[tuple[list[int], int]]) -> np.ndarray:
        rows, first_lengths = zip(*inputs, strict=True)
        width = max(map(len, rows))
        batch = pad_rows(rows, first_lengths, width, self.tokenizer.pad_id).to(self.runtime.device)
        with torch.inference_mode(), self.runtime.autocast():
            tensors = batch.input_ids, batch.token_type_ids, batch.attention_mask
            output = self.model(*tensors, only_logits=True)
        return output.logits.float().cpu().numpy()

    def _answer(self, logits: np.ndarray) -> Answer:
        if self.is_regression:
            return Answer(score=float(logits[0]))
        shifted = np.exp(logits.astype(float) - logits.max())
        best = int(logits.argmax())
        return Answer(self.labels[best], probability=float(shifted[best] / shifted.sum()))


# ------------------------------------------------------------------------------ --predict


def check_predict(args: argparse.Namespace) -> None:
    """Find the mistakes in what --predict and --output name.

    Raises:
        UserError: no such file, or an output that is there already.
    """
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

    def line(self, cells: str, answer: Answer) -> str:
        """Return the line of the output for one of the input."""
        return "\t".join((cells.replace("\t", " "), *map(str, _values(answer)))) + "\n"


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

    def line(self, cells: Any, answer: Answer) -> str:
        """Return the line of the output for one of the input."""
        values = _values(answer)
        if self._reader.format == "json":
            return self._reader.format_row(cells | dict(zip(self._columns, values, strict=True)))
        return self._reader.format_row([*cells, *map(str, values)])


def _values(answer: Answer) -> tuple[str | float, ...]:
    """Return what is written of an answer, in the order of the columns."""
    if answer.score is not None:
        return (round(answer.score, 4),)
    return answer.label, round(answer.probability, 6)


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
    """Answer every line of what --predict names, and write one line for each."""
    classify = TextClassifier(
        args.student_model,
        max_seq_length=args.max_seq_length,
        batch_size=args.eval_batch_size,
        runtime=runtime,
        cache_dir=args.cache_dir,
    )
    columns = ("score",) if classify.is_regression else ("label", "probability")
    with ExitStack() as stack:
        lines = _open_input(args, columns, stack)
        output: IO[str] | None = None
        if runtime.is_main:
            output = sys.stdout
            if args.output is not None:
                output = stack.enter_context(atomic_write(args.output))
        _write_answers(lines, classify, output, runtime)
    if classify.truncated:
        logger.warning(
            "%d texts were cut to %d tokens", classify.truncated, classify.max_seq_length
        )


def _open_input(args: argparse.Namespace, columns: Texts, stack: ExitStack) -> PlainLines | Table:
    """Return the lines of what --predict names: standard input, a table, a text file, a text."""
    source = Path(args.predict)
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
    lines: PlainLines | Table, classify: TextClassifier, output: IO[str] | None, runtime: Runtime
) -> None:
    """Answer the lines window by window; each rank takes a share, and the main rank writes."""
    items, done = iter(lines), 0
    if output is not None:
        output.write(lines.header)
    with Progress(None, description="predict", unit="rows", enabled=runtime.is_main) as progress:
        while window := list(islice(items, WINDOW * runtime.world_size)):
            texts = [item.texts for item in window if item.texts is not None]
            share = texts[runtime.rank :: runtime.world_size]
            parts = runtime.gather_objects(classify(share))
            done += len(window)
            progress.update(len(window))
            if output is None:
                continue
            answers = [Answer()] * len(texts)
            for rank, part in enumerate(parts):
                answers[rank :: runtime.world_size] = part
            following = iter(answers)
            for item in window:
                blank = item.texts is None
                output.write("\n" if blank else lines.line(item.cells, next(following)))
            output.flush()
    logger.info("%d lines read, %s", done, "all answered" if done else "nothing to answer")
