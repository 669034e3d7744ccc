"""The leaves that the training loops share: one step, its set-up, and its report."""

from __future__ import annotations

import argparse
import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from transformer.optimization import BertAdam, parameter_groups
from transformer.runtime.metrics_log import MetricsLog, sum_by_kind
from transformer.runtime.progress import Progress, Speed
from transformer.runtime.ranks import Runtime, seed_step
from transformer.training.batches import Batch, LossCounts
from transformer.training.meter import LossMeter
from transformer.training.state import RunState
from transformer.training.steps import StepBatch

logger = logging.getLogger(__name__)


def is_due(step: int, every: int, total_steps: int) -> bool:
    """Say whether something done every so many steps, and after the last one, is due."""
    return step % every == 0 or step == total_steps


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
        gradient_as_bucket_view=True,
    )


def _gradient_sync(student: nn.Module, is_last: bool) -> AbstractContextManager[None]:
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


def _optimizer_step(optimizer: BertAdam, scaler: torch.amp.GradScaler, step: int) -> None:
    """Apply the gradients of step `step` (the first being 1) and clear them."""
    scaler.unscale_(optimizer)  # BertAdam clips; that needs gradients at their own scale
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    for group in optimizer.param_groups:
        # A step that fp16 skipped still counts, so that the schedule ends at zero.
        group["step"] = step


def begin_state(
    student: nn.Module,
    args: argparse.Namespace,
    runtime: Runtime,
    total_steps: int,
    saved: dict[str, Any] | None,
    identity: dict[str, str],
) -> RunState:
    """Set up optimizer, meter and metrics of a run, and go on from what was saved.

    Args:
        saved: from `read_state`; None begins at step 0.
        identity: from `fingerprint`.
    """
    optimizer, scaler = build_optimizer(student, args, total_steps, runtime)
    metrics = MetricsLog(
        args.output_dir / "metrics.jsonl" if runtime.is_main else None,
        offset=saved["metrics_offset"] if saved else 0,
        tensorboard_dir=args.output_dir / "tensorboard" if args.tensorboard else None,
    )
    state = RunState(student, optimizer, scaler, LossMeter(runtime.device), metrics, identity)
    if saved:
        state.restore(saved, runtime)
        logger.info("going on from step %d of %d", state.step, total_steps)
    return state


class Lesson(Protocol):
    """What a student is taught: the loss to minimise and its terms before weighting.

    Terms are sums over the batch divided by `counts`, so that those of micro-batches add up.
    """

    def __call__(
        self, student: nn.Module, batch: Batch, counts: LossCounts, runtime: Runtime
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


def take_step(
    student: nn.Module,
    lesson: Lesson,
    step_batch: StepBatch,
    state: RunState,
    runtime: Runtime,
    seed: int,
) -> None:
    """Take one optimizer step: every micro-batch forward and backward, then the update.

    Nothing here waits for the device. Dropout depends on seed, step and rank alone.

    Args:
        student: as `distribute` returned it.
    """
    seed_step(seed, step_batch.step, runtime.rank)
    for number, batch in enumerate(step_batch.batches, start=1):
        with _gradient_sync(student, number == len(step_batch.batches)):
            loss, terms = lesson(student, batch, step_batch.counts, runtime)
            state.scaler.scale(loss).backward()
        state.meter.add({"loss": loss, **terms})
    _optimizer_step(state.optimizer, state.scaler, step_batch.step)
    state.meter.end_step(step_batch.step)
    state.step = step_batch.step


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
