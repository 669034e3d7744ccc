"""Toy runs of the training scripts for the tests: data on disk, and processes that can be killed.

Processes are forked from the test's own, which has imported everything, so that a start costs
milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch._dynamo  # noqa: F401 - BertAdam's base class imports it: seconds, in every process

import general_distill
from transformer.runtime.progress import TIMING_FIELDS
from transformer.runtime.script import run_script
from transformer.tasks import class_report
from transformer.training import loop


def write_epochs(
    directory: Path, vocabulary: Sequence[str], *, epochs: int = 2, examples: int = 30
) -> Path:
    """Write epoch_N.json of random sentence pairs of unequal lengths, at most 40 tokens."""
    directory.mkdir()
    rng = random.Random(3)
    for epoch in range(epochs):
        lines = []
        for _ in range(examples):
            first, second = (rng.choices(vocabulary[5:], k=rng.randint(1, 18)) for _ in "ab")
            example = {
                "tokens": ["[CLS]", *first, "[SEP]", *second, "[SEP]"],
                "segment_ids": [0] * (len(first) + 2) + [1] * (len(second) + 1),
                "is_random_next": False,
                "masked_lm_positions": [1],
                "masked_lm_labels": [first[0]],
            }
            lines.append(json.dumps(example) + "\n")
        (directory / f"epoch_{epoch}.json").write_text("".join(lines), encoding="utf-8")
        facts = {"num_training_examples": examples, "max_seq_len": 40}
        (directory / f"epoch_{epoch}_metrics.json").write_text(json.dumps(facts))
    return directory


def write_student(directory: Path, config: Any, **changes: Any) -> Path:
    """Write a directory that holds a student's configuration alone."""
    directory.mkdir()
    values = {**config.to_dict(), "hidden_size": 24, "num_hidden_layers": 2, **changes}
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class ForkedRun:
    """A script with arguments, `general_distill.py` if none is named, in one process a rank."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        script: ModuleType = general_distill,
        ranks: int = 1,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        port = free_port() if ranks > 1 else 0
        self.log, self.script = log, script
        self.pids = [self._fork(argv, rank, ranks, port, prepare) for rank in range(ranks)]

    def _fork(
        self,
        argv: Sequence[str],
        rank: int,
        ranks: int,
        port: int,
        prepare: Callable[[], None] | None,
    ) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 99
        try:
            with open(self.log, "a", encoding="utf-8") as file:
                os.dup2(file.fileno(), 2)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            sys.argv = [f"{self.script.__name__}.py", *argv]
            if ranks > 1:
                os.environ |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(ranks),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            loop.save_curves = lambda *paths, **marks: False  # a second, and nothing to resume
            class_report.draw_matrix = lambda *drawn: None
            if prepare is not None:
                prepare()
            code = run_script(lambda: self.script.main(list(argv)))
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            os._exit(code)

    def wait(self) -> list[int]:
        """Return the exit code of every rank; minus the signal if one ended it."""
        statuses = [os.waitpid(pid, 0)[1] for pid in self.pids]
        return [os.waitstatus_to_exitcode(status) for status in statuses]

    def kill(self, after: float) -> bool:
        """Send kill -9 to all ranks after so many seconds; False if they were done by then."""
        time.sleep(after)
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)  # a process that has ended but was not waited for is fine
        return any(code == -signal.SIGKILL for code in self.wait())


def kill_and_resume(
    start: Callable[[], ForkedRun],
    check: Callable[[], None],
    output_dir: Path,
    *,
    kills: int,
    duration: float,
    seed: str,
) -> None:
    """Kill a run at random instants, start it again each time, and let the last one end.

    Args:
        check: called for each run that ended.
        duration: of a run that is left alone, in seconds.
    """
    rng = random.Random(seed)
    killed = finished = 0
    while killed < kills:
        if start().kill(after=rng.uniform(0.1, 0.9) * duration):
            killed += 1
            continue
        # It was done before the instant came: that is a result too; begin another.
        check()
        shutil.rmtree(output_dir)
        finished += 1
        assert finished < 20, "runs end long before they are killed"
    run = start()
    codes = run.wait()
    assert codes == [0] * len(codes), run.log.read_text()
    check()


def metrics_of(output_dir: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl without what depends on the clock."""
    lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMING_FIELDS}
        for line in lines
    ]
