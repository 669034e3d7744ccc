"""The lines of epoch_N.json: read in chunks by several processes, checked, turned into ids."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Bytes that one worker parses at a time: a few thousand lines, some tens of MB while parsed.
CHUNK_BYTES = 4 << 20


@dataclass
class ParsedChunk:
    """What a worker made of a chunk; errors are (line of the chunk from 0, what is wrong)."""

    ids: np.ndarray
    lengths: np.ndarray
    first_lengths: np.ndarray
    digest: bytes
    errors: list[tuple[int, str]] = field(default_factory=list)


class _Line(NamedTuple):
    ids: list[int]
    first_length: int


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunks_of(path: Path) -> Iterator[tuple[int, int]]:
    """Cut a file at line ends into (start, end) of about CHUNK_BYTES."""
    start = 0
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while start < size:
            file.seek(min(start + CHUNK_BYTES, size))
            file.readline()
            end = file.tell()
            yield start, end
            start = end


def _read_chunk(path: Path, chunk: tuple[int, int]) -> bytes:
    with open(path, "rb") as file:
        file.seek(chunk[0])
        return file.read(chunk[1] - chunk[0])


def hash_chunk(path: Path, chunk: tuple[int, int]) -> bytes:
    """Return the SHA-256 of a chunk."""
    return hashlib.sha256(_read_chunk(path, chunk)).digest()


def parse_chunk(
    path: Path, vocab: dict[str, int], max_length: int, chunk: tuple[int, int]
) -> ParsedChunk:
    """Parse the lines of a chunk; a bad one counts as an empty example and is reported."""
    content = _read_chunk(path, chunk)
    ids: list[int] = []
    lengths: list[int] = []
    first_lengths: list[int] = []
    errors: list[tuple[int, str]] = []
    # subtle: not splitlines(), which also splits at characters that JSON allows in a string.
    for number, raw in enumerate(content.removesuffix(b"\n").split(b"\n")):
        try:
            line = _parse_line(raw, vocab, max_length)
        except ValueError as error:
            errors.append((number, str(error)))
            line = _Line([], 0)
        ids += line.ids
        lengths.append(len(line.ids))
        first_lengths.append(line.first_length)
    digest = hashlib.sha256(content).digest()
    packed = np.array(ids, np.int32), np.array(lengths), np.array(first_lengths)
    return ParsedChunk(*packed, digest, errors)


def _parse_line(raw: bytes, vocab: dict[str, int], max_length: int) -> _Line:
    """Turn one line into token ids.

    Raises:
        ValueError: what is wrong with the line.
    """
    try:
        example: dict[str, Any] = json.loads(raw)
        tokens, segments = example["tokens"], example["segment_ids"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("cut off, or no JSON object with tokens and segment_ids") from None
    if not isinstance(tokens, list) or not isinstance(segments, list) or not tokens:
        raise ValueError("tokens and segment_ids must be lists, and not empty")
    if len(tokens) > max_length:
        raise ValueError(f"{len(tokens)} tokens, more than the {max_length} of its metrics file")
    first_length = segments.count(0)
    if segments != [0] * first_length + [1] * (len(tokens) - first_length):
        raise ValueError(
            f"segment_ids must be one 0 or 1 for each of {len(tokens)} tokens, 0s first"
        )
    positions, labels = example.get("masked_lm_positions", []), example.get("masked_lm_labels", [])
    places = range(len(tokens))
    if len(positions) != len(labels) or any(position not in places for position in positions):
        raise ValueError("masked_lm_positions must lie in the tokens, with one label each")
    try:
        return _Line([vocab[token] for token in tokens], first_length)
    except (KeyError, TypeError):
        unknown = next(t for t in tokens if not isinstance(t, str) or t not in vocab)
        raise ValueError(f"token {unknown!r} is not in the student's vocabulary") from None
