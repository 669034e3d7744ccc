"""Make one large file in parts, by any number of processes, so that a killed run can go on.

The work is cut into blocks that are numbered from 0. Each finished block is a file in a directory
beside the output; when all are there they are joined in order. Whoever made a block, and when,
cannot be seen in the result.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformer.files import (
    UserError,
    atomic_write,
    read_json,
    read_state,
    write_json,
    write_state,
)
from transformer.runtime.fingerprint import Fingerprint, check_fingerprint

SECONDS_BETWEEN_LOOKS = 0.2

NOTE = "fingerprint.json"  # in every directory of ours


# Endings that are left out where a name is made for what belongs to an output.
TABLE_ENDINGS = (".tsv", ".csv", ".jsonl", ".json", ".txt")


def beside(output: Path, ending: str) -> Path:
    """Return a name for what belongs to `output`.

    Example: output="train_aug.tsv", ending="args.json" -> "train_aug.args.json"; but
    output="aug.v1" -> "aug.v1.args.json", which is not that of "aug.v2".
    """
    stem = output.stem if output.suffix.lower() in TABLE_ENDINGS else output.name
    return output.with_name(f"{stem}.{ending}")


class Parts:
    """The finished blocks of `output`, in a directory beside it.

    Args:
        fingerprint: whatever decides the content of the output; a run with another one may not
            go on with these parts.
    """

    def __init__(self, output: Path, fingerprint: Fingerprint):
        self.output = output
        self.directory = output.with_name(output.name + ".parts")
        self.aside = output.with_name(f".{output.name}.parts.replaced")
        self.record = beside(output, "args.json")
        self.fingerprint = fingerprint

    def is_needed(self, *, resume: bool, overwrite: bool) -> bool:
        """Say whether there is anything to do, or whether the output is there already.

        Raises:
            UserError: the output or a part of it is there and neither flag is given; it is there,
                but of another run than the one to resume; or it is no output of ours to replace.
        """
        self.undo_plan()
        if resume and self.directory.exists():
            # Without a note the run was killed before it could say what it was.
            if (self.directory / NOTE).exists() or self.finished():
                self._check(self.note("fingerprint"))
        elif resume and self.output.exists():
            record = read_json(self.record) if self.record.exists() else {}
            self._check(record.get("fingerprint"))
            return False
        elif overwrite:
            self._check_replaceable()
        elif self.output.exists():
            raise UserError(
                f"{self.output} exists: give --overwrite_output to replace it, or another --output"
            )
        elif self.finished():
            raise UserError(
                f"{self.directory} holds an unfinished run: give --resume to go on with it, or "
                "--overwrite_output to start again"
            )
        return True

    def _check(self, saved: Any) -> None:
        check_fingerprint(saved, self.fingerprint, self.output, "--overwrite_output")

    def _check_replaceable(self) -> None:
        """Refuse to replace what no run of this toolkit wrote."""
        is_ours = not self.output.exists()
        if self.record.exists():
            is_ours |= {"args", "counts"} <= read_json(self.record).keys()
        if not is_ours:
            raise UserError(
                f"--overwrite_output: {self.output} was not made by this script (no "
                f"{self.record.name} beside it), so it is not replaced; give another --output"
            )
        held = os.listdir(self.directory) if self.directory.exists() else []
        if held and NOTE not in held:
            raise UserError(
                f"--overwrite_output: {self.directory} holds no parts of this script ({held[0]}, "
                "...), so it is not replaced; give another --output"
            )

    def begin(self, *, resume: bool) -> None:
        """Make the directory, empty unless this resumes a run; a former one waits for `settle`."""
        if self.directory.exists() and not resume:
            self.directory.rename(self.aside)
        self.directory.mkdir(exist_ok=True)
        for leftover in self.directory.glob(".*.tmp"):
            leftover.unlink()
        self.save_note("fingerprint", self.fingerprint)

    def settle(self) -> None:
        """Remove the parts that this run replaces: everything about it was found to be right."""
        shutil.rmtree(self.aside, ignore_errors=True)

    def undo_plan(self) -> None:
        """Leave everything as it was, if the run that was begun has no plan."""
        if self.directory.is_dir():
            held = {name for name in os.listdir(self.directory) if not name.startswith(".")}
            if not held or (held >= {NOTE} and not self.finished() and "plan.json" not in held):
                shutil.rmtree(self.directory)
        if self.aside.exists() and not self.directory.exists():
            self.aside.rename(self.directory)
        self.settle()

    def save_note(self, name: str, content: Any) -> None:
        """Keep something that all processes read, as JSON."""
        write_state(self.directory / f"{name}.json", content)

    def note(self, name: str) -> Any:
        """Return what `save_note` kept, None if there is none yet.

        Raises:
            UserError: it is damaged.
        """
        try:
            return read_state(self.directory / f"{name}.json")
        except UserError as error:
            raise UserError(f"{error}; remove {self.directory} and begin anew") from None

    def save_block(self, number: int, lines: Iterable[str], note: Any) -> None:
        """Keep a finished block and a note on it."""
        with atomic_write(self._block(number)) as file:
            file.writelines(lines)
        self.save_note(f"{number:08d}", note)  # last: it makes the block count as finished

    def finished(self) -> set[int]:
        """Return the numbers of the blocks that are finished."""
        names = (path.name.removesuffix(".json") for path in self.directory.glob("*.json"))
        return {int(name) for name in names if name.isdigit()}

    def block_note(self, number: int) -> Any:
        """Return the note on a finished block."""
        return self.note(f"{number:08d}")

    def wait_for(self, blocks: int) -> None:
        """Wait until all blocks are finished, by whichever process.

        subtle: not a collective, which gives up after a time; another process may be slow.
        """
        while len(self.finished()) < blocks:
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def join(self, head: str, blocks: int) -> None:
        """Write the output: `head`, then all blocks in order. It appears when it is complete."""
        with atomic_write(self.output, "wb") as output:
            output.write(head.encode("utf-8"))
            for number in range(blocks):
                with open(self._block(number), "rb") as part:
                    shutil.copyfileobj(part, output)

    def close(self, record: dict[str, Any]) -> None:
        """Write what the run was beside its output, and remove the parts."""
        write_json(self.record, {"fingerprint": self.fingerprint, **record})
        shutil.rmtree(self.directory)

    def _block(self, number: int) -> Path:
        return self.directory / f"{number:08d}.part"
