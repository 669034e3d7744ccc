"""How a script begins and ends: exit codes, mistakes told in one line, its output directory.

Does not import torch, which takes a second and more than a script without a model wants to wait."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from transformer.files import EnvironmentFault, UserError, atomic_write

logger = logging.getLogger(__name__)


class RunError(RuntimeError):
    """A run that cannot go on, told in one line; the exit code is 1."""


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def _is_lost_rank(error: RuntimeError) -> bool:
    """Say whether `error` comes from a collective whose partner is gone."""
    dist = sys.modules.get("torch.distributed")
    if dist is None:
        return False
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return dist.is_initialized() and any(word in text for word in ("gloo", "nccl", "connection"))


def _tell(message: str) -> None:
    rank = int(os.environ.get("RANK", "0"))
    prefix = f"rank {rank}: " if rank else ""
    program = Path(sys.argv[0])
    # `python -m transformer.checkpoint` runs .../transformer/checkpoint/__main__.py
    name = ".".join(program.parts[-3:-1]) if program.name == "__main__.py" else program.name
    print(f"{name}: error: {prefix}{message}", file=sys.stderr, flush=True)


def run_script(main: Callable[[], Any]) -> int:
    """Call `main` and return the exit code; a user's mistake becomes one line on stderr.

    0: done. 1: the run failed. 2: the user's mistake. 3: a fault of the machine,
    such as a missing package. 130, 143: interrupted, terminated.
    """
    # subtle: a signal that arrives outside the training loop still cleans up and says its code.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except UserError as error:
        # Every rank finds the same mistake; the others leave the main one time to say it.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(2)
        _tell(str(error))
        return 3 if isinstance(error, EnvironmentFault) else 2
    except BrokenPipeError:
        # The reader of our stdout has left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (RunError, OSError) as error:
        _tell(str(error))
        is_users = isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError)
        return 2 if is_users else 1
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130
    except RuntimeError as error:
        if not _is_lost_rank(error):
            raise
        _tell(f"lost contact with another rank, so the job stops ({str(error).splitlines()[0]})")
        return 1
    return 0


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
