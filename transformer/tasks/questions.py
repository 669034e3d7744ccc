"""Questions with the texts that hold their answers: SQuAD 1.1 and 2.0, and JSON lines.

A context longer than a sequence is read in windows that overlap. A window learns where the answer
begins and ends; one that does not hold it, or a question without an answer, learns its first token,
[CLS]. Answers are whole tokens of the original text, spelled as they are there.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer.characters import kinds_of, token_spans
from transformer.files import UserError, atomic_write
from transformer.tasks.answers import NO_PLACE, answers_of
from transformer.tasks.files import judge_left_out
from transformer.tasks.split import text_hash
from transformer.tasks.table import Source, Task
from transformer.tokenization import BasicTokenizer, BertTokenizer
from transformer.training.packed import PackedDataset, PackedWriter

CHUNK_QUESTIONS = 1024

# Beside the longest question, a sequence has room for a context and special tokens of so many.
CONTEXT_ROOM = 16

Spans = tuple[tuple[str, int], ...]  # answers, each with its place in the context


class Question(NamedTuple):
    """A question, its context, and its answers: none where the context holds none."""

    id: str
    question: str
    context: str
    answers: Spans
    line: int = 0  # of a file of JSON lines


class QuestionReader:
    """The questions of one file, in the official JSON of SQuAD or as JSON lines.

    Iterating can be repeated. JSON lines are streamed, and hold "question", "context" and "answers"
    ({"text": [...], "answer_start": [...]}, as Hugging Face has them, or SQuAD's list); the names
    of the first three are the task's columns. What cannot be used is counted in `left_out`.

    Args:
        need_answers: leave out what cannot be learnt or scored: an answer that is not where it
            should be, or, unless the task allows it, no answer. Else every question is yielded.

    Raises:
        UserError: no such file, not JSON, a question without text or context.
    """

    def __init__(
        self, path: Path, task: Task, *, need_answers: bool = True, errors: str = "strict"
    ) -> None:
        self.path, self.task, self.need_answers = path, task, need_answers
        self.questions = 0
        self.left_out: dict[str, int] = {}
        self._errors = {"skip": "ignore"}.get(errors, errors)
        self.is_lines = self._has_lines()

    def __iter__(self) -> Iterator[Question]:
        self.questions, self.left_out = 0, {}
        for found in self._from_lines() if self.is_lines else self._from_articles():
            self.questions += 1
            problem = self._problem(found) if self.need_answers else None
            if problem is None:
                yield found
            else:
                self.left_out[problem] = self.left_out.get(problem, 0) + 1

    def _problem(self, found: Question) -> str | None:
        """Say why a question cannot be used, None if it can."""
        if not found.question.strip():
            return "the question is blank"
        if not found.answers:
            return None if not self.task.always_answered else "no answer"
        for text, start in found.answers:
            if not text.strip():
                return "the answer is blank"
            if found.context[start : start + len(text)] != text:
                return "the answer is not at its answer_start"
        return None

    def check_left_out(self, allow_short: bool) -> str:
        """Say what the last reading used and left out; UserError if that is too much."""
        count = sum(self.left_out.values())
        text = f"{self.questions - count:,} of {self.questions:,} questions used"
        reasons = ", ".join(f"{reason}: {held:,}" for reason, held in self.left_out.items())
        text += f"; left out: {reasons}" if reasons else ""
        judge_left_out(self.path, text, count / max(self.questions, 1), "questions", allow_short)
        return text

    # --------------------------------------------------------------------------- the two formats

    def _has_lines(self) -> bool:
        """Say whether the first line is a whole object that is a question."""
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file")
        with self._open() as file:
            head = file.read(1 << 16)
        line, end, _ = head.partition("\n")
        if not end and len(head) == 1 << 16:  # the official files are one long line
            return '"data"' not in line and '"context"' in line
        try:
            first = json.loads(line)
        except ValueError:
            return False
        return isinstance(first, dict) and "data" not in first

    def _open(self) -> Any:
        return open(self.path, encoding="utf-8-sig", errors=self._errors, newline="\n")

    def _from_articles(self) -> Iterator[Question]:
        try:
            with self._open() as file:
                content = json.load(file)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path}: no JSON of SQuAD ({error})") from None
        try:
            for article in content["data"]:
                for paragraph in article["paragraphs"]:
                    for asked in paragraph["qas"]:
                        yield self._question(
                            asked["id"],
                            asked["question"],
                            paragraph["context"],
                            [] if asked.get("is_impossible") else asked.get("answers") or [],
                        )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path}: not built as SQuAD's files are ({type(error).__name__}: {error}); "
                "wanted: data, paragraphs, context, qas, id, question, answers"
            ) from None

    def _from_lines(self) -> Iterator[Question]:
        names = (*self.task.text, self.task.label)
        try:
            with self._open() as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    try:
                        cells = json.loads(line)
                        lacking = [name for name in names[:2] if not isinstance(cells[name], str)]
                    except (ValueError, KeyError, TypeError, RecursionError):
                        lacking = names[:2]
                    if lacking:
                        raise UserError(
                            f"{self.path}, line {number}: no JSON object with the texts "
                            f"{' and '.join(map(repr, names[:2]))}"
                        )
                    asked, context = (cells[name] for name in names[:2])
                    held = [] if cells.get("is_impossible") else cells.get(names[2]) or []
                    key = str(cells.get("id", number))
                    yield self._question(key, asked, context, held, number)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path}: not UTF-8 text ({error.reason}); convert the file, or give --errors "
                "replace or --errors skip"
            ) from error

    def _question(
        self, key: Any, asked: str, context: str, answers: Any, line: int = 0
    ) -> Question:
        try:
            if isinstance(answers, dict):
                pairs = list(zip(answers["text"], answers["answer_start"], strict=True))
            else:
                pairs = [(answer["text"], answer["answer_start"]) for answer in answers]
            spans = tuple((text + "", start + 0) for text, start in pairs)
        except (KeyError, TypeError, ValueError):
            where = f"line {line}" if line else f"question {key}"
            raise UserError(
                f"{self.path}, {where}: answers {json.dumps(answers)[:80]}; wanted is a list of "
                'objects with "text" and "answer_start" (a number)'
            ) from None
        return Question(str(key), asked + "", context + "", spans, line)


# ------------------------------------------------------------------------------ pieces, windows


class Pieces(NamedTuple):
    """The ids of a text, and of each the (start, end) of the token that it is a piece of."""

    ids: list[int]
    places: list[tuple[int, int]]


def encode_with_places(tokenizer: BertTokenizer, text: str) -> Pieces:
    """Return the ids that `tokenizer.encode` gives, and where in the text they come from."""
    basic = tokenizer.basic_tokenizer
    splits = isinstance(basic, BasicTokenizer) and not basic.never_split
    if splits and basic.tokenize_chinese_chars:
        spans = token_spans(kinds_of(text))
    else:  # nothing of these tokenizers looks across a blank
        spans = token_spans("".join("p" if c.isspace() else "l" for c in text))
        spans = tuple((start, end) for start, end in spans if not text[start:end].isspace())
    found = Pieces([], [])
    words = tokenizer.encode_batch(text[start:end] for start, end in spans)
    for span, ids in zip(spans, words, strict=True):
        found.ids.extend(ids)
        found.places.extend([span] * len(ids))
    return found


def window_starts(length: int, room: int, stride: int) -> list[int]:
    """Return where windows of `room` pieces, 1 or more, begin in a context, `stride` apart.

    >>> window_starts(10, 6, 3)
    [0, 3, 6]
    """
    starts = [0]
    while starts[-1] + room < length:
        starts.append(starts[-1] + min(stride, room))
    return starts


class Reading(NamedTuple):
    """How questions become sequences."""

    max_length: int  # of a sequence, in tokens, special ones included
    doc_stride: int
    max_query_length: int
    with_places: bool  # keep where tokens stand in the context, which answers are read from


class PackedQuestions(NamedTuple):
    """Windows: ids one after another, places likewise, and the others one or two a window."""

    ids: array  # of int32, as the others
    lengths: array
    first_lengths: array
    labels: array  # where the answer begins and ends, two a window
    places: array  # two for each id
    sources: array  # the question that a window is of, counted within the chunk
    truncated: int  # questions that are cut


Item = tuple[str, str, int, int]  # question, context, (start, end) of the answer or NO_PLACE


def pack_questions(
    tokenizer: BertTokenizer, reading: Reading, items: list[Item]
) -> PackedQuestions:
    """Tokenise some questions; a context that several of them share is tokenised once."""
    packed = PackedQuestions(*(array("i") for _ in range(6)), 0)
    contexts: dict[str, Pieces] = {}
    truncated = 0
    for number, (question, context, start, end) in enumerate(items):
        if context not in contexts:
            contexts = {context: encode_with_places(tokenizer, context)}
        pieces = contexts[context]
        asked = tokenizer.encode(question)
        truncated += len(asked) > reading.max_query_length
        head = [tokenizer.cls_id, *asked[: reading.max_query_length], tokenizer.sep_id]
        room = reading.max_length - len(head) - 1
        answer = _pieces_of(pieces.places, start, end)
        for first in window_starts(len(pieces.ids), room, reading.doc_stride):
            part = slice(first, first + room)
            ids = [*head, *pieces.ids[part], tokenizer.sep_id]
            packed.ids.extend(ids)
            packed.lengths.append(len(ids))
            packed.first_lengths.append(len(head))
            packed.sources.append(number)
            packed.labels.extend(_labels(answer, first, len(ids) - len(head) - 1, len(head)))
            if reading.with_places:
                outside = (NO_PLACE, NO_PLACE)
                for place in (*[outside] * len(head), *pieces.places[part], outside):
                    packed.places.extend(place)
    return packed._replace(truncated=truncated)


def _pieces_of(places: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int] | None:
    """Return the first and the last piece of the characters from `start` to `end`, if any."""
    if start < 0:
        return None
    first = bisect_right(places, start, key=itemgetter(1))  # the first that ends behind its start
    last = bisect_left(places, end, key=itemgetter(0)) - 1  # the last that begins before its end
    return (first, last) if first <= last else None


def _labels(answer: tuple[int, int] | None, first: int, count: int, head: int) -> tuple[int, int]:
    """Return the tokens of a window where the answer begins and ends, [CLS] if not all of it."""
    if answer is None or answer[0] < first or answer[1] >= first + count:
        return 0, 0
    return answer[0] - first + head, answer[1] - first + head


class QuestionChunk(NamedTuple):
    """Some questions on their way: what travels to the workers, and the columns that wait here."""

    items: list[Item]
    columns: dict[str, np.ndarray]
    asked: list[tuple[str, str, list[str]]]  # id, context, texts of the answers; if they are kept


class QuestionInput:
    """A file of questions, as `TokenCache` tokenises it; its members are those of `RowInput`.

    The store of a file that is scored or predicted keeps ids, contexts and answers beside the
    tokens, so that answers can be read and compared from the store alone.
    """

    unit = "questions"
    delimiter = ""

    def __init__(self, path: Path, task: Task, source: Source, *, labelled: bool, errors: str):
        self.task = task
        self.reader = QuestionReader(path, task, need_answers=labelled, errors=errors)
        self.is_scored = source in (*task.dev, *task.test)
        self.columns: dict[str, Any] = {
            "labels": 2 if labelled else 0,
            "sources": True,
            "places": self.is_scored,
        }
        self._asked: list[tuple[str, int, list[str]]] = []
        self._contexts: list[str] = []
        self._questions = self._windows = 0

    @property
    def facts(self) -> tuple[object, ...]:
        """Return what decides, beside the content of the file, what its store holds."""
        task = self.task
        reading = (task.doc_stride, task.max_query_length, self.is_scored)
        return (*task.text, task.label, self.reader.need_answers, task.always_answered, *reading)

    def hashes(self) -> Iterator[int]:
        """Yield a hash of every question with its context and answers."""
        return (_question_hash(question) for question in self.reader)

    def chunks(self, known: set[int] | None) -> Iterator[QuestionChunk]:
        """Yield the questions, flagged unless their hash is among the `known` ones."""
        questions = iter(self.reader)
        while batch := list(islice(questions, CHUNK_QUESTIONS)):
            columns = {}
            if known is not None:
                flags = [int(_question_hash(question) not in known) for question in batch]
                columns["flags"] = np.array(flags, np.uint8)
            asked = []
            if self.is_scored:
                asked = [(q.id, q.context, [text for text, _ in q.answers]) for q in batch]
            yield QuestionChunk([_item(question) for question in batch], columns, asked)

    def packer(
        self, tokenizer: BertTokenizer, limit: int
    ) -> Callable[[list[Item]], PackedQuestions]:
        """Return the function that tokenises the items of a chunk.

        Raises:
            UserError: a window would have no room for a context.
        """
        task = self.task
        needed = task.max_query_length + CONTEXT_ROOM
        if limit < needed:
            raise UserError(
                f"--max_seq_length {limit}: questions of up to {task.max_query_length} tokens "
                f"(--max_query_length) and their context need {needed} or more"
            )
        reading = Reading(limit, task.doc_stride, task.max_query_length, self.is_scored)
        return partial(pack_questions, tokenizer, reading)

    def add(self, writer: PackedWriter, chunk: QuestionChunk, packed: PackedQuestions) -> None:
        """Write what became of a chunk."""
        sources = np.array(packed.sources)
        columns = {name: column[sources] for name, column in chunk.columns.items()}
        if self.columns["labels"]:
            columns["labels"] = np.array(packed.labels, np.float32).reshape(-1, 2)
        if self.is_scored:
            columns["places"] = np.frombuffer(packed.places, np.int32).reshape(-1, 2)
        writer.add_packed(
            np.frombuffer(packed.ids, np.int32),
            np.frombuffer(packed.lengths, np.int32),
            np.frombuffer(packed.first_lengths, np.int32),
            sources=sources + self._questions,
            **columns,
        )
        for key, context, answers in chunk.asked:
            if not self._contexts or self._contexts[-1] != context:
                self._contexts.append(context)
            self._asked.append((key, len(self._contexts) - 1, answers))
        self._questions += len(chunk.items)
        self._windows += int((np.bincount(sources)[sources] > 1).sum())
        writer.meta |= {"windows": self._windows}
        if self.is_scored:
            writer.meta |= {"questions": self._asked, "contexts": self._contexts}

    def check_left_out(self, allow_short: bool) -> str:
        """Say what was used and what was left out; UserError if that is too much, or ids repeat."""
        if self.is_scored and len({key for key, _, _ in self._asked}) < len(self._asked):
            seen: set[str] = set()
            twice = next(key for key, _, _ in self._asked if key in seen or seen.add(key))
            raise UserError(f"{self.reader.path}: two questions have the id {twice!r}")
        return self.reader.check_left_out(allow_short)

    def write_predictions(self, target: Path, dataset: PackedDataset, logits: np.ndarray) -> int:
        """Write {id: answer} as the official evaluation reads it; return how many there are.

        Args:
            logits: of all tokens of the store, (M, 2).
        """
        answers = answers_of(dataset, logits, self.task)
        keys = [key for key, _, _ in dataset.meta["questions"]]
        _write_object(target, dict(zip(keys, (answer.text for answer in answers), strict=True)))
        if self.task.always_answered:
            return len(keys)
        odds = {key: answer.no_answer for key, answer in zip(keys, answers, strict=True)}
        _write_object(target.with_name(f"{target.stem}_null_odds.json"), odds)
        return len(keys)


def _write_object(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.write("\n")


def _item(question: Question) -> Item:
    """Return what is tokenised of a question; of several answers the first is learnt."""
    if not question.answers:
        return question.question, question.context, NO_PLACE, NO_PLACE
    text, start = question.answers[0]
    return question.question, question.context, start, start + len(text)


def _question_hash(question: Question) -> int:
    text = json.dumps([question.question, question.context, question.answers])
    return text_hash([text])
