"""The logits of a teacher for a data set: computed once, kept on disk, shared by all epochs."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from transformer.files import UserError, atomic_write, file_lock
from transformer.modeling import TinyBertForPreTraining
from transformer.runtime.progress import Progress
from transformer.runtime.ranks import Runtime
from transformer.training.inference import predict_logits
from transformer.training.packed import PackedDataset

# Rows that are computed between two saves.
LOGITS_BLOCK = 16384


def teacher_logits(
    teacher: TinyBertForPreTraining,
    dataset: PackedDataset,
    directory: Path,
    batch_size: int,
    runtime: Runtime,
) -> torch.Tensor:
    """Return the teacher's logits of every row, (N, C) float32; on a CPU they stay on the disk.

    Those of a teacher that answers for each token have one row a token.

    They are computed once and kept under a name made from the teacher's weights, its precision and
    the data. An interrupted computation goes on where it was.
    """
    path = directory / f"logits-{_fingerprint(teacher, dataset, runtime)}.npy"
    directory.mkdir(parents=True, exist_ok=True)
    lock = file_lock(directory / f".{path.stem}.lock", "computing teacher logits")
    # Only the main rank asks other runs to wait; its own ranks follow it.
    with lock if runtime.is_main else nullcontext():
        if not all(runtime.gather_objects(path.is_file())):
            _write_logits(teacher, dataset, path, batch_size, runtime)
    # subtle: "c" lets torch take the mapped array as its own; nothing is written to the file.
    logits = np.load(path, mmap_mode="c")
    if logits.shape != _shape(teacher, dataset):
        raise UserError(f"{path} is damaged; remove it to compute it again")
    return torch.from_numpy(logits).to(runtime.device)


def _write_logits(
    teacher: TinyBertForPreTraining,
    dataset: PackedDataset,
    path: Path,
    batch_size: int,
    runtime: Runtime,
) -> None:
    """Compute the logits in blocks; one rank of each machine writes them to its disk."""
    rows = partial = None
    done = len(dataset)
    if runtime.local_rank == 0:
        partial = PartialArray(
            path.with_name(f".{path.stem}-{runtime.rank}.tmp"), _shape(teacher, dataset)
        )
        rows, done = partial.rows, partial.done
    done = min(runtime.gather_objects(done))
    with Progress(
        len(dataset),
        description="teacher logits",
        unit="rows",
        initial=done,
        enabled=runtime.is_main,
    ) as progress:
        for start in range(done, len(dataset), LOGITS_BLOCK):
            stop = min(start + LOGITS_BLOCK, len(dataset))
            part = (start, stop)
            block = predict_logits(
                teacher, dataset, batch_size, runtime, part=part, progress=progress
            )
            if partial is not None:
                first, last = dataset.offsets[[start, stop]] if teacher.per_token else part
                rows[first:last] = block
                partial.mark(stop)
    if partial is not None:
        partial.finish(path)
    runtime.barrier()


def _shape(teacher: TinyBertForPreTraining, dataset: PackedDataset) -> tuple[int, int]:
    """Return the shape of the logits of all rows, or of all their tokens."""
    return (dataset.tokens if teacher.per_token else len(dataset)), teacher.config.num_labels


class PartialArray:
    """A float32 array on disk that is filled from the front and survives being killed."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path, self.progress_file = path, path.with_suffix(".done")
        held = path.is_file() and self.progress_file.is_file()
        self.done = int(self.progress_file.read_text()) if held else 0
        mode = "r+" if self.done else "w+"
        self.rows = np.lib.format.open_memmap(path, mode=mode, dtype=np.float32, shape=shape)

    def mark(self, done: int) -> None:
        """Flush the first `done` rows and note that they are there."""
        self.rows.flush()
        with atomic_write(self.progress_file) as file:
            file.write(str(done))

    def finish(self, path: Path) -> None:
        """Give the whole array its name."""
        self.rows.flush()
        self.path.replace(path)
        self.progress_file.unlink(missing_ok=True)


def _fingerprint(teacher: TinyBertForPreTraining, dataset: PackedDataset, runtime: Runtime) -> str:
    """Return a digest of what the logits depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(name.encode())
        plain = tensor.to_dense() if tensor.is_mkldnn else tensor  # see packed_linear.py
        digest.update(plain.detach().cpu().contiguous().view(torch.uint8).numpy())
    facts = [teacher.config.to_dict(), dataset.path.name, str(runtime.dtype)]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:16]
