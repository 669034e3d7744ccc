"""The optimizer steps of a run: which examples each takes, on which rank, and the denominators."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from transformer.runtime.ranks import Runtime
from transformer.training.batches import Batch, BatchPlan, LossCounts, collate, prefetch, rank_share
from transformer.training.packed import PackedDataset

# A core gains nothing from more tokens at a time than this, and memory is all that they take: a
# CPU's share of a step is computed in as many pieces as it needs. The result is the same.
TOKENS_PER_CORE = 256


def steps_in_epochs(lengths: Sequence[int], epochs: float) -> list[int]:
    """Return the steps of each epoch; a fraction of the last one is rounded up to steps.

    Args:
        lengths: steps of a whole epoch on each epoch's data, which are used in turn.
    """
    steps = [lengths[epoch % len(lengths)] for epoch in range(math.ceil(epochs))]
    if epochs % 1:
        # subtle: 2.2 % 1 is a little more than 0.2, and must not add a step.
        steps[-1] = max(math.ceil(steps[-1] * (epochs % 1) - 1e-6), 1)
    return steps


class RunPlan:
    """All optimizer steps of a run: which examples of which epoch's data each one takes.

    Args:
        plans: one an epoch, used in turn; fewer than epochs are used again, in another order.
        epochs: how often to go through them; the fraction of the last one is rounded up to steps.
    """

    def __init__(self, plans: Sequence[BatchPlan], epochs: float) -> None:
        self.plans = tuple(plans)
        self.steps_in_epochs = steps_in_epochs([len(plan) for plan in self.plans], epochs)
        self.total_steps = sum(self.steps_in_epochs)

    def _plan(self, epoch: int) -> BatchPlan:
        return self.plans[epoch % len(self.plans)]

    def batch(self, step: int) -> tuple[PackedDataset, np.ndarray]:
        """Return the data and the indices of all ranks' examples of a step, the first being 0."""
        epoch, place = self.locate(step)
        plan = self._plan(epoch)
        return plan.dataset, plan.batch(epoch, place)

    def locate(self, step: int) -> tuple[int, int]:
        """Return (epoch, step in the epoch) of a step."""
        for epoch, steps in enumerate(self.steps_in_epochs):
            if step < steps:
                return epoch, step
            step -= steps
        raise IndexError(f"the run has only {self.total_steps} steps")

    def epochs_done(self, step: int) -> float:
        """Return how many epochs are done after `step` steps."""
        epoch, place = self.locate(step - 1)
        return epoch + (place + 1) / len(self._plan(epoch))

    def describe(self, step: int) -> dict[str, Any]:
        """Return what identifies the data of step `step`, the first being 1, for a report."""
        dataset, indices = self.batch(step - 1)
        epoch, _ = self.locate(step - 1)
        return {"epoch": epoch, "data": str(dataset.path), "indices": indices.tolist()}

    def content_key(self) -> str:
        """Return a digest of the data, to tell it from other data under the same name."""
        contents = [plan.dataset.meta.get("content", "") for plan in self.plans]
        return hashlib.sha256(" ".join(contents).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StepBatch:
    """What one rank does in one optimizer step.

    step: its number, the first being 1.
    batches: the micro-batches of this rank.
    counts: denominators of the losses. They are the whole step's, divided by the number of ranks,
        because DistributedDataParallel takes the mean over ranks.
    sequences, tokens: in the whole step, over all ranks.
    """

    step: int
    epoch: int
    batches: list[Batch]
    counts: LossCounts
    sequences: int
    tokens: int


def step_counts(dataset: PackedDataset, examples: int, world_size: int = 1) -> LossCounts:
    """Return what the losses of a step of `examples` are divided by on each rank.

    subtle: tokens and pairs are those of as many *average* examples of the data. With the batch's
    own number of tokens, a token in a batch of short sequences would weigh more than one in a
    batch of long ones, and sorting by length would change the loss; with the average every token
    of the corpus weighs the same, whatever batch it falls in.
    """
    share = examples / max(len(dataset), 1) / world_size
    totals = (dataset.tokens, dataset.square_tokens, dataset.tagged)
    return LossCounts(examples / world_size, *(total * share for total in totals))


def micro_batches(tokens: float, accumulation: int, runtime: Runtime) -> int:
    """Return in how many pieces a rank computes its share of so many tokens, padding included."""
    if runtime.device.type == "cuda":
        return accumulation
    cores = max(torch.get_num_threads(), 2)
    return max(accumulation, math.ceil(tokens / (TOKENS_PER_CORE * cores)))


def step_batches(
    plan: RunPlan,
    runtime: Runtime,
    *,
    first_step: int,
    accumulation: int,
    pad_token_id: int,
    pad_to: int | None = None,
) -> Iterator[StepBatch]:
    """Yield the step batches from `first_step` (the first being 1) on, on the rank's device.

    They are made in a background thread. Args: as in `rank_share` and `collate`.
    """
    made = _make_step_batches(plan, runtime, first_step, accumulation, pad_token_id, pad_to)
    for item in prefetch(made):
        yield replace(item, batches=[batch.to(runtime.device) for batch in item.batches])


def _make_step_batches(
    plan: RunPlan,
    runtime: Runtime,
    first_step: int,
    accumulation: int,
    pad_token_id: int,
    pad_to: int | None,
) -> Iterator[StepBatch]:
    on_gpu = runtime.device.type == "cuda"
    for step in range(first_step, plan.total_steps + 1):
        dataset, indices = plan.batch(step - 1)
        rows = len(indices) / runtime.world_size
        longest = pad_to or int(dataset.lengths(indices[-1:])[0])
        pieces = micro_batches(rows * longest, accumulation, runtime)
        shares = rank_share(
            indices, rank=runtime.rank, world_size=runtime.world_size, accumulation=pieces
        )
        counts = step_counts(dataset, len(indices), runtime.world_size)
        if not len(shares[0]):
            # A last batch smaller than the number of ranks: this rank must still take part in the
            # exchange of gradients, with an example whose losses are divided by infinity.
            shares, counts = [indices[:1]], LossCounts(*[math.inf] * 4)
        # Tensor cores want multiples of 8; a CPU does not care, and short sentences do.
        multiple = 8 if on_gpu else 2
        batches = [
            collate(dataset, share, pad_token_id=pad_token_id, pad_to=pad_to, multiple=multiple)
            for share in shares
        ]
        if on_gpu:
            batches = [batch.pin_memory() for batch in batches]
        yield StepBatch(
            step=step,
            epoch=plan.locate(step - 1)[0],
            batches=batches,
            counts=counts,
            sequences=len(indices),
            tokens=int(dataset.lengths(indices).sum()),
        )
