"""Fetch files over HTTP: resumed, checked, locked between processes.

A file is written beside its target as `.NAME.ID.part`, where ID stands for this version of the
remote file, and takes its name when it is whole. `.NAME.tag` then remembers the version, so that
the next call need not fetch it again.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from transformer.files import UserError, atomic_write, sync_directory

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 16  # as much as a dropped connection can cost

ATTEMPTS = 5  # in a row without a byte of progress

TIMEOUT_SECONDS = (10, 60)  # to connect, between two pieces of an answer

_BUSY = (429, 500, 502, 503, 504)


class Unreachable(UserError):
    """The address did not answer: what is in the cache may be used instead."""


class NotThere(UserError):
    """The address answered that it has no such file."""


class Dropped(OSError):
    """The connection broke while a file was being read; what came is kept."""


@dataclass(frozen=True)
class Source:
    """A remote file.

    Args:
        tag: what the server calls this version of the file; empty if it does not say.
        size: bytes, None if unknown.
        digest: ("sha256" or "md5", hexadecimal), None if none is offered.
        read: from an offset to the offset really used and the blocks that follow; `Dropped` if
            the connection breaks.
    """

    url: str
    tag: str
    size: int | None
    digest: tuple[str, str] | None
    read: Callable[[int], tuple[int, Iterator[bytes]]]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; wait for another process that holds it."""
    try:
        import fcntl
    except ImportError:  # not POSIX: two processes may fetch the same file twice
        yield
        return
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that fetches %s", path.name[1:-5])
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch(
    find_source: Callable[[], Source],
    target: Path,
    *,
    offline: bool = False,
    stale: bool = True,
) -> Path:
    """Bring a remote file to `target`, unless that version is there already.

    Args:
        find_source: asks the server; called under the lock, and not at all when `offline`.
        stale: return what is there, with a warning, if the server does not answer.

    Raises:
        UserError: the server cannot be reached and nothing is cached, has no such file, asks
            for a permission, or what came is not what was announced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    tag_file = target.with_name(f".{target.name}.tag")
    with locked(target.with_name(f".{target.name}.lock")):
        if offline:
            if target.exists():
                return target
            raise Unreachable(f"{target} is not there, and HF_HUB_OFFLINE is set")
        try:
            source = find_source()
        except Unreachable as error:
            if not (stale and target.exists()):
                raise
            logger.warning("%s; using the copy in %s", error, target)
            return target
        known = tag_file.read_text(encoding="utf-8") if tag_file.exists() else ""
        same_size = target.exists() and source.size in (None, target.stat().st_size)
        if source.tag and known == source.tag and same_size:
            return target
        _download(source, target)
        with atomic_write(tag_file) as file:
            file.write(source.tag)
    return target


def _download(source: Source, target: Path) -> None:
    """Write `source` to `target`; go on where an earlier call was cut off."""
    identity = hashlib.sha256(source.tag.encode()).hexdigest()[:12]
    part = target.with_name(f".{target.name}.{identity}.part")
    for stale in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        # Without a tag nobody knows whether the rest still fits to what is there.
        if stale != part or not source.tag:
            stale.unlink()
    logger.info("fetching %s to %s", source.url, target)
    failures = 0
    while not _is_whole(source, part):
        before = part.stat().st_size if part.exists() else 0
        try:
            _append(source, part, before)
            if source.size is None:
                break
            problem = "the connection ended early"
        except Dropped as error:
            problem = str(error)
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures >= ATTEMPTS:
            raise Unreachable(f"{source.url}: {problem} at byte {after:,}; start again to go on")
        if not _is_whole(source, part):
            time.sleep(min(0.2 * 2**failures, 5))
    _check_digest(source, part)
    os.replace(part, target)
    sync_directory(target.parent)


def _is_whole(source: Source, part: Path) -> bool:
    """Say whether every byte is there; one too many is an error."""
    if source.size is None or not part.exists():
        return False
    size = part.stat().st_size
    if size > source.size:
        part.unlink()
        raise UserError(f"{source.url}: {source.size:,} bytes announced, {size:,} came; try again")
    return size == source.size


def _append(source: Source, part: Path, offset: int) -> None:
    """Read from `offset` to the end of the source, with a progress bar on a terminal."""
    start, blocks = source.read(offset)
    with (
        open(part, "r+b" if part.exists() else "wb") as file,
        tqdm(
            total=source.size,
            initial=start,
            unit="B",
            unit_scale=True,
            desc=source.url.rsplit("/", 1)[-1],
            disable=None,
        ) as bar,
    ):
        # subtle: a server that ignores the offset sends everything, from byte 0.
        file.truncate(start)
        file.seek(start)
        for block in blocks:
            file.write(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())


def _check_digest(source: Source, part: Path) -> None:
    """Compare what came with the hash that the server announced."""
    if source.digest is None:
        return
    algorithm, expected = source.digest
    digest = hashlib.new(algorithm)
    with open(part, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != expected:
        part.unlink()
        raise UserError(
            f"{source.url}: {algorithm} {digest.hexdigest()} differs from the announced "
            f"{expected}; the file was damaged on its way, try again"
        )


def http_source(url: str, headers: dict[str, str] | None = None) -> Source:
    """Ask an HTTP server for size, version and hash of `url`; redirects are followed."""
    # A hash in the address, as package indexes write it: https://host/file.zip#sha256=...
    address, _, fragment = url.partition("#")
    answer = _ask(address, headers or {})
    hops = [*answer.history, answer]
    # The hub names the hash of a large file before it redirects to the storage.
    tags = [hop.headers.get(name) for name in ("X-Linked-ETag", "ETag") for hop in hops]
    tag = next((tag for tag in tags if tag), answer.headers.get("Last-Modified", ""))
    named = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    hashed = named or re.fullmatch(r'"?([0-9a-f]{64})"?', tag)
    length = answer.headers.get("X-Linked-Size") or answer.headers.get("Content-Length")

    def read(offset: int) -> tuple[int, Iterator[bytes]]:
        ranged = {"Range": f"bytes={offset}-"} if offset else {}
        strong = answer.headers.get("ETag", "")
        if offset and strong.startswith('"'):
            ranged["If-Range"] = strong  # the whole file if it has changed meanwhile
        body = _request("GET", address, {**(headers or {}), **ranged})
        return (offset if body.status_code == 206 else 0), _blocks(body)

    return Source(
        address,
        tag,
        int(length) if length and length.isdigit() else None,
        ("sha256", hashed[1]) if hashed else None,
        read,
    )


def _ask(url: str, headers: dict[str, str]) -> Any:
    """Return the answer without its body; some servers and signed addresses refuse HEAD."""
    try:
        return _request("HEAD", url, headers)
    except (NotThere, Unreachable):
        raise
    except UserError:
        with _request("GET", url, headers) as answer:
            return answer


def _blocks(answer: Any) -> Iterator[bytes]:
    """Yield the body of an HTTP answer."""
    import requests

    try:
        with answer:
            yield from answer.iter_content(BLOCK_BYTES)
    except (requests.RequestException, OSError) as error:
        raise Dropped(f"the connection broke ({_reason(error)})") from None


def _request(method: str, url: str, headers: dict[str, str]) -> Any:
    """Send a request, again if the server is busy; turn refusals into `UserError`."""
    import requests

    host = urlsplit(url).netloc
    # Compressed answers would have another length than the file.
    headers = {"Accept-Encoding": "identity", **headers}
    for attempt in range(ATTEMPTS):
        try:
            answer = requests.request(
                method,
                url,
                headers=headers,
                stream=True,
                allow_redirects=True,
                timeout=TIMEOUT_SECONDS,
            )
        except (requests.RequestException, OSError) as error:
            raise Unreachable(
                f"{url}: no answer from {host} ({_reason(error)}); check the address, the "
                "network and the proxy, or give a local directory"
            ) from None
        if answer.status_code not in _BUSY or attempt == ATTEMPTS - 1:
            break
        time.sleep(min(0.2 * 2**attempt, 5))
    if answer.ok:
        return answer
    answer.close()
    raise _refusal(url, answer.status_code, answer.reason)


def _refusal(url: str, status: int, reason: str) -> UserError:
    """Return the error for an HTTP status."""
    if status in (404, 410):
        return NotThere(f"{url}: {status}, no such file; check the name")
    if status in (401, 403):
        return UserError(
            f"{url}: {status}, no permission or no such repository; check the name, "
            "or set HF_TOKEN to a token that may read it"
        )
    kind = Unreachable if status in _BUSY else UserError
    return kind(f"{url}: the server answered {status} {reason}")


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a network error, in a few words."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return re.sub(r"^<[^>]*>:? *", "", str(error)) or type(error).__name__
