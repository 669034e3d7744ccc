"""New rows without a model: pytest tests/augmentation/test_recombine.py"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import data_augmentation
from transformer.augmentation.recombine import recombine
from transformer.augmentation.words import find_words


def rows_of(*rows: tuple[str, ...]) -> list[list]:
    return [[find_words(text) for text in row] for row in rows]


def test_pairs_are_swapped_and_recombined() -> None:
    rows = rows_of(("a b", "c"), ("d", "e f"), ("g", "h"))
    for seed in range(20):
        made = recombine(0, rows, 3, random.Random(seed))
        assert made[0] == ("c", "a b")
        assert set(made[1:]) <= {("a b", "e f"), ("a b", "h")} and len(made) == len(set(made))
    assert recombine(0, rows_of(("a", "a")), 2, random.Random(1)) == []  # nothing new to be had


def test_single_texts_lose_words_move_them_and_are_joined() -> None:
    text, other = "One good film, and long.", "The river was big"
    rows = rows_of((text,), (other,))
    tokens = ["One", "good", "film", ",", "and", "long", "."]
    for seed in range(50):
        dropped, swapped, joined = (new for (new,) in recombine(0, rows, 3, random.Random(seed)))
        remaining = [text[a:b] for text in [dropped] for a, b in find_words(dropped).spans]
        assert len(remaining) < len(tokens)
        rest = iter(tokens)
        assert all(token in rest for token in remaining)  # in their order
        assert swapped != text
        assert sorted(swapped[a:b] for a, b in find_words(swapped).spans) == sorted(tokens)
        assert any(joined.endswith(other[start:]) for start, _ in find_words(other).spans)
        assert any(joined.startswith(text[:end]) for _, end in find_words(text).spans)


def test_chinese_needs_no_blanks() -> None:
    for seed in range(20):
        for (new,) in recombine(0, rows_of(("天气很好",), ("我在看书",)), 3, random.Random(seed)):
            assert " " not in new and new


@pytest.mark.parametrize("share", [0.5, 2])
def test_alone_it_needs_no_model(share: float, tmp_path: Path, capsys) -> None:
    rows = [f"id{n}\tfirst {n}\tsecond {n}\tentailment\n" for n in range(600)]
    (tmp_path / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + "".join(rows))
    flags = ["--data_dir", tmp_path, "--task_name", "RTE", "--recombine", share, "--no_cuda"]
    data_augmentation.main([*map(str, flags)])
    lines = (tmp_path / "train_aug.tsv").read_text().splitlines(keepends=True)
    assert [line for line in lines if line in rows] == rows
    new = [line.split("\t") for line in lines[1:] if line not in rows]
    assert abs(len(new) - share * 600) < 60  # six deviations of 600 draws with p = 0.5
    if share == 2:
        swapped = [cells for cells in new if cells[1].startswith("second")]
        assert len(swapped) == 600 and len(new) == 1200
        recombined = [cells for cells in new if cells[1].startswith("first")]
        assert all(cells[1].split()[1] != cells[2].split()[1] for cells in recombined)
    assert "recombined" in capsys.readouterr().out
    first = (tmp_path / "train_aug.tsv").read_bytes()
    data_augmentation.main([*map(str, flags), "--overwrite_output"])
    assert (tmp_path / "train_aug.tsv").read_bytes() == first
    data_augmentation.main([*map(str, flags), "--overwrite_output", "--seed", "7"])
    assert (tmp_path / "train_aug.tsv").read_bytes() != first
