"""The packed token store: a directory of flat arrays, written once and memory-mapped."""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from transformer.files import UserError, atomic_write, read_json, sync_directory, try_lock

FORMAT_VERSION = 1

# Rows read before the mapped pages are given back, so that resident memory stays bounded.
ROWS_BETWEEN_RELEASES = 8192


def remove_leftovers(directory: Path, lock_of: Callable[[Path], Path]) -> None:
    """Remove what killed processes left of the stores in `directory`.

    Args:
        lock_of: from the path of a store to its lock file, which a process that writes holds.
    """
    for partial in directory.glob(".*.*.tmp"):
        store = directory / partial.name[1:].rsplit(".", 2)[0]
        if partial.is_dir() and (lock := try_lock(lock_of(store), 0)) is not None:
            shutil.rmtree(partial, ignore_errors=True)
            lock.release()


class PackedWriter:
    """Write a packed store aside; `close` gives it its name, `abort` leaves nothing.

    A store is a directory: `ids.bin` (all token ids in one row), `offsets.bin` (int64, N + 1),
    `first_length.bin` (uint16, tokens in segment 0), and `meta.json`; as asked for, `labels.bin`
    (float32, one or more an example), `tags.bin` (int16, one a token), `places.bin` (int32, two a
    token: where in the text it stands), `sources.bin` (int32, the text that an example is a window
    of) and `flags.bin` (uint8).

    Args:
        path: of the directory to be.
        vocab_size: decides between uint16 and int32 ids.
        labels: how many an example has.
        meta: JSON values to keep with the store, such as the key of its sources.
    """

    def __init__(
        self,
        path: str | Path,
        vocab_size: int,
        *,
        labels: int = 0,
        tags: bool = False,
        places: bool = False,
        sources: bool = False,
        flags: bool = False,
        meta: dict[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self.meta = dict(meta or {})
        self.ids_dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)
        self.examples = self.tokens = self.square_tokens = self.max_length = self.tagged = 0
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        names = ["ids", "offsets", "first_length"]
        names += ["labels"] * bool(labels) + ["flags"] * flags
        names += ["tags"] * tags + ["places"] * places + ["sources"] * sources
        self.labels = labels
        self._files = {name: (self.partial / f"{name}.bin").open("wb") for name in names}
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
        *,
        tags: np.ndarray | None = None,
        places: np.ndarray | None = None,
        sources: np.ndarray | None = None,
    ) -> None:
        """Append many examples: ids, tags, places one after another, the others one an example."""
        if len(lengths) == 0:
            return
        lengths = np.asarray(lengths, np.int64)
        columns = {
            "ids": np.asarray(ids).astype(self.ids_dtype),
            "offsets": self.tokens + np.cumsum(lengths),
            "first_length": np.asarray(first_lengths).astype(np.uint16),
            "labels": None if labels is None else np.asarray(labels, np.float32),
            "flags": None if flags is None else np.asarray(flags, np.uint8),
            "tags": None if tags is None else np.asarray(tags, np.int16),
            "places": None if places is None else np.asarray(places, np.int32),
            "sources": None if sources is None else np.asarray(sources, np.int32),
        }
        for name, file in self._files.items():
            if columns[name] is None:
                raise ValueError(f"{self.path}: this store has {name}, but none were given")
            file.write(columns[name].tobytes())
        self.examples += len(lengths)
        self.tagged += 0 if tags is None else int((columns["tags"] >= 0).sum())
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
        if self.labels > 1:
            facts["labels_each"] = self.labels
        if "tags" in self._files:
            facts["tagged"] = self.tagged
        with atomic_write(self.partial / "meta.json") as file:
            json.dump({**self.meta, **facts}, file, indent=2)
        shutil.rmtree(self.path, ignore_errors=True)
        os.replace(self.partial, self.path)
        sync_directory(self.path.parent)
        return PackedDataset.open(self.path)

    def abort(self) -> None:
        """Remove what was written."""
        for file in self._files.values():
            # subtle: to close is to write what is buffered, which a full disk refuses once more.
            with suppress(OSError):
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
        dtypes |= {"labels": "float32", "flags": "uint8", "tags": "int16"}
        dtypes |= {"places": "int32", "sources": "int32"}
        self.tagged: int = meta.get("tagged", 0)  # tokens with a tag that is learnt
        maps = {name: _map(path / f"{name}.bin", dtypes[name]) for name in meta["columns"]}
        # Plain views: slicing a memmap object costs more than copying a row of it.
        columns = {name: array.view(np.ndarray) for name, array in maps.items()}
        self.ids, self.offsets = columns["ids"], columns["offsets"]
        self.first_length = columns["first_length"]
        self.labels, self.flags = columns.get("labels"), columns.get("flags")
        self.tags, self.sources = columns.get("tags"), columns.get("sources")
        self.places = columns["places"].reshape(-1, 2) if "places" in columns else None
        if meta.get("labels_each"):
            self.labels = self.labels.reshape(-1, meta["labels_each"])
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
            meta = read_json(path / "meta.json")
        except UserError as error:
            raise UserError(f"{path} is no packed store: {error}") from None
        if meta.get("format_version") != FORMAT_VERSION:
            raise UserError(f"{path}: packed by another version; remove it to pack it again")
        try:
            dataset = cls(path, meta)
            sizes = (meta["examples"] + 1, meta["tokens"])
        except (KeyError, TypeError, ValueError, FileNotFoundError):  # not the keys that we write
            sizes = None
        if sizes is None or (len(dataset.offsets), len(dataset.ids)) != sizes:
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
        return self._slices(self.ids, indices)

    def tag_rows(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return the tags of the examples' tokens, one array each."""
        return self._slices(self.tags, indices)

    def token_places(self, indices: np.ndarray) -> np.ndarray:
        """Return the places of the examples' tokens in an array with one row a token."""
        starts, ends = self.offsets[indices], self.offsets[indices + 1]
        return np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])

    def _slices(self, column: np.ndarray, indices: np.ndarray) -> list[np.ndarray]:
        starts, ends = self.offsets[indices], self.offsets[indices + 1]
        return [column[start:end] for start, end in zip(starts, ends, strict=True)]

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
