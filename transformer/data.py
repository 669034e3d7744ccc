"""Packed token store on disk, batches of similar length, one order for any number of ranks."""

from __future__ import annotations

import json
import mmap
import os
import queue
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from .file_utils import UserError, atomic_write, sync_directory

FORMAT_VERSION = 1
# Rows read before the mapped pages are given back, so that resident memory stays bounded.
ROWS_BETWEEN_RELEASES = 8192
# Examples sorted by length together: enough for batches of one length, few enough to stay random.
DEFAULT_WINDOW = 8192
FEISTEL_ROUNDS = 8
Item = TypeVar("Item")


def mix_seed(*integers: int) -> int:
    """Mix integers into 64 well-spread bits, as a pure function (the splitmix64 finaliser)."""
    state = 0x9E3779B97F4A7C15
    for integer in integers:
        state = (state ^ (integer & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


# --- the store ---------------------------------------------------------------------------------


class PackedWriter:
    """Write a packed store aside; `close` gives it its name, `abort` leaves nothing.

    A store is a directory: `ids.bin` (all token ids in one row), `offsets.bin` (int64, N + 1),
    `first_length.bin` (uint16, tokens in segment 0), optionally `labels.bin` (float32) and
    `flags.bin` (uint8), and `meta.json`.

    Args:
        path: of the directory to be.
        vocab_size: decides between uint16 and int32 ids.
        meta: JSON values to keep with the store, such as the key of its sources.
    """

    def __init__(
        self,
        path: str | Path,
        vocab_size: int,
        *,
        labels: bool = False,
        flags: bool = False,
        meta: dict[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self.meta = dict(meta or {})
        self.ids_dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)
        self.examples = self.tokens = self.square_tokens = self.max_length = 0
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        names = ["ids", "offsets", "first_length"]
        names += ["labels"] * labels + ["flags"] * flags
        self._files = {name: open(self.partial / f"{name}.bin", "wb") for name in names}
        self._files["offsets"].write(np.zeros(1, np.int64).tobytes())

    def add(
        self,
        ids: Sequence[int],
        first_length: int,
        label: float | None = None,
        flag: int | None = None,
    ) -> None:
        """Append one example."""
        self.add_packed(
            np.asarray(ids),
            np.array([len(ids)]),
            np.array([first_length]),
            None if label is None else np.array([label]),
            None if flag is None else np.array([flag]),
        )

    def add_packed(
        self,
        ids: np.ndarray,
        lengths: np.ndarray,
        first_lengths: np.ndarray,
        labels: np.ndarray | None = None,
        flags: np.ndarray | None = None,
    ) -> None:
        """Append many examples: their ids one after another, and one number an example."""
        if len(lengths) == 0:
            return
        lengths = np.asarray(lengths, np.int64)
        columns = {
            "ids": np.asarray(ids).astype(self.ids_dtype),
            "offsets": self.tokens + np.cumsum(lengths),
            "first_length": np.asarray(first_lengths).astype(np.uint16),
            "labels": None if labels is None else np.asarray(labels, np.float32),
            "flags": None if flags is None else np.asarray(flags, np.uint8),
        }
        for name, file in self._files.items():
            if columns[name] is None:
                raise ValueError(f"{self.path}: this store has {name}, but none were given")
            file.write(columns[name].tobytes())
        self.examples += len(lengths)
        self.tokens += int(lengths.sum())
        self.square_tokens += int((lengths * lengths).sum())
        self.max_length = max(self.max_length, int(lengths.max()))

    def close(self) -> PackedDataset:
        """Flush everything, give the store its name, and open it."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        facts = {
            "format_version": FORMAT_VERSION,
            "ids_dtype": self.ids_dtype.name,
            "columns": list(self._files),
            "examples": self.examples,
            "tokens": self.tokens,
            "square_tokens": self.square_tokens,
            "max_length": self.max_length,
        }
        with atomic_write(self.partial / "meta.json") as file:
            json.dump({**self.meta, **facts}, file, indent=2)
        shutil.rmtree(self.path, ignore_errors=True)
        os.replace(self.partial, self.path)
        sync_directory(self.path.parent)
        return PackedDataset.open(self.path)

    def abort(self) -> None:
        """Remove what was written."""
        for file in self._files.values():
            file.close()
        shutil.rmtree(self.partial, ignore_errors=True)


class PackedDataset:
    """A packed store, memory-mapped: examples are read from disk as they are needed."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path, self.meta = path, meta
        self.tokens: int = meta["tokens"]
        self.square_tokens: int = meta["square_tokens"]
        self.max_length: int = meta["max_length"]
        dtypes = {"ids": meta["ids_dtype"], "offsets": "int64", "first_length": "uint16"}
        dtypes |= {"labels": "float32", "flags": "uint8"}
        maps = {name: _map(path / f"{name}.bin", dtypes[name]) for name in meta["columns"]}
        # Plain views: slicing a memmap object costs more than copying a row of it.
        columns = {name: array.view(np.ndarray) for name, array in maps.items()}
        self.ids, self.offsets = columns["ids"], columns["offsets"]
        self.first_length = columns["first_length"]
        self.labels, self.flags = columns.get("labels"), columns.get("flags")
        self._maps = [array._mmap for array in maps.values() if isinstance(array, np.memmap)]
        self._rows_read = 0

    @classmethod
    def open(cls, path: str | Path) -> PackedDataset:
        """Open the store at `path`.

        Raises:
            UserError: there is none, or one of another version, or a damaged one.
        """
        path = Path(path)
        try:
            meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is no packed store: {error}") from error
        if meta.get("format_version") != FORMAT_VERSION:
            raise UserError(f"{path}: packed by another version; remove it to pack it again")
        dataset = cls(path, meta)
        if len(dataset.offsets) != meta["examples"] + 1 or len(dataset.ids) != meta["tokens"]:
            raise UserError(f"{path}: the packed store is damaged; remove it to pack it again")
        return dataset

    def __len__(self) -> int:
        return self.meta["examples"]

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__dict__.update(PackedDataset.open(path).__dict__)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Return the token counts of the examples, int64."""
        self._count_reads(len(indices))
        return self.offsets[indices + 1] - self.offsets[indices]

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return the token ids of the examples, one array each."""
        self._count_reads(len(indices))
        starts, ends = self.offsets[indices], self.offsets[indices + 1]
        return [self.ids[start:end] for start, end in zip(starts, ends, strict=True)]

    def _count_reads(self, count: int) -> None:
        """Give pages that were read back to the system now and then; they stay in its cache."""
        self._rows_read += count
        if self._rows_read >= ROWS_BETWEEN_RELEASES and hasattr(mmap, "MADV_DONTNEED"):
            self._rows_read = 0
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)


def _map(path: Path, dtype: str) -> np.ndarray:
    """Map a file read-only; an empty file, which cannot be mapped, is an empty array."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


# --- batches -----------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Examples padded to one length; `indices` are their places in the dataset."""

    input_ids: torch.Tensor  # (B, T) int64
    token_type_ids: torch.Tensor  # (B, T) int64
    attention_mask: torch.Tensor  # (B, T) bool, True at real tokens
    labels: torch.Tensor | None  # (B,) float32
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
    multiple: int = 8,
) -> Batch:
    """Pad the examples to the longest of them, rounded up to `multiple`, or to `pad_to`."""
    indices = np.asarray(indices, np.int64)
    rows = dataset.rows(indices)
    lengths = np.array([len(row) for row in rows], np.int64)
    width = int(lengths.max(initial=1))
    width = pad_to if pad_to is not None else -(-width // multiple) * multiple
    input_ids = np.full((len(rows), width), pad_token_id, np.int64)
    for row, target in zip(rows, input_ids, strict=True):
        target[: len(row)] = row
    places = np.arange(width)
    attention_mask = places < lengths[:, None]
    token_type_ids = (places >= dataset.first_length[indices, None]) & attention_mask
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(token_type_ids.astype(np.int64)),
        torch.from_numpy(attention_mask),
        None if dataset.labels is None else torch.from_numpy(dataset.labels[indices]),
        None if dataset.flags is None else torch.from_numpy(dataset.flags[indices]),
        torch.from_numpy(indices),
    )


# --- order -------------------------------------------------------------------------------------


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

    def offer(kind: str, value: Any) -> bool:
        while not stopped.is_set():
            try:
                made.put((kind, value), timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer("item", item):
                    return
            offer("end", None)
        except BaseException as error:  # handed to the consumer, whatever it is
            offer("error", error)

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()
