"""Read from and write to S3, with the user's own credentials."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from transformer.download import BLOCK_BYTES, Dropped, NotThere, Source, Unreachable, fetch
from transformer.files import UserError

logger = logging.getLogger(__name__)

# What a checkpoint consists of; optimizer state and logs stay where they are.
_CHECKPOINT_FILES = ("*.json", "*.txt", "*.safetensors", "*.bin", "*.ckpt*", "*.model")


def _bucket_and_key(url: str) -> tuple[str, str]:
    """Split "s3://bucket/some/prefix/" into "bucket" and "some/prefix"."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{url}: names no bucket; write s3://BUCKET/PREFIX")
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
        raise UserError(f"{url}: {error}") from None


def _list(url: str) -> list[str]:
    """Return the keys under an s3:// address, relative to it; "" is the address itself."""
    bucket, prefix = _bucket_and_key(url)
    with _s3_client(url) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    inside = f"{prefix}/" if prefix else ""
    names = [key.removeprefix(inside) for key in keys if key.startswith(inside) or key == prefix]
    return ["" if name == prefix and prefix else name for name in names if not name.endswith("/")]


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
    if offline and target.exists():
        return target
    try:
        names = _list(url)
    except Unreachable as error:
        if not target.exists():
            raise
        logger.warning("%s; using the copy in %s", error, target)
        return target
    if names == [""]:
        return fetch(lambda: _source(url), target)
    patterns = _CHECKPOINT_FILES if files is None else tuple(files)
    wanted = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    wanted = [name for name in wanted if "/" not in name]
    if "model.safetensors" in wanted and files is None:
        wanted = [name for name in wanted if not name.endswith(".bin")]
    if not wanted:
        raise UserError(f"{url}: holds no file like {', '.join(patterns)}; check the prefix")
    for name in wanted:
        address = f"s3://{bucket}/{prefix}/{name}" if prefix else f"s3://{bucket}/{name}"
        fetch(partial(_source, address), target / name)
    return target


def _source(url: str) -> Source:
    """Ask S3 for size, version and hash of one object."""
    bucket, key = _bucket_and_key(url)
    with _s3_client(url) as client:
        head = client.head_object(Bucket=bucket, Key=key)
    tag = head["ETag"].strip('"')
    # Only the tag of an object in one part, and without a customer's key, is the MD5 of it.
    plain = re.fullmatch(r"[0-9a-f]{32}", tag) and "aws:kms" not in str(
        head.get("ServerSideEncryption", "")
    )

    def read(offset: int) -> tuple[int, Iterator[bytes]]:
        with _s3_client(url) as client:
            ranged = {"Range": f"bytes={offset}-"} if offset else {}
            body = client.get_object(Bucket=bucket, Key=key, IfMatch=tag, **ranged)["Body"]
        return offset, _s3_blocks(body)

    digest = ("md5", tag) if plain and "SSECustomerAlgorithm" not in head else None
    return Source(url, tag, head["ContentLength"], digest, read)


def _s3_blocks(body: Any) -> Iterator[bytes]:
    """Yield the content of an S3 object."""
    from botocore.exceptions import BotoCoreError

    try:
        yield from body.iter_chunks(BLOCK_BYTES)
    except (BotoCoreError, OSError) as error:
        raise Dropped(f"the connection broke ({error})") from None


def put(file: Path, url: str) -> None:
    """Upload one file to an s3:// address.

    Raises:
        UserError: no permission, no such bucket, no answer.
    """
    bucket, key = _bucket_and_key(url)
    with _s3_client(url) as client:
        client.upload_file(str(file), bucket, key)
