"""Pairs, masks and lines of JSON made from a token store."""

import json
import random
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest

from transformer.corpus.instances import (
    Instance,
    InstanceSampler,
    InstanceSettings,
    TokenTable,
    format_line,
    truncation,
)
from transformer.corpus.token_store import StoreState, TokenStore, TokenStoreWriter
from transformer.corpus.tokens import TokenBlock

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "<S>"]
CLS, SEP, MASK = 2, 3, 4
FIRST_WORD = len(SPECIAL)


def make_vocab(words: int) -> dict[str, int]:
    """Make a vocabulary in which every third entry continues a word."""
    tokens = SPECIAL + [f"##c{n}" if n % 3 == 2 else f"w{n}" for n in range(words)]
    return {token: index for index, token in enumerate(tokens)}


class IdInstance(NamedTuple):
    """An instance with ids for tokens, which are easier to reckon with."""

    ids: list[int]
    first_length: int
    is_random_next: bool
    masked_positions: list[int]
    masked_labels: list[int]


def with_ids(instance, vocab):
    ids = [vocab[json.loads(token)] for token in instance.tokens]
    labels = [vocab[json.loads(token)] for token in instance.masked_labels]
    return IdInstance(
        ids, instance.first_length, instance.is_random_next, instance.masked_positions, labels
    )


def make_store(directory, documents):
    """Write documents, lists of sentences, lists of ids, to a store."""
    sentences = [sentence for document in documents for sentence in document]
    begins = [number == 0 for document in documents for number in range(len(document))]
    writer = TokenStoreWriter(directory, np.uint16, StoreState(), part_tokens=200)
    ids = np.array([index for sentence in sentences for index in sentence], np.uint16)
    lengths = np.array([len(sentence) for sentence in sentences])
    writer.append(TokenBlock(ids, lengths, np.array(begins), True, Counter()))
    writer.finish()
    writer.close()
    return TokenStore.from_state(directory, np.uint16, writer.state)


def numbered_documents(lengths_of_sentences):
    """Give every token of the corpus an id of its own, so that its origin can be seen."""
    number = FIRST_WORD
    documents = []
    for lengths in lengths_of_sentences:
        documents.append([])
        for length in lengths:
            documents[-1].append(list(range(number, number + length)))
            number += length
    return documents, number


@pytest.fixture
def corpus():
    rng = random.Random(5)
    return numbered_documents(
        [[rng.randint(1, 15) for _ in range(rng.randint(1, 30))] for _ in range(25)]
    )


def sample(directory, corpus, epoch=0, **settings):
    documents, size = corpus
    store = make_store(directory, documents)
    vocab = make_vocab(size - FIRST_WORD)
    sampler = InstanceSampler(store, TokenTable(vocab), InstanceSettings(**settings))
    parts = range(len(store.part_starts) - 1)
    return [with_ids(instance, vocab) for part in parts for instance in sampler.part(epoch, part)]


def segments(instance):
    first = instance.ids[1 : instance.first_length - 1]
    return first, instance.ids[instance.first_length : -1]


def document_of(documents):
    return {
        index: number
        for number, document in enumerate(documents)
        for sentence in document
        for index in sentence
    }


# Pairs


@pytest.mark.parametrize("max_seq_len", [12, 32, 128])
def test_pairs_have_the_form_of_bert(tmp_path, corpus, max_seq_len):
    origin = document_of(corpus[0])
    instances = sample(tmp_path, corpus, max_seq_len=max_seq_len)
    assert 0.3 < np.mean([instance.is_random_next for instance in instances]) < 0.9
    for instance in instances:
        assert len(instance.ids) <= max_seq_len
        assert [index for index in instance.ids if index < FIRST_WORD] == [CLS, SEP, SEP]
        assert instance.ids[0] == CLS
        assert instance.ids[instance.first_length - 1] == instance.ids[-1] == SEP
        first, second = segments(instance)
        assert first
        assert second
        for segment in (first, second):
            # Running text of one document.
            assert segment == list(range(segment[0], segment[0] + len(segment)))
            assert len({origin[index] for index in segment}) == 1
        assert (origin[first[0]] != origin[second[0]]) == instance.is_random_next


def test_text_behind_a_random_next_is_put_back(tmp_path, corpus):
    # With room to spare nothing is truncated, so all text must be there, in order, once.
    documents, _ = corpus
    used = []
    for instance in sample(tmp_path, corpus, max_seq_len=2000, short_seq_prob=0.0):
        first, second = segments(instance)
        used += first if instance.is_random_next else first + second
    assert used == [index for document in documents for sentence in document for index in sentence]


def test_random_next_is_weighted_by_the_number_of_sentences(tmp_path):
    corpus = numbered_documents([[2] * count for count in (1, 200, 2, 40, 20, 100)])
    origin = document_of(corpus[0])
    drawn = Counter()
    for epoch in range(60):
        for instance in sample(tmp_path / str(epoch), corpus, epoch, max_seq_len=9):
            if instance.is_random_next:
                drawn[origin[segments(instance)[0][0]], origin[segments(instance)[1][0]]] += 1
    total = sum(count for (source, _), count in drawn.items() if source == 1)
    # From document 1: 2 sentences of 163 others are those of document 2, and so on.
    for target, sentences in {0: 1, 2: 2, 3: 40, 4: 20, 5: 100}.items():
        expected = sentences / 163
        tolerance = 5 * (expected * (1 - expected) / total) ** 0.5
        assert abs(drawn[1, target] / total - expected) < tolerance
    assert not any(source == target for source, target in drawn)


def test_short_sequences_have_their_share(tmp_path):
    corpus = numbered_documents([[1] * 60 for _ in range(400)])
    instances = sample(tmp_path, corpus, max_seq_len=23, short_seq_prob=0.25)
    origin = document_of(corpus[0])
    longest = Counter()
    for instance in instances:
        source = origin[segments(instance)[0][0]]
        longest[source] = max(longest[source], len(instance.ids))
    # A target is drawn for each document; 1 of 19 short targets is the full length again.
    share = sum(length < 23 for length in longest.values()) / 400
    assert abs(share - 0.25 * 18 / 19) < 0.09


@pytest.mark.parametrize("limit", [2, 5, 8, 13])
def test_truncation_equals_dropping_one_by_one(limit):
    for first in range(1, 15):
        for second in range(1, 15):
            left = [first, second]
            while sum(left) > limit:
                left[0 if left[0] > left[1] else 1] -= 1
            drops = truncation(first, second, limit)
            assert (first - drops[0], second - drops[1]) == tuple(left)


def test_truncation_takes_from_both_ends(tmp_path):
    corpus = numbered_documents([[40, 40] for _ in range(300)])
    fronts = [
        (segments(instance)[0][0] - FIRST_WORD) % 80
        for instance in sample(tmp_path, corpus, max_seq_len=23, short_seq_prob=0.0)
    ]
    # 30 of 40 tokens go, 15 of them from the front on average.
    assert 14 < np.mean([front % 40 for front in fronts]) < 16
    assert len({front % 40 for front in fronts}) > 5


# Single sequences


def test_single_sequences_hold_all_text_once(tmp_path, corpus):
    documents, _ = corpus
    instances = sample(tmp_path, corpus, max_seq_len=24, one_seq=True)
    text = []
    for instance in instances:
        assert len(instance.ids) <= 24
        assert instance.first_length == len(instance.ids)
        assert not instance.is_random_next
        assert [index for index in instance.ids if index < FIRST_WORD] == [CLS, SEP]
        text += instance.ids[1:-1]
    assert text == [index for document in documents for sentence in document for index in sentence]


@pytest.mark.parametrize("max_seq_len", [8, 9, 128])
@pytest.mark.parametrize("one_seq", [True, False])
def test_pieces_of_long_lines_fill_sequences(tmp_path, max_seq_len, one_seq):
    settings = InstanceSettings(max_seq_len=max_seq_len, one_seq=one_seq)
    assert sum(settings.piece_lengths) == settings.max_tokens
    pieces = list(settings.piece_lengths) * 20
    corpus = numbered_documents([pieces] * 4)
    instances = sample(
        tmp_path, corpus, max_seq_len=max_seq_len, one_seq=one_seq, short_seq_prob=0.0
    )
    used = set()
    for instance in instances:
        first, second = segments(instance)
        used.update(first if instance.is_random_next else first + second)
    assert used >= set(range(FIRST_WORD, corpus[1]))


# Randomness


def test_documents_do_not_depend_on_each_others_draws(tmp_path, corpus):
    documents, size = corpus
    table = TokenTable(make_vocab(size - FIRST_WORD))
    store = make_store(tmp_path, documents)
    sampler = InstanceSampler(store, table, InstanceSettings(masked_lm_prob=0.2))
    parts = range(len(store.part_starts) - 1)
    assert len(parts) > 3
    forward = [list(sampler.part(1, part)) for part in parts]
    backward = [list(sampler.part(1, part)) for part in reversed(parts)]
    assert forward == backward[::-1]
    assert forward != [list(sampler.part(2, part)) for part in parts]


# Masks


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("one_seq", [False, True])
def test_masks_can_be_undone(tmp_path, corpus, whole_words, one_seq):
    settings = {"max_seq_len": 40, "one_seq": one_seq, "whole_word_mask": whole_words}
    ordinary = set(range(FIRST_WORD, corpus[1]))
    kinds = Counter()
    masked = sample(tmp_path, corpus, masked_lm_prob=0.2, max_predictions_per_seq=6, **settings)
    for instance in masked:
        positions = instance.masked_positions
        assert positions == sorted(set(positions))
        assert len(positions) == len(instance.masked_labels) <= 6
        wanted = min(6, max(1, round(len(instance.ids) * 0.2)))
        assert len(positions) <= wanted if whole_words else len(positions) == wanted
        restored = list(instance.ids)
        for position, label in zip(positions, instance.masked_labels, strict=True):
            shown = instance.ids[position]
            kind = "kept" if shown == label else "random"
            kinds["mask" if shown == MASK else kind] += 1
            assert shown == MASK or shown in ordinary
            restored[position] = label
        assert restored[0] == CLS
        assert restored[instance.first_length - 1] == restored[-1] == SEP
        for segment in segments(instance._replace(ids=restored)):
            assert segment == [segment[0] + step for step in range(len(segment))]
    total = sum(kinds.values())
    assert abs(kinds["mask"] / total - 0.8) < 0.06
    assert abs(kinds["random"] / total - 0.1) < 0.05
    assert abs(kinds["kept"] / total - 0.1) < 0.05


def test_whole_words_are_masked_together(tmp_path, corpus):
    vocab = make_vocab(corpus[1] - FIRST_WORD)
    continues = {index for token, index in vocab.items() if token.startswith("##")}
    words_of_two = 0
    instances = sample(tmp_path, corpus, max_seq_len=40, masked_lm_prob=0.3, whole_word_mask=True)
    for instance in instances:
        masked = set(instance.masked_positions)
        true_ids = list(instance.ids)
        for position, label in zip(instance.masked_positions, instance.masked_labels, strict=True):
            true_ids[position] = label
        edges = (1, instance.first_length)  # a word may be cut there
        for position, index in enumerate(true_ids):
            if index in continues and position not in edges:
                assert (position in masked) == (position - 1 in masked)
                words_of_two += position in masked
    assert words_of_two > 50


def test_probability_zero_masks_nothing(tmp_path, corpus):
    for instance in sample(tmp_path, corpus, masked_lm_prob=0.0):
        assert instance.masked_positions == instance.masked_labels == []
        assert MASK not in instance.ids


def test_replacements_are_ordinary_tokens():
    vocab = make_vocab(30)
    words = {json.dumps(token).encode() for token in list(vocab)[FIRST_WORD:]}
    assert set(TokenTable(vocab).ordinary) == words
    brackets = TokenTable({**vocab, "[": 90, "]": 91, "<": 92, "[]": 93})
    assert set(brackets.ordinary) - words == {b'"["', b'"]"', b'"<"', b'"[]"'}


# Lines


def test_lines_are_json_with_the_published_keys():
    tokens = ["[CLS]", "[SEP]", "[MASK]", 'quo"te', "back\\slash", "数", "é", "\u2028", "😀", "/"]
    vocab = {token: index for index, token in enumerate(tokens)}
    table = TokenTable(vocab)
    pair_ids = [0, 3, 4, 1, 5, 6, 7, 8, 2, 1]
    pair = Instance(table.tokens(np.array(pair_ids)), 4, True, [1, 8], [b'"quo\\"te"', b'"/"'])
    single = Instance(table.tokens(np.array([0, 5, 1])), 3, False, [], [])
    line = format_line(pair)
    assert line.isascii()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "tokens": [tokens[index] for index in pair_ids],
        "segment_ids": [0] * 4 + [1] * 6,
        "is_random_next": True,
        "masked_lm_positions": [1, 8],
        "masked_lm_labels": ['quo"te', "/"],
    }
    assert json.loads(format_line(single)) == {
        "tokens": ["[CLS]", "数", "[SEP]"],
        "segment_ids": [0, 0, 0],
        "is_random_next": False,
        "masked_lm_positions": [],
        "masked_lm_labels": [],
    }
