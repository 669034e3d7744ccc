"""Augment text by Algorithm 1 of the TinyBERT paper: replace words by what could stand there.

Candidates for a word that is one piece of the vocabulary are what a masked language model predicts
in its place; for a word of several pieces, its nearest words in a table of word vectors. Each
variant of a text replaces each word with probability p by one of its candidates.

Here: M candidates a word, N variants a text (the paper's K and N_a), V entries of the vocabulary.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from typing import NamedTuple

import numpy as np

from transformer.augmentation.masked_lm import MaskedLM, MaskedWord
from transformer.augmentation.words import STOP_WORDS, Text, Word, find_words, match_case
from transformer.tokenization import BasicTokenizer

# The draws that one wanted variant may cost; most draws are new, unless p is small.
DRAWS_PER_VARIANT = 100


@dataclass(frozen=True)
class AugmentationConfig:
    """The numbers of Algorithm 1.

    Args:
        variants: N, of each text.
        candidates: M, of each word.
        probability: p, that a word is replaced.
        original_spacing: write variants as the tokenizer sees them: lower-cased where it does
            so, a blank round every punctuation mark.
    """

    variants: int = 20
    candidates: int = 15
    probability: float = 0.4
    original_spacing: bool = False


class Variant(NamedTuple):
    """A variant of a text, and the words in it that are new, by number of token."""

    text: str
    choice: Mapping[int, str]


@dataclass
class Augmenter:
    """Makes variants of texts.

    Args:
        basic_tokenizer: splits and lower-cases for `original_spacing`.
        masked_lm: None makes every word a matter of the word vectors.
        neighbours: nearest words, nearest first, by word; empty: none are looked up.
    """

    config: AugmentationConfig
    basic_tokenizer: BasicTokenizer
    masked_lm: MaskedLM | None = None
    neighbours: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stop_words: Collection[str] = STOP_WORDS

    def find_words(self, text: str) -> Text:
        """Return the tokens and words of a text."""
        return find_words(text, self.stop_words)

    def is_one_piece(self, word: Word) -> bool:
        """Say whether the masked LM is asked about `word`, and not the word vectors."""
        if self.masked_lm is None:
            return False
        tokenizer = self.masked_lm.tokenizer
        pieces = tokenizer.encode(word.text)
        return len(pieces) == 1 and pieces[0] != tokenizer.unk_id

    def words_for_vectors(self, texts: Iterable[Text]) -> set[str]:
        """Return the words of some texts that the masked LM is not asked about."""
        words = {word.text: word for text in texts for word in text.words}
        return {text for text, word in words.items() if not self.is_one_piece(word)}

    def candidates(
        self, texts: Sequence[Text], counts: Counter[str] | None = None
    ) -> list[dict[int, list[str]]]:
        """Return, for each text, the candidates of its words, as they would be written there.

        The keys are numbers of tokens; a word without candidates has none. Batches are made of
        all the texts of a call.

        Args:
            counts: receives how many words there were, and where their candidates are from.
        """
        counts = Counter() if counts is None else counts
        asked = [self._questions(text) for text in texts]
        answers = {}
        if self.masked_lm is not None:
            answers = self.masked_lm.candidates(chain.from_iterable(map(dict.values, asked)))
        results = []
        for text, questions in zip(texts, asked, strict=True):
            found = {}
            for word in text.words:
                question = questions.get(word.token)
                near = self._neighbours(word) if question is None else []
                options = near if question is None else self._cased(answers[question], word)
                counts["words"] += 1
                counts["words/vectors" if question is None else "words/masked"] += bool(options)
                counts["candidates"] += len(options)
                if options:
                    found[word.token] = options
            results.append(found)
        return results

    def variants(
        self, text: Text, candidates: Mapping[int, Sequence[str]], rng: random.Random
    ) -> list[Variant]:
        """Return up to N different variants of `text`, none equal to it, in the order drawn."""
        fixed, gaps = self._as_written(text)
        unchanged = _join(fixed, gaps, {})
        probability, wanted = self.config.probability, self.config.variants
        seen = {text.text, unchanged}
        made: list[Variant] = []
        for choice in _choices(candidates, probability, wanted, rng):
            variant = _join(fixed, gaps, choice)
            if variant not in seen:
                seen.add(variant)
                made.append(Variant(variant, choice))
                if len(made) == wanted:
                    break
        return made

    def _questions(self, text: Text) -> dict[int, MaskedWord]:
        """Return what to ask the masked LM, by number of token."""
        one_piece = [word for word in text.words if self.is_one_piece(word)]
        if not one_piece:
            return {}
        encode = self.masked_lm.tokenizer.encode
        encoded = [encode(text.text[start:end]) for start, end in text.spans]
        starts = np.cumsum([0] + [len(pieces) for pieces in encoded])
        pieces = np.fromiter(chain.from_iterable(encoded), np.int32, count=starts[-1])
        return {
            word.token: self.masked_lm.masked_word(pieces, int(starts[word.token]))
            for word in one_piece
        }

    def _cased(self, entries: list[str], word: Word) -> list[str]:
        """Write entries of the vocabulary in the capitals of `word`, if they come without."""
        if not self.basic_tokenizer.do_lower_case or self.config.original_spacing:
            return entries
        return list(dict.fromkeys(match_case(entry, word.text) for entry in entries))

    def _neighbours(self, word: Word) -> list[str]:
        """Return the nearest words; where they come without capitals, in those of `word`."""
        as_written = self.neighbours.get(word.text)
        near = self.neighbours.get(word.text.lower(), ()) if as_written is None else as_written
        if self.config.original_spacing:
            lower = self.basic_tokenizer.do_lower_case
            return list(dict.fromkeys(entry.lower() if lower else entry for entry in near))
        if as_written is not None:
            return list(near)
        return list(dict.fromkeys(match_case(entry, word.text) for entry in near))

    def _as_written(self, text: Text) -> tuple[list[str], list[str]]:
        """Return the tokens of a text, and what stands before each and at the end."""
        tokens = [text.text[start:end] for start, end in text.spans]
        if self.config.original_spacing:
            tokens = [" ".join(self.basic_tokenizer.tokenize(token)) for token in tokens]
            return tokens, ["", *[" " for _ in tokens[1:]], ""][: len(tokens) + 1]
        ends = [0, *(end for _, end in text.spans)]
        starts = [*(start for start, _ in text.spans), len(text.text)]
        return tokens, [text.text[a:b] for a, b in zip(ends, starts, strict=True)]


def _join(tokens: list[str], gaps: list[str], choice: Mapping[int, str]) -> str:
    parts = list(tokens)
    for number, word in choice.items():
        parts[number] = word
    return gaps[0] + "".join(chain.from_iterable(zip(parts, gaps[1:], strict=True)))


def _choices(
    candidates: Mapping[int, Sequence[str]],
    probability: float,
    wanted: int,
    rng: random.Random,
) -> Iterator[dict[int, str]]:
    """Yield what each variant replaces: Algorithm 1's draws; all there are, if not too many."""
    if not candidates or probability <= 0:
        return
    kept = 0 if probability >= 1 else 1  # may a word stay as it is?
    if math.prod(kept + len(options) for options in candidates.values()) <= wanted + 1:
        stays = [None] * kept
        combinations = list(product(*([*stays, *options] for options in candidates.values())))
        rng.shuffle(combinations)
        for words in combinations:
            pairs = zip(candidates, words, strict=True)
            yield {number: word for number, word in pairs if word is not None}
        return
    for _ in range(DRAWS_PER_VARIANT * wanted):
        yield {
            number: rng.choice(options)
            for number, options in candidates.items()
            if rng.random() < probability
        }
