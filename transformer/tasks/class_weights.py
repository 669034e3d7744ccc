"""--class_weights: how much a gold label counts in the loss, where classes are of unequal size."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import math
from pathlib import Path

import numpy as np

from transformer.files import UserError, read_json
from transformer.tasks.table import Task
from transformer.training.packed import PackedDataset

logger = logging.getLogger(__name__)

AUTO = "auto"

Weights = str | dict[str, float]  # AUTO, or the weights of some labels

SHOWN = 20  # labels, where there are more


def class_weights(text: str) -> Weights:
    """Turn a word of the command line into weights: "auto", a JSON file, or "label=weight,...".

    Raises:
        argparse.ArgumentTypeError: it is none of them, or a weight is no number of 0 or more.
    """
    if text == AUTO:
        return text
    try:
        given = read_json(text) if Path(text).is_file() else _inline(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    for label, weight in given.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight < math.inf:
            raise argparse.ArgumentTypeError(
                f"the weight of {label!r} is {json.dumps(weight)}; give a number of 0 or more"
            )
    # In one order, whatever that of the file: --resume compares them.
    return {label: float(given[label]) for label in sorted(given)}


def _inline(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        label, equals, weight = part.strip().rpartition("=")
        if not equals:
            raise UserError(f"{text!r} is neither {AUTO}, nor a file, nor label=weight,...")
        if label in weights:
            raise UserError(f"{label!r} has two weights; give one")
        try:
            weights[label] = float(weight)
        except ValueError:
            raise UserError(f"the weight of {label!r} is {weight!r}, which is no number") from None
    return weights


def check_class_weights(given: Weights | None, task: Task) -> None:
    """Check that labels with a weight are labels of the task, which are known by now.

    Raises:
        UserError: one is not (names the nearest that is), or no label counts.
    """
    if not isinstance(given, dict):
        return
    for label in given:
        if label not in task.labels:
            near = difflib.get_close_matches(label, task.labels, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"--class_weights: {task.name} has no label {label!r}{meant} (its labels are "
                f"{', '.join(task.labels[:SHOWN])})"
            )
    if not any(given.get(label, 1.0) for label in task.labels):
        raise UserError("--class_weights: all are 0, so that nothing would be learnt")


def weight_of_each_class(
    given: Weights | None, task: Task, train_set: PackedDataset, *, on_augmented: bool
) -> np.ndarray | None:
    """Return the weights of the task's labels, (C,) float32; None where all count the same.

    "auto" is N / (C * count): all classes have the same weight together, and the mean over the
    training data is 1 (scikit-learn calls it "balanced"; C are the classes that occur). A label
    without a weight has 1.

    Args:
        on_augmented: the labels of augmented rows are learnt as well.
    """
    if given is None:
        return None
    if given == AUTO:
        counts = _label_counts(task, train_set, on_augmented)
        present = counts > 0
        weights = present * counts.sum() / (max(present.sum(), 1) * np.maximum(counts, 1))
    else:
        weights = np.array([given.get(label, 1.0) for label in task.labels])
    shown = [f"{label} {weight:.4g}" for label, weight in zip(task.labels, weights, strict=True)]
    more = f", and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    logger.info("class weights: %s%s", ", ".join(shown[:SHOWN]), more)
    return weights.astype(np.float32)


def _label_counts(task: Task, train_set: PackedDataset, on_augmented: bool) -> np.ndarray:
    """Return how often each label is learnt: of a text, or of a token that has one."""
    per_token = train_set.tags is not None
    answers = train_set.tags if per_token else train_set.labels
    learnt = answers >= 0
    if train_set.flags is not None and not on_augmented:
        flags = train_set.flags
        learnt &= (np.repeat(flags, np.diff(train_set.offsets)) if per_token else flags) == 0
    return np.bincount(answers[learnt].astype(np.int64), minlength=task.num_labels)
