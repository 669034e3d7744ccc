"""Teachers and students of the task stage: load them, match them, put their labels in order."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from transformer.checkpoint import load_model, read_config
from transformer.configuration import BertConfig
from transformer.distillation import LayerPairs
from transformer.file_utils import UserError
from transformer.glue import Task
from transformer.modeling import BertPreTrainedModel, TinyBertForSequenceClassification
from transformer.tokenization import BertTokenizer
from transformer.weight_files import find_weights, read_shapes

logger = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------ the labels


def label_config(task: Task) -> dict[str, Any]:
    """Return what config.json says about a classifier of the task."""
    if task.regression:
        return {"id2label": {0: "score"}, "problem_type": "regression"}
    labels = dict(enumerate(task.labels or ()))
    return {"id2label": labels, "problem_type": "single_label_classification"}


def label_order(names: Sequence[str], task: Task, whose: str) -> list[int]:
    """Return, for each label of the task, the output of a classifier whose outputs have `names`.

    Names are compared without regard to case, blanks, "-" and "_", and by the task's aliases.
    Outputs called LABEL_0, LABEL_1, ... have no names: they are taken to be in the task's order.

    Raises:
        UserError: another number of labels, or other names; both lists are shown.
    """
    if task.regression:
        if len(names) != 1:
            raise UserError(
                f"{whose} classifies into {len(names)} labels ({', '.join(names)}); "
                f"{task.name} is a regression task and needs one output"
            )
        return [0]
    labels = task.labels or ()
    if len(names) == len(labels) and all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        logger.warning(
            "%s has no names for its labels (%s); they are taken to be %s, in this order",
            whose,
            ", ".join(names),
            ", ".join(labels),
        )
        return list(range(len(labels)))
    found = {_bare(name): number for number, name in enumerate(names)}
    for spelling in (labels, task.aliases):
        wanted = [_bare(label) for label in spelling]
        if len(names) == len(labels) and sorted(found) == sorted(wanted):
            return [found[label] for label in wanted]
    raise UserError(
        f"{whose} has the labels {', '.join(names)}; {task.name} has {', '.join(labels)}: they "
        "cannot be matched. Correct id2label in its config.json, or give --labels"
    )


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
    if task.regression or not 2 <= task.num_labels <= 5:
        return None
    guesses, truth = logits.argmax(1), labels.astype(np.int64)
    orders = list(permutations(range(task.num_labels)))
    scores = [float(np.mean(np.asarray(order)[guesses] == truth)) for order in orders]
    best = int(np.argmax(scores))
    if scores[best] < scores[0] + 0.1:
        return None
    return [(task.labels or ())[number] for number in orders[best]]


# ------------------------------------------------------------------------------------ the models


def load_classifier(
    path: Path, task: Task, whose: str, *, need_classifier: bool, **changes: Any
) -> TinyBertForSequenceClassification:
    """Load a model for the task, its outputs in the order of the task's labels.

    Without `need_classifier`, a classifier that is missing or belongs to other labels begins anew,
    and so does a model without any weights: a configuration is enough.

    Args:
        changes: values that replace those of its configuration.

    Raises:
        UserError: the files are unusable, the labels cannot be matched, or a needed part is absent.
    """
    if not path.is_dir() or find_weights(path) is None:
        if need_classifier:
            raise UserError(f"{path}: {whose} has no weights there")
        logger.warning("%s: no weights there, so %s begins with random ones", path, whose)
        config = {**label_config(task), **changes}
        return TinyBertForSequenceClassification.from_scratch(path, **config)
    has_classifier = "classifier.weight" in read_shapes(path)
    require = ("encoder", "pooler", "classifier") if need_classifier else ("encoder",)
    if not has_classifier:
        changes = {**label_config(task), **changes}
    model, report = load_model(
        TinyBertForSequenceClassification, path, require=require, config_changes=changes
    )
    report.log()
    if has_classifier:
        _match_classifier(model, task, f"{whose} {path}", need_classifier)
    return model


def _match_classifier(
    model: TinyBertForSequenceClassification, task: Task, whose: str, required: bool
) -> None:
    names = [name for _, name in sorted((model.config.id2label or {}).items())]
    try:
        _take_outputs(model, label_order(names, task, whose))
    except UserError as error:
        if required:
            raise
        logger.warning("%s; the classifier begins anew", str(error).split(":")[0])
        for key, value in label_config(task).items():
            setattr(model.config, key, value)
        fresh = nn.Linear(model.config.hidden_size, task.num_labels)
        nn.init.normal_(fresh.weight, std=model.config.initializer_range)
        nn.init.zeros_(fresh.bias)
        model.classifier = fresh
    for key, value in label_config(task).items():
        setattr(model.config, key, value)


def check_vocabularies(student: BertTokenizer, teacher: BertTokenizer) -> None:
    """Raise UserError unless student and teacher number the same tokens alike."""
    if student.vocab == teacher.vocab:
        return
    ours, theirs = list(student.vocab), list(teacher.vocab)
    place = next(
        (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    raise UserError(
        f"student and teacher have different vocabularies ({len(ours)} and {len(theirs)} entries; "
        f"they differ from line {place + 1} on): use a student that was made for this teacher"
    )


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


def check_layers_can_be_copied(student: BertConfig, teacher: BertConfig) -> None:
    """Raise UserError unless layers of the teacher have the shapes of the student's."""
    for size in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"):
        own, other = getattr(student, size), getattr(teacher, size)
        if own != other:
            raise UserError(
                f"--init_from_teacher: {size} is {own} in the student and {other} in the teacher; "
                "only a student of the teacher's widths can take its layers"
            )


def copy_layers(
    student: BertPreTrainedModel, teacher: BertPreTrainedModel, pairs: LayerPairs
) -> None:
    """Copy embeddings, pooler and, for each pair (m, g), teacher layer g to student layer m.

    Raises:
        UserError: the widths differ.
    """
    check_layers_can_be_copied(student.config, teacher.config)
    for m, g in pairs:
        source = teacher.bert.encoder.layer[g - 1].state_dict()
        student.bert.encoder.layer[m - 1].load_state_dict(source)
    others = dict(teacher.bert.embeddings.named_parameters(prefix="embeddings"))
    if teacher.bert.pooler is not None:
        others |= dict(teacher.bert.pooler.named_parameters(prefix="pooler"))
    with torch.no_grad():
        for name, target in student.bert.named_parameters():
            if name in others:  # of position embeddings, as many as both have
                rows = min(len(target), len(others[name]))
                target[:rows] = others[name][:rows]
    logger.info(
        "student layers %s are copies of teacher layers %s; so are embeddings and pooler",
        ", ".join(str(m) for m, _ in pairs),
        ", ".join(str(g) for _, g in pairs),
    )


def student_changes(path: Path, teacher: BertConfig, *, copies_layers: bool) -> dict[str, Any]:
    """Return the changes that give a student a projection to the teacher's width, if it needs one.

    A student that takes over the teacher's layers is compared with it as it is.
    """
    stored = read_config(path)
    if copies_layers and not stored.fit_size and stored.hidden_size == teacher.hidden_size:
        return {}
    return {} if stored.fit_size == teacher.hidden_size else {"fit_size": teacher.hidden_size}
