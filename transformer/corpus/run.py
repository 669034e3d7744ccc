"""The files of a pregeneration run and its state on disk, from which a killed run goes on.

In the output directory: epoch_N.json and epoch_N_metrics.json (complete as soon as they have their
names), epoch_N.json.partial (the epoch in work), pregenerate_state.json. The token store lies in
OUTPUT_DIR/.tokens, or in a directory of its own below --tmp_dir, until the last epoch is there.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from transformer.corpus.blocks import Corpus, Survey
from transformer.corpus.instances import InstanceSettings, TokenTable
from transformer.corpus.token_store import StoreState
from transformer.corpus.tokens import BlockTokenizer
from transformer.file_utils import upload
from transformer.files import UserError, atomic_write, read_state, sync_directory, write_state
from transformer.runtime.fingerprint import Fingerprint, check_fingerprint

logger = logging.getLogger(__name__)

STATE_FILE = "pregenerate_state.json"

# What was done since the last saving is done again after a kill.
SECONDS_BETWEEN_SAVES = 2.0

# Bytes of corpus that are tokenised to estimate the size of the result.
SAMPLE_BYTES = 1 << 16

# Keys and special tokens of a line.
BYTES_AROUND_TOKENS = 140

# Pairs put text back and borrow from other documents: an epoch is longer than the corpus.
TOKENS_PER_CORPUS_TOKEN = 1.35


@dataclass
class RunState:
    """How far a run has got: the token store, then the parts of the epoch in work."""

    store: dict[str, Any] = field(default_factory=dict)
    instances_of_epoch: list[int] = field(default_factory=list)
    parts: int = 0
    size: int = 0
    instances: int = 0

    @property
    def epoch(self) -> int:
        """Return the epoch in work, which is the number of finished ones."""
        return len(self.instances_of_epoch)


class PregenerationRun:
    """One run: where its files are, and its state.

    Args:
        fingerprint: everything that decides about the bytes written; a resumed run must agree.
    """

    def __init__(self, output_dir: Path, tmp_dir: Path | None, fingerprint: Fingerprint) -> None:
        self.output_dir = output_dir
        self.fingerprint = fingerprint
        self.state = RunState()
        name = f"pregenerate-{zlib.crc32(os.fsencode(output_dir.resolve())):08x}"
        self.store_dir = tmp_dir / name if tmp_dir else output_dir / ".tokens"
        self._saved_at = time.monotonic()
        self._uploaded: set[Path] = set()

    def epoch_path(self, epoch: int, suffix: str = ".json") -> Path:
        """Return epoch_N.json, epoch_N_metrics.json..."""
        return self.output_dir / f"epoch_{epoch}{suffix}"

    def restore(self) -> None:
        """Read the state of the interrupted run, if there is one.

        Raises:
            UserError: it was started with other settings, or its finished files are gone.
        """
        try:
            saved = read_state(self.output_dir / STATE_FILE)
        except UserError as error:
            raise UserError(f"--resume: {error}; begin anew with --overwrite_output_dir") from None
        if saved is None:
            return
        check_fingerprint(
            saved["fingerprint"], self.fingerprint, self.output_dir, "--overwrite_output_dir"
        )
        self.state = RunState(**saved["state"])
        for epoch in range(self.state.epoch):
            if not self.epoch_path(epoch).exists():
                raise UserError(
                    f"--resume: {self.epoch_path(epoch)} is gone; give --overwrite_output_dir"
                )

    def store_state(self) -> StoreState:
        """Return the state of the token store, a new one if its files are not there.

        A store that was removed is made again, with the same content.
        """
        state = StoreState(**self.state.store)
        path = self.store_dir / "sentences.bin"
        if not path.exists() or path.stat().st_size < 8 * state.sentences:
            return StoreState()
        return state

    def save(self) -> None:
        """Write the state; what it speaks of must be on the disk already."""
        held = {"fingerprint": self.fingerprint, "state": asdict(self.state)}
        write_state(self.output_dir / STATE_FILE, held)
        self._saved_at = time.monotonic()

    def saving_is_due(self) -> bool:
        """Say whether the state was saved long enough ago."""
        return time.monotonic() - self._saved_at >= SECONDS_BETWEEN_SAVES

    def add_part(self, size: int, instances: int) -> None:
        """Count a part of `size` bytes that was appended to the epoch in work."""
        self.state.parts += 1
        self.state.size += size
        self.state.instances += instances

    def open_partial(self) -> IO[bytes]:
        """Open the epoch in work behind what the state knows of it."""
        path = self.epoch_path(self.state.epoch, ".json.partial")
        finished = self.epoch_path(self.state.epoch)
        if self.state.size and not path.exists() and finished.exists():
            # Killed between giving the file its name and saving that.
            os.replace(finished, path)
        if self.state.size and (not path.exists() or path.stat().st_size < self.state.size):
            raise UserError(f"--resume: {path} is gone or cut; give --overwrite_output_dir")
        file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 - the caller closes it
        file.truncate(self.state.size)
        file.seek(self.state.size)
        return file

    def publish_epoch(self, max_seq_len: int) -> None:
        """Give the epoch in work its name; its metrics come first."""
        epoch = self.state.epoch
        metrics = {"num_training_examples": self.state.instances, "max_seq_len": max_seq_len}
        with atomic_write(self.epoch_path(epoch, "_metrics.json")) as file:
            json.dump(metrics, file)
        os.replace(self.epoch_path(epoch, ".json.partial"), self.epoch_path(epoch))
        sync_directory(self.output_dir)
        self.state.instances_of_epoch.append(self.state.instances)
        self.state.parts = self.state.size = self.state.instances = 0
        self.save()

    def upload_epochs(self, data_url: str) -> None:
        """Copy the finished epochs that are not there yet; what fails is tried the next time."""
        for epoch in range(self.state.epoch):
            for path in (self.epoch_path(epoch, "_metrics.json"), self.epoch_path(epoch)):
                if path not in self._uploaded and upload(path, data_url):
                    self._uploaded.add(path)

    def remove_store(self) -> None:
        """Remove the token store, which is not needed when all epochs are there."""
        shutil.rmtree(self.store_dir, ignore_errors=True)


@contextmanager
def full_disk_explained(run: PregenerationRun) -> Iterator[None]:
    """Say which directories may be full, and that nothing is lost; the system names no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"{error.strerror}: {run.output_dir} or {run.store_dir}; make room and start again "
            "with --resume",
        ) from error


def estimate_sizes(
    corpus: Corpus,
    survey: Survey,
    tokenize: BlockTokenizer,
    table: TokenTable,
    settings: InstanceSettings,
) -> tuple[int, int]:
    """Estimate the bytes of the token store and of one epoch from a sample of the corpus."""
    block = next(corpus.blocks())
    sample = block.data[:SAMPLE_BYTES]
    sample = sample[: sample.rfind(b"\n") + 1] or sample
    tokens = tokenize(block._replace(data=sample))
    # A token and its segment id have a comma each.
    text_bytes = sum(len(token) + 3 for token in table.tokens(tokens.ids))
    line_bytes = text_bytes + BYTES_AROUND_TOKENS * len(tokens.ids) / settings.max_seq_len
    repeated = 1.0 if settings.one_seq else TOKENS_PER_CORPUS_TOKEN
    scale = survey.size / len(sample)
    store_bytes = tokens.ids.nbytes + 8 * len(tokens.lengths)
    return int(scale * store_bytes), int(scale * repeated * line_bytes)


def check_space(run: PregenerationRun, epochs: int, sizes: tuple[int, int]) -> None:
    """Compare what is still to be written with the free space.

    Args:
        sizes: bytes of the token store and of one epoch.

    Raises:
        UserError: there is too little of it.
    """
    store_bytes, epoch_bytes = sizes
    if run.state.epoch >= epochs or run.store_state().complete:
        store_bytes = 0
    epochs_bytes = max(epoch_bytes * (epochs - run.state.epoch) - run.state.size, 0)
    store_parent = run.store_dir.parent
    while not store_parent.exists():  # a --tmp_dir that is still to be made
        store_parent = store_parent.parent
    needs = [(run.output_dir, epochs_bytes), (store_parent, store_bytes)]
    if store_parent.stat().st_dev == run.output_dir.stat().st_dev:
        needs = [(run.output_dir, epochs_bytes + store_bytes)]
    for directory, needed in needs:
        free = shutil.disk_usage(directory).free
        if directory == run.output_dir and run.state == RunState():
            free += sum(path.stat().st_size for path in directory.glob("epoch_*"))  # replaced
        logger.info("%s: about %s needed, %s free", directory, _gib(needed), _gib(free))
        if needed > free:
            raise UserError(
                f"{directory}: about {_gib(needed)} needed, {_gib(free)} free; make room, give "
                "another --output_dir or --tmp_dir, or fewer --epochs_to_generate"
            )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
