"""Keep the tokens of a corpus on disk: ids in one flat file, the places of sentences in another.

`TokenStoreWriter` appends blocks of tokens in order and can go on where a killed process stopped;
`TokenStore` reads any stretch of them. Neither holds more than a block or the stretch asked for,
whatever the size of the corpus.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from transformer.corpus.tokens import TokenBlock

# A longer document is treated as several: memory must not grow with the longest one.
LONGEST_DOCUMENT = 1 << 18

# An entry of sentences.bin.
_MARK = np.dtype("<i8")

# Instances are made by parts of about this many tokens: their lines stay in the processor's caches.
PART_TOKENS = 1 << 17


@dataclass
class StoreState:
    """How far a token store has got; JSON can hold it."""

    blocks: int = 0
    tokens: int = 0
    sentences: int = 0
    documents: int = 0
    break_pending: bool = True
    document_start: int = 0
    part_starts: list[int] = field(default_factory=list)
    last_part_token: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    complete: bool = False


class TokenStoreWriter:
    """Append blocks of tokens to a store.

    sentences.bin holds, for each sentence, twice the place of its first token, plus one where it
    begins a document; one more entry marks the end.

    Args:
        directory: of the store; made if missing.
        state: where to go on; what lies behind it on the disk is cut off.
        part_tokens: parts have about this many; it changes the work units, not the instances.
    """

    def __init__(
        self, directory: Path, dtype: DTypeLike, state: StoreState, part_tokens: int = PART_TOKENS
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.state = state
        self.part_tokens = part_tokens
        self._ids = _open_at(directory / "ids.bin", state.tokens * np.dtype(dtype).itemsize)
        self._sentences = _open_at(directory / "sentences.bin", state.sentences * 8)

    def append(self, block: TokenBlock) -> None:
        """Add the next block."""
        state = self.state
        begins = block.begins_document.copy()
        if len(begins) and state.break_pending:
            begins[0] = True
        if len(begins) or block.break_after:
            state.break_pending = block.break_after
        state.documents += int(begins.sum())
        ends = state.tokens + np.cumsum(block.lengths)
        starts = ends - block.lengths
        self._cut_long_documents(starts, ends, begins)
        for number in np.flatnonzero(begins).tolist():
            self._begin_document(state.sentences + number, int(starts[number]))
        self._ids.write(block.ids.tobytes())
        self._sentences.write((starts << 1 | begins).astype(_MARK).tobytes())
        state.tokens += len(block.ids)
        state.sentences += len(block.lengths)
        state.blocks += 1
        state.counts = dict(Counter(state.counts) + block.counts)

    def flush(self) -> dict[str, Any]:
        """Bring everything to the disk and return the state as it is there."""
        for file in (self._ids, self._sentences):
            file.flush()
            os.fsync(file.fileno())
        return asdict(self.state)

    def close(self) -> None:
        """Leave the store as it is."""
        self._ids.close()
        self._sentences.close()

    def finish(self) -> dict[str, Any]:
        """Write the end mark and return the final state."""
        self._sentences.write(np.array([self.state.tokens << 1 | 1], _MARK).tobytes())
        self.state.complete = True
        return self.flush()

    def _begin_document(self, sentence: int, token: int) -> None:
        """Note where a document begins and, if the last part is long enough, a new part."""
        state = self.state
        state.document_start = token
        if not state.part_starts or token - state.last_part_token >= self.part_tokens:
            state.part_starts.append(sentence)
            state.last_part_token = token

    def _cut_long_documents(self, starts: np.ndarray, ends: np.ndarray, begins: np.ndarray) -> None:
        """Let a new document begin inside one that is too long."""
        current = self.state.document_start
        if not len(starts) or ends[-1] - current <= LONGEST_DOCUMENT:
            return
        for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            if end - current > LONGEST_DOCUMENT and not begins[number]:
                begins[number] = True
                self.state.counts["documents cut"] = self.state.counts.get("documents cut", 0) + 1
            if begins[number]:
                current = start


def _open_at(path: Path, size: int) -> Any:
    file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 - closed by its owner
    file.truncate(size)
    file.seek(size)
    return file


@dataclass(frozen=True)
class TokenStore:
    """Read a finished store.

    subtle: it reads with `pread` rather than through a memory map, because pages of a map that were
    touched count as memory of the process, and random next sentences touch all of them in time.
    """

    directory: Path
    dtype: np.dtype
    sentences: int
    part_starts: tuple[int, ...]

    @classmethod
    def from_state(cls, directory: Path, dtype: DTypeLike, state: StoreState) -> TokenStore:
        """Open the store that was written with `state` as its last."""
        parts = (*state.part_starts, state.sentences)
        return cls(directory, np.dtype(dtype), state.sentences, parts)

    def sentence_marks(self, first: int, count: int) -> np.ndarray:
        """Return entries of sentences.bin: (count,), fewer at the end of the corpus."""
        return np.frombuffer(os.pread(self._sentence_file, count * 8, first * 8), _MARK)

    def ids(self, first: int, count: int) -> np.ndarray:
        """Return token ids: (count,)."""
        dtype = self.dtype
        size = dtype.itemsize
        return np.frombuffer(os.pread(self._id_file, count * size, first * size), dtype)

    @cached_property
    def _sentence_file(self) -> int:
        return os.open(self.directory / "sentences.bin", os.O_RDONLY)

    @cached_property
    def _id_file(self) -> int:
        return os.open(self.directory / "ids.bin", os.O_RDONLY)
