"""Make one large file in parts, by any number of processes, so that a killed run can go on.

The work is cut into blocks that are numbered from 0. Each finished block is a file in a directory
beside the output; when all are there they are joined in order. Whoever made a block, and when,
cannot be seen in the result.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformer.files import UserError, atomic_write

SECONDS_BETWEEN_LOOKS = 0.2


def beside(output: Path, ending: str) -> Path:
    """Return a name for what belongs to `output`.

    Example: output="train_aug.tsv", ending="args.json" -> "train_aug.args.json".
    """
    return output.with_name(f"{output.stem}.{ending}")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def _read(path: Path) -> Any:
    """Return the content of a JSON file, None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


class Parts:
    """The finished blocks of `output`, in a directory beside it.

    Args:
        identity: whatever decides the content of the output; a run with another one may not
            go on with these parts.
    """

    def __init__(self, output: Path, identity: dict[str, Any]):
        self.output = output
        self.directory = output.with_name(output.name + ".parts")
        self.record = beside(output, "args.json")
        self.identity = identity

    def is_needed(self, *, resume: bool, overwrite: bool) -> bool:
        """Say whether there is anything to do, or whether the output is there already.

        Raises:
            UserError: the output or a part of it is there and neither flag is given, or it is
                there, but of another run than the one to resume.
        """
        if resume and self.directory.exists():
            self._check_identity(self.note("identity"))
        elif resume and self.output.exists():
            self._check_identity(_read(self.record))
            return False
        elif not overwrite and self.output.exists():
            raise UserError(
                f"{self.output} exists: give --overwrite_output to replace it, or another --output"
            )
        elif not overwrite and self.finished():
            raise UserError(
                f"{self.directory} holds an unfinished run: give --resume to go on with it, or "
                "--overwrite_output to start again"
            )
        return True

    def begin(self, *, resume: bool) -> None:
        """Make the directory, empty unless this resumes a run."""
        if self.directory.exists() and not resume:
            shutil.rmtree(self.directory)
        self.directory.mkdir(exist_ok=True)
        for leftover in self.directory.glob(".*.tmp"):
            leftover.unlink()
        self.save_note("identity", self.identity)

    def _check_identity(self, stored: dict[str, Any] | None) -> None:
        if stored is None and not self.finished():
            return  # killed before it could say what it was
        given, stored = json.loads(json.dumps(self.identity)), stored or {}
        changed = [key for key in given if given[key] != stored.get(key)]
        if changed:
            was = ", ".join(f"{key} was {stored.get(key)}, is {given[key]}" for key in changed)
            raise UserError(
                f"--resume: {self.output} is of another run ({was}); start it as before, or "
                "give --overwrite_output to start again"
            )

    def save_note(self, name: str, content: Any) -> None:
        """Keep something that all processes read, as JSON."""
        with atomic_write(self.directory / f"{name}.json") as file:
            json.dump(content, file, ensure_ascii=False)

    def note(self, name: str) -> Any:
        """Return what `save_note` kept, None if there is none yet."""
        return _read(self.directory / f"{name}.json")

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
        with atomic_write(self.record) as file:
            json.dump(self.identity | record, file, indent=2, ensure_ascii=False)
            file.write("\n")
        shutil.rmtree(self.directory)

    def _block(self, number: int) -> Path:
        return self.directory / f"{number:08d}.part"
