"""Many texts to ids in one array: the same with the optional package as without it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from transformer.corpus import flat_tokens
from transformer.corpus.flat_tokens import encode_flat
from transformer.tokenization import BertTokenizer

TEXTS = ["the [SEP] film", "", "Thé\u00a0stòry, 雨!", "a" * 120, "\x00\u200b", "it's 3.5"]
CORPUS = Path(__file__).resolve().parents[3] / "shared/data/corpus/zh_news.2mb.txt"


class Compiled:
    """What nanotoken's tokenizer does, by ours; it may be wrong from some text on."""

    def __init__(self, tokenizer: BertTokenizer, wrong_from: int):
        self.tokenizer, self.wrong_from, self.calls = tokenizer, wrong_from, 0

    def encode_batch(self, texts: list[str], **options: object) -> SimpleNamespace:
        self.calls += 1
        rows = self.tokenizer.encode_batch(texts)
        rows = [[7] * len(row) if n >= self.wrong_from else row for n, row in enumerate(rows)]
        ids = np.array([each for row in rows for each in row], np.uint32)
        return SimpleNamespace(ids=ids, lengths=np.array([len(row) for row in rows]))


def install(monkeypatch: pytest.MonkeyPatch, compiled: Compiled | None) -> None:
    """Make the package what `compiled` says; None: it is not installed."""
    module = None
    if compiled is not None:
        module = ModuleType("nanotoken")
        module.Tokenizer = SimpleNamespace(from_json=lambda content: compiled)
    monkeypatch.setitem(sys.modules, "nanotoken", module)
    monkeypatch.setattr(flat_tokens, "_distrusted", set())
    flat_tokens._compiled.cache_clear()


@pytest.mark.parametrize("wrong_from", [None, 0, 99])
def test_ids_are_those_of_the_tokenizer(
    wrong_from: int | None, vocab_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = BertTokenizer(vocab_file, True)
    compiled = None if wrong_from is None else Compiled(tokenizer, wrong_from)
    install(monkeypatch, compiled)
    for _ in range(2):
        ids, lengths = encode_flat(tokenizer, TEXTS)
        assert ids.tolist() == [each for text in TEXTS for each in tokenizer.encode(text)]
        assert lengths.tolist() == [len(tokenizer.encode(text)) for text in TEXTS]
    if compiled is not None:
        assert compiled.calls == (1 if wrong_from == 0 else 2), "once distrusted, asked no more"


@pytest.mark.parametrize("lower", [True, False])
def test_the_real_package_gives_the_same_ids(lower: bool, vocab_file: Path) -> None:
    pytest.importorskip("nanotoken")
    flat_tokens._compiled.cache_clear()
    tokenizer = BertTokenizer(vocab_file, lower)
    texts = list(TEXTS)
    if CORPUS.is_file():
        texts += CORPUS.read_text(encoding="utf-8").splitlines()[:2000]
    ids, _ = encode_flat(tokenizer, texts)
    assert ids.tolist() == [each for row in tokenizer.encode_batch(texts) for each in row]
    assert not flat_tokens._distrusted
