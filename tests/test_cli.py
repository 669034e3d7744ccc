"""The scripts as a user meets them: help, and one clear line for each mistake.

bash tests/run.sh tests/test_cli.py
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from transformer.modeling import (
    BertForMaskedLM,
    TinyBertForPreTraining,
    TinyBertForSequenceClassification,
)

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = (
    "pregenerate_training_data.py",
    "general_distill.py",
    "data_augmentation.py",
    "task_distill.py",
)


@dataclass
class Finished:
    """How a script ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Iterator[Callable[..., Finished]]:
    """Return `run(script, *arguments)`, which runs a script as its own main program."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run_in_process(script: str, *arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *map(str, arguments)])
        capfd.readouterr()
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        streams = capfd.readouterr()
        return Finished(code, streams.out, streams.err)

    yield run_in_process
    for number, handler in handlers.items():
        signal.signal(number, handler)


def assert_told(end: Finished, script: str, *parts: str) -> None:
    """Check that the user is told of a mistake: exit code 2, one line that names `parts`."""
    assert end.code == 2, end.stderr
    assert "Traceback" not in end.stderr
    lines = [line for line in end.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, end.stderr
    assert lines[0].startswith(f"{script}: error: ")
    assert end.stderr.splitlines()[-1] == lines[0]
    for part in parts:
        assert part in lines[0]


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_works_from_anywhere_and_soon(script: str, tmp_path: Path) -> None:
    began = time.monotonic()
    end = subprocess.run(
        [sys.executable, ROOT / script, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert end.returncode == 0, end.stderr
    assert end.stdout.startswith(f"usage: {script}")
    assert end.stderr == ""
    assert list(tmp_path.iterdir()) == [], "importing a script writes files"
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_and_unknown_flags_are_told(script: str, run: Callable[..., Finished]) -> None:
    assert_told(run(script), script, "required")
    end = run(script, "--no_such_flag", "1")
    assert end.code == 2
    assert "Traceback" not in end.stderr


# --- a complete setting, of which each test spoils one thing -------------------------------------


@pytest.fixture
def setting(
    tmp_path: Path, make_checkpoint: Callable[..., Path], corpus_file: Path
) -> dict[str, Path]:
    """Make everything that the scripts read: corpus, examples, models, task, word vectors."""
    places = {
        "corpus": corpus_file,
        "bert": make_checkpoint("bert", BertForMaskedLM),
        "teacher": make_checkpoint("teacher", TinyBertForSequenceClassification),
        "student": make_checkpoint("student", TinyBertForPreTraining, num_hidden_layers=2),
        "pregenerated": tmp_path / "pregenerated",
        "task": tmp_path / "glue" / "SST-2",
        "glove": tmp_path / "glove.txt",
        "out": tmp_path / "out",
    }
    places["pregenerated"].mkdir()
    example = {
        "tokens": ["[CLS]", "good", "film", "[SEP]", "bad", "plot", "[SEP]"],
        "segment_ids": [0, 0, 0, 0, 1, 1, 1],
        "is_random_next": False,
        "masked_lm_positions": [],
        "masked_lm_labels": [],
    }
    lines = json.dumps(example) + "\n"
    (places["pregenerated"] / "epoch_0.json").write_text(lines * 8, encoding="utf-8")
    metrics = {"num_training_examples": 8, "max_seq_len": 32}
    (places["pregenerated"] / "epoch_0_metrics.json").write_text(json.dumps(metrics))
    places["task"].mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv"):
        rows = "sentence\tlabel\ngood film\t1\nbad film\t0\n"
        (places["task"] / name).write_text(rows, encoding="utf-8")
    places["glove"].write_text("good 0.1 0.2\nbad 0.3 -0.4\n", encoding="utf-8")
    return places


def pregenerate_arguments(setting: dict[str, Path], **changes: object) -> list[object]:
    arguments = {"train_corpus": setting["corpus"], "bert_model": setting["bert"]}
    return flags({**arguments, "output_dir": setting["out"], **changes})


def general_arguments(setting: dict[str, Path], **changes: object) -> list[object]:
    arguments = {
        "pregenerated_data": setting["pregenerated"],
        "teacher_model": setting["teacher"],
        "student_model": setting["student"],
        "max_seq_length": 32,
    }
    return flags({**arguments, "output_dir": setting["out"], **changes})


def augmentation_arguments(setting: dict[str, Path], **changes: object) -> list[object]:
    arguments = {
        "pretrained_bert_model": setting["bert"],
        "glove_embs": setting["glove"],
        "glue_dir": setting["task"].parent,
        "task_name": "SST-2",
        "N": 1,
    }
    return flags({**arguments, **changes})


def task_arguments(setting: dict[str, Path], **changes: object) -> list[object]:
    arguments = {
        "teacher_model": setting["teacher"],
        "student_model": setting["student"],
        "data_dir": setting["task"],
        "task_name": "SST-2",
        "max_seq_length": 32,
        "num_train_epochs": 1,
    }
    return flags({**arguments, "output_dir": setting["out"], **changes})


def flags(values: dict[str, object]) -> list[object]:
    """Spell arguments; None leaves a flag out, True gives it without a value."""
    spelled: list[object] = []
    for name, value in values.items():
        if value is True:
            spelled.append(f"--{name}")
        elif value is not None:
            spelled += [f"--{name}", value]
    return spelled


ARGUMENTS = dict(
    zip(
        SCRIPTS,
        (pregenerate_arguments, general_arguments, augmentation_arguments, task_arguments),
        strict=True,
    )
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_setting_itself_works(
    script: str, setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    end = run(script, *ARGUMENTS[script](setting))
    assert end.code == 0, end.stderr
    assert "error" not in end.stderr


MISTAKES = {
    "no corpus": ("pregenerate_training_data.py", {"train_corpus": "nowhere.txt"}, ["nowhere.txt"]),
    "no vocabulary": ("pregenerate_training_data.py", {"bert_model": "/nowhere"}, ["/nowhere"]),
    "mask everything": ("pregenerate_training_data.py", {"masked_lm_prob": 2}, ["masked_lm_prob"]),
    "no time": ("pregenerate_training_data.py", {"num_workers": 0}, ["num_workers"]),
    "no examples": ("general_distill.py", {"pregenerated_data": "/nowhere"}, ["/nowhere"]),
    "no teacher": ("general_distill.py", {"teacher_model": "/nowhere"}, ["/nowhere"]),
    "no student": ("general_distill.py", {"student_model": "/nowhere"}, ["/nowhere"]),
    "length": ("general_distill.py", {"max_seq_length": 128}, ["max_seq_length", "64"]),
    "fp16": ("general_distill.py", {"fp16": True, "no_cuda": True}, ["fp16", "CPU"]),
    "precision": ("general_distill.py", {"precision": "fp16", "no_cuda": True}, ["fp16"]),
    "epochs": ("general_distill.py", {"num_train_epochs": 0}, ["num_train_epochs"]),
    "batch": ("general_distill.py", {"train_batch_size": 0}, ["train_batch_size"]),
    "accumulation": (
        "general_distill.py",
        {"gradient_accumulation_steps": 64},
        ["gradient_accumulation_steps"],
    ),
    "mapping": ("general_distill.py", {"layer_mapping": "1,9"}, ["layer_mapping", "1 to 4"]),
    "weights": ("general_distill.py", {"attention_weight": -1}, ["attention_weight"]),
    "unknown task to augment": ("data_augmentation.py", {"task_name": "SST2x"}, ["SST2x"]),
    "no task directory": ("data_augmentation.py", {"glue_dir": "/nowhere"}, ["/nowhere"]),
    "no word vectors": ("data_augmentation.py", {"glove_embs": "/nowhere"}, ["/nowhere"]),
    "probability": ("data_augmentation.py", {"p": 1.5}, ["--p"]),
    "no masked LM": ("data_augmentation.py", {"pretrained_bert_model": None}, ["bert_model"]),
    "unknown task": ("task_distill.py", {"task_name": "sst5"}, ["sst5", "MNLI"]),
    "no data": ("task_distill.py", {"data_dir": "/nowhere"}, ["/nowhere"]),
    "no teacher given": ("task_distill.py", {"teacher_model": None}, ["teacher_model"]),
    "no student there": ("task_distill.py", {"student_model": "/nowhere"}, ["/nowhere"]),
    "no augmented data": ("task_distill.py", {"aug_train": True}, ["train_aug"]),
    "temperature": ("task_distill.py", {"temperature": 0, "pred_distill": True}, ["temperature"]),
    "metric": ("task_distill.py", {"best_metric": "pearson"}, ["best_metric", "pearson"]),
    "two stages": ("task_distill.py", {"finetune": True, "pred_distill": True}, ["--finetune"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_told_in_one_line(
    name: str, setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    script, changes, parts = MISTAKES[name]
    assert_told(run(script, *ARGUMENTS[script](setting, **changes)), script, *parts)
    assert not list(setting["out"].glob("*")), "something was begun before the mistake was found"


@pytest.mark.parametrize(
    "script", ["pregenerate_training_data.py", "general_distill.py", "task_distill.py"]
)
def test_output_directory_with_files_is_refused(
    script: str, setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    setting["out"].mkdir()
    (setting["out"] / "thesis.txt").write_text("mine")
    end = run(script, *ARGUMENTS[script](setting))
    assert_told(end, script, str(setting["out"]), "--overwrite_output_dir")
    assert (setting["out"] / "thesis.txt").read_text() == "mine"


def test_augmented_file_is_not_replaced_unasked(
    setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    (setting["task"] / "train_aug.tsv").write_text("mine")
    end = run("data_augmentation.py", *augmentation_arguments(setting))
    assert_told(end, "data_augmentation.py", "train_aug.tsv", "--overwrite_output")
    assert (setting["task"] / "train_aug.tsv").read_text() == "mine"


# --- models that do not fit ----------------------------------------------------------------------


@pytest.mark.parametrize("script", ["general_distill.py", "task_distill.py"])
def test_other_vocabulary_is_told(
    script: str, setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    vocab = setting["student"] / "vocab.txt"
    tokens = vocab.read_text(encoding="utf-8").splitlines()
    tokens[-1], tokens[-2] = tokens[-2], tokens[-1]
    vocab.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    assert_told(run(script, *ARGUMENTS[script](setting)), script, "vocab")


@pytest.mark.parametrize("script", ["general_distill.py", "task_distill.py"])
def test_other_number_of_heads_is_told(
    script: str, setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    config_file = setting["student"] / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config_file.write_text(json.dumps({**config, "num_attention_heads": 8}), encoding="utf-8")
    told = ("8", "4", "--attention_loss relation")
    assert_told(run(script, *ARGUMENTS[script](setting)), script, *told)


@pytest.mark.parametrize("script", ["general_distill.py", "task_distill.py"])
def test_depth_that_does_not_divide_is_told(
    script: str,
    setting: dict[str, Path],
    make_checkpoint: Callable[..., Path],
    run: Callable[..., Finished],
) -> None:
    student = make_checkpoint("three_layers", TinyBertForPreTraining, num_hidden_layers=3)
    end = run(script, *ARGUMENTS[script](setting, student_model=student))
    assert_told(end, script, "--layer_mapping", "3 student layers")


def test_teacher_of_other_labels_is_told(
    setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    config_file = setting["teacher"] / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    labels = {"id2label": {0: "ham", 1: "spam"}, "label2id": {"ham": 0, "spam": 1}}
    config_file.write_text(json.dumps({**config, **labels}), encoding="utf-8")
    end = run("task_distill.py", *task_arguments(setting))
    assert_told(end, "task_distill.py", "ham", "spam", "0", "1")


def test_teacher_without_classifier_is_told(
    setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    end = run("task_distill.py", *task_arguments(setting, teacher_model=setting["bert"]))
    assert_told(end, "task_distill.py", "bert", "--finetune")


def test_model_without_masked_lm_head_is_told(
    setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    arguments = augmentation_arguments(setting, pretrained_bert_model=setting["teacher"])
    assert_told(run("data_augmentation.py", *arguments), "data_augmentation.py", "--glove_only")


def test_full_disk_is_one_line(tmp_path: Path, setting: dict[str, Path]) -> None:
    """A file size limit stands for the full disk: writing fails in the middle of the run."""
    command = [sys.executable, ROOT / "pregenerate_training_data.py"]
    command += map(str, pregenerate_arguments(setting))
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; trap "" XFSZ; exec "$@"', "bash", *map(str, command)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert limited.returncode in (1, 2), limited.stderr
    assert "Traceback" not in limited.stderr
    assert "pregenerate_training_data.py: error: " in limited.stderr
    assert not (setting["out"] / "epoch_0.json").exists()
