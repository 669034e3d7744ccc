"""What a training would take, without training: its steps, their shapes, device memory and time."""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from transformer.runtime.metrics_log import known_rate
from transformer.runtime.progress import format_seconds
from transformer.runtime.ranks import Runtime
from transformer.training.batches import Batch, LossCounts
from transformer.training.loop import TrainingObjective
from transformer.training.steps import micro_batches


class _LiveBytes(TorchDispatchMode):
    """Count the bytes of what operations make, while it is alive; `most` is their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:  # of a view, or written in place
            return
        size = storage.nbytes()
        self._known[storage] = size
        weakref.finalize(storage, self._remove, size)
        self.now += size
        self.most = max(self.most, self.now)

    def _remove(self, size: int) -> None:
        self.now -= size


class StepMemory(NamedTuple):
    """Bytes on the device in a training step.

    activations: what forward and backward pass hold at their peak, beside the gradients.
    """

    student: int
    teacher: int
    gradients: int
    moments: int
    activations: int

    @property
    def total(self) -> int:
        """Return the bytes of all of it."""
        return sum(self)


# Returns the student, ready to train, what it learns, and what stays on the device for that: the
# teacher's parameters, or its logits. They are made where `fake_device` says.
Builder = Callable[[], tuple[nn.Module, TrainingObjective, list[Tensor]]]


@contextmanager
def fake_device(runtime: Runtime) -> Iterator[None]:
    """Let tensors have shapes and a device, but no memory."""
    # Tensors of the real run that a loss holds, such as weights of classes, are taken as fakes.
    with FakeTensorMode(allow_non_fake_inputs=True), runtime.device:
        yield


@contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """Let parameters be of another precision than fp32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def batch_of_ones(rows: int, length: int) -> Batch:
    """Return a batch of full sequences without labels."""
    ids = torch.ones(rows, length, dtype=torch.long)
    return Batch(ids, ids, ids > 0, None, None, torch.arange(rows))


def step_memory(build: Builder, batch: Batch, pieces: int, runtime: Runtime) -> StepMemory:
    """Return what a step takes on the device, from its passes over tensors without memory.

    What kernels take for themselves, and what the allocator keeps in reserve, comes on top; fused
    attention is counted as if it held the scores, which it does not.

    Args:
        batch: of the shapes of a micro-batch; its values do not count.
        pieces: micro-batches of a step.
    """
    with fake_device(runtime):
        student, objective, held = build()
        fake = Batch(*(None if x is None else torch.zeros(x.shape, dtype=x.dtype) for x in batch))
        counts = LossCounts(*[1.0] * 4)
        with _LiveBytes() as live:
            for _ in range(min(pieces, 2)):  # from the second on, gradients are there already
                objective(student, fake, counts, runtime)[0].backward()
    trained = _bytes(p for p in student.parameters() if p.requires_grad)
    return StepMemory(
        student=_bytes(student.parameters()),
        teacher=_bytes(held),
        gradients=trained,
        moments=2 * trained,
        activations=max(live.most - trained, 0),
    )


def _bytes(tensors: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def plan_lines(
    args: argparse.Namespace,
    steps: int,
    longest: int,
    runtime: Runtime,
    memory: Callable[[int, int], StepMemory],
) -> list[tuple[str, str]]:
    """Return what `--dry_run` prints of a training, as names and values.

    Args:
        steps: of the whole training.
        longest: tokens of the longest batch.
        memory: (rows, micro-batches) -> what a step of so many, each of so many rows, takes.
    """
    rows = args.train_batch_size
    pieces = micro_batches(rows * longest, args.gradient_accumulation_steps, runtime)
    pieces = min(pieces, rows)
    piece = -(-rows // pieces)
    taken = memory(piece, pieces)
    parts = [(name, size) for name, size in taken._asdict().items() if size]
    shown = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in parts)
    cut = f", in {pieces} pieces of up to {piece}" if pieces > 1 else ""
    lines = [
        ("steps", f"{steps:,} in {args.num_train_epochs:g} epochs"),
        ("a step", f"{runtime.world_size} x {rows} sequences of up to {longest} tokens{cut}"),
        ("memory", f"about {taken.total / 2**20:,.0f} MiB on {runtime.device}: {shown}"),
    ]
    rate = known_rate(args.output_dir / "metrics.jsonl")
    if rate is not None:
        examples = steps * rows * runtime.world_size
        about = f"about {format_seconds(examples / rate)} at {rate:,.1f} sequences/s, the rate of"
        lines.append(("time", f"{about} the run in {args.output_dir}"))
    return lines


def print_plan(title: str, lines: list[tuple[str, str]]) -> None:
    """Print the names and values of `plan_lines` on stdout."""
    print(f"{title}: this is a dry run, nothing is written")
    for name, value in lines:
        print(f"  {name:<8} {value}")
