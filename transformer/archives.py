"""Unpack .zip and .tar.gz archives without leaving the target directory."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from transformer.download import locked
from transformer.files import UserError

ENDINGS = (".zip", ".tar.gz", ".tgz")


def is_archive(path: Path) -> bool:
    """Say whether the name of `path` is that of an archive that can be unpacked."""
    return path.name.lower().endswith(ENDINGS)


def unpack(archive: Path, target: Path) -> Path:
    """Unpack `archive` into the new directory `target`, all of it or nothing.

    Returns:
        `target`, or the only directory in it if the archive holds nothing else.

    Raises:
        UserError: not an archive, cut short, or a member that would lie outside of `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.lock")):
        if not target.is_dir():
            scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
            try:
                _unpack_into(archive, scratch)
                os.chmod(scratch, 0o755)
                os.rename(scratch, target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    entries = list(target.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else target


def _unpack_into(archive: Path, target: Path) -> None:
    """Write the regular files of `archive` below `target`."""
    try:
        if archive.name.lower().endswith(".zip"):
            _unpack_zip(archive, target)
        else:
            _unpack_tar(archive, target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive}: not a whole archive ({error}); fetch it again") from None


def _unpack_zip(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        for member in content.infolist():
            mode = member.external_attr >> 16
            if stat.S_ISLNK(mode):
                raise UserError(f"{archive}: {member.filename!r} is a link; refused")
            if not member.is_dir():
                with content.open(member) as source:
                    _write_member(archive, member.filename, source, target)


def _unpack_tar(archive: Path, target: Path) -> None:
    with tarfile.open(archive, "r:gz") as content:
        for member in content:
            if member.isdir():
                continue
            source = content.extractfile(member) if member.isreg() else None
            if source is None:
                raise UserError(f"{archive}: {member.name!r} is not a plain file; refused")
            with source:
                _write_member(archive, member.name, source, target)


def _write_member(archive: Path, name: str, source: IO[bytes], target: Path) -> None:
    """Copy one member to its place below `target`."""
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or ":" in relative.parts[0]:
        raise UserError(f"{archive}: {name!r} would lie outside of {target.parent}; refused")
    path = target / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        shutil.copyfileobj(source, file)
