"""Teachers and students of the task stage: load them, match them, put their labels in order."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import nn

from transformer import modeling
from transformer.checkpoint.directory import Checkpoint
from transformer.configuration import BertConfig
from transformer.files import UserError
from transformer.modeling import TinyBertForPreTraining, TinyBertForSequenceClassification
from transformer.tasks.kinds import CLASSIFICATION, MULTI_LABEL
from transformer.tasks.table import Task

logger = logging.getLogger(__name__)

# ------------------------------------------------------------------------------------ the labels


def label_order(names: Sequence[str], task: Task, whose: str) -> list[int]:
    """Return, for each label of the task, the output of a classifier whose outputs have `names`.

    Names are compared as they are spelled; else without regard to case, blanks, "-" and "_", where
    that leaves them different; and by the task's aliases.
    Outputs called LABEL_0, LABEL_1, ... have no names: they are taken to be in the task's order.

    Raises:
        UserError: another number of labels, or other names; both lists are shown.
    """
    if not task.kind.names_labels:
        if len(names) != task.num_labels:
            raise UserError(
                f"{whose} classifies into {len(names)} labels ({', '.join(names)}); {task.name} is "
                f"a {task.kind.name} task and needs {_outputs(task.num_labels)}"
            )
        return list(range(task.num_labels))
    labels = task.labels or ()
    if _are_unnamed(names, task):
        return list(range(len(labels)))
    for spell in (str, _bare):
        found = {spell(name): number for number, name in enumerate(names)}
        for spelling in (labels, task.aliases):
            wanted = [spell(label) for label in spelling]
            if len(found) == len(names) == len(set(wanted)) and set(found) == set(wanted):
                return [found[label] for label in wanted]
    raise UserError(
        f"{whose} has the labels {', '.join(names)}; {task.name} has {', '.join(labels)}: they "
        "cannot be matched. Correct id2label in its config.json, or give --labels"
    )


def _are_unnamed(names: Sequence[str], task: Task) -> bool:
    """Say whether a classifier has an output for each label of the task, and no names for them."""
    numbered = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return numbered and task.kind.names_labels and len(names) == task.num_labels


def _outputs(count: int) -> str:
    return "one output" if count == 1 else f"{count} outputs"


def _bare(label: str) -> str:
    return re.sub(r"[\s_-]", "", label).lower()


def _take_outputs(model: TinyBertForSequenceClassification, order: Sequence[int]) -> None:
    """Put the outputs of a classifier in another order."""
    head = model.classifier
    with torch.no_grad():
        head.weight.copy_(head.weight[list(order)].clone())
        head.bias.copy_(head.bias[list(order)].clone())


def likely_label_order(logits: np.ndarray, labels: np.ndarray, task: Task) -> list[str] | None:
    """Return the order of labels that suits these logits (N, C) much better than the task's.

    None where there is no such order, or too many labels to try.
    """
    if task.kind is not CLASSIFICATION or not 2 <= task.num_labels <= 5:
        return None
    guesses, truth = logits.argmax(1), labels.astype(np.int64)
    orders = list(permutations(range(task.num_labels)))
    scores = [float(np.mean(np.asarray(order)[guesses] == truth)) for order in orders]
    best = int(np.argmax(scores))
    if scores[best] < scores[0] + 0.1:
        return None
    return [(task.labels or ())[number] for number in orders[best]]


# ------------------------------------------------------------------------------------ the models


def new_classifier(checkpoint: Checkpoint, task: Task, **changes: Any) -> TinyBertForPreTraining:
    """Build a model for the task from a configuration, with random weights.

    Args:
        changes: values that replace those of its configuration.
    """
    changes = _classifier_changes(checkpoint, task, changes)
    return head_class(task).from_scratch(checkpoint.config, **changes)


def load_classifier(
    checkpoint: Checkpoint, task: Task, whose: str, *, need_classifier: bool, **changes: Any
) -> TinyBertForPreTraining:
    """Load a model for the task, its outputs in the order of the task's labels.

    Without `need_classifier`, a classifier that is missing or belongs to other labels begins anew,
    and so does a model without any weights: a configuration is enough.

    Args:
        changes: values that replace those of its configuration.

    Raises:
        UserError: the files are unusable, the labels cannot be matched, or a needed part is absent.
    """
    if checkpoint.files is None and not need_classifier:
        logger.warning("%s: no weights there, so %s begins with random ones", checkpoint, whose)
        return new_classifier(checkpoint, task, **changes)
    changes = _classifier_changes(checkpoint, task, changes)
    model, report = checkpoint.load(
        head_class(task),
        require=task.kind.parts if need_classifier else ("encoder",),
        config_changes=changes,
    )
    report.log()
    if task.kind.parts[-1] in checkpoint.groups:
        _match_classifier(model, task, f"{whose} {checkpoint}", need_classifier)
    return model


def check_classifier(
    checkpoint: Checkpoint, task: Task, whose: str, *, need_classifier: bool, **changes: Any
) -> None:
    """Find from headers what `load_classifier` would refuse.

    Raises:
        UserError: as `load_classifier`, but for damaged files and values.
    """
    changes = _classifier_changes(checkpoint, task, changes)
    if checkpoint.files is None and not need_classifier:
        return
    checkpoint.check(
        head_class(task),
        require=task.kind.parts if need_classifier else ("encoder",),
        config_changes=changes,
    )
    if need_classifier:
        _check_problem_type(checkpoint.config, task, f"{whose} {checkpoint}")
        label_order(_label_names(checkpoint.config), task, f"{whose} {checkpoint}")


def _check_problem_type(config: BertConfig, task: Task, whose: str) -> None:
    """Refuse a model whose labels exclude each other where the task's do not, or the reverse."""
    theirs = config.problem_type == MULTI_LABEL.problem_type
    if theirs and task.kind is not MULTI_LABEL:
        raise UserError(
            f"{whose} answers each label by itself (problem_type {config.problem_type}); give "
            f"--multi_label, {task.name} is a {task.kind.name} task"
        )
    if task.kind is MULTI_LABEL and config.problem_type and not theirs:
        raise UserError(
            f"{whose} gives one label a text (problem_type {config.problem_type}), but "
            "--multi_label is given; make a teacher of several labels by --finetune --multi_label"
        )


def _classifier_changes(
    checkpoint: Checkpoint, task: Task, changes: dict[str, Any]
) -> dict[str, Any]:
    """Return `changes`, and the task's labels for a classifier that begins anew."""
    has_classifier = task.kind.parts[-1] in checkpoint.groups
    return changes if has_classifier else {**task.kind.config(task), **changes}


def head_class(task: Task) -> type[TinyBertForPreTraining]:
    """Return the class of models of the task's kind."""
    return getattr(modeling, task.kind.head)


def _label_names(config: BertConfig) -> list[str]:
    return [name for _, name in sorted((config.id2label or {}).items())]


def _match_classifier(
    model: TinyBertForSequenceClassification, task: Task, whose: str, required: bool
) -> None:
    names = _label_names(model.config)
    if _are_unnamed(names, task):
        logger.warning(
            "%s has no names for its labels (%s); they are taken to be %s, in this order",
            whose,
            ", ".join(names),
            ", ".join(task.labels or ()),
        )
    try:
        _take_outputs(model, label_order(names, task, whose))
    except UserError as error:
        if required:
            raise
        logger.warning("%s; the classifier begins anew", str(error).split(":")[0])
        for key, value in task.kind.config(task).items():
            setattr(model.config, key, value)
        fresh = nn.Linear(model.config.hidden_size, task.num_labels)
        nn.init.normal_(fresh.weight, std=model.config.initializer_range)
        nn.init.zeros_(fresh.bias)
        model.classifier = fresh
    for key, value in task.kind.config(task).items():
        setattr(model.config, key, value)


def check_task_fits(task: Task, max_seq_length: int, config: BertConfig, whose: str) -> None:
    """Raise UserError unless a model can read the task's inputs."""
    smallest = 2 * len(task.text) + 1
    if max_seq_length < smallest:
        raise UserError(f"--max_seq_length {max_seq_length}: {task.name} needs {smallest} or more")
    if max_seq_length > config.max_position_embeddings:
        raise UserError(
            f"--max_seq_length {max_seq_length}: {whose} has {config.max_position_embeddings} "
            "positions; use at most that many"
        )
    if len(task.text) == 2 and config.type_vocab_size < 2:
        raise UserError(f"{task.name} has pairs, but {whose} knows one segment (type_vocab_size 1)")
