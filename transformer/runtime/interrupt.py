"""Imported first by a script: Ctrl-C while it imports the rest, for seconds, ends it in one line.

`run_script` listens to signals after that.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType


def _leave(signum: int, frame: FrameType | None) -> None:
    with suppress(OSError, AttributeError):
        os.write(2, f"{Path(sys.argv[0]).name}: error: interrupted\n".encode())
    os._exit(128 + signum)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, nor another's
    signal.signal(signal.SIGINT, _leave)
