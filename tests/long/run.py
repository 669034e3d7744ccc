"""The long tests, by hand: what no minute of CI has time for.

    python tests/long/run.py mistakes                   the table of test_mistakes.py
    python tests/long/run.py unspoilt                   all that fuzz runs, over files as they are
    python tests/long/run.py fuzz --cases 2000 --seed 7 spoilt files of all kinds, one a case
    python tests/long/run.py kills --cases 100          signals at random moments, then --resume
    python tests/long/run.py races --cases 20           two runs in one output directory
    python tests/long/run.py streams                    stdin, stdout and stderr closed or full
    python tests/long/run.py all --cases 50

Counts by kind and exit code are printed, and each failure with the command and the place where it
can be run again. The exit code is 1 after a traceback, a hang, an exit code or bytes that were not
due. `fuzz --only NAME` takes the files whose name contains NAME. A case is a few hundred small
files: with TMPDIR=/dev/shm the disk does not slow it down.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).resolve().parent)]

import faults  # noqa: E402
import fuzz  # noqa: E402
from outcome import Outcome  # noqa: E402

Kind = Callable[[argparse.Namespace, Path], Iterator[Outcome]]

KINDS: dict[str, Kind] = {
    "mistakes": faults.mistakes,
    "unspoilt": fuzz.unspoilt,
    "fuzz": fuzz.fuzz,
    "kills": faults.kills,
    "races": faults.races,
    "streams": faults.streams,
}


def run_kind(name: str, args: argparse.Namespace, directory: Path) -> int:
    """Run the cases of one kind, print what became of them, and return how many failed."""
    counts: Counter[tuple[str, str]] = Counter()
    failures = 0
    limit = time.monotonic() + args.minutes * 60
    for outcome in KINDS[name](args, directory):
        counts[outcome.what, outcome.end] += 1
        if outcome.problem:
            failures += 1
            print(f"FAILED {name} {outcome.what}: {outcome.problem}\n{outcome.detail}", flush=True)
        if time.monotonic() > limit:
            print(f"{name}: stopped after {args.minutes:g} minutes")
            break
    for (what, end), count in sorted(counts.items()):
        print(f"{name:9} {what:40} {end:24} {count:6}")
    print(f"{name}: {sum(counts.values())} cases, {failures} failed", flush=True)
    return failures


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=(*KINDS, "all"))
    parser.add_argument(
        "--cases", type=int, default=50, help="cases of each kind that is drawn by lot"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random")
    parser.add_argument("--only", default="", help="of fuzz: files whose name contains this")
    parser.add_argument("--minutes", type=float, default=1e6, help="most minutes of each kind")
    parser.add_argument("--place", type=Path, help="a new directory, kept; default: removed")
    args = parser.parse_args()
    directory = args.place or Path(tempfile.mkdtemp(prefix="long-tests-"))
    directory.mkdir(exist_ok=True)
    names = KINDS if args.kind == "all" else (args.kind,)
    failures = sum(run_kind(name, args, directory / name) for name in names)
    if not failures and args.place is None:
        shutil.rmtree(directory)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
