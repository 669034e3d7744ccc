"""Augment the rows of a task file, block by block, each column of text by itself."""

from __future__ import annotations

import random
import textwrap
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformer.augmentation.algorithm import Augmenter
from transformer.augmentation.answered import AnsweredRows
from transformer.augmentation.glove import WordVectors
from transformer.augmentation.recombine import recombine
from transformer.augmentation.tagged import TaggedRows
from transformer.augmentation.words import Text
from transformer.files import atomic_write
from transformer.runtime.progress import columns_of
from transformer.tasks.files import BLANK, Cells, RowReader

# A block is what is batched, shared out to processes and resumed by. Its limits depend on the
# rows alone, so that the output does not depend on who made it.
BLOCK_ROWS, BLOCK_CHARACTERS = 256, 16_384

EXAMPLES = 10

Reader = RowReader | TaggedRows | AnsweredRows

COLUMN_WIDTH = 56  # of the table of examples


@dataclass
class Block:
    """Some rows, the number of the first, and rows that cannot be used with their lines."""

    first: int
    rows: list[Cells] = field(default_factory=list)
    left_out: list[tuple[int, Cells]] = field(default_factory=list)


def read_blocks(reader: Reader) -> Iterator[Block]:
    """Yield the file in blocks; nothing else of it is in memory.

    Args:
        reader: of the task's training file.
    """
    block, characters = Block(0), 0
    for row in reader.every_row():
        if row.problem == BLANK:
            continue
        if row.problem:
            block.left_out.append((row.line, row.cells))
        else:
            block.rows.append(row.cells)
            characters += sum(map(len, reader.texts(row.cells)))
        if len(block.rows) + len(block.left_out) == BLOCK_ROWS or characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = Block(block.first + len(block.rows)), 0
    if block.rows or block.left_out:
        yield block


def find_texts(reader: Reader, augmenter: Augmenter, cells: Cells) -> list[Text]:
    """Return the texts of a row with the words that may be replaced."""
    texts = [augmenter.find_words(text) for text in reader.texts(cells)]
    if isinstance(reader, RowReader):
        return texts
    return [reader.replaceable(cells, column, text) for column, text in enumerate(texts)]


@dataclass
class Survey:
    """What a file holds: rows of each block, rows left out, and words to look up neighbours for."""

    blocks: list[int]
    rows_left_out: int
    words: set[str]


def survey_rows(
    reader: Reader, augmenter: Augmenter, vectors: WordVectors | None, report: Path
) -> Survey:
    """Read a file once; copy rows that cannot be used, each after its line number, to `report`."""
    survey = Survey([], 0, set())
    with atomic_write(report) as file:
        for block in read_blocks(reader):
            survey.blocks.append(len(block.rows))
            survey.rows_left_out += len(block.left_out)
            file.writelines(f"{line}\t{reader.format_row(cells)}" for line, cells in block.left_out)
            if vectors is not None:
                found = (find_texts(reader, augmenter, cells) for cells in block.rows)
                words = augmenter.words_for_vectors(text for texts in found for text in texts)
                survey.words |= {entry for entry in map(vectors.find, words) if entry}
    if not survey.rows_left_out:
        report.unlink()
    return survey


@dataclass
class AugmentedBlock:
    """The lines of a finished block, what was counted, and examples: (rank, original, variant)."""

    lines: list[str]
    counts: Counter[str]
    examples: list[tuple[int, str, str]]


def augment_block(
    block: Block, reader: Reader, augmenter: Augmenter, seed: int, share: float = 0.0
) -> AugmentedBlock:
    """Return every row of a block, followed by its variants: those of the first text, then those
    of the second, the other text and all other cells as they are; then by recombined rows.

    The draws depend on the seed, the number of the row, the column and the block only.

    Args:
        share: recombined rows for each row; 0.5 makes one for every second row.
    """
    result = AugmentedBlock([], Counter(rows=len(block.rows)), [])
    texts = [find_texts(reader, augmenter, cells) for cells in block.rows]
    flat = [text for pair in texts for text in pair]
    candidates = iter(augmenter.candidates(flat, result.counts))
    for number, (cells, pair) in enumerate(zip(block.rows, texts, strict=True), block.first):
        result.lines.append(reader.format_row(cells))
        for column, text in enumerate(pair):
            rng = random.Random(f"{seed}:{number}:{column}")
            swaps = random.Random(f"{seed}:{number}:{column}:swap")
            variants = augmenter.variants(text, next(candidates), rng)
            written = [each.text for each in pair]
            for variant in variants:
                if isinstance(reader, RowReader):
                    written[column] = variant.text
                    row = reader.with_texts(cells, tuple(written))
                else:
                    row = reader.variant(cells, column, text, variant, swaps)
                result.lines.append(reader.format_row(row))
            _count(result, augmenter, len(variants))
            if variants:
                # Examples are those of the smallest checksum: a choice that no order changes.
                rank = zlib.crc32(f"{seed}:{number}:{column}".encode())
                result.examples.append((rank, text.text, variants[0].text))
        rng = random.Random(f"{seed}:{number}:recombine")
        wanted = int(share) + (rng.random() < share % 1)
        new_rows = recombine(number - block.first, texts, wanted, rng) if wanted else []
        result.lines += [reader.format_row(reader.with_texts(cells, new)) for new in new_rows]
        result.counts.update(recombined=len(new_rows))
    result.examples = sorted(result.examples)[:EXAMPLES]
    return result


def _count(result: AugmentedBlock, augmenter: Augmenter, made: int) -> None:
    wanted = augmenter.config.variants
    result.counts.update(
        sentences=1, variants=made, fewer=made < wanted, none=made == 0, missing=wanted - made
    )


def merge_notes(notes: Iterable[dict[str, Any]]) -> tuple[Counter[str], list[tuple[int, str, str]]]:
    """Add up the counts of blocks, and choose examples from all of them."""
    counts: Counter[str] = Counter()
    examples: list[tuple[int, str, str]] = []
    for note in notes:
        counts.update(note["counts"])
        examples = sorted(examples + [tuple(each) for each in note["examples"]])[:EXAMPLES]
    return counts, examples


def summarise(counts: Counter[str], wanted: int) -> list[str]:
    """Return what was made, for people; `wanted` is N."""
    made = counts["rows"] + counts["variants"] + counts["recombined"]
    lines = [f"{counts['rows']:,} rows with {counts['sentences']:,} texts became {made:,} rows"]
    if counts["recombined"]:
        lines.append(f"{counts['recombined']:,} of them are recombined")
    if not wanted:
        return lines
    masked, vectors = counts["words/masked"], counts["words/vectors"]
    share = 100 * (masked + vectors) / max(counts["words"], 1)
    each = counts["candidates"] / max(masked + vectors, 1)
    return [
        *lines,
        f"{counts['words']:,} words may be replaced: {share:.1f}% have candidates, {each:.1f} each "
        f"({masked:,} from the masked LM, {vectors:,} from word vectors)",
        f"texts with fewer than {wanted} variants: {counts['fewer']:,}, with none: "
        f"{counts['none']:,}; {counts['missing']:,} variants missing",
    ]


def side_by_side(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of a table with two columns, an empty line after each pair."""
    for left, right in pairs:
        columns = [_wrap(text) for text in (left, right)]
        for row in range(max(map(len, columns))):
            cells = [column[row] if row < len(column) else "" for column in columns]
            yield f"{cells[0]}{' ' * (COLUMN_WIDTH + 2 - columns_of(cells[0]))}{cells[1]}".rstrip()
        yield ""


def _wrap(text: str) -> list[str]:
    # Chinese characters are two columns wide.
    limit = COLUMN_WIDTH if columns_of(text) == len(text) else COLUMN_WIDTH // 2
    return textwrap.wrap(text, limit) or [""]
