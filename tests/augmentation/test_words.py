"""Words in any script, contractions, candidates, capitals. Run: pytest tests/test_words.py"""

from __future__ import annotations

import pytest

from transformer.augmentation.words import find_words, is_candidate, match_case
from transformer.tokenization import BertTokenizer


def tokens_of(text: str) -> list[str]:
    return [text[start:end] for start, end in find_words(text).spans]


def words_of(text: str) -> list[str]:
    return [word.text for word in find_words(text).words]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  \t ", []),
        ("The cat sat.", ["cat", "sat"]),
        ("NOT A WORD", ["WORD"]),
        ("mp3 covid19 1990 20°C $5", []),
        ("well-known film_maker", ["well", "known", "film", "maker"]),
        ("naïve Привет Ελλάδα שלום", ["naïve", "Привет", "Ελλάδα", "שלום"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("天气好。Python很好", ["天", "气", "好", "Python", "很", "好"]),
        ("我的书", ["书"]),
        ("cafe\u0301 co\u00adoperate", ["cafe\u0301", "co\u00adoperate"]),
    ],
)
def test_words_are_letters_of_any_script_and_no_stop_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("We won.", ["won"]),
        ("We won't.", []),
        ("WON\u2019T isn't wo n't ca n't", []),
        ("it 's Bob's film", ["Bob", "film"]),
        ("they'll I'd you've we're I'm", []),
        ("l'homme", ["l", "homme"]),
        ("'tis 'true'", ["tis", "true"]),
        ("n", ["n"]),
    ],
)
def test_parts_of_contractions_are_no_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_token_numbers_and_places() -> None:
    text = find_words("It's 3 o'clock, 雨!")
    assert tokens_of(text.text) == ["It", "'", "s", "3", "o", "'", "clock", ",", "雨", "!"]
    assert text.words == ((6, "clock"), (8, "雨"))


def test_own_stop_words() -> None:
    assert [word.text for word in find_words("the cat", {"cat"}).words] == ["the"]


@pytest.mark.parametrize(
    "text",
    [
        "Don't (really) pay $3.50 for x^2 at 10:30...",
        "weiße Straße, École; Ünïcödé\u2014dash\u2026",
        "天气mix混合 ｆｕｌｌ１２",
        "a\u200bb c\u00a0d \ufeffe\u2028f \u0000g",
        "हिन्दी और ไทย 日本語のテスト 🙂👍🏽 ok",
        "[MASK] [SEP] ##ing",
    ],
)
def test_tokens_cover_what_the_tokenizer_sees(vocab_file, text: str) -> None:
    """Piece by piece the tokens give the ids of the whole text, so none is lost or shifted."""
    tokenizer = BertTokenizer(vocab_file)
    pieces = [piece for token in tokens_of(text) for piece in tokenizer.encode(token)]
    assert pieces == tokenizer.encode(text)


def test_candidates_are_whole_words() -> None:
    good = ["film", "école", "1990", "天", "u.s.", "x"]
    bad = ["[MASK]", "[unused7]", "<unk>", "</s>", "##ing", ".", "...", "°", "a b", "n't", "'s", ""]
    bad.append("a\u00a0b")
    assert [entry for entry in good + bad if is_candidate(entry)] == good


@pytest.mark.parametrize(
    ("candidate", "word", "written"),
    [
        ("paris", "London", "Paris"),
        ("paris", "LONDON", "PARIS"),
        ("paris", "london", "paris"),
        ("car", "iPod", "car"),
        ("to", "X", "To"),
        ("école", "School", "École"),
        ("ǆep", "Pocket", "ǅep"),
    ],
)
def test_capitals_follow_the_word(candidate: str, word: str, written: str) -> None:
    assert match_case(candidate, word) == written
