"""Task distillation from end to end on a toy task: pytest tests/test_task_distill.py"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_vocabulary
from safetensors.torch import load_file, save_file
from torch import nn

import task_distill
from transformer.checkpoint.directory import read_weights, save_checkpoint
from transformer.configuration import BertConfig
from transformer.files import UserError
from transformer.modeling import (
    BertForPreTraining,
    TinyBertForPreTraining,
    TinyBertForSequenceClassification,
)
from transformer.runtime.progress import TIMING_FIELDS
from transformer.tasks.run import Run
from transformer.tokenization import BertTokenizer
from transformer.training.state import RunState

NEUTRAL = ["the", "a", "of", "and", "film", "movie", "story", "actor", "plot", "city", "music"]
MNLI_COLUMNS = ["-"] * 8
TEACHER_SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 37}
STUDENT_SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 29}


@dataclass(frozen=True)
class Toy:
    """A directory with models and data; `run` calls the script with the flags that all share."""

    root: Path

    def run(self, *flags: str, task: str = "SST-2", epochs: float | None = 3) -> None:
        data = self.root / "data" / task.removesuffix("-mm")
        shared = ["--data_dir", str(data), "--task_name", task, "--learning_rate", "1e-3"]
        shared += ["--precision", "fp32", "--max_seq_length", "32"]
        shared += [] if epochs is None else ["--num_train_epochs", str(epochs)]
        task_distill.main([*shared, *flags])

    def __truediv__(self, name: str) -> str:
        return str(self.root / name)

    def results(self, name: str) -> dict:
        return json.loads((self.root / name / "eval_results.json").read_text())

    def metrics(self, name: str) -> list[dict]:
        """Return the reports of a run without what depends on the clock."""
        lines = (self.root / name / "metrics.jsonl").read_text().splitlines()
        reports = [json.loads(line) for line in lines]
        return [{k: v for k, v in r.items() if k not in TIMING_FIELDS} for r in reports]


def save_random(directory: Path, kind: type[nn.Module], vocab_file: Path, **sizes: object) -> Path:
    """Write a random tiny model."""
    torch.manual_seed(len(directory.name))
    config = BertConfig(
        vocab_size=len(tiny_vocabulary()),
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.15,
        **sizes,
    )
    save_checkpoint(kind(config), BertTokenizer(vocab_file, True), directory)
    return directory


def sentence(rng: random.Random, word: str) -> str:
    words = rng.choices(NEUTRAL, k=rng.randint(3, 9))
    words.insert(rng.randint(0, len(words)), word)
    return " ".join(words)


def write_rows(path: Path, header: list[str] | None, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) for row in ([header] if header else []) + rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_data(root: Path) -> None:
    """Write a sentiment task ("good" or "bad"), a similarity task and MNLI with two dev sets."""
    rng = random.Random(5)

    def sentiment(count: int) -> list[list[str]]:
        chosen = [rng.randint(0, 1) for _ in range(count)]
        return [[sentence(rng, ("bad", "good")[label]), str(label)] for label in chosen]

    def similarity(count: int) -> list[list[str]]:
        rows = []
        for _ in range(count):
            good = rng.randint(0, 5)
            rows.append([*["x"] * 7, " ".join(["good"] * good + ["film"]), "film", f"{good}.0"])
        return rows

    def inference(count: int, columns: int) -> list[list[str]]:
        rows = []
        for _ in range(count):
            label, word = rng.choice(
                [("neutral", "plot"), ("entailment", "good"), ("contradiction", "bad")]
            )
            others = ["-"] * (columns - 11)
            rows.append([*MNLI_COLUMNS, "film", sentence(rng, word), *others, label])
        return rows

    header = ["sentence", "label"]
    write_rows(root / "SST-2" / "train.tsv", header, sentiment(384))
    write_rows(root / "SST-2" / "dev.tsv", header, sentiment(100))
    tests = [[str(row + 3), text] for row, (text, _) in enumerate(sentiment(12))]
    write_rows(root / "SST-2" / "test.tsv", ["index", "sentence"], tests)
    header = [*"abcdefg", "sentence1", "sentence2", "score"]
    for name, count in (("train", 192), ("dev", 40), ("test", 9)):
        write_rows(root / "STS-B" / f"{name}.tsv", header, similarity(count))
    texts = [*MNLI_COLUMNS, "sentence1", "sentence2"]
    for name, count, columns in (
        ("train", 96, 12),
        ("dev_matched", 30, 16),
        ("dev_mismatched", 20, 16),
        ("test_matched", 7, 12),
        ("test_mismatched", 5, 12),
    ):
        names = [*texts, *["label1"] * (columns - 11), "gold_label"]
        write_rows(root / "MNLI" / f"{name}.tsv", names, inference(count, columns))
    axes = [["0", "film", "good"], ["1", "film", "bad"]]
    write_rows(root / "diagnostic" / "diagnostic.tsv", ["index", "sentence1", "sentence2"], axes)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Models and data, and the three trainings of the README in a row."""
    root = tmp_path_factory.mktemp("toy")
    vocab_file = root / "vocab.txt"
    vocab_file.write_text("\n".join(tiny_vocabulary()) + "\n", encoding="utf-8")
    save_random(root / "base", BertForPreTraining, vocab_file, **TEACHER_SIZES)
    save_random(root / "general", TinyBertForPreTraining, vocab_file, fit_size=32, **STUDENT_SIZES)
    write_data(root / "data")
    toy = Toy(root)
    toy.run(
        "--finetune", "--student_model", toy / "base", "--output_dir", toy / "teacher", epochs=4
    )
    teacher = "--teacher_model", toy / "teacher"
    toy.run(*teacher, "--student_model", toy / "general", "--output_dir", toy / "layers")
    student = "--student_model", toy / "layers"
    toy.run("--pred_distill", *teacher, *student, "--output_dir", toy / "student", epochs=4)
    return toy


def weights_of(directory: str | Path) -> dict[str, torch.Tensor]:
    return read_weights(Path(directory))


def same_weights(one: str | Path, other: str | Path) -> bool:
    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# --- the chain ---------------------------------------------------------------------------------


def test_the_chain_learns_the_task(toy: Toy) -> None:
    assert toy.results("teacher")["acc"] > 0.95
    found = toy.results("student")
    assert found["acc"] > 0.95
    assert found["teacher_acc"] == toy.results("teacher")["acc"]


def test_the_intermediate_stage_learns_layers(toy: Toy) -> None:
    losses = [r["eval_loss"] for r in toy.metrics("layers") if "eval_loss" in r]
    first = [r for r in toy.metrics("layers") if "loss" in r][0]
    assert losses[-1] < 0.8 * first["loss"]  # the mean over the whole run, its first report
    assert {"attention/1", "attention/2", "hidden/1", "hidden/2", "embedding"} <= first.keys()
    before, after = weights_of(toy / "general"), weights_of(toy / "layers")
    name = "bert.encoder.layer.1.output.dense.weight"
    assert not torch.equal(before[name], after[name])


def test_layers_and_predictions_are_learnt_in_one_stage(toy: Toy) -> None:
    flags = ["--student_model", toy / "general", "--teacher_model", toy / "teacher"]
    toy.run("--joint", *flags, "--output_dir", toy / "joint", epochs=4)
    reports = [report for report in toy.metrics("joint") if "loss" in report]
    terms = {name for name in reports[0] if name.split("/")[0] in ("attention", "hidden")}
    assert {*terms, "embedding", "prediction"} <= reports[0].keys() and len(terms) == 4
    parts = sum(reports[0][name] for name in (*terms, "embedding", "prediction"))
    assert reports[0]["loss"] == pytest.approx(parts, rel=1e-5)
    assert toy.results("joint")["acc"] > 0.9  # the best by dev score, as a finished model
    assert "fit_dense.weight" not in read_weights(toy.root / "joint")


def test_what_the_classifier_reads_is_dropped_out_in_fine_tuning_only(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    load = Run.load_student

    def watched(self: Run, *, is_new: bool) -> tuple:
        student, report = load(self, is_new=is_new)
        parts = student.dropout, student.bert.embeddings.dropout
        found.append(tuple(part.probability for part in parts))
        return student, report

    monkeypatch.setattr(Run, "load_student", watched)
    teacher = ["--teacher_model", toy / "teacher"]
    for number, flags in enumerate(
        (
            ["--finetune"],
            ["--finetune", "--student_dropout", "0.3"],
            ["--pred_distill", *teacher],
            ["--pred_distill", *teacher, "--student_dropout", "0.3"],
            ["--pred_distill", "--hard_labels"],
        )
    ):
        models = ["--student_model", toy / "layers", "--output_dir", toy / f"dropout{number}"]
        toy.run(*flags, *models, epochs=0.1)
    assert found == [(0.1, 0.1), (0.3, 0.3), (0, 0), (0, 0.3), (0, 0.1)]


def test_a_directory_is_complete(toy: Toy) -> None:
    for name in ("teacher", "layers", "student"):
        held = {path.name for path in (toy.root / name).iterdir()}
        assert held >= {
            *("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"),
            *("args.json", "metrics.jsonl", "eval_results.json", "eval_results.txt"),
            "training_curves.png",
        }
    config = json.loads((toy.root / "student" / "config.json").read_text())
    assert config["id2label"] == {"0": "0", "1": "1"}
    args = json.loads((toy.root / "student" / "args.json").read_text())
    assert (args["pred_distill"], args["seed"]) == (True, 42)


def test_evaluation_and_predictions(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--student_model", toy / "student", "--output_dir", toy / "results"]
    toy.run("--do_eval", "--do_predict", "--teacher_model", toy / "teacher", *flags)
    found, trained = toy.results("results"), toy.results("student")
    assert found["acc"] == trained["acc"]
    assert found["eval_loss"] == pytest.approx(trained["eval_loss"], abs=1e-6)
    assert "teacher" in capsys.readouterr().out
    lines = (toy.root / "results" / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    test_rows = (toy.root / "data" / "SST-2" / "test.tsv").read_text().splitlines()[1:]
    wanted = [f"{row.split()[0]}\t{int('good' in row)}" for row in test_rows]
    assert lines[1:] == wanted  # the toy task is solved, so every prediction is right


# --- teachers and labels -----------------------------------------------------------------------


def flipped(toy: Toy, name: str, labels: dict[str, str]) -> str:
    """Copy the teacher with its two outputs exchanged and other names for them."""
    directory = toy.root / name
    shutil.copytree(toy.root / "teacher", directory)
    weights = load_file(directory / "model.safetensors")
    for key in ("classifier.weight", "classifier.bias"):
        weights[key] = weights[key].flip(0)
    save_file(weights, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    config["id2label"] = labels
    config["label2id"] = {label: int(number) for number, label in labels.items()}
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def test_a_teacher_with_another_order_of_labels_teaches_the_same(
    toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    other = flipped(toy, "flipped", {"0": "1", "1": "0"})
    flags = ["--student_model", toy / "layers", "--output_dir", toy / "from_flipped"]
    toy.run("--pred_distill", "--teacher_model", other, *flags, epochs=4)
    assert toy.results("from_flipped")["teacher_acc"] == toy.results("teacher")["acc"]
    assert same_weights(toy / "from_flipped", toy / "student")
    unnamed = flipped(toy, "unnamed", {"0": "LABEL_0", "1": "LABEL_1"})
    flags = ["--student_model", toy / "layers", "--output_dir", toy / "from_unnamed"]
    toy.run("--pred_distill", "--teacher_model", unnamed, *flags, epochs=0.1)
    assert "the teacher scores much better if its outputs are 1, 0" in caplog.text
    assert "no better than one answer for all" in caplog.text


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--student_model", "{}/general"], "--teacher_model is needed"),
        (["--student_model", "{}/general", "--teacher_model", "{}/base"], "--finetune makes"),
        (["--student_model", "{}/general", "--teacher_model", "{}/none"], "none"),
        (["--pred_distill", "--finetune", "--student_model", "{}/base"], "contradict"),
        (["--pred_distill", "--joint", "--student_model", "{}/base"], "contradict"),
        (["--joint", "--hard_labels", "--student_model", "{}/base"], "--hard_label_weight"),
        (["--finetune", "--student_model", "{}/base", "--aug_train"], "data_augmentation.py"),
        (["--finetune", "--student_model", "{}/base", "--data_dir", "{}/none"], "no such dir"),
        (["--finetune", "--student_model", "{}/base", "--max_seq_length", "65"], "64 positions"),
        (["--finetune", "--student_model", "{}/base", "--output_dir", "{}/base"], "another dir"),
        (
            [
                *("--finetune", "--student_model", "{}/runs/seed_2/last"),
                *("--seed", "1", "2", "--output_dir", "{}/runs"),
            ],
            "seed_2/last would be overwritten",
        ),
        (["--do_eval", "--student_model", "{}/base"], "lacks the classifier"),
        (["--do_eval", "--student_model", "{}/teacher", "--task_name", "stsb"], "one output"),
        (
            [
                *("--student_model", "{}/general", "--teacher_model", "{}/teacher"),
                *("--layer_mapping", "1,9"),
            ],
            "teacher layers are 1 to 4",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(toy: Toy, flags: list[str], told: str) -> None:
    output = ["--output_dir", toy / "mistakes"]
    (toy.root / "runs/seed_2/last").mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match=told) as error:
        toy.run(*output, *(flag.format(toy.root) for flag in flags))
    assert "\n" not in str(error.value)
    assert not list(Path(toy / "mistakes").glob("*")), "something was written"


def test_heads_that_differ_name_the_way_out(toy: Toy) -> None:
    config = json.loads((toy.root / "general" / "config.json").read_text())
    student = toy.root / "six_heads"
    student.mkdir()
    (student / "config.json").write_text(json.dumps({**config, "num_attention_heads": 6}))
    flags = ["--teacher_model", toy / "teacher", "--student_model", str(student)]
    flags += ["--output_dir", toy / "relation"]
    with pytest.raises(UserError, match="--attention_weight 0"):
        toy.run(*flags)
    toy.run(*flags, "--attention_loss", "relation", "--relation_heads", "8", epochs=0.2)
    assert any("attention/2" in report for report in toy.metrics("relation"))


# --- what is kept ------------------------------------------------------------------------------


def test_the_best_model_is_kept_and_the_last_beside_it(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([float("nan"), -0.5, 0.25, 0.1])
    monkeypatch.setattr(Run, "measure", lambda *_: ({"acc": next(scores), "eval_loss": 1.0}, None))
    flags = ["--student_model", toy / "base", "--output_dir", toy / "best"]
    toy.run("--finetune", *flags, "--eval_step", "3", epochs=1)
    found = toy.results("best")
    assert (found["acc"], found["global_step"]) == (0.25, 9)
    assert not same_weights(toy / "best", toy / "best/last")


def test_a_finished_model_at_chance_is_told_and_the_learning_rate_named(
    toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    flags = ["--student_model", toy / "base", "--output_dir", toy / "chance"]
    toy.run("--finetune", "--learning_rate", "0", *flags, epochs=0.2)
    assert "WARNING: the model scores" in caplog.text
    assert "Change --learning_rate first (it is 0)" in caplog.text
    caplog.clear()
    toy.run("--do_eval", "--student_model", toy / "chance", "--output_dir", toy / "looked_at")
    assert "train it again with another --learning_rate first" in caplog.text
    caplog.clear()
    toy.run("--do_eval", "--student_model", toy / "teacher", "--output_dir", toy / "looked_at_2")
    assert "no better than one answer" not in caplog.text


def test_a_run_shorter_than_its_log_steps_reports_its_losses(
    toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    flags = ["--student_model", toy / "base", "--output_dir", toy / "brief", "--eval_step", "2"]
    toy.run("--finetune", *flags, "--log_steps", "1000", epochs=0.4)
    losses = [report["step"] for report in toy.metrics("brief") if "loss" in report]
    scores = [report["step"] for report in toy.metrics("brief") if "eval_acc" in report]
    assert losses == scores and losses[:2] == [2, 4]
    parameters = sum(tensor.numel() for tensor in weights_of(toy / "brief").values())
    size = 16 * parameters / 2**20  # weights, gradients and two moments of four bytes
    assert re.search(rf"fine-tuning: [\d.]+ M parameters learn in {losses[-1]} steps", caplog.text)
    assert f"moments take about {size:,.0f} MiB on cpu" in caplog.text


def test_without_a_usable_score_the_last_model_is_the_result(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "measure", lambda *_: ({"acc": float("nan")}, None))
    flags = ["--student_model", toy / "base", "--output_dir", toy / "nan"]
    toy.run("--finetune", *flags, "--eval_step", "5", epochs=0.6)
    assert (toy.results("nan")["acc"], toy.results("nan")["global_step"]) == (None, 8)
    assert weights_of(toy / "nan")


def scripted(monkeypatch: pytest.MonkeyPatch, scores: dict[int, tuple[float, float]]) -> None:
    """Let the evaluation of each step find this accuracy and this loss."""

    def measure(run: Run, state: RunState) -> tuple[dict[str, float], None]:
        return dict(zip(("acc", "eval_loss"), scores[state.step], strict=True)), None

    monkeypatch.setattr(Run, "measure", measure)


# The best is step 6, by the lower loss of two equal scores; then two that are no better.
LOOKS = {2: (0.5, 0.7), 4: (0.6, 0.6), 6: (0.6, 0.5), 8: (0.6, 0.5), 10: (0.4, 0.1)}


def test_patience_ends_a_run_that_gets_no_better(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    scripted(monkeypatch, LOOKS)
    flags = ["--student_model", toy / "base", "--eval_step", "2", "--patience", "2"]
    toy.run("--finetune", *flags, "--output_dir", toy / "patient", epochs=2)
    assert toy.results("patient")["global_step"] == 6
    assert "no better dev acc in 2 evaluations: stopping at step 10, the best was step 6" in (
        caplog.text
    )
    assert "stopped by --patience 2" in caplog.text
    assert not same_weights(toy / "patient", toy / "patient/last")
    args = json.loads((toy.root / "patient" / "args.json").read_text())
    assert args["finished"]["step"] == 10
    toy.run("--finetune", *flags, "--output_dir", toy / "patient", "--resume", epochs=2)
    assert "is finished: nothing to do" in caplog.text


@pytest.mark.parametrize("died_after", [6, 8, 10])
def test_patience_survives_an_interruption(
    toy: Toy, died_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, LOOKS)
    flags = ["--finetune", "--student_model", toy / "base", "--eval_step", "2", "--patience", "2"]
    flags += ["--save_steps", "2", "--output_dir", toy / f"impatient{died_after}"]
    save = RunState.save

    def die_after_saving(self: RunState, *args: object) -> None:
        save(self, *args)
        if self.step == died_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunState, "save", die_after_saving)
        toy.run(*flags, epochs=2)
    toy.run(*flags, "--resume", epochs=2)
    directory = toy.root / f"impatient{died_after}"
    assert toy.results(directory.name)["global_step"] == 6
    assert json.loads((directory / "args.json").read_text())["finished"]["step"] == 10
    assert not (directory / "training_state.pt").exists()


def test_each_class_is_reported(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    flags = ["--student_model", toy / "student", "--output_dir", toy / "report"]
    toy.run("--do_eval", *flags)
    directory = toy.root / "report"
    report = json.loads((directory / "dev_report.json").read_text())
    assert [row["name"] for row in report["classes"]] == ["0", "1"]
    rows = (toy.root / "data" / "SST-2" / "dev.tsv").read_text().splitlines()[1:]
    true = [int(row.split("\t")[1]) for row in rows]
    assert [row["support"] for row in report["classes"]] == [true.count(0), true.count(1)]
    right = sum(report["matrix"][label][label] for label in (0, 1))
    assert right / len(rows) == toy.results("report")["acc"]
    assert "SST-2, dev, class by class" in caplog.text and "macro average" in caplog.text
    assert (directory / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    # That of the training is the report of the model that was kept, which is this one.
    for name in ("dev_report.txt", "dev_report.json"):
        assert (toy.root / "student" / name).read_text() == (directory / name).read_text()
    assert not (toy.root / "layers" / "dev_report.txt").exists()


def test_weighted_classes_are_learnt(toy: Toy) -> None:
    flags = ["--finetune", "--student_model", toy / "base", "--learning_rate", "0"]
    losses = {}
    for name, weights in {
        "plain": [],
        "ones": ["--class_weights", "0=1"],
        "twice": ["--class_weights", "1=2,0=2"],
        "auto": ["--class_weights", "auto"],
        "zero": ["--class_weights", "0=0"],
        "one": ["--class_weights", "1=0"],
    }.items():
        output = ["--output_dir", toy / f"weighted_{name}", "--log_steps", "12"]
        toy.run(*flags, *weights, *output, "--student_dropout", "0", epochs=1)
        losses[name] = toy.metrics(f"weighted_{name}")[0]["loss"]
    assert losses["ones"] == losses["plain"]
    assert losses["twice"] == pytest.approx(2 * losses["plain"], rel=1e-5)
    assert losses["zero"] + losses["one"] == pytest.approx(losses["plain"], rel=1e-5)
    # 384 rows, 174 of them of label 0 (counted in the data), are weighted to 192 each.
    labels = (toy.root / "data" / "SST-2" / "train.tsv").read_text().split("\n")[1:-1]
    zeros = sum(row.endswith("\t0") for row in labels)
    expected = losses["one"] * 192 / zeros + losses["zero"] * 192 / (384 - zeros)
    assert losses["auto"] == pytest.approx(expected, rel=1e-5)
    args = json.loads((toy.root / "weighted_twice" / "args.json").read_text())
    assert args["class_weights"] == {"0": 2.0, "1": 2.0}
    with pytest.raises(UserError, match="--class_weights was {'0': 2.0, '1': 2.0} and is now auto"):
        output = ["--output_dir", toy / "weighted_twice", "--log_steps", "12", "--resume"]
        toy.run(*flags, "--class_weights", "auto", *output, "--student_dropout", "0", epochs=1)


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("SST-2", ["--finetune", "--class_weights", "0=1,good=2"], "has no label 'good'"),
        ("SST-2", ["--finetune", "--class_weights", "0=1,0=2"], "'0' has two weights"),
        ("SST-2", ["--finetune", "--class_weights", "none"], "is neither auto, nor a file"),
        ("SST-2", ["--finetune", "--class_weights", "0=much"], "'much', which is no number"),
        ("SST-2", ["--finetune", "--class_weights", "0=-1"], "give a number of 0 or more"),
        ("SST-2", ["--finetune", "--class_weights", "0=nan"], "give a number of 0 or more"),
        ("SST-2", ["--finetune", "--class_weights", "0=0,1=0"], "all are 0"),
        ("STS-B", ["--finetune", "--class_weights", "auto"], "a regression task has no classes"),
        ("SST-2", ["--pred_distill", "--class_weights", "auto"], "none are learnt here"),
        ("SST-2", ["--hard_label_weight", "1", "--class_weights", "auto"], "none are learnt here"),
        ("SST-2", ["--do_eval", "--class_weights", "auto"], "none are learnt here"),
    ],
)
def test_class_weights_that_cannot_be_are_refused(
    toy: Toy, task: str, flags: list[str], message: str
) -> None:
    models = ["--student_model", toy / "base", "--teacher_model", toy / "teacher"]
    with pytest.raises(UserError, match=message):
        toy.run(*flags, *models, "--output_dir", toy / "never", task=task)


def test_patience_that_cannot_be_is_refused(toy: Toy) -> None:
    flags = ["--student_model", toy / "general", "--output_dir", toy / "never"]
    with pytest.raises(UserError, match="--patience 0: give a number of 1 or more"):
        toy.run("--finetune", *flags, "--patience", "0")
    with pytest.raises(UserError, match="layers alone have none"):
        toy.run("--teacher_model", toy / "teacher", *flags, "--patience", "1")


def test_a_model_beside_the_run_is_left_alone(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    here = toy.root / "here"
    shutil.copytree(toy.root / "base", here / "base")
    monkeypatch.chdir(here)
    flags = ["--finetune", "--output_dir", ".", "--overwrite_output_dir"]
    with pytest.raises(UserError, match="--student_model base would be overwritten"):
        toy.run(*flags, "--student_model", "base", epochs=0.2)
    assert [path.name for path in here.iterdir()] == ["base"]
    assert same_weights(here / "base", toy / "base")
    with pytest.raises(UserError, match="holds files .* but no run"):
        toy.run(*flags, "--student_model", toy / "base", epochs=0.2)


@pytest.mark.parametrize("flag", ["--export_onnx", "--do_predict"])
def test_data_is_not_replaced_by_a_result(toy: Toy, flag: str) -> None:
    """`--export_onnx train.tsv`, or predictions of a task that is called as its training file."""
    here = toy.root / f"replaced{flag}"
    here.mkdir()
    write_rows(here / "train.tsv", ["sentence", "label"], [["good film", "1"], ["bad film", "0"]])
    shutil.copy(here / "train.tsv", here / "test.tsv")
    before = (here / "train.tsv").read_bytes()
    flags = ["--student_model", toy / "base", "--data_dir", str(here), "--output_dir", str(here)]
    flags += ["--task_name", "train", "--text_columns", "sentence", "--label_column", "label"]
    with pytest.raises(UserError, match=f"{flag} would replace .*train.tsv, which is not"):
        toy.run(flag, *([str(here / "train.tsv")] if flag == "--export_onnx" else []), *flags)
    assert (here / "train.tsv").read_bytes() == before


def test_fewer_rows_than_a_batch_train_too(toy: Toy) -> None:
    data = toy.root / "one_row"
    write_rows(data / "train.tsv", ["sentence", "label"], [["good film", "1"], ["bad film", "0"]])
    write_rows(data / "dev.tsv", ["sentence", "label"], [["good", "1"]])
    flags = ["--student_model", toy / "base", "--output_dir", toy / "one", "--data_dir", str(data)]
    toy.run("--finetune", *flags, epochs=2)
    assert toy.results("one")["global_step"] in (1, 2)
    before, after = weights_of(toy / "base"), weights_of(toy / "one")
    assert any(not torch.equal(before[name], after[name]) for name in before.keys() & after.keys())


def test_an_output_directory_with_files_is_refused(toy: Toy) -> None:
    flags = ["--student_model", toy / "base", "--output_dir", toy / "teacher"]
    with pytest.raises(UserError, match="--resume"):
        toy.run("--finetune", *flags)


# --- other tasks -------------------------------------------------------------------------------


def test_sts_b_learns_from_the_teachers_outputs(toy: Toy, tmp_path: Path) -> None:
    """With every gold label of the training data replaced, the student is the same."""
    student = ["--student_model", toy / "base", "--output_dir", toy / "sts_teacher"]
    toy.run("--finetune", *student, task="STS-B", epochs=8)
    assert toy.results("sts_teacher")["corr"] > 0.8
    nonsense = toy.root / "nonsense"
    shutil.copytree(toy.root / "data" / "STS-B", nonsense)
    rows = [line.split("\t") for line in (nonsense / "train.tsv").read_text().splitlines()]
    write_rows(nonsense / "train.tsv", rows[0], [[*row[:-1], "1.5"] for row in rows[1:]])
    students = {}
    for name, flags in (
        ("sts_true", []),
        ("sts_nonsense", ["--data_dir", str(nonsense)]),
        ("sts_hard", ["--data_dir", str(nonsense), "--hard_labels"]),
    ):
        common = ["--pred_distill", "--teacher_model", toy / "sts_teacher"]
        common += ["--student_model", toy / "general", "--output_dir", toy / name]
        toy.run(*common, *flags, task="STS-B", epochs=1)
        students[name] = weights_of(toy / name)
    for name, tensor in students["sts_true"].items():
        assert torch.equal(tensor, students["sts_nonsense"][name]), name
    head = "classifier.weight"
    assert not torch.equal(students["sts_true"][head], students["sts_hard"][head])
    flags = ["--student_model", toy / "sts_teacher", "--output_dir", toy / "submission"]
    toy.run("--do_predict", *flags, task="STS-B")
    lines = (toy.root / "submission" / "STS-B.tsv").read_text().splitlines()[1:]
    assert all(0 <= float(line.split("\t")[1]) <= 5 for line in lines) and len(lines) == 9


def test_mnli_reports_both_dev_sets_and_labels_three_test_sets(toy: Toy) -> None:
    flags = ["--student_model", toy / "base", "--output_dir", toy / "mnli" + "/"]
    toy.run("--finetune", "--do_predict", *flags, task="MNLI", epochs=3)
    found = toy.results("mnli")
    assert {"acc", "acc-mm", "eval_loss-mm"} <= found.keys()
    assert toy.results("mnli-MM")["acc"] == found["acc-mm"]
    scores = [r["eval_acc"] for r in toy.metrics("mnli") if "eval_acc" in r]
    assert found["acc"] == max(scores)  # the matched set chooses
    rows = {
        name: (toy.root / "mnli" / f"{name}.tsv").read_text().splitlines()[1:]
        for name in ("MNLI-m", "MNLI-mm", "AX")
    }
    assert {name: len(lines) for name, lines in rows.items()} == {
        "MNLI-m": 7,
        "MNLI-mm": 5,
        "AX": 2,
    }
    labels = {line.split("\t")[1] for lines in rows.values() for line in lines}
    assert labels <= {"entailment", "neutral", "contradiction"}
    toy.run(
        *("--do_eval", "--student_model", toy / "mnli", "--output_dir", toy / "mm"),
        task="MNLI-mm",
    )
    assert toy.results("mm")["acc"] == found["acc-mm"]


def test_own_task_with_many_classes(toy: Toy) -> None:
    rng = random.Random(8)
    data = toy.root / "own"
    data.mkdir()
    words = [word for word in tiny_vocabulary() if len(word) == 1 and word.isalnum()]
    for name, count in (("train", 200), ("dev", 30), ("test", 5)):
        rows = []
        for row in range(count):
            label = (row if name == "train" else rng.randrange(200)) % 150
            word = f"{words[label % 30]} {words[label // 30]}"
            rows.append(json.dumps({"q": word, "kind": label}) + "\n")
        (data / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    own = ["--data_dir", str(data), "--text_columns", "q", "--label_column", "kind"]
    own += ["--best_metric", "macro_f1"]
    flags = ["--student_model", toy / "base", "--output_dir", toy / "own_model"]
    toy.run("--finetune", "--do_predict", *own, *flags, task="own", epochs=1)
    assert {"acc", "macro_f1"} <= toy.results("own_model").keys()
    config = json.loads((toy.root / "own_model" / "config.json").read_text())
    assert list(config["id2label"].values()) == [str(label) for label in range(150)]
    assert len((toy.root / "own_model" / "own.tsv").read_text().splitlines()) == 6


# --- training data, seeds, resuming ------------------------------------------------------------


def test_augmented_data_and_ablations(toy: Toy) -> None:
    data = toy.root / "aug"
    shutil.copytree(toy.root / "data" / "SST-2", data)
    rows = [line.split("\t") for line in (data / "train.tsv").read_text().splitlines()]
    rng = random.Random(2)
    more = [[sentence(rng, "good" if row[1] == "1" else "bad"), row[1]] for row in rows[1:65]]
    write_rows(data / "train_aug.tsv", rows[0], rows[1:65] + more)
    flags = ["--data_dir", str(data), "--aug_train", "--teacher_model", toy / "teacher"]
    flags += ["--student_model", toy / "general", "--log_steps", "1"]
    no_layers = ["--attention_weight", "0", "--hidden_weight", "0"]
    toy.run(*flags, *no_layers, "--output_dir", toy / "embedding_only", epochs=1)
    reports = toy.metrics("embedding_only")
    assert len([r for r in reports if "loss" in r]) == 4  # 128 rows in batches of 32
    assert not any("/" in name for report in reports for name in report)
    gold = ["--pred_distill", "--hard_label_weight", "1"]
    toy.run(*flags, *gold, "--output_dir", toy / "gold", epochs=1)
    everywhere = [*gold, "--hard_labels_on_augmented"]
    toy.run(*flags, *everywhere, "--output_dir", toy / "gold_everywhere", epochs=1)
    first, second = (toy.metrics(name)[0] for name in ("gold", "gold_everywhere"))
    assert first["prediction"] == second["prediction"]
    assert 0 < first["prediction_gold"] < second["prediction_gold"]


def test_several_seeds(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--student_model", toy / "base", "--output_dir", toy / "seeds", "--seed", "1", "2"]
    toy.run("--finetune", *flags, epochs=1)
    each = [toy.results(f"seeds/seed_{seed}") for seed in (1, 2)]
    found = toy.results("seeds")
    scores = [results["acc"] for results in each]
    assert found["acc_mean"] == pytest.approx(np.mean(scores))
    assert found["acc_std"] == pytest.approx(np.std(scores, ddof=1))
    best = max((1, 2), key=lambda seed: (each[seed - 1]["acc"], -each[seed - 1]["eval_loss"]))
    assert (found["best_seed"], found["acc"]) == (best, max(scores))
    assert same_weights(toy / "seeds", toy / f"seeds/seed_{best}")
    for name in ("dev_report.txt", "dev_report.json", "confusion_matrix.png"):
        kept = (toy.root / "seeds" / name).read_bytes()
        assert kept == (toy.root / f"seeds/seed_{best}" / name).read_bytes()
    assert not same_weights(toy / "seeds/seed_1", toy / "seeds/seed_2")
    assert "mean" in capsys.readouterr().out
    toy.run("--finetune", *flags, "--resume", epochs=1)  # finished already: the same again
    assert toy.results("seeds") == found


def test_layers_copied_from_the_teacher(toy: Toy) -> None:
    config = json.loads((toy.root / "teacher" / "config.json").read_text())
    student = toy.root / "two_layers"
    student.mkdir()
    (student / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    flags = ["--teacher_model", toy / "teacher", "--student_model", str(student)]
    flags += ["--init_from_teacher", "2,4", "--output_dir", toy / "copied"]
    toy.run(*flags, "--learning_rate", "0", epochs=0.1)
    ours, theirs = weights_of(toy / "copied"), weights_of(toy / "teacher")
    for name in ("attention.self.query.weight", "output.dense.bias"):
        assert torch.equal(
            ours[f"bert.encoder.layer.1.{name}"], theirs[f"bert.encoder.layer.3.{name}"]
        )
    assert toy.metrics("copied")[-1]["eval_embedding"] == pytest.approx(0, abs=1e-9)


def test_a_narrow_student_is_computed_from_the_teacher(
    toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = json.loads((toy.root / "teacher" / "config.json").read_text())
    student = toy.root / "narrow"
    student.mkdir()
    narrow = {"num_hidden_layers": 2, "hidden_size": 20, "intermediate_size": 40}
    (student / "config.json").write_text(json.dumps(config | narrow))
    flags = ["--pred_distill", "--teacher_model", toy / "teacher", "--student_model", str(student)]
    flags += ["--init_from_teacher", "uniform", "--eval_step", "10", "--learning_rate", "1e-5"]
    toy.run(*flags, "--output_dir", toy / "computed", epochs=0.5)
    start = toy.metrics("computed")[0]
    assert start["step"] == 0 and start["eval_acc"] > 0.9  # the teacher knows the task
    assert {"explained/0", "explained/1", "explained/2"} <= start.keys()
    assert "dev acc before training" in caplog.text
    # What stands at the end began from there: a rate so small moves little.
    assert toy.results("computed")["acc"] > 0.9
    toy.run(*flags[:-2], "--learning_rate", "0.5", "--output_dir", toy / "destroyed", epochs=0.5)
    assert "the training destroys what the student began with; lower --learning_rate" in caplog.text
    # What is delivered is then the student as it was computed.
    results = toy.results("destroyed")
    assert (results["global_step"], results["acc"]) == (0, start["eval_acc"])
    assert "no evaluation was better than the student before training" in caplog.text
    assert "the student of step 0, the best, before any training" in caplog.text
    flags = ["--do_eval", "--student_model", toy / "destroyed", "--output_dir", toy / "looked_at_3"]
    toy.run(*flags)
    assert toy.results("looked_at_3")["acc"] == start["eval_acc"]


@pytest.mark.parametrize("stage", ["layers", "prediction"])
def test_a_resumed_run_equals_an_unbroken_one(
    toy: Toy, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--teacher_model", toy / "teacher", "--save_steps", "3", "--eval_step", "5"]
    flags += ["--student_model", toy / "layers", "--log_steps", "2"]
    flags += ["--pred_distill"] if stage == "prediction" else []
    flags += ["--gradient_accumulation_steps", "2", "--train_batch_size", "48"]
    toy.run(*flags, "--output_dir", toy / f"unbroken_{stage}", epochs=1.5)
    save = RunState.save
    saves = []

    def die_after_saving(self: RunState, *args: object) -> None:
        save(self, *args)
        saves.append(self.step)
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunState, "save", die_after_saving)
    output = ["--output_dir", toy / f"broken_{stage}"]
    with pytest.raises(KeyboardInterrupt):
        toy.run(*flags, *output, epochs=1.5)
    assert saves == [3, 6]
    toy.run(*flags, *output, "--resume", epochs=1.5)
    assert same_weights(toy / f"broken_{stage}", toy / f"unbroken_{stage}")
    assert toy.metrics(f"broken_{stage}") == toy.metrics(f"unbroken_{stage}")
    assert toy.results(f"broken_{stage}") == toy.results(f"unbroken_{stage}")
    with pytest.raises(UserError, match="--num_train_epochs was 1.5 and is now 2"):
        toy.run(*flags, *output, "--resume", epochs=2)


def test_defaults_come_from_the_table_and_are_said(
    toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    data = ["--data_dir", str(toy.root / "data" / "SST-2"), "--task_name", "sst2"]
    flags = ["--teacher_model", toy / "teacher", "--student_model", toy / "general"]
    output = ["--output_dir", toy / "defaults", "--train_batch_size", "384"]
    task_distill.main([*data, *flags, *output])
    args = json.loads((toy.root / "defaults" / "args.json").read_text())
    assert (args["num_train_epochs"], args["max_seq_length"], args["eval_step"]) == (20, 64, 50)
    assert "--num_train_epochs 20: the default for SST-2" in caplog.text


def test_onnx_and_benchmark(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("onnxscript")
    quick = replace_effort()
    monkeypatch.setattr("transformer.tasks.benchmark.Effort", quick)
    flags = ["--student_model", toy / "student", "--teacher_model", toy / "teacher"]
    flags += ["--output_dir", toy / "deployed", "--export_onnx", toy / "student.onnx"]
    toy.run("--benchmark", *flags)
    figures = json.loads((toy.root / "deployed" / "benchmark.json").read_text())
    assert figures["student"]["parameters"] < figures["teacher"]["parameters"]
    graph = toy.root / "student.onnx"
    assert figures["student_onnx"]["size_on_disk"] == graph.stat().st_size
    assert figures["student_int8"]["size_on_disk"] < graph.stat().st_size
    # The graph gives the student's answers; what each of them scores is measured by itself.
    assert figures["student_onnx"]["score"] == figures["student"]["score"] > 0.5
    assert figures["teacher"]["score"] == toy.results("teacher")["acc"]
    assert (toy.root / "deployed" / "benchmark.png").stat().st_size > 1000
    assert not (toy.root / "deployed" / "eval_results.json").exists()
    table = capsys.readouterr().out
    assert re.split(" {2,}", table.split("\n")[0].strip()) == [
        *("teacher", "student", "student ONNX", "student int8"),
    ]


def test_a_benchmark_without_the_packages_of_onnx(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("transformer.tasks.benchmark.Effort", replace_effort())
    monkeypatch.setattr("transformer.tasks.deliver.missing_onnx_packages", lambda: ["onnx"])
    flags = ["--student_model", toy / "student", "--output_dir", toy / "without_onnx"]
    toy.run("--benchmark", *flags)
    figures = json.loads((toy.root / "without_onnx" / "benchmark.json").read_text())
    assert "student_onnx" not in figures and "student_int8" not in figures
    assert "without onnx (pip install -r requirements-onnx.txt)" in caplog.text


def replace_effort() -> Callable[[], object]:
    """Return a way to measure that takes no time."""
    from transformer.tasks.benchmark import Effort

    quick = replace(Effort(), sentences=2, turns=1, seconds=0.0, turn_seconds=0.0)
    return lambda: quick


def test_every_flag_of_the_original_is_there() -> None:
    parser = task_distill.build_parser()
    original = (
        "data_dir teacher_model student_model task_name output_dir cache_dir max_seq_length "
        "do_eval do_lower_case train_batch_size eval_batch_size learning_rate weight_decay wd "
        "num_train_epochs warmup_proportion no_cuda seed gradient_accumulation_steps aug_train "
        "eval_step pred_distill data_url temperature"
    )
    flags = {option for action in parser._actions for option in action.option_strings}
    assert {f"--{name}" for name in original.split()} <= flags
    assert all(action.help for action in parser._actions)


def test_models_are_classifiers_that_hugging_face_opens(toy: Toy) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(toy / "student").eval()
    ours = TinyBertForSequenceClassification.from_pretrained(toy / "student").eval()
    ids = torch.randint(5, 60, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, atol=1e-5, rtol=1e-5)


def test_the_ablations_are_commands_that_parse(tmp_path: Path) -> None:
    script = Path(task_distill.__file__).parent / "examples" / "ablations.sh"
    names = ("TEACHER", "GENERAL", "STUDENT_CONFIG", "DATA_DIR", "OUTPUT_DIR")
    settings = {name: str(tmp_path / name.lower()) for name in names}
    settings |= {"TASK_NAME": "CoLA", "DRY_RUN": "1", "FLAGS": "--seed 1 2"}
    command = ["bash", str(script)]
    printed = subprocess.run(
        command, env={**os.environ, **settings}, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    parser = task_distill.build_parser()
    runs = [parser.parse_args(shlex.split(line)[2:]) for line in printed]
    assert len(runs) == 24  # fourteen students, ten of them in two stages
    assert all(run.seed == [1, 2] for run in runs)
    by_name = {"/".join(run.output_dir.parts[-2:]): run for run in runs}
    assert by_name["no_trm/intermediate"].attention_weight == 0
    assert by_name["no_trm/intermediate"].hidden_weight == 0
    assert by_name["no_pred/tinybert"].hard_labels and not by_name["no_pred/tinybert"].aug_train
    assert by_name["no_gd/intermediate"].student_model == settings["STUDENT_CONFIG"]
    assert by_name["top/intermediate"].layer_mapping == "top"
    computed, random = by_name["closed_form/tinybert"], by_name["no_closed_form/tinybert"]
    assert (computed.init_from_teacher, random.init_from_teacher) == ("uniform", None)
    assert {**vars(computed), "output_dir": 0} == {
        **vars(random),
        "output_dir": 0,
        "init_from_teacher": "uniform",
    }
    assert by_name["closed_form_only/tinybert"].learning_rate == 0
    del settings["TEACHER"]
    failed = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert (failed.returncode, "TEACHER is not set" in failed.stderr) == (2, True)
