"""Find the words of a text that augmentation may replace, in any script, and where they stand.

A token is what BERT's text normalisation makes of a text: a run of characters between blanks,
punctuation and Chinese characters. A word is a token of letters that is not a stop word.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from transformer import characters

# Words that carry grammar rather than meaning, by kind.
_ENGLISH = """
a an the this that these those each every either neither some any no none all both few more most
other another such own same
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself
she her hers herself it its itself they them their theirs themselves who whom whose which what
whatever whoever one ones
am is are was were be been being have has had having do does did doing will would shall should can
could may might must ought ca wo sha cannot gonna
of to in on at by for with from into onto upon about above across after against along among around
as before behind below beneath beside besides between beyond but despite down during except inside
like near off out outside over past per since through throughout till toward towards under until up
versus via within without
and or nor so yet because although though if unless while whereas whether than then
not too very just only also even ever never again further once here there where when why how now
s t d m o ll re ve y
"""

_CHINESE = "的了着是在和与及或而但也都就吗呢吧啊我你您他她它们这那不没"

STOP_WORDS = frozenset(_ENGLISH.split()) | frozenset(_CHINESE)

# What may follow an apostrophe without being a word: it's, don't, I'd, I'm, we'll, you're, we've.
_CLITICS = frozenset(("s", "t", "d", "m", "ll", "re", "ve"))

_APOSTROPHES = "'\u2019\u02bc"

_NOT = re.compile(rf"[{_APOSTROPHES}]t\b", re.IGNORECASE)


class Word(NamedTuple):
    """A word that may be replaced: the number of its token in the text, and its characters."""

    token: int
    text: str


class Text(NamedTuple):
    """A text, the (start, end) of its tokens, and its words."""

    text: str
    spans: tuple[tuple[int, int], ...]
    words: tuple[Word, ...]


_LETTERS = re.compile("[rm]*l[lmr]*|c")


def find_words(text: str, stop_words: Collection[str] = STOP_WORDS) -> Text:
    """Return the tokens and words of `text`; every Chinese character is a word of its own.

    Args:
        stop_words: in lower case.

    Example: "It's 3 o'clock, 雨!" has the tokens It ' s 3 o ' clock , 雨 ! and the words clock, 雨.
    """
    kinds = characters.kinds_of(text)
    spans = characters.token_spans(kinds)
    words = []
    for number, (start, end) in enumerate(spans):
        if (
            _LETTERS.fullmatch(kinds, start, end)
            and text[start:end].lower() not in stop_words
            and not _is_contracted(text, start, end)
        ):
            words.append(Word(number, text[start:end]))
    return Text(text, spans, tuple(words))


def _is_contracted(text: str, start: int, end: int) -> bool:
    """Say whether a token is part of a contraction: "won" and "t" of won't, "ll" of we'll."""
    token = text[start:end].lower()
    if start > 0 and text[start - 1] in _APOSTROPHES and token in _CLITICS:
        return True
    return token[-1] == "n" and _NOT.match(text, end) is not None


def is_cjk(text: str) -> bool:
    """Say whether `text` is one Chinese character."""
    return len(text) == 1 and characters.is_cjk(text)


def is_candidate(entry: str) -> bool:
    """Say whether an entry of a vocabulary or of a word-vector file is a whole word.

    Special and unused entries ("[MASK]", "[unused7]", "<unk>"), continuations ("##ing"), parts of
    contractions ("n't"), punctuation and whatever else holds no letter or digit are not; nor is
    what holds a blank.
    """
    if entry.isascii() and entry.isalnum():
        return True
    if entry.startswith("##") or (entry[:1] in "[<" and entry[-1:] in "]>"):
        return False
    if any(char in _APOSTROPHES or characters.is_blank(char) for char in entry):
        return False
    return any(map(str.isalnum, entry))


def match_case(candidate: str, word: str) -> str:
    """Write a lower-case candidate as `word` is written.

    >>> match_case("paris", "London"), match_case("esa", "NASA"), match_case("car", "iPod")
    ('Paris', 'ESA', 'car')
    """
    if len(word) > 1 and word.isupper():
        return candidate.upper()
    # subtle: upper() of one letter may be two ("ß" gives "SS"); titles have a form of their own.
    return candidate[:1].title() + candidate[1:] if word[:1].isupper() else candidate
