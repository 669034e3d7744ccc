"""Masked words in batches against one forward pass a word. Run: pytest tests/test_masked_lm.py"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from transformer.augmentation.masked_lm import MaskedLM, mask_window
from transformer.modeling import BertForMaskedLM
from transformer.tokenization import BertTokenizer

# No token of the vocabulary that is none of these may be proposed.
PUNCTUATION = set(".,;:!?'\"-()")
TEXT = "the film was good and music made people great city river time team child"
WORDS = TEXT.split()


@pytest.fixture
def model_and_tokenizer(make_checkpoint) -> tuple[BertForMaskedLM, BertTokenizer]:
    path = make_checkpoint("mlm", BertForMaskedLM)
    return BertForMaskedLM.from_pretrained(path).eval(), BertTokenizer.from_pretrained(path)


def sentences(count: int, longest: int) -> list[list[str]]:
    rng = random.Random(8)
    return [rng.choices(WORDS, k=rng.randint(1, longest)) for _ in range(count)]


def plain_candidates(
    model: BertForMaskedLM,
    tokenizer: BertTokenizer,
    before: list[int],
    word: int,
    after: list[int],
    count: int,
    original_context: bool,
) -> list[str]:
    """One masked forward pass with all logits, a full sort, and the exclusions one by one."""
    ids = [tokenizer.cls_id, *before, tokenizer.mask_id, *after, tokenizer.sep_id]
    segments = [0] * len(ids)
    if original_context:
        second = [*before, word, *after, tokenizer.sep_id]
        ids, segments = ids + second, segments + [1] * len(second)
    with torch.no_grad():
        logits = model(torch.tensor([ids]), torch.tensor([segments])).logits[0, len(before) + 1]
    found = []
    for index in logits.argsort(descending=True).tolist():
        entry = tokenizer.ids_to_tokens[index]
        excluded = index == word or entry in PUNCTUATION or entry[:2] == "##" or entry[0] == "["
        if not excluded:
            found.append(entry)
    return found[:count]


@pytest.mark.parametrize("original_context", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_give_what_single_words_give(
    model_and_tokenizer, batch_size: int, original_context: bool
) -> None:
    model, tokenizer = model_and_tokenizer
    masked_lm = MaskedLM(
        *(model, tokenizer),
        candidates=6,
        original_context=original_context,
        max_seq_length=64,
        batch_size=batch_size,
    )
    texts = [tokenizer.encode(" ".join(words)) for words in sentences(9, 12)]
    places = [(text, place) for text in texts for place in range(len(text))]
    asked = [masked_lm.masked_word(np.array(text, np.int32), place) for text, place in places]
    answers = masked_lm.candidates(asked)
    for (text, place), word in zip(places, asked, strict=True):
        expected = plain_candidates(
            *(model, tokenizer, text[:place], text[place], text[place + 1 :], 6),
            original_context,
        )
        assert answers[word] == expected


def test_equal_questions_are_asked_once(model_and_tokenizer) -> None:
    model, tokenizer = model_and_tokenizer
    rows = []
    model.bert.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    masked_lm = MaskedLM(model, tokenizer, batch_size=4)
    pieces = np.array(tokenizer.encode("the film was good"), np.int32)
    asked = [masked_lm.masked_word(pieces, place) for place in (1, 3, 1, 3, 1)]
    assert len(masked_lm.candidates(asked)) == 2
    assert rows == [2]


@pytest.mark.parametrize(
    ("length", "position", "width", "window", "place"),
    [
        (5, 3, 3, [2, 3, 4], 1),
        (5, 4, 3, [2, 3, 4], 2),
        (5, 0, 3, [0, 1, 2], 0),
        (9, 4, 4, [2, 3, 4, 5], 2),
        (3, 1, 7, [0, 1, 2], 1),
        (3, 2, 3, [0, 1, 2], 2),
    ],
)
def test_windows(length: int, position: int, width: int, window: list[int], place: int) -> None:
    word = mask_window(np.arange(length, dtype=np.int32), position, width)
    assert np.frombuffer(word.pieces, np.int32).tolist() == window
    assert word.position == place


@pytest.mark.parametrize("original_context", [False, True])
def test_a_long_text_is_seen_through_a_window(model_and_tokenizer, original_context: bool) -> None:
    """Every word of a text longer than the model gets candidates, from the pieces around it."""
    model, tokenizer = model_and_tokenizer
    text = tokenizer.encode(" ".join(random.Random(2).choices(WORDS, k=200)))
    masked_lm = MaskedLM(
        model, tokenizer, candidates=5, original_context=original_context, max_seq_length=24
    )
    width = 10 if original_context else 22  # less [CLS] and one or two [SEP]
    pieces = np.array(text, np.int32)
    asked = [masked_lm.masked_word(pieces, place) for place in range(200)]
    answers = masked_lm.candidates(asked)
    for place in (0, 3, 100, 150, 199):
        start = min(max(place - width // 2, 0), 200 - width)
        expected = plain_candidates(
            *(model, tokenizer, text[start:place], text[place]),
            *(text[place + 1 : start + width], 5, original_context),
        )
        assert answers[asked[place]] == expected
    assert all(len(answers[word]) == 5 for word in asked)


@pytest.fixture
def chinese_model(tmp_path: Path, tiny_config) -> tuple[BertForMaskedLM, BertTokenizer]:
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "<S>", "，", "。"]
    entries += list("天气好雨雪山水火大小") + [
        "##天",
        "##气",
        "天气",
        "film",
        "good",
        "2008",
        "8年",
    ]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(entries), encoding="utf-8")
    torch.manual_seed(0)
    config = type(tiny_config)(**{**vars(tiny_config), "vocab_size": len(entries)})
    return BertForMaskedLM(config).eval(), BertTokenizer(path)


def test_a_chinese_character_becomes_another_and_a_word_a_word(chinese_model) -> None:
    model, tokenizer = chinese_model
    masked_lm = MaskedLM(model, tokenizer, candidates=15)
    pieces = np.array(tokenizer.encode("天气good。"), np.int32)
    asked = [masked_lm.masked_word(pieces, place) for place in range(3)]
    answers = masked_lm.candidates(asked)
    assert set(answers[asked[0]]) == set("气好雨雪山水火大小")
    assert set(answers[asked[1]]) == set("天好雨雪山水火大小")
    assert set(answers[asked[2]]) == {"film", "2008"}


def test_capitals_do_not_make_another_word(tmp_path: Path, tiny_config) -> None:
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "Film", "FILM", "movie"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(entries), encoding="utf-8")
    model = BertForMaskedLM(type(tiny_config)(**{**vars(tiny_config), "vocab_size": len(entries)}))
    tokenizer = BertTokenizer(path, do_lower_case=False)
    masked_lm = MaskedLM(model.eval(), tokenizer)
    word = masked_lm.masked_word(np.array(tokenizer.encode("Film"), np.int32), 0)
    assert masked_lm.candidates([word])[word] == ["movie"]
