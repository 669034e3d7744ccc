"""Errors that are told in one line, files that are never half there, and locks."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)

STALE_SECONDS = 24 * 3600  # a file that nobody has written to for so long was left behind


class UserError(ValueError):
    """A mistake of the user's, told in one line: what was given, what is allowed, what to do."""


class EnvironmentFault(UserError):
    """A fault of the machine that the user can mend, such as a missing package; exit code 3."""


def without_secrets(text: str) -> str:
    """Return a text whose addresses lack what is not to be shown: user, password and query.

    Example: "https://me:word@host/a.zip?X-Signature=1" -> "https://host/a.zip?..."
    """
    # subtle: one slash, because a path made of an address has only one; and the scheme is bounded,
    # else a word of a hundred thousand letters takes minutes.
    address = r"([a-z][a-z0-9+.-]{1,30}:/{1,2})(?:[^/?#\s]*@)?([^?#\s]*)(\?[^#\s]*[^#\s'\":;,.)])?"
    return re.sub(
        address, lambda found: found[1] + found[2] + ("?..." if found[3] else ""), text, flags=re.I
    )


def _umask() -> int:
    """Return the umask of the process; POSIX has no call that only reads it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


# subtle: read once, at import, because setting and restoring it is not safe between threads.
_UMASK = _umask()


def sync_directory(directory: str | Path) -> None:
    """Flush the entries of `directory`, so that a rename in it outlives a power cut."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        # Some network file systems cannot sync a directory; the rename is still atomic there.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_new_directory(directory: Path) -> None:
    """Raise UserError unless a directory that is to be filled is not there yet, or empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is not an empty directory; give a new one")


def quick_fingerprint(path: str | Path) -> list[int]:
    """Return what the system changes whenever a file is written: size, times, place; reads nothing.

    Equal fingerprints mean that nobody wrote, unless within the moment that the clock resolves.
    """
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _remove_leftovers(target: Path) -> None:
    """Remove what a killed process left beside `target`, long ago."""
    old = time.time() - STALE_SECONDS
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with suppress(FileNotFoundError):
            if leftover.stat().st_mtime < old:
                leftover.unlink()


@contextmanager
def atomic_write(
    path: str | Path, mode: str = "w", encoding: str | None = "utf-8"
) -> Iterator[IO[Any]]:
    """Open `path` for writing so that readers see the old file or the whole new one.

    The content goes to a hidden file beside `path`, is flushed to the disk, then takes the name.
    If the block raises, the old file stays as it was and the hidden one is removed. Text is
    written with "\\n" line ends. An existing file keeps its permissions, a new one obeys the umask.

    Raises:
        OSError: no permission, no space, no such directory.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"atomic_write mode {mode!r}: only 'w' and 'wb' replace a whole file")
    # A link stays a link: what it points at is replaced.
    target = Path(os.path.realpath(path))
    _remove_leftovers(target)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    text_options = {} if "b" in mode else {"encoding": encoding, "newline": "\n"}
    try:
        with os.fdopen(descriptor, mode, **text_options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        permissions = target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~_UMASK
        os.chmod(name, permissions)
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_directory(target.parent)


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file; a byte-order mark before it is passed over.

    Raises:
        UserError: it cannot be read, is not JSON, or holds something else than an object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except PermissionError:
        raise UserError(f"{path}: no permission to read it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # not JSON, not UTF-8
        raise UserError(f"{path}: not JSON ({error}); copy it again") from None
    except RecursionError:
        raise UserError(f"{path}: not JSON that is ours: it is nested too deeply") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object but a {type(content).__name__}")
    return content


def write_json(
    path: str | Path, content: Any, *, default: Callable[[Any], Any] | None = None
) -> None:
    """Replace a JSON file in one instant; letters stay readable.

    Args:
        default: turns what JSON does not know into what it does.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, default=default)
    with atomic_write(path, "wb") as file:
        # subtle: a file name that is not UTF-8 holds lone surrogates, U+DCFF for the byte FF; these
        # are escaped as \\udcff, which is JSON's own way to write them.
        file.write(text.encode("utf-8", "backslashreplace") + b"\n")


def write_state(path: str | Path, content: Any) -> None:
    """Replace a JSON file that only our own runs read, with a digest of what it says."""
    write_json(path, {"content": content, "sha256": _digest(content)})


def read_state(path: str | Path) -> Any:
    """Return what `write_state` wrote, None if there is no such file.

    Raises:
        UserError: it says something else than was written, or cannot be read.
    """
    if not os.path.lexists(path):
        return None
    held = read_json(path)
    if held.keys() != {"content", "sha256"} or _digest(held["content"]) != held["sha256"]:
        raise UserError(f"{path}: not what this version of the toolkit wrote; it was changed")
    return held["content"]


def _digest(content: Any) -> str:
    # subtle: in the order of the keys as they are, which JSON keeps; sorted, the key 10 comes after
    # 9 as a number and before it as the text that it is when it is read again.
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


# --- locks ---------------------------------------------------------------------------------------

POLL_SECONDS = 0.1


def _lock_on(path: str | Path) -> Any:
    # Imported here: it takes as long as the rest of this package without torch.
    import filelock

    # Whoever may write into the directory may take the lock, whatever the umask of the first was.
    mode = stat.S_IMODE(Path(path).parent.stat().st_mode) & 0o666
    return filelock.FileLock(str(path), mode=mode)


def try_lock(path: str | Path, seconds: float) -> Any | None:
    """Take the lock file `path`, for this process; None if another one keeps it so long.

    The system frees the lock of a process that dies. It is given back by `release()`.
    """
    import filelock

    lock = _lock_on(path)
    try:
        lock.acquire(timeout=seconds, poll_interval=POLL_SECONDS)
    except filelock.Timeout:
        return None
    return lock


@contextmanager
def file_lock(path: str | Path, waiting_for: str) -> Iterator[None]:
    """Hold the lock file `path`; others, in any process that sees the file, wait.

    Ranks wait here, and not in a collective, while one of them prepares data for hours. The
    system frees the lock of a process that dies.
    """
    lock = try_lock(path, 0)
    if lock is None:
        logger.info("waiting for another process: %s", waiting_for)
        lock = _lock_on(path)
        lock.acquire(poll_interval=POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()
