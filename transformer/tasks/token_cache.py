"""Turn the files of a task into packed token stores: tokenised once, in parallel, and cached.

A store is found again by the content of the file, the vocabulary and the length limit, so the
stages and seeds of an experiment, and all ranks of a run, share one. Memory does not grow with the
number of rows: rows are read, tokenised and written in chunks.
"""

from __future__ import annotations

import logging
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer.files import UserError, atomic_write, file_digest, file_lock
from transformer.runtime.fingerprint import digest_of
from transformer.runtime.parallel import ordered_map
from transformer.runtime.progress import Progress
from transformer.tasks.files import BLANK, LabelReader, RowReader
from transformer.tasks.questions import QuestionInput
from transformer.tasks.sentences import SentenceInput
from transformer.tasks.split import text_hash
from transformer.tasks.table import TRAIN_PART, TRANSFER, Source, Task
from transformer.tokenization import BertTokenizer
from transformer.training.packed import PackedDataset, PackedWriter, remove_leftovers

logger = logging.getLogger(__name__)

CACHE_VERSION = 2  # of what a store holds; a change makes every file be tokenised again

CHUNK_ROWS = 2048

# Below this many rows starting worker processes costs more than they save.
PARALLEL_ROWS = 16384

Texts = tuple[str, ...]


def truncated_lengths(first: int, second: int, limit: int) -> tuple[int, int]:
    """Return the lengths of a pair after taking tokens off the longer one until both fit.

    Of two equally long ones the second gives way, as in BERT. Example: (9, 2, 8) -> (6, 2).
    """
    if first + second <= limit:
        return first, second
    half = limit - limit // 2
    if first <= half:
        return first, limit - first
    if second <= limit // 2:
        return limit - second, second
    return half, limit // 2


def build_input(
    tokenizer: BertTokenizer, pieces: Sequence[list[int]], limit: int
) -> tuple[list[int], int]:
    """Return the ids of [CLS] a [SEP] or [CLS] a [SEP] b [SEP], and how many are in segment 0.

    An empty second text leaves a pair a pair.
    """
    if len(pieces) == 1:
        ids = [tokenizer.cls_id, *pieces[0][: limit - 2], tokenizer.sep_id]
        return ids, len(ids)
    first, second = pieces
    lengths = truncated_lengths(len(first), len(second), limit - 3)
    head = [tokenizer.cls_id, *first[: lengths[0]], tokenizer.sep_id]
    return [*head, *second[: lengths[1]], tokenizer.sep_id], len(head)


class Packed(NamedTuple):
    """Tokenised rows: their ids one after another, one length each, and how many were cut."""

    ids: array  # of int32; an array travels between processes as plain bytes
    lengths: array
    first_lengths: array
    truncated: int


def pack_texts(tokenizer: BertTokenizer, limit: int, texts: list[Texts]) -> Packed:
    """Tokenise some rows."""
    packed = Packed(array("i"), array("i"), array("i"), 0)
    truncated = 0
    columns = [tokenizer.encode_batch(column) for column in zip(*texts, strict=True)]
    for pieces in zip(*columns, strict=True):
        ids, first_length = build_input(tokenizer, pieces, limit)
        packed.ids.extend(ids)
        packed.lengths.append(len(ids))
        packed.first_lengths.append(first_length)
        truncated += len(ids) < sum(map(len, pieces)) + 1 + len(pieces)
    return packed._replace(truncated=truncated)


class Chunk(NamedTuple):
    """Some texts on their way: what travels to the workers, and the columns that wait here."""

    items: list[Any]
    columns: dict[str, np.ndarray]


class RowInput:
    """A file of rows, one text or pair each, as it is tokenised. `SentenceInput` is its sister.

    Args:
        labelled: read labels; without them every row of a test set is kept, filled where needed.
    """

    unit = "rows"

    def __init__(self, path: Path, task: Task, source: Source, *, labelled: bool, errors: str):
        self.task = task
        keep_all = not labelled and source.part != TRANSFER
        self.reader = RowReader(
            *(path, task, source), need_label=labelled, keep_all=keep_all, errors=errors
        )
        width = task.num_labels if task.kind.may_be_unlabelled else 1
        self.columns: dict[str, Any] = {"labels": width if labelled else 0}

    @property
    def facts(self) -> tuple[object, ...]:
        """Return what decides, beside the content of the file, which rows it has."""
        reader = self.reader
        facts = (reader.text_keys, reader.label_key, reader.has_header, reader.keep_all)
        part = (reader.source.part, reader.source.dev_share)
        return (*facts, *part) if reader.source.part else facts

    @property
    def delimiter(self) -> str:
        """Return what separates cells."""
        return self.reader.delimiter

    def hashes(self) -> Iterator[int]:
        """Yield a hash of the text of every row."""
        return (text_hash(self.reader.texts(row.cells)) for row in self.reader)

    def chunks(self, known: set[int] | None) -> Iterator[Chunk]:
        """Yield the rows, flagged unless the hash of their texts is among the `known` ones."""
        reader, read_label = self.reader, LabelReader.of(self.task)
        rows = iter(reader)
        while batch := list(islice(rows, CHUNK_ROWS)):
            texts = [reader.texts(row.cells) for row in batch]
            columns = {}
            if reader.label_key is not None:
                labels = [read_label(reader.label(r.cells), reader.path, r.line) for r in batch]
                columns["labels"] = np.array(labels, np.float32)
            if known is not None:
                flags = [int(text_hash(row_texts) not in known) for row_texts in texts]
                columns["flags"] = np.array(flags, np.uint8)
            yield Chunk(texts, columns)

    def packer(self, tokenizer: BertTokenizer, limit: int) -> Callable[[list[Any]], Packed]:
        """Return the function that tokenises the items of a chunk."""
        return partial(pack_texts, tokenizer, limit)

    def add(self, writer: PackedWriter, chunk: Chunk, packed: Packed) -> None:
        """Write what became of a chunk."""
        writer.add_packed(
            np.frombuffer(packed.ids, np.int32),
            np.frombuffer(packed.lengths, np.int32),
            np.frombuffer(packed.first_lengths, np.int32),
            **chunk.columns,
        )

    def check_left_out(self, allow_short: bool) -> str:
        """Say what was used and what was left out; UserError if that is too much."""
        used = self.reader.check_left_out(allow_short)
        return _filled(self.reader) if self.reader.keep_all else used

    def write_predictions(self, target: Path, dataset: PackedDataset, logits: np.ndarray) -> int:
        """Write what logits predict as the leaderboard wants it; return how many rows there are."""
        reader = self.reader
        indices = [
            str(number) if reader.index_key is None else row.cells[reader.index_key]
            for number, row in enumerate(reader)
        ]
        write_predictions(target, indices, self.task.kind.cells(self.task, logits))
        return len(indices)


def write_predictions(path: Path, indices: Sequence[str], cells: Sequence[str]) -> None:
    """Write a file for the leaderboard: the header "index prediction", then one row an example."""
    with atomic_write(path) as file:
        file.write("index\tprediction\n")
        file.writelines(f"{index}\t{cell}\n" for index, cell in zip(indices, cells, strict=True))


# What a kind of task reads (`Kind.reads`).
INPUTS = {"rows": RowInput, "sentences": SentenceInput, "questions": QuestionInput}

Input = RowInput | SentenceInput | QuestionInput


@dataclass(frozen=True)
class TokenCache:
    """Where tokenised files are kept and how they are made.

    Args:
        directory: of the stores, made when needed.
        max_seq_length: limit in tokens, special ones included.
        workers: processes that tokenise.
        errors: what to do with bytes that are not UTF-8, as in `RowReader`.
        allow_short: go on where a large share of the rows cannot be used.
    """

    directory: Path
    tokenizer: BertTokenizer
    max_seq_length: int
    workers: int = 1
    speak: bool = True
    errors: str = "strict"
    allow_short: bool = False

    def open(
        self,
        path: Path,
        task: Task,
        source: Source,
        *,
        labelled: bool = True,
        is_augmented: bool = False,
        originals: Path | None = None,
    ) -> PackedDataset:
        """Return the tokenised rows of a file, from the cache if they are there.

        Args:
            labelled: read labels; without them every row of a test set is kept, filled where
                needed.
            is_augmented: give each row a flag, 1 where it is augmented: `originals` lacks it.

        Raises:
            UserError: what `RowReader` and `LabelReader` raise, no row at all, or an augmented file
                that holds texts of the dev set.
        """
        kind = INPUTS[task.kind.reads]
        data = kind(path, task, source, labelled=labelled, errors=self.errors)
        known, held_out = None, set()
        if is_augmented:
            known = set()
            if originals is not None:
                options = {"labelled": True, "errors": self.errors}
                known.update(kind(originals, task, task.train, **options).hashes())
                if task.train.part == TRAIN_PART:
                    held_out.update(kind(originals, task, task.dev[0], **options).hashes())
        key = self._fingerprint(path, data, task, known)
        store = self.directory / f"{file_name(task.name)}-{path.stem}-{key}"
        # A store that is there is whole; who only reads needs no permission for its lock.
        if not (store / "meta.json").is_file():
            self.directory.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.directory, _lock_of)
            with file_lock(_lock_of(store), f"tokenising {path}"):
                if not (store / "meta.json").is_file():
                    self._write(path, store, data, known, held_out)
        dataset = PackedDataset.open(store)
        _report(path, task, dataset)
        return dataset

    def _fingerprint(self, path: Path, data: Input, task: Task, known: set[int] | None) -> str:
        """Return a digest of everything that the store depends on."""
        return digest_of(
            CACHE_VERSION,
            file_digest(path),
            known is not None and sorted(known),
            self.tokenizer.fingerprint,
            self.max_seq_length,
            task.labels,
            data.facts,
            (data.delimiter, self.errors, self.allow_short),
        )

    def _write(
        self,
        path: Path,
        store: Path,
        data: Input,
        known: set[int] | None,
        held_out: set[int],
    ) -> None:
        writer = PackedWriter(
            store, len(self.tokenizer.vocab), flags=known is not None, **data.columns
        )
        progress = Progress(
            None, description=f"tokenise {path.name}", unit=data.unit, enabled=self.speak
        )
        truncated = 0
        try:
            with progress:
                for chunk, packed in self._packed(data, data.chunks(known)):
                    if held_out and not held_out.isdisjoint(map(text_hash, chunk.items)):
                        raise UserError(
                            f"{path} holds texts of the dev set; make it again, by "
                            "data_augmentation.py with the --dev_share of this run"
                        )
                    data.add(writer, chunk, packed)
                    truncated += packed.truncated
                    progress.update(len(chunk.items))
            reading = data.check_left_out(self.allow_short)
            if writer.examples == 0:
                raise UserError(f"{path}: no rows to use: {reading}")
            writer.meta |= {
                "content": store.name,
                "max_seq_length": self.max_seq_length,
                "reading": reading,
                "truncated": truncated,
            }
            writer.close()
        except BaseException:
            writer.abort()
            raise

    def _packed(self, data: Input, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, Any]]:
        """Tokenise the chunks, in order: a few here, a long file in worker processes."""
        few = list(islice(chunks, PARALLEL_ROWS // CHUNK_ROWS + 1))
        workers = self.workers if len(few) * CHUNK_ROWS > PARALLEL_ROWS else 1
        waiting: deque[Chunk] = deque()

        def items() -> Iterator[list[Any]]:
            # Labels and flags wait here; only texts travel to the workers.
            for some in (few, chunks):
                for chunk in some:
                    waiting.append(chunk)
                    yield chunk.items

        function = data.packer(self.tokenizer, self.max_seq_length)
        with closing(ordered_map(function, items(), workers)) as packed_chunks:
            for packed in packed_chunks:
                yield waiting.popleft(), packed


def _lock_of(store: Path) -> Path:
    return store.with_name(f".{store.name}.lock")


def file_name(name: str) -> str:
    """Return a task's name without what a file name may not hold."""
    return re.sub(r"[^\w.-]", "_", name)


def _report(path: Path, task: Task, dataset: PackedDataset) -> None:
    """Close the reading of a file: what was used, what was left out and why, class counts."""
    meta = dataset.meta
    notes = [meta["reading"], f"{dataset.tokens / len(dataset):.1f} tokens on average"]
    if meta["truncated"]:
        notes.append(f"{meta['truncated']:,} cut to {meta['max_seq_length']} tokens")
    if meta.get("windows"):
        notes.append(f"{meta['windows']:,} are windows of longer ones")
    if task.labels and (dataset.labels is not None or meta.get("labelled")):
        counts = task.kind.label_counts(task, dataset)
        listed = [f"{label} {count:,}" for label, count in zip(task.labels, counts, strict=True)]
        notes.append("classes: " + ", ".join(listed[:20]) + (", ..." if listed[20:] else ""))
    logger.info("%s: %s", path, "; ".join(notes))


def _filled(reader: RowReader) -> str:
    """Say what was done with the rows of a set to predict, of which none is left out."""
    odd = sum(held.rows for reason, held in reader.left_out.items() if reason != BLANK)
    filled = f"; {odd:,} lack a cell or have too many and are predicted all the same" if odd else ""
    return f"{reader.rows_read:,} rows{filled}"
