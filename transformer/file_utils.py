"""Turn names and addresses into local paths, and copy results to where the user wants them."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformer.files import UserError, atomic_write, quick_fingerprint, without_secrets

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "pytorch_model.bin"

CONFIG_NAME = "config.json"

ARCHIVE_ENDINGS = (".zip", ".tar.gz", ".tgz")


def _hugging_face_home() -> Path:
    """Return the directory of Hugging Face's files, which $HF_HOME moves."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser()


def _cache_home(cache_dir: Path | None) -> Path:
    """Return where copies and unpacked archives are kept."""
    own = os.environ.get("PYTORCH_PRETRAINED_BERT_CACHE")  # of the original scripts
    return cache_dir or (Path(own).expanduser() if own else _hugging_face_home() / "tinybert")


PYTORCH_PRETRAINED_BERT_CACHE = _cache_home(None)


def _is_offline() -> bool:
    """Say whether the user forbids the network with $HF_HUB_OFFLINE."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def cached_path(
    name_or_path: str | Path,
    cache_dir: str | Path | None = None,
    *,
    files: Iterable[str] | None = None,
) -> Path:
    """Return where the files of `name_or_path` are on this machine, after fetching them if needed.

    A local file or directory; an http(s):// address of a file; s3://bucket/prefix; a name on the
    Hugging Face hub, with @revision if need be ($HF_ENDPOINT, $HF_HOME, $HF_TOKEN, $HF_HUB_OFFLINE
    and the token of `hf auth login` are honoured). A .zip or .tar.gz is unpacked.

    Args:
        cache_dir: where to keep what is fetched; None or empty: below $HF_HOME, and for names on
            the hub in the cache that Hugging Face's own libraries use.
        files: names of which at least one is needed. None: a whole checkpoint.

    Raises:
        UserError: which address failed and why; or there is no such file.
    """
    # What only addresses and archives need is imported where they are met.
    # subtle: Path("https://host/x") is "https:/host/x".
    text = re.sub(r"^(https?|s3):/(?=[^/])", r"\1://", os.fspath(name_or_path))
    keep = Path(cache_dir).expanduser() if cache_dir else None
    if re.match(r"[a-z0-9]+://", text):
        path = _fetch_address(text, keep, files)
    else:
        path = Path(text).expanduser()
        if not path.exists():
            return _fetch_name(text, keep, files)
    if path.name.lower().endswith(ARCHIVE_ENDINGS) and path.is_file():
        from transformer import archives

        return archives.unpack(path, _unpacked_home(path, keep))
    return path


def model_path(flag: str, args: argparse.Namespace) -> Path:
    """Return where the model is that a flag names, fetched if need be.

    Example: flag="teacher_model" reads args.teacher_model, and args.cache_dir.

    Raises:
        UserError: as `cached_path`, after the name of the flag.
    """
    with told_with(flag):
        return cached_path(getattr(args, flag), args.cache_dir)


@contextmanager
def told_with(flag: str) -> Iterator[None]:
    """Put the name of a flag before the message of a UserError about what it names."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"--{flag} {error}") from None


def _unpacked_home(archive: Path, cache_dir: Path | None) -> Path:
    """Return where this version of `archive` is unpacked."""
    version = f"{archive.resolve()} {quick_fingerprint(archive)}"
    name = hashlib.sha256(os.fsencode(version)).hexdigest()[:16]
    return _cache_home(cache_dir) / "unpacked" / name


def _fetch_name(name: str, cache_dir: Path | None, files: Iterable[str] | None) -> Path:
    """Fetch a hub name; a path that cannot be one does not exist."""
    from transformer import hub

    if not hub.looks_like_name(name):
        raise UserError(f"{name}: no such file or directory")
    shared = os.environ.get("HF_HUB_CACHE") or _hugging_face_home() / "hub"
    cache = cache_dir or Path(shared).expanduser()
    try:
        return hub.fetch_checkpoint(name, cache, files, offline=_is_offline())
    except UserError as error:
        raise UserError(f"{name}: no such file or directory here; {error}") from None


def _fetch_address(url: str, cache_dir: Path | None, files: Iterable[str] | None) -> Path:
    """Fetch an http(s):// or s3:// address."""
    from transformer import download

    home = _cache_home(cache_dir)
    if url.startswith("s3://"):
        from transformer import s3

        return s3.fetch_prefix(url, home / "s3", files, offline=_is_offline())
    if not url.startswith(("http://", "https://")):
        raise UserError(
            f"{without_secrets(url)}: unknown kind of address; http://, https:// and s3:// are read"
        )
    return download.fetch(url, home / "http", offline=_is_offline())


def upload(local: str | Path, data_url: str) -> bool:
    """Copy a file, or all files in a directory, to "s3://bucket/prefix" or to a directory.

    `config.json` goes last, so that a copy that has it is whole. What fails is a warning: the
    files stay where they are, and the caller tries again at the next save.

    Args:
        data_url: empty: nothing is copied.

    Returns:
        Whether everything arrived.

    Raises:
        UserError: an address of another kind.
    """
    if not data_url:
        return True
    if "://" in data_url and not data_url.startswith("s3://"):
        raise UserError(
            f"--data_url {without_secrets(data_url)}: give s3://BUCKET/PREFIX or a directory"
        )
    source = Path(local)
    try:
        for file in _files_to_upload(source):
            name = file.name if source.is_file() else file.relative_to(source).as_posix()
            _put(file, data_url, name)
    # A package may be missing, a disk full, a bucket closed: the training goes on all the same.
    except (UserError, OSError) as error:
        logger.warning("not uploaded to %s, will be tried again: %s", data_url, error)
        return False
    return True


def _files_to_upload(source: Path) -> list[Path]:
    """Return the files below `source` without hidden ones, `config.json` last."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source}: no such file or directory")
    files = [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file() and not any(part[0] == "." for part in path.relative_to(source).parts)
    ]
    return sorted(files, key=lambda path: path.name == "config.json")


def _put(file: Path, data_url: str, name: str) -> None:
    """Copy `file` to `name` below `data_url`."""
    if data_url.startswith("s3://"):
        from transformer import s3

        s3.put(file, f"{data_url.rstrip('/')}/{name}")
        return
    target = Path(data_url).expanduser() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "rb") as source, atomic_write(target, "wb") as copy:
        shutil.copyfileobj(source, copy)
