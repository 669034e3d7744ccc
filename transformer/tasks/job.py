"""Everything a task run needs, checked before anything expensive: models, tokenizer, data."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from transformer.checkpoint.directory import Checkpoint
from transformer.distillation.layers import Comparison, Term, plan_comparisons
from transformer.distillation.losses import gold_loss, prediction_loss
from transformer.distillation.objectives import Objective, with_variances
from transformer.distillation.start import has_teachers_shapes, plan_start
from transformer.distillation.students import (
    check_vocabularies,
    check_words,
    prepare_teacher,
    student_changes,
    words_of_teacher,
)
from transformer.distillation.teacher_logits import teacher_logits
from transformer.file_utils import model_path
from transformer.files import UserError
from transformer.modeling import TinyBertForSequenceClassification
from transformer.runtime.parallel import usable_cores
from transformer.runtime.ranks import Runtime
from transformer.tasks.class_weights import check_class_weights, weight_of_each_class
from transformer.tasks.classifiers import (
    check_classifier,
    check_task_fits,
    likely_label_order,
    load_classifier,
)
from transformer.tasks.files import RowReader, find_file, require_file, with_labels
from transformer.tasks.given_answers import named_labels, read_logits
from transformer.tasks.metrics import Results, chance_score, compute_metrics
from transformer.tasks.options import (
    asks_teacher,
    given_answers,
    learner,
    learns_layers,
    learns_task,
    needs_teacher,
    padded_length,
    training_file,
    with_defaults,
    with_eval_step,
)
from transformer.tasks.results import (
    TEACHER_AT_CHANCE,
    DevSet,
    evaluate_with_answers,
    warn_of_chance,
)
from transformer.tasks.run import Job
from transformer.tasks.table import Task
from transformer.tasks.token_cache import TokenCache
from transformer.tokenization import BertTokenizer
from transformer.training.packed import PackedDataset

logger = logging.getLogger(__name__)


def open_checkpoint(flag: str, args: argparse.Namespace) -> Checkpoint | None:
    """Return the checkpoint that a flag names, fetched if need be; None where it names none."""
    if getattr(args, flag) is None:
        return None
    return Checkpoint(model_path(flag, args), args.do_lower_case)


def shared_tokenizer(student: Checkpoint, teacher: Checkpoint | None) -> BertTokenizer:
    """Return the student's tokenizer, the teacher's if the student has none yet.

    Raises:
        UserError: neither has one, they number tokens differently, or a model lacks embeddings.
    """
    owners = [model for model in (student, teacher) if model is not None and model.has_vocabulary]
    if not owners:
        raise UserError(f"{student}: no vocab.txt; copy the vocabulary of its teacher there")
    if len(owners) == 2:
        check_vocabularies(*(model.tokenizer for model in owners), "student")
    tokenizer = owners[0].tokenizer
    for whose, model in (("the student", student), ("the teacher", teacher)):
        if model is not None:
            check_words(tokenizer, model.config, whose)
    return tokenizer


def token_cache(args: argparse.Namespace, tokenizer: BertTokenizer, runtime: Runtime) -> TokenCache:
    """Return the cache of tokenised data: beside the data, or where --cache_dir says."""
    directory = args.cache_dir
    if directory is None:
        # Data that cannot be written to is cached beside the output directory.
        place = args.data_dir if os.access(args.data_dir, os.W_OK) else args.output_dir.parent
        directory = place / ".cache"
    workers = args.num_workers or usable_cores()
    return TokenCache(
        *(directory, tokenizer, args.max_seq_length, workers, runtime.is_main),
        errors=args.errors,
        allow_short=args.allow_short,
    )


def open_dev_sets(data_dir: Path, task: Task, cache: TokenCache) -> list[DevSet]:
    """Return the tokenised dev sets; a sister of the first one may be missing."""
    first = require_file(data_dir, task.dev[0], "the evaluation")
    dev_sets = [DevSet("", cache.open(first, task, task.dev[0]))]
    for source in task.dev[1:]:
        path = find_file(data_dir, source)
        if path is None:
            logger.warning("%s: no such file; its scores are left out", data_dir / source.file)
        else:
            dev_sets.append(DevSet(source.name, cache.open(path, task, source)))
    return dev_sets


def open_training_set(args: argparse.Namespace, task: Task, cache: TokenCache) -> PackedDataset:
    """Return the tokenised training set, the augmented one with its flags."""
    path, source, labelled = training_file(args, task)
    if not args.aug_train:
        return cache.open(path, task, source, labelled=labelled)
    original = find_file(args.data_dir, task.train)
    return cache.open(path, task, source, originals=original, is_augmented=True)


def with_known_labels(task: Task, args: argparse.Namespace, teacher: Checkpoint | None) -> Task:
    """Return the task with its labels; without a training file, they are those of the teacher.

    Raises:
        UserError: as `with_labels`.
    """
    is_open = task.labels is None and task.kind.names_labels
    if is_open and find_file(args.data_dir, task.train) is None:
        held = (teacher.config.id2label or {}) if teacher is not None else {}
        names = tuple(name for _, name in sorted(held.items()))
        names = names or named_labels(given_answers(args), task)
        if names:
            task = replace(task, labels=names)
    return with_labels(task, args.data_dir, args.errors)


class Models(NamedTuple):
    """What a training is of, checked before data and weights are read.

    args, task: with what defaults, models and data filled in.
    student_changes: values that replace those of the student's configuration.
    comparisons: the terms of layers; those of logits depend on the training set.
    answers: the teacher's logits from files, (N, C) float32; None without such files.
    """

    args: argparse.Namespace
    task: Task
    student: Checkpoint
    student_changes: dict[str, Any]
    teacher: Checkpoint | None
    tokenizer: BertTokenizer
    comparisons: tuple[Comparison, ...]
    answers: np.ndarray | None


def find_models(args: argparse.Namespace, task: Task) -> Models:
    """Check the models against the task and each other.

    Raises:
        UserError: they do not fit.
    """
    args = with_defaults(args, task)
    student = open_checkpoint("student_model", args)
    teacher = None
    if asks_teacher(args) or args.init_from_teacher:
        teacher = open_checkpoint("teacher_model", args)
    task = with_known_labels(task, args, teacher)
    check_class_weights(args.class_weights, task)
    tokenizer = shared_tokenizer(student, teacher)
    changes, comparisons = _check_models(args, task, student, teacher)
    answers = read_answers(args, task)
    return Models(args, task, student, changes, teacher, tokenizer, comparisons, answers)


def plan_job(args: argparse.Namespace, task: Task, runtime: Runtime) -> Job:
    """Check models, task and flags, then tokenise and prepare the teacher.

    Raises:
        UserError: they do not fit.
    """
    models = find_models(args, task)
    args, task, student, changes, teacher, tokenizer, comparisons, answers = models
    cache = token_cache(args, tokenizer, runtime)
    train_set = open_training_set(args, task, cache)
    if answers is not None:
        inspect_answers(answers, task, train_set)
    if learns_task(args):
        comparisons += compare_logits(args, task, train_set, runtime)
    dev_sets = open_dev_sets(args.data_dir, task, cache)
    args = with_eval_step(args, len(dev_sets[0].dataset))
    model = None
    teacher_results: Results = {}
    if teacher is not None and asks_teacher(args):
        model = load_teacher(teacher, task, args, runtime)
        teacher_results = inspect_teacher(model, task, dev_sets, args.eval_batch_size, runtime)
    return Job(
        args=args,
        task=task,
        runtime=runtime,
        tokenizer=tokenizer,
        student=student,
        student_changes=changes,
        teacher=teacher,
        train_set=train_set,
        dev_sets=dev_sets,
        objective=_objective(
            args, comparisons, model, answers, train_set, cache.directory, runtime
        ),
        teacher_results=teacher_results,
    )


def stores_logits(args: argparse.Namespace) -> bool:
    """Say whether a teacher answers all rows once, before the training."""
    return args.pred_distill and args.num_train_epochs * len(args.seed) > 1


def _objective(
    args: argparse.Namespace,
    comparisons: tuple[Comparison, ...],
    teacher: nn.Module | None,
    answers: np.ndarray | None,
    train_set: PackedDataset,
    directory: Path,
    runtime: Runtime,
) -> Objective:
    """Return what the student learns.

    Logits are stored where nothing else is asked of the teacher and rows come more than once.
    """
    if answers is not None:
        return Objective(comparisons, teacher_logits=torch.from_numpy(answers).to(runtime.device))
    if teacher is None or not stores_logits(args):
        objective = Objective(comparisons, teacher, pad_to=padded_length(args))
        return with_variances(objective, train_set, args.eval_batch_size, runtime)
    logits = teacher_logits(teacher, train_set, directory, args.eval_batch_size, runtime)
    offsets = torch.from_numpy(train_set.offsets[:-1].copy()) if teacher.per_token else None
    if offsets is not None:
        offsets = offsets.to(runtime.device)
    return Objective(comparisons, teacher_logits=logits, token_offsets=offsets)


def compare_logits(
    args: argparse.Namespace, task: Task, train_set: PackedDataset, runtime: Runtime
) -> tuple[Comparison, ...]:
    """Return the terms of fine-tuning and of prediction distillation (equation 10)."""
    kind = task.kind
    on_augmented = args.hard_labels_on_augmented or not needs_teacher(args)
    weights = weight_of_each_class(args.class_weights, task, train_set, on_augmented=on_augmented)
    if weights is not None:
        weights = torch.from_numpy(weights).to(runtime.device)
    gold = partial(gold_loss, kind=kind.gold, on_augmented=on_augmented, class_weights=weights)
    gold = kind.over_answers(gold)
    if not needs_teacher(args):
        return (Comparison(Term("prediction_gold", "logits", gold)),)
    loss = partial(
        prediction_loss,
        kind=kind.taught_by or args.prediction_loss,
        temperature=1.0 if kind.taught_by == "mse" else args.temperature,
        original_soft_ce=args.original_soft_ce,
    )
    compared = [Comparison(Term("prediction", "logits", kind.over_answers(loss)))]
    if args.hard_label_weight:
        term = Term("prediction_gold", "logits", gold, weight=args.hard_label_weight)
        compared.append(Comparison(term))
    return tuple(compared)


def _check_models(
    args: argparse.Namespace, task: Task, student: Checkpoint, teacher: Checkpoint | None
) -> tuple[dict[str, Any], tuple[Comparison, ...]]:
    """Check models before weights are read; return the student's changes and terms of layers."""
    changes, comparisons = {}, ()
    whose = f"the {learner(args)}"
    check_task_fits(task, args.max_seq_length, student.config, whose)
    if teacher is not None:
        check_task_fits(task, args.max_seq_length, teacher.config, "the teacher")
        if needs_teacher(args):
            _check_fine_tuned(teacher, task)
        check_classifier(teacher, task, "the teacher", need_classifier=True)
        changes = {} if student.files else words_of_teacher(student.config, teacher.config)
        config = student.config.changed(**changes)
        if args.init_from_teacher:
            plan_start(args.init_from_teacher, config, teacher.config)
        if learns_layers(args):
            same = has_teachers_shapes(config, teacher.config)
            copies = bool(args.init_from_teacher) and same
            changes |= student_changes(config, teacher.config, copies_layers=copies)
            comparisons = plan_comparisons(args, student.config.changed(**changes), teacher.config)
    check_classifier(student, task, whose, need_classifier=False, **changes)
    return changes, comparisons


def _check_fine_tuned(teacher: Checkpoint, task: Task) -> None:
    """Refuse a teacher that learned no task of this kind, by the names of its tensors."""
    lacking = [part for part in task.kind.parts[1:] if part not in teacher.groups]
    if teacher.files is not None and lacking:
        raise UserError(
            f"the teacher {teacher} has no {' and no '.join(reversed(lacking))}: it was not "
            f"fine-tuned on a {task.kind.name} task. --finetune makes a teacher of a BERT model"
        )


def load_teacher(
    checkpoint: Checkpoint, task: Task, args: argparse.Namespace, runtime: Runtime
) -> TinyBertForSequenceClassification:
    """Return the frozen teacher.

    Raises:
        UserError: it has no classifier, or one for other labels.
    """
    teacher = load_classifier(checkpoint, task, "the teacher", need_classifier=True)
    return prepare_teacher(teacher, runtime, compiled=args.compile)


def inspect_teacher(
    teacher: nn.Module, task: Task, dev_sets: list[DevSet], batch_size: int, runtime: Runtime
) -> Results:
    """Return the teacher's dev scores, said before anything is learnt from it, with doubts."""
    results, logits, labels = evaluate_with_answers(teacher, task, dev_sets, batch_size, runtime)
    shown = "  ".join(f"{key} {value:.4f}" for key, value in results.items())
    logger.info("the teacher on %s, dev: %s", task.name, shown)
    chance = chance_score(task, labels)
    warn_of_chance(task, results[task.best_metric], chance, "the teacher", TEACHER_AT_CHANCE)
    way_out = "say so by id2label in its config.json"
    _doubt_label_order(logits, labels, task, way_out)
    return results


def _doubt_label_order(logits: np.ndarray, labels: np.ndarray, task: Task, way_out: str) -> None:
    order = likely_label_order(logits, labels, task)
    if order is not None:
        logger.warning(
            "the teacher scores much better if its outputs are %s, in this order; if they are, %s",
            *(", ".join(order), way_out),
        )


def read_answers(args: argparse.Namespace, task: Task) -> np.ndarray | None:
    """Return the logits (N, C) that files give for the training set, None if there are none.

    Raises:
        UserError: as `read_logits`.
    """
    if not given_answers(args):
        return None
    path, source, labelled = training_file(args, task)
    reader = RowReader(path, task, source, need_label=labelled, errors=args.errors)
    are_probabilities = bool(args.teacher_probabilities)
    return read_logits(given_answers(args), task, reader, are_probabilities=are_probabilities)


def inspect_answers(logits: np.ndarray, task: Task, train_set: PackedDataset) -> None:
    """Say how well given answers (N, C) agree with the gold labels of the training set, if any."""
    if train_set.labels is None:
        return
    labels = np.asarray(train_set.labels)
    if train_set.flags is not None:
        is_gold = train_set.flags[:] == 0
        logits, labels = logits[is_gold], labels[is_gold]
    if not len(labels):
        return
    results = compute_metrics(task, logits, labels)
    shown = "  ".join(f"{key} {value:.4f}" for key, value in results.items())
    logger.info("the teacher's answers for %d labelled training rows: %s", len(labels), shown)
    chance = chance_score(task, labels)
    warn_of_chance(task, results[task.best_metric], chance, "the teacher", TEACHER_AT_CHANCE)
    _doubt_label_order(logits, labels, task, "put the columns in the order of the task's labels")
