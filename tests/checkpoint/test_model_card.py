"""The model card beside a model: what it says, who reads it, whose it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from transformer.checkpoint.model_card import write_model_card
from transformer.modeling import TinyBertForPreTraining, TinyBertForSequenceClassification

RESULTS = {
    "task": "SST-2",
    "stage": "prediction distillation",
    "teacher_acc": 0.9375,
    "acc": 0.90625,
    "acc_mean": 0.5,
    "seed": 7,
    "global_step": 120,
}

ARGS = {
    "teacher_model": "runs/teacher",
    "student_model": "https://me:word@host/general.zip?X-Signature=abc",
    "data_dir": "glue/SST-2",
    "made_with": {
        "command": "python task_distill.py --pred_distill",
        "date": "2026-01-02T03:04:05+00:00",
        "versions": {"python": "3.11.2", "torch": "2.9.0"},
    },
}


@pytest.fixture
def model_dir(make_checkpoint) -> Path:
    """Make a finished student with the reports of its run."""
    labels = {0: "bad", 1: "good"}
    directory = make_checkpoint("my_student", TinyBertForSequenceClassification, id2label=labels)
    (directory / "eval_results.json").write_text(json.dumps(RESULTS))
    (directory / "args.json").write_text(json.dumps(ARGS))
    return directory


def card(directory: Path) -> str:
    write_model_card(directory)
    return (directory / "README.md").read_text(encoding="utf-8")


def test_what_a_card_says(model_dir: Path) -> None:
    text = card(model_dir)
    assert "# my_student\n\nA 4-layer bert model of width 32" in text
    assert "distilled for SST-2" in text
    assert "| acc, dev set | 0.9062 | 0.9375 |" in text
    assert "Labels: bad, good." in text
    assert "python task_distill.py --pred_distill" in text
    for row in (
        "| begun | 2026-01-02T03:04:05+00:00 |",
        "| seed | 7 |",
        "| step | 120 |",
        "| teacher | runs/teacher |",
        "| student at the start | https://host/general.zip?... |",
        "| versions | python 3.11.2, torch 2.9.0 |",
    ):
        assert row in text
    assert "acc_mean" not in text
    size = (model_dir / "model.safetensors").stat().st_size / 1e6
    assert f"{size:.1f} MB" in text


def test_hubs_read_the_metadata(model_dir: Path) -> None:
    from huggingface_hub import ModelCard

    card(model_dir)
    data = ModelCard.load(model_dir / "README.md").data
    assert data.pipeline_tag == "text-classification"
    assert data.license is None  # the user's to choose
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type) == ("SST-2", "accuracy")
    assert result.metric_value == RESULTS["acc"]


def test_speed_is_there_where_it_was_measured(model_dir: Path) -> None:
    assert "sentences/s" not in card(model_dir)

    def figures(rate: float) -> dict:
        speeds = [{"batch_size": 32, "sentences_per_second": rate, "p50_ms": 1.0}]
        place = {"device": "cpu", "threads": 2, "weight_type": "float32"}
        return {**place, "at_real_lengths": {"speeds": speeds}}

    measured = {"student": figures(1234.5), "teacher": figures(345.6)}
    (model_dir / "benchmark.json").write_text(json.dumps(measured))
    text = card(model_dir)
    assert "| sentences/s, batch 32 | 1234.5 | 345.6 |" in text
    assert "Speed on cpu, 2 thread(s), float32 weights" in text


@pytest.mark.parametrize("name", ["eval_results.json", "args.json", "benchmark.json"])
@pytest.mark.parametrize("content", ["", "[1]", '{"student": 3, "made_with": 4, "acc": "x"}', "{"])
def test_reports_that_say_nothing_leave_their_rows_out(
    name: str, content: str, model_dir: Path
) -> None:
    (model_dir / name).write_text(content)
    assert "## How it was made" in card(model_dir)


def test_a_student_that_is_not_finished_promises_no_answers(make_checkpoint) -> None:
    directory = make_checkpoint("layers", TinyBertForPreTraining, fit_size=48)
    layers = {**RESULTS, "stage": "intermediate distillation", "eval_loss": 2.5}
    (directory / "eval_results.json").write_text(json.dumps(layers))
    text = card(directory)
    assert "half-way to SST-2" in text and "--pred_distill" in text
    assert "| eval_loss, dev set | 2.5000 |" in text
    assert "model-index" not in text and "pipeline(" not in text
    (directory / "eval_results.json").unlink()
    assert "distilled on general text" in card(directory)


def test_a_card_of_the_users_is_never_replaced(model_dir: Path) -> None:
    own = "---\nlicense: mit\n---\n# Mine\n"
    (model_dir / "README.md").write_text(own)
    assert card(model_dir) == own
    (model_dir / "README.md").unlink()
    first = card(model_dir)
    (model_dir / "eval_results.json").write_text(json.dumps({**RESULTS, "acc": 0.5}))
    assert card(model_dir) != first  # ours follows the model
    kept = re.sub(r"<!--.*-->", "", card(model_dir)).replace("# my_student", "# changed")
    (model_dir / "README.md").write_text(kept)
    assert card(model_dir) == kept
