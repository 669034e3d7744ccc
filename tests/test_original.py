"""With the flags that bring the original back, the scripts compute what its authors' code does.

Twenty steps of every stage, from the same weights and over the same texts in the same order, beside
`original_step.py`. The authors' students drop out, which no two programs do alike: both sides are
compared without.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import tiny_vocabulary
from original_step import (
    Texts,
    Value,
    Weights,
    constant,
    encode,
    gold_regression_loss,
    layer_loss,
    prediction_loss,
    train,
    values_of,
    warmup_linear,
)
from safetensors.numpy import load_file, save_file

import general_distill
import task_distill
from transformer.modeling import BertForPreTraining, TinyBertForPreTraining
from transformer.modeling import TinyBertForSequenceClassification as Classifier
from transformer.training import loop

VOCAB = {token: number for number, token in enumerate(tiny_vocabulary())}
WORDS = ["good", "bad", "film", "plot", "the", "a", "story", "actor", "dull", "great", "city"]
STEPS, BATCH, HEADS, RATE, LENGTH = 20, 4, 4, 1e-3, 20
STUDENT = {"hidden_size": 24, "num_hidden_layers": 2, "fit_size": 32, "classifier_relu": True}
SCORES = {"id2label": {0: "LABEL_0"}, "problem_type": "regression"}


@dataclass(frozen=True)
class Stage:
    """A stage: the flags that bring the original back, and what the original computes in it."""

    script: ModuleType
    task: str | None
    flags: tuple[str, ...]
    loss: Callable[[Weights, Weights, Texts, int], Value]
    schedule: Callable[[float], float]


STAGES = {
    "general": Stage(general_distill, None, ("--loss_on_padding",), layer_loss, warmup_linear),
    "intermediate": Stage(task_distill, "SST-2", ("--loss_on_padding",), layer_loss, constant),
    "prediction": Stage(
        task_distill,
        "SST-2",
        ("--pred_distill", "--original_soft_ce"),
        prediction_loss,
        warmup_linear,
    ),
    "STS-B": Stage(
        task_distill,
        "STS-B",
        ("--pred_distill", "--hard_labels"),
        gold_regression_loss,
        warmup_linear,
    ),
}


def written_texts(directory: Path, task: str | None) -> list[tuple[list[str], list[str], float]]:
    """Write the data of a stage and return it: two texts, the second empty or not, and a value."""
    rng = random.Random(4)
    directory.mkdir()
    texts = []
    for _ in range(STEPS * BATCH):
        first, second = (rng.choices(WORDS, k=rng.randint(1, 8)) for _ in "ab")
        texts.append((first, [] if task == "SST-2" else second, float(rng.randint(0, 1))))
    if task is None:
        write_examples(directory, texts)
        return texts
    head, padding = {
        "SST-2": ("sentence\tlabel", ""),
        "STS-B": ("\t".join("abcdefg") + "\tsentence1\tsentence2\tscore", "x\t" * 7),
    }[task]
    lines = [head]
    for first, second, gold in texts:
        cells = [" ".join(text) for text in (first, second) if text]
        lines.append(padding + "\t".join([*cells, f"{gold:g}"]))
    (directory / "train.tsv").write_text("\n".join(lines) + "\n")
    (directory / "dev.tsv").write_text("\n".join(lines[:9]) + "\n")
    return texts


def write_examples(directory: Path, texts: list[tuple[list[str], list[str], float]]) -> None:
    lines = []
    for first, second, _ in texts:
        tokens = ["[CLS]", *first, "[SEP]", *second, "[SEP]"]
        segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        lines.append(json.dumps({"tokens": tokens, "segment_ids": segments}) + "\n")
    (directory / "epoch_0.json").write_text("".join(lines))
    facts = {"num_training_examples": len(texts), "max_seq_len": LENGTH}
    (directory / "epoch_0_metrics.json").write_text(json.dumps(facts))


def padded(texts: list[tuple[list[str], list[str], float]]) -> Texts:
    """Return a batch as the authors' code makes it: padded to the maximum length with 0."""
    ids = np.zeros((len(texts), LENGTH), np.int64)
    segments, is_real = np.zeros_like(ids), np.zeros_like(ids)
    for row, (first, second, _) in enumerate(texts):
        tokens = ["[CLS]", *first, "[SEP]", *([*second, "[SEP]"] if second else [])]
        ids[row, : len(tokens)] = [VOCAB[token] for token in tokens]
        segments[row, len(first) + 2 : len(tokens)] = 1
        is_real[row, : len(tokens)] = 1
    return Texts(ids, segments, is_real, np.array([gold for *_, gold in texts]))


@pytest.fixture
def distance(
    tmp_path: Path, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., float]:
    """Return a function that runs a stage with flags.

    It returns how far the script's end lies from the original's, in units of how far that moved.
    """
    orders: list[list[int]] = []
    take_step = loop.take_step

    def watched(student, objective, step_batch, *rest) -> None:
        orders.append([int(i) for batch in step_batch.batches for i in batch.indices])
        take_step(student, objective, step_batch, *rest)

    monkeypatch.setattr(loop, "take_step", watched)

    def measure(stage: Stage, flags: tuple[str, ...]) -> float:
        teacher, student = models(make_checkpoint, stage)
        texts = written_texts(tmp_path / "data", stage.task)
        argv = ["--teacher_model", str(teacher), "--student_model", str(student)]
        argv += ["--output_dir", str(tmp_path / "out"), "--train_batch_size", str(BATCH)]
        argv += ["--num_train_epochs", "1", "--learning_rate", str(RATE), "--precision", "fp32"]
        argv += ["--student_dropout", "0", "--no_cuda", *flags]
        if stage.task is None:
            argv += ["--pregenerated_data", str(tmp_path / "data"), "--continue_train"]
        else:
            argv += ["--data_dir", str(tmp_path / "data"), "--task_name", stage.task]
            argv += ["--max_seq_length", str(LENGTH)]
        stage.script.main(argv)
        assert len(orders) == STEPS

        start = values_of(load_file(student / "model.safetensors"))
        end = train(
            start,
            values_of(load_file(teacher / "model.safetensors")),
            [padded([texts[i] for i in order]) for order in orders],
            heads=HEADS,
            steps=STEPS,
            learning_rate=RATE,
            loss=stage.loss,
            schedule=stage.schedule,
        )
        return compare(load_file(tmp_path / "out" / "model.safetensors"), start, end)

    return measure


def models(make_checkpoint: Callable[..., Path], stage: Stage) -> tuple[Path, Path]:
    """Make the teacher and the student of a stage; the row of padding is random, as theirs is."""
    if stage.task is None:
        kinds, labels = (BertForPreTraining, TinyBertForPreTraining), {}
    else:
        kinds, labels = (Classifier, Classifier), SCORES if stage.task == "STS-B" else {}
    changes = {"classifier_relu": True, **labels}
    paths = (
        make_checkpoint("teacher", kinds[0], **changes),
        make_checkpoint("student", kinds[1], **STUDENT, **labels),
    )
    for path in paths:
        weights = load_file(path / "model.safetensors")
        table = weights["bert.embeddings.word_embeddings.weight"]
        table[0] = np.random.default_rng(0).normal(size=table.shape[1]) * 0.15
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return paths


def compare(ours: dict[str, np.ndarray], start: Weights, end: dict[str, np.ndarray]) -> float:
    """Return the distance of our end from `end`, over the distance of `end` from the start."""
    moved = {name for name in end if not np.array_equal(end[name], start[name].array)}
    assert moved <= ours.keys() and len(moved) > 30
    for name in ours.keys() - moved:
        np.testing.assert_array_equal(ours[name], start[name].array.astype(np.float32), name)
    off = sum(((ours[name] - end[name]) ** 2).sum() for name in moved)
    return float(np.sqrt(off / sum(((end[n] - start[n].array) ** 2).sum() for n in moved)))


@pytest.mark.parametrize("name", STAGES)
def test_twenty_steps_end_where_the_original_ends(distance, name):
    stage = STAGES[name]
    assert distance(stage, stage.flags) < 1e-4


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("general", ()),
        ("intermediate", ()),
        ("intermediate", ("--loss_on_padding", "--schedule=warmup_linear")),
        ("prediction", ("--pred_distill",)),
        ("STS-B", ("--pred_distill",)),
    ],
)
def test_without_one_of_the_flags_they_end_elsewhere(distance, name, flags):
    assert distance(STAGES[name], flags) > 1e-2


def test_the_tape_gives_the_slopes_of_the_losses(make_checkpoint):
    """Central differences along random directions, of all parameters at once."""
    rng = np.random.default_rng(1)
    texts = padded([(["good", "film"], ["the", "plot"], 1.0), (["dull"], [], 0.0)])
    paths = models(make_checkpoint, STAGES["prediction"])
    teacher, student = (values_of(load_file(path / "model.safetensors")) for path in paths)
    for loss in (layer_loss, prediction_loss, gold_regression_loss):
        one = Texts(*texts)
        current = {name: Value(value.array) for name, value in student.items()}
        loss(current, teacher, one, HEADS).backward()
        ways = {name: rng.normal(size=value.array.shape) for name, value in student.items()}
        ways["bert.embeddings.word_embeddings.weight"][0] = 0  # frozen
        ends = [
            loss(
                {n: Value(v.array + sign * 1e-5 * ways[n]) for n, v in student.items()},
                *(teacher, one, HEADS),
            ).array
            for sign in (1, -1)
        ]
        slope = sum(
            (value.gradient * ways[name]).sum()
            for name, value in current.items()
            if value.gradient is not None
        )
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)
    assert len(encode(student, texts, HEADS).scores) == 2
