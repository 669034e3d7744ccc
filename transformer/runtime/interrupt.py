"""Imported first by a script: Ctrl-C while it imports the rest, for seconds, ends it in one line.

`run_script` listens to signals after that.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType

from transformer.runtime.program import program_name


def _leave(signum: int, frame: FrameType | None) -> None:
    with suppress(OSError, AttributeError):
        os.write(2, f"{program_name()}: error: interrupted\n".encode())
    os._exit(128 + signum)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, nor another's
    signal.signal(signal.SIGINT, _leave)
