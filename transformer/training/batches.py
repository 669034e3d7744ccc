"""Batches of similar length from a packed store, in one order for any number of ranks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from transformer.runtime.ranks import mix_seed
from transformer.training.packed import PackedDataset

FEISTEL_ROUNDS = 8


@dataclass(frozen=True)
class Permutation:
    """A pseudo-random permutation of 0..size-1 that is computed, not stored.

    A Feistel network over the bits of `size`, applied again to results that fall outside
    ("cycle walking"), so that any part of the order is known without the rest of it.
    """

    size: int
    key: int

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return the elements at `positions`, int64."""
        values = self._encrypt(np.asarray(positions, np.uint64))
        outside = values >= self.size
        while outside.any():
            values[outside] = self._encrypt(values[outside])
            outside = values >= self.size
        return values.astype(np.int64)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        bits = max(self.size - 1, 3).bit_length()
        # subtle: the halves change places each round, so with an odd number of bits their widths
        # do too; an even number of rounds puts them back.
        widths = [np.uint64(bits // 2), np.uint64(bits - bits // 2)]
        left, right = values >> widths[1], values & _low_bits(widths[1])
        for turn in range(FEISTEL_ROUNDS):
            mask = _low_bits(widths[turn % 2])
            left, right = right, (left ^ _scramble(right, mix_seed(self.key, turn))) & mask
        return left << widths[1] | right


def _low_bits(width: np.uint64) -> np.uint64:
    return (np.uint64(1) << width) - np.uint64(1)


def _scramble(values: np.ndarray, key: int) -> np.ndarray:
    """Hash each element with `key` (multiplications wrap at 64 bits)."""
    mixed = (values + np.uint64(key & 0xFFFFFFFF)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(29)) ^ np.uint64(key >> 32)) * np.uint64(
        0x94D049BB133111EB
    )
    return mixed ^ (mixed >> np.uint64(32))


# Examples sorted by length together: enough for batches of one length, few enough to stay random.
DEFAULT_WINDOW = 8192

Item = TypeVar("Item")


class Batch(NamedTuple):
    """Examples padded to one length; `indices` are their places in the dataset."""

    input_ids: torch.Tensor  # (B, T) int64
    token_type_ids: torch.Tensor  # (B, T) int64
    attention_mask: torch.Tensor  # (B, T) bool, True at real tokens
    labels: torch.Tensor | None  # (B,) or (B, C) float32; of tags (B, T) int16, below 0 for none
    flags: torch.Tensor | None  # (B,) uint8
    indices: torch.Tensor  # (B,) int64

    def to(self, device: torch.device) -> Batch:
        """Copy to `device`, without waiting where the batch is pinned."""
        return Batch(*(None if x is None else x.to(device, non_blocking=True) for x in self))

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory, from which a GPU can copy by itself."""
        return Batch(*(None if x is None else x.pin_memory() for x in self))


def collate(
    dataset: PackedDataset,
    indices: np.ndarray,
    *,
    pad_token_id: int,
    pad_to: int | None = None,
    multiple: int = 2,
) -> Batch:
    """Pad the examples to the longest of them, rounded up to `multiple`, or to `pad_to`."""
    indices = np.asarray(indices, np.int64)
    rows = dataset.rows(indices)
    width = max(map(len, rows), default=1)
    width = pad_to if pad_to is not None else -(-width // multiple) * multiple
    padded = pad_rows(rows, dataset.first_length[indices], width, pad_token_id)
    labels = None if dataset.labels is None else dataset.labels[indices]
    if dataset.tags is not None:
        labels = np.full((len(rows), width), -100, np.int16)
        for tags, target in zip(dataset.tag_rows(indices), labels, strict=True):
            target[: len(tags)] = tags
    return padded._replace(
        labels=None if labels is None else torch.from_numpy(labels),
        flags=None if dataset.flags is None else torch.from_numpy(dataset.flags[indices]),
        indices=torch.from_numpy(indices),
    )


def pad_rows(
    rows: Sequence[Sequence[int]], first_lengths: Sequence[int], width: int, pad_token_id: int
) -> Batch:
    """Pad rows of ids to `width`; the first `first_lengths` tokens of each are segment 0.

    The batch has neither labels nor flags, and its indices are those of `rows`.
    """
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    input_ids = np.full((len(rows), width), pad_token_id, np.int64)
    for row, target in zip(rows, input_ids, strict=True):
        target[: len(row)] = row
    places = np.arange(width)
    attention_mask = places < lengths[:, None]
    token_type_ids = (places >= np.asarray(first_lengths)[:, None]) & attention_mask
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(token_type_ids.astype(np.int64)),
        torch.from_numpy(attention_mask),
        None,
        None,
        torch.arange(len(rows)),
    )


class BatchPlan:
    """The order of the global step batches of every epoch.

    Examples are shuffled, cut into windows, sorted by length within a window and cut into
    batches, whose order within the window is shuffled again. Every example comes once an epoch;
    the last batch may be smaller. Nothing depends on the number of ranks, and nothing but one
    window is held in memory.

    Args:
        batch_size: examples of one optimizer step, over all ranks and micro-batches.
        examples: use only the first so many; the rest is held out.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        batch_size: int,
        seed: int,
        window: int = DEFAULT_WINDOW,
        *,
        examples: int | None = None,
    ) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.examples = len(dataset) if examples is None else examples
        self.window = max(window // batch_size, 16) * batch_size
        self._window_batches = lru_cache(maxsize=2)(self._sort_window)

    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)

    def batch(self, epoch: int, step: int) -> np.ndarray:
        """Return the indices of step `step` of `epoch`, from the shortest to the longest."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of an epoch of {len(self)} steps")
        batches_in_window = self.window // self.batch_size
        return self._window_batches(epoch, step // batches_in_window)[step % batches_in_window]

    def _sort_window(self, epoch: int, number: int) -> list[np.ndarray]:
        start = number * self.window
        positions = np.arange(start, min(start + self.window, self.examples))
        indices = Permutation(self.examples, mix_seed(self.seed, epoch))(positions)
        indices = indices[np.argsort(self.dataset.lengths(indices), kind="stable")]
        batches = [
            indices[first : first + self.batch_size]
            for first in range(0, len(indices), self.batch_size)
        ]
        order = Permutation(len(batches), mix_seed(self.seed, epoch, number))
        return [batches[place] for place in order(np.arange(len(batches)))]


def rank_share(
    indices: np.ndarray, *, rank: int, world_size: int, accumulation: int = 1
) -> list[np.ndarray]:
    """Return one rank's micro-batches of a global step batch.

    The batch is dealt one by one, so that ranks get equal work when it is sorted by length, and
    each share is cut into at most `accumulation` pieces of similar length. A rank that gets
    nothing, in a last batch smaller than the number of ranks, has one empty piece.

    >>> rank_share(np.arange(7), rank=0, world_size=2, accumulation=2)
    [array([0, 2]), array([4, 6])]
    """
    share = indices[rank::world_size]
    return np.array_split(share, max(min(accumulation, len(share)), 1))


def evaluation_batches(
    dataset: PackedDataset,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    stop: int | None = None,
) -> list[np.ndarray]:
    """Cut the examples from `start` to `stop`, longest first, into batches and deal them to ranks.

    Every example is in exactly one batch of one rank; `Batch.indices` puts results in order.
    """
    indices = np.arange(start, len(dataset) if stop is None else stop)
    indices = indices[np.argsort(-dataset.lengths(indices), kind="stable")]
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    return batches[rank::world_size]


def prefetch(items: Iterable[Item], depth: int = 4) -> Iterator[Item]:
    """Yield `items`, made up to `depth` ahead in a background thread; its errors arrive here."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stopped = threading.Event()
    worker = threading.Thread(target=_produce, args=(items, made, stopped), daemon=True)
    worker.start()
    try:
        kind, value = made.get()
        while kind == "item":
            yield value
            kind, value = made.get()
        if kind == "error":
            raise value
    finally:
        stopped.set()
        with suppress(queue.Empty):
            while True:  # a worker that waits for room sees at once that it is over
                made.get_nowait()
        worker.join()


def _produce(items: Iterable[Any], made: queue.Queue, stopped: threading.Event) -> None:
    """Put every item into the queue `made`, then "end" or the error, until `stopped`."""

    def offer(kind: str, value: Any) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                made.put((kind, value), timeout=0.2)
                return

    try:
        for item in items:
            offer("item", item)
            if stopped.is_set():
                return
        offer("end", None)
    except BaseException as error:  # handed to the consumer, whatever it is
        offer("error", error)


class LossCounts(NamedTuple):
    """Count what the losses of one whole optimizer step, all ranks together, are means over."""

    examples: int
    tokens: int  # sum of lengths
    pairs: int  # sum of squared lengths: (query, key) pairs of real tokens
    tagged: float = 0  # tokens with a tag that is learnt

    @classmethod
    def from_lengths(cls, lengths: Iterable[int]) -> LossCounts:
        """Count sequences of these lengths. Example: [3, 2] -> LossCounts(2, 5, 13)."""
        lengths = [int(length) for length in lengths]
        return cls(len(lengths), sum(lengths), sum(length**2 for length in lengths))
