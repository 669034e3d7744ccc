"""Read from and write to S3, with the user's own credentials and boto3's own transfer."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformer.download import NotThere, Unreachable
from transformer.files import UserError, atomic_write, file_lock

logger = logging.getLogger(__name__)

# What a checkpoint consists of; optimizer state and logs stay where they are.
_CHECKPOINT_FILES = ("*.json", "*.txt", "*.safetensors", "*.bin", "*.ckpt*", "*.model")


def _bucket_and_key(url: str) -> tuple[str, str]:
    """Split "s3://bucket/some/prefix/" into "bucket" and "some/prefix"."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{url}: names no bucket; write s3://BUCKET/PREFIX")
    if "@" in bucket:
        raise UserError(
            f"{url}: an s3 address holds no user and password; boto3 reads them from its own files "
            "and variables"
        )
    return bucket, key.strip("/")


@contextmanager
def _s3_client(url: str) -> Iterator[Any]:
    """Give an S3 client; turn its errors into `UserError`."""
    try:
        import boto3
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.exceptions import ConnectionError as NoConnectionError
    except ImportError as error:
        raise UserError(f"{url}: needs the package {error.name}; pip install boto3") from None
    try:
        yield boto3.client("s3")
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ("404", "NoSuchKey", "NoSuchBucket"):
            raise NotThere(f"{url}: {code}, no such bucket or object; check the name") from None
        if code in ("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
            raise UserError(f"{url}: {code}, no permission with your AWS credentials") from None
        raise UserError(f"{url}: the server answered {error}") from None
    except (HTTPClientError, NoConnectionError) as error:
        raise Unreachable(f"{url}: no answer ({error})") from None
    except (BotoCoreError, Boto3Error) as error:
        # A transfer that was tried again and again says why in an attribute.
        raise UserError(f"{url}: {getattr(error, 'last_exception', error)}") from None


def fetch_prefix(url: str, home: Path, files: Iterable[str] | None, *, offline: bool) -> Path:
    """Return the local copy of an object, or of the checkpoint files right under a prefix.

    Args:
        home: where copies are kept.
        files: names to fetch, those that exist. None: what a checkpoint consists of.

    Raises:
        UserError: no such bucket or prefix, no permission, no answer and nothing kept.
    """
    bucket, prefix = _bucket_and_key(url)
    target = home / bucket / prefix
    if offline:
        if target.exists():
            return target
        raise Unreachable(f"{url} is not in {home}, and HF_HUB_OFFLINE is set")
    try:
        with _s3_client(url) as client:
            objects = _list(client, bucket, prefix)
            if list(objects) == [""]:
                _fetch(client, bucket, objects[""], target)
                return target
            patterns = _CHECKPOINT_FILES if files is None else tuple(files)
            wanted = [name for name in objects if any(fnmatch(name, like) for like in patterns)]
            if "model.safetensors" in wanted and files is None:
                wanted = [name for name in wanted if not name.endswith(".bin")]
            for name in wanted:
                _fetch(client, bucket, objects[name], target / name)
    except Unreachable as error:
        if not target.exists():
            raise
        logger.warning("%s; using the copy in %s", error, target)
        return target
    if not wanted:
        raise UserError(f"{url}: holds no file like {', '.join(patterns)}; check the prefix")
    return target


def _list(client: Any, bucket: str, prefix: str) -> dict[str, dict]:
    """Return what is right under a prefix, by name; "" is an object of that very name."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    objects = {entry["Key"]: entry for page in pages for entry in page.get("Contents", ())}
    if prefix in objects:
        return {"": objects[prefix]}
    inside = f"{prefix}/" if prefix else ""
    names = {key.removeprefix(inside): key for key in objects if key.startswith(inside)}
    return {name: objects[key] for name, key in names.items() if name and "/" not in name}


def _fetch(client: Any, bucket: str, entry: dict, target: Path) -> None:
    """Bring one object to `target`, unless this version of it is there already."""
    name = f"s3://{bucket}/{entry['Key']}"
    version = target.with_name(f".{target.name}.etag")

    def is_there() -> bool:
        if not (target.is_file() and version.is_file()):
            return False
        return version.read_text() == entry["ETag"] and target.stat().st_size == entry["Size"]

    if is_there():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(target.with_name(f".{target.name}.lock"), f"it fetches {name}"):
        if is_there():
            return
        logger.info("fetching %s to %s", name, target)
        for leftover in target.parent.glob(f".{glob.escape(target.name)}.part*"):
            leftover.unlink()  # of a process that was killed; boto3 adds an ending of its own
        part = target.with_name(f".{target.name}.part")
        client.download_file(bucket, entry["Key"], str(part))
        os.replace(part, target)
        with atomic_write(version) as file:
            file.write(entry["ETag"])


def put(file: Path, url: str) -> None:
    """Upload one file to an s3:// address.

    Raises:
        UserError: no permission, no such bucket, no answer.
    """
    bucket, key = _bucket_and_key(url)
    with _s3_client(url) as client:
        client.upload_file(str(file), bucket, key)
