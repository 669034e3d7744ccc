"""How much a gold label counts: read from the command line, computed from the training data."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from transformer.distillation.losses import gold_loss
from transformer.files import UserError
from transformer.tasks.class_weights import (
    check_class_weights,
    class_weights,
    weight_of_each_class,
)
from transformer.tasks.kinds import TOKEN_LABELS
from transformer.tasks.table import Source, Task
from transformer.training.batches import Batch, LossCounts
from transformer.training.packed import PackedDataset, PackedWriter

LABELS = ("a", "b", "c")


def task_of(*labels: str, **changes: object) -> Task:
    source = Source("dev")
    return Task("t", ("x",), "y", source, (source,), (), labels=labels, **changes)


@pytest.fixture
def dataset(tmp_path: Path) -> PackedDataset:
    """Pack six rows and two augmented ones: a, a, a, b, b, c; c, c."""
    writer = PackedWriter(tmp_path / "store", 99, labels=True, flags=True)
    for label, flag in zip([0, 0, 0, 1, 1, 2, 2, 2], [0] * 6 + [1] * 2, strict=True):
        writer.add([5, 6], 2, label=label, flag=flag)
    return writer.close()


def test_weights_are_given_in_a_word_or_a_file(tmp_path: Path) -> None:
    assert class_weights("auto") == "auto"
    assert class_weights("b=2, a=x=0.5") == {"a=x": 0.5, "b": 2.0}
    file = tmp_path / "weights.json"
    file.write_text('{"y, n": 3, "\\u4e2d": 0}', encoding="utf-8")
    assert class_weights(str(file)) == {"y, n": 3.0, "中": 0.0}
    for content in ('{"a": "3"}', '{"a": true}', '{"a": [1]}', "[1, 2]", "a=1", '{"a": NaN}'):
        file.write_text(content)
        with pytest.raises(argparse.ArgumentTypeError):
            class_weights(str(file))


def test_a_label_that_is_not_there_is_told_with_the_nearest() -> None:
    task = task_of("positive", "negative")
    check_class_weights({"positive": 2.0}, task)
    with pytest.raises(UserError, match="no label 'positve'; did you mean 'positive'?"):
        check_class_weights({"positve": 2.0}, task)


@pytest.mark.parametrize(("on_augmented", "rows"), [(False, 6), (True, 8)])
def test_auto_is_what_scikit_learn_calls_balanced(
    dataset: PackedDataset, on_augmented: bool, rows: int
) -> None:
    found = weight_of_each_class("auto", task_of(*LABELS), dataset, on_augmented=on_augmented)
    labels = dataset.labels[:rows]
    expected = compute_class_weight("balanced", classes=np.arange(3.0), y=labels)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_label_that_occurs_nowhere_weighs_nothing(dataset: PackedDataset) -> None:
    found = weight_of_each_class("auto", task_of(*LABELS, "d"), dataset, on_augmented=False)
    np.testing.assert_allclose(found, [6 / 9, 1, 2, 0], rtol=1e-6)


def test_labels_without_a_weight_have_one(dataset: PackedDataset) -> None:
    found = weight_of_each_class({"b": 0.5}, task_of(*LABELS), dataset, on_augmented=False)
    assert found.tolist() == [1, 0.5, 1]
    assert weight_of_each_class(None, task_of(*LABELS), dataset, on_augmented=False) is None


def test_tags_are_counted_by_token(tmp_path: Path) -> None:
    writer = PackedWriter(tmp_path / "store", 99, tags=True, sources=True, flags=True)
    for tags, flag in (([-1, 0, 0, 1, -1], 0), ([-1, 0, -1, -1], 0), ([1, 1], 1)):
        lengths = np.array([len(tags)])
        columns = {"tags": np.array(tags), "sources": np.array([0])}
        writer.add_packed(np.array([5] * len(tags)), lengths, lengths, None, [flag], **columns)
    tagged, task = writer.close(), task_of("O", "B-X", kind=TOKEN_LABELS)
    found = weight_of_each_class("auto", task, tagged, on_augmented=False)
    np.testing.assert_allclose(found, [4 / 6, 4 / 2])
    found = weight_of_each_class("auto", task, tagged, on_augmented=True)
    np.testing.assert_allclose(found, [1, 1])


def test_the_loss_of_a_row_is_multiplied_by_the_weight_of_its_label() -> None:
    logits = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, 0.0], [3.0, 0.0, -2.0]])
    labels = np.array([2, 1, 1])
    batch = Batch(*[None] * len(Batch._fields))._replace(labels=torch.tensor(labels).float())
    weights = np.array([5.0, 0.5, 3.0])
    found = gold_loss(
        logits, None, batch, LossCounts(3, 0, 0, 0), class_weights=torch.tensor(weights).float()
    )
    shares = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    losses = -np.log(shares[range(3), labels])
    assert found.item() == pytest.approx((losses * weights[labels]).sum() / 3)
