"""Candidates and variants of Algorithm 1. Run: pytest tests/augmentation/test_algorithm.py"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from transformer.augmentation.algorithm import AugmentationConfig, Augmenter
from transformer.augmentation.masked_lm import MaskedLM
from transformer.modeling import BertForMaskedLM
from transformer.tokenization import BasicTokenizer, BertTokenizer


def variants_of(text: str, candidates: dict[int, list[str]], seed: int = 1, **config) -> list[str]:
    """Make variants with given candidates."""
    augmenter = Augmenter(AugmentationConfig(**config), BasicTokenizer())
    made = augmenter.variants(augmenter.find_words(text), candidates, random.Random(seed))
    return [variant.text for variant in made]


def test_what_is_not_replaced_stays_as_written() -> None:
    text = "  The  CAT\tsat -- on Bob's\u00a0mat (twice) ."
    made = variants_of(text, {1: ["DOG"], 2: ["slept"]}, variants=9)
    assert sorted(made) == [
        "  The  CAT\tslept -- on Bob's\u00a0mat (twice) .",
        "  The  DOG\tsat -- on Bob's\u00a0mat (twice) .",
        "  The  DOG\tslept -- on Bob's\u00a0mat (twice) .",
    ]


def test_all_variants_are_made_where_few_exist() -> None:
    candidates = {0: ["a", "b"], 1: ["c", "d", "e"]}
    made = variants_of("x y", candidates, variants=30, probability=0.01)
    assert len(made) == 3 * 4 - 1
    assert set(made) == {f"{a} {b}" for a in "xab" for b in "ycde"} - {"x y"}
    every = variants_of("x y", candidates, variants=30, probability=1.0)
    assert set(every) == {f"{a} {b}" for a in "ab" for b in "cde"}
    # A candidate that is the word itself makes nothing new.
    assert variants_of("x", {0: ["x", "z"]}, variants=5) == ["z"]
    assert variants_of("x", {}, variants=5) == []
    assert variants_of("", {}, variants=5) == []


def test_never_more_than_wanted_nor_the_same_twice() -> None:
    text = "one two three four five six"
    candidates = {number: [f"w{number}{letter}" for letter in "abc"] for number in range(6)}
    for seed in range(20):
        made = variants_of(text, candidates, seed, variants=12)
        assert len(made) == len(set(made)) == 12
        assert text not in made


def test_words_are_replaced_with_probability_p_by_each_candidate_alike() -> None:
    words = 200
    text = " ".join(f"w{i}" for i in range(words))
    candidates = {number: ["a", "b", "c", "d"] for number in range(words)}
    made = variants_of(text, candidates, variants=100, probability=0.3)
    counts = Counter(word for variant in made for word in variant.split())
    replaced = sum(counts[word] for word in "abcd")
    # 20,000 draws: three standard deviations are 0.0097 and 0.021.
    assert replaced / (100 * words) == pytest.approx(0.3, abs=0.01)
    assert counts["a"] / replaced == pytest.approx(0.25, abs=0.021)


def test_same_seed_same_variants() -> None:
    candidates = {number: list("abcdef") for number in range(4)}
    runs = [variants_of("one two three four", candidates, seed) for seed in (7, 7, 8)]
    assert runs[0] == runs[1] != runs[2]


@pytest.fixture
def augmenter(make_checkpoint) -> Augmenter:
    path = make_checkpoint("mlm", BertForMaskedLM)
    model, tokenizer = BertForMaskedLM.from_pretrained(path), BertTokenizer.from_pretrained(path)
    return Augmenter(
        AugmentationConfig(candidates=3),
        tokenizer.basic_tokenizer,
        MaskedLM(model.eval(), tokenizer, candidates=3, max_seq_length=64),
        {"horse": ["pony", "donkey"], "Oslo": ["Bergen"], "oslo": ["bergen"], "cinema": ["film"]},
    )


def test_one_piece_asks_the_model_and_several_the_vectors(augmenter: Augmenter) -> None:
    text = augmenter.find_words("The film Horse, HORSE oslo Oslo a zebra")
    counts: Counter[str] = Counter()
    (found,) = augmenter.candidates([text], counts)
    film, titled, upper = 1, 2, 4
    assert set(found) == {film, titled, upper, 5, 6}
    pieces = augmenter.masked_lm.tokenizer.encode("the film horse, horse oslo oslo a zebra")
    word = augmenter.masked_lm.masked_word(np.array(pieces, np.int32), 1)
    assert found[film] == augmenter.masked_lm.candidates([word])[word]
    assert found[titled] == ["Pony", "Donkey"]
    assert found[upper] == ["PONY", "DONKEY"]
    assert found[5] == ["bergen"]
    assert found[6] == ["Bergen"]
    assert counts["words"] == 6
    assert counts["words/masked"] == 1
    assert counts["words/vectors"] == 4
    assert counts["candidates"] == 3 + 2 + 2 + 1 + 1


def test_capitals_of_the_model_follow_the_text(augmenter: Augmenter) -> None:
    texts = [augmenter.find_words(text) for text in ("good film", "Good film", "GOOD film")]
    plain, title, upper = (found[0] for found in augmenter.candidates(texts))
    assert title == [word.capitalize() for word in plain]
    assert upper == [word.upper() for word in plain]


def test_without_a_model_every_word_goes_to_the_vectors() -> None:
    near = {"good": ["great"], "film": ["movie"]}
    augmenter = Augmenter(AugmentationConfig(), BasicTokenizer(), neighbours=near)
    text = augmenter.find_words("A Good film.")
    assert augmenter.candidates([text]) == [{1: ["Great"], 2: ["movie"]}]


def test_without_vectors_words_of_several_pieces_stay(augmenter: Augmenter) -> None:
    augmenter.neighbours = {}
    assert set(augmenter.candidates([augmenter.find_words("horse film")])[0]) == {1}


def test_original_spacing_writes_tokens_and_blanks(augmenter: Augmenter) -> None:
    augmenter.config = AugmentationConfig(candidates=3, variants=40, original_spacing=True)
    text = augmenter.find_words("Bob's HORSE: Caf\u00e9!")
    found = {3: augmenter.candidates([text])[0][3]}
    assert found == {3: ["pony", "donkey"]}
    made = [each.text for each in augmenter.variants(text, found, random.Random(0))]
    assert sorted(made) == ["bob ' s donkey : cafe !", "bob ' s pony : cafe !"]
    assert augmenter.variants(augmenter.find_words(""), {}, random.Random(0)) == []
    augmenter.neighbours = {"Oslo": ["Bergen", "bergen", "Voss"]}
    (found,) = augmenter.candidates([augmenter.find_words("Oslo")])
    assert found == {0: ["bergen", "voss"]}
