"""Augmented sentences: entities stay, or are swapped for others of their type; tags go along.

bash tests/run.sh tests/augmentation/test_tagged.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

import data_augmentation
from transformer.files import UserError
from transformer.tasks.metrics import entities
from transformer.tasks.sentences import SentenceReader
from transformer.tasks.table import TASKS

NER = TASKS["ner"]
SENTENCES = """Ada NN B-PER
Byron NN I-PER
saw VB O
Rome NN B-LOC

Charles NN B-PER
built VB O
engines NN O

Paris NN B-LOC
fell VB O
"""
WORDS = {
    "saw": [1.0, 0.1],
    "built": [1.0, 0.2],
    "fell": [1.0, 0.3],
    "engines": [0.1, 1.0],
    "Ada": [1.0, 0.15],
    "Rome": [1.0, 0.25],
}


def augment(tmp_path: Path, content: str, name: str, *flags: str) -> list[tuple[list, list]]:
    """Return words and tags of the sentences of the augmented file."""
    (tmp_path / name).write_text(content)
    lines = [f"{word} {x} {y}\n" for word, (x, y) in WORDS.items()]
    (tmp_path / "glove.txt").write_text("".join(lines))
    data_augmentation.main(
        [
            *("--task_name", "ner", "--data_dir", str(tmp_path), "--glove_only", "--no_cuda"),
            *("--glove_embs", str(tmp_path / "glove.txt"), "--N", "4", "--M", "3", *flags),
        ]
    )
    output = tmp_path / f"train_aug{Path(name).suffix}"
    return [(sentence.words, sentence.tags) for sentence in SentenceReader(output, NER)]


def named(words: list[str], tags: list[str]) -> list[tuple[str, str]]:
    """Return type and words of the entities."""
    found = sorted(entities(tags), key=lambda entity: entity[1])
    return [(name, " ".join(words[first : last + 1])) for name, first, last in found]


def test_entities_and_tags_stay(tmp_path: Path) -> None:
    rows = augment(tmp_path, SENTENCES, "train.txt")
    assert len(rows) > 3
    first = [row for row in rows if row[0][0] == "Ada"]
    assert len(first) > 1
    assert all(row[1] == ["B-PER", "I-PER", "O", "B-LOC"] for row in first)
    assert all(named(*row) == [("PER", "Ada Byron"), ("LOC", "Rome")] for row in first)
    assert len({row[0][2] for row in first}) == len(first)
    lines = (tmp_path / "train_aug.txt").read_text().splitlines()
    assert lines[0] == "Ada _ B-PER"  # in as many columns as the file has


def test_json_stays_json_and_blanks_stay_in_words(tmp_path: Path) -> None:
    content = '{"tokens": ["New York", "saw"], "tags": ["B-LOC", "O"]}\n'
    rows = augment(tmp_path, content, "train.jsonl")
    assert len(rows) > 1
    assert {row[0][0] for row in rows} == {"New York"}


def test_swapped_entities_are_of_their_type(tmp_path: Path) -> None:
    rows = augment(tmp_path, SENTENCES, "train.txt", "--swap_entities", "1")
    seen = {entity for row in rows for entity in named(*row)}
    allowed = {("PER", "Ada Byron"), ("PER", "Charles"), ("LOC", "Rome"), ("LOC", "Paris")}
    assert seen == allowed
    first = [row for row in rows if row[1][-1] == "B-LOC"]
    assert {len(words) for words, _ in first} == {3, 4}
    assert all(len(words) == len(tags) for words, tags in rows)


def test_what_needs_plain_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--original_spacing: NER has labels"):
        augment(tmp_path, SENTENCES, "train.txt", "--original_spacing")
