"""New rows without any model: pairs swapped and recombined, words dropped and moved, spans joined.

In prediction distillation the teacher labels every row anew, so that a row need not mean what the
one it was made of meant; it has to be text of the task's own kind. The label that is written with
a recombined row is a copy and may be wrong: `task_distill.py` marks such rows as augmented.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from transformer.augmentation.words import Text

DROP_PROBABILITY = 0.15  # that a word is left out; one of them always is
SWAP_PROBABILITY = 0.15  # that a word changes places with the next; one of them always does


def recombine(
    number: int, rows: Sequence[Sequence[Text]], count: int, rng: random.Random
) -> list[tuple[str, ...]]:
    """Return `count` new rows made of row `number` of a block, or fewer where nothing new comes up.

    Of a pair the first is its texts swapped, the others its first text with the second of another
    row. Of a single text they are, in turn, one without some words, one with neighbouring words
    swapped, and its beginning with the end of another row's.

    Example: rows ("a", "b"), ("c", "d"): of row 0 come ("b", "a") and ("a", "d").
    """
    texts = tuple(text.text for text in rows[number])
    seen = {texts}
    made: list[tuple[str, ...]] = []
    for attempt in range(3 * count):
        other = rows[_another(number, len(rows), rng)]
        if len(texts) == 2:
            new = texts[::-1] if attempt == 0 else (texts[0], other[1].text)
        else:
            new = (_changed(rows[number][0], other[0], attempt % 3, rng),)
        if new not in seen and all(text.strip() for text in new):
            seen.add(new)
            made.append(new)
            if len(made) == count:
                break
    return made


def _another(number: int, rows: int, rng: random.Random) -> int:
    """Return the number of another row; of itself, where there is no other."""
    place = rng.randrange(max(rows - 1, 1))
    return (place + (place >= number)) % rows


def _changed(text: Text, other: Text, way: int, rng: random.Random) -> str:
    if way == 0:
        return _without_words(text, rng)
    return _with_swaps(text, rng) if way == 1 else _joined(text, other, rng)


def _without_words(text: Text, rng: random.Random) -> str:
    """Leave out some tokens, with the blanks before them."""
    count = len(text.spans)
    if count < 2:
        return text.text
    dropped = {rng.randrange(count)} | {n for n in range(count) if rng.random() < DROP_PROBABILITY}
    starts = [0, *(end for _, end in text.spans)]
    kept = [text.text[starts[n] : end] for n, (_, end) in enumerate(text.spans) if n not in dropped]
    return ("".join(kept) + text.text[starts[-1] :]).strip()


def _with_swaps(text: Text, rng: random.Random) -> str:
    """Let some words change places with the next word; punctuation and blanks stay."""
    tokens = [text.text[start:end] for start, end in text.spans]
    words = [n for n, token in enumerate(tokens) if any(map(str.isalnum, token))]
    if len(words) < 2:
        return text.text
    chosen = rng.randrange(len(words) - 1)
    for n, (first, second) in enumerate(pairwise(words)):
        if n == chosen or rng.random() < SWAP_PROBABILITY:
            tokens[first], tokens[second] = tokens[second], tokens[first]
    parts, end = [], 0
    for token, (start, stop) in zip(tokens, text.spans, strict=True):
        parts += [text.text[end:start], token]
        end = stop
    return "".join(parts) + text.text[end:]


def _joined(text: Text, other: Text, rng: random.Random) -> str:
    """Return the beginning of one text and the end of another, cut between tokens."""
    if not (text.spans and other.spans):
        return text.text
    head = text.text[: text.spans[rng.randrange(len(text.spans))][1]]
    tail = other.text[other.spans[rng.randrange(len(other.spans))][0] :]
    blank = " " if any(char.isspace() for char in text.text + other.text) else ""
    return head + blank + tail
