"""How threads wait for each other: by spinning on a quiet machine, asleep on a busy one.

The threads of a parallel loop of torch's (GNU's OpenMP on Linux) wait for each other by spinning
for milliseconds before they sleep. On a quiet machine nothing is faster; on a busy one they spin on
cores that the thread they wait for needs, and a training falls far below its share. The library
chooses when it is loaded, but for one case: while it manages more threads than there are cores, it
spins a few thousand times shorter. So, while the threads of this process wait for cores, a second
team of threads is kept that does nothing. How loops are cut among threads, and with it every bit of
a result, stays as it is.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

TASKS = Path("/proc/self/task")  # Linux only

CHECK_SECONDS = 1.0

# Seconds in each second that all threads together were ready to run and had no core. A training
# alone stays below 0.02; beside one other program for two cores it is above 0.3.
CROWDED = 0.1
QUIET = 0.05

ADVICE_SECONDS = 60  # a machine that is crowded for so long will be for longer

# Elements that torch does not leave to one thread.
PARALLEL_ELEMENTS = 1 << 18


def seconds_without_core() -> float:
    """Return how long the living threads of this process were ready to run and had no core."""
    nanoseconds = 0
    for task in os.listdir(TASKS):
        with suppress(OSError):  # the thread has just ended
            nanoseconds += int((TASKS / task / "schedstat").read_text().split()[1])
    return nanoseconds / 1e9


def hold_idle_team() -> threading.Event:
    """Keep a second team of OpenMP's threads, which does nothing, until the event is set."""
    released = threading.Event()

    def hold() -> None:
        torch.zeros(PARALLEL_ELEMENTS).add_(1)  # each thread of Python has a team of its own
        released.wait()

    threading.Thread(target=hold, name="idle team", daemon=True).start()
    return released


def watch_crowding() -> None:
    """Choose in the background how threads wait; nothing with one thread, or without Linux."""
    if torch.get_num_threads() > 1 and (TASKS.parent / "schedstat").exists():
        threading.Thread(target=_watch, name="crowding", daemon=True).start()


def _watch() -> None:
    before, released, crowded, is_told = seconds_without_core(), None, 0.0, False
    while True:
        time.sleep(CHECK_SECONDS)
        now = seconds_without_core()
        share, before = (now - before) / CHECK_SECONDS, now
        crowded = crowded + CHECK_SECONDS if share > CROWDED else 0.0
        if crowded >= ADVICE_SECONDS and not is_told:
            logger.warning(
                "WARNING: other programs take cores that the %d threads of this run want; with "
                "OMP_NUM_THREADS=1 it may be faster (sums are then rounded differently)",
                torch.get_num_threads(),
            )
            is_told = True
        if released is None and share > CROWDED:
            released = hold_idle_team()
        elif released is not None and share < QUIET:
            released.set()
            released = None
