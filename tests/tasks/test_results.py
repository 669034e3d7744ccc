"""Metrics, evaluation, result files, predictions: pytest tests/tasks/test_results.py"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from transformer.modeling import TinyBertForSequenceClassification
from transformer.runtime.ranks import Runtime
from transformer.tasks.kinds import CLASSIFICATION, REGRESSION, Kind
from transformer.tasks.metrics import (
    METRICS,
    beats,
    chance_score,
    compute_metrics,
    is_better,
)
from transformer.tasks.results import (
    DevSet,
    evaluate,
    summarise_seeds,
    warn_of_chance,
    write_dev_results,
)
from transformer.tasks.table import TASKS, Source, Task
from transformer.tasks.token_cache import write_predictions
from transformer.training.batches import collate
from transformer.training.inference import predict_logits
from transformer.training.packed import PackedDataset, PackedWriter

CPU = Runtime(torch.device("cpu"))


def task_with(classes: int, metrics: tuple[str, ...] = ("acc",)) -> Task:
    """Return a task with so many labels."""
    labels = tuple(f"l{number}" for number in range(classes))
    source = Source("dev")
    return Task("t", ("x",), "y", source, (source,), (), labels=labels, metrics=metrics)


def counts(guesses: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the confusion matrix, (C, C): rows are labels, columns predictions."""
    matrix = np.zeros((classes, classes))
    np.add.at(matrix, (labels, guesses), 1)
    return matrix


def f1_by_counting(matrix: np.ndarray) -> np.ndarray:
    """Return 2 TP / (2 TP + FP + FN) of each label; NaN where a label occurs nowhere."""
    total = matrix.sum(0) + matrix.sum(1)
    return np.divide(2 * np.diag(matrix), total, np.full(len(matrix), np.nan), where=total > 0)


def gorodkins_r_k(matrix: np.ndarray) -> float:
    """Return R_K (Gorodkin, 2004, equation 8), which for two labels is the Matthews correlation."""
    true, guessed, count = matrix.sum(1), matrix.sum(0), matrix.sum()
    spread = (count**2 - guessed @ guessed) * (count**2 - true @ true)
    return (np.trace(matrix) * count - true @ guessed) / math.sqrt(spread) if spread else 0.0


@pytest.mark.filterwarnings("error")  # a library's advice on rare labels is no news to the user
@pytest.mark.parametrize(("classes", "rows"), [(2, 50), (3, 80), (300, 400), (5, 1), (2, 2)])
def test_classification_metrics_equal_what_counting_gives(classes: int, rows: int) -> None:
    rng = np.random.default_rng(classes + rows)
    logits = rng.normal(size=(rows, classes)).astype(np.float32)
    labels = rng.integers(0, classes, rows)
    guesses = logits.argmax(1)
    matrix = counts(guesses, labels, classes)
    found = compute_metrics(task_with(classes, CLASSIFICATION.allowed_metrics), logits, labels)
    assert found["acc"] == pytest.approx(np.trace(matrix) / rows)
    assert found["mcc"] == pytest.approx(gorodkins_r_k(matrix))
    assert found["macro_f1"] == pytest.approx(np.nanmean(f1_by_counting(matrix)))
    f1 = np.nan_to_num(f1_by_counting(matrix)[1])
    assert found["f1"] == pytest.approx(f1)
    assert found["acc_and_f1"] == pytest.approx((found["acc"] + f1) / 2)
    loss = sk.log_loss(labels, torch.tensor(logits).double().softmax(1), labels=range(classes))
    assert CLASSIFICATION.loss(logits, labels) == pytest.approx(loss)


def test_correlations_equal_those_of_ranks_by_hand() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(60, 1)).astype(np.float32)
    labels = np.round(scores[:, 0] + rng.normal(size=60), 0).astype(np.float32)  # with ties

    def ranks(values: np.ndarray) -> np.ndarray:
        smaller = (values[None] < values[:, None]).sum(1)
        return smaller + ((values[None] == values[:, None]).sum(1) + 1) / 2

    task = Task(**{**vars(TASKS["stsb"]), "metrics": REGRESSION.allowed_metrics})
    found = compute_metrics(task, scores, labels)
    guesses = scores[:, 0].astype(float)
    assert found["pearson"] == pytest.approx(np.corrcoef(guesses, labels)[0, 1])
    assert found["spearmanr"] == pytest.approx(np.corrcoef(ranks(guesses), ranks(labels))[0, 1])
    assert found["corr"] == pytest.approx((found["pearson"] + found["spearmanr"]) / 2)
    assert found["mse"] == pytest.approx(((guesses - labels) ** 2).sum() / 60)


@pytest.mark.filterwarnings("error")
def test_constant_answers() -> None:
    same, other = np.zeros(4, np.int64), np.arange(4)
    assert METRICS["mcc"][0](same, np.array([0, 1, 0, 1])) == 0.0
    assert METRICS["macro_f1"][0](same, same) == 1.0  # labels that occur nowhere do not count
    assert METRICS["f1"][0](same, same) == 0.0
    for name in ("pearson", "spearmanr", "corr"):
        correlation, _ = METRICS[name]
        assert math.isnan(correlation(same, other)) and math.isnan(correlation(other, same))
        assert math.isnan(correlation(np.array([1.0]), np.array([2.0])))  # a dev set of one row


def test_every_metric_of_the_table_of_tasks_is_there() -> None:
    offered = {name for kind in Kind.__subclasses__() for name in kind.allowed_metrics}
    assert offered == set(METRICS)
    assert {name for task in TASKS.values() for name in task.metrics} <= offered
    assert [name for name, (_, higher_is_better) in METRICS.items() if not higher_is_better] == [
        "mse"
    ]


def test_what_is_better() -> None:
    assert not is_better(math.nan, -1.0, "corr")
    assert not is_better(0.5, 0.5, "acc")
    assert is_better(0.1, 0.2, "mse") and not is_better(0.3, 0.2, "mse")


def test_equal_scores_are_told_apart_by_the_loss() -> None:
    best = {"acc": 0.8, "mse": 0.8, "eval_loss": 0.5}
    assert beats({"acc": -9.0, "eval_loss": 9.0}, None, "acc")  # a bad score is still a first one
    assert not beats({"acc": math.nan, "eval_loss": 0.1}, None, "acc")
    assert beats({"acc": 0.1, "eval_loss": 9.0}, {"acc": math.nan, "eval_loss": 0.1}, "acc")
    assert not beats({"acc": math.nan, "eval_loss": 0.1}, best, "acc")
    assert beats({"acc": 0.81, "eval_loss": 9.0}, best, "acc")
    assert beats({"mse": 0.79, "eval_loss": 9.0}, best, "mse")
    for metric in ("acc", "mse"):
        assert beats({metric: 0.8, "eval_loss": 0.4}, best, metric)
        assert not beats({metric: 0.8, "eval_loss": 0.5}, best, metric)
        assert not beats({metric: 0.8, "eval_loss": 0.6}, best, metric)


def test_the_best_seed_is_the_best_score_then_the_lowest_loss() -> None:
    found = {
        3: {"acc": 0.7, "eval_loss": 0.1},
        1: {"acc": 0.8, "eval_loss": 0.6},
        2: {"acc": 0.8, "eval_loss": 0.5},
    }
    assert summarise_seeds(found, "acc")["best_seed"] == 2
    assert summarise_seeds(found, "eval_loss")["best_seed"] == 3  # of layers
    assert summarise_seeds({5: {"acc": math.nan, "eval_loss": 1.0}}, "acc")["best_seed"] == 5


def test_chance_is_the_best_constant_answer(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.array([0, 0, 0, 1])
    sst, cola = TASKS["sst2"], TASKS["cola"]
    assert (chance_score(sst, labels), chance_score(cola, labels)) == (0.75, 0.0)
    assert math.isnan(chance_score(sst, labels[:1]))
    assert warn_of_chance(sst, 0.75, 0.75, "the teacher", "Look at the labels")
    assert "no better than one answer for all (0.7500)" in caplog.text
    assert "Look at the labels" in caplog.text
    assert not warn_of_chance(sst, 0.8, 0.75, "the teacher", "")
    assert warn_of_chance(cola, math.nan, 0.0, "the teacher", "")
    assert not warn_of_chance(sst, 0.0, math.nan, "the teacher", "")


@pytest.fixture
def dataset(tmp_path: Path) -> PackedDataset:
    rng = np.random.default_rng(4)
    writer = PackedWriter(tmp_path / "store", 99, labels=True)
    for _ in range(23):
        length = int(rng.integers(3, 20))
        writer.add(rng.integers(5, 99, length), length // 2, label=float(rng.integers(0, 3)))
    return writer.close()


@pytest.fixture
def model(tiny_config) -> TinyBertForSequenceClassification:
    torch.manual_seed(0)
    tiny_config.id2label = {0: "l0", 1: "l1", 2: "l2"}
    return TinyBertForSequenceClassification(tiny_config).train()


def logits_one_by_one(model: torch.nn.Module, dataset: PackedDataset) -> np.ndarray:
    """Return every row's logits, each computed alone, without padding."""
    model.eval()
    rows = []
    for row in range(len(dataset)):
        batch = collate(dataset, np.array([row]), pad_token_id=0, multiple=1)
        with torch.no_grad():
            rows.append(model(batch.input_ids, batch.token_type_ids).logits[0].numpy())
    model.train()
    return np.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 4, 23, 64])
def test_logits_do_not_depend_on_batches_and_padding(
    batch_size: int, model: torch.nn.Module, dataset: PackedDataset
) -> None:
    expected = logits_one_by_one(model, dataset)
    logits = predict_logits(model, dataset, batch_size, CPU)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    part = predict_logits(model, dataset, batch_size, CPU, part=(5, 11))
    np.testing.assert_allclose(part, expected[5:11], atol=1e-5)
    assert model.training  # as it was


def test_ranks_share_the_rows(
    model: torch.nn.Module, dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of three ranks computes its own rows; together they make every row exactly once."""
    shares: list[tuple[np.ndarray, np.ndarray]] = []
    monkeypatch.setattr(Runtime, "gather_objects", lambda self, own: shares.append(own) or [own])
    for rank in range(3):
        predict_logits(model, dataset, 4, Runtime(torch.device("cpu"), rank=rank, world_size=3))
    places = np.concatenate([places for places, _ in shares])
    assert sorted(places.tolist()) == list(range(23))
    gathered = np.concatenate([values for _, values in shares])[np.argsort(places)]
    np.testing.assert_allclose(gathered, logits_one_by_one(model, dataset), atol=1e-5)


def test_both_dev_sets_are_reported(
    model: torch.nn.Module, dataset: PackedDataset, tmp_path: Path
) -> None:
    writer = PackedWriter(tmp_path / "other", 99, labels=True)
    writer.add([5, 6, 7], 3, label=2.0)
    dev_sets = [DevSet("", dataset), DevSet("-MM", writer.close())]
    results = evaluate(model, task_with(3), dev_sets, 8, CPU)
    assert set(results) == {"acc", "eval_loss", "acc-mm", "eval_loss-mm"}
    logits = logits_one_by_one(model, dataset)
    assert results["acc"] == pytest.approx((logits.argmax(1) == dataset.labels[:]).mean())
    output_dir = tmp_path / "out"
    write_dev_results(Path(f"{output_dir}/"), dev_sets, results, {"task": "MNLI"})
    stored = json.loads((output_dir / "eval_results.json").read_text())
    assert stored == {"task": "MNLI", **results}
    other = json.loads((tmp_path / "out-MM" / "eval_results.json").read_text())
    assert other == {
        "task": "MNLI",
        "acc": results["acc-mm"],
        "eval_loss": results["eval_loss-mm"],
    }
    assert f"acc = {results['acc']}\n" in (output_dir / "eval_results.txt").read_text()


def test_nan_is_null_in_json(tmp_path: Path) -> None:
    write_dev_results(tmp_path / "out", [], {"pearson": math.nan}, {})
    assert json.loads((tmp_path / "out" / "eval_results.json").read_text()) == {"pearson": None}
    assert (tmp_path / "out" / "eval_results.txt").read_text() == "pearson = nan\n"


def cells(task: Task, logits: np.ndarray) -> list[str]:
    """Return predictions as they are written."""
    return task.kind.cells(task, logits)


def test_predictions_are_spelt_as_the_leaderboard_wants(tmp_path: Path) -> None:
    logits = np.array([[0.1, 0.9], [2.0, 1.0]], np.float32)
    assert cells(TASKS["rte"], logits) == ["not_entailment", "entailment"]
    assert cells(TASKS["qqp"], logits) == ["1", "0"]
    assert cells(TASKS["mnli"], np.eye(3)) == ["contradiction", "entailment", "neutral"]
    scores = np.array([[-0.3], [2.34567], [5.2]], np.float32)
    assert cells(TASKS["stsb"], scores) == ["0.000", "2.346", "5.000"]
    own = Task(**{**vars(TASKS["stsb"]), "bounds": None})
    assert cells(own, scores) == ["-0.300", "2.346", "5.200"]
    write_predictions(tmp_path / "RTE.tsv", ["0", "7"], ["entailment", "not_entailment"])
    written = (tmp_path / "RTE.tsv").read_bytes()
    assert written == b"index\tprediction\n0\tentailment\n7\tnot_entailment\n"
