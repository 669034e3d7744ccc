"""Set up a job of general distillation: models checked against each other, data, lessons."""

from __future__ import annotations

import argparse
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch

from transformer.checkpoint.directory import Checkpoint
from transformer.distillation.layers import IntermediateObjective, layer_map, objective_from_args
from transformer.distillation.objectives import IntermediateLesson
from transformer.distillation.students import (
    check_layers_can_be_copied,
    check_vocabularies,
    copy_layers,
    freeze_teacher,
    student_changes,
)
from transformer.file_utils import cached_path
from transformer.files import UserError
from transformer.modeling import TinyBertForPreTraining
from transformer.packed_linear import pack_linears
from transformer.runtime.ranks import Runtime
from transformer.tokenization import BertTokenizer
from transformer.training.batches import BatchPlan
from transformer.training.epochs import (
    EpochFile,
    find_epoch_files,
    has_pairs,
    open_pretraining_data,
)
from transformer.training.loop import compile_forward
from transformer.training.packed import PackedDataset
from transformer.training.steps import RunPlan

logger = logging.getLogger(__name__)

# With --do_eval, this share at the end of every epoch's examples is held out, but not more than so
# many: the last documents of the corpus, the same ones in every epoch.
HELD_OUT_SHARE = 0.01

HELD_OUT_MOST = 2000


@dataclass(frozen=True)
class Job:
    """What a run is about, known before any weight is read."""

    args: argparse.Namespace
    runtime: Runtime
    teacher: Checkpoint
    student: Checkpoint
    tokenizer: BertTokenizer
    student_changes: dict[str, Any]
    objective: IntermediateObjective

    @property
    def pad_to(self) -> int | None:
        """Return the length of all batches, where padding counts; None where it does not."""
        return self.args.max_seq_length if self.args.loss_on_padding else None


def plan_job(args: argparse.Namespace, runtime: Runtime) -> Job:
    """Find the models and check that they fit each other and the flags."""
    teacher, student = (
        Checkpoint(cached_path(name, args.cache_dir), args.do_lower_case)
        for name in (args.teacher_model, args.student_model)
    )
    tokenizer = _check_vocabularies(student, teacher)
    changes = student_changes(
        student.config, teacher.config, copies_layers=bool(args.init_from_teacher)
    )
    student_config = student.config.changed(**changes)
    objective = objective_from_args(args, student_config, teacher.config)
    if args.continue_train and student.files is None:
        raise UserError(f"--continue_train: {student} has no weights; leave the flag out")
    if args.init_from_teacher:
        check_layers_can_be_copied(student_config, teacher.config)
        depths = student_config.num_hidden_layers, teacher.config.num_hidden_layers
        layer_map(*depths, args.init_from_teacher)
    teacher.check(TinyBertForPreTraining, config_changes={"fit_size": 0})
    if args.continue_train:
        student.check(TinyBertForPreTraining, config_changes=changes)
    return Job(args, runtime, teacher, student, tokenizer, changes, objective)


def _check_vocabularies(student: Checkpoint, teacher: Checkpoint) -> BertTokenizer:
    """Return the teacher's tokenizer, once both models can embed what it gives."""
    tokenizer = teacher.tokenizer
    for whose, checkpoint in (("teacher", teacher), ("student", student)):
        size = checkpoint.config.vocab_size
        if size < len(tokenizer.vocab):
            raise UserError(
                f"the {whose}'s vocab_size is {size}, but the teacher's vocabulary "
                f"has {len(tokenizer.vocab)} entries; set it to that in the {whose}'s config.json"
            )
    if student.has_vocabulary:
        check_vocabularies(student.tokenizer, tokenizer)
    return tokenizer


def _check_segments(job: Job, file: EpochFile) -> None:
    """Raise UserError where examples have two segments and a model knows one."""
    for whose, checkpoint in (("teacher", job.teacher), ("student", job.student)):
        if checkpoint.config.type_vocab_size < 2 and has_pairs(file):
            raise UserError(
                f"{file.path} has examples of two segments, but the {whose} {checkpoint} knows one "
                "(type_vocab_size 1); make the data with --one_seq, or give another model"
            )


def load_data(job: Job) -> tuple[RunPlan, tuple[PackedDataset, int]]:
    """Return the steps of the run; and the data and first number of the held-out examples."""
    args = job.args
    files = find_epoch_files(args.pregenerated_data, args.max_seq_length)
    files = files[: math.ceil(args.num_train_epochs)]
    _check_segments(job, files[0])
    datasets = open_pretraining_data(
        files, job.tokenizer.vocab, cache_dir=args.cache_dir, is_main=job.runtime.is_main
    )
    plans = []
    for file, dataset in zip(files, datasets, strict=True):
        held_out = min(math.ceil(len(dataset) * HELD_OUT_SHARE), HELD_OUT_MOST)
        examples = len(dataset) - held_out * args.do_eval
        if examples < 1:
            raise UserError(f"{file.path}: {len(dataset)} examples leave none to train on")
        batch_size = args.train_batch_size * job.runtime.world_size
        plans.append(BatchPlan(dataset, batch_size, args.seed, examples=examples))
    plan = RunPlan(plans, args.num_train_epochs)
    logger.info(
        "%d examples in %d file%s; %d x %d examples a step; %g epochs are %d steps",
        sum(p.examples for p in plans),
        len(files),
        "s" if len(files) > 1 else "",
        job.runtime.world_size,
        args.train_batch_size,
        args.num_train_epochs,
        plan.total_steps,
    )
    return plan, (datasets[0], plans[0].examples)


def load_models(job: Job) -> tuple[TinyBertForPreTraining, IntermediateLesson]:
    """Return the student, on its device, and what the frozen teacher has to teach it."""
    args, runtime = job.args, job.runtime
    teacher, loaded = job.teacher.load(TinyBertForPreTraining, config_changes={"fit_size": 0})
    loaded.log()
    torch.manual_seed(args.seed)
    if args.continue_train:
        student, continued = job.student.load(
            TinyBertForPreTraining, config_changes=job.student_changes
        )
        continued.log()
    else:
        student = TinyBertForPreTraining.from_scratch(job.student.config, **job.student_changes)
    if args.init_from_teacher:
        depths = student.config.num_hidden_layers, teacher.config.num_hidden_layers
        copy_layers(student, teacher, layer_map(*depths, args.init_from_teacher))
    frozen = job.objective.freeze_unread(student)
    if frozen:
        logger.info("not trained, because no loss term reads them: %d tensors", len(frozen))
    student.to(runtime.device).train()
    freeze_teacher(teacher, runtime)
    if args.compile:
        compile_forward(student, teacher)
    else:
        pack_linears(teacher)
    return student, IntermediateLesson(teacher, job.objective, classifiers=False)
