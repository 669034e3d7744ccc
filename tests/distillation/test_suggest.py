"""What widths keep of a teacher, against NumPy; the command line that says so and writes a student.

Run: pytest tests/distillation/test_suggest.py
"""

from __future__ import annotations

import doctest
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from transformer.checkpoint.directory import Checkpoint
from transformer.configuration import BertConfig
from transformer.distillation import suggest
from transformer.distillation.closed_form import state_moments
from transformer.distillation.start import plan_start, text_lines
from transformer.distillation.suggest import depths_of, layer_list, shares_of, student_config
from transformer.modeling import TinyBertForPreTraining
from transformer.runtime.script import run_script


def test_the_examples_of_the_docstrings() -> None:
    assert doctest.testmod(suggest) == (0, 3)


@pytest.fixture
def text_file(corpus_file: Path) -> Path:
    """Make the corpus long enough to look at."""
    corpus_file.write_text(corpus_file.read_text() * 2)
    return corpus_file


@pytest.fixture
def teacher(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("teacher", TinyBertForPreTraining)


def test_shares_are_those_of_the_projected_states(teacher: Path, text_file: Path) -> None:
    checkpoint = Checkpoint(teacher)
    model, _ = checkpoint.load(TinyBertForPreTraining)
    batches = text_lines(text_file, 1000, 20, checkpoint.tokenizer)
    kept = shares_of(state_moments(model.eval().bert, batches, range(5)), (8, 20, 32, 64))
    with torch.no_grad():
        outputs = [model(b.input_ids, b.token_type_ids, b.attention_mask) for b in batches]
    rows, joint = {}, 0
    for g in range(5):
        pairs = zip(outputs, batches, strict=True)
        states = [o.hidden_states[g][b.attention_mask].double().numpy() for o, b in pairs]
        rows[g] = np.concatenate(states)
        joint = joint + np.cov(rows[g].T) / np.trace(np.cov(rows[g].T))
    vectors = np.linalg.svd(joint)[0]  # falling
    for width, rank in ((8, 7), (20, 19), (32, 31), (64, 32)):
        for g, states in rows.items():
            projected = states @ vectors[:, :rank]
            share = projected.var(0).sum() / states.var(0).sum()
            assert kept[width][g] == pytest.approx(share, abs=1e-5), (width, g)
    assert kept[8][4] < 0.9  # a width that loses something


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["suggest.py", *map(str, arguments)])
    return run_script(suggest.main)


def test_a_student_is_suggested_and_written(
    teacher: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    text = ["--init_text", text_file, "--init_tokens", 1000, "--max_seq_length", 20]
    sizes = ["--hidden_size", 20, "--num_hidden_layers", 3]
    place = tmp_path / "new" / "student"
    assert run(monkeypatch, teacher, *text, *sizes, "--output_dir", place) == 0
    printed = capsys.readouterr().out
    config = Checkpoint(teacher).config
    assert [line.split()[0] for line in printed.splitlines() if line.lstrip()[:1].isdigit()] == [
        *("4", "8", "12", "16", "20", "24", "32")
    ]
    assert "WARNING" not in printed and "--init_from_teacher 2,3,4 " in printed
    student = Checkpoint(place).config
    assert (student.hidden_size, student.num_hidden_layers) == (20, 3)
    assert student.intermediate_size == round(37 * 20 / 32)
    assert plan_start("2,3,4", student, config) == ((1, 2), (2, 3), (3, 4))
    # What is written is not written over.
    assert run(monkeypatch, teacher, *text, "--output_dir", place) == 2
    assert "is not an empty directory" in capsys.readouterr().err


def test_little_text_is_told(
    make_checkpoint: Callable[..., Path],
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    wide = make_checkpoint("wide", TinyBertForPreTraining, hidden_size=128, num_hidden_layers=1)
    assert run(monkeypatch, wide, "--init_text", text_file, "--init_tokens", 1000) == 2
    assert "at most so many" in capsys.readouterr().err
    flags = ["--init_tokens", 1000, "--max_seq_length", 64]
    assert run(monkeypatch, wide, "--init_text", text_file, *flags) == 0
    assert "WARNING: text of fewer than about 1,280 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--init_text", "nowhere.txt"], "--init_text nowhere.txt: no such file"),
        (["--init_tokens", 10], "--init_tokens 10: give 1000 or more"),
        (["--hidden_size", 30], "a multiple of the teacher's 4 heads, such as 28 or 32"),
        (["--hidden_size", 0], "a multiple of the teacher's 4 heads, such as 4 or 8"),
        (["--num_hidden_layers", 0], "--num_hidden_layers 0: give 1 or more"),
        (["--max_seq_length", 2], "--max_seq_length 2: give 3 or more"),
        (["--init_tokens", 10**6], None),  # the whole text
    ],
)
def test_mistakes_are_told_in_one_line(
    flags: list[object],
    told: str | None,
    teacher: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    text = ["--init_text", text_file, "--max_seq_length", 64]
    code = run(monkeypatch, teacher, *text, *flags)
    lines = capsys.readouterr().err.splitlines()
    if told is None:
        assert code == 0
    else:
        assert code == 2 and len(lines) == 1 and told in lines[0], lines


def test_a_short_text_and_no_model_are_told(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("a film\n")
    assert run(monkeypatch, teacher, "--init_text", text, "--max_seq_length", 64) == 2
    assert "holds 4 tokens; 1000 or more are needed" in capsys.readouterr().err
    assert run(monkeypatch, tmp_path / "none", "--init_text", text) == 2


@pytest.mark.parametrize("layers", range(1, 9))
def test_any_depth_has_a_mapping(layers: int) -> None:
    teacher = BertConfig(num_hidden_layers=4, hidden_size=24, num_attention_heads=4)
    student = student_config(teacher, 12, layers)
    pairs = plan_start(layer_list(layers, 4), student, teacher)
    assert [m for m, _ in pairs] == list(range(1, layers + 1)) and pairs[-1][1] == 4
    assert all(4 % depth == 0 for depth in depths_of(teacher))
