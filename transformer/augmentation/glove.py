"""Read word vectors from any GloVe or word2vec text file, and find the nearest words.

A file is parsed once: its vectors are kept as an array of floats in a cache directory, and later
runs map that into memory.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import os
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO

import numpy as np
import torch

from transformer.augmentation.words import is_candidate
from transformer.files import UserError, atomic_write, quick_fingerprint, read_json
from transformer.runtime.parallel import ordered_map, usable_cores

logger = logging.getLogger(__name__)

CHUNK_BYTES = 8 << 20

PARALLEL_BYTES = 64 << 20  # below this, starting workers costs more than they save

SAMPLED_LINES = 100  # lines that the dimension is read from

QUERY_BLOCK, TABLE_BLOCK = 512, 32768  # one block of similarities is 64 MB

# Neighbours that are the word itself in other letters ("film", "Film", "FILM") are passed over.
SPARE_NEIGHBOURS = 8

_HEADER = re.compile(rb"\s*\d+\s+(\d+)\s*")

_COMPONENT = re.compile(rb"[-+]?\d*\.\d+([eE][-+]?\d+)?")


@dataclass
class WordVectors:
    """Words and their vectors (V, E) in the order of the file: the most frequent first."""

    words: list[str]
    vectors: np.ndarray
    index: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        # Reversed, so that the first of two equal words wins.
        self.index = {self.words[i]: i for i in reversed(range(len(self.words)))}

    def find(self, word: str) -> str | None:
        """Return the entry for `word`: as written, else in lower case, else None."""
        return next((form for form in (word, word.lower()) if form in self.index), None)


def load_word_vectors(
    path: str | Path, limit: int = 0, cache_dir: str | Path | None = None
) -> WordVectors:
    """Return the first `limit` word vectors of a text file (0: all), through the cache.

    Args:
        path: plain, `.gz` or `.zip` text; of a zip with several files, ARCHIVE.zip/FILE.
        cache_dir: None: `tinybert` in the user's cache directory.

    Raises:
        UserError: no such file, or a line whose width or numbers are wrong; it names the line.
    """
    path = Path(path)
    source = find_source(path)
    quick = quick_fingerprint(source)
    words_file, vectors_file = _cache_files(path, limit, cache_dir)
    cached = _read_cache(words_file, vectors_file, quick)
    if cached is not None:
        return cached
    logger.info("reading %s", path)
    words: list[str] = []
    with atomic_write(vectors_file, "wb") as output, _told(path):
        width, chunks = _chunks(path, limit)
        workers = usable_cores() if source.stat().st_size > PARALLEL_BYTES else 1
        parse = partial(_parse_chunk, name=str(path), width=width)
        with contextlib.closing(ordered_map(parse, chunks, workers)) as parsed:
            for chunk_words, vectors in parsed:
                words += chunk_words
                output.write(vectors.tobytes())
        if not words:
            raise UserError(f"{path}: no word vectors; a line is a word and its numbers")
    with atomic_write(words_file) as output:
        content = {"quick_fingerprint": quick, "width": width, "words": words}
        json.dump(content, output, ensure_ascii=True)
    logger.info("%d words of %d dimensions, kept in %s", len(words), width, vectors_file)
    return _map_vectors(words, vectors_file, width)


def nearest_words(
    table: WordVectors, words: Sequence[str], count: int, device: torch.device | str = "cpu"
) -> dict[str, list[str]]:
    """Return the `count` nearest whole words by cosine, nearest first, for each of `words`.

    The word itself, in capitals or not, is left out. Whole blocks of words are compared with the
    table at a time, so memory does not grow with either.
    """
    is_word = torch.tensor([is_candidate(word) for word in table.words], device=device)
    nearest: dict[str, list[str]] = {}
    for start in range(0, len(words), QUERY_BLOCK):
        block = words[start : start + QUERY_BLOCK]
        rows = [table.index[word] for word in block]
        found = _nearest_rows(table.vectors, rows, is_word, count + SPARE_NEIGHBOURS)
        for word, neighbours in zip(block, found, strict=True):
            texts = (table.words[row] for row in neighbours)
            others = (text for text in texts if text.casefold() != word.casefold())
            nearest[word] = list(islice(dict.fromkeys(others), count))
    return nearest


def _nearest_rows(
    vectors: np.ndarray, rows: list[int], is_word: torch.Tensor, count: int
) -> list[list[int]]:
    """Return the numbers of the nearest rows that are words, nearest first, for each of `rows`."""
    device = is_word.device
    queries = _unit(vectors[rows], device)  # (Q, E)
    scores = torch.empty(len(rows), 0, device=device)
    best = torch.empty(len(rows), 0, dtype=torch.long, device=device)
    for start in range(0, len(vectors), TABLE_BLOCK):
        block = _unit(vectors[start : start + TABLE_BLOCK], device)  # (R, E)
        similarity = queries @ block.T  # (Q, R)
        allowed = is_word[start : start + len(block)]
        similarity.masked_fill_(~allowed, -torch.inf)
        top, where = similarity.topk(min(count, len(block)), dim=1)
        scores, best = torch.cat((scores, top), 1), torch.cat((best, where + start), 1)
        scores, order = scores.topk(min(count, scores.shape[1]), dim=1)
        best = best.gather(1, order)
    # A vector of zeros has no direction, hence no neighbours.
    found = scores.isfinite() & (queries.norm(dim=1, keepdim=True) > 0)
    return [row[keep].tolist() for row, keep in zip(best.cpu(), found.cpu(), strict=True)]


def _unit(vectors: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return vectors of length 1; those of length 0 stay what they are."""
    return torch.nn.functional.normalize(torch.tensor(vectors, device=device), dim=1)


def find_source(path: Path) -> Path:
    """Return the file on disk that holds `path`: itself, or the zip archive it lies in.

    Raises:
        UserError: there is none.
    """
    for candidate in (path, *path.parents):
        if candidate.is_file() and (candidate == path or candidate.suffix == ".zip"):
            return candidate
    raise UserError(f"--glove_embs {path}: no such file; give a text file of word vectors")


def _cache_files(path: Path, limit: int, cache_dir: str | Path | None) -> tuple[Path, Path]:
    """Return where the words and the vectors of `path` are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(cache_dir or Path(home) / "tinybert")
    directory.mkdir(parents=True, exist_ok=True)
    # Files of one name in several directories do not push each other out.
    name = f"{path.name}.{limit or 'all'}.{zlib.crc32(os.fsencode(path.resolve())):08x}"
    return directory / f"{name}.words.json", directory / f"{name}.vectors.f32"


def _read_cache(words_file: Path, vectors_file: Path, quick: list[int]) -> WordVectors | None:
    """Return what an earlier run kept, None if it is not there, stale or incomplete."""
    if not (words_file.is_file() and vectors_file.is_file()):
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
        content = read_json(words_file)
        words, width = content["words"], content["width"]
        same = content["quick_fingerprint"] == quick
        if same and vectors_file.stat().st_size == 4 * width * len(words):
            logger.info("word vectors: %s", vectors_file)
            return _map_vectors(words, vectors_file, width)
    return None


def _map_vectors(words: list[str], file: Path, width: int) -> WordVectors:
    return WordVectors(words, np.memmap(file, np.float32, mode="r", shape=(len(words), width)))


def _open(path: Path) -> IO[bytes]:
    """Open a plain, gzip or zip file for reading bytes."""
    source = find_source(path)
    if source.suffix != ".zip":
        with open(source, "rb") as file:
            head = file.read(1 << 12)
        if head.startswith(b"\x1f\x8b"):
            return gzip.open(source, "rb")
        if b"\0" in head:
            raise UserError(
                f"{path} is binary; give word vectors as text, as gensim's "
                "KeyedVectors.save_word2vec_format(FILE, binary=False) writes them"
            )
        return open(source, "rb")
    archive = zipfile.ZipFile(source)
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    member = path.relative_to(source).as_posix()
    if member == "." and len(names) == 1:
        member = names[0]
    if member not in names:
        raise UserError(f"{source} holds {', '.join(names)}: give one, as {source}/{names[0]}")
    return archive.open(member)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell of a damaged archive in one line."""
    try:
        yield
    except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, NotImplementedError) as e:
        raise UserError(f"{path}: damaged or cut-off archive ({e}); download it again") from e


def _chunks(path: Path, limit: int) -> tuple[int, Iterator[tuple[int, bytes]]]:
    """Return the dimension, and chunks of whole lines with the number of their first line."""
    file = _open(path)
    first = [line for line in islice(file, SAMPLED_LINES) if line.strip()]
    if not first:
        raise UserError(f"{path}: the file is empty")
    first[0] = first[0].removeprefix(b"\xef\xbb\xbf")
    header = _HEADER.fullmatch(first[0])
    if header is not None:
        width, lines = int(header[1]), first[1:]
    else:
        # Some tokens hold blanks, but most do not: the commonest number of fields is the width.
        counts = Counter(len(line.split()) - 1 for line in first)
        width, lines = max(counts, key=lambda fields: (counts[fields], -fields)), first
    if width < 1:
        raise UserError(f"{path}, line 1: no numbers; a line is a word and its numbers")
    if any(b"\0" in line for line in first):
        raise UserError(f"{path} is binary; give word vectors as text")
    numbered = chain(lines, file)
    return width, _join_lines(islice(numbered, limit or None), 2 if header else 1)


def _join_lines(lines: Iterator[bytes], number: int) -> Iterator[tuple[int, bytes]]:
    held, size, first = [], 0, number
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= CHUNK_BYTES:
            yield first, b"".join(held)
            first += len(held)
            held, size = [], 0
    if held:
        yield first, b"".join(held)


def _parse_chunk(
    chunk: tuple[int, bytes], *, name: str, width: int
) -> tuple[list[str], np.ndarray]:
    """Return the words of a chunk and their vectors (n, width)."""
    number, content = chunk
    words, numbers = [], []
    for line, text in enumerate(content.removesuffix(b"\n").split(b"\n"), number):
        stripped = text.rstrip(b" \t\r").replace(b"\t", b" ")
        if b"  " in stripped:  # columns aligned by blanks
            stripped = re.sub(rb" +", b" ", stripped)
        if not stripped:
            continue
        word, _, rest = stripped.partition(b" ")
        if not word or rest.count(b" ") != width - 1:
            word, rest = _split_line(stripped, width, f"{name}, line {line}")
        words.append(word.decode("utf-8", errors="replace"))
        numbers.append(rest)
    vectors = _parse_numbers(b" ".join(numbers))
    if vectors.size != width * len(words) or not np.isfinite(vectors).all():
        raise UserError(_bad_number(content, number, name, width))
    return words, vectors.reshape(-1, width)


def _split_line(text: bytes, width: int, where: str) -> tuple[bytes, bytes]:
    """Return the word, which may hold blanks, and the numbers of one line."""
    fields = text.split(b" ")
    head, numbers = fields[:-width], fields[-width:]
    if len(fields) <= width or any(_COMPONENT.fullmatch(part) for part in head[1:]):
        given = len(fields) - 1
        raise UserError(f"{where}: {given} numbers after the word; the others have {width}")
    return b" ".join(head), b" ".join(numbers)


def _parse_numbers(text: bytes) -> np.ndarray:
    """Return blank-separated numbers; too few of them if one cannot be read."""
    with warnings.catch_warnings(), contextlib.suppress(ValueError):
        # Versions of NumPy raise, or warn and stop there; the caller names the line.
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.fromstring(text, dtype=np.float32, sep=" ")
    return np.empty(0, np.float32)


def _bad_number(content: bytes, number: int, name: str, width: int) -> str:
    """Return the message for the first line of a chunk whose numbers cannot be read."""
    for line, text in enumerate(content.split(b"\n"), number):
        for part in text.split()[-width:]:
            value = _parse_numbers(part)
            if value.size != 1 or not np.isfinite(value).all():
                shown = part.decode("utf-8", errors="replace")
                return f"{name}, line {line}: {shown!r} is not a number"
    return f"{name}, lines {number} and on: not word vectors"
