"""Several labels a text: cells, losses, scores, and a run from gold labels to a student.

bash tests/run.sh tests/tasks/test_multi_label.py
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_vocabulary
from sklearn import metrics as sk
from torch.nn import functional as F

import task_distill
from transformer.checkpoint.directory import save_checkpoint
from transformer.configuration import BertConfig
from transformer.distillation.losses import gold_loss, prediction_loss
from transformer.files import UserError
from transformer.modeling import TinyBertForSequenceClassification
from transformer.tasks.files import LabelReader, RowReader, with_labels
from transformer.tasks.kinds import MULTI_LABEL
from transformer.tasks.metrics import compute_metrics
from transformer.tasks.table import Source, Task
from transformer.tokenization import BertTokenizer
from transformer.training.batches import Batch, LossCounts

TASK = Task(
    *("topics", ("text",), "labels", Source("train"), (Source("dev"),), ()),
    kind=MULTI_LABEL,
    metrics=MULTI_LABEL.metrics,
    best_metric=MULTI_LABEL.best_metric,
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.tsv", "text\tlabels\na\tfilm,good\nb\t\nc\tgood\n"),
        ("train.csv", 'text,labels\na,"film, good"\nb,\nc,good\n'),
        (
            "train.jsonl",
            '{"text": "a", "labels": ["film", "good"]}\n{"text": "b", "labels": []}\n'
            '{"text": "c", "labels": "good"}\n',
        ),
    ],
)
def test_cells_hold_any_number_of_labels(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    task = with_labels(TASK, tmp_path)
    assert task.labels == ("film", "good")
    read, reader = LabelReader.of(task), RowReader(tmp_path / name, task, task.train)
    rows = [read(reader.label(row.cells), reader.path, row.line) for row in reader]
    assert rows == [[1, 1], [0, 0], [0, 1]] and not reader.left_out
    with pytest.raises(UserError, match="line 4: label 'bad'; the labels are film, good"):
        read("film|bad", tmp_path / name, 4)


def test_scores_equal_sklearns() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 5)), rng.integers(0, 2, (40, 5)).astype(np.float32)
    task = replace(TASK, labels=tuple("abcde"))
    found = compute_metrics(task, logits, labels)
    guesses = 1 / (1 + np.exp(-logits)) > 0.5
    assert found["micro_f1"] == pytest.approx(sk.f1_score(labels, guesses, average="micro"))
    each = [sk.f1_score(labels[:, column], guesses[:, column]) for column in range(5)]
    assert found["label_macro_f1"] == pytest.approx(np.mean(each))
    assert found["exact_labels"] == pytest.approx(
        np.mean([all(a == b) for a, b in zip(labels, guesses, strict=True)])
    )
    loss = np.mean([sk.log_loss(labels.ravel(), 1 / (1 + np.exp(-logits.ravel())))])
    assert MULTI_LABEL.loss(logits, labels) == pytest.approx(loss)
    assert MULTI_LABEL.cells(task, np.array([[1, -1, 2, -3, 0], [-1] * 5])) == ['["a", "c"]', "[]"]


def test_losses_ask_about_each_label() -> None:
    student, teacher = torch.randn(2, 4, 3)
    labels = torch.randint(2, (4, 3)).float()
    batch = Batch(*[torch.zeros(4, 2)] * 3, labels, None, torch.arange(4))
    counts = LossCounts(4, 1, 1)
    ours, theirs = torch.sigmoid(student), torch.sigmoid(teacher)
    soft = -(theirs * ours.log() + (1 - theirs) * (1 - ours).log()).mean()
    torch.testing.assert_close(prediction_loss(student, teacher, batch, counts, kind="bce"), soft)
    hard = F.binary_cross_entropy(ours, labels)
    torch.testing.assert_close(gold_loss(student, None, batch, counts, kind="bce"), hard)


def write_toy(path: Path, count: int) -> None:
    """Write texts whose labels are the marked words in them."""
    rng = random.Random(path.name)
    marked = ["good", "bad", "king"]
    rows = []
    for _ in range(count):
        words = rng.choices(["the", "story", "film", "of", *marked], k=rng.randint(2, 8))
        rows.append({"text": " ".join(words), "labels": sorted({*words} & {*marked})})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_teacher_of_hugging_face_teaches_a_student(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    data = tmp_path / "data"
    data.mkdir()
    for name, count in (("train", 400), ("dev", 80), ("test", 20)):
        write_toy(data / f"{name}.jsonl", count)
    (tmp_path / "vocab.txt").write_text("\n".join(tiny_vocabulary()) + "\n")
    tokenizer = BertTokenizer(tmp_path / "vocab.txt", True)
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.15}
    for name, layers in (("bert", 3), ("general", 2)):
        config = BertConfig(*(len(tiny_vocabulary()), 32, layers), intermediate_size=37, **sizes)
        save_checkpoint(TinyBertForSequenceClassification(config), tokenizer, tmp_path / name)
    flags = ["--task_name", "topics", "--data_dir", str(data), "--text_columns", "text"]
    flags += ["--label_column", "labels", "--max_seq_length", "32", "--learning_rate", "2e-3"]
    teacher, student = str(tmp_path / "teacher"), str(tmp_path / "student")
    multi = [*flags, "--multi_label", "--num_train_epochs", "8"]
    task_distill.main(
        [*multi, "--finetune", "--student_model", str(tmp_path / "bert"), "--output_dir", teacher]
    )
    # As Hugging Face writes it, to be sure that its key is what is recognised.
    model = transformers.AutoModelForSequenceClassification.from_pretrained(teacher)
    assert model.config.problem_type == "multi_label_classification"
    model.save_pretrained(teacher)
    pair = ["--teacher_model", teacher, "--student_model", str(tmp_path / "general")]
    with pytest.raises(UserError, match="give --multi_label"):
        task_distill.main(
            [
                *flags,
                "--pred_distill",
                *pair,
                "--labels",
                "good",
                "bad",
                "king",
                "--output_dir",
                str(tmp_path / "x"),
            ]
        )
    task_distill.main([*multi, "--pred_distill", *pair, "--do_predict", "--output_dir", student])
    results = json.loads((tmp_path / "student" / "eval_results.json").read_text())
    assert results["teacher_micro_f1"] > 0.95 and results["micro_f1"] > 0.8
    lines = (tmp_path / "student" / "topics.tsv").read_text().splitlines()
    answer = transformers.pipeline("text-classification", student, top_k=None)
    texts = [json.loads(line)["text"] for line in (data / "test.jsonl").read_text().splitlines()]
    for line, found in zip(lines[1:], answer(texts), strict=True):
        expected = sorted(each["label"] for each in found if each["score"] > 0.5)
        assert sorted(json.loads(line.split("\t")[1])) == expected
