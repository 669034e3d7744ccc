"""The training loop, written once: its set-up, its steps, the report of each stretch of them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from transformer.optimization import BertAdam, parameter_groups
from transformer.runtime.fingerprint import Fingerprint
from transformer.runtime.metrics_log import MetricsLog, known_rate, save_curves, shown_terms
from transformer.runtime.progress import Progress, Speed, closing_summary, format_seconds
from transformer.runtime.ranks import Runtime, seed_step
from transformer.training.batches import Batch, LossCounts
from transformer.training.meter import LossMeter, stop_if_not_finite
from transformer.training.state import RunState, StopSignal, mark_finished
from transformer.training.steps import RunPlan, StepBatch, step_batches

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

    Parameters that no loss reads must be frozen before (distillation/students.py).
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
        schedule=args.schedule,
        bias_correction=args.bias_correction,
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
        # A step that fp16 skipped still counts, so that the schedule comes to its end.
        group["step"] = step


def begin_state(
    student: nn.Module,
    args: argparse.Namespace,
    runtime: Runtime,
    total_steps: int,
    saved: dict[str, Any] | None,
    fingerprint: Fingerprint,
) -> RunState:
    """Set up optimizer, meter and metrics of a run, and go on from what was saved.

    Args:
        saved: from `read_state`; None begins at step 0.
        fingerprint: of the run.
    """
    optimizer, scaler = build_optimizer(student, args, total_steps, runtime)
    metrics = MetricsLog(
        args.output_dir / "metrics.jsonl" if runtime.is_main else None,
        offset=saved["metrics_offset"] if saved else 0,
        tensorboard_dir=args.output_dir / "tensorboard" if args.tensorboard else None,
    )
    state = RunState(student, optimizer, scaler, LossMeter(runtime.device), metrics, fingerprint)
    if saved:
        state.restore(saved, runtime)
        logger.info("going on from step %d of %d", state.step, total_steps)
    return state


class TrainingObjective(Protocol):
    """What the student learns: the loss to minimise and its terms before weighting.

    Terms are sums over the batch divided by `counts`, so that those of micro-batches add up.

    pad_to: the length of all batches; None: as long as their longest example.
    teacher: frozen; None where its answers are there already or nothing is asked of it.
    """

    pad_to: int | None
    teacher: nn.Module | None

    def __call__(
        self, student: nn.Module, batch: Batch, counts: LossCounts, runtime: Runtime
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


class Due(NamedTuple):
    """What the script has to do after a step of the loop."""

    evaluate: bool
    save: bool


def training_steps(
    objective: TrainingObjective,
    plan: RunPlan,
    state: RunState,
    args: argparse.Namespace,
    runtime: Runtime,
    *,
    name: str,
) -> Iterator[Due]:
    """Train `state.student` to the end of the plan: the loop, as a generator.

    It hands over to the script whenever something is due that only the script can do, as `train` in
    general_distill.py and `run_seed` in task_distill.py show.

    Args:
        state: `state.step` steps are done already. Where the script sets `state.stopped`, the loop
            ends after that step; every rank must set it at the same one.
        name: what progress lines call the training.

    Raises:
        RunError: a loss was not finite.
        SystemExit: a signal asked to stop; everything that was due has been done.
    """
    total = plan.total_steps
    logger.info("%s: %s", name, what_it_takes(objective, plan, state, args, runtime))
    student = distribute(state.student, runtime)
    progress = Progress(
        total, description=name, initial=state.step, enabled=runtime.is_main, log_every=0
    )
    speed = Speed()
    with progress, StopSignal(runtime) as stop:
        for step_batch in _batches_left(objective, plan, state, args, runtime):
            # One optimizer step. Nothing in it waits for the device.
            take_step(student, objective, step_batch, state, runtime, args.seed)
            speed.add(step_batch.sequences, step_batch.tokens)
            progress.update()

            # What is due now. A signal is obeyed once all ranks have heard of it.
            signum = stop.agreed()
            evaluating = is_due(state.step, args.eval_step, total)
            reporting = evaluating or is_due(state.step, args.log_steps, total)
            saving = bool(signum) or is_due(state.step, args.save_steps, total)

            # Once in a while: read the losses. What comes of one that is not finite is not kept.
            if reporting or evaluating or saving:
                stop_if_not_finite(state.meter, runtime, args.output_dir, plan.describe)
            if reporting:
                report(state, runtime, progress, speed, plan.epochs_done(state.step))

            # Once in a while: the script's turn, whose time is no training time.
            if evaluating or saving:
                yield Due(evaluate=evaluating, save=saving)
                speed.reset()

            if signum:
                raise SystemExit(128 + signum)
            if state.stopped:
                return


def what_it_takes(
    objective: TrainingObjective,
    plan: RunPlan,
    state: RunState,
    args: argparse.Namespace,
    runtime: Runtime,
) -> str:
    """Say before the first step how much there is to do, and what is known of memory and time.

    Activations are left out: to count them takes longer than a line of a log may (--dry_run does).
    """
    parameters = list(state.student.parameters())
    trained = [p for p in parameters if p.requires_grad]
    held = list(objective.teacher.parameters()) if objective.teacher is not None else []
    # Each parameter that is trained has a gradient and two moments of Adam.
    size = sum(p.numel() * p.element_size() for p in [*parameters, *held, *(3 * trained)])
    longest = objective.pad_to or max(part.dataset.max_length for part in plan.plans)
    steps = plan.total_steps - state.step
    line = (
        f"{sum(p.numel() for p in trained) / 1e6:.1f} M parameters learn in {steps:,} steps of "
        f"{runtime.world_size} x {args.train_batch_size} sequences of up to {longest} tokens; "
        f"weights, gradients and moments take about {size / 2**20:,.0f} MiB on {runtime.device}, "
        "activations come on top (--dry_run counts them)"
    )
    rate = known_rate(args.output_dir / "metrics.jsonl")
    if rate is None:
        return line
    left = steps * args.train_batch_size * runtime.world_size / rate
    return f"{line}; about {format_seconds(left)} at {rate:,.1f} sequences/s, the rate so far"


def _batches_left(
    objective: TrainingObjective,
    plan: RunPlan,
    state: RunState,
    args: argparse.Namespace,
    runtime: Runtime,
) -> Iterator[StepBatch]:
    """Return the batches of the steps that are left, made ahead in a thread of their own."""
    if state.stopped:
        return iter(())
    return step_batches(
        plan,
        runtime,
        first_step=state.step + 1,
        accumulation=args.gradient_accumulation_steps,
        pad_token_id=state.student.config.pad_token_id,
        pad_to=objective.pad_to,
    )


def take_step(
    student: nn.Module,
    objective: TrainingObjective,
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
            loss, terms = objective(student, batch, step_batch.counts, runtime)
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
    progress.report(**shown_terms(terms), **shown, **{"tok/s": speeds["tokens_per_second"]})


def finish_run(
    state: RunState,
    runtime: Runtime,
    output_dir: Path,
    name: str,
    results: Sequence[tuple[str, str]],
    facts: Sequence[str] = (),
    teacher: Mapping[str, float] | None = None,
) -> None:
    """Draw the curves, note that the run is done, and say what is where.

    Args:
        name: what was done.
        teacher: scores of the teacher, under their names in metrics.jsonl.
        results: (name in `output_dir`, what it is) of what this kind of run leaves.
    """
    state.metrics.close()
    if not runtime.is_main:
        return
    save_curves(
        output_dir / "metrics.jsonl",
        output_dir / "training_curves.png",
        title=f"{name}, {output_dir.resolve().name}",
        best_step=None if state.best_score is None else state.best_step,
        teacher=teacher,
    )
    mark_finished(output_dir, state)
    written = [
        *results,
        ("metrics.jsonl", "all reports"),
        ("training_curves.png", "the same as curves"),
        ("args.json", "what it was started with"),
    ]
    closing_summary(
        f"{name} is done",
        [(output_dir / name, what) for name, what in written],
        [f"{state.step} steps", *facts],
    )
