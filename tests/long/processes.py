"""Scripts in processes of their own, forked from one that has imported everything: a start costs
milliseconds. Each gets a directory, streams and a time limit, and is judged by how it ends.
"""

from __future__ import annotations

import gc
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

# Here, so that no child spends seconds on it.
import huggingface_hub.repocard_data  # noqa: F401
import matplotlib.figure  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch._dynamo  # noqa: F401
from matplotlib.backends import backend_agg  # noqa: F401

import data_augmentation  # noqa: F401
import general_distill  # noqa: F401
import pregenerate_training_data  # noqa: F401
import task_distill  # noqa: F401
import transformer.archives
import transformer.checkpoint.__main__  # noqa: F401
from transformer.tasks import class_report
from transformer.training import loop

ROOT = Path(__file__).resolve().parents[2]

CHECKPOINT = "transformer/checkpoint/__main__.py"

PATIENCE_SECONDS = 120.0

# Done; a mistake; the machine's fault; interrupted; terminated.
EXPECTED_CODES = (0, 2, 3, 130, 143)

# What is imported stays as it is: a child that looked through it for garbage would copy it all.
gc.collect()
gc.freeze()


@dataclass
class Ended:
    """How a script ended; a negative code is the signal that killed it."""

    command: str
    code: int
    stdout: bytes
    stderr: str
    hangs: bool = False

    def problem(self, also: Sequence[int] = ()) -> str:
        """Return what is wrong with the way it ended, nothing if nothing is."""
        if self.hangs:
            return "hangs"
        if "Traceback (most recent call last)" in self.stderr:
            return "traceback"
        if self.code not in (*EXPECTED_CODES, *also):
            return f"exit code {self.code}"
        told = [line for line in self.stderr.splitlines() if ": error: " in line]
        if self.code in (2, 3) and len(told) != 1:
            return f"{len(told)} lines of error"
        return ""


@dataclass
class Script:
    """One script that runs in a process of its own.

    Args:
        redirect: called in the child before it begins, for streams that are closed or full.
        variables: of its environment.
    """

    name: str
    argv: Sequence[object]
    cwd: Path
    redirect: Callable[[], None] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    stdin: Path = Path(os.devnull)

    def __post_init__(self) -> None:
        self.words = [str(word) for word in self.argv]
        self.command = " ".join([self.name, *map(ascii, self.words)])
        self.streams = [self.cwd / f".stream{number}.{id(self)}" for number in (1, 2)]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._run()

    def _run(self) -> None:
        code = 99
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the script listens
            os.setsid()
            os.environ |= self.variables
            os.chdir(self.cwd)
            # subtle: a file for each stream, because a pipe that nobody reads would fill.
            for number, file in enumerate((self.stdin, *self.streams)):
                flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                descriptor = os.open(file, flags, 0o666)
                os.dup2(descriptor, number)
                os.close(descriptor)
            sys.stdin, sys.stdout, sys.stderr = (
                os.fdopen(number, mode, buffering=1, closefd=False)
                for number, mode in enumerate("rww")
            )
            if self.redirect is not None:
                self.redirect()
            sys.argv = [str(ROOT / self.name), *self.words]
            # Pictures take a second, and there is nothing to look at.
            loop.save_curves = lambda *paths, **marks: False
            class_report.draw_matrix = lambda report, path, title: None
            runpy.run_path(str(ROOT / self.name), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback

            with suppress(Exception):
                traceback.print_exc()
            code = 1
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            os._exit(code)

    def signal(self, number: int) -> None:
        """Send a signal to it alone, as a user's `kill` would."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> Ended:
        """Wait for its end; kill it and all that it started if that does not come."""
        limit = time.monotonic() + seconds
        hangs = False
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > limit and not hangs:
                hangs = True
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        with suppress(ProcessLookupError):  # workers that outlive their parent
            os.killpg(self.pid, signal.SIGKILL)
        out, err = (file.read_bytes() if file.exists() else b"" for file in self.streams)
        for file in self.streams:
            file.unlink(missing_ok=True)
        code = os.waitstatus_to_exitcode(status)
        if code in (-signal.SIGTERM, -signal.SIGINT):  # before it listened; what a shell calls it
            code = 128 - code
        return Ended(self.command, code, out, err.decode("utf-8", "replace"), hangs)


def run(name: str, argv: Sequence[object], cwd: Path, **options) -> Ended:
    """Run a script to its end."""
    return Script(name, argv, cwd, **options).wait()
