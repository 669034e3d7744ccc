"""Fetch a file over HTTP: resumed where it broke off, checked, and once for all processes.

A file lies in CACHE/ADDRESS/VERSION/NAME, where VERSION stands for its ETag: what has that name is
whole and of that version. It grows as `.NAME.part`, which a later run goes on with.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from transformer.files import UserError, file_digest, file_lock, sync_directory, without_secrets

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 16  # as much as a dropped connection can cost

ATTEMPTS = 5  # in a row without a byte of progress

TIMEOUT_SECONDS = (10, 60)  # to connect, between two pieces of an answer

_BUSY = (429, 500, 502, 503, 504)


class Unreachable(UserError):
    """The address did not answer: what is in the cache may be used instead."""


class NotThere(UserError):
    """The address answered that it has no such file."""


@dataclass(frozen=True)
class Remote:
    """What a server says about a file.

    Args:
        tag: what it calls this version; empty if it does not say.
        range_tag: the tag that a request for the rest of the file may name; empty if there is none.
        size: bytes, None if unknown.
        sha256: hexadecimal, None if it does not say.
    """

    url: str
    tag: str
    range_tag: str
    size: int | None
    sha256: str | None

    @property
    def shown(self) -> str:
        """Return the address as it may be shown."""
        return without_secrets(self.url)


def fetch(url: str, home: Path, *, offline: bool) -> Path:
    """Return the local copy of a file, after fetching it unless this version is there already.

    Args:
        home: where copies are kept.
        offline: take what is there, and ask nobody.

    Raises:
        UserError: the server cannot be reached and nothing is kept, has no such file, asks for a
            permission, or what came is not what was announced.
    """
    parts = urlsplit(url)
    place = home / hashlib.sha256(url.encode()).hexdigest()[:16]
    name = Path(parts.path).name[-128:] or parts.hostname or "file"
    kept = sorted(place.glob("*/[!.]*"), key=lambda path: path.stat().st_mtime)
    if offline:
        if kept:
            return kept[-1]
        raise Unreachable(f"{without_secrets(url)} is not there, and HF_HUB_OFFLINE is set")
    with _session() as session:
        try:
            remote = _ask(session, url)
        except Unreachable as error:
            if not kept:
                raise
            logger.warning("%s; using the copy in %s", error, kept[-1])
            return kept[-1]
        target = place / hashlib.sha256(remote.tag.encode()).hexdigest()[:16] / name
        if remote.tag and target.is_file():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(home / f".{place.name}.lock", f"it fetches {remote.shown}"):
            if not (remote.tag and target.is_file()):
                _download(session, remote, target)
    return target


def _download(session: Any, remote: Remote, target: Path) -> None:
    """Write `remote` to `target`, go on where an earlier call was cut off, drop other versions."""
    part = target.with_name(f".{target.name}.part")
    if not remote.tag or remote.size is None:  # nobody knows whether the rest fits what is there
        part.unlink(missing_ok=True)
    part.touch()
    logger.info("fetching %s to %s", remote.shown, target)
    failures = 0
    problem: str | None = "the connection ended early"
    while problem and part.stat().st_size != remote.size:
        if failures:
            time.sleep(min(0.2 * 2**failures, 5))
        before = part.stat().st_size
        problem = _append(session, remote, part, before)
        if problem is None and remote.size not in (None, part.stat().st_size):
            problem = "the connection ended early"
        after = part.stat().st_size
        failures = 0 if after > before else failures + 1
        if remote.size is not None and after > remote.size:
            part.unlink()
            raise UserError(
                f"{remote.shown}: {remote.size:,} bytes announced, {after:,} came; try again"
            )
        if problem and failures >= ATTEMPTS:
            raise Unreachable(f"{remote.shown}: {problem} at byte {after:,}; start again to go on")
    _check_digest(remote, part)
    os.replace(part, target)
    sync_directory(target.parent)
    for other in target.parent.parent.iterdir():
        if other != target.parent:
            shutil.rmtree(other, ignore_errors=True)


def _append(session: Any, remote: Remote, part: Path, offset: int) -> str | None:
    """Read from `offset` to the end; return what broke the connection, None if nothing did."""
    import requests

    headers = {"Range": f"bytes={offset}-"} if offset else {}
    if offset and remote.range_tag:
        headers["If-Range"] = remote.range_tag  # the whole file if it has changed meanwhile
    with _request(session, "GET", remote.url, headers) as answer:
        # A server that ignores the offset sends everything, from byte 0.
        start = offset if answer.status_code == 206 else 0
        size = {"total": remote.size, "initial": start, "unit": "B", "unit_scale": True}
        bar = tqdm(**size, desc=part.name[1:-5], disable=None)
        with open(part, "r+b") as file, bar:
            file.truncate(start)
            file.seek(start)
            try:
                for block in answer.iter_content(BLOCK_BYTES):
                    file.write(block)
                    bar.update(len(block))
            except requests.RequestException as error:
                return f"the connection broke ({reason_of(error)})"
            finally:
                file.flush()
                os.fsync(file.fileno())
    return None


def _check_digest(remote: Remote, part: Path) -> None:
    """Compare what came with the hash that the server announced."""
    if remote.sha256 is None:
        return
    came = file_digest(part)
    if came != remote.sha256:
        part.unlink()
        raise UserError(
            f"{remote.shown}: sha256 {came} differs from the announced "
            f"{remote.sha256}; the file was damaged on its way, try again"
        )


def _ask(session: Any, url: str) -> Remote:
    """Ask a server for version, size and hash of `url`; redirects are followed."""
    # A hash in the address, as package indexes write it: https://host/file.zip#sha256=...
    address, _, fragment = url.partition("#")
    try:
        answer = _request(session, "HEAD", address, {})
    except (NotThere, Unreachable):
        raise
    except UserError:  # some servers and signed addresses refuse HEAD
        answer = _request(session, "GET", address, {})
    answer.close()
    hops = [*answer.history, answer]
    # The model hub names the hash of a large file before it redirects to the storage.
    tags = [hop.headers.get(name) for name in ("X-Linked-ETag", "ETag") for hop in hops]
    tag = next((tag for tag in tags if tag), answer.headers.get("Last-Modified", ""))
    named = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    hashed = named or re.fullmatch(r'"?([0-9a-f]{64})"?', tag)
    length = answer.headers.get("Content-Length", "")
    strong = answer.headers.get("ETag", "")
    return Remote(
        address,
        tag,
        strong if strong.startswith('"') else "",
        int(length) if length.isdigit() else None,
        hashed[1] if hashed else None,
    )


def _session() -> Any:
    """Return a session that asks a busy server again."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util.retry import Retry

    retry = Retry(
        total=ATTEMPTS - 1,
        connect=0,
        read=0,
        status_forcelist=_BUSY,
        allowed_methods=None,
        backoff_factor=0.2,
        raise_on_status=False,
        # A server may ask for hours.
        respect_retry_after_header=False,
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    # Compressed answers would have another length than the file.
    session.headers["Accept-Encoding"] = "identity"
    return session


def _request(session: Any, method: str, url: str, headers: dict[str, str]) -> Any:
    """Send a request; turn refusals into `UserError`."""
    import requests

    shown = without_secrets(url)
    try:
        answer = session.request(
            method,
            url,
            headers=headers,
            stream=True,
            allow_redirects=True,
            timeout=TIMEOUT_SECONDS,
        )
    except (requests.RequestException, OSError, ValueError) as error:
        host = urlsplit(shown).netloc
        raise Unreachable(
            f"{shown}: no answer from {host} ({reason_of(error)}); check the address, the "
            "network and the proxy, or give a local directory"
        ) from None
    if answer.ok:
        return answer
    answer.close()
    raise refusal(shown, answer.status_code, answer.reason)


def refusal(shown: str, status: int, reason: str) -> UserError:
    """Return the error for an HTTP status of an address that may be shown."""
    if status in (404, 410):
        return NotThere(f"{shown}: {status}, no such file; check the name")
    if status in (401, 403):
        return UserError(
            f"{shown}: {status}, no permission or no such repository; check the name, "
            "or set HF_TOKEN to a token that may read it"
        )
    kind = Unreachable if status in _BUSY else UserError
    return kind(f"{shown}: the server answered {status} {reason}")


def reason_of(error: BaseException) -> str:
    """Return the innermost cause of a network error, in a few words without addresses."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    text = re.sub(r"^<[^>]*>:? *", "", str(error))
    return without_secrets(text) or type(error).__name__
