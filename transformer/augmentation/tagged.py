"""Sentences of tagged words as rows to augment: words outside entities change, tags stay."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from transformer.augmentation.algorithm import Variant
from transformer.augmentation.words import Text
from transformer.tasks.files import Row
from transformer.tasks.metrics import entities
from transformer.tasks.sentences import Sentence, SentenceReader
from transformer.tasks.table import Task

NO_BREAK = "\xa0"  # in place of a blank within a word, so that blanks separate words

Entity = tuple[tuple[str, ...], tuple[str, ...]]  # words and tags


class TaggedRows:
    """The sentences of a file, with the members of `RowReader` that augmentation uses.

    Args:
        swap: the probability that an entity of a variant is replaced by another of its type.
    """

    text_keys = (0,)

    def __init__(self, path: Path, task: Task, *, errors: str, swap: float) -> None:
        self.path, self.swap = path, swap
        self._reader = SentenceReader(path, task, errors=errors)

    def every_row(self) -> Iterator[Row]:
        """Yield all sentences; none is left out."""
        return (Row(sentence.line, sentence) for sentence in self._reader)

    def texts(self, cells: Sentence) -> tuple[str, ...]:
        """Return the words with blanks between them."""
        return (" ".join(word.replace(" ", NO_BREAK) for word in cells.words),)

    def replaceable(self, cells: Sentence, column: int, text: Text) -> Text:
        """Return the text without those of its words that stand in an entity."""
        inside = {
            place for _, first, last in entities(cells.tags) for place in range(first, last + 1)
        }
        starts = [text.text.count(" ", 0, start) for start, _ in text.spans]
        words = tuple(word for word in text.words if starts[word.token] not in inside)
        return text._replace(words=words)

    def with_texts(self, cells: Sentence, texts: tuple[str, ...]) -> Sentence:
        """Return the sentence with the words of a variant, and its own tags."""
        new = texts[0].split(" ")
        words = [
            word if part == word.replace(" ", NO_BREAK) else part
            for word, part in zip(cells.words, new, strict=True)
        ]
        return cells._replace(words=words)

    def variant(
        self, cells: Sentence, column: int, text: Text, variant: Variant, rng: random.Random
    ) -> Sentence:
        """Return the sentence with the words of a variant, and some other entities."""
        return self.swap_entities(self.with_texts(cells, (variant.text,)), rng)

    def swap_entities(self, cells: Sentence, rng: random.Random) -> Sentence:
        """Return the sentence with some entities replaced by others of their type in the file."""
        if not self.swap:
            return cells
        words, tags, end = [], [], 0
        for name, first, last in sorted(entities(cells.tags), key=lambda entity: entity[1]):
            choice = (cells.words[first : last + 1], cells.tags[first : last + 1])
            if rng.random() < self.swap:
                choice = rng.choice(self._inventory[name])
            words += [*cells.words[end:first], *choice[0]]
            tags += [*cells.tags[end:first], *choice[1]]
            end = last + 1
        return cells._replace(words=words + cells.words[end:], tags=tags + cells.tags[end:])

    @cached_property
    def _inventory(self) -> dict[str, list[Entity]]:
        """Return the different entities of each type, in the order of their words."""
        found: dict[str, set[Entity]] = {}
        for sentence in self._reader:
            for name, first, last in entities(sentence.tags):
                part = slice(first, last + 1)
                entity = (tuple(sentence.words[part]), tuple(sentence.tags[part]))
                found.setdefault(name, set()).add(entity)
        return {name: sorted(some) for name, some in found.items()}

    def format_header(self) -> str:
        """Return the header: a file of sentences has none."""
        return ""

    def format_row(self, cells: Sentence) -> str:
        """Return the lines of a sentence, in the format of the file."""
        if self._reader.is_json:
            pair = {"tokens": cells.words, "tags": cells.tags}
            return json.dumps(pair, ensure_ascii=False) + "\n"
        lines = map(self._reader.format_word, cells.words, cells.tags)
        return "".join(lines) + "\n"

    def check_left_out(self, allow_short: bool) -> str:
        """Return what the last reading found."""
        return self._reader.summary
