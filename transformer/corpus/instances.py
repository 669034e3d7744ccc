"""Training instances: pairs of segments, masks, and their lines of JSON."""

from __future__ import annotations

import json
import random
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from transformer.corpus.token_store import TokenStore

# Special and reserved entries: [MASK], [unused7], <S>.
_NOT_ORDINARY = re.compile(r"\[\w+\]|<\w+>")


class Instance(NamedTuple):
    """One sequence: tokens, each quoted for JSON; first_length counts segment 0 with its [SEP]."""

    tokens: list[bytes]
    first_length: int
    is_random_next: bool
    masked_positions: list[int]
    masked_labels: list[bytes]


class TokenTable:
    """The tokens of a vocabulary as they are written: quoted once, not at every use."""

    def __init__(self, vocab: Mapping[str, int]) -> None:
        quoted = {token: json.dumps(token).encode("ascii") for token in vocab}
        self._quoted = np.empty(max(vocab.values()) + 1, object)
        for token, index in vocab.items():
            self._quoted[index] = quoted[token]
        self.continuing = {quoted[token] for token in vocab if token.startswith("##")}
        self.ordinary = [quoted[token] for token in vocab if not _NOT_ORDINARY.fullmatch(token)]
        self.cls, self.sep, self.mask = quoted["[CLS]"], quoted["[SEP]"], quoted["[MASK]"]

    def tokens(self, ids: np.ndarray) -> list[bytes]:
        """Return the quoted tokens of `ids`: (N,). All occurrences of one are the same object."""
        return self._quoted.take(ids).tolist()


def format_line(instance: Instance) -> bytes:
    """Return an instance as one line of JSON, in the published keys."""
    tokens, first_length, is_random, positions, labels = instance
    # The last "," of the segments is cut off.
    segments = b"0," * first_length + b"1," * (len(tokens) - first_length)
    return b"".join(
        (
            b'{"tokens":[',
            b",".join(tokens),
            b'],"segment_ids":[',
            segments[:-1],
            b'],"is_random_next":true' if is_random else b'],"is_random_next":false',
            b',"masked_lm_positions":[',
            ",".join(map(str, positions)).encode() if positions else b"",
            b'],"masked_lm_labels":[',
            b",".join(labels),
            b"]}\n",
        )
    )


# [CLS] A [SEP] B [SEP], or [CLS] A [SEP].
SPECIAL_TOKENS_OF_PAIR = 3

SPECIAL_TOKENS_OF_SINGLE = 2


@dataclass(frozen=True)
class InstanceSettings:
    """What instances look like; lengths are in tokens."""

    max_seq_len: int = 128
    short_seq_prob: float = 0.1
    masked_lm_prob: float = 0.0
    max_predictions_per_seq: int = 20
    whole_word_mask: bool = False
    one_seq: bool = False
    seed: int = 42

    @property
    def max_tokens(self) -> int:
        """Return how many tokens of text a sequence holds."""
        special = SPECIAL_TOKENS_OF_SINGLE if self.one_seq else SPECIAL_TOKENS_OF_PAIR
        return self.max_seq_len - special

    @property
    def piece_lengths(self) -> tuple[int, ...]:
        """Return the pieces to cut long lines into, so that they fill sequences without a rest."""
        if self.one_seq:
            return (self.max_tokens,)
        return (self.max_tokens - self.max_tokens // 2, self.max_tokens // 2)


class Part(NamedTuple):
    """A stretch of whole documents.

    tokens: all of them, quoted for JSON; offsets: (sentences + 1,) where each begins in `tokens`;
    first: the number of the first sentence in the corpus.
    """

    tokens: list[bytes]
    offsets: list[int]
    first: int


class InstanceSampler:
    """Draw the instances of an epoch, one part of the corpus at a time."""

    def __init__(self, store: TokenStore, table: TokenTable, settings: InstanceSettings) -> None:
        self.store, self.table, self.settings = store, table, settings

    def part(self, epoch: int, part: int) -> Iterator[Instance]:
        """Yield the instances of all documents of a part."""
        first, last = self.store.part_starts[part : part + 2]
        marks = self.store.sentence_marks(first, last - first + 1)
        places = marks >> 1
        tokens = self.table.tokens(self.store.ids(int(places[0]), int(places[-1] - places[0])))
        offsets = (places - places[0]).tolist()
        bounds = [*np.flatnonzero(marks[:-1] & 1).tolist(), last - first]
        loaded = Part(tokens, offsets, first)
        make = self._singles if self.settings.one_seq else self._pairs
        rng = random.Random()
        for begin, end in zip(bounds, bounds[1:], strict=False):
            rng.seed(_seed(self.settings.seed, epoch, first + begin))
            yield from make(loaded, begin, end, rng)

    def _target_length(self, rng: random.Random) -> int:
        limit = self.settings.max_tokens
        return rng.randint(2, limit) if rng.random() < self.settings.short_seq_prob else limit

    def _singles(
        self, part: Part, begin: int, document_end: int, rng: random.Random
    ) -> Iterator[Instance]:
        """Yield sequences of whole sentences, [CLS] A [SEP]; none is cut, so all text is used.

        Args:
            begin, document_end: the document's sentences in the part.
        """
        limit = self.settings.max_tokens
        target = self._target_length(rng)
        offsets = part.offsets
        while begin < document_end:
            start = offsets[begin]
            end = bisect_left(offsets, start + target, begin + 1, document_end)
            if offsets[end] - start > limit:
                end -= 1
            tokens = [self.table.cls, *part.tokens[start : offsets[end]], self.table.sep]
            yield self._instance(tokens, len(tokens), False, rng)
            begin = end

    def _pairs(
        self, part: Part, begin: int, document_end: int, rng: random.Random
    ) -> Iterator[Instance]:
        """Yield [CLS] A [SEP] B [SEP]; the rest of a chunk whose B is random goes back."""
        target = self._target_length(rng)
        document, count = part.first + begin, document_end - begin
        tokens, offsets = part.tokens, part.offsets
        while begin < document_end:
            start = offsets[begin]
            end = bisect_left(offsets, start + target, begin + 1, document_end)
            split = begin + 1 + _below(rng, end - begin - 1)
            first_tokens = tokens[start : offsets[split]]
            is_random = end - begin == 1 or rng.random() < 0.5
            if is_random:
                wanted = target - len(first_tokens)
                second_tokens = self._random_next(document, count, wanted, rng)
                begin = split
            else:
                second_tokens = tokens[offsets[split] : offsets[end]]
                begin = end
            yield self._pair(first_tokens, second_tokens, is_random, rng)

    def _random_next(self, first: int, count: int, wanted: int, rng: random.Random) -> list[bytes]:
        """Return text of another document, drawn with weight by its number of sentences.

        A uniform draw over all sentences outside the document [first, first + count) is the same
        as drawing a document by its sentences and then a sentence of it. The text goes on to at
        least `wanted` tokens or to the end of the document.
        """
        sentence = _below(rng, self.store.sentences - count)
        if sentence >= first:
            sentence += count
        # Every sentence holds a token, so this many are enough; only the first few are looked at.
        marks = memoryview(self.store.sentence_marks(sentence, max(wanted, 1) + 1))
        start = marks[0] >> 1
        end = 1
        while marks[end] >> 1 < start + wanted and not marks[end] & 1:
            end += 1
        return self.table.tokens(self.store.ids(start, (marks[end] >> 1) - start))

    def _pair(
        self, first: list[bytes], second: list[bytes], is_random: bool, rng: random.Random
    ) -> Instance:
        limit = self.settings.max_tokens
        if len(first) + len(second) > limit:
            drop_first, drop_second = truncation(len(first), len(second), limit)
            first = _drop(first, drop_first, rng)
            second = _drop(second, drop_second, rng)
        sep = self.table.sep
        tokens = [self.table.cls, *first, sep, *second, sep]
        return self._instance(tokens, len(first) + 2, is_random, rng)

    def _instance(
        self, tokens: list[bytes], first_length: int, is_random: bool, rng: random.Random
    ) -> Instance:
        if self.settings.masked_lm_prob == 0:
            return Instance(tokens, first_length, is_random, [], [])
        masked = self._mask(tokens, first_length, rng)
        positions = sorted(masked)
        labels = [masked[position] for position in positions]
        return Instance(tokens, first_length, is_random, positions, labels)

    def _mask(self, tokens: list[bytes], first_length: int, rng: random.Random) -> dict[int, bytes]:
        """Mask some of `tokens` in place and return the true ones by position.

        Of the chosen tokens 80% become [MASK], 10% any ordinary token, 10% stay. A group (a
        token, or a whole word) that would exceed the number to mask is passed over.
        """
        groups = self._groups(tokens, first_length)
        settings = self.settings
        wanted = max(1, round(len(tokens) * settings.masked_lm_prob))
        wanted = min(wanted, settings.max_predictions_per_seq)
        masked: dict[int, bytes] = {}
        remaining = len(groups)
        while remaining and len(masked) < wanted:
            # One step of a shuffle, so that only the groups looked at cost something.
            chosen = _below(rng, remaining)
            remaining -= 1
            groups[chosen], groups[remaining] = groups[remaining], groups[chosen]
            begin, end = groups[remaining]
            if len(masked) + end - begin > wanted:
                continue
            for position in range(begin, end):
                masked[position] = tokens[position]
                draw = rng.random()
                if draw < 0.8:
                    tokens[position] = self.table.mask
                elif draw < 0.9:
                    tokens[position] = rng.choice(self.table.ordinary)
        return masked

    def _groups(self, tokens: list[bytes], first_length: int) -> list[tuple[int, int]]:
        """Return the spans that are masked together: tokens, or words with their ## pieces."""
        segments = [(1, first_length - 1)]
        if first_length < len(tokens):
            segments.append((first_length, len(tokens) - 1))
        if not self.settings.whole_word_mask:
            return [(i, i + 1) for begin, end in segments for i in range(begin, end)]
        groups = []
        continuing = self.table.continuing
        for begin, end in segments:
            # subtle: a segment may begin inside a cut word; the rest of it is a group of its own.
            starts = [i for i in range(begin, end) if i == begin or tokens[i] not in continuing]
            groups.extend(zip(starts, [*starts[1:], end], strict=True))
        return groups


def _seed(seed: int, epoch: int, sentence: int) -> int:
    """Return one number for three; a string would be hashed first, which costs twice as much."""
    return (seed << 80) + (epoch << 60) + sentence


def _below(rng: random.Random, limit: int) -> int:
    """Draw from 0 to `limit` - 1 (0 if that is nothing), in a third of the time of randrange."""
    return int(rng.random() * limit)


def truncation(first: int, second: int, limit: int) -> tuple[int, int]:
    """Return how many tokens each of two segments loses, the longer one always losing the next.

    >>> truncation(10, 4, 8)
    (6, 0)
    >>> truncation(5, 5, 8)
    (1, 1)
    """
    excess = max(first + second - limit, 0)
    gap = min(abs(first - second), excess)
    # Of two equal segments the second loses first.
    each, odd = divmod(excess - gap, 2)
    if first > second:
        return gap + each, each + odd
    return each, gap + each + odd


def _drop(tokens: list[bytes], count: int, rng: random.Random) -> list[bytes]:
    """Take `count` tokens off, each from the front or the back with equal chance."""
    if not count:
        return tokens
    front = rng.getrandbits(count).bit_count()
    return tokens[front : len(tokens) - count + front]


@dataclass(frozen=True)
class PartWriter:
    """Make the lines of one part of an epoch; runs in worker processes."""

    sampler: InstanceSampler

    def __call__(self, task: tuple[int, int]) -> tuple[bytes, int]:
        """Return the lines of (epoch, part) and how many they are."""
        lines = [format_line(instance) for instance in self.sampler.part(*task)]
        return b"".join(lines), len(lines)
