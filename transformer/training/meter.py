"""Loss terms summed on the device, read once a report; and the watch for values not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transformer.files import atomic_write
from transformer.runtime.ranks import Runtime
from transformer.runtime.script import RunError

NO_STEP = 2**62


class LossMeter:
    """Sum the terms of every step without waiting for the device.

    The value of a step is the sum over its micro-batches and the mean over ranks, as the
    denominators of `StepBatch.counts` want it. The first step with a value that is not finite is
    remembered with its terms until somebody looks.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: list[str] = []
        self.steps = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add the terms of one micro-batch."""
        values = torch.stack([term.detach().float() for term in terms.values()])
        if not self.names:
            self._begin(list(terms))
        self._step += values

    def end_step(self, step: int) -> None:
        """Close a step."""
        bad = ~torch.isfinite(self._step).all()
        is_first = bad & (self._bad_step == NO_STEP)
        self._bad_step = torch.where(is_first, step, self._bad_step)
        self._bad_terms = torch.where(is_first, self._step, self._bad_terms)
        self._sums += self._step
        self._step = torch.zeros_like(self._step)
        self.steps += 1

    def read(self, runtime: Runtime) -> dict[str, float]:
        """Return the mean of each term since the last reading, over all ranks, and begin anew."""
        sums = runtime.sum_over_ranks(self._sums.double()).tolist()
        scale = 1 / (max(self.steps, 1) * runtime.world_size)
        self._sums.zero_()
        self.steps = 0
        return {name: value * scale for name, value in zip(self.names, sums, strict=True)}

    def check_finite(self, runtime: Runtime) -> tuple[int, dict[str, float]] | None:
        """Return the first step that was not finite on any rank, with its terms, or None."""
        if not self.names:
            return None
        found = runtime.gather_objects((int(self._bad_step), self._bad_terms.tolist()))
        step, terms = min(found, key=lambda pair: pair[0])
        if step == NO_STEP:
            return None
        return step, dict(zip(self.names, terms, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of this rank, exactly."""
        sums = self._sums.tolist() if self.names else []
        return {"names": self.names, "sums": sums, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        if state["names"]:
            self._begin(state["names"])
            self._sums = torch.tensor(state["sums"], dtype=torch.float32, device=self.device)
        self.steps = state["steps"]

    def _begin(self, names: list[str]) -> None:
        self.names = names
        self._step, self._sums, self._bad_terms = torch.zeros(3, len(names), device=self.device)
        self._bad_step = torch.full((), NO_STEP, device=self.device)


def stop_if_not_finite(meter: LossMeter, runtime: Runtime, output_dir: Path, describe: Any) -> None:
    """Stop the run if a loss was not finite, with a file that says where.

    Args:
        describe: (step) -> JSON values that identify its data, such as epoch and indices.

    Raises:
        RunError: it was; nothing that was computed after that step has been saved.
    """
    found = meter.check_finite(runtime)
    if found is None:
        return
    step, terms = found
    path = output_dir / f"nonfinite_step_{step}.json"
    if runtime.is_main:
        report = {"step": step, "terms": {k: str(v) for k, v in terms.items()}, **describe(step)}
        with atomic_write(path) as file:
            json.dump(report, file, indent=2)
    bad = ", ".join(f"{name} {value}" for name, value in terms.items() if not math.isfinite(value))
    raise RunError(
        f"the loss of step {step} is not finite ({bad}); the examples of that step are in {path}. "
        "A lower --learning_rate or --precision fp32 may help"
    )
