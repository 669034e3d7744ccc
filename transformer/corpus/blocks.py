"""Read a text corpus of any size in blocks of bytes, and check it before anything expensive.

Formats, told apart by what a file holds:
  - text: UTF-8, one sentence (or, with sentence splitting, one paragraph) a line, blank line
    between documents;
  - WikiExtractor's `--json`: one object a line, its "text" is a document;
  - WikiExtractor's default: `<doc ...>`, lines, `</doc>`; these tags, not blank lines, part the
    documents.
All may be gzipped. The end of a file ends a document. Blocks are cut from the bytes by
rules that know nothing of workers, so whatever is made of them is the same for any number of these.
"""

from __future__ import annotations

import glob
import gzip
import json
import logging
import re
import stat
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from transformer.files import UserError

logger = logging.getLogger(__name__)

# A block is about this long and ends at a line end. A longer line of text is read in several
# blocks, cut at blanks; a JSON line cannot be cut, so it has a limit.
BLOCK_BYTES = 1 << 20

LONGEST_JSON_LINE = 256 << 20

STDIN = "-"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# First bytes of what is no text, and what to do with it.
_MAGIC = {
    b"BZh": "is compressed by bzip2; unpack it",
    b"\xfd7zXZ": "is compressed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": "is a parquet file; write its text to a plain file",
    b"%PDF": "is a PDF; convert it to text",
}
_GZIP = b"\x1f\x8b"

_TAG = re.compile(rb"<doc( [^>]*)?>|</doc>")


def is_tag(line: bytes) -> bool:
    """Say whether a line is one of WikiExtractor's, that begins or ends a document."""
    return _TAG.fullmatch(line.strip()) is not None


def is_blank(line: bytes) -> bool:
    """Say whether a line holds nothing but blanks, Unicode's too."""
    return not line.strip() or (line[:1] > b"\x7f" and not line.decode(errors="replace").strip())


class Block(NamedTuple):
    """Consecutive whole lines of one file (or a part of one very long line)."""

    path: str
    line: int
    data: bytes
    kind: str  # "text", "json" or "tags"
    begins_file: bool
    continues_line: bool


class Survey(NamedTuple):
    """What one pass over the bytes tells before anything expensive begins."""

    fingerprint: str
    size: int
    blocks: int
    has_text: bool
    has_two_documents: bool


def find_corpus_files(patterns: list[str]) -> list[str]:
    """Return the files that `--train_corpus` names: paths, globs (** too) or "-" for stdin.

    Raises:
        UserError: nothing there, a directory, or no permission.
    """
    files: list[str] = []
    for pattern in patterns:
        if pattern == STDIN or Path(pattern).exists():
            files.append(pattern)
            continue
        found = [name for name in sorted(glob.glob(pattern, recursive=True)) if not _is_dir(name)]
        if not found:
            raise UserError(f"--train_corpus {pattern}: no such file, and no file matches it")
        files.extend(found)
    if files.count(STDIN) > 1:
        raise UserError("--train_corpus: - (standard input) can be given only once")
    for name in files:
        if _is_dir(name):
            raise UserError(f"--train_corpus {name} is a directory; give '{name}/*' or files")
        if name != STDIN and _is_regular(name):
            _open(name).close()
    return files


def _is_dir(name: str) -> bool:
    return name != STDIN and Path(name).is_dir()


def _is_regular(name: str) -> bool:
    return name != STDIN and stat.S_ISREG(Path(name).stat().st_mode)


def _open(name: str) -> IO[bytes]:
    if name == STDIN:
        return sys.stdin.buffer
    try:
        if not _is_regular(name):
            return gzip.open(name, "rb") if name.endswith(".gz") else open(name, "rb")
        with open(name, "rb") as file:
            head = file.read(6)
        for magic, advice in _MAGIC.items():
            if head.startswith(magic):
                raise UserError(f"--train_corpus {name} {advice}")
        is_gzip = head.startswith(_GZIP) or name.lower().endswith(".gz")
        return gzip.open(name, "rb") if is_gzip else open(name, "rb")
    except OSError as error:
        raise UserError(f"--train_corpus {name}: {error.strerror}") from error


@dataclass(frozen=True)
class Corpus:
    """The files of a corpus, in order."""

    files: tuple[str, ...]

    @property
    def can_be_read_twice(self) -> bool:
        """Say whether all of it lies in files; pipes can be read once."""
        return all(_is_regular(name) for name in self.files)

    def blocks(self) -> Iterator[Block]:
        """Yield the corpus in blocks, the same ones every time.

        Raises:
            UserError: a damaged .gz, or a JSON line that does not end.
        """
        for name in self.files:
            try:
                with _open(name) as file:
                    yield from _file_blocks(name, file)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise UserError(f"{name}: damaged or cut-off gzip file ({error})") from error

    def survey(self, errors: str) -> Survey:
        """Read every byte once: fingerprint, size, whether there are two documents, encoding.

        Raises:
            UserError: with errors "strict", the file and line of the first bytes not in UTF-8.
        """
        checksum = size = blocks = 0
        documents = DocumentCount()
        damaged: list[str] = []
        for block in self.blocks():
            checksum = zlib.crc32(block.data, checksum)
            size += len(block.data)
            blocks += 1
            damaged.extend(damaged_lines(block, errors))
            documents.look_at(block)
        for place in damaged[:3]:
            logger.warning("%s: not UTF-8 (--errors %s)", place, errors)
        if len(damaged) > 3:
            logger.warning("%d lines in all are not UTF-8", len(damaged))
        fingerprint = f"{checksum:08x}-{size}"
        return Survey(fingerprint, size, blocks, documents.count > 0, documents.at_least_two)


class DocumentCount:
    """Count documents without decoding them, and stop looking at two."""

    def __init__(self) -> None:
        self.count = 0
        self._inside = False

    @property
    def at_least_two(self) -> bool:
        """Say whether two documents were seen."""
        return self.count >= 2

    def look_at(self, block: Block) -> None:
        """Add the documents of `block`; one that goes on from the last block counts once."""
        if block.begins_file:
            self._inside = False
        if self.at_least_two:
            return
        for number, line in enumerate(lines_of(block.data)):
            # The rest of a line that began in the last block may be blank; the line need not be.
            is_rest = number == 0 and block.continues_line
            if block.kind == "tags":  # blank lines part nothing there
                has_text = not is_tag(line) and (self._inside or not is_blank(line))
            else:
                has_text = not is_blank(line) or (is_rest and self._inside)
            self.count += has_text and (block.kind == "json" or not self._inside)
            self._inside = has_text
            if self.at_least_two:
                return


def lines_of(data: bytes) -> list[bytes]:
    """Split at line ends; what follows the last one is a line only if there is something."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _file_blocks(name: str, file: IO[bytes]) -> Iterator[Block]:
    """Cut one file into blocks."""
    kind = None
    begins_file, continues_line = True, False
    line = 1
    carry = b""
    while True:
        fresh = file.read(BLOCK_BYTES)
        buffer = carry + fresh
        if kind is None:
            buffer = buffer.removeprefix(_BYTE_ORDER_MARK)
            kind = _kind_of(name, buffer)
        if not buffer:
            return
        end = _block_end(buffer, kind == "json") if fresh else len(buffer)
        carry = buffer[end:]
        if end == 0:
            if len(buffer) > LONGEST_JSON_LINE:
                raise UserError(f"{name}, line {line}: a JSON line of over {len(buffer)} bytes")
            continue
        block = Block(name, line, buffer[:end], kind, begins_file, continues_line)
        yield block
        line += block.data.count(b"\n")
        begins_file, continues_line = False, not block.data.endswith(b"\n")


def _kind_of(name: str, start: bytes) -> str:
    """Tell by the first line of a file what its lines are.

    Raises:
        UserError: a JSON array, which is no line of text and no object a line.
    """
    first_line = start.lstrip().split(b"\n", 1)[0]
    if is_tag(first_line):
        logger.info("%s: WikiExtractor's tags part the documents, and are left out", name)
        return "tags"
    if first_line.startswith(b"{") and (b'"text"' in first_line or _is_json(first_line)):
        logger.info("%s: JSON lines", name)
        return "json"
    if first_line.startswith(b"[{") or first_line.strip() == b"[":
        raise UserError(
            f'{name} is a JSON array; give text, or one object a line with a "text" '
            "(jq -c '.[]' FILE writes these)"
        )
    return "text"


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _block_end(buffer: bytes, is_json: bool) -> int:
    """Return where to cut: behind the last line end; 0 for nowhere yet.

    A line of text that fills a block is cut behind a blank, else behind a character.
    """
    end = buffer.rfind(b"\n") + 1
    if end or is_json or len(buffer) < BLOCK_BYTES:
        return end
    end = buffer.rfind(b" ") + 1
    if end:
        return end
    # Before the last character, which may not be complete: no byte 10xxxxxx begins one.
    end = len(buffer) - 1
    while end > len(buffer) - 4 and buffer[end] & 0xC0 == 0x80:
        end -= 1
    return max(end, 1)


def damaged_lines(block: Block, errors: str) -> list[str]:
    """Return "FILE, line N" for every line of `block` that is not UTF-8.

    Raises:
        UserError: there is one and `errors` is "strict".
    """
    places = []
    for number, _ in undecodable_lines(block):
        place = f"{block.path}, line {number}"
        if errors == "strict":
            hint = ""
            if block.data[:2] in (b"\xff\xfe", b"\xfe\xff"):
                hint = " (it looks like UTF-16: convert it with iconv)"
            raise UserError(
                f"{place}: not UTF-8{hint}; give --errors replace to drop such characters or "
                "--errors skip to drop such lines"
            )
        places.append(place)
    return places


def undecodable_lines(block: Block) -> list[tuple[int, bytes]]:
    """Return the number and the bytes of every line that is not UTF-8."""
    try:
        block.data.decode("utf-8")
    except UnicodeDecodeError:
        return [
            (number, line)
            for number, line in enumerate(lines_of(block.data), start=block.line)
            if not _is_utf8(line)
        ]
    return []


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
