"""What decides the result of a run. An interrupted one goes on only under an equal fingerprint.

A fingerprint is a flat dictionary of short texts: the flags that decide, each script's own list of
them, and a digest of everything that is read: content and not paths, so that a model that was
moved is the same one, and a model that was trained again under its name is another.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformer.files import UserError

Fingerprint = dict[str, str]


def fingerprint(args: argparse.Namespace, flags: Iterable[str], **contents: Any) -> Fingerprint:
    """Return the fingerprint of a run.

    Args:
        flags: names of those that decide the result; one that `args` has not is passed over.
        contents: of what is read, and of the machine; keys with blanks as underscores.
    """
    held = vars(args)
    given = {f"--{name}": held[name] for name in flags if name in held}
    facts = {name.replace("_", " "): value for name, value in contents.items()}
    return {name: str(value) for name, value in {**given, **facts}.items()}


# Of a larger file so much is read, in pieces from all over it.
SAMPLED_BYTES = 64 << 20

PIECE_BYTES = 1 << 20


def sampled_digest(path: str | Path) -> str:
    """Return a digest of a file's size and of pieces of it, of the whole file if it is small.

    Meant for word vectors, of gigabytes: others differ in every line.
    """
    size = Path(path).stat().st_size
    total = hashlib.sha256(str(size).encode())
    pieces = -(-min(size, SAMPLED_BYTES) // PIECE_BYTES)
    with open(path, "rb") as file:
        for piece in range(pieces):
            file.seek((size - 1) * piece // pieces if size > SAMPLED_BYTES else piece * PIECE_BYTES)
            total.update(file.read(PIECE_BYTES))
        file.seek(max(size - PIECE_BYTES, 0))
        total.update(file.read())
    return total.hexdigest()


def digest_of(*values: Any) -> str:
    """Return a digest of plain values: 16 hexadecimal digits, the same in every process."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_fingerprint(
    saved: Mapping[str, str] | None, now: Fingerprint, where: str | Path, way_out: str
) -> None:
    """Check that a run goes on as it was begun.

    Args:
        saved: what the run in `where` was begun with, as it was read.
        way_out: the flag that begins anew.

    Raises:
        UserError: something differs; names each thing with both values.
    """
    if not isinstance(saved, Mapping):
        raise UserError(
            f"--resume: what the run in {where} was begun with cannot be read; begin anew with "
            f"{way_out}"
        )
    changed = [
        f"{name} was {saved.get(name, 'not given')} and is now {now.get(name, 'not given')}"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(
            f"--resume: {where}: {'; '.join(changed)}. Give what the run was begun with, or begin "
            f"anew with {way_out}"
        )
