"""What a training of a task would take: --dry_run."""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from transformer.distillation.objectives import Objective
from transformer.distillation.students import freeze_unread, set_dropout
from transformer.runtime.ranks import Runtime
from transformer.tasks.classifiers import new_classifier
from transformer.tasks.job import (
    Models,
    compare_logits,
    find_models,
    open_dev_sets,
    open_training_set,
    stores_logits,
    token_cache,
)
from transformer.tasks.options import (
    asks_teacher,
    learns_task,
    padded_length,
    stage_of,
    student_dropout,
)
from transformer.tasks.table import Task
from transformer.training.batches import collate
from transformer.training.dry_run import StepMemory, made_in, plan_lines, print_plan, step_memory
from transformer.training.packed import PackedDataset
from transformer.training.steps import steps_in_epochs


def dry_run(args: argparse.Namespace, task: Task, runtime: Runtime) -> None:
    """Check what a training checks before weights are read; print what it would do and take.

    The data is tokenised into a directory that is removed again.
    """
    models = find_models(args, task)
    args, task = models.args, models.task
    with tempfile.TemporaryDirectory(prefix="tinybert") as directory:
        own_cache = argparse.Namespace(**{**vars(args), "cache_dir": Path(directory)})
        cache = token_cache(own_cache, models.tokenizer, runtime)
        train_set = open_training_set(args, task, cache)
        if learns_task(args):
            answers = compare_logits(args, task, train_set, runtime)
            models = models._replace(comparisons=models.comparisons + answers)
        open_dev_sets(args.data_dir, task, cache)
        lines = _plan(models, train_set, runtime)
    if runtime.is_main:
        print_plan(f"{stage_of(args)} of {task.name}", lines)


def _plan(models: Models, train_set: PackedDataset, runtime: Runtime) -> list[tuple[str, str]]:
    args = models.args
    length = math.ceil(len(train_set) / (args.train_batch_size * runtime.world_size))
    steps = sum(steps_in_epochs([length], args.num_train_epochs)) * len(args.seed)
    pad_to = padded_length(args)
    by_length = np.argsort(train_set.lengths(np.arange(len(train_set))), kind="stable")

    def memory(rows: int, pieces: int) -> StepMemory:
        pad = {"pad_token_id": models.tokenizer.pad_id, "pad_to": pad_to}
        batch = collate(train_set, by_length[-rows:], **pad)
        return step_memory(lambda: _build(models, train_set, runtime), batch, pieces, runtime)

    mean = train_set.tokens / len(train_set)
    lines = [("data", f"{len(train_set):,} rows of {mean:.1f} tokens on average")]
    if len(args.seed) > 1:
        lines.append(("seeds", f"{len(args.seed)}, one training after the other"))
    return lines + plan_lines(args, steps, pad_to or train_set.max_length, runtime, memory)


def _build(
    models: Models, train_set: PackedDataset, runtime: Runtime
) -> tuple[nn.Module, Objective, list[Tensor]]:
    """Return the student, what it learns, and what the device holds for that."""
    args, task = models.args, models.task
    student = new_classifier(models.student, task, **models.student_changes)
    dropout = student_dropout(args)
    if dropout is not None:
        set_dropout(student, dropout)
    objective, held = Objective(models.comparisons), []
    if models.answers is not None or (asks_teacher(args) and stores_logits(args)):
        per_token = student.per_token
        logits = torch.zeros(train_set.tokens if per_token else len(train_set), task.num_labels)
        offsets = torch.zeros(len(train_set), dtype=torch.long) if per_token else None
        objective = Objective(models.comparisons, teacher_logits=logits, token_offsets=offsets)
        held = [logits]
    elif asks_teacher(args):
        with made_in(runtime.dtype):
            teacher = new_classifier(models.teacher, task).eval().requires_grad_(False)
        objective, held = Objective(models.comparisons, teacher), list(teacher.parameters())
    freeze_unread(student, objective)
    return student.train(), objective, held
