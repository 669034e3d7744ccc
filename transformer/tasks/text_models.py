"""Finished models in use: texts in, answers out.

from transformer import EntityTagger, QuestionAnswerer, TextClassifier

TextClassifier("tinybert_sst2")(["a fine film", ("a premise", "a hypothesis")])
EntityTagger("tinybert_ner")(["Ada Byron was born in London."])
QuestionAnswerer("tinybert_squad")([("Who was born?", "Ada Byron was born in London.")])
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from transformer import modeling
from transformer.checkpoint.directory import Checkpoint
from transformer.distillation.students import freeze_teacher
from transformer.file_utils import cached_path
from transformer.files import UserError
from transformer.packed_linear import pack_linears
from transformer.runtime.ranks import Runtime
from transformer.tasks.answers import NO_PLACE, best_answers
from transformer.tasks.kinds import CLASSIFICATION, MULTI_LABEL, REGRESSION, SPANS, TOKEN_LABELS
from transformer.tasks.metrics import entities
from transformer.tasks.questions import CONTEXT_ROOM, Reading, pack_questions
from transformer.tasks.sentences import cut_windows, window_input
from transformer.tasks.table import TASKS, Task
from transformer.tasks.token_cache import build_input
from transformer.training.batches import pad_rows

Texts = tuple[str, ...]

Input = tuple[list[int], int]  # ids, and how many of them are segment 0

# A text that is split at blanks: a word, with the punctuation before and after it apart.
WORD = re.compile(r"\w(?:\S*\w)?|[^\w\s]")


class TextModel:
    """A finished model with its tokenizer.

    Args:
        path: a directory, a name on the model hub or an address; or a checkpoint that is open.
        max_seq_length: limit in tokens; None: the positions of the model.
        batch_size: sequences that are computed together.

    Raises:
        UserError: the model was made for something else, or cannot be read.
    """

    kind: ClassVar[Any] = CLASSIFICATION  # of the task that the model has learned
    columns: tuple[str, ...] = ()  # names of the members of an answer, in their order

    def __init__(
        self,
        path: str | Path | Checkpoint,
        *,
        max_seq_length: int | None = None,
        batch_size: int = 32,
        runtime: Runtime | None = None,
        cache_dir: str | Path | None = None,
    ):
        is_open = isinstance(path, Checkpoint)
        checkpoint = path if is_open else Checkpoint(cached_path(path, cache_dir))
        self.runtime = runtime or Runtime(torch.device("cpu"))
        self.tokenizer = checkpoint.tokenizer
        model, _ = checkpoint.load(getattr(modeling, self.kind.head), require=self.kind.parts)
        # Packed weights serve on a CPU; both say so themselves where they cannot.
        self.model = pack_linears(freeze_teacher(model, self.runtime))
        positions = model.config.max_position_embeddings
        self.max_seq_length = max_seq_length or positions
        if not 5 <= self.max_seq_length <= positions:
            raise UserError(f"--max_seq_length {self.max_seq_length}: give 5 to {positions}")
        self.batch_size = batch_size
        self.labels = [name for _, name in sorted((model.config.id2label or {}).items())]
        self.truncated = 0  # texts that were longer than the limit, so far

    def __call__(self, texts: Sequence[Any]) -> list[Any]:
        """Return one answer for each text, in their order; its members are the columns."""
        raise NotImplementedError

    def _run(self, inputs: Sequence[Input]) -> list[np.ndarray]:
        """Return the logits of each sequence: (C,), of a model that answers for tokens (T, C)."""
        order = sorted(range(len(inputs)), key=lambda number: len(inputs[number][0]))
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            rows, first_lengths = zip(*(inputs[number] for number in chosen), strict=True)
            width = max(map(len, rows))
            batch = pad_rows(rows, first_lengths, width, self.tokenizer.pad_id)
            batch = batch.to(self.runtime.device)
            with torch.inference_mode(), self.runtime.autocast():
                tensors = batch.input_ids, batch.token_type_ids, batch.attention_mask
                logits = self.model(*tensors, only_logits=True).logits.float().cpu().numpy()
            for number, row, own in zip(chosen, rows, logits, strict=True):
                found[number] = own[: len(row)] if self.model.per_token else own
        return [found[number] for number in range(len(inputs))]


class Label(NamedTuple):
    """What a classifier says of a text."""

    label: str
    probability: float


class Score(NamedTuple):
    """What a regressor says of a text."""

    score: float


class Labels(NamedTuple):
    """What a classifier with several labels a text says: those of a probability over 1/2."""

    labels: list[str]
    probabilities: list[float]


class TextClassifier(TextModel):
    """A classifier of one or several labels a text, or a regressor."""

    def __init__(self, path: str | Path | Checkpoint, **options: Any):
        super().__init__(path, **options)
        problem = self.model.config.problem_type
        self.is_regression = problem == REGRESSION.problem_type
        kinds = {REGRESSION.problem_type: Score, MULTI_LABEL.problem_type: Labels}
        self.columns = kinds.get(problem, Label)._fields

    def __call__(self, texts: Sequence[str | Texts]) -> list[Label | Score | Labels]:
        """Return one answer for each text, or pair of texts, in their order."""
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        return [self._answer(logits) for logits in self.logits(rows)]

    def logits(self, rows: Sequence[Texts]) -> np.ndarray:
        """Return the logits of rows of one or two texts each, (N, C) float32."""
        found = self._run([self._input(row) for row in rows])
        return np.array(found, np.float32).reshape(len(rows), self.model.config.num_labels)

    def _input(self, row: Texts) -> Input:
        pieces = [self.tokenizer.encode(text) for text in row]
        ids, first_length = build_input(self.tokenizer, pieces, self.max_seq_length)
        self.truncated += len(ids) < sum(map(len, pieces)) + 1 + len(pieces)
        return ids, first_length

    def _answer(self, logits: np.ndarray) -> Label | Score | Labels:
        if self.is_regression:
            return Score(float(logits[0]))
        if self.columns == Labels._fields:
            probabilities = 1 / (1 + np.exp(-logits.astype(float)))
            chosen = np.flatnonzero(probabilities > 0.5)
            return Labels([self.labels[n] for n in chosen], probabilities[chosen].tolist())
        shifted = np.exp(logits.astype(float) - logits.max())
        best = int(logits.argmax())
        return Label(self.labels[best], float(shifted[best] / shifted.sum()))


class Entities(NamedTuple):
    """The entities of a text: type, text, first character, the one after its last, probability.

    The probability is that of its tags, mean over its words.
    """

    entities: list[dict[str, Any]]


class EntityTagger(TextModel):
    """A model of named entities, or of other tags of words."""

    kind = TOKEN_LABELS
    columns = Entities._fields

    def __call__(self, texts: Sequence[str | Texts]) -> list[Entities]:
        """Return the entities of each text; a text of any length is read in windows."""
        texts = [text if isinstance(text, str) else text[0] for text in texts]
        spans = [[match.span() for match in WORD.finditer(text)] for text in texts]
        inputs, learnt = [], []
        for text, places in zip(texts, spans, strict=True):
            words = self.tokenizer.encode_batch(text[start:end] for start, end in places)
            room = self.max_seq_length - 2
            pieces = [(ids or [self.tokenizer.unk_id])[: max(room // 2, 1)] for ids in words]
            numbers = range(len(pieces))  # in place of tags: which word a token stands for
            windows = cut_windows([len(ids) for ids in pieces], room) if pieces else []
            own = [window_input(self.tokenizer, window, pieces, numbers) for window in windows]
            inputs += [(ids, len(ids)) for ids, _ in own]
            learnt.append([places for _, places in own])
        found = iter(self._run(inputs))
        answers = []
        for text, places, windows in zip(texts, spans, learnt, strict=True):
            logits = np.zeros((len(places), len(self.labels)), np.float32)
            for numbers in windows:
                own, tokens = next(found), np.array(numbers)
                logits[tokens[tokens >= 0]] = own[tokens >= 0]
            answers.append(Entities(self._entities(text, places, logits)))
        return answers

    def _entities(
        self, text: str, places: list[tuple[int, int]], logits: np.ndarray
    ) -> list[dict[str, Any]]:
        tags = [self.labels[number] for number in logits.argmax(1)]
        exponents = np.exp(logits.astype(float) - logits.max(1, keepdims=True, initial=-np.inf))
        surest = exponents.max(1, initial=0.0) / exponents.sum(1)
        found = []
        for name, first, last in sorted(entities(tags), key=lambda entity: entity[1]):
            start, end = places[first][0], places[last][1]
            part = {"type": name, "text": text[start:end], "start": start, "end": end}
            found.append({**part, "probability": float(surest[first : last + 1].mean())})
        return found


class Answer(NamedTuple):
    """What answers a question: its text, "" for none, how sure it is, its first character."""

    answer: str
    probability: float
    start: int


class QuestionAnswerer(TextModel):
    """A model that finds the answer to a question in a context.

    Args:
        null_threshold: by how much "no answer" must score above the best answer to be the answer;
            None: there always is one.
        task: says how contexts are read in windows, and how long questions and answers may be. A
            question is cut further where a sequence would have no room for a context.
    """

    kind = SPANS
    columns = Answer._fields

    def __init__(
        self,
        path: str | Path | Checkpoint,
        *,
        null_threshold: float | None = None,
        task: Task = TASKS["squad"],
        **options: Any,
    ):
        super().__init__(path, **options)
        self.null_threshold = null_threshold
        self.longest_answer = task.max_answer_length
        limit = self.max_seq_length
        room_for_question = max(limit - CONTEXT_ROOM, (limit - 3) // 2)  # 3: [CLS] and two [SEP]
        longest_question = min(task.max_query_length, room_for_question)
        self.reading = Reading(limit, task.doc_stride, longest_question, with_places=True)

    def __call__(self, texts: Sequence[Texts]) -> list[Answer]:
        """Return the answer to each question and context; a context may have any length."""
        items = [(question, context, NO_PLACE, NO_PLACE) for question, context in texts]
        packed = pack_questions(self.tokenizer, self.reading, items)
        self.truncated += packed.truncated
        offsets = np.cumsum([0, *packed.lengths])
        inputs = [
            (packed.ids[offsets[n] : offsets[n + 1]].tolist(), first)
            for n, first in enumerate(packed.first_lengths)
        ]
        logits = np.concatenate([np.zeros((0, 2), np.float32), *self._run(inputs)])
        found = best_answers(
            logits,
            offsets,
            np.array(packed.places).reshape(-1, 2),
            np.array(packed.sources),
            [context for _, context in texts],
            longest=self.longest_answer,
        )
        return [
            Answer(each.answer_at(self.null_threshold), each.probability, each.start)
            for each in found
        ]


def open_text_model(
    checkpoint: Checkpoint, *, null_threshold: float | None, task: Task, **options: Any
) -> TextModel:
    """Return a model as what its weights say it is.

    Args:
        null_threshold, task: of one that answers questions.

    Raises:
        UserError: as `TextModel`, or a threshold is given to a model of another kind.
    """
    if checkpoint.pipeline == "question-answering":
        questions = {"null_threshold": null_threshold, "task": task}
        return QuestionAnswerer(checkpoint, **questions, **options)
    if null_threshold is not None:
        raise UserError("--null_score_diff_threshold is for models that answer questions")
    is_tagger = checkpoint.pipeline == "token-classification"
    return (EntityTagger if is_tagger else TextClassifier)(checkpoint, **options)
