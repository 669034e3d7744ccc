"""The kinds of tasks: whatever depends on what a model has to answer, one class a kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from transformer.files import UserError

if TYPE_CHECKING:
    from transformer.tasks.table import Task

LARGEST_SCORE = 3.4028234e38  # of a regression: the largest float32


class Kind:
    """What a task of this kind asks of a text, and all that follows from it.

    Below, N is the number of texts and C that of the classifier's outputs.
    """

    name: str  # as messages say it
    problem_type: str  # as config.json says it
    metrics: tuple[str, ...]  # of a task that is not in the table
    best_metric: str
    allowed_metrics: tuple[str, ...]
    names_labels = True  # the labels are a set of names, given or found in the training file

    def output_names(self, task: Task) -> tuple[str, ...]:
        """Return what the outputs of a classifier stand for, in their order."""
        return task.labels or ()

    def label_reader(self, task: Task) -> Callable[[str], float]:
        """Return a function from the label of a row, as it is spelled, to its number.

        It raises ValueError, with the reason, for what is no label of the task.
        """
        raise NotImplementedError

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Return what logits (N, C) predict, as metrics compare it with the labels: (N,)."""
        raise NotImplementedError

    def truth(self, labels: np.ndarray) -> np.ndarray:
        """Return stored labels (N,) as metrics compare them."""
        raise NotImplementedError

    def loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """Return the mean loss of logits (N, C) against gold labels (N,)."""
        raise NotImplementedError

    def constant_predictions(self, task: Task, labels: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the predictions (N,) of models that give one answer for all."""
        raise NotImplementedError

    def cells(self, task: Task, logits: np.ndarray) -> list[str]:
        """Return what logits (N, C) predict as it is written to a file."""
        raise NotImplementedError

    def config(self, task: Task) -> dict[str, Any]:
        """Return what config.json says about a classifier of the task."""
        names = dict(enumerate(self.output_names(task)))
        return {"id2label": names, "problem_type": self.problem_type}


class Classification(Kind):
    """One of several labels for a text, or for a pair of texts."""

    name = "classification"
    problem_type = "single_label_classification"
    metrics = ("acc", "macro_f1")
    best_metric = "acc"
    allowed_metrics = ("acc", "f1", "acc_and_f1", "macro_f1", "mcc")

    def label_reader(self, task: Task) -> Callable[[str], float]:
        index = {label: float(number) for number, label in enumerate(task.labels or ())}

        def read(label: str) -> float:
            if label not in index:
                raise ValueError(f"label {label!r}; the labels are {', '.join(list(index)[:20])}")
            return index[label]

        return read

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        return logits.argmax(1)

    def truth(self, labels: np.ndarray) -> np.ndarray:
        return labels.astype(np.int64)

    def loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        shifted = logits.astype(float) - logits.max(1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return float(-log_probs[np.arange(len(labels)), self.truth(labels)].mean())

    def constant_predictions(self, task: Task, labels: np.ndarray) -> Iterator[np.ndarray]:
        for number in range(task.num_labels):
            yield np.full(len(labels), number)

    def cells(self, task: Task, logits: np.ndarray) -> list[str]:
        return [task.labels[number] for number in self.predictions(logits)]


class Regression(Kind):
    """One number for a text, or for a pair of texts."""

    name = "regression"
    problem_type = "regression"
    metrics = ("pearson", "spearmanr", "corr")
    best_metric = "corr"
    allowed_metrics = ("pearson", "spearmanr", "corr", "mse")
    names_labels = False

    def output_names(self, task: Task) -> tuple[str, ...]:
        return ("score",)

    def label_reader(self, task: Task) -> Callable[[str], float]:
        return _read_score

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        return logits[:, 0]

    def truth(self, labels: np.ndarray) -> np.ndarray:
        return labels

    def loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        return float(np.mean((logits[:, 0].astype(float) - labels) ** 2))

    def constant_predictions(self, task: Task, labels: np.ndarray) -> Iterator[np.ndarray]:
        # The mean has the smallest squared error; a constant has no correlation with anything.
        yield np.full(len(labels), np.mean(labels, dtype=float))

    def cells(self, task: Task, logits: np.ndarray) -> list[str]:
        """Return the scores, within the task's bounds."""
        scores = logits[:, 0] if task.bounds is None else np.clip(logits[:, 0], *task.bounds)
        return [f"{score:.3f}" for score in scores]


def _read_score(label: str) -> float:
    try:
        score = float(label)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{label!r} is not a number to predict")
    if abs(score) > LARGEST_SCORE:
        raise ValueError(f"{label!r} is too large a number to predict")
    return score


CLASSIFICATION, REGRESSION = Classification(), Regression()


def check_labels_flag(kind: Kind, labels: list[str]) -> None:
    """Raise UserError unless a task of this kind can have the labels that --labels gives."""
    if not kind.names_labels:
        raise UserError(f"--labels: a {kind.name} task has none; leave the flag out")
    if len(set(labels)) < max(2, len(labels)):
        raise UserError(f"--labels: {' '.join(labels)}: give at least two, each once")
