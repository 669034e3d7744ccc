"""Pregeneration in the plain way of 2019, to compare with; prints its times as one JSON object.

Words are split and cut into pieces one by one in Python, documents are lists of strings in memory,
every instance is shuffled for masking (the original masks one token even at probability 0) and goes
through json.dumps, all in one process. Random next sentences are weighted by sentence counts.

    python benchmarks/plain_pregeneration.py CORPUS VOCAB OUTPUT_DIR EPOCHS
"""

from __future__ import annotations

import json
import random
import sys
import time
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

MAX_SEQ_LEN = 128
SHORT_SEQ_PROB = 0.1
MASKED_LM_PROB = 0.0
MAX_PREDICTIONS = 20
LONGEST_WORD = 100
Document = list[list[str]]


def is_punctuation(char: str) -> bool:
    """Say whether BERT takes `char` for punctuation: every ASCII symbol counts."""
    code = ord(char)
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    return unicodedata.category(char).startswith("P")


def is_blank(char: str) -> bool:
    """Say whether `char` separates words."""
    return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def is_control(char: str) -> bool:
    """Say whether `char` is dropped."""
    return char not in "\t\n\r" and unicodedata.category(char) in ("Cc", "Cf")


def is_chinese(char: str) -> bool:
    """Say whether `char` is an ideograph, which stands alone."""
    code = ord(char)
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2FA1F
        or 0xF900 <= code <= 0xFAFF
    )


def clean(text: str) -> str:
    """Drop control characters and make blanks plain."""
    output = []
    for char in text:
        if ord(char) in (0, 0xFFFD) or is_control(char):
            continue
        output.append(" " if is_blank(char) else char)
    return "".join(output)


def set_ideographs_apart(text: str) -> str:
    """Put blanks round ideographs."""
    output = []
    for char in text:
        if is_chinese(char):
            output.extend((" ", char, " "))
        else:
            output.append(char)
    return "".join(output)


def strip_accents(word: str) -> str:
    """Drop combining marks."""
    output = []
    for char in unicodedata.normalize("NFD", word):
        if unicodedata.category(char) != "Mn":
            output.append(char)
    return "".join(output)


def split_punctuation(word: str) -> list[str]:
    """Make every punctuation character a word."""
    words: list[list[str]] = []
    inside = False
    for char in word:
        if is_punctuation(char):
            words.append([char])
            inside = False
        else:
            if not inside:
                words.append([])
            inside = True
            words[-1].append(char)
    return ["".join(chars) for chars in words]


def basic_words(text: str, lower_case: bool) -> list[str]:
    """Split a line into words and punctuation: one pass a rule, as BERT's basic tokenizer does."""
    words = []
    for word in set_ideographs_apart(clean(text)).split():
        if lower_case:
            word = strip_accents(word.lower())
        words.extend(split_punctuation(word))
    return " ".join(words).split()


def word_pieces(word: str, vocab: set[str]) -> list[str]:
    """Cut a word into the longest pieces that the vocabulary has, from the left."""
    chars = list(word)
    if len(chars) > LONGEST_WORD:
        return ["[UNK]"]
    pieces = []
    start = 0
    while start < len(chars):
        end = len(chars)
        while end > start:
            piece = "".join(chars[start:end])
            if start > 0:
                piece = "##" + piece
            if piece in vocab:
                break
            end -= 1
        if end == start:
            return ["[UNK]"]
        pieces.append(piece)
        start = end
    return pieces


def tokenize(text: str, vocab: set[str], lower_case: bool) -> list[str]:
    """Tokenise one line."""
    tokens = []
    for word in basic_words(text, lower_case):
        tokens.extend(word_pieces(word, vocab))
    return tokens


def read_documents(path: str, vocab: set[str], lower_case: bool) -> list[Document]:
    """Hold the whole corpus as lists of lists of strings."""
    documents: list[Document] = [[]]
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.strip():
                documents.append([])
            elif tokens := tokenize(line, vocab, lower_case):
                documents[-1].append(tokens)
    return [document for document in documents if document]


class Sampler:
    """Draw instances of pairs."""

    def __init__(self, documents: list[Document], words: list[str], rng: random.Random) -> None:
        self.documents, self.words, self.rng = documents, words, rng
        self.ends = list(accumulate(len(document) for document in documents))

    def other_document(self, number: int) -> Document:
        """Draw another document with weight by its sentences."""
        own = len(self.documents[number])
        start = self.rng.randrange(self.ends[number], self.ends[number] + self.ends[-1] - own)
        return self.documents[bisect_right(self.ends, start % self.ends[-1])]

    def instances(self, number: int) -> Iterator[dict[str, object]]:
        """Yield the instances of one document."""
        rng, limit = self.rng, MAX_SEQ_LEN - 3
        document = self.documents[number]
        target = rng.randint(2, limit) if rng.random() < SHORT_SEQ_PROB else limit
        chunk: list[list[str]] = []
        length = position = 0
        while position < len(document):
            chunk.append(document[position])
            length += len(document[position])
            if position == len(document) - 1 or length >= target:
                split = rng.randrange(1, len(chunk)) if len(chunk) > 1 else 1
                first = [token for sentence in chunk[:split] for token in sentence]
                is_random = len(chunk) == 1 or rng.random() < 0.5
                if is_random:
                    second = self.random_next(number, target - len(first))
                    position -= len(chunk) - split
                else:
                    second = [token for sentence in chunk[split:] for token in sentence]
                self.truncate(first, second, limit)
                yield self.make_instance(first, second, is_random)
                chunk, length = [], 0
            position += 1

    def random_next(self, number: int, wanted: int) -> list[str]:
        """Return text of another document."""
        other = self.other_document(number)
        tokens: list[str] = []
        for sentence in other[self.rng.randrange(len(other)) :]:
            tokens.extend(sentence)
            if len(tokens) >= wanted:
                break
        return tokens

    def truncate(self, first: list[str], second: list[str], limit: int) -> None:
        """Drop tokens of the longer segment, front or back, one by one."""
        while len(first) + len(second) > limit:
            longer = first if len(first) > len(second) else second
            if self.rng.random() < 0.5:
                del longer[0]
            else:
                longer.pop()

    def make_instance(
        self, first: list[str], second: list[str], is_random: bool
    ) -> dict[str, object]:
        """Mask, and put the published keys together."""
        tokens = ["[CLS]", *first, "[SEP]", *second, "[SEP]"]
        positions, labels = self.mask(tokens)
        return {
            "tokens": tokens,
            "segment_ids": [0] * (len(first) + 2) + [1] * (len(second) + 1),
            "is_random_next": is_random,
            "masked_lm_positions": positions,
            "masked_lm_labels": labels,
        }

    def mask(self, tokens: list[str]) -> tuple[list[int], list[str]]:
        """Mask tokens in the order of a shuffle; at least one, whatever the probability."""
        candidates = []
        for position, token in enumerate(tokens):
            if token not in ("[CLS]", "[SEP]"):
                candidates.append(position)
        wanted = min(MAX_PREDICTIONS, max(1, round(len(tokens) * MASKED_LM_PROB)))
        self.rng.shuffle(candidates)
        positions = sorted(candidates[:wanted])
        labels = [tokens[position] for position in positions]
        for position in positions:
            if self.rng.random() < 0.8:
                tokens[position] = "[MASK]"
            elif self.rng.random() < 0.5:
                tokens[position] = self.rng.choice(self.words)
        return positions, labels


def main(corpus: str, vocab_file: str, output_dir: str, epochs: str) -> None:
    """Tokenise, then sample and write every epoch; print what it took."""
    entries = Path(vocab_file).read_text(encoding="utf-8").split("\n")
    lower_case = not any(entry != entry.lower() for entry in entries if not entry.startswith("["))
    started = time.perf_counter()
    documents = read_documents(corpus, set(entries), lower_case)
    seconds = {"tokenising": time.perf_counter() - started, "sampling": 0.0, "writing": 0.0}
    tokens = sum(len(sentence) for document in documents for sentence in document)
    instances = written = 0
    for epoch in range(int(epochs)):
        sampler = Sampler(documents, entries, random.Random(epoch))
        with open(Path(output_dir) / f"epoch_{epoch}.json", "w", encoding="utf-8") as file:
            for number in range(len(documents)):
                begun = time.perf_counter()
                made = list(sampler.instances(number))
                sampled = time.perf_counter()
                for instance in made:
                    file.write(json.dumps(instance) + "\n")
                seconds["sampling"] += sampled - begun
                seconds["writing"] += time.perf_counter() - sampled
                instances += len(made)
                written += sum(len(instance["tokens"]) for instance in made)
    print(json.dumps({**seconds, "tokens": tokens, "instances": instances, "written": written}))


if __name__ == "__main__":
    main(*sys.argv[1:])
