"""What a model finds in contexts: the best span for each question, or that there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformer.tasks.table import Task
from transformer.training.packed import PackedDataset

NO_PLACE = -1  # of a token that is not of the context


class Found(NamedTuple):
    """What a model finds in a context.

    `no_answer` is the score of "there is none" less that of the best span.
    """

    text: str  # of the best span, or "" where "no answer" is chosen
    span: str  # of the best span
    start: int  # its first character
    probability: float  # of its beginning and its end, in its window
    no_answer: float

    def answer_at(self, threshold: float | None) -> str:
        """Return the answer, "" where "no answer" scores higher by more than `threshold`."""
        return "" if threshold is not None and self.no_answer > threshold else self.span


NOTHING = Found("", "", 0, 0.0, 0.0)  # in a context without any token


def answers_of(dataset: PackedDataset, logits: np.ndarray, task: Task) -> list[Found]:
    """Return the best answer to each question of a store.

    Args:
        logits: of all its tokens, (M, 2), from `predict_logits`.
    """
    found = best_answers(
        logits,
        dataset.offsets,
        dataset.places,
        dataset.sources,
        [dataset.meta["contexts"][number] for _, number, _ in dataset.meta["questions"]],
        longest=task.max_answer_length,
    )
    threshold = None if task.always_answered else task.null_threshold
    return [each._replace(text=each.answer_at(threshold)) for each in found]


def best_answers(
    logits: np.ndarray,
    offsets: np.ndarray,
    places: np.ndarray,
    sources: np.ndarray,
    contexts: Sequence[str],
    *,
    longest: int,
) -> list[Found]:
    """Return the best answer to each question, over all windows of its context.

    The score of a span is the sum of the logits of its first and its last token; that of no answer
    is that of [CLS], the lowest of all windows, as in BERT's evaluation.

    Args:
        logits: of all tokens of N windows, (M, 2): of beginning and of ending there.
        offsets: where each window begins among the tokens, (N + 1,).
        places: of the tokens in the context, (M, 2), `NO_PLACE` outside.
        sources: the question that each window is of, (N,), ascending.
        longest: of an answer, in tokens.
    """
    if not contexts:
        return []
    logits = logits.astype(float)
    begin, end = best_spans(logits, offsets, places, longest)
    scores = np.where(begin >= 0, logits[begin, 0] + logits[end, 1], -np.inf)
    inside = np.where(places[:, :1] >= 0, logits, -np.inf)
    totals = np.logaddexp.reduceat(inside, offsets[:-1]).sum(1)
    nothing = logits[offsets[:-1]].sum(1)
    bounds = np.searchsorted(sources, np.arange(len(contexts) + 1))
    answers = []
    for number, context in enumerate(contexts):
        own = slice(bounds[number], bounds[number + 1])
        best = own.start + int(np.argmax(scores[own]))
        if begin[best] < 0:
            answers.append(NOTHING)
            continue
        first, last = int(places[begin[best]][0]), int(places[end[best]][1])
        probability = float(np.exp(scores[best] - totals[best]))
        no_answer = float(nothing[own].min() - scores[best])
        span = context[first:last]
        answers.append(Found(span, span, first, probability, no_answer))
    return answers


def best_spans(
    logits: np.ndarray, offsets: np.ndarray, places: np.ndarray, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last token of the best span of each window, (N,) each.

    Tokens are counted over all windows; -1 where a window has no token of the context. Arguments
    are those of `best_answers`.
    """
    lengths = np.diff(offsets)
    windows = np.repeat(np.arange(len(lengths)), lengths)
    begins, ends = (np.where(places[:, 0] >= 0, logits[:, side], -np.inf) for side in (0, 1))
    best = np.full(len(begins), -np.inf)
    last = np.zeros(len(begins), np.int64)
    for further in range(min(longest, int(lengths.max()))):
        count = len(begins) - further
        scores = begins[:count] + ends[further:]
        scores[windows[:count] != windows[further:]] = -np.inf
        better = np.flatnonzero(scores > best[:count])
        best[better], last[better] = scores[better], better + further
    highest = np.maximum.reduceat(best, offsets[:-1])
    found = np.flatnonzero((best == highest[windows]) & (best > -np.inf))[::-1]
    first = np.full(len(lengths), -1)
    first[windows[found]] = found  # of equals the first, which is written last
    return first, np.where(first >= 0, last[first], -1)
