"""What makes a run survive being killed: one state file, and one way to stop."""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from transformer.checkpoint.weight_files import write_file
from transformer.files import UserError, read_json, write_json
from transformer.runtime.fingerprint import Fingerprint, check_fingerprint, fingerprint
from transformer.runtime.metrics_log import MetricsLog
from transformer.runtime.output_dir import MODEL_FILES
from transformer.runtime.ranks import Runtime
from transformer.training.meter import LossMeter
from transformer.training.steps import RunPlan

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.pt"


@dataclass
class RunState:
    """All that changes while a run goes on; one file holds it, replaced in one instant.

    scaler: of the loss, for fp16; a disabled one otherwise.
    best_score: of the best evaluation so far, None before the first.
    since_best: evaluations since that one.
    stopped: the script has seen enough; the loop ends here, before its plan does.
    """

    student: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    meter: LossMeter
    metrics: MetricsLog
    fingerprint: Fingerprint
    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    since_best: int = 0
    stopped: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, output_dir: Path, runtime: Runtime) -> None:
        """Write the state; every rank must call this at the same step."""
        meters = runtime.gather_objects(self.meter.state_dict())
        if not runtime.is_main:
            return
        state = {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "since_best": self.since_best,
            "stopped": self.stopped,
            "facts": self.facts,
            "metrics_offset": self.metrics.sync(),
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "meters": meters,
        }
        _write_state(output_dir / STATE_FILE, state)

    def restore(self, state: dict[str, Any], runtime: Runtime) -> None:
        """Take over what `read_state` gave.

        Raises:
            UserError: it is not what a run of this model saves.
        """
        try:
            self.student.load_state_dict(state["student"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.meter.load_state_dict(state["meters"][runtime.rank])
            self.step, self.facts = state["step"], state["facts"]
            self.best_score, self.best_step = state["best_score"], state["best_step"]
            self.since_best, self.stopped = state["since_best"], state["stopped"]
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):
            raise UserError(DAMAGED.format(STATE_FILE)) from None


DAMAGED = (
    "--resume: {} is damaged, or no training state of this run; put back a copy, or begin anew "
    "with --overwrite_output_dir"
)


DIGEST_BYTES = 32


def _write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace the state file: what `torch.save` makes, and a digest of that behind it."""
    # subtle: into memory first. On a full disk torch.save hides the OSError behind another.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.write(hashlib.sha256(buffer.getbuffer()).digest())
    write_file(buffer.getbuffer(), path)


def read_state(output_dir: Path, runtime: Runtime) -> dict[str, Any] | None:
    """Read the state that the main rank finds, on every rank; None if the run has saved none.

    Raises:
        UserError: the file is not one of ours.
    """
    return runtime.on_main(lambda: _read_state(output_dir / STATE_FILE))


def _read_state(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
        raise UserError(DAMAGED.format(path))
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # a damaged pickle can raise anything, and torch's advice is no good here
        raise UserError(DAMAGED.format(path)) from None
    is_ours = (
        isinstance(state, dict)
        and isinstance(state.get("fingerprint"), dict)
        and isinstance(state.get("step"), int)
        and isinstance(state.get("metrics_offset", 0), int)
        and isinstance(state.get("facts", {}), dict)
        and {"student", "optimizer", "metrics_offset"} <= state.keys()
    )
    if not is_ours:
        raise UserError(DAMAGED.format(path))
    return state


def training_fingerprint(
    args: argparse.Namespace,
    flags: Iterable[str],
    plan: RunPlan,
    runtime: Runtime,
    **contents: Any,
) -> Fingerprint:
    """Return what decides the result of a training, on whatever stage.

    Args:
        flags: names of those that decide it.
        contents: what else is read, as `runtime.fingerprint.fingerprint` takes it.
    """
    return fingerprint(
        args,
        flags,
        data=plan.content_key(),
        ranks=runtime.world_size,
        precision=runtime.dtype,
        **contents,
    )


def earlier_state(
    args: argparse.Namespace, runtime: Runtime, now: Fingerprint
) -> dict[str, Any] | None:
    """Return what a run with --resume goes on from; None begins one.

    Args:
        now: what decides the result of the run as it is started now.

    Raises:
        UserError: what was saved is of a run with another fingerprint.
    """
    saved = read_state(args.output_dir, runtime) if args.resume else None
    if saved is not None:
        check_fingerprint(saved["fingerprint"], now, args.output_dir, "--overwrite_output_dir")
    return saved


def mark_finished(output_dir: Path, state: RunState) -> None:
    """Note in args.json that the run is done, and remove its state, which nobody needs any more."""
    path = output_dir / "args.json"
    written = [f"{place}{name}" for place in ("", "best/") for name in MODEL_FILES]
    files = [name for name in written if (output_dir / name).is_file()]
    done = {"step": state.step, "fingerprint": state.fingerprint, "files": files}
    write_json(path, {**read_json(path), "finished": done})
    (output_dir / STATE_FILE).unlink(missing_ok=True)


def is_finished(args: argparse.Namespace, runtime: Runtime, now: Fingerprint) -> bool:
    """Say whether --resume has nothing to do, on every rank.

    Args:
        now: what decides the result of the run as it is started now.

    Raises:
        UserError: what is finished is a run with another fingerprint, a file of its model is gone,
            or args.json is damaged.
    """
    done = runtime.on_main(lambda: _finished(args.output_dir)) if args.resume else None
    if done is None:
        return False
    check_fingerprint(done.get("fingerprint"), now, args.output_dir, "--overwrite_output_dir")
    logger.info("the run in %s is finished: nothing to do", args.output_dir)
    return True


def _finished(output_dir: Path) -> dict[str, Any] | None:
    """Return what `mark_finished` noted, None if the run is not done."""
    path = output_dir / "args.json"
    done = read_json(path).get("finished") if path.exists() else None
    if done is None:
        return None
    if not isinstance(done, dict) or not isinstance(done.get("files"), list):
        raise UserError(
            f"--resume: {path} is damaged; put back a copy, or begin anew with "
            "--overwrite_output_dir"
        )
    gone = [name for name in done["files"] if not (output_dir / str(name)).is_file()]
    if gone:
        raise UserError(
            f"--resume: the run in {output_dir} is finished, but {gone[0]} is gone; put it back, "
            "or begin anew with --overwrite_output_dir"
        )
    # A run that was killed between its last two files is done all the same.
    (output_dir / STATE_FILE).unlink(missing_ok=True)
    return done


class StopSignal:
    """SIGTERM and SIGINT ask the loop to save and leave; a second one ends the process at once.

    Ranks may get the signal at different steps, so they agree on one to stop after: each step
    begins an exchange and reads the one that the step before began, which costs no waiting.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.received = 0
        self._exchange: tuple[dist.Work, torch.Tensor] | None = None
        self._group = None
        if runtime.world_size > 1:
            self._group = dist.new_group(backend="gloo")

    def __enter__(self) -> StopSignal:
        self._old = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._exchange is not None and error is None:
            self._exchange[0].wait()
        for signum, handler in self._old.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + signum)
        self.received = signum
        if self.runtime.is_main:
            logger.warning("signal %d: saving after this step; once more ends at once", signum)

    def agreed(self) -> int:
        """Return the signal that all ranks stop for after this step, or 0; call it every step."""
        if self._group is None:
            return self.received
        earlier, self._exchange = self._exchange, None
        agreed = 0
        if earlier is not None:
            earlier[0].wait()
            agreed = int(earlier[1])
        if not agreed:
            flag = torch.tensor(self.received)
            work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
            self._exchange = work, flag
        return agreed
