"""Vocabularies and tokenizer settings as people have them: pytest tests/test_vocabulary.py"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import tiny_vocabulary

from transformer.files import UserError
from transformer.tokenization import BertTokenizer
from transformer.vocabulary import keeps_accents, parse_vocab


def directory_with(tmp_path: Path, extra: tuple[str, ...] = (), **settings: object) -> Path:
    """Write a checkpoint directory's tokenizer files."""
    entries = [*tiny_vocabulary(), *extra]
    (tmp_path / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tmp_path


SPECIAL = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


@pytest.mark.parametrize("ending", ["", "\n", "\n\n", "\r\n\r\n"])
def test_blank_lines_at_the_end_are_nothing(ending: str) -> None:
    assert list(parse_vocab((SPECIAL + "the" + ending).encode(), "v"))[-1] == "the"


def test_blanks_round_an_entry_are_cut() -> None:
    entries = SPECIAL.replace("\n", " \n") + "\tthe \n\u00a0\n \na\n"
    assert list(parse_vocab(entries.encode(), "v"))[4:] == ["[MASK]", "the", "\u00a0", " ", "a"]
    with pytest.raises(UserError, match="line 7: 'the' is already on line 6"):
        parse_vocab((SPECIAL + "the\nthe \n").encode(), "v")
    with pytest.raises(UserError, match="line 6: blank line"):
        parse_vocab((SPECIAL + "\nthe\n").encode(), "v")


@pytest.mark.parametrize("entry", ["が", "ガ", "한국", "हिन्दी", "น้ำ", "español", "##é", "việt"])
def test_accents_are_kept_where_entries_have_them(entry: str, tmp_path: Path) -> None:
    """Without settings, as in Google's format, the vocabulary decides."""
    tokenizer = BertTokenizer.from_pretrained(directory_with(tmp_path, (entry,)))
    if not entry.startswith("##"):
        assert tokenizer.tokenize(entry) == [entry]
    assert tokenizer.do_lower_case and tokenizer.settings["strip_accents"] is False


def test_accents_are_stripped_where_no_entry_has_one(tmp_path: Path) -> None:
    assert not keeps_accents(dict.fromkeys([*tiny_vocabulary(), "中", "ß", "か", "☃", "ı"], 0))
    plain = BertTokenizer.from_pretrained(directory_with(tmp_path))
    assert plain.tokenize("gó") == ["g", "##o"]
    stored = directory_with(tmp_path, ("é",), do_lower_case=True)  # what is stored wins
    assert BertTokenizer.from_pretrained(stored).settings["strip_accents"] is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"do_lower_case": "false"}, "do_lower_case is 'false'; .*true, false or null"),
        ({"strip_accents": 0}, "strip_accents is 0"),
        ({"model_max_length": "512"}, "model_max_length is '512'; .*a number"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer cuts words in"),
        ({"tokenizer_class": "RobertaTokenizerFast"}, "RobertaTokenizerFast cuts words in"),
    ],
)
def test_settings_that_cannot_be_followed(settings: dict, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        BertTokenizer.from_pretrained(directory_with(tmp_path, **settings))


def test_new_special_tokens_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    added = {"7": {"content": "<e1>"}, "0": {"content": "[PAD]"}}
    directory = directory_with(
        tmp_path, tokenizer_class="BertTokenizerFast", added_tokens_decoder=added
    )
    BertTokenizer.from_pretrained(directory)
    assert "special tokens <e1>;" in caplog.text
