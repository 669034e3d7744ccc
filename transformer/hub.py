"""Fetch checkpoints by their name on the Hugging Face hub, and only the files that are needed."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from transformer.download import NotThere, Unreachable, fetch, http_source
from transformer.files import UserError

logger = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "https://huggingface.co"

# In the order in which they are looked for; the first that exists is taken.
CONFIGS = ("config.json", "bert_config.json")

VOCABULARIES = ("vocab.txt", "tokenizer.json", "spiece.model")

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def looks_like_name(text: str) -> bool:
    """Say whether `text` can be a hub name: "bert-base-uncased" or "org/name"."""
    return re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", text, re.ASCII) is not None


def home() -> Path:
    """Return the directory of Hugging Face's files, which $HF_HOME moves."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser()


def is_offline() -> bool:
    """Say whether the user forbids the network with $HF_HUB_OFFLINE."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def fetch_checkpoint(name: str, cache_dir: Path | None, files: Iterable[str] | None) -> Path:
    """Return a directory with the files of `name`.

    Args:
        cache_dir: where to keep them. None keeps them below `home()`, and also takes what
            Hugging Face's own libraries have fetched.
        files: names of which at least one must exist. None: configuration, vocabulary, weights.

    Raises:
        UserError: no such repository, no permission, no answer, or nothing in it that we read.
    """
    wanted = None if files is None else tuple(files)
    if cache_dir is None:
        snapshot = _snapshot(name)
        if snapshot is not None and _is_complete(snapshot, wanted):
            return snapshot
    directory = (cache_dir or home() / "tinybert") / "hub" / name.replace("/", "--")
    repository = _Repository(name, directory)
    if wanted is not None:
        if not [file for file in wanted if repository.get(file)]:
            repository.first_of(wanted)
        return directory
    repository.first_of(CONFIGS)
    repository.first_of(VOCABULARIES)
    repository.get("tokenizer_config.json")
    weights = repository.first_of(WEIGHTS)
    if weights.suffix == ".json":
        for shard in _shards(weights):
            repository.first_of((shard,))
    return directory


class _Repository:
    """The files of one hub repository and where they are kept."""

    def __init__(self, name: str, directory: Path):
        endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self.address = f"{endpoint}/{name}"
        self.directory = directory
        token = os.environ.get("HF_TOKEN")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._trouble = "HF_HUB_OFFLINE is set" if is_offline() else ""

    def get(self, file: str) -> Path | None:
        """Fetch `file`; None if the repository, or the cache when offline, has none."""
        target = self.directory / file
        if not self._trouble:
            url = f"{self.address}/resolve/main/{file}"
            try:
                return fetch(lambda: http_source(url, self._headers), target, stale=False)
            except NotThere:
                return None
            except Unreachable as error:
                # From here on only the cache is asked: each try may take as long as this one.
                self._trouble = str(error)
                if target.is_file():
                    logger.warning("%s; using the files in %s", error, self.directory)
        return target if target.is_file() else None

    def first_of(self, files: tuple[str, ...]) -> Path:
        """Fetch the first of `files` that exists."""
        for file in files:
            if (path := self.get(file)) is not None:
                return path
        kinds = " or ".join(files)
        if self._trouble:
            raise UserError(f"{self._trouble}; and there is no {kinds} in {self.directory}")
        raise UserError(
            f"{self.address}: has no {kinds}; give a local directory, or the name of a BERT "
            "checkpoint on the hub"
        )


def _shards(index: Path) -> list[str]:
    """Return the file names in the index of sharded weights."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{index}: not an index of sharded weights") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index}: {name!r} is no file name")
    return names


def _snapshot(name: str) -> Path | None:
    """Return the directory in which Hugging Face's own libraries keep the main revision."""
    root = Path(os.environ.get("HF_HUB_CACHE") or home() / "hub").expanduser()
    repository = root / ("models--" + name.replace("/", "--"))
    reference = repository / "refs" / "main"
    if not reference.is_file():
        return None
    return repository / "snapshots" / reference.read_text(encoding="utf-8").strip()


def _is_complete(directory: Path, wanted: tuple[str, ...] | None) -> bool:
    """Say whether `directory` has what is needed."""

    def has(names: Iterable[str]) -> bool:
        return any((directory / name).is_file() for name in names)

    if wanted is not None:
        return has(wanted)
    indexes = [directory / name for name in WEIGHTS if name.endswith(".index.json")]
    whole = all(has([shard]) for index in indexes if index.is_file() for shard in _shards(index))
    return has(CONFIGS) and has(VOCABULARIES) and has(WEIGHTS) and whole
