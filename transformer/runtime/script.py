"""How a script begins and ends: exit codes, mistakes told in one line.

Does not import torch, which takes a second and more than a script without a model wants to wait."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from transformer.files import EnvironmentFault, UserError

logger = logging.getLogger(__name__)


class RunError(RuntimeError):
    """A run that cannot go on, told in one line; the exit code is 1."""


def script_parser(documentation: str) -> argparse.ArgumentParser:
    """Return a parser that shows the first paragraph of a script's documentation and defaults."""
    return argparse.ArgumentParser(
        description=documentation.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


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
