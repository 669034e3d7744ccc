"""The output directory of a run: checked, locked for the length of the run, replaced at the end.

Nothing of a former run is touched before the new one is planned: its command line, models and data
were read and found to fit. `with run_directory(...) as directory:` locks it for that time, and
`directory.begin(args)` takes it over. What fails before `begin` leaves everything as it was.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import platform
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from transformer.files import (
    EnvironmentFault,
    UserError,
    sync_directory,
    try_lock,
    without_secrets,
    write_json,
)
from transformer.vocabulary import VOCABULARY_FILES

# What makes a model, in the order in which it is copied: config.json last.
MODEL_FILES = (
    *(*VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json"),
    *("pytorch_model.bin", "model.safetensors", "config.json"),
)

REPORT_FILES = (
    *("eval_args.json", "eval_results.json", "eval_results.txt"),
    *("dev_report.json", "dev_report.txt", "confusion_matrix.png"),
    *("benchmark.json", "benchmark.png"),
    *("metrics.jsonl", "training_curves.png", "training_state.pt", "tensorboard/events.*"),
)

# What our scripts write into an output directory, as patterns, and --overwrite_output_dir replaces.
RUN_FILES = (
    "args.json",
    *(f"{place}{name}" for place in ("", "best/", "last/") for name in MODEL_FILES),
    *REPORT_FILES,
    *(f"seed_*/{name}" for name in ("args.json", *MODEL_FILES, *REPORT_FILES)),
    *(f"seed_*/last/{name}" for name in MODEL_FILES),
    *("epoch_*.json", "epoch_*.json.partial", "pregenerate_state.json", ".tokens/*"),
)

# args.json of our runs has these; that of another program hardly has both.
OWN_FLAGS = {"output_dir", "overwrite_output_dir"}

LEFTOVERS = ".*.tmp"

# A process of a run that was just killed may hold its lock for another moment.
PATIENCE_SECONDS = 1.0

LOCK, HOLDER, ASIDE = ".lock", ".running", ".replaced"


def restarted() -> bool:
    """Say whether torchrun started this process again after a rank was lost."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return count.isdigit() and int(count) > 0


class Ranks(Protocol):
    """What is needed of `runtime.ranks.Runtime`, which would import torch."""

    def on_main(self, function: Callable[[], Any]) -> Any: ...


class RunLock:
    """The lock of one output, held for the length of a run; the system frees that of a killed one.

    Args:
        directory: where the lock file and a note on its holder are.
        output: what is locked, as messages name it.
        name: begins the names of both files, where several outputs share a directory.
    """

    def __init__(self, directory: Path, output: str, name: str = "") -> None:
        self.output = output
        self.file = directory / (f".{name}{LOCK}" if name else LOCK)
        self.holder = directory / (f".{name}{HOLDER}" if name else HOLDER)
        self._lock: Any = None

    def take(self) -> None:
        """Take the lock.

        Raises:
            UserError: another run holds it; names its process and machine.
        """
        self._lock = try_lock(self.file, PATIENCE_SECONDS)
        if self._lock is None:
            raise UserError(
                f"{self.output} is in use by another run{self._who()}; wait until that one has "
                "ended, or give another output"
            )
        write_json(self.holder, {"pid": os.getpid(), "host": socket.gethostname()})

    @property
    def held(self) -> bool:
        """Whether this process has the lock."""
        return self._lock is not None

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back, if it was taken; its file stays, unless nothing of the run does."""
        if self._lock is None:
            return
        self.holder.unlink(missing_ok=True)
        if remove:
            self.file.unlink(missing_ok=True)
        self._lock.release()
        self._lock = None

    def _who(self) -> str:
        try:
            held = json.loads(self.holder.read_text(encoding="utf-8"))
            return f" (pid {held['pid']} on {held['host']})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""  # it took the lock this very moment


class RunDirectory:
    """One output directory, on the main rank; `run_directory` makes and closes it."""

    def __init__(self, args: argparse.Namespace, inputs: Sequence[str], starts_run: bool) -> None:
        self.args, self.path = args, args.output_dir
        self.inputs, self.starts_run = inputs, starts_run
        self.resumes = bool(getattr(args, "resume", False))
        self.overwrites = args.overwrite_output_dir and not self.resumes
        self._lock = RunLock(self.path, f"--output_dir {self.path}")
        self._made: list[Path] = []
        self._begun = False

    def take(self) -> None:
        """Check the directory, make it if it is new, and lock it.

        Raises:
            UserError: it holds what this run may not replace, is in use, or cannot be written.
        """
        self._check()
        self._make()
        self._lock.take()
        # Another run may have ended meanwhile, or been killed while it replaced an older one.
        self._finish_replacing()
        self._check()

    def begin(self, args: argparse.Namespace) -> None:
        """Replace the former run, if that was asked for, and write args.json: this run stands.

        Does nothing on other ranks than the main one, and when it is called again.
        """
        if self._begun or not self._lock.held:
            return
        self._begun = True
        for leftover in [*self.path.glob(LEFTOVERS), *self.path.glob(f"*/{LEFTOVERS}")]:
            if leftover.is_file():
                leftover.unlink(missing_ok=True)
        if self.overwrites and (self.path / "args.json").exists():
            self._set_aside()
        save_args(args, self.path)
        shutil.rmtree(self.path / ASIDE, ignore_errors=True)

    def leave(self) -> None:
        """Unlock the directory, and remove it if this run made it and never began."""
        if self._lock.held:
            is_empty = set(os.listdir(self.path)) <= {LOCK, HOLDER}
            self._lock.release(remove=is_empty)
        with suppress(OSError):  # something was written there after all
            for directory in self._made:
                directory.rmdir()

    # --- checking ------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.starts_run:
            if self.args.resume and self.args.overwrite_output_dir and not restarted():
                raise UserError(
                    "--resume and --overwrite_output_dir contradict each other; give one"
                )
            self._check_inputs()
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output_dir {self.path} is a file; give a directory")
        self._check_data_url()
        if self.path.is_dir() and self.starts_run:
            self._check_held()
        if self.path.is_dir() and not os.access(self.path, os.W_OK | os.X_OK):
            raise UserError(f"--output_dir {self.path} cannot be written: no permission")

    def _check_inputs(self) -> None:
        """Refuse an input that the run would write over, or that lies in what it replaces."""
        written = {str(Path(name).parent) for name in RUN_FILES}
        for flag in self.inputs:
            for given in _as_list(getattr(self.args, flag)):
                place = _place_in(self.path, given)
                if place is None:
                    continue
                if self.overwrites or any(fnmatch(place, pattern) for pattern in written):
                    raise UserError(
                        f"--{flag} {given} would be overwritten by the run in --output_dir "
                        f"{self.path}; give another directory"
                    )

    def _check_data_url(self) -> None:
        url = getattr(self.args, "data_url", "")
        if url and "://" not in url and _place_in(self.path, url, must_exist=False) is not None:
            raise UserError(
                f"--data_url {url} lies in --output_dir {self.path}, of which it gets a copy; "
                "give a directory outside"
            )

    def _check_held(self) -> None:
        ours = (LOCK, HOLDER, ASIDE)
        held = sorted(
            entry.name
            for entry in self.path.iterdir()
            # What atomic_write left when it was killed is nothing that is held.
            if entry.name not in ours and not entry.match(LEFTOVERS)
        )
        if not held or (self.path / ASIDE / "args.json").exists():
            return  # empty, or about to be put back as it was
        if not self.args.resume and not self.args.overwrite_output_dir:
            raise UserError(
                f"--output_dir {self.path} holds files ({held[0]}, ...): give --resume to go on "
                "with the run in it, --overwrite_output_dir to replace it, or another directory"
            )
        if self.resumes and "args.json" not in held:
            raise UserError(
                f"--resume: {self.path} holds files but no run (no args.json); give another "
                "directory"
            )
        if self.overwrites and not _is_own_run(self.path / "args.json"):
            raise UserError(
                f"--overwrite_output_dir: {self.path} holds files ({held[0]}, ...) but no run of "
                "this toolkit (no args.json of ours), so nothing in it is replaced; give another "
                "directory"
            )

    # --- making and replacing ------------------------------------------------------------------

    def _make(self) -> None:
        """Make the directory; remember which ones were new, the innermost first."""
        new = [p for p in (self.path, *self.path.parents) if not p.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            kind = EnvironmentFault if error.errno == errno.ENOSPC else UserError
            raise kind(f"--output_dir {self.path} cannot be made: {error.strerror}") from error
        self._made = new

    def _set_aside(self) -> None:
        """Rename the files of the former run into a directory of their own beside them.

        subtle: args.json goes first and comes back last. So it is in ASIDE, and not at its own
        place, exactly as long as the files are on their way, and a run that was killed in the
        middle can be put back by the next one.
        """
        aside = self.path / ASIDE
        aside.mkdir()
        for pattern in RUN_FILES:
            for file in self.path.glob(pattern):
                _move(file, aside / file.relative_to(self.path))
        sync_directory(aside)
        sync_directory(self.path)

    def _finish_replacing(self) -> None:
        """Put back what a killed run set aside, or remove it if that run had begun."""
        aside = self.path / ASIDE
        if (aside / "args.json").exists() and not (self.path / "args.json").exists():
            held = [path for path in aside.rglob("*") if path.is_file()]
            for file in sorted(held, key=lambda path: path == aside / "args.json"):
                _move(file, self.path / file.relative_to(aside))
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def run_directory(
    args: argparse.Namespace,
    inputs: Sequence[str],
    runtime: Ranks | None = None,
    *,
    starts_run: bool = True,
) -> Iterator[RunDirectory]:
    """Hold `args.output_dir` for the length of a run: no other run gets it meanwhile.

    The main rank takes it for all; a refusal reaches every rank.

    Args:
        inputs: names of the flags whose files the run reads and must not write over.
        starts_run: False where results are added to a directory and no run begins in it.

    Raises:
        UserError: as `RunDirectory.take`.
    """
    directory = RunDirectory(args, inputs, starts_run)
    try:
        if runtime is None:
            directory.take()
        else:
            runtime.on_main(directory.take)
        yield directory
    finally:
        directory.leave()


def check_directory(args: argparse.Namespace, inputs: Sequence[str]) -> None:
    """Refuse what `run_directory` would refuse; makes and locks nothing."""
    RunDirectory(args, inputs, starts_run=True)._check()


def save_args(args: argparse.Namespace, output_dir: str | Path) -> None:
    """Write everything the run was started with to `output_dir`/args.json."""
    content = {**shown_args(args), "made_with": made_with()}
    write_json(Path(output_dir) / "args.json", content)


def shown_args(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags as they may be shown: paths as text, no password in an address."""

    def shown(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [shown(item) for item in value]
        return without_secrets(str(value)) if isinstance(value, str | Path) else value

    return {name: shown(value) for name, value in vars(args).items()}


def made_with() -> dict[str, Any]:
    """Return what a run depends on beside its flags: the command, the date, versions.

    subtle: nothing compares it. A run that is resumed another day, or by another version, is the
    same run.
    """
    ranks = os.environ.get("LOCAL_WORLD_SIZE")  # set by torchrun
    start = ["python"] if ranks is None else ["torchrun", f"--nproc_per_node={ranks}"]
    words = [Path(sys.argv[0]).name, *map(without_secrets, sys.argv[1:])]
    return {
        "command": shlex.join([*start, *words]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on, those that are installed."""
    versions = {}
    for name in ("torch", "numpy", "safetensors"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _is_own_run(args_file: Path) -> bool:
    try:
        held = json.loads(args_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and held.keys() >= OWN_FLAGS


def _place_in(directory: Path, given: Any, *, must_exist: bool = True) -> str | None:
    """Return where `given` is in `directory` ("." for itself), None if it is not."""
    if not given or (must_exist and not os.path.exists(given)):
        return None
    place, whole = Path(given).resolve(), directory.resolve()
    return str(place.relative_to(whole)) if place.is_relative_to(whole) else None


def _as_list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
