"""Checkpoints by their name on the Hugging Face hub, in the cache of Hugging Face's libraries."""

from __future__ import annotations

import glob
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from transformer.download import NotThere, Unreachable, reason_of, refusal
from transformer.files import UserError, read_json, without_secrets

logger = logging.getLogger(__name__)

# In the order in which they are looked for; the first that exists is taken.
CONFIGS = ("config.json", "bert_config.json")

VOCABULARIES = ("vocab.txt", "tokenizer.json", "spiece.model")

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

OPTIONAL = ("tokenizer_config.json",)

_NAME = r"(?P<repository>(\w[\w.-]*/)?\w[\w.-]*)(@(?P<revision>[\w./-]+))?"


def looks_like_name(text: str) -> bool:
    """Say whether `text` can be a hub name: "bert-base-uncased", "org/name", "name@revision"."""
    return re.fullmatch(_NAME, text, re.ASCII) is not None


def fetch_checkpoint(name: str, cache: Path, files: Iterable[str] | None, *, offline: bool) -> Path:
    """Return a directory with the files of `name`. What the cache holds whole is not asked for.

    Args:
        name: of the repository; a revision (branch, tag, commit) may follow after "@".
        cache: laid out as Hugging Face's own libraries do.
        files: names of which at least one must exist. None: configuration, vocabulary, weights.

    Raises:
        UserError: no such repository, no permission, no answer, or nothing in it that we read.
    """
    parts = re.fullmatch(_NAME, name, re.ASCII)
    repository = _Repository(parts["repository"], parts["revision"] or "main", cache)
    kinds = (CONFIGS, VOCABULARIES, WEIGHTS) if files is None else (tuple(files),)
    kept = repository.kept([*(file for kind in kinds for file in kind), *OPTIONAL])
    wanted, missing = _choose(kinds, kept)
    if not missing:
        shards = _shards(kept[file] for file in wanted)
        if len(repository.kept(shards)) == len(shards):
            directory = kept[wanted[0]].parent
            logger.info("%s: using revision %s, kept in %s", name, directory.name, directory)
            return directory
    nothing_kept = f"and there is no {missing or 'shard of the weights'} in {repository.directory}"
    if offline:
        raise UserError(f"HF_HUB_OFFLINE is set; {nothing_kept}")
    try:
        return repository.fetch(kinds)
    except Unreachable as error:
        raise UserError(f"{error}; {nothing_kept}") from None


@dataclass(frozen=True)
class _Repository:
    """One revision of a repository, and where its files are kept."""

    name: str
    revision: str
    cache: Path

    @property
    def directory(self) -> Path:
        """Return where all revisions are kept."""
        return self.cache / f"models--{self.name.replace('/', '--')}"

    def kept(self, files: Iterable[str]) -> dict[str, Path]:
        """Return where those of `files` are that need not be fetched."""
        from huggingface_hub import try_to_load_from_cache

        options = {"cache_dir": self.cache, "revision": self.revision}
        found = {file: try_to_load_from_cache(self.name, file, **options) for file in files}
        return {file: Path(path) for file, path in found.items() if isinstance(path, str)}

    def fetch(self, kinds: tuple[tuple[str, ...], ...]) -> Path:
        """Fetch what is needed of each kind of file, all from one revision."""
        from huggingface_hub import HfApi

        for client in ("httpx", "httpx2"):  # they log addresses, with signatures
            logging.getLogger(client).setLevel(logging.WARNING)
        endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        shown = without_secrets(f"{endpoint}/{self.name}")
        try:
            with _errors_told(f"{shown}/tree/{self.revision}"):
                info = HfApi(endpoint=endpoint).repo_info(self.name, revision=self.revision)
            names = [file.rfilename for file in info.siblings]
        except NotThere:
            names = []
        wanted, missing = _choose(kinds, names)
        if missing:
            at = "" if self.revision == "main" else f" at revision {self.revision}"
            raise UserError(
                f"{shown}: has no {missing}{at}; give a local directory, or the name of a BERT "
                "checkpoint on the hub"
            )
        directory = self._download(endpoint, wanted)
        shards = _shards(directory / file for file in wanted)
        return self._download(endpoint, shards) if shards else directory

    def _download(self, endpoint: str, files: list[str]) -> Path:
        """Bring files that exist to the cache; return their directory."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()
        address = without_secrets(f"{endpoint}/{self.name}/tree/{self.revision}")
        logger.info("fetching %s from %s to %s", ", ".join(files), address, self.directory)
        with _errors_told(address):
            path = snapshot_download(
                self.name,
                revision=self.revision,
                endpoint=endpoint,
                cache_dir=self.cache,
                allow_patterns=[glob.escape(file) for file in files],
            )
        for file in files:
            if not Path(path, file).is_file():
                raise UserError(f"{address}: {file} did not come; is it there? Try again")
        return Path(path)


@contextmanager
def _errors_told(address: str) -> Iterator[None]:
    """Turn what goes wrong between here and the hub into one line about `address`."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HfHubHTTPError as error:
        answer = error.response
        raise refusal(address, answer.status_code, getattr(answer, "reason_phrase", "")) from None
    except HFValidationError as error:
        raise UserError(f"{address}: {error}") from None
    except Exception as error:
        # subtle: the hub's library speaks HTTP by requests, httpx or httpx2, as its release has it;
        # they share no class of errors. What the system refuses, such as a full disk, has a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Unreachable(
            f"{address}: no answer from {urlsplit(address).netloc} ({reason_of(error)}); check the "
            "name, the network and the proxy"
        ) from None


def _choose(kinds: tuple[tuple[str, ...], ...], names: Iterable[str]) -> tuple[list[str], str]:
    """Return which files to have of those that exist, and the first kind that is missing.

    Of one kind all are wanted; of the three kinds of a checkpoint the first file that exists.
    """
    there = set(names)
    found = [[file for file in kind if file in there] for kind in kinds]
    missing = next((kind for kind, some in zip(kinds, found, strict=True) if not some), ())
    if len(kinds) == 1:
        return found[0], " or ".join(missing)
    wanted = [file for some in found for file in some[:1]]
    return wanted + [file for file in OPTIONAL if file in there], " or ".join(missing)


def _shards(files: Iterable[Path]) -> list[str]:
    """Return the file names in the index of sharded weights, if one is among `files`."""
    index = next((file for file in files if file.name.endswith(".index.json")), None)
    if index is None:
        return []
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise UserError(f"{index}: not an index of sharded weights")
    for name in shards.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index}: {name!r} is no file name")
    return sorted(set(shards.values()))
