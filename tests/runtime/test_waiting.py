"""How threads wait for each other on a busy machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from transformer.runtime import waiting

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="Linux tells how long threads wait"
)


def test_a_thread_without_core_is_counted() -> None:
    code = (
        "import os, threading, time; from transformer.runtime.waiting import seconds_without_core\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "def spin(end):\n"
        "    while time.monotonic() < end: os.getpid()\n"
        "before, end = seconds_without_core(), time.monotonic() + 1\n"
        "if not os.fork(): spin(end); os._exit(0)\n"
        "spin(end); print(seconds_without_core() - before); os.wait()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # Two processes share one core for a second: half of it each, and less beside others.
    assert 0.2 < float(run.stdout) < 1.1


def test_a_team_is_held_while_the_machine_is_crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[threading.Event] = []

    class Stop(BaseException):
        pass

    # Quiet, crowded, crowded, less so, quiet, crowded again.
    readings = iter([0.0, 0.01, 0.5, 1.0, 1.07, 1.07, 2.0])
    states: list[list[bool]] = []

    def next_reading() -> float:
        states.append([event.is_set() for event in held])
        try:
            return next(readings)
        except StopIteration:
            raise Stop from None

    def hold() -> threading.Event:
        held.append(threading.Event())
        return held[-1]

    monkeypatch.setattr(waiting, "seconds_without_core", next_reading)
    monkeypatch.setattr(waiting, "hold_idle_team", hold)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(Stop):
        waiting._watch()
    assert states == [[], [], [], [False], [False], [False], [True], [True, False]]


def test_fewer_threads_are_advised_once_where_the_machine_stays_crowded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[int] = []

    class Stop(BaseException):
        pass

    # A minute that is broken off by a quiet second, a whole one, and another.
    seconds = [*[1.0] * 59, 0.0, *[1.0] * 120]
    readings = iter([float(sum(seconds[:count])) for count in range(len(seconds) + 1)])

    def next_reading() -> float:
        told.append(len(caplog.records))
        try:
            return next(readings)
        except StopIteration:
            raise Stop from None

    monkeypatch.setattr(waiting, "seconds_without_core", next_reading)
    monkeypatch.setattr(waiting, "hold_idle_team", threading.Event)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(Stop):
        waiting._watch()
    assert told.index(1) == 59 + 1 + 60 + 1 and told[-1] == 1
    assert "OMP_NUM_THREADS=1" in caplog.text


def test_a_team_has_threads_until_it_is_released() -> None:
    code = (
        "import os, time, torch; from transformer.runtime.waiting import hold_idle_team\n"
        "def threads(wanted):\n"
        "    end = time.monotonic() + 30\n"
        "    while len(os.listdir('/proc/self/task')) != wanted and time.monotonic() < end:\n"
        "        time.sleep(0.01)\n"
        "    return len(os.listdir('/proc/self/task'))\n"
        "torch.zeros(1 << 18).add_(1); before = len(os.listdir('/proc/self/task'))\n"
        "event = hold_idle_team(); held = threads(before + 2)\n"
        "event.set(); print(before, held, threads(before))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    before, held, after = map(int, run.stdout.split())
    # The thread of Python and the other thread of its team.
    assert (held, after) == (before + 2, before)
