"""What is made of corpora as people have them: tags, JSON, compression, odd blanks.

Run: pytest tests/corpus/test_corpus_door.py
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections import Counter
from pathlib import Path

import pytest

from transformer.corpus.blocks import Corpus, find_corpus_files
from transformer.corpus.tokens import BlockTokenizer
from transformer.files import UserError
from transformer.tokenization import BertTokenizer

TAGGED = (
    '<doc id="1" url="u" title="Cats">\nCats\n\nthe good cat .\n\nit is old .\n</doc>\n'
    '<doc id="2" url="u" title="Dogs">\nDogs\n\na new dog .\n</doc>\n'
)


def sentences_of(path: Path, vocab_file: Path, errors: str = "strict") -> tuple[list[bool], dict]:
    """Return for each sentence whether it begins a document, and what was counted."""
    tokenize = BlockTokenizer(BertTokenizer(vocab_file), (60, 60), errors=errors)
    begins: list[bool] = []
    counts: Counter[str] = Counter()
    for block in Corpus(tuple(find_corpus_files([str(path)]))).blocks():
        tokens = tokenize(block)
        begins += tokens.begins_document.tolist()
        counts.update(tokens.counts)
    return begins, counts


def test_tags_part_documents_and_are_not_read(tmp_path: Path, vocab_file: Path) -> None:
    (tmp_path / "wiki").write_text(TAGGED, encoding="utf-8")
    begins, counts = sentences_of(tmp_path / "wiki", vocab_file)
    assert begins == [True, False, False, True, False]
    assert counts["WikiExtractor tags"] == 4
    assert Corpus((str(tmp_path / "wiki"),)).survey("strict").has_two_documents
    (tmp_path / "wiki").write_text(TAGGED.partition("</doc>")[0], encoding="utf-8")
    assert not Corpus((str(tmp_path / "wiki"),)).survey("strict").has_two_documents


@pytest.mark.parametrize("blank", ["\u3000", "\u2028", " \t", "\u00a0"])
def test_one_rule_for_blank_lines(blank: str, tmp_path: Path, vocab_file: Path) -> None:
    (tmp_path / "c").write_text(f"good film .\n{blank}\nbad film .\n", encoding="utf-8")
    assert sentences_of(tmp_path / "c", vocab_file)[0] == [True, True]
    assert Corpus((str(tmp_path / "c"),)).survey("strict").has_two_documents


def test_gzip_is_known_by_its_bytes(tmp_path: Path, vocab_file: Path) -> None:
    for name in ("a.gz", "a.GZ", "plain"):
        (tmp_path / name).write_bytes(gzip.compress(b"good film .\n\nbad film .\n"))
        assert sentences_of(tmp_path / name, vocab_file)[0] == [True, True]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (bz2.compress(b"good film .\n"), "is compressed by bzip2; unpack it"),
        (lzma.compress(b"good film .\n"), "is compressed by xz; unpack it"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"PAR1", "is a parquet file"),
        (b'[{"text": "a"}]', "is a JSON array"),
        (b'[\n{"text": "a"}\n]', "is a JSON array"),
        (b'{"id": 1, "content": "a"}\n', "line 1: no JSON object.*its keys are 'id', 'content'"),
        (b'{"text": ["a"]}\n', "line 1: .*its text is a list"),
        (b'{"text": "a"}\n"b"\n', "line 2: .*a str"),
    ],
)
def test_what_is_no_corpus_is_named(
    content: bytes, told: str, tmp_path: Path, vocab_file: Path
) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(UserError, match=told):
        sentences_of(tmp_path / "c", vocab_file)


def test_null_is_no_text_and_half_a_character_is_no_fault(tmp_path: Path, vocab_file: Path) -> None:
    lines = [json.dumps({"text": text}) for text in (None, "good \ud83d film .", "bad .")]
    (tmp_path / "c").write_text("\n".join(lines), encoding="utf-8")
    begins, counts = sentences_of(tmp_path / "c", vocab_file)
    assert begins == [True, True] and counts["JSON lines without text"] == 1


def test_text_that_begins_with_a_bracket_is_text(tmp_path: Path, vocab_file: Path) -> None:
    (tmp_path / "c").write_text("[1] good film .\n{x} bad film .\n", encoding="utf-8")
    assert sentences_of(tmp_path / "c", vocab_file)[0] == [True, False]
