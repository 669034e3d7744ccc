"""Mistakes however they are called, signals, races and streams that nobody listens to."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from outcome import Outcome, judged
from places import Setting, copy_place, make_place, result_of, start
from processes import Ended, Script
from script_runs import ARGUMENTS, SCRIPTS
from test_mistakes import HELD, MISTAKES, SPOILT, filled

# --- streams -----------------------------------------------------------------------------------


def closed(*numbers: int) -> Callable[[], None]:
    """Return what closes streams, as `2>&-` does in a shell."""
    return lambda: [os.close(number) for number in numbers] and None


def full(number: int) -> Callable[[], None]:
    """Return what leads a stream to a disk that is full."""
    return lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), number) and None


STREAMS = {
    "2>&-": closed(2),
    "1>&-": closed(1),
    "0<&-": closed(0),
    "all closed": closed(0, 1, 2),
    "2>/dev/full": full(2),
    "1>/dev/full": full(1),
}


def streams(args: argparse.Namespace, directory: Path) -> Iterator[Outcome]:
    """Run each script with streams that are closed or full: the results are the same bytes."""
    make_place(directory / "template")
    for script in SCRIPTS:
        expected = _undisturbed(script, directory)
        for name, redirect in STREAMS.items():
            setting = copy_place(directory / "template", directory / "case")
            ended = start(script, setting, redirect=redirect).wait()
            what = f"{script} {name}"
            yield _compared(what, ended, setting, expected, needs=name != "1>/dev/full")
            shutil.rmtree(directory / "case")


def _undisturbed(script: str, directory: Path, **flags: Any) -> dict[str, str]:
    """Return the result of a run that is left alone."""
    setting = copy_place(directory / "template", directory / "undisturbed")
    ended = start(script, setting, **flags).wait()
    assert ended.code == 0, ended
    result = result_of(setting)
    shutil.rmtree(directory / "undisturbed")
    return result


def _compared(
    what: str, ended: Ended, setting: Setting, expected: dict[str, str], *, needs: bool = True
) -> Outcome:
    """Judge a run, and its result if it `needs` one."""
    outcome = judged(what, ended)
    if outcome.problem:
        return outcome
    if needs and ended.code != 0:
        outcome.problem, outcome.detail = "is not done", f"{ended.command}\n{ended.stderr}"
        return outcome
    found = result_of(setting)
    differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if differing and needs:
        outcome.problem, outcome.detail = "unequal bytes", f"{ended.command}\n{differing}"
    return outcome


# --- mistakes ----------------------------------------------------------------------------------

CIRCUMSTANCES: dict[str, dict[str, Any]] = {
    "plain": {},
    "2>&-": {"redirect": closed(2)},
    "2>/dev/full": {"redirect": full(2)},
    "ASCII": {"variables": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}},
}


def mistakes(args: argparse.Namespace, directory: Path) -> Iterator[Outcome]:
    """Make each mistake of the table in several circumstances: the code is the same, one line."""
    make_place(directory / "template")
    cases = [(case, case.changes, lambda setting: None) for case in MISTAKES]
    cases += [(case, case.changes, case.spoil) for case in SPOILT]
    for case, changes, spoil in cases:
        for name, circumstance in CIRCUMSTANCES.items():
            setting = copy_place(directory / "template", directory / "case")
            spoil(setting)
            words = ARGUMENTS[case.script](setting, **filled(changes, setting))
            ended = Script(case.script, words, directory / "case", **circumstance).wait()
            hears = name in ("plain", "ASCII")
            outcome = judged(f"{case.script} {name}", ended)
            if ended.code != case.code:
                outcome.problem = f"exit code {ended.code} for {case.code}"
                outcome.detail = f"{ended.command}\n{ended.stderr}"
            elif not hears and not ended.hangs:
                outcome.problem = ""  # no line where nobody reads
            yield outcome
            while HELD:
                HELD.pop().release()
            shutil.rmtree(directory / "case")


# --- signals -----------------------------------------------------------------------------------

SIGNALS = (
    *((signal.SIGKILL,), (signal.SIGKILL,), (signal.SIGTERM,), (signal.SIGINT,)),
    *((signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM)),
)

LEFT_BEHIND = ".*.tmp"

ENDS = (-signal.SIGKILL, 130, 143, 0)


def kills(args: argparse.Namespace, directory: Path) -> Iterator[Outcome]:
    """Stop runs at random moments, go on with each until it is done, and compare the bytes."""
    make_place(directory / "template")
    rng = random.Random(f"kills {args.seed}")
    known = {script: _timed(script, directory) for script in SCRIPTS}
    cases = 0
    while cases < args.cases:
        script = SCRIPTS[cases % len(SCRIPTS)]
        expected, seconds = known[script]
        setting = copy_place(directory / "template", directory / "case")
        for _ in range(rng.randint(1, 4)):
            numbers = rng.choice(SIGNALS)
            ended = _stopped(start(script, setting, resume=True), numbers, rng, seconds)
            what = f"{script} {'+'.join(number.name for number in numbers)}"
            outcome = judged(what, ended, also=ENDS)
            if ended.code not in ENDS and not outcome.problem:
                outcome.problem = "ends of its own"
                outcome.detail = f"{ended.command}\n{ended.stderr}"
            yield outcome
            cases += 1
        ended = start(script, setting, resume=True).wait()
        outcome = _compared(f"{script} resumed", ended, setting, expected)
        left = [str(path) for path in (directory / "case").rglob("*") if path.match(LEFT_BEHIND)]
        if left and not outcome.problem:
            outcome.problem, outcome.detail = "left behind", "\n".join([ended.command, *left])
        yield outcome
        shutil.rmtree(directory / "case")


def _timed(script: str, directory: Path) -> tuple[dict[str, str], float]:
    begun = time.monotonic()
    return _undisturbed(script, directory, resume=True), time.monotonic() - begun


def _stopped(
    script: Script, numbers: tuple[signal.Signals, ...], rng: random.Random, seconds: float
) -> Ended:
    """Send signals at a random moment of a run, those after the first soon after it."""
    time.sleep(rng.uniform(0, 0.9) * seconds)
    for number in numbers:
        script.signal(number)
        time.sleep(rng.choice((0, 0.001, 0.05)))
    return script.wait()


# --- races -------------------------------------------------------------------------------------


def races(args: argparse.Namespace, directory: Path) -> Iterator[Outcome]:
    """Let two runs of different seeds begin in one output: one is done, the other refused."""
    make_place(directory / "template")
    rng = random.Random(f"races {args.seed}")
    known: dict[tuple[str, int], dict[str, str]] = {}
    for case in range(args.cases):
        script = SCRIPTS[case % len(SCRIPTS)]
        for seed in (1, 2):
            if (script, seed) not in known:
                known[script, seed] = _undisturbed(script, directory, seed=seed)
        setting = copy_place(directory / "template", directory / "case")
        resumes = rng.random() < 0.3
        first = start(script, setting, seed=1)
        time.sleep(rng.choice((0, 0.01, 0.1, 0.5, 1.5)))
        second = start(script, setting, seed=2, resume=True if resumes else None)
        ends = [first.wait(), second.wait()]
        codes = sorted(ended.code for ended in ends)
        yield from (judged(f"{script} {'--resume' if resumes else ''}", ended) for ended in ends)
        winner = next((seed for seed, ended in enumerate(ends, 1) if ended.code == 0), 0)
        outcome = Outcome(f"{script} both", f"exit codes {codes}")
        if codes != [0, 2] or result_of(setting) != known[script, winner]:
            outcome.problem = "unequal bytes" if codes == [0, 2] else "both or none are done"
            outcome.detail = "\n".join(ended.command + "\n" + ended.stderr for ended in ends)
        yield outcome
        shutil.rmtree(directory / "case")
