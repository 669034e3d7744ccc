"""Sort characters into the classes that BERT's text normalisation acts on.

The compiled tokenizer that published checkpoints are used with has the character classes of
Unicode 8 and the lower-casing of a recent Unicode; `unicodedata` has what the running Python came
with. The tables here hold the differences, so that a text has the same pieces everywhere.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right

# Blanks become a space. Every other control character is removed, also those that `str.split()`
# takes for blanks (vertical tab, form feed, U+001C..U+001F, U+0085).
_BLANKS = frozenset("\t\n\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000") | frozenset(
    map(chr, range(0x2000, 0x200B))
)

# No character in these ranges is punctuation, control or accent in Unicode 8: what later
# versions put there is treated as letters.
_LATER = (
    "5C8-5C9 61D-61D 7FD-7FD 890-8E2 9FD-9FE A76-A76 AFA-AFF B53-B55 C04-C3C C77-C77 C84-C84 "
    "D00-D00 D3B-D3C D81-D81 EBA-EBA ECE-ECE 180F-1886 1ABF-1AF0 1B4E-1B4F 1B7D-1B7F 1DF6-1DFB "
    "2E43-2E63 A82C-A82C A8C5-A8C5 A8FF-A8FF A9BD-A9BD 10D24-10F89 11070-11074 110C2-110CD "
    "111CF-111CF 1123E-11241 1133B-1133B 113BB-1145E 11660-1166C 116B9-116B9 1182F-11FFF "
    "12FF1-1612F 16D6D-16F4F 16FE2-16FE4 1CF00-1D128 1D25B-1D25C 1E000-1E6F5 1E944-1E95F"
)

# What Unicode 8 classed otherwise than its successors.
_RECLASSED = {"\u166d": "Po", "\u1734": "Mn", "\U000111c9": "Po", "\U0001171e": "Mn"}

_CJK = "3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2B81F 2B920-2CEAF 2F800-2FA1F"

# Capitals of Unicode 14 and later as first-last+distance, for Pythons that do not know them.
_LATER_CAPITALS = (
    "1C89-1C89+1 2C2F-2C2F+30 A7C0-A7C0+1 A7CC-A7CC+1 A7CE-A7CE+1 A7D0-A7D0+1 A7D2-A7D2+1 "
    "A7D4-A7D4+1 A7D6-A7D6+1 A7D8-A7D8+1 A7DA-A7DA+1 A7CB-A7CB+-A567 A7DC-A7DC+-A641 "
    "10570-1057A+27 1057C-1058A+27 1058C-10592+27 10594-10595+27 10D50-10D65+20 16EA0-16EB8+1B"
)

# Composed letters of Unicode 13 and later, which the reference does not take apart.
KEPT_COMPOSED = frozenset(
    map(
        chr,
        [0x105C9, 0x105E4, 0x11383, 0x11385, 0x1138E, 0x11391, 0x113C5, 0x113C7, 0x113C8, 0x11938]
        + [*range(0x16121, 0x16129), *range(0x16D68, 0x16D6B)],
    )
)


def _bounds(ranges: str) -> list[int]:
    """Return starts and ends of hexadecimal ranges: "5-6 9-9" -> [5, 7, 9, 10]."""
    pairs = (part.split("-") for part in ranges.split())
    return [bound for first, last in pairs for bound in (int(first, 16), int(last, 16) + 1)]


def _capitals(ranges: str) -> dict[str, str]:
    """Return the lower-case letter of each capital: "41-42+20" -> {"A": "a", "B": "b"}."""
    letters = {}
    for part in ranges.split():
        span, distance = part.split("+")
        first, end = _bounds(span)
        letters.update({chr(c): chr(c + int(distance, 16)) for c in range(first, end)})
    return letters


_LATER_BOUNDS = _bounds(_LATER)

_CJK_BOUNDS = _bounds(_CJK)

_CAPITALS = _capitals(_LATER_CAPITALS)


def _category(char: str) -> str:
    """Return the general category of `char` in Unicode 8, or Lo if it came later."""
    if char in _RECLASSED:
        return _RECLASSED[char]
    # An odd number of bounds at or below a code point: it lies inside a range.
    return "Lo" if bisect_right(_LATER_BOUNDS, ord(char)) % 2 else unicodedata.category(char)


def is_blank(char: str) -> bool:
    """Say whether `char` separates words."""
    return char in _BLANKS


def is_removed(char: str) -> bool:
    """Say whether `char` is dropped: control, format, private use, lone surrogate, U+FFFD."""
    if char in _BLANKS:
        return False
    return char == "\ufffd" or _category(char) in ("Cc", "Cf", "Co", "Cs")


def is_mark(char: str) -> bool:
    """Say whether `char` is an accent or another mark that takes no space of its own."""
    return _category(char) == "Mn"


def is_punctuation(char: str) -> bool:
    """Say whether `char` is a token by itself: Unicode punctuation and all ASCII symbols."""
    if char.isascii():
        return char.isprintable() and not char.isalnum() and char != " "
    return _category(char).startswith("P")


def is_cjk(char: str) -> bool:
    """Say whether `char` is a Chinese character; kana and Hangul are not."""
    return bisect_right(_CJK_BOUNDS, ord(char)) % 2 == 1


def lower(char: str) -> str:
    """Return `char` in lower case, without looking at its neighbours (no final sigma)."""
    return _CAPITALS.get(char) or char.lower()


# ------------------------------------------------------------------------------ tokens of a text


class _Kinds(dict[int, str]):
    """Map a code point to one letter for its kind; a table for `str.translate`."""

    def __missing__(self, code_point: int) -> str:
        kind = self[code_point] = self._kind(chr(code_point))
        return kind

    @staticmethod
    def _kind(char: str) -> str:
        if is_blank(char):
            return " "
        if is_removed(char):
            return "r"
        if is_cjk(char):
            return "c"
        if is_punctuation(char):
            return "p"
        # subtle: also the spacing vowel signs of Indic scripts, which `is_mark` leaves out.
        if unicodedata.category(char).startswith("M"):
            return "m"
        # str.isalpha is true for the letters of every script, and for nothing else.
        return "l" if char.isalpha() else "x"


_KINDS = _Kinds()

# subtle: ASCII letters stand for kinds here, so a character that is removed stays within its token.
_TOKEN = re.compile("[lmrx]+|c|p")

_ONLY_REMOVED = re.compile("r*")


def kinds_of(text: str) -> str:
    """Return one letter for each character: l letter, m mark, c Chinese, p punctuation, x other.

    r stands for a character that is removed, a blank for a blank.
    """
    return text.translate(_KINDS)


def token_spans(kinds: str) -> tuple[tuple[int, int], ...]:
    """Return (start, end) of what BERT's text normalisation splits a text into, from its kinds.

    >>> token_spans(kinds_of("It's 雨!"))
    ((0, 2), (2, 3), (3, 4), (5, 6), (6, 7))
    """
    return tuple(
        match.span()
        for match in _TOKEN.finditer(kinds)
        if not _ONLY_REMOVED.fullmatch(match.group())
    )
