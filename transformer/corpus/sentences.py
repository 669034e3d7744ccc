"""Split running text into sentences, by rules and without a model.

A sentence ends at a run of `.`, `!`, `?` or `…` (with any closing quotes, brackets and footnote
marks after it) that is followed by a blank and by something that can begin a sentence: no
lower-case letter. A single full stop is not an end
  - after words that are always followed by more: Mr. Dr. Prof. St. vs. e.g. i.e.
  - after words that stand before numbers, if one follows: No. 5, Fig. 2, vol. IV, pp. 3, Dec. 1.
  - after words that may also stand last (Inc. Ltd. Co. Jr. etc.), after initials (J. R. R.) and
    dotted abbreviations (U.S., a.m.), unless the next word is one that usually opens a sentence.
Decimal points, host names and file names hold no blank and are never cut. The full stops of
Chinese and Japanese (。！？｡) and the danda end a sentence with or without a blank; so do
the closing quotes and brackets after them.
"""

from __future__ import annotations

import re

_CLOSERS = r"(?:[\"'”’»›)\]}」』】》〉）］]|\[\d{1,3}\])*"

_OPENERS = r"[\"'“‘«‹(\[{「『【《〈（［¿¡—–-]*"

# subtle: the look-behinds make a run of stops start a match only once; without them a megabyte of
# full stops would take quadratic time.
_BOUNDARY = re.compile(
    rf"(?:(?<![。！？｡।॥])[。！？｡।॥]+{_CLOSERS}\s*)"
    rf"|(?P<stop>(?<![.!?…؟۔])[.!?…؟۔]+){_CLOSERS}\s+(?={_OPENERS}(?P<next>\w+|[^\s.!?…]))"
)

# Longest word that is looked at before a stop.
_WORD_WINDOW = 24


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ALWAYS_CONTINUED = _words("""
mr mrs ms messrs mme mlle dr prof rev hon st sts gen col maj capt cpt cmdr lt sgt cpl pvt adm gov
sen rep pres supt fr mt ft ed eds trans vs cf e.g i.e viz approx ca circa resp incl
""")

_BEFORE_NUMBERS = _words("""
no nos nr vol vols pp fig figs eq eqs sec ch art op jan feb mar apr jun jul aug sep sept oct nov dec
""")

_SOMETIMES_LAST = _words("""
al inc ltd co corp bros llc plc jr sr esq etc dept univ assn ave
""")

_OPENING_WORDS = _words("""
the a an this that these those there here it its he she they we you i his her their our my in
on at by for from with as after before when while where if although though however but and so
since during under over through both each all some many most one two another other several no
not what who how why then thus today later also according despite because until among
""")

_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")

_NUMBER = re.compile(r"\d.*|[IVXLC]+")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of `text`, stripped, without empty ones; see the module for the rule.

    >>> split_sentences('Dr. Who paid 3.50 dollars. "Really?" He did.')
    ['Dr. Who paid 3.50 dollars.', '"Really?"', 'He did.']
    """
    sentences = []
    begin = 0
    for match in _BOUNDARY.finditer(text):
        if match["stop"] and not _ends_sentence(text, match):
            continue
        sentences.append(text[begin : match.end()].strip())
        begin = match.end()
    sentences.append(text[begin:].strip())
    return [sentence for sentence in sentences if sentence]


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    """Say whether a stop that is followed by a blank ends its sentence."""
    following = match["next"]
    if following[0].islower():
        return False
    if match["stop"] != ".":
        return True
    before = text[max(match.start() - _WORD_WINDOW, 0) : match.start()]
    # The word before the stop, without what opens it: ("(see Fig" -> "Fig").
    word = re.split(r"[\s\"'“‘«(\[{—–/-]", before)[-1]
    key = word.lower()
    if key in _ALWAYS_CONTINUED:
        return False
    if key in _BEFORE_NUMBERS:
        return not _NUMBER.fullmatch(following)
    if key in _SOMETIMES_LAST or _INITIALS.fullmatch(word):
        return following.lower() in _OPENING_WORDS
    return True
