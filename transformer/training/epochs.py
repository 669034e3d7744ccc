"""The examples of general distillation: epoch_N.json, checked line by line, in packed stores."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer.files import (
    UserError,
    atomic_write,
    file_lock,
    quick_fingerprint,
    read_json,
)
from transformer.runtime.parallel import ordered_map, usable_cores
from transformer.runtime.progress import Progress
from transformer.training.packed import PackedDataset, PackedWriter, remove_leftovers

logger = logging.getLogger(__name__)

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
    except (ValueError, KeyError, TypeError, RecursionError):
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
    if not isinstance(positions, list) or not isinstance(labels, list):
        raise ValueError("masked_lm_positions and masked_lm_labels must be lists")
    if len(positions) != len(labels) or any(position not in places for position in positions):
        raise ValueError("masked_lm_positions must lie in the tokens, with one label each")
    try:
        return _Line([vocab[token] for token in tokens], first_length)
    except (KeyError, TypeError):
        unknown = next(t for t in tokens if not isinstance(t, str) or t not in vocab)
        raise ValueError(f"token {unknown!r} is not in the student's vocabulary") from None


# A file that was written less long ago may be written again without another quick fingerprint.
SETTLED_SECONDS = 3.0

SHOWN_ERRORS = 10


@dataclass(frozen=True)
class EpochFile:
    """One epoch's examples as they were generated."""

    path: Path
    examples: int
    max_seq_length: int


def find_epoch_files(directory: str | Path, max_seq_length: int | None) -> list[EpochFile]:
    """List epoch_0.json, epoch_1.json, ... of a directory with what their metrics files say.

    Args:
        max_seq_length: a limit in tokens, None for none.

    Raises:
        UserError: there are none, one is missing between others or unfinished, or they were
            generated longer than `max_seq_length`.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"--pregenerated_data {directory}: no such directory")
    files: list[EpochFile] = []
    while (path := directory / f"epoch_{len(files)}.json").is_file():
        files.append(_with_metrics(path))
    if not files:
        raise UserError(
            f"--pregenerated_data {directory}: no epoch_0.json; make it with "
            "pregenerate_training_data.py"
        )
    found = len(list(directory.glob("epoch_*[0-9].json")))
    if found != len(files):
        raise UserError(
            f"--pregenerated_data {directory}: epoch_{len(files)}.json is missing, though there "
            "are later ones"
        )
    for file in files:
        if max_seq_length is not None and file.max_seq_length > max_seq_length:
            raise UserError(
                f"{file.path} was generated with --max_seq_len {file.max_seq_length}, but "
                f"--max_seq_length is {max_seq_length}; leave --max_seq_length out or generate "
                f"with --max_seq_len {max_seq_length}"
            )
    return files


def has_pairs(file: EpochFile) -> bool:
    """Say whether the first example has two segments; a line that cannot be read has none."""
    with open(file.path, "rb") as lines:
        try:
            return 1 in json.loads(lines.readline())["segment_ids"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return False  # the line is refused when the data is read


def _with_metrics(path: Path) -> EpochFile:
    metrics_path = path.with_name(f"{path.stem}_metrics.json")
    if not metrics_path.is_file():
        raise UserError(f"{metrics_path} is missing: {path.name} was not finished")
    metrics = read_json(metrics_path)
    try:
        return EpochFile(path, int(metrics["num_training_examples"]), int(metrics["max_seq_len"]))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(
            f"{metrics_path}: needs num_training_examples and max_seq_len ({error!r})"
        ) from error


def open_pretraining_data(
    files: list[EpochFile],
    vocab: dict[str, int],
    *,
    cache_dir: Path | None = None,
    is_main: bool = True,
) -> list[PackedDataset]:
    """Return the packed store of each epoch file, making those that are missing or stale.

    The first process that comes makes a store with all processor cores; other ranks and runs wait
    at a lock file. Stores lie beside their files, or in `cache_dir`.

    Raises:
        UserError: bad lines, by number; no place to write.
    """
    place = cache_dir if cache_dir is not None else files[0].path.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--cache_dir {place} cannot be made: {error.strerror}") from error
    return [_open_or_pack(file, vocab, place, is_main) for file in files]


def _open_or_pack(
    file: EpochFile, vocab: dict[str, int], place: Path, is_main: bool
) -> PackedDataset:
    store = place / f"{file.path.stem}.{_store_key(file.path, vocab, place)}.packed"
    if not os.access(place, os.W_OK):
        if _is_fresh(store, file.path):
            return _check_examples(file, PackedDataset.open(store))
        raise UserError(f"{place} cannot be written; give a --cache_dir for the packed data")
    remove_leftovers(place, _lock_of)
    with file_lock(_lock_of(store), f"{file.path} is being packed"):
        if not _is_fresh(store, file.path):
            _pack(file, vocab, store, is_main)
    return _check_examples(file, PackedDataset.open(store))


def _lock_of(store: Path) -> Path:
    return store.with_suffix(".lock")


def _store_key(path: Path, vocab: dict[str, int], place: Path) -> str:
    """Name what a store is made of, besides content: the vocabulary and, elsewhere, the path."""
    digest = hashlib.sha256("\n".join(f"{t} {i}" for t, i in vocab.items()).encode())
    if place != path.parent:
        digest.update(os.fsencode(path.resolve()))
    return digest.hexdigest()[:12]


def _check_examples(file: EpochFile, dataset: PackedDataset) -> PackedDataset:
    """Check what is known only with the limits of this run."""
    if len(dataset) != file.examples:
        raise UserError(
            f"{file.path} ends after line {len(dataset)}, but its metrics file counts "
            f"{file.examples} examples; it is cut off or was changed: generate it again"
        )
    if dataset.max_length > file.max_seq_length:
        lengths = np.diff(dataset.offsets)
        line = int(np.argmax(lengths > file.max_seq_length))
        raise UserError(
            f"{file.path}, line {line + 1}: {lengths[line]} tokens, but its metrics file says "
            f"at most {file.max_seq_length}; generate it again"
        )
    return dataset


# --- freshness ---------------------------------------------------------------------------------


def _is_fresh(store: Path, source: Path) -> bool:
    """Say whether `store` was made from what `source` holds now.

    Equal quick fingerprints mean that nobody wrote; otherwise the whole content is hashed.
    """
    try:
        meta = PackedDataset.open(store).meta
    except UserError:
        return False
    now = quick_fingerprint(source)
    if meta.get("quick_fingerprint") == now:
        return True
    if meta.get("content") != _hash_file(source):
        logger.info("%s has changed: packing it again", source)
        return False
    if os.access(store, os.W_OK):
        with atomic_write(store / "meta.json") as file:
            json.dump({**meta, "quick_fingerprint": _settled(now)}, file, indent=2)
    return True


def _settled(quick: list[int]) -> list[int] | None:
    """Return one that can be trusted later: not that of a file written this very moment."""
    return quick if time.time() - quick[2] / 1e9 > SETTLED_SECONDS else None


def _hash_file(path: Path) -> str:
    """Hash the hashes of the chunks, as packing does."""
    total = hashlib.sha256()
    with closing(
        ordered_map(partial(hash_chunk, path), chunks_of(path), usable_cores())
    ) as digests:
        for digest in digests:
            total.update(digest)
    return total.hexdigest()


# --- packing -----------------------------------------------------------------------------------


def _pack(file: EpochFile, vocab: dict[str, int], store: Path, is_main: bool) -> None:
    """Parse all lines in parallel and write the store; nothing is left if a line is bad."""
    quick = quick_fingerprint(file.path)
    total = hashlib.sha256()
    errors: list[str] = []
    writer = PackedWriter(store, len(vocab))
    parse = partial(parse_chunk, file.path, vocab, file.max_seq_length)
    progress = Progress(
        file.examples, description=f"packing {file.path.name}", unit="lines", enabled=is_main
    )
    try:
        with (
            progress,
            closing(ordered_map(parse, chunks_of(file.path), usable_cores())) as results,
        ):
            lines = 0
            for parsed in results:
                errors += [f"line {lines + n + 1}: {what}" for n, what in parsed.errors]
                lines += len(parsed.lengths)
                total.update(parsed.digest)
                writer.add_packed(parsed.ids, parsed.lengths, parsed.first_lengths)
                progress.update(len(parsed.lengths))
                if len(errors) >= SHOWN_ERRORS:
                    break
        if errors:
            more = "; ..." if len(errors) > SHOWN_ERRORS else ""
            raise UserError(f"{file.path}: {'; '.join(errors[:SHOWN_ERRORS])}{more}")
        writer.meta |= {"content": total.hexdigest(), "quick_fingerprint": _settled(quick)}
        writer.close()
    except BaseException:
        writer.abort()
        raise
