"""What became of one case of the long tests."""

from __future__ import annotations

from dataclasses import dataclass

from processes import Ended

LINES_SHOWN = 12


@dataclass
class Outcome:
    """What became of one case.

    Args:
        what: the kind of case, which is counted.
        end: how it ended, which is counted too.
        problem: nothing if all is well.
        detail: what a person needs to look into it.
    """

    what: str
    end: str
    problem: str = ""
    detail: str = ""


def judged(what: str, ended: Ended, *, also: tuple[int, ...] = (), note: str = "") -> Outcome:
    """Judge how a script ended. A loss that is not finite may end a run with 1."""
    if ended.code == 1 and "is not finite" in ended.stderr:
        also = (*also, 1)
    problem = ended.problem(also)
    lines = ended.stderr.splitlines()[-LINES_SHOWN:]
    detail = "\n  ".join([note, ended.command, *lines]) if problem else ""
    return Outcome(what, f"exit code {ended.code}", problem, detail)
