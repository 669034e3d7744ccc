"""Everything a task run needs, checked before anything expensive: models, tokenizer, data."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from transformer.checkpoint.config_file import read_config
from transformer.checkpoint.weight_files import find_weights, read_shapes
from transformer.distillation.layers import IntermediateObjective, layer_map, objective_from_args
from transformer.distillation.objectives import (
    IntermediateLesson,
    PredictionLesson,
    StoredTargets,
    Targets,
    TeacherTargets,
)
from transformer.distillation.students import (
    check_layers_can_be_copied,
    check_vocabularies,
    freeze_teacher,
    student_changes,
)
from transformer.distillation.teacher_logits import teacher_logits
from transformer.file_utils import cached_path
from transformer.files import UserError
from transformer.modeling import TinyBertForSequenceClassification
from transformer.packed_linear import pack_linears
from transformer.runtime.parallel import usable_cores
from transformer.runtime.ranks import Runtime
from transformer.tasks.classifiers import check_task_fits, likely_label_order, load_classifier
from transformer.tasks.files import find_file, require_file, with_labels
from transformer.tasks.metrics import Results, score
from transformer.tasks.options import needs_teacher, with_defaults, with_eval_step
from transformer.tasks.results import DevSet, evaluate, warn_of_chance
from transformer.tasks.run import Job
from transformer.tasks.table import Task
from transformer.tasks.token_cache import TokenCache
from transformer.tokenization import BertTokenizer
from transformer.training.inference import predict_logits
from transformer.training.loop import Lesson, compile_forward
from transformer.training.packed import PackedDataset

logger = logging.getLogger(__name__)


def read_tokenizer(
    args: argparse.Namespace, student_dir: Path, teacher_dir: Path | None
) -> BertTokenizer:
    """Return the student's tokenizer, the teacher's if the student has none yet; compare both."""

    def read(directory: Path | None) -> BertTokenizer | None:
        names = ("vocab.txt", "tokenizer.json")
        if directory is None or not any((directory / name).is_file() for name in names):
            return None
        return BertTokenizer.from_pretrained(directory, do_lower_case=args.do_lower_case)

    student, teacher = read(student_dir), read(teacher_dir)
    if student is not None and teacher is not None:
        check_vocabularies(student, teacher)
    tokenizer = student or teacher
    if tokenizer is None:
        raise UserError(f"{student_dir}: no vocab.txt; copy the vocabulary of its teacher there")
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
    """Return the tokenised training set, or the augmented one with its flags."""
    original = find_file(args.data_dir, task.train)
    if not args.aug_train:
        return cache.open(original, task, task.train)
    augmented = find_file(args.data_dir, task.train, suffix="_aug")
    return cache.open(augmented, task, task.train, originals=original, is_augmented=True)


def plan_job(args: argparse.Namespace, task: Task, runtime: Runtime) -> Job:
    """Check the models against the task and each other, then tokenise and prepare the teacher.

    Raises:
        UserError: they do not fit.
    """
    args = with_defaults(args, task)
    task = with_labels(task, args.data_dir, args.errors)
    student_dir = cached_path(args.student_model, args.cache_dir)
    teacher_dir = None
    if args.teacher_model is not None and (needs_teacher(args) or args.init_from_teacher):
        teacher_dir = cached_path(args.teacher_model, args.cache_dir)
    tokenizer = read_tokenizer(args, student_dir, teacher_dir)
    changes, objective = _check_models(args, task, student_dir, teacher_dir)
    cache = token_cache(args, tokenizer, runtime)
    train_set = open_training_set(args, task, cache)
    dev_sets = open_dev_sets(args.data_dir, task, cache)
    args = with_eval_step(args, len(dev_sets[0].dataset))
    lesson: Lesson = PredictionLesson(task.regression, None, 1.0, gold_on_augmented=True)
    teacher_results: Results = {}
    if teacher_dir is not None and needs_teacher(args):
        teacher = load_teacher(teacher_dir, task, args, runtime)
        teacher_results = inspect_teacher(teacher, task, dev_sets, args.eval_batch_size, runtime)
        if objective is not None:
            lesson = IntermediateLesson(teacher, objective)
        else:
            targets = _targets(args, teacher, train_set, cache.directory, runtime)
            lesson = _prediction_lesson(args, task, targets)
    return Job(
        args=args,
        task=task,
        runtime=runtime,
        tokenizer=tokenizer,
        student_dir=student_dir,
        student_changes=changes,
        teacher_dir=teacher_dir,
        train_set=train_set,
        dev_sets=dev_sets,
        lesson=lesson,
        teacher_results=teacher_results,
    )


def _targets(
    args: argparse.Namespace,
    teacher: nn.Module,
    train_set: PackedDataset,
    directory: Path,
    runtime: Runtime,
) -> Targets:
    """Return the source of the teacher's logits: kept ones, where rows come more than once."""
    if args.num_train_epochs * len(args.seed) <= 1:
        return TeacherTargets(teacher, runtime)
    return StoredTargets(
        teacher_logits(teacher, train_set, directory, args.eval_batch_size, runtime)
    )


def _prediction_lesson(args: argparse.Namespace, task: Task, targets: Targets) -> PredictionLesson:
    return PredictionLesson(
        regression=task.regression,
        targets=targets,
        gold_weight=args.hard_label_weight,
        gold_on_augmented=args.hard_labels_on_augmented,
        kind=args.prediction_loss,
        temperature=args.temperature,
        original_soft_ce=args.original_soft_ce,
    )


def _check_models(
    args: argparse.Namespace, task: Task, student_dir: Path, teacher_dir: Path | None
) -> tuple[dict[str, Any], IntermediateObjective | None]:
    """Check configurations before weights; return the student's changes and what layers teach."""
    student = read_config(student_dir)
    check_task_fits(task, args.max_seq_length, student, "the student")
    if teacher_dir is None:
        return {}, None
    teacher = read_config(teacher_dir)
    check_task_fits(task, args.max_seq_length, teacher, "the teacher")
    if needs_teacher(args):
        _check_fine_tuned(teacher_dir)
    if args.init_from_teacher:
        check_layers_can_be_copied(student, teacher)
        layer_map(student.num_hidden_layers, teacher.num_hidden_layers, args.init_from_teacher)
    if args.finetune or args.pred_distill:
        return {}, None
    changes = student_changes(student_dir, teacher, copies_layers=bool(args.init_from_teacher))
    return changes, objective_from_args(args, replace(student, **changes), teacher)


def _check_fine_tuned(teacher_dir: Path) -> None:
    """Refuse a teacher that learned no task, by the names of its tensors."""
    needed = {"bert.pooler.dense.weight", "classifier.weight"}
    if find_weights(teacher_dir) is not None and not needed <= read_shapes(teacher_dir).keys():
        raise UserError(
            f"the teacher {teacher_dir} has no classifier or no pooler: it was not fine-tuned on a "
            "task. --finetune makes a teacher of a BERT model"
        )


def load_teacher(
    teacher_dir: Path, task: Task, args: argparse.Namespace, runtime: Runtime
) -> TinyBertForSequenceClassification:
    """Return the frozen teacher.

    Raises:
        UserError: it has no classifier, or one for other labels.
    """
    teacher = load_classifier(teacher_dir, task, "the teacher", need_classifier=True)
    freeze_teacher(teacher, runtime)
    if args.compile:
        compile_forward(teacher)
    else:
        pack_linears(teacher)
    return teacher


def inspect_teacher(
    teacher: nn.Module, task: Task, dev_sets: list[DevSet], batch_size: int, runtime: Runtime
) -> Results:
    """Return the teacher's dev scores, said before anything is learnt from it, with doubts."""
    dataset = dev_sets[0].dataset
    logits, labels = predict_logits(teacher, dataset, batch_size, runtime), dataset.labels[:]
    results = score(task, logits, labels)
    results |= evaluate(teacher, task, dev_sets[1:], batch_size, runtime)
    shown = "  ".join(f"{key} {value:.4f}" for key, value in results.items())
    logger.info("the teacher on %s, dev: %s", task.name, shown)
    warn_of_chance(task, results[task.best_metric], labels, "the teacher")
    order = likely_label_order(logits, labels, task)
    if order is not None:
        logger.warning(
            "the teacher scores much better if its outputs are %s, in this order; if they are, "
            "say so by id2label in its config.json",
            ", ".join(order),
        )
    return results
