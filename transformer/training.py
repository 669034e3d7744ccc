"""The leaves that the training loops share: flags, optimizer, ranks, precision, initialisation."""

from __future__ import annotations

import argparse
import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from transformer.data import Batch
from transformer.distillation import IntermediateObjective
from transformer.file_utils import UserError
from transformer.losses import LossCounts
from transformer.meter import LossMeter, stop_if_not_finite
from transformer.optimization import BertAdam, parameter_groups
from transformer.reporting import Progress, Speed, sum_by_kind
from transformer.resuming import (
    RunState,
    StopSignal,
    check_same_run,
    fingerprint,
    mark_finished,
    read_state,
)
from transformer.runtime import Runtime, restarted
from transformer.steps import RunPlan, StepBatch, step_batches, step_counts

__all__ = [
    "LossMeter",
    "RunPlan",
    "RunState",
    "StepBatch",
    "StopSignal",
    "add_training_arguments",
    "build_optimizer",
    "check_same_run",
    "check_training_arguments",
    "compile_forward",
    "distribute",
    "fingerprint",
    "freeze_teacher",
    "gradient_sync",
    "is_due",
    "layer_terms",
    "mark_finished",
    "optimizer_step",
    "read_state",
    "report",
    "step_batches",
    "step_counts",
    "stop_if_not_finite",
]

COUNT_FLAGS = (
    *("train_batch_size", "eval_batch_size", "gradient_accumulation_steps"),
    *("eval_step", "save_steps", "log_steps"),
)


def add_training_arguments(
    parser: argparse.ArgumentParser,
    *,
    epochs: float | None = 3.0,
    eval_batch_size: int = 32,
    eval_step: int = 50,
) -> None:
    """Add the flags of optimization, saving and resuming; the keywords are their defaults."""
    group = parser.add_argument_group("optimization")
    group.add_argument(
        "--train_batch_size",
        type=int,
        default=32,
        help="examples of one optimizer step on each rank, over all accumulation steps",
    )
    group.add_argument("--eval_batch_size", type=int, default=eval_batch_size, help="examples")
    group.add_argument(
        "--gradient_accumulation_steps",
        type=int,
        default=1,
        help="parts that a rank's batch is computed in, to save memory; the result is the same",
    )
    group.add_argument("--learning_rate", type=float, default=5e-5, help="peak, after warm-up")
    group.add_argument(
        "--weight_decay",
        "--wd",
        type=float,
        default=0.01,
        help="of matrices; the original's flag said 1e-4, but 0.01 is what it really used",
    )
    group.add_argument(
        "--num_train_epochs", type=float, default=epochs, help="passes over the data; 0.5 is half"
    )
    group.add_argument(
        "--warmup_proportion", type=float, default=0.1, help="share of steps the rate rises in"
    )
    group.add_argument("--compile", action="store_true", help="run models through torch.compile")
    group = parser.add_argument_group("saving and resuming")
    group.add_argument("--eval_step", type=int, default=eval_step, help="steps between two looks")
    group.add_argument(
        "--save_steps", type=int, default=500, help="steps between two states to resume from"
    )
    group.add_argument("--log_steps", type=int, default=50, help="steps between two reports")
    group.add_argument(
        "--resume",
        action="store_true",
        default=restarted(),
        help="go on with the interrupted run in --output_dir (implied when torchrun restarts)",
    )
    group.add_argument(
        "--overwrite_output_dir", action="store_true", help="replace the run in --output_dir"
    )
    group.add_argument("--tensorboard", action="store_true", help="also write TensorBoard's events")
    group.add_argument(
        "--save_safetensors", action="store_true", help="also write model.safetensors"
    )
    group.add_argument(
        "--data_url", default="", help="s3://bucket/prefix or directory to copy results to"
    )


def check_training_arguments(args: argparse.Namespace) -> None:
    """Check the values of `add_training_arguments`.

    Raises:
        UserError: a value that no run can use.
    """
    counts = [
        "train_batch_size",
        "eval_batch_size",
        "gradient_accumulation_steps",
        "eval_step",
        "save_steps",
        "log_steps",
    ]
    for name in counts:
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give a number of 1 or more")
    if args.gradient_accumulation_steps > args.train_batch_size:
        raise UserError(
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps} cannot cut a "
            f"--train_batch_size of {args.train_batch_size}; give at most as many steps as examples"
        )
    if args.num_train_epochs is not None and not 0 < args.num_train_epochs < math.inf:
        raise UserError(f"--num_train_epochs {args.num_train_epochs}: give a number above 0")
    if not 0 <= args.warmup_proportion < 1:
        raise UserError(
            f"--warmup_proportion {args.warmup_proportion}: give a share from 0 to below 1"
        )
    for name in ("learning_rate", "weight_decay"):
        if not 0 <= getattr(args, name) < math.inf:
            raise UserError(f"--{name} {getattr(args, name)}: give a number of 0 or more")
    if args.tensorboard:
        _check_tensorboard()


def _check_tensorboard() -> None:
    try:
        import torch.utils.tensorboard  # noqa: F401 - only whether it can be imported
    except ImportError as error:
        raise UserError("--tensorboard: pip install tensorboard, or leave the flag out") from error


def is_due(step: int, every: int, total_steps: int) -> bool:
    """Say whether something done every so many steps, and after the last one, is due."""
    return step % every == 0 or step == total_steps


def freeze_teacher(teacher: nn.Module, runtime: Runtime) -> nn.Module:
    """Make a model a teacher: no dropout, no gradient, weights held in the compute precision."""
    return teacher.eval().requires_grad_(False).to(runtime.device, runtime.dtype)


def compile_forward(*models: nn.Module) -> None:
    """Run the models' forward passes through torch.compile, whatever the lengths of batches."""
    for model in models:
        model.forward = torch.compile(model.forward, dynamic=True)


def distribute(student: nn.Module, runtime: Runtime) -> nn.Module:
    """Wrap the student so that gradients are averaged over ranks; itself with a single rank.

    Parameters that no loss reads must be frozen before (`IntermediateObjective.freeze_unread`).
    """
    if runtime.world_size == 1:
        return student
    return DistributedDataParallel(
        student,
        device_ids=[runtime.device.index] if runtime.device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )


def gradient_sync(student: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Exchange gradients only for the last micro-batch; forward and backward go inside."""
    if is_last or not isinstance(student, DistributedDataParallel):
        return nullcontext()
    return student.no_sync()


def build_optimizer(
    student: nn.Module, args: argparse.Namespace, total_steps: int, runtime: Runtime
) -> tuple[BertAdam, torch.amp.GradScaler]:
    """Return BertAdam with its schedule over `total_steps`, and the loss scaler of fp16."""
    optimizer = BertAdam(
        parameter_groups(student, args.weight_decay),
        lr=args.learning_rate,
        warmup=args.warmup_proportion,
        t_total=total_steps,
    )
    scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)
    return optimizer, scaler


def optimizer_step(optimizer: BertAdam, scaler: torch.amp.GradScaler, step: int) -> None:
    """Apply the gradients of step `step` (the first being 1) and clear them."""
    scaler.unscale_(optimizer)  # BertAdam clips; that needs gradients at their own scale
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    for group in optimizer.param_groups:
        # A step that fp16 skipped still counts, so that the schedule ends at zero.
        group["step"] = step


def layer_terms(
    student: nn.Module,
    teacher: nn.Module,
    objective: IntermediateObjective,
    batch: Batch,
    counts: LossCounts | None,
    runtime: Runtime,
    **options: bool,
) -> dict[str, Tensor]:
    """Return the unweighted terms of layer distillation for a batch.

    Each model computes what the objective reads and nothing more; `options` go to both, such as
    `classify=False` for classifiers.
    """
    inputs = batch.input_ids, batch.token_type_ids, batch.attention_mask
    with torch.no_grad():
        teacher_output = teacher(*inputs, **objective.teacher_layers(), **options)
    with runtime.autocast():
        student_output = student(*inputs, **objective.student_layers(), **options)
    return objective(student_output, teacher_output, batch.attention_mask, counts)


def report(
    state: RunState, runtime: Runtime, progress: Progress, speed: Speed, epoch: float
) -> None:
    """Write the means since the last report to metrics.jsonl and the progress line."""
    terms = state.meter.read(runtime)
    rate = state.optimizer.get_lr()[0]
    speeds = speed.read()
    state.metrics.write(
        step=state.step, epoch=round(epoch, 4), **terms, learning_rate=rate, **speeds
    )
    shown = {"lr": rate, "seq/s": speeds["sequences_per_second"]}
    progress.report(**sum_by_kind(terms), **shown, **{"tok/s": speeds["tokens_per_second"]})
