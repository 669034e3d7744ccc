"""Metrics of a task, and which way is better."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

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


def multi_label_f1(average: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return the F1 of labels that are questions by themselves: "micro" or "macro" over labels."""

    def metric(predictions: np.ndarray, labels: np.ndarray) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predictions, average=average, zero_division=0))

    return metric


def exact_labels(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of texts whose labels are all right."""
    return float(np.mean((predictions == labels).all(1)))


# ------------------------------------------------------------------------------------- entities

# How a tag begins: at the first word of an entity, within, at its last, or both first and last.
# BIO and IOB1 have B and I; IOBES adds E and S, BILOU calls them L and U.
PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}

Tags = Sequence[Sequence[str]]  # of the words of each sentence


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the entities of a sentence: type, first word and last.

    As the evaluation of CoNLL-2000 reads tags, in any of the schemes: an entity goes on where I or
    E follows B or I of the same type, and ends otherwise; whatever tag comes next begins another.

    >>> sorted(entities(["I-PER", "I-PER", "I-LOC", "O", "B-LOC", "B-LOC"]))
    [('LOC', 2, 2), ('LOC', 4, 4), ('LOC', 5, 5), ('PER', 0, 1)]
    """
    found: set[tuple[str, int, int]] = set()
    before, before_type, begin = "O", "", 0
    for place, tag in enumerate([*tags, "O"]):
        letter, _, name = tag.partition("-")
        prefix, name = PREFIXES.get(letter, "O"), name or "_"
        goes_on = before in ("B", "I") and prefix in ("I", "E") and name == before_type
        if not goes_on:
            if before != "O":
                found.add((before_type, begin, place - 1))
            begin = place
        before, before_type = prefix, name
    return found


def entity_scores(predictions: Tags, labels: Tags) -> dict[str, tuple[float, float, float]]:
    """Return precision, recall and F1 of the entities of each type, and of all under ""."""
    right, guessed, there = Counter(), Counter(), Counter()
    for ours, theirs in zip(predictions, labels, strict=True):
        found, wanted = entities(ours), entities(theirs)
        for counts, some in ((right, found & wanted), (guessed, found), (there, wanted)):
            counts.update(name for name, _, _ in some)
            counts[""] += len(some)
    return {
        name: (
            right[name] / max(guessed[name], 1),
            right[name] / max(there[name], 1),
            2 * right[name] / max(guessed[name] + there[name], 1),
        )
        for name in sorted(guessed | there | Counter({"": 1}))
    }


def _entity_score(place: int) -> Callable[[Tags, Tags], float]:
    """Return the metric that is one of precision, recall and F1 of all entities."""
    return lambda predictions, labels: entity_scores(predictions, labels)[""][place]


def word_accuracy(predictions: Tags, labels: Tags) -> float:
    """Return the share of words whose tag is right."""
    pairs = [
        ours == theirs
        for sentence, wanted in zip(predictions, labels, strict=True)
        for ours, theirs in zip(sentence, wanted, strict=True)
    ]
    return sum(pairs) / max(len(pairs), 1)


# ------------------------------------------------------------------------------------- answers

# For each question, what has a member `text`; and the texts of its answers, none if it has none.
FoundAnswers = Sequence[Any]
GoldAnswers = Sequence[Sequence[str]]


def normalise_answer(text: str) -> str:
    """Return an answer as SQuAD compares it: lower case, no punctuation, articles or extra blanks.

    >>> normalise_answer("The U.S. , an  answer")
    'us answer'
    """
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def is_exact(answer: str, wanted: str) -> float:
    """Return 1.0 if two answers are the same as SQuAD compares them, else 0.0."""
    return float(normalise_answer(answer) == normalise_answer(wanted))


def token_f1(answer: str, wanted: str) -> float:
    """Return the F1 of the words of an answer; without any word on one side, whether they agree."""
    ours, theirs = normalise_answer(answer).split(), normalise_answer(wanted).split()
    if not ours or not theirs:
        return float(ours == theirs)
    both = (Counter(ours) & Counter(theirs)).total()
    return 2 * both / (len(ours) + len(theirs))


def best_score(metric: Callable[[str, str], float], answer: str, wanted: Sequence[str]) -> float:
    """Return the score against the gold answer that suits best, or against no answer.

    As the official evaluation of SQuAD 2.0, gold answers of which nothing is left do not count.
    """
    with_words = [each for each in wanted if normalise_answer(each)]
    return max(metric(answer, each) for each in with_words or [""])


def _mean_answer_score(
    metric: Callable[[str, str], float],
) -> Callable[[FoundAnswers, GoldAnswers], float]:
    """Return the metric that is the mean of another over questions."""

    def mean(predictions: FoundAnswers, truth: GoldAnswers) -> float:
        pairs = zip(predictions, truth, strict=True)
        scores = [best_score(metric, found.text, wanted) for found, wanted in pairs]
        return sum(scores) / max(len(scores), 1)

    return mean


def no_answer_scores(predictions: FoundAnswers, truth: GoldAnswers) -> dict[str, float]:
    """Return the scores of questions with and without an answer, and those at the best threshold.

    Args:
        predictions: with members `text`, `span` (the best one, whatever `text` is) and `no_answer`
            (the higher, the less is `span` believed).
    """
    results: dict[str, float] = {}
    pairs = list(zip(predictions, truth, strict=True))
    for name, metric in (("exact_match", is_exact), ("answer_f1", token_f1)):
        for kind, chosen in (
            ("has_answer", [pair for pair in pairs if pair[1]]),
            ("no_answer", [pair for pair in pairs if not pair[1]]),
        ):
            scores = [best_score(metric, found.text, wanted) for found, wanted in chosen]
            if scores:
                results[f"{kind}_{name}"] = sum(scores) / len(scores)
        # Beginning with "no answer" for all, believe one span after the other, the surest first.
        score = best = sum(not wanted for _, wanted in pairs)
        threshold = -math.inf
        for found, wanted in sorted(pairs, key=lambda pair: pair[0].no_answer):
            score += best_score(metric, found.span, wanted) if wanted else -bool(found.span)
            if score > best:
                best, threshold = score, found.no_answer
        results[f"best_{name}"] = best / len(pairs)
        if math.isfinite(threshold):
            results[f"best_{name}_threshold"] = threshold
    return results


# Each function takes predictions and labels as the kind of the task compares them: numbers of
# labels (N,), for a regression floats, for several labels a text 0 and 1 (N, C), for tags the tags
# of each sentence, for questions `FoundAnswers` and `GoldAnswers`. The second entry says whether a
# higher value is the better one.
METRICS: dict[str, tuple[Callable[[Any, Any], float], bool]] = {
    "acc": (accuracy, True),
    "f1": (f1, True),
    "acc_and_f1": (_mean(accuracy, f1), True),
    "macro_f1": (macro_f1, True),
    "mcc": (matthews, True),
    "pearson": (pearson, True),
    "spearmanr": (spearman, True),
    "corr": (_mean(pearson, spearman), True),
    "mse": (mean_squared_error, False),
    "micro_f1": (multi_label_f1("micro"), True),
    "label_macro_f1": (multi_label_f1("macro"), True),
    "exact_labels": (exact_labels, True),
    "entity_precision": (_entity_score(0), True),
    "entity_recall": (_entity_score(1), True),
    "entity_f1": (_entity_score(2), True),
    "word_acc": (word_accuracy, True),
    "exact_match": (_mean_answer_score(is_exact), True),
    "answer_f1": (_mean_answer_score(token_f1), True),
}


def compute_metrics(task: Task, logits: np.ndarray, labels: np.ndarray) -> Results:
    """Return the task's metrics of logits (N, C) against labels (N, ...).

    F1 is that of the task's second label, `corr` the mean of Pearson and Spearman.
    """
    predictions, truth = task.kind.compare(task, logits, labels)
    results = {name: METRICS[name][0](predictions, truth) for name in task.metrics}
    return results | task.kind.details(predictions, truth)


def is_better(score: float, best: float, metric: str) -> bool:
    """Say whether `score` beats `best` in a metric of METRICS or in a loss; NaN beats nothing."""
    higher_is_better = metric in METRICS and METRICS[metric][1]
    return score > best if higher_is_better else score < best


def beats(results: Results, best: Results | None, metric: str) -> bool:
    """Say whether `results` are better than the best so far (None: there are none yet).

    The metric decides, and where it is equal the lower `eval_loss`. NaN beats nothing.
    """
    if best is None or math.isnan(best[metric]):
        return not math.isnan(results[metric])
    if results[metric] == best[metric]:
        return results["eval_loss"] < best["eval_loss"]
    return is_better(results[metric], best[metric], metric)


def chance_score(task: Task, labels: np.ndarray) -> float:
    """Return what the best constant answer scores in the task's best metric, on labels (N, ...).

    NaN for a single row, which a constant may answer as well as anybody.
    """
    if len(labels) < 2:
        return math.nan
    metric, higher_is_better = METRICS[task.best_metric]
    constants = task.kind.constant_logits(task, labels)
    scores = [metric(*task.kind.compare(task, logits, labels)) for logits in constants]
    # A constant is correlated with nothing.
    scores = [0.0 if math.isnan(score) else score for score in scores]
    return max(scores) if higher_is_better else min(scores)


def score(task: Task, logits: np.ndarray, labels: np.ndarray) -> Results:
    """Return the task's metrics and `eval_loss`, of logits (N, C) against gold labels (N, ...)."""
    return compute_metrics(task, logits, labels) | {"eval_loss": task.kind.loss(logits, labels)}
