"""The kinds of tasks: whatever depends on what a model has to answer, one class a kind."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from transformer.files import UserError

if TYPE_CHECKING:
    from transformer.tasks.class_report import ClassReport
    from transformer.tasks.table import Task
    from transformer.training.packed import PackedDataset

Loss = Callable[..., Any]  # of the student's logits, the teacher's, the batch and the counts

LARGEST_SCORE = 3.4028234e38  # of a regression: the largest float32


class Kind:
    """What a task of this kind asks of a text, and all that follows from it.

    Below, N is the number of texts and C that of the classifier's outputs.
    """

    name: str  # as messages say it
    problem_type: str = ""  # as config.json says it
    metrics: tuple[str, ...]  # of a task that is not in the table
    best_metric: str
    allowed_metrics: tuple[str, ...]
    names_labels = True  # the labels are a set of names, given or found in the training file
    may_be_unlabelled = False  # a row without any label is an answer too
    reads = "rows"  # what its files hold: rows, sentences or questions
    gold = "ce"  # the loss against gold labels: cross-entropy, binary cross-entropy, squared error
    taught_by = ""  # the loss against the teacher's logits; "" leaves it to --prediction_loss
    losses: tuple[str, ...] = ("ce", "kl", "mse")  # that --prediction_loss may name
    head = "TinyBertForSequenceClassification"  # in modeling.py
    parts: tuple[str, ...] = ("encoder", "pooler", "classifier")  # that a trained model has

    def output_names(self, task: Task) -> tuple[str, ...]:
        """Return what the outputs of a classifier stand for, in their order."""
        return task.labels or ()

    def label_reader(self, task: Task) -> Callable[[str], Any]:
        """Return a function from the label of a row, as it is spelled, to its number.

        It raises ValueError, with the reason, for what is no label of the task.
        """
        raise NotImplementedError

    def split(self, cell: str) -> list[str]:
        """Return the names of labels in the label of a row, as it is spelled."""
        return [cell]

    def label_counts(self, task: Task, dataset: PackedDataset) -> np.ndarray:
        """Return how often each label of the task is in a tokenised file, (C,)."""
        return np.bincount(dataset.labels[:].astype(np.int64), minlength=task.num_labels)

    def answers(self, dataset: PackedDataset, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits (N, C) of what is scored, and the labels (N, ...) of the same.

        Args:
            logits: from `predict_logits`.
        """
        return logits, np.asarray(dataset.labels)

    def compare(self, task: Task, logits: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
        """Return what logits (N, C) predict and what is true, as metrics take them."""
        raise NotImplementedError

    def details(self, predictions: Any, truth: Any) -> dict[str, float]:
        """Return results beside the task's metrics, such as those of single labels."""
        return {}

    def class_report(self, task: Task, logits: Any, labels: Any) -> ClassReport | None:
        """Return how well each class is answered, from what `answers` gave; None: no classes."""
        return None

    def loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """Return the mean loss of logits (N, C) against gold labels (N,)."""
        raise NotImplementedError

    def constant_logits(self, task: Task, labels: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the logits (N, C) of models that give one answer for all."""
        for answer in np.eye(task.num_labels):
            yield np.broadcast_to(answer, (len(labels), task.num_labels))

    def cells(self, task: Task, logits: np.ndarray) -> list[str]:
        """Return what logits (N, C) predict as it is written to a file."""
        raise NotImplementedError

    def over_answers(self, loss: Loss) -> Loss:
        """Return a loss of texts (see losses.py) as one of what this kind answers."""
        return loss

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

    def compare(self, task: Task, logits: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
        return logits.argmax(1), labels.astype(np.int64)

    def class_report(self, task: Task, logits: Any, labels: Any) -> ClassReport | None:
        from transformer.tasks.class_report import report_of_classes

        return report_of_classes(task.labels, *self.compare(task, logits, labels))

    def loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        shifted = logits.astype(float) - logits.max(1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return float(-log_probs[np.arange(len(labels)), labels.astype(np.int64)].mean())

    def cells(self, task: Task, logits: np.ndarray) -> list[str]:
        return [task.labels[number] for number in logits.argmax(1)]


class Regression(Kind):
    """One number for a text, or for a pair of texts."""

    name = "regression"
    problem_type = "regression"
    metrics = ("pearson", "spearmanr", "corr")
    best_metric = "corr"
    allowed_metrics = ("pearson", "spearmanr", "corr", "mse")
    names_labels = False
    gold = taught_by = "mse"

    def output_names(self, task: Task) -> tuple[str, ...]:
        return ("score",)

    def label_reader(self, task: Task) -> Callable[[str], float]:
        return _read_score

    def compare(self, task: Task, logits: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
        return logits[:, 0], labels

    def loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        return float(np.mean((logits[:, 0].astype(float) - labels) ** 2))

    def constant_logits(self, task: Task, labels: np.ndarray) -> Iterator[np.ndarray]:
        # The mean has the smallest squared error; a constant has no correlation with anything.
        yield np.full((len(labels), 1), np.mean(labels, dtype=float))

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


class MultiLabel(Kind):
    """Any number of labels for a text, or for a pair of texts; each is a question by itself."""

    name = "multi-label"
    problem_type = "multi_label_classification"
    metrics = ("micro_f1", "label_macro_f1", "exact_labels")
    best_metric = "micro_f1"
    allowed_metrics = metrics
    may_be_unlabelled = True
    gold = taught_by = "bce"

    def split(self, cell: str) -> list[str]:
        """Return the labels in a cell: a JSON list, or names with ",", ";" or "|" between them."""
        if cell.startswith("["):
            return [str(label) for label in json.loads(cell)]
        return [label.strip() for label in re.split("[,;|]", cell) if label.strip()]

    def label_reader(self, task: Task) -> Callable[[str], list[float]]:
        index = {label: number for number, label in enumerate(task.labels or ())}

        def read(cell: str) -> list[float]:
            row = [0.0] * len(index)
            for label in self.split(cell):
                if label not in index:
                    known = ", ".join(list(index)[:20])
                    raise ValueError(f"label {label!r}; the labels are {known}")
                row[index[label]] = 1.0
            return row

        return read

    def label_counts(self, task: Task, dataset: PackedDataset) -> np.ndarray:
        return dataset.labels[:].sum(0).astype(np.int64)

    def compare(self, task: Task, logits: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
        """Return which labels each text has, (N, C) of 0 and 1: those of a probability over 1/2."""
        return (logits > 0).astype(np.int64), labels.astype(np.int64)

    def class_report(self, task: Task, logits: Any, labels: Any) -> ClassReport | None:
        from transformer.tasks.class_report import report_of_label_sets

        return report_of_label_sets(task.labels, *self.compare(task, logits, labels))

    def loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        # log(1 + exp(z)) - y z, which is binary cross-entropy on sigmoid(z).
        return float(np.mean(np.logaddexp(0, logits.astype(float)) - labels * logits))

    def constant_logits(self, task: Task, labels: np.ndarray) -> Iterator[np.ndarray]:
        # Each label for all, and all labels for all.
        for answer in (*np.eye(task.num_labels), np.ones(task.num_labels)):
            yield np.broadcast_to(answer, (len(labels), task.num_labels))

    def cells(self, task: Task, logits: np.ndarray) -> list[str]:
        """Return the labels of each text, as a JSON list."""
        rows = [[task.labels[number] for number in np.flatnonzero(row > 0)] for row in logits]
        return [json.dumps(row, ensure_ascii=False) for row in rows]


class TokenLabels(Kind):
    """A label for each word of a sentence: named entities, or other tags."""

    name = "token-label"
    problem_type = "single_label_classification"  # as Hugging Face's is, of each token
    metrics = ("entity_f1", "entity_precision", "entity_recall", "word_acc")
    best_metric = "entity_f1"
    allowed_metrics = metrics
    reads = "sentences"
    head = "TinyBertForTokenClassification"
    parts = ("encoder", "classifier")

    def label_counts(self, task: Task, dataset: PackedDataset) -> np.ndarray:
        tags = dataset.tags[:]
        return np.bincount(tags[tags >= 0], minlength=task.num_labels)

    def answers(self, dataset: PackedDataset, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits of each word (N, C), and its tag and sentence (N, 2).

        subtle: a word has a tag at one token of one window, and windows come in order; so what is
        left of all tokens is the words in the order of the file.
        """
        tagged = np.flatnonzero(dataset.tags >= 0)
        windows = np.searchsorted(dataset.offsets, tagged, side="right") - 1
        return logits[tagged], np.stack([dataset.tags[tagged], dataset.sources[windows]], 1)

    def compare(self, task: Task, logits: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
        """Return the predicted and the true tags of each sentence, as lists of names."""
        names = np.array(task.labels, dtype=object)
        ends = np.flatnonzero(np.diff(labels[:, 1])) + 1
        return tuple(
            [part.tolist() for part in np.split(names[numbers], ends)]
            for numbers in (logits.argmax(1), labels[:, 0])
        )

    def details(self, predictions: Any, truth: Any) -> dict[str, float]:
        """Return the F1 of each type of entity."""
        from transformer.tasks.metrics import entity_scores

        scores = entity_scores(predictions, truth)
        return {f"entity_f1_{kind}": f1 for kind, (_, _, f1) in scores.items() if kind}

    def class_report(self, task: Task, logits: Any, labels: Any) -> ClassReport | None:
        from transformer.tasks.class_report import report_of_entities

        return report_of_entities(*self.compare(task, logits, labels))

    def loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        return CLASSIFICATION.loss(logits, labels[:, 0])

    def over_answers(self, loss: Loss) -> Loss:
        from transformer.distillation.losses import over_tagged_tokens  # torch: not for --help

        return partial(over_tagged_tokens, loss)


class Spans(Kind):
    """The part of a context that answers a question: where it begins and ends, or nowhere.

    What is scored comes as the logits of all tokens, (M, 2), and the store that they are of.
    """

    name = "question-answering"
    metrics = ("exact_match", "answer_f1")
    best_metric = "answer_f1"
    allowed_metrics = metrics
    names_labels = False
    reads = "questions"
    head = "TinyBertForQuestionAnswering"
    parts = ("encoder", "span")
    losses = ("ce", "kl")

    def output_names(self, task: Task) -> tuple[str, ...]:
        return ("start", "end")

    def answers(self, dataset: PackedDataset, logits: np.ndarray) -> tuple[Any, Any]:
        return logits, dataset

    def compare(self, task: Task, logits: np.ndarray, labels: PackedDataset) -> tuple[Any, Any]:
        """Return what is found for each question, and the texts of its answers."""
        from transformer.tasks.answers import answers_of  # which reads tasks

        return answers_of(labels, logits, task), [held for *_, held in labels.meta["questions"]]

    def details(self, predictions: Any, truth: Any) -> dict[str, float]:
        """Return the scores of questions with and without an answer, and the best threshold."""
        from transformer.tasks.metrics import no_answer_scores

        return no_answer_scores(predictions, truth) if not all(truth) else {}

    def loss(self, logits: np.ndarray, labels: PackedDataset) -> float:
        """Return the cross-entropy of beginning and end, mean over windows and both."""
        starts, lengths = labels.offsets[:-1], np.diff(labels.offsets)
        largest = np.maximum.reduceat(logits, starts)
        shifted = logits.astype(float) - np.repeat(largest, lengths, 0)
        total = np.log(np.add.reduceat(np.exp(shifted), starts))
        places = starts[:, None] + np.asarray(labels.labels, np.int64)
        return float((total - np.take_along_axis(shifted, places, 0)).mean())

    def constant_logits(self, task: Task, labels: PackedDataset) -> Iterator[np.ndarray]:
        """Yield the logits of a model that finds no answer, or the first token if it must."""
        logits = np.zeros((labels.tokens, 2), np.float32)
        logits[labels.offsets[:-1]] = 1
        yield logits

    def over_answers(self, loss: Loss) -> Loss:
        from transformer.distillation.losses import over_span_ends  # torch: not for --help

        return partial(over_span_ends, loss)

    def config(self, task: Task) -> dict[str, Any]:
        return {"id2label": dict(enumerate(self.output_names(task))), "problem_type": None}


CLASSIFICATION, REGRESSION = Classification(), Regression()
MULTI_LABEL, TOKEN_LABELS, SPANS = MultiLabel(), TokenLabels(), Spans()


def check_labels_flag(kind: Kind, labels: list[str]) -> None:
    """Raise UserError unless a task of this kind can have the labels that --labels gives."""
    if not kind.names_labels:
        raise UserError(f"--labels: a {kind.name} task has none; leave the flag out")
    if len(set(labels)) < max(2, len(labels)):
        raise UserError(f"--labels: {' '.join(labels)}: give at least two, each once")
