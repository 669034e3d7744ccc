"""What a model costs, and the comparison of student and teacher."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from transformer.configuration import BertConfig
from transformer.files import UserError
from transformer.modeling import TinyBertForSequenceClassification
from transformer.tasks import benchmark as costs
from transformer.tasks.benchmark import (
    Effort,
    comparison,
    comparison_table,
    count_parameters,
    measure,
    sentence_flops,
    size_on_disk,
)

BERT_BASE = BertConfig()
TINYBERT4 = BertConfig(hidden_size=312, num_hidden_layers=4, intermediate_size=1200, fit_size=768)
QUICK = Effort(sentences=64, passes=2, seconds=0.0, warm_up_batches=1)


@pytest.fixture
def student(tiny_config) -> TinyBertForSequenceClassification:
    return TinyBertForSequenceClassification(replace(tiny_config, fit_size=48, id2label={0: "a"}))


def meta_model(config: BertConfig) -> TinyBertForSequenceClassification:
    with torch.device("meta"):
        return TinyBertForSequenceClassification(config)


# Costs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "parameters", "flops"),
    [(BERT_BASE, 109e6, 22.5e9), (TINYBERT4, 14.5e6, 1.2e9)],
)
def test_the_papers_figures(config, parameters, flops):
    """Table 1 of the paper; it rounds, and counts a little more than the matrix products."""
    assert count_parameters(meta_model(config))[0] == pytest.approx(parameters, rel=0.02)
    assert sentence_flops(config, 128) == pytest.approx(flops, rel=0.05)


def test_the_embedding_tables_are_left_out_of_the_second_count():
    total, core = count_parameters(meta_model(TINYBERT4))
    assert total - core == (30522 + 512 + 2) * 312


def test_the_projection_is_not_deployed(tiny_config):
    assert count_parameters(meta_model(replace(tiny_config, fit_size=48))) == count_parameters(
        meta_model(tiny_config)
    )


def test_the_formula_counts_what_torch_counts(tiny_config):
    from torch.utils.flop_counter import FlopCounterMode

    config = replace(tiny_config, id2label={0: "a", 1: "b", 2: "c"})
    model = TinyBertForSequenceClassification(config).eval()
    layers = range(1, config.num_hidden_layers + 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        # With scores asked for, attention is plain matrix products, which the counter knows.
        model(torch.ones(1, 23, dtype=torch.long), score_layers=layers)
    assert sentence_flops(config, 23) == counter.get_total_flops()


def test_size_on_disk_is_that_of_the_files(make_checkpoint, student):
    directory = make_checkpoint("task", TinyBertForSequenceClassification)
    assert size_on_disk(student, directory) == (directory / "model.safetensors").stat().st_size
    elements = sum(parameter.numel() for parameter in student.parameters())
    assert size_on_disk(student) == 4 * elements


def test_speeds_follow_from_the_times_of_batches(student, monkeypatch):
    """Time is staged: a batch takes 1 ms a token of its longest sentence; one warm-up lasts 9 s."""
    seen = []

    def timed(model, batch):
        seen.append(tuple(batch[0].shape))
        return 9.0 if len(seen) == 1 else batch[0].shape[1] / 1000

    monkeypatch.setattr(costs, "_timed", timed)
    lengths = [10] * 96 + [20] * 4
    figures = measure(student, lengths, name="student", effort=QUICK)
    one, many = figures.at_real_lengths.speeds
    assert (one.batch_size, many.batch_size) == (1, 32)
    assert one.sentences_per_second == pytest.approx(64 / (61 * 0.010 + 3 * 0.020))
    assert (one.p50_ms, one.p99_ms) == (pytest.approx(10), pytest.approx(20))
    assert many.sentences_per_second == pytest.approx(64 / (0.010 + 0.020))
    # The tiny model has 64 positions, fewer than the 128 tokens that are the rule.
    fixed = figures.at_fixed_length
    assert fixed.mean_length == 64
    assert fixed.speeds[0].sentences_per_second == pytest.approx(1 / 0.064)
    assert figures.weight_type == "float32"
    assert figures.at_real_lengths.mean_length == pytest.approx(10.4)
    expected = 0.96 * sentence_flops(student.config, 10) + 0.04 * sentence_flops(student.config, 20)
    assert figures.at_real_lengths.flops == pytest.approx(expected)
    assert {shape[0] for shape in seen} == {1, 32}


def test_the_sample_has_the_lengths_of_the_task():
    lengths = np.random.default_rng(0).permutation(np.arange(1, 1001)).tolist()
    sample = costs._sample(lengths, 64)
    assert sample.mean() == pytest.approx(np.mean(lengths), rel=0.01)
    assert np.quantile(sample, 0.9) == pytest.approx(np.quantile(lengths, 0.9), rel=0.02)
    assert costs._sample([7, 3], 4).tolist() == [3, 3, 7, 7]
    with pytest.raises(UserError, match="no sentence"):
        costs._sample([], 4)


def test_a_model_is_measured_in_eval_mode_and_left_as_it_was(student, monkeypatch):
    modes, contexts = [], []

    @contextmanager
    def autocast():
        contexts.append("in")
        yield

    monkeypatch.setattr(costs, "_timed", lambda model, batch: modes.append(model.training) or 0.1)
    student.train()
    measure(student, [5], name="student", autocast=autocast, effort=QUICK)
    assert not any(modes)
    assert contexts
    assert student.training


def test_a_real_measurement(student):
    figures = measure(student, [5, 9, 30], name="student", effort=QUICK)
    for part in (figures.at_fixed_length, figures.at_real_lengths):
        for speed in part.speeds:
            assert 0 < speed.p50_ms <= speed.p99_ms
            assert speed.sentences_per_second > 0


# Comparison --------------------------------------------------------------------------------------


@pytest.fixture
def figures(student, tiny_config, monkeypatch) -> tuple[costs.Figures, costs.Figures]:
    """Measure a student and a teacher of which every batch takes 1 ms and 10 ms."""
    teacher = TinyBertForSequenceClassification(
        replace(tiny_config, num_hidden_layers=12, id2label={0: "a"})
    )
    times = {id(student): 0.001, id(teacher): 0.010}
    monkeypatch.setattr(costs, "_timed", lambda model, batch: times[id(model)])
    return (
        measure(student, [5, 9], name="student", effort=QUICK),
        measure(teacher, [5, 9], name="teacher", effort=QUICK),
    )


def test_ratios_say_how_much_better_the_student_is(figures):
    result = json.loads(json.dumps(comparison(*figures)))
    ratios = result["ratios"]
    assert ratios["at_128/batch_1/sentences_per_second"] == pytest.approx(10)
    assert ratios["at_real_lengths/batch_32/p99_ms"] == pytest.approx(10)
    assert ratios["at_128/flops"] == pytest.approx(3, rel=0.01)
    assert ratios["parameters"] == figures[1].parameters / figures[0].parameters > 1
    assert result["student"]["at_real_lengths"]["speeds"][1]["batch_size"] == 32
    assert "teacher" not in comparison(figures[0])


def test_the_table_is_aligned(figures):
    lines = comparison_table(*figures).splitlines()
    table = lines[:-1]
    assert table[0].split() == ["student", "teacher", "student", "is"]
    assert len({len(line) for line in table[1:]}) == 1
    speed = next(line for line in table if "batch 1: sentences/s" in line)
    assert speed.split()[-4:] == ["1000.0", "100.0", "10.0x", "faster"]
    assert "x smaller" in table[1]
    alone = comparison_table(figures[0]).splitlines()
    assert len(alone) == len(lines)
    assert not any("faster" in line for line in alone)


def test_a_loss_is_called_one(figures):
    table = comparison_table(figures[1], figures[0])
    speed = next(line for line in table.splitlines() if "batch 1: sentences/s" in line)
    assert speed.split()[-4:] == ["100.0", "1000.0", "10.0x", "slower"]
    assert "x larger" in table
    assert "faster" not in table
