"""What a model costs, and the comparison of student and teacher."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from transformer.configuration import BertConfig
from transformer.costs import count_parameters, sentence_flops
from transformer.files import UserError
from transformer.modeling import TinyBertForSequenceClassification
from transformer.tasks import benchmark as costs
from transformer.tasks.benchmark import (
    Effort,
    Figures,
    LengthFigures,
    Speed,
    Turn,
    comparison,
    comparison_picture,
    comparison_table,
    measure,
    noise,
    save_picture,
    share_kept,
    size_on_disk,
    subject_of,
)

BERT_BASE = BertConfig()
TINYBERT4 = BertConfig(hidden_size=312, num_hidden_layers=4, intermediate_size=1200, fit_size=768)
QUICK = Effort(sentences=64, turns=2, seconds=0.0, turn_seconds=0.0, warm_up_batches=1)


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
    """Time is staged: a batch takes 1 ms a token of its longest sentence; the first one 9 s."""
    seen = []

    def timed(model, batch):
        seen.append(tuple(batch[0].shape))
        return 9.0 if len(seen) <= 2 else batch[0].shape[1] / 1000

    monkeypatch.setattr(costs, "_timed", timed)
    lengths = [10] * 96 + [20] * 4
    (figures,) = measure([subject_of("student", student)], lengths, effort=QUICK)
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


def test_models_take_turns_and_fast_ones_longer_turns(student, tiny_config, monkeypatch):
    slow = TinyBertForSequenceClassification(replace(tiny_config, id2label={0: "a"}))
    times, order = {id(student): 0.001, id(slow): 0.05}, []

    def timed(model, batch):
        order.append("slow" if model is slow else "fast")
        return times[id(model)]

    monkeypatch.setattr(costs, "_timed", timed)
    effort = Effort(sentences=4, turns=3, seconds=0.0, turn_seconds=0.2, warm_up_batches=4)
    subjects = [subject_of("teacher", slow), subject_of("student", student)]
    sample = np.array([5, 5, 5, 5])
    of_slow, of_fast = costs._speeds(subjects, sample, 1, effort)
    # Four batches of 50 ms fill a turn of 0.2 s, of 1 ms it takes fifty passes. Each turn begins
    # with one sentence that is not counted; so does the warm-up, which is one pass here.
    turns = (["slow"] * 5 + ["fast"] * 201) * 3
    assert order == ["slow"] * 5 + ["fast"] * 5 + turns
    assert of_slow.turns == (Turn(pytest.approx(20), pytest.approx(50), pytest.approx(50)),) * 3
    assert of_fast.sentences_per_second == pytest.approx(1000)


@pytest.mark.parametrize(
    ("slow_down", "turns"),
    [
        ([1.0], 5),  # known after the least number of turns
        # Both models are slower by half in every other turn: the ratio is known, the speed is not.
        # Each look at the staged clock takes a second, the first after five turns.
        ([1.0, 1.0, 1.5, 1.5], 5 + 19),
        # A slow turn at either end is outside the interval of eight turns, two are of eleven.
        ([1.5] * 2 + [1.0] * 100, 8),
        ([1.5] * 2 + [1.0] * 10 + [1.5] * 2 + [1.0] * 100, 11),
    ],
)
def test_turns_end_when_the_medians_are_known(student, tiny_config, monkeypatch, slow_down, turns):
    other = TinyBertForSequenceClassification(replace(tiny_config, id2label={0: "a"}))
    clock = iter(range(1000))
    passes = iter(2 * [1.0] + 500 * slow_down)  # the warm-up of both, then turn by turn
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(costs, "_take_turn", lambda *turn, **options: [0.01 * next(passes)])
    effort = Effort(turns=5, seconds=10.0, precision=0.03)
    subjects = [subject_of("teacher", other), subject_of("student", student)]
    (speed, _) = costs._speeds(subjects, np.array([5]), 1, effort)
    assert len(speed.turns) == turns


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
    measure([subject_of("student", student, autocast=autocast)], [5], effort=QUICK)
    assert not any(modes)
    assert contexts
    assert student.training


def test_a_real_measurement(student):
    (figures,) = measure([subject_of("student", student)], [5, 9, 30], effort=QUICK)
    for part in (figures.at_fixed_length, figures.at_real_lengths):
        for speed in part.speeds:
            assert 0 < speed.p50_ms <= speed.p99_ms
            assert speed.sentences_per_second > 0


# Comparison --------------------------------------------------------------------------------------


def figures_of(
    name: str, rates: list[float], *, size: int = 4_000_000, p99: float = 1.1, score=None, **changes
) -> Figures:
    """Make figures of a model that answered so many sentences a second, turn by turn."""
    turns = tuple(Turn(rate, 1000 / rate, 1000 * p99 / rate) for rate in rates)
    rate = float(np.median(rates))
    speeds = tuple(Speed(size, rate, 1000 / rate, 1000 * p99 / rate, turns) for size in (1, 32))
    at = LengthFigures(128.0, 1e9 * size / 4e6, speeds)
    values = {
        "metric": "acc",
        "parameters": size // 4,
        "parameters_without_embeddings": size // 8,
        "device": "cpu",
        "weight_type": "float32",
        "threads": 2,
        "at_fixed_length": at,
        "at_real_lengths": replace(at, mean_length=27.0),
    }
    return Figures(name=name, size_on_disk=size, score=score, **(values | changes))


TEACHER = figures_of("teacher", [100.0, 100.0, 100.0], size=40_000_000, score=0.8)
STUDENT = figures_of("student", [1000.0, 1000.0, 1000.0], score=0.76)
INT8 = figures_of("student int8", [50.0, 50.0, 50.0], size=1_000_000, score=0.6, weight_type="int8")


def test_ratios_say_how_much_better_the_student_is():
    result = json.loads(json.dumps(comparison([TEACHER, STUDENT, INT8])))
    ratios = result["ratios"]
    assert ratios["at_128/batch_1/sentences_per_second"] == pytest.approx(10)
    assert ratios["at_real_lengths/batch_32/p99_ms"] == pytest.approx(10)
    assert ratios["at_128/flops"] == ratios["parameters"] == pytest.approx(10)
    assert result["export_ratios"]["student_int8"]["size_on_disk"] == pytest.approx(40)
    assert result["student"]["at_real_lengths"]["speeds"][1]["batch_size"] == 32
    assert (result["compared_with"], result["student"]["score"]) == ("teacher", 0.76)
    alone = comparison([STUDENT])
    assert "teacher" not in alone and "ratios" not in alone


def test_a_ratio_is_the_median_of_turns_side_by_side():
    """The machine is slow for a while: the medians say 8 times, each pair of turns 4 times."""
    teacher = figures_of("teacher", [100, 50, 50, 25, 100], size=40_000_000)
    student = figures_of("student", [400, 200, 600, 100, 400])
    medians = np.median([400, 200, 600, 100, 400]) / np.median([100, 50, 50, 25, 100])
    ratios = comparison([teacher, student])["ratios"]
    assert medians == 8
    assert ratios["at_128/batch_1/sentences_per_second"] == 4
    assert ratios["at_128/batch_1/p50_ms"] == pytest.approx(4)
    assert "400.0 (4.0x faster)" in comparison_table([teacher, student])


def test_the_table_is_aligned():
    lines = comparison_table([TEACHER, STUDENT, INT8]).splitlines()
    table, (where, how) = lines[:-2], lines[-2:]
    assert table[0].split() == ["teacher", "student", "student", "int8"]
    assert len({len(line) for line in table[1:]}) == 1
    assert re.split(" {2,}", table[1]) == [
        *("dev acc", "0.8000", "0.7600 (95.0% kept)", "0.6000 (75.0% kept)"),
    ]
    speed = next(line for line in table if "batch 1: sentences/s" in line)
    assert speed.endswith("  50.0 (2.0x slower)")
    assert "  1000.0 (10.0x faster)  " in speed
    assert "(10.0x smaller)" in table[2]
    assert where == (
        "teacher, student on cpu, 2 thread(s), float32 weights; student int8 on cpu, 2 thread(s), "
        "int8 weights; tokenising is not timed"
    )
    assert "compared with the teacher" in how
    alone = comparison_table([STUDENT]).splitlines()
    assert alone[-1] == "on cpu, 2 thread(s), float32 weights; tokenising is not timed"
    assert not any("faster" in line for line in alone)


def test_a_loss_is_called_one():
    table = comparison_table([STUDENT, replace(TEACHER, name="other")])
    speed = next(line for line in table.splitlines() if "batch 1: sentences/s" in line)
    assert speed.split()[-3:] == ["100.0", "(10.0x", "slower)"]
    assert "x larger" in table and "x more" in table
    assert "faster" not in table


def test_what_a_score_keeps_is_said_where_more_is_better():
    assert share_kept(0.6, 0.8, "acc") == pytest.approx(0.75)
    assert share_kept(0.6, 0.8, "mse") is None
    assert share_kept(0.6, -0.1, "mcc") is None
    assert share_kept(None, 0.8, "acc") is None


def test_noise_is_told_in_one_line():
    assert noise([TEACHER, STUDENT]) is None
    late = noise([TEACHER, figures_of("student", [100.0] * 5, p99=3.0)])
    assert late.startswith("the machine was noisy: p99 was up to 3.0 times p50;")
    # Sorted, the turns are 50, 100, ..., 100: the 10th percentile of five lies at 70.
    uneven = noise([figures_of("student", [100.0, 100.0, 50.0, 100.0, 100.0])])
    assert "turns of one model were up to 1.4 times apart" in uneven
    table = comparison_table([figures_of("student", [100.0] * 5, p99=3.0)])
    assert table.splitlines()[-1].startswith("the machine was noisy")
    # Sentences of unequal lengths are answered at unequal times on a quiet machine too.
    real = figures_of("student", [100.0] * 5, p99=3.0).at_real_lengths
    assert noise([replace(TEACHER, at_real_lengths=real)]) is None


def test_the_picture_shows_size_speed_and_score(tmp_path):
    graph = figures_of("student ONNX", [900.0] * 3, size=4_100_000, score=0.76)
    picture = comparison_picture([TEACHER, STUDENT, graph, INT8])
    (axis,) = picture.axes
    points = [tuple(line.get_xydata()[0]) for line in axis.lines]
    assert points == [(40.0, 100.0), (4.0, 1000.0), (4.1, 900.0), (1.0, 50.0)]
    labels = [text.get_text() for text in axis.texts]
    assert labels[1:] == [
        *("student\nacc 0.760", "student ONNX\nacc 0.760", "student int8\nacc 0.600"),
    ]
    # The two that lie close together are labelled above the upper and below the lower one.
    assert [text.get_va() for text in axis.texts] == ["bottom", "bottom", "top", "bottom"]
    renderer = FigureCanvasAgg(picture).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axis.texts]
    assert not any(a.overlaps(b) for a in boxes for b in boxes if a is not b)
    assert all(axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1 for box in boxes)
    save_picture([TEACHER, STUDENT], tmp_path / "benchmark.png")
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
