"""What each stage of task distillation teaches: pytest tests/test_lessons.py"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from transformer.distillation.layers import IntermediateObjective
from transformer.distillation.objectives import (
    IntermediateLesson,
    PredictionLesson,
    StoredTargets,
    TeacherTargets,
    lesson_loss,
)
from transformer.distillation.teacher_logits import LOGITS_BLOCK, teacher_logits
from transformer.modeling import TinyBertForSequenceClassification
from transformer.runtime.ranks import Runtime
from transformer.training.batches import Batch, LossCounts, collate
from transformer.training.packed import PackedDataset, PackedWriter

CPU = Runtime(torch.device("cpu"))
LABELS = {0: "a", 1: "b", 2: "c"}


@pytest.fixture
def dataset(tmp_path: Path) -> PackedDataset:
    rng = np.random.default_rng(4)
    writer = PackedWriter(tmp_path / "store", 99, labels=True, flags=True)
    for row in range(11):
        length = int(rng.integers(3, 20))
        writer.add(rng.integers(5, 90, length), length // 2, label=row % 3, flag=row % 2)
    return writer.close()


def classifier(config, seed: int, **changes) -> TinyBertForSequenceClassification:
    torch.manual_seed(seed)
    return TinyBertForSequenceClassification(replace(config, id2label=LABELS, **changes)).eval()


def batch_of(dataset: PackedDataset, rows: range, **options: int) -> Batch:
    return collate(dataset, np.asarray(rows), pad_token_id=0, **options)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_a_regression_learns_the_teachers_outputs_not_the_labels(
    tiny_config, dataset: PackedDataset
) -> None:
    torch.manual_seed(1)
    student = TinyBertForSequenceClassification(replace(tiny_config, problem_type="regression"))
    targets = torch.randn(11, 1)
    lesson = PredictionLesson(regression=True, targets=StoredTargets(targets))
    batch = batch_of(dataset, range(3, 8))
    counts = LossCounts(5, 1, 1)
    loss, terms = lesson(student.eval(), batch, counts, CPU)
    output = student(batch.input_ids, batch.token_type_ids, batch.attention_mask).logits
    assert loss.item() == pytest.approx(F.mse_loss(output, targets[3:8]).item(), rel=1e-5)
    other_labels = batch._replace(labels=batch.labels + 7)
    assert lesson(student, other_labels, counts, CPU)[0].item() == loss.item()
    assert set(terms) == {"prediction"}


@pytest.mark.parametrize("on_augmented", [False, True])
def test_gold_labels_count_on_original_rows_unless_asked(
    on_augmented: bool, tiny_config, dataset: PackedDataset
) -> None:
    student = classifier(tiny_config, 1)
    lesson = PredictionLesson(
        regression=False,
        targets=StoredTargets(torch.zeros(11, 3)),
        gold_weight=0.25,
        gold_on_augmented=on_augmented,
        temperature=2.0,
    )
    batch = batch_of(dataset, range(6))
    loss, terms = lesson(student, batch, LossCounts(6, 1, 1), CPU)
    logits = student(batch.input_ids, batch.token_type_ids, batch.attention_mask).logits
    gold = F.cross_entropy(logits, batch.labels.long(), reduction="none")
    counted = gold if on_augmented else gold[batch.flags == 0]
    assert terms["prediction_gold"].item() == pytest.approx(counted.sum().item() / 6, rel=1e-5)
    soft = F.cross_entropy(logits / 2, torch.full((6, 3), 1 / 3))
    assert terms["prediction"].item() == pytest.approx(soft.item(), rel=1e-5)
    expected = terms["prediction"] + 0.25 * terms["prediction_gold"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def lessons(config, dataset: PackedDataset) -> list:
    teacher = classifier(config, 2)
    objective = IntermediateObjective(pairs=((1, 2), (2, 4)))
    return [
        IntermediateLesson(teacher, objective),
        PredictionLesson(False, TeacherTargets(teacher, CPU), gold_weight=1.0),
    ]


@pytest.mark.parametrize("stage", [0, 1])
def test_padding_and_micro_batches_change_nothing(
    stage: int, tiny_config, dataset: PackedDataset
) -> None:
    """Loss and gradients of one batch, of the same padded to 40, and of it in two pieces."""
    lesson = lessons(tiny_config, dataset)[stage]
    student = classifier(tiny_config, 3, num_hidden_layers=2, hidden_size=24, fit_size=32)
    lengths = dataset.lengths(np.arange(7))
    counts = LossCounts(7, int(lengths.sum()), int((lengths**2).sum()))
    found = []
    for pieces in (
        [batch_of(dataset, range(7))],
        [batch_of(dataset, range(7), pad_to=40)],
        [batch_of(dataset, range(3)), batch_of(dataset, range(3, 7))],
    ):
        student.zero_grad(set_to_none=True)
        total = 0.0
        for piece in pieces:
            loss, _ = lesson(student, piece, counts, CPU)
            loss.backward()
            total += loss.item()
        found.append((total, gradients(student)))
    for total, grads in found[1:]:
        assert total == pytest.approx(found[0][0], rel=1e-5)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, found[0][1][name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("stage", [0, 1])
def test_the_loss_of_a_data_set_is_that_of_one_batch_of_it(
    stage: int, tiny_config, dataset: PackedDataset
) -> None:
    lesson = lessons(tiny_config, dataset)[stage]
    student = classifier(tiny_config, 3, num_hidden_layers=2, hidden_size=24, fit_size=32)
    counts = LossCounts(len(dataset), dataset.tokens, dataset.square_tokens)
    with torch.no_grad():
        whole, terms = lesson(student, batch_of(dataset, range(11)), counts, CPU)
    found = lesson_loss(lesson, student, dataset, 4, CPU)
    assert found["eval_loss"] == pytest.approx(whole.item(), rel=1e-5)
    assert set(found) == {"eval_loss", *(f"eval_{name}" for name in terms)}


def test_teacher_logits_are_computed_once(
    tiny_config, dataset: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = classifier(tiny_config, 5)
    passes = []
    teacher.register_forward_hook(lambda *_: passes.append(1))
    logits = teacher_logits(teacher, dataset, tmp_path, 4, CPU)
    batch = batch_of(dataset, range(11))
    with torch.no_grad():
        expected = teacher(batch.input_ids, batch.token_type_ids, batch.attention_mask).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    made = len(passes)
    assert torch.equal(teacher_logits(teacher, dataset, tmp_path, 4, CPU), logits)
    assert len(passes) == made
    other = classifier(tiny_config, 6)
    assert not torch.equal(teacher_logits(other, dataset, tmp_path, 4, CPU), logits)


def test_an_interrupted_computation_of_logits_goes_on(
    tiny_config, dataset: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LOGITS_BLOCK > 1000
    monkeypatch.setattr("transformer.distillation.teacher_logits.LOGITS_BLOCK", 4)
    teacher = classifier(tiny_config, 5)
    expected = teacher_logits(teacher, dataset, tmp_path / "unbroken", 2, CPU)
    passes = []

    def die(*_) -> None:
        passes.append(1)
        if len(passes) == 5:  # in the third block of four rows, two a batch
            raise KeyboardInterrupt

    hook = teacher.register_forward_hook(die)
    with pytest.raises(KeyboardInterrupt):
        teacher_logits(teacher, dataset, tmp_path / "broken", 2, CPU)
    assert not list((tmp_path / "broken").glob("*.npy"))
    hook.remove()
    teacher.register_forward_hook(lambda *_: passes.append(1))
    again = teacher_logits(teacher, dataset, tmp_path / "broken", 2, CPU)
    assert torch.equal(again, expected)
    assert len(passes) == 5 + 2  # only the three rows that were missing
