"""Metrics of a task, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

from transformer.tasks.table import Task

Results = dict[str, float]

LOWER_IS_BETTER = ("mse", "eval_loss")

# ---------------------------------------------------------------------------------- the metrics


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of predictions that are right."""
    return float(np.mean(predictions == labels))


def f1_scores(predictions: np.ndarray, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Return the F1 of every class, (C,); NaN for a class that neither array holds."""
    right = np.bincount(labels[predictions == labels], minlength=num_labels)
    total = np.bincount(labels, minlength=num_labels) + np.bincount(
        predictions, minlength=num_labels
    )
    return np.divide(2 * right, total, out=np.full(num_labels, np.nan), where=total > 0)


def matthews(predictions: np.ndarray, labels: np.ndarray, num_labels: int) -> float:
    """Return the Matthews correlation (for C classes, R_K); 0 where either array is constant."""
    true = np.bincount(labels, minlength=num_labels).astype(float)
    guessed = np.bincount(predictions, minlength=num_labels).astype(float)
    count, right = float(len(labels)), float(np.sum(predictions == labels))
    spread = math.sqrt((count**2 - guessed @ guessed) * (count**2 - true @ true))
    return (right * count - true @ guessed) / spread if spread else 0.0


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Pearson's correlation; NaN where either array is constant."""
    x = predictions.astype(float) - predictions.mean(dtype=float)
    y = labels.astype(float) - labels.mean(dtype=float)
    spread = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / spread if spread else math.nan


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Spearman's rank correlation, ties sharing their mean rank."""
    return pearson(rankdata(predictions), rankdata(labels))


def _classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], float]]:
    num_labels = logits.shape[1]
    predictions, truth = logits.argmax(1), labels.astype(np.int64)

    def positive_f1() -> float:
        return float(np.nan_to_num(f1_scores(predictions, truth, num_labels)[1]))

    return {
        "acc": lambda: accuracy(predictions, truth),
        "f1": positive_f1,
        "acc_and_f1": lambda: (accuracy(predictions, truth) + positive_f1()) / 2,
        "macro_f1": lambda: float(np.nanmean(f1_scores(predictions, truth, num_labels))),
        "mcc": lambda: matthews(predictions, truth, num_labels),
    }


def _regression(logits: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], float]]:
    scores = logits[:, 0]
    return {
        "pearson": lambda: pearson(scores, labels),
        "spearmanr": lambda: spearman(scores, labels),
        "corr": lambda: (pearson(scores, labels) + spearman(scores, labels)) / 2,
        "mse": lambda: float(np.mean((scores.astype(float) - labels) ** 2)),
    }


def compute_metrics(task: Task, logits: np.ndarray, labels: np.ndarray) -> Results:
    """Return the task's metrics of logits (N, C) against labels (N,).

    F1 is that of the task's second label, `corr` the mean of Pearson and Spearman.
    """
    available = (_regression if task.regression else _classification)(logits, labels)
    return {name: available[name]() for name in task.metrics}


def gold_loss(task: Task, logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean loss against the gold labels: cross-entropy, or squared error."""
    if task.regression:
        return float(np.mean((logits[:, 0].astype(float) - labels) ** 2))
    shifted = logits.astype(float) - logits.max(1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-log_probs[np.arange(len(labels)), labels.astype(np.int64)].mean())


def is_better(score: float, best: float, metric: str) -> bool:
    """Say whether `score` beats `best`. NaN beats nothing, and losses are better when lower."""
    return score < best if metric in LOWER_IS_BETTER else score > best


def worst_score(metric: str) -> float:
    """Return the score that any number beats."""
    return math.inf if metric in LOWER_IS_BETTER else -math.inf


def chance_score(task: Task, labels: np.ndarray) -> float:
    """Return what a constant answer scores in the task's best metric, on these labels (N,)."""
    if task.regression:
        return float(np.var(labels)) if task.best_metric == "mse" else 0.0
    constant = np.zeros((len(labels), task.num_labels))
    scores = []
    for number in range(task.num_labels):
        constant[:] = 0
        constant[:, number] = 1
        scores.append(compute_metrics(task, constant, labels)[task.best_metric])
    return max(scores)


def score(task: Task, logits: np.ndarray, labels: np.ndarray) -> Results:
    """Return the task's metrics and `eval_loss`, the loss against gold labels."""
    return compute_metrics(task, logits, labels) | {"eval_loss": gold_loss(task, logits, labels)}
