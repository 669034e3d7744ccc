"""The output directory of a run: refused, replaced or gone on with, and its args.json."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformer.file_utils import UserError, atomic_write

logger = logging.getLogger(__name__)

# What our scripts write at the top of an output directory, and --overwrite_output_dir removes.
RUN_FILES = (
    "args.json",
    "config.json",
    "eval_results.json",
    "eval_results.txt",
    "metrics.jsonl",
    "model.safetensors",
    "pytorch_model.bin",
    "training_curves.png",
    "training_state.pt",
    "best/config.json",
    "best/model.safetensors",
    "best/pytorch_model.bin",
    "last/config.json",
    "last/model.safetensors",
    "last/pytorch_model.bin",
)

LEFTOVERS = ".*.tmp"


def restarted() -> bool:
    """Say whether torchrun started this process again after a rank was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def check_models_are_apart(args: argparse.Namespace, output_dirs: Iterable[Path]) -> None:
    """Refuse a model on disk that the run reads and, in one of `output_dirs`, would replace.

    Raises:
        UserError: it would be overwritten.
    """
    written = {(path / name).parent.resolve() for path in output_dirs for name in RUN_FILES}
    for flag in ("student_model", "teacher_model"):
        given = getattr(args, flag)
        if given is not None and Path(given).exists() and Path(given).resolve() in written:
            raise UserError(
                f"--{flag} {given} would be overwritten by the run in --output_dir "
                f"{args.output_dir}; give another directory"
            )


def prepare_output_dir(
    output_dir: str | Path, *, resume: bool, overwrite: bool, is_main: bool = True
) -> Path:
    """Make `output_dir`, or check that what it holds may be gone on with or replaced.

    Only the main rank looks and writes. Without a run in it, `resume` begins one.

    Raises:
        UserError: the directory holds files and neither flag is given, or it cannot be written.
    """
    path = Path(output_dir)
    if not is_main:
        return path
    if resume and overwrite and not restarted():
        raise UserError("--resume and --overwrite_output_dir contradict each other; give one")
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir {path} is a file; give a directory")
    entries = path.iterdir() if path.exists() else ()
    # What atomic_write left when it was killed is nothing that is held.
    held = sorted(entry.name for entry in entries if not entry.match(LEFTOVERS))
    if held and not resume and not overwrite:
        raise UserError(
            f"--output_dir {path} holds files ({held[0]}, ...): give --resume to go on with the "
            "run in it, --overwrite_output_dir to replace it, or another directory"
        )
    if held and resume and "args.json" not in held:
        raise UserError(
            f"--resume: {path} holds files but no run (no args.json); give another directory"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {path} cannot be made: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--output_dir {path} cannot be written: no permission")
    _remove_stale(path, remove_run=overwrite and not resume)
    return path


def _remove_stale(path: Path, *, remove_run: bool) -> None:
    """Remove what a killed run left unfinished and, if asked, the former run itself."""
    for leftover in [*path.glob(LEFTOVERS), *path.glob(f"*/{LEFTOVERS}")]:
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
    if remove_run:
        for name in RUN_FILES:
            (path / name).unlink(missing_ok=True)


def save_args(args: argparse.Namespace, output_dir: str | Path) -> None:
    """Write everything the run was started with to `output_dir`/args.json."""
    with atomic_write(Path(output_dir) / "args.json") as file:
        json.dump(vars(args), file, indent=2, default=str, ensure_ascii=False)
        file.write("\n")


@contextmanager
def file_lock(path: str | Path, waiting_for: str) -> Iterator[None]:
    """Hold the lock file `path`; others, in any process that sees the file, wait.

    Ranks wait here, and not in a collective, while one of them prepares data for hours. The
    system releases the lock of a process that dies.
    """
    import fcntl  # subtle: POSIX only, so imported where it is needed

    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process: %s", waiting_for)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
