"""Metrics of a task, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from transformer.tasks.table import Task

Results = dict[str, float]

# scikit-learn and scipy are imported where a metric is computed: loading them takes about a second,
# which neither --help nor a run that measures nothing should wait for.


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of predictions that are right."""
    return float(np.mean(predictions == labels))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the F1 of label 1; 0 if it is neither predicted nor present."""
    from sklearn.metrics import f1_score

    scores = f1_score(labels, predictions, labels=[1], average=None, zero_division=0)
    return float(scores[0])


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean F1 of the labels that are predicted or present."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the Matthews correlation (for C labels, R_K); 0 where either array is constant."""
    from sklearn.metrics import matthews_corrcoef

    constant = len(np.unique(predictions)) < 2 or len(np.unique(labels)) < 2
    return 0.0 if constant else float(matthews_corrcoef(labels, predictions))


def _correlation(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return a correlation of scipy.stats; NaN where either array is constant, or of one row."""
    from scipy import stats

    x, y = predictions.astype(float), labels.astype(float)
    constant = len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
    return math.nan if constant else float(getattr(stats, name)(x, y)[0])


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Pearson's correlation; NaN where either array is constant."""
    return _correlation("pearsonr", predictions, labels)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Spearman's rank correlation, ties sharing their mean rank; NaN as for Pearson's."""
    return _correlation("spearmanr", predictions, labels)


def mean_squared_error(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean squared difference of the predicted numbers from the labels."""
    return float(np.mean((predictions.astype(float) - labels) ** 2))


def _mean(*metrics: Callable[..., float]) -> Callable[..., float]:
    """Return the metric that is the mean of these."""
    return lambda *arrays: sum(metric(*arrays) for metric in metrics) / len(metrics)


# Each function takes predictions (N,) and labels (N,): label numbers, for a regression floats. The
# second entry says whether a higher value is the better one.
METRICS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float], bool]] = {
    "acc": (accuracy, True),
    "f1": (f1, True),
    "acc_and_f1": (_mean(accuracy, f1), True),
    "macro_f1": (macro_f1, True),
    "mcc": (matthews, True),
    "pearson": (pearson, True),
    "spearmanr": (spearman, True),
    "corr": (_mean(pearson, spearman), True),
    "mse": (mean_squared_error, False),
}


def compute_metrics(task: Task, logits: np.ndarray, labels: np.ndarray) -> Results:
    """Return the task's metrics of logits (N, C) against labels (N,).

    F1 is that of the task's second label, `corr` the mean of Pearson and Spearman.
    """
    predictions, truth = task.kind.predictions(logits), task.kind.truth(labels)
    return {name: METRICS[name][0](predictions, truth) for name in task.metrics}


def is_better(score: float, best: float, metric: str) -> bool:
    """Say whether `score` beats `best` in a metric of METRICS; NaN beats nothing."""
    higher_is_better = METRICS[metric][1]
    return score > best if higher_is_better else score < best


def worst_score(metric: str) -> float:
    """Return the score that any number beats."""
    return -math.inf if METRICS[metric][1] else math.inf


def chance_score(task: Task, labels: np.ndarray) -> float:
    """Return what the best constant answer scores in the task's best metric, on these labels."""
    metric, higher_is_better = METRICS[task.best_metric]
    truth = task.kind.truth(labels)
    scores = [metric(guess, truth) for guess in task.kind.constant_predictions(task, labels)]
    # A constant is correlated with nothing.
    scores = [0.0 if math.isnan(score) else score for score in scores]
    return max(scores) if higher_is_better else min(scores)


def score(task: Task, logits: np.ndarray, labels: np.ndarray) -> Results:
    """Return the task's metrics and `eval_loss`, the loss against gold labels."""
    return compute_metrics(task, logits, labels) | {"eval_loss": task.kind.loss(logits, labels)}
