"""Set up a job of task distillation: models checked, data tokenised, the teacher made ready."""

from __future__ import annotations

import argparse
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
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
from transformer.lessons import IntermediateLesson, Lesson, PredictionLesson
from transformer.modeling import TinyBertForSequenceClassification
from transformer.rows import find_file, require_file, with_labels
from transformer.runtime import Runtime
from transformer.task_data import TokenCache, default_workers
from transformer.task_models import (
    check_task_fits,
    check_vocabularies,
    copy_layers,
    likely_label_order,
    load_classifier,
    student_changes,
)
from transformer.task_options import (
    DELIVERIES,
    needs_teacher,
    stage_of,
    with_defaults,
    with_eval_step,
)
from transformer.teacher_logits import teacher_logits
from transformer.tokenization import BertTokenizer
from transformer.training import compile_forward, freeze_teacher

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """What all seeds of a training share. `args` has every default filled in."""

    args: argparse.Namespace
    task: Task
    runtime: Runtime
    tokenizer: BertTokenizer
    student_dir: Path
    student_changes: dict[str, Any]
    teacher_dir: Path | None
    train_set: PackedDataset
    dev_sets: list[DevSet]
    lesson: Lesson
    teacher_results: Results

    @property
    def keeps_best(self) -> bool:
        """Whether the dev score chooses the model; layers alone have none."""
        return self.args.finetune or self.args.pred_distill

    @property
    def facts(self) -> dict[str, Any]:
        """Return what eval_results.json says beside the results."""
        teacher = {f"teacher_{key}": value for key, value in self.teacher_results.items()}
        return {"task": self.task.name, "stage": stage_of(self.args), **teacher}


@dataclass
class Run:
    """One seed of a job."""

    job: Job
    args: argparse.Namespace

    def __post_init__(self) -> None:
        self.runtime = self.job.runtime
        self.lesson = self.job.lesson
        self.stage = stage_of(self.args)
        self.keeps_best = self.job.keeps_best

    @property
    def pad_to(self) -> int | None:
        """Return the length that all batches have, None for that of their longest row."""
        layers = not self.keeps_best
        return self.args.max_seq_length if layers and self.args.loss_on_padding else None

    def lasting_args(self) -> argparse.Namespace:
        """Return the flags that the trained weights depend on."""
        kept = {k: v for k, v in vars(self.args).items() if k not in DELIVERIES}
        return argparse.Namespace(**kept)

    def stored_results(self) -> Results:
        """Return the results of a run that is finished, on every rank."""
        results = None
        if self.runtime.is_main:
            path = self.args.output_dir / "eval_results.json"
            stored = json.loads(path.read_text(encoding="utf-8"))
            results = {
                key: float("nan") if value is None else value
                for key, value in stored.items()
                if key not in (*self.job.facts, "seed", "global_step")
            }
        return self.runtime.broadcast_object(results)

    def load_student(self) -> TinyBertForSequenceClassification:
        """Return the student as it begins, on its device and in training."""
        job, args = self.job, self.args
        torch.manual_seed(args.seed)
        student = load_classifier(
            job.student_dir, job.task, "the student", need_classifier=False, **job.student_changes
        )
        if args.init_from_teacher:
            # The lesson's teacher may be held in half precision; what is copied is not.
            teacher = load_classifier(
                job.teacher_dir, job.task, "the teacher", need_classifier=True
            )
            depths = student.config.num_hidden_layers, teacher.config.num_hidden_layers
            copy_layers(student, teacher, layer_map(*depths, args.init_from_teacher))
        if isinstance(job.lesson, IntermediateLesson):
            job.lesson.objective.freeze_unread(student)
        else:
            for name, parameter in student.named_parameters():
                parameter.requires_grad_(not name.startswith("fit_dense"))
        return student.to(self.runtime.device).train()


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
    train_set = _open_training_set(args, task, cache)
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
            logits = teacher_logits(
                teacher, train_set, cache.directory, args.eval_batch_size, runtime
            )
            lesson = _prediction_lesson(args, task, logits)
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


def _prediction_lesson(
    args: argparse.Namespace, task: Task, logits: torch.Tensor
) -> PredictionLesson:
    return PredictionLesson(
        regression=task.regression,
        teacher_logits=logits,
        gold_weight=args.hard_label_weight,
        gold_on_augmented=args.hard_labels_on_augmented,
        kind=args.prediction_loss,
        temperature=args.temperature,
        original_soft_ce=args.original_soft_ce,
    )


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
    if args.init_from_teacher:
        layer_map(student.num_hidden_layers, teacher.num_hidden_layers, args.init_from_teacher)
    if args.finetune or args.pred_distill:
        return {}, None
    changes = student_changes(student_dir, teacher, copies_layers=bool(args.init_from_teacher))
    return changes, objective_from_args(args, replace(student, **changes), teacher)


def token_cache(args: argparse.Namespace, tokenizer: BertTokenizer, runtime: Runtime) -> TokenCache:
    """Return the cache of tokenised data: beside the data, or where --cache_dir says."""
    directory = args.cache_dir
    if directory is None:
        # Data that cannot be written to is cached beside the output directory.
        place = args.data_dir if os.access(args.data_dir, os.W_OK) else args.output_dir.parent
        directory = place / ".cache"
    workers = args.num_workers or default_workers()
    return TokenCache(directory, tokenizer, args.max_seq_length, workers, runtime.is_main)


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


def _open_training_set(args: argparse.Namespace, task: Task, cache: TokenCache) -> PackedDataset:
    original = find_file(args.data_dir, task.train)
    if not args.aug_train:
        return cache.open(original, task, task.train)
    augmented = find_file(args.data_dir, task.train, suffix="_aug")
    return cache.open(augmented, task, task.train, originals=original, is_augmented=True)


def load_teacher(
    teacher_dir: Path, task: Task, args: argparse.Namespace, runtime: Runtime
) -> TinyBertForSequenceClassification:
    """Return the frozen teacher.

    Raises:
        UserError: it has no classifier, or one for other labels.
    """
    try:
        teacher = load_classifier(teacher_dir, task, "the teacher", need_classifier=True)
    except UserError as error:
        if "classifier" not in str(error) and "pooler" not in str(error):
            raise
        raise UserError(f"{error}. --finetune makes a teacher of a BERT model") from None
    freeze_teacher(teacher, runtime)
    if args.compile:
        compile_forward(teacher)
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
