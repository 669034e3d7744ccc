"""Turn blocks of a corpus into token ids with the lengths of their sentences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from transformer.corpus.blocks import Block, damaged_lines, is_tag, undecodable_lines
from transformer.corpus.sentences import split_sentences
from transformer.files import UserError
from transformer.tokenization import BertTokenizer

# Stands between sentences where a document ends.
DOCUMENT_BREAK = None


class TokenBlock(NamedTuple):
    """The sentences of one block.

    ids: (tokens,); lengths: (sentences,) tokens of each; begins_document: (sentences,) bool;
    break_after: whether the block ends behind a document break; counts: of lines, characters...
    """

    ids: np.ndarray
    lengths: np.ndarray
    begins_document: np.ndarray
    break_after: bool
    counts: Counter[str]


@dataclass(frozen=True)
class BlockTokenizer:
    """Turn blocks into token ids; runs in worker processes.

    Args:
        piece_lengths: a line of more than their sum in tokens is cut into pieces of these lengths
            in turn, so that the pieces fill sequences without a rest.
        errors: what to do with lines that are not UTF-8: strict, replace (drop the bytes), skip.
    """

    tokenizer: BertTokenizer
    piece_lengths: tuple[int, ...]
    split_paragraphs: bool = False
    errors: str = "strict"

    def __call__(self, block: Block) -> TokenBlock:
        """Tokenise one block."""
        counts: Counter[str] = Counter()
        sentences: list[str] = []
        breaks: list[bool] = []
        pending_break = block.begins_file
        for sentence in self._sentences(block, counts):
            if sentence is DOCUMENT_BREAK:
                pending_break = True
            elif sentence:
                sentences.append(sentence)
                breaks.append(pending_break)
                pending_break = False
        encoded = self.tokenizer.encode_batch(sentences)
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ids = np.fromiter(chain.from_iterable(encoded), np.int32, int(lengths.sum()))
        # One more entry: the break that the next block's first sentence inherits.
        begins = np.array([*breaks, pending_break], bool)
        for empty in np.flatnonzero(lengths == 0):
            # A sentence of nothing but control characters leaves its document break to the next.
            begins[empty + 1] |= begins[empty]
        break_after = bool(begins[-1])
        lengths, begins = lengths[lengths > 0], begins[:-1][lengths > 0]
        lengths, begins, cut = self._cut(lengths, begins)
        counts["lines split"] += cut
        ids = ids.astype(token_dtype(len(self.tokenizer.vocab)))
        return TokenBlock(ids, lengths, begins, break_after, counts)

    def _sentences(self, block: Block, counts: Counter[str]) -> Iterator[str | None]:
        """Yield the sentences of a block, and DOCUMENT_BREAK where a document ends."""
        paragraphs = self._paragraphs(block, counts)
        return self._split(paragraphs) if self.split_paragraphs else paragraphs

    @staticmethod
    def _split(paragraphs: Iterator[str | None]) -> Iterator[str | None]:
        for paragraph in paragraphs:
            if paragraph is DOCUMENT_BREAK:
                yield paragraph
            else:
                yield from split_sentences(paragraph)

    def _paragraphs(self, block: Block, counts: Counter[str]) -> Iterator[str | None]:
        text = self._decode(block, counts)
        counts["NUL characters"] += text.count("\0")
        counts["lines read in pieces"] += block.continues_line
        # subtle: not splitlines(), which also ends lines at characters that stand inside text.
        lines = text.removesuffix("\n").split("\n")
        if block.kind == "tags":
            yield from self._between_tags(lines, counts)
            return
        if block.kind == "text":
            # subtle: the rest of a line that began in the last block is no blank line.
            is_blank_rest = block.continues_line and not lines[0].strip()
            for line in lines[is_blank_rest:]:
                yield line.strip() or DOCUMENT_BREAK
            return
        for number, line in enumerate(lines, start=block.line):
            yield DOCUMENT_BREAK
            if line.strip():
                for paragraph in self._json_text(line, f"{block.path}, line {number}", counts):
                    yield paragraph.strip()

    @staticmethod
    def _between_tags(lines: list[str], counts: Counter[str]) -> Iterator[str | None]:
        """Yield the lines of documents that begin with <doc ...> and end with </doc>."""
        for line in lines:
            if is_tag(line.encode()):
                counts["WikiExtractor tags"] += 1
                yield DOCUMENT_BREAK
            elif line.strip():
                yield line.strip()

    def _json_text(self, line: str, place: str, counts: Counter[str]) -> list[str]:
        """Return the paragraphs of one document; a "text" of null has none."""
        try:
            text = _text_of(json.loads(line))
        except (ValueError, RecursionError) as error:
            if self.errors != "skip":
                raise UserError(
                    f'{place}: no JSON object with a "text" ({error}); --errors skip drops such '
                    "lines"
                ) from error
            counts["lines dropped"] += 1
            return []
        counts["JSON lines without text"] += text is None
        return [] if text is None else text.split("\n")

    def _decode(self, block: Block, counts: Counter[str]) -> str:
        damaged = undecodable_lines(block)
        if not damaged:
            return block.data.decode("utf-8")
        damaged_lines(block, self.errors)
        counts["lines not UTF-8"] += len(damaged)
        if self.errors == "skip":
            # subtle: not an empty line, which would end the document.
            lines = dict(enumerate(block.data.split(b"\n"), start=block.line))
            lines.update((number, b"\xff") for number, _ in damaged)
            return b"\n".join(lines.values()).decode("utf-8", errors="replace")
        # The tokenizer drops the replacement character.
        return block.data.decode("utf-8", errors="replace")

    def _cut(self, lengths: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Cut sentences that are too long; return the new lengths and marks, and how many were."""
        too_long = np.flatnonzero(lengths > sum(self.piece_lengths)).tolist()
        pieces = [self._pieces(int(lengths[number])) for number in too_long]
        repeats = np.ones(len(lengths), np.int64)
        repeats[too_long] = [len(lengths_of_pieces) for lengths_of_pieces in pieces]
        places = np.cumsum(repeats) - repeats
        new_begins = np.zeros(int(repeats.sum()), bool)
        new_begins[places] = begins
        new_lengths = np.repeat(lengths, repeats)
        for number, lengths_of_pieces in zip(too_long, pieces, strict=True):
            place = places[number]
            new_lengths[place : place + len(lengths_of_pieces)] = lengths_of_pieces
        return new_lengths, new_begins, len(too_long)

    def _pieces(self, length: int) -> list[int]:
        """Return the lengths of the pieces that a line of `length` tokens is cut into."""
        pieces = []
        while length:
            piece = self.piece_lengths[len(pieces) % len(self.piece_lengths)]
            pieces.append(min(piece, length))
            length -= pieces[-1]
        return pieces


def _text_of(document: object) -> str | None:
    """Return the text of a JSON line, None where it is null.

    Raises:
        ValueError: no object, or nothing there that is a text; says what there is.
    """
    if not isinstance(document, dict):
        raise ValueError(f"a {type(document).__name__}")
    if "text" not in document:
        raise ValueError("its keys are " + ", ".join(map(repr, list(document)[:10])))
    text = document["text"]
    if text is not None and not isinstance(text, str):
        raise ValueError(f"its text is a {type(text).__name__}")
    # Half of a character that was cut in two cannot be encoded; the tokenizer drops U+FFFD.
    return text and text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def token_dtype(vocab_size: int) -> type[np.unsignedinteger] | type[np.signedinteger]:
    """Return the smallest type that holds the ids of a vocabulary."""
    return np.uint16 if vocab_size <= 1 << 16 else np.int32
