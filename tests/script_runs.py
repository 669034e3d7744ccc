"""The four scripts as a user runs them, in this process, and everything that they need to run.

A test spoils one thing of the setting, or of the arguments, and looks at how the script ends.
"""

from __future__ import annotations

import json
import runpy
import signal
import sys
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


def runner(
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


def make_setting(
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
