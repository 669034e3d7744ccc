"""epoch_N.json of pregenerate_training_data.py -> packed stores, made once and never stale."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from transformer.data import PackedDataset, PackedWriter
from transformer.epoch_lines import available_cores, chunks_of, hash_chunk, parse_chunk
from transformer.file_utils import UserError, atomic_write
from transformer.parallel import ordered_map
from transformer.reporting import Progress
from transformer.runtime import file_lock

logger = logging.getLogger(__name__)

# A file whose stamps are younger than this may change again without a new stamp.
STAMP_SECONDS = 3.0
SHOWN_ERRORS = 10


@dataclass(frozen=True)
class EpochFile:
    """One epoch's examples as they were generated."""

    path: Path
    examples: int
    max_seq_length: int


def find_epoch_files(directory: str | Path, max_seq_length: int) -> list[EpochFile]:
    """List epoch_0.json, epoch_1.json, ... of a directory with what their metrics files say.

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
        if file.max_seq_length > max_seq_length:
            raise UserError(
                f"{file.path} was generated with --max_seq_len {file.max_seq_length}, but "
                f"--max_seq_length is {max_seq_length}; give --max_seq_length {file.max_seq_length}"
                f" or generate with --max_seq_len {max_seq_length}"
            )
    return files


def _with_metrics(path: Path) -> EpochFile:
    metrics_path = path.with_name(f"{path.stem}_metrics.json")
    try:
        metrics = json.loads(metrics_path.read_text(encoding="utf-8"))
        return EpochFile(path, int(metrics["num_training_examples"]), int(metrics["max_seq_len"]))
    except FileNotFoundError:
        raise UserError(f"{metrics_path} is missing: {path.name} was not finished") from None
    except (ValueError, KeyError, TypeError) as error:
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
    with file_lock(store.with_suffix(".lock"), f"{file.path} is being packed"):
        if not _is_fresh(store, file.path):
            _pack(file, vocab, store, is_main)
    return _check_examples(file, PackedDataset.open(store))


def _store_key(path: Path, vocab: dict[str, int], place: Path) -> str:
    """Name what a store is made of, besides content: the vocabulary and, elsewhere, the path."""
    digest = hashlib.sha256("\n".join(f"{t} {i}" for t, i in vocab.items()).encode())
    if place != path.parent:
        digest.update(str(path.resolve()).encode())
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


def _stamp(path: Path) -> list[int]:
    """Return what the system changes whenever the file is written."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _is_fresh(store: Path, source: Path) -> bool:
    """Say whether `store` was made from what `source` holds now.

    Equal stamps mean that nobody wrote; otherwise the whole content is hashed and compared.
    """
    try:
        meta = PackedDataset.open(store).meta
    except UserError:
        return False
    stamp = _stamp(source)
    if meta.get("stamp") == stamp:
        return True
    if meta.get("content") != _hash_file(source):
        logger.info("%s has changed: packing it again", source)
        return False
    if os.access(store, os.W_OK):
        with atomic_write(store / "meta.json") as file:
            json.dump({**meta, "stamp": _settled(stamp)}, file, indent=2)
    return True


def _settled(stamp: list[int]) -> list[int] | None:
    """Return a stamp that can be trusted later: not one of a file written this very moment."""
    return stamp if time.time() - stamp[2] / 1e9 > STAMP_SECONDS else None


def _hash_file(path: Path) -> str:
    """Hash the hashes of the chunks, as packing does."""
    total = hashlib.sha256()
    with closing(
        ordered_map(partial(hash_chunk, path), chunks_of(path), available_cores())
    ) as digests:
        for digest in digests:
            total.update(digest)
    return total.hexdigest()


# --- packing -----------------------------------------------------------------------------------


def _pack(file: EpochFile, vocab: dict[str, int], store: Path, is_main: bool) -> None:
    """Parse all lines in parallel and write the store; nothing is left if a line is bad."""
    stamp = _stamp(file.path)
    total = hashlib.sha256()
    errors: list[str] = []
    for leftover in store.parent.glob(f".{store.name}.*.tmp"):
        shutil.rmtree(leftover)  # of a process that was killed: we hold the lock
    writer = PackedWriter(store, len(vocab))
    parse = partial(parse_chunk, file.path, vocab, file.max_seq_length)
    progress = Progress(
        file.examples, description=f"packing {file.path.name}", unit="lines", enabled=is_main
    )
    try:
        with (
            progress,
            closing(ordered_map(parse, chunks_of(file.path), available_cores())) as results,
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
        writer.meta |= {"content": total.hexdigest(), "stamp": _settled(stamp)}
        writer.close()
    except BaseException:
        writer.abort()
        raise
