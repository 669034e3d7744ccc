"""Set up a job of task distillation: models checked, data tokenised, the teacher made ready."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from transformer.checkpoint import read_config
from transformer.data import PackedDataset
from transformer.distillation import IntermediateObjective, layer_map, objective_from_args
from transformer.evaluation import (
    DevSet,
    Results,
    evaluate,
    predict_logits,
    score,
    warn_of_chance,
)
from transformer.file_utils import UserError, cached_path
from transformer.glue import Task
from transformer.lessons import (
    IntermediateLesson,
    PredictionLesson,
    StoredTargets,
    Targets,
    TeacherTargets,
)
from transformer.modeling import TinyBertForSequenceClassification
from transformer.packed_linear import pack_linears
from transformer.rows import with_labels
from transformer.runtime import Runtime
from transformer.task_inputs import (
    open_dev_sets,
    open_training_set,
    read_tokenizer,
    token_cache,
)
from transformer.task_models import (
    check_layers_can_be_copied,
    check_task_fits,
    likely_label_order,
    load_classifier,
    student_changes,
)
from transformer.task_options import (
    needs_teacher,
    with_defaults,
    with_eval_step,
)
from transformer.task_run import Job
from transformer.teacher_logits import teacher_logits
from transformer.training import Lesson, compile_forward, freeze_teacher
from transformer.weight_files import find_weights, read_shapes

logger = logging.getLogger(__name__)


def plan_job(args: argparse.Namespace, task: Task, runtime: Runtime) -> Job:
    """Check the models against the task and each other, then tokenise and prepare the teacher.

    Raises:
        UserError: they do not fit.
    """
    args = with_defaults(args, task)
    task = with_labels(task, args.data_dir)
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
