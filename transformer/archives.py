"""Unpack .zip and .tar.gz archives: all of one, or nothing."""

from __future__ import annotations

import errno
import gzip
import lzma
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from transformer.files import UserError, file_lock

# Weights hardly compress and text about fivefold; an archive that grows a hundredfold is a bomb.
MAX_GROWTH = 100

ALWAYS_ALLOWED_BYTES = 100 << 20

MAX_MEMBERS = 100_000

BLOCK_BYTES = 1 << 20


def unpack(archive: Path, target: Path) -> Path:
    """Unpack `archive` into the new directory `target`, all of it or nothing.

    Returns:
        `target`, or the only directory in it if the archive holds nothing else.

    Raises:
        UserError: not an archive, cut short, damaged or encrypted; it would grow beyond reason; or
            a member that is a link or would lie outside of `target`.
    """
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(target.with_name(f".{target.name}.lock"), f"it unpacks {archive}"):
            if not target.is_dir():
                _unpack_aside(archive, target)
    entries = list(target.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else target


def _unpack_aside(archive: Path, target: Path) -> None:
    """Unpack beside `target`, then rename; remove what a killed process left there."""
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        # subtle: `scratch` is for its owner alone; a directory made in it obeys the umask.
        content = scratch / "content"
        content.mkdir()
        _unpack_into(archive, content)
        content.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unpack_into(archive: Path, target: Path) -> None:
    """Write the members of `archive` below `target`; tell what is wrong with it in one line."""
    unpack_kind = _unpack_zip if archive.name.lower().endswith(".zip") else _unpack_tar
    damage = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
    damage += (struct.error, UnicodeError)  # of a directory of members that says nonsense
    try:
        unpack_kind(archive, target)
    except NotImplementedError as error:  # a compression that zipfile does not know
        raise UserError(f"{archive}: {error}; pack it again with Deflate") from None
    except OSError as error:
        # subtle: what decompression raises has no number; what the system raises has one, which for
        # a place before the start of the file, where a damaged directory points, is EINVAL.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(archive, error) from None
    except damage as error:
        raise _damaged(archive, error) from None


def _damaged(archive: Path, error: object) -> UserError:
    return UserError(f"{archive}: not a whole archive ({error}); fetch it again")


def _unpack_zip(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        check = _member_check(archive, target)
        # 65,535 stands for any larger number.
        if min(len(content.infolist()), 0xFFFF) != _count_at_end(archive):
            raise _damaged(archive, "its directory lists fewer files than there are")
        for member in content.infolist():
            if member.flag_bits & 1:
                raise UserError(f"{archive}: {member.filename!r} is encrypted; unpack it yourself")
            is_link = stat.S_ISLNK(member.external_attr >> 16)
            check(member.filename, member.file_size, is_plain=not is_link)
        content.extractall(target)


def _count_at_end(archive: Path) -> int:
    """Return how many files the end of a .zip announces, which zipfile does not compare."""
    with open(archive, "rb") as file:
        file.seek(
            max(0, archive.stat().st_size - (1 << 16) - 22)
        )  # the longest comment, the record
        tail = file.read()
    return int.from_bytes(tail[tail.rindex(b"PK\x05\x06") + 10 :][:2], "little")


def _unpack_tar(archive: Path, target: Path) -> None:
    check = _member_check(archive, target)
    with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as content:
        for member in content:
            check(member.name, member.size, is_plain=member.isreg() or member.isdir())
            content.extract(member, target, filter=_without_mode)
        # subtle: tarfile takes a damaged header for the end, and leaves gzip's checksum unread.
        if stream.tell() == content.offset:
            raise _damaged(archive, "its end is missing")
        while block := stream.read(BLOCK_BYTES):
            if block.count(0) != len(block):
                raise _damaged(archive, "a header is damaged")


def _without_mode(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo:
    """Return the member as "data", with the permissions that the umask gives to a new file."""
    return tarfile.data_filter(member, target).replace(mode=None, deep=False)


def _member_check(archive: Path, target: Path) -> Callable[..., None]:
    """Return a function that refuses a member by its name, its kind, and what comes together."""
    limit = max(ALWAYS_ALLOWED_BYTES, MAX_GROWTH * archive.stat().st_size)
    total = members = 0

    def check(name: str, size: int, *, is_plain: bool) -> None:
        nonlocal total, members
        relative = PurePosixPath(name.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts or ":" in "".join(relative.parts[:1]):
            raise UserError(f"{archive}: {name!r} would lie outside of {target.parent}; refused")
        if not is_plain:
            raise UserError(f"{archive}: {name!r} is not a plain file; refused")
        total, members = total + size, members + 1
        if total > limit or members > MAX_MEMBERS:
            raise UserError(
                f"{archive}: would unpack to more than {limit:,} bytes or {MAX_MEMBERS:,} files, "
                "which no model does; unpack it yourself if you trust it"
            )

    return check
