"""Sentence splitting by rules."""

import pytest

from transformer.corpus.sentences import split_sentences

CASES = {
    "plain": ["The river rose.", "It fell again!", "Did it?", "Yes."],
    "titles and initials": ["Mr. Smith met Dr. J. R. R. Jones of St. Ives.", "He left."],
    "latin abbreviations": ["Some, e.g. Ann, or i.e. Bob vs. Carl, agreed.", "Others did not."],
    "country then more": ["The U.S. Army and the U.K. Navy met.", "They talked."],
    "country at the end": ["He moved to the U.S.", "The next year he returned."],
    "decimals and versions": ["It cost 3.50 dollars in version 2.0.1 of it.", "Then 4.25."],
    "numbered things": ["See No. 5, Fig. 2, pp. 12 and vol. IV on Dec. 24 there.", "He said no."],
    "companies": ["Apple Inc. bought Johnson & Co. Ltd. shares.", "All of them."],
    "company at the end": ["He worked at Apple Inc.", "In 1990 he left."],
    "et al": ["Smith et al. 1990 say so.", "Jones et al.", "The others say no."],
    "closing quotes": ['He asked "Why?"', '"Stop!"', "She cried (loudly.)", "[Noise.]"],
    "lower case follows": ["Yahoo! is a firm... and so on.", "True."],
    "ellipsis": ["He waited...", "Then he left…", "Nothing."],
    "footnote marks": ["It is so.[12]", "It is not.[3][4]", "Who knows?"],
    "number begins": ["That was in 1999.", "23 people saw it."],
    "host names": ["Visit www.example.org or a.b.c/index.html today.", "Now."],
    "german": ["Ärzte kamen.", "Übel war es.", "Ihm ging es gut."],
}


@pytest.mark.parametrize("sentences", CASES.values(), ids=CASES.keys())
def test_text_with_blanks(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


def test_chinese_and_japanese_need_no_blanks():
    sentences = [
        "数学是一门学科。",
        "他说：“好！”",
        "是吗？",
        "价格是3.5元。",
        "彼は「はい。」",
        "と",
    ]
    assert split_sentences("".join(sentences)) == sentences
    assert split_sentences("一。 二。") == ["一。", "二。"]


@pytest.mark.parametrize("text", ["", "   ", "\t\u3000"])
def test_nothing_gives_nothing(text):
    assert split_sentences(text) == []


@pytest.mark.parametrize("text", ["." * 300_000, "(" * 300_000, '."' * 150_000, ". " * 150_000])
def test_long_runs_of_marks_take_no_quadratic_time(text):
    assert "".join(split_sentences(text)).replace(" ", "") == text.replace(" ", "")


def test_no_character_but_blanks_is_lost():
    text = 'Wait. "What?" (He said.) e.g. this... 。！？ A.B. The end. . . But no?!  Yes。'
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
