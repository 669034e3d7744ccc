"""Sentences of words with tags, as named entities come: CoNLL columns, and JSON lines.

A word may be several pieces of the vocabulary. The first carries its tag, the others none. A
sentence longer than a sequence is read in windows that overlap; each word has its tag in the one
where it sees most of its neighbours, and is only context in the others.
"""

from __future__ import annotations

import json
import logging
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer.files import UserError, atomic_write
from transformer.tasks.split import text_hash
from transformer.tasks.table import Source, Task
from transformer.tokenization import BertTokenizer
from transformer.training.packed import PackedDataset, PackedWriter

logger = logging.getLogger(__name__)

JSON_ENDINGS = (".jsonl", ".json")
# What may stand in a line that looks blank.
INVISIBLE = " \t\r\x0b\x0c\xa0\u200b\u2060\ufeff"
DOCUMENT_MARK = "-DOCSTART-"
NO_TAG = -100  # of a piece that no tag is learnt for

CHUNK_SENTENCES = 2048


class Sentence(NamedTuple):
    """Words with their tags; `tags` is None where a file to predict has none."""

    line: int  # of the file, where it begins
    words: list[str]
    tags: list[str] | None


class SentenceReader:
    """The sentences of one file. Iterating can be repeated; nothing is kept in memory.

    In columns, cells are separated by tabs, or by blanks in a file without tabs; a blank line ends
    a sentence. The text column of the task is that of the words, its label column that of the tags.
    A line that begins a document (-DOCSTART-) and comments ("# ..." without the file's columns) are
    counted in `marks`, not read.

    Raises:
        UserError: no such file, an empty one, a line without the columns, not UTF-8.
    """

    def __init__(
        self, path: Path, task: Task, *, need_tags: bool = True, errors: str = "strict"
    ) -> None:
        self.path, self.need_tags = path, need_tags
        self.word_column, self.tag_column = task.text[0], task.label
        self.is_json = path.suffix.lower() in JSON_ENDINGS
        self.labels = task.labels
        self.sentences = self.words = self.marks = 0
        self._errors = {"skip": "ignore"}.get(errors, errors)
        self._tabs = not self.is_json and self._has_tabs()
        self._places: dict[int, tuple[int, int]] = {}
        if not self.is_json:
            self._check_numbers()

    def __iter__(self) -> Iterator[Sentence]:
        self.sentences = self.words = self.marks = 0
        try:
            with open(self.path, encoding="utf-8-sig", errors=self._errors, newline="\n") as file:
                for sentence in self._from_json(file) if self.is_json else self._from_columns(file):
                    self.sentences += 1
                    self.words += len(sentence.words)
                    yield sentence
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path}: not UTF-8 text ({error.reason} at byte {error.start} of a block); "
                "convert the file, or give --errors replace or --errors skip"
            ) from error

    def _check_numbers(self) -> None:
        named = (("--text_columns", self.word_column), ("--label_column", self.tag_column))
        wrong = [f"{flag} {name}" for flag, name in named if not re.fullmatch(r"-?\d{1,3}", name)]
        if wrong:
            raise UserError(
                f"{self.path}: {' and '.join(wrong)}: its columns have no names; give a number (0 "
                "is the first, -1 the last)"
            )

    @property
    def summary(self) -> str:
        """Say what the last reading found."""
        marks = f"; {self.marks:,} document marks and comments" if self.marks else ""
        return f"{self.sentences:,} sentences, {self.words:,} words{marks}"

    # ------------------------------------------------------------------------------ columns

    def _has_tabs(self) -> bool:
        with open(self.path, encoding="utf-8", errors="replace") as file:
            first = next((line for line in file if line.strip() and not line.startswith("# ")), "")
        return "\t" in first

    def _from_columns(self, file: Iterable[str]) -> Iterator[Sentence]:
        words: list[str] = []
        tags: list[str] = []
        begin = 1
        for number, ended in enumerate(file, start=1):
            line = ended.rstrip("\r\n")
            cells = line.split("\t") if self._tabs else line.split()
            is_blank = not line.strip(INVISIBLE)
            if not is_blank and self._is_mark(line, cells):
                self.marks += 1
                continue
            if not is_blank:
                if not words:
                    begin = number
                self._take(cells, number, words, tags)
            elif words:
                yield Sentence(begin, words, tags if self.need_tags else None)
                words, tags = [], []
        if words:
            yield Sentence(begin, words, tags if self.need_tags else None)

    def _is_mark(self, line: str, cells: list[str]) -> bool:
        if cells[0].strip() == DOCUMENT_MARK:
            return True
        # subtle: "#" is a word too, with a tag beside it.
        return line.startswith("# ") and (
            self._tabs and len(cells) == 1 or line.startswith("# id ")
        )

    def _take(self, cells: list[str], number: int, words: list[str], tags: list[str]) -> None:
        """Add the word and the tag of one line."""
        places = self._places.get(len(cells)) or self._find(len(cells), number)
        # A word of blanks alone has a tag as well, so it is read as one that is not known.
        words.append(cells[places[0]])
        if self.need_tags:
            tag = cells[places[1]].strip()
            if not tag:
                raise UserError(f"{self.path}, line {number}: no tag in column {self.tag_column}")
            tags.append(tag)

    def _find(self, count: int, number: int) -> tuple[int, int]:
        """Return where word and tag are in a line of so many cells."""
        places = tuple(
            column if column >= 0 else count + column
            for column in (int(self.word_column), int(self.tag_column))
        )
        needed = places if self.need_tags else places[:1]
        if any(not 0 <= place < count for place in needed) or len(set(needed)) < len(needed):
            columns = f"{count} column{'s' if count > 1 else ''}"
            raise UserError(
                f"{self.path}, line {number}: {columns}; the word is wanted in column "
                f"{self.word_column} (--text_columns) and the tag in column {self.tag_column} "
                "(--label_column), counted from 0, or from -1 for the last"
            )
        self._places[count] = places
        return places

    def format_word(self, word: str, tag: str) -> str:
        """Return the line of a word in the columns of the sentence read last; others hold "_"."""
        count, places = next(reversed(self._places.items()))
        cells = ["_"] * count
        cells[places[0]], cells[places[1]] = word, tag
        return ("\t" if self._tabs else " ").join(cells) + "\n"

    # ------------------------------------------------------------------------------ JSON lines

    def _from_json(self, file: Iterable[str]) -> Iterator[Sentence]:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except ValueError as error:
                raise UserError(f"{self.path}, line {number}: no JSON object ({error})") from None
            if not isinstance(cells, dict):
                raise UserError(f"{self.path}, line {number}: no JSON object")
            words = self._listed(cells, ("tokens", "words", self.word_column), number, "words")
            tags = None
            if self.need_tags:
                names = ("tags", "ner_tags", "labels", self.tag_column)
                tags = [
                    self._tag(tag, number) for tag in self._listed(cells, names, number, "tags")
                ]
                if len(tags) != len(words):
                    raise UserError(
                        f"{self.path}, line {number}: {len(words)} words and {len(tags)} tags"
                    )
            if words:
                yield Sentence(number, list(map(str, words)), tags)

    def _listed(
        self, cells: dict[str, Any], names: Sequence[str], number: int, what: str
    ) -> list[Any]:
        key = next((name for name in reversed(names) if name in cells), None)
        if key is None or not isinstance(cells[key], list):
            raise UserError(
                f"{self.path}, line {number}: no list of {what}; looked for "
                f"{', '.join(map(repr, names[:-1]))} (or name it by --text_columns, --label_column)"
            )
        return cells[key]

    def _tag(self, tag: Any, number: int) -> str:
        if isinstance(tag, str):
            return tag
        if isinstance(tag, int) and self.labels and 0 <= tag < len(self.labels):
            return self.labels[tag]
        raise UserError(
            f"{self.path}, line {number}: the tag {json.dumps(tag)} is no text; give the names of "
            "numbered tags, in their order, by --labels"
        )


def open_sentences(
    path: Path, task: Task, *, need_tags: bool = True, errors: str = "strict"
) -> SentenceReader:
    """Return the reader of a file of the task, after a look at its first sentence.

    Raises:
        UserError: as `SentenceReader`, or there is no sentence.
    """
    reader = SentenceReader(path, task, need_tags=need_tags, errors=errors)
    if next(iter(reader), None) is None:
        raise UserError(f"{path}: the file holds no sentence")
    return reader


# ------------------------------------------------------------------------------ pieces, windows


class Window(NamedTuple):
    """Words of a sentence that one sequence holds, and those of them that it answers for."""

    first: int
    stop: int
    core_first: int
    core_stop: int


def cut_windows(lengths: Sequence[int], limit: int) -> list[Window]:
    """Cut a sentence into windows of at most `limit` pieces; every word is in one core.

    Half of a window is its core; the rest is context, as much before it as behind where there is.

    Args:
        lengths: pieces of each word; none is longer than half of `limit`.
    """
    if sum(lengths) <= limit:
        return [Window(0, len(lengths), 0, len(lengths))]
    windows, core_first = [], 0
    while core_first < len(lengths):
        used, core_stop = lengths[core_first], core_first + 1
        while core_stop < len(lengths) and used + lengths[core_stop] <= max(limit // 2, 1):
            used += lengths[core_stop]
            core_stop += 1
        first, stop, room = core_first, core_stop, (limit - used) // 2
        while first > 0 and lengths[first - 1] <= room:
            first -= 1
            room -= lengths[first]
        used = sum(lengths[first:core_stop])
        while stop < len(lengths) and used + lengths[stop] <= limit:
            used += lengths[stop]
            stop += 1
        windows.append(Window(first, stop, core_first, core_stop))
        core_first = core_stop
    return windows


class PackedSentences(NamedTuple):
    """Windows of sentences: ids and tags one after another, and one number a window."""

    ids: array  # of int32, as the others
    lengths: array
    tags: array  # one for each id; NO_TAG where none is learnt
    sources: array  # the sentence that a window is of, counted within the chunk
    truncated: int  # words that are cut, as no word should be


def pack_sentences(
    tokenizer: BertTokenizer, limit: int, sentences: list[tuple[list[str], list[int]]]
) -> PackedSentences:
    """Tokenise some sentences: words, and the number of the tag of each.

    Args:
        limit: in tokens, special ones included.
    """
    packed = PackedSentences(array("i"), array("i"), array("i"), array("i"), 0)
    room, truncated = limit - 2, 0
    longest = max(room // 2, 1)
    for number, (words, tags) in enumerate(sentences):
        # A word without any piece, such as a lone control character, still has an answer.
        pieces = [piece or [tokenizer.unk_id] for piece in tokenizer.encode_batch(words)]
        truncated += sum(len(piece) > longest for piece in pieces)
        pieces = [piece[:longest] for piece in pieces]
        for window in cut_windows([len(piece) for piece in pieces], room):
            ids, learnt = window_input(tokenizer, window, pieces, tags)
            packed.ids.extend(ids)
            packed.tags.extend(learnt)
            packed.lengths.append(len(ids))
            packed.sources.append(number)
    return packed._replace(truncated=truncated)


def window_input(
    tokenizer: BertTokenizer, window: Window, pieces: Sequence[list[int]], tags: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the ids of [CLS] words [SEP], and what is learnt at each: a tag, or NO_TAG."""
    ids, learnt = [tokenizer.cls_id], [NO_TAG]
    for place in range(window.first, window.stop):
        ids += pieces[place]
        is_own = window.core_first <= place < window.core_stop
        learnt += [tags[place] if is_own else NO_TAG, *[NO_TAG] * (len(pieces[place]) - 1)]
    return [*ids, tokenizer.sep_id], [*learnt, NO_TAG]


class SentenceChunk(NamedTuple):
    """Some sentences on their way: words and numbers of tags, and the columns that wait here."""

    items: list[tuple[list[str], list[int]]]
    columns: dict[str, np.ndarray]


class SentenceInput:
    """A file of sentences, as `TokenCache` tokenises it; its members are those of `RowInput`.

    Args:
        labelled: read tags; without them (a test set) every word counts as having the first one.
    """

    unit = "sentences"
    delimiter = ""

    def __init__(self, path: Path, task: Task, source: Source, *, labelled: bool, errors: str):
        self.task = task
        self.reader = open_sentences(path, task, need_tags=labelled, errors=errors)
        self.index = {tag: number for number, tag in enumerate(task.labels or ())}
        self.columns: dict[str, Any] = {"tags": True, "sources": True}
        self._sentences = self._windows = 0

    @property
    def facts(self) -> tuple[object, ...]:
        """Return what decides, beside the content of the file, what it holds."""
        return (self.reader.word_column, self.reader.tag_column, self.reader.need_tags)

    def hashes(self) -> Iterator[int]:
        """Yield a hash of the words of every sentence."""
        return (text_hash(sentence.words) for sentence in self.reader)

    def chunks(self, known: set[int] | None) -> Iterator[SentenceChunk]:
        """Yield the sentences, flagged unless the hash of their words is among the `known` ones."""
        sentences = iter(self.reader)
        while batch := list(islice(sentences, CHUNK_SENTENCES)):
            items = [(sentence.words, self._numbers(sentence)) for sentence in batch]
            columns = {}
            if known is not None:
                flags = [int(text_hash(words) not in known) for words, _ in items]
                columns["flags"] = np.array(flags, np.uint8)
            yield SentenceChunk(items, columns)

    def _numbers(self, sentence: Sentence) -> list[int]:
        if sentence.tags is None:
            return [0] * len(sentence.words)
        for tag in sentence.tags:
            if tag not in self.index:
                known = ", ".join(list(self.index)[:20])
                raise UserError(
                    f"{self.reader.path}, sentence of line {sentence.line}: tag {tag!r}; the tags "
                    f"are {known}"
                )
        return [self.index[tag] for tag in sentence.tags]

    def packer(
        self, tokenizer: BertTokenizer, limit: int
    ) -> Callable[[list[tuple[list[str], list[int]]]], PackedSentences]:
        """Return the function that tokenises the items of a chunk."""
        return partial(pack_sentences, tokenizer, limit)

    def add(self, writer: PackedWriter, chunk: SentenceChunk, packed: PackedSentences) -> None:
        """Write what became of a chunk."""
        lengths, sources = np.frombuffer(packed.lengths, np.int32), np.array(packed.sources)
        columns = {name: column[sources] for name, column in chunk.columns.items()}
        writer.add_packed(
            np.frombuffer(packed.ids, np.int32),
            *(lengths, lengths),
            tags=np.frombuffer(packed.tags, np.int32),
            sources=sources + self._sentences,
            **columns,
        )
        self._sentences += len(chunk.items)
        self._windows += int((np.bincount(sources)[sources] > 1).sum())
        writer.meta |= {"windows": self._windows, "labelled": self.reader.need_tags}

    def check_left_out(self, allow_short: bool) -> str:
        """Say what the file holds; every sentence is used."""
        return self.reader.summary

    def write_predictions(self, target: Path, dataset: PackedDataset, logits: np.ndarray) -> int:
        """Write every word with its predicted tag; return how many sentences there are."""
        kind = self.task.kind
        tags, _ = kind.compare(self.task, *kind.answers(dataset, logits))
        write_tags(target, self.reader, tags)
        return len(tags)


def with_tags(task: Task, paths: Sequence[Path], errors: str = "strict") -> Task:
    """Return the task with the tags that these files hold, O first, then by type.

    Of each type of entity a model knows both B and I, even where no entity is of two words.

    Raises:
        UserError: there are fewer than two tags.
    """
    counts: Counter[str] = Counter()
    for path in paths:
        for sentence in SentenceReader(path, task, errors=errors):
            counts.update(sentence.tags)
    types = {tag[2:] for tag in counts if re.match("[BI]-", tag)}
    found = {*counts, *(f"{letter}-{name}" for letter in "BI" for name in types)}
    if len(found) < 2:
        raise UserError(f"{paths[0]}: {len(found)} tag in column {task.label!r}; at least 2 needed")
    tags = order_tags(found)
    shown = ", ".join(f"{tag} ({counts[tag]:,})" for tag in tags[:20])
    logger.info("%s: %d tags: %s%s", task.name, len(tags), shown, ", ..." if tags[20:] else "")
    plain = [tag for tag in tags if not re.match("([BIESLU]-.|O$)", tag)]
    if plain and len(plain) >= len(tags) - 1:
        logger.info("tags without B- and I- are no entities: word_acc chooses the best model")
        task = replace(task, metrics=("word_acc",), best_metric="word_acc")
    elif plain:
        logger.warning("WARNING: the tags %s name no entity; scores take them for O", plain)
    return replace(task, labels=tags)


def order_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags in the order that a model has them: O first, then by type, B before I."""
    return tuple(sorted(tags, key=lambda tag: (tag != "O", tag.partition("-")[2], tag)))


def write_tags(path: Path, sentences: Iterable[Sentence], tags: Iterable[Sequence[str]]) -> None:
    """Write sentences as CoNLL columns: word, a tab and its predicted tag; a blank line after each.

    Raises:
        ValueError: there are more sentences than lists of tags, or fewer.
    """
    with atomic_write(path) as file:
        for sentence, predicted in zip(sentences, tags, strict=True):
            for word, tag in zip(sentence.words, predicted, strict=True):
                file.write(f"{word}\t{tag}\n")
            file.write("\n")
