"""What a student learns in each stage: pytest tests/distillation/test_objectives.py"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_vocabulary

from transformer.architectures.table import ARCHITECTURES
from transformer.checkpoint.directory import read_config, save_checkpoint
from transformer.distillation.layers import LAYER_TERMS, Comparison, Term, compare_layers
from transformer.distillation.losses import gold_loss, prediction_loss
from transformer.distillation.objectives import Objective, mean_loss, with_variances
from transformer.distillation.students import freeze_unread, set_dropout
from transformer.distillation.teacher_logits import LOGITS_BLOCK, teacher_logits
from transformer.modeling import TinyBertForSequenceClassification
from transformer.runtime.ranks import Runtime
from transformer.tokenization import BertTokenizer
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
    term = Term("prediction", "logits", partial(prediction_loss, kind="mse"))
    objective = Objective((Comparison(term),), teacher_logits=targets)
    batch = batch_of(dataset, range(3, 8))
    counts = LossCounts(5, 1, 1)
    loss, terms = objective(student.eval(), batch, counts, CPU)
    output = student(batch.input_ids, batch.token_type_ids, batch.attention_mask).logits
    assert loss.item() == pytest.approx(F.mse_loss(output, targets[3:8]).item(), rel=1e-5)
    other_labels = batch._replace(labels=batch.labels + 7)
    assert objective(student, other_labels, counts, CPU)[0].item() == loss.item()
    assert set(terms) == {"prediction"}


@pytest.mark.parametrize("on_augmented", [False, True])
def test_gold_labels_count_on_original_rows_unless_asked(
    on_augmented: bool, tiny_config, dataset: PackedDataset
) -> None:
    student = classifier(tiny_config, 1)
    gold = partial(gold_loss, kind="ce", on_augmented=on_augmented)
    terms = (
        Term("prediction", "logits", partial(prediction_loss, temperature=2.0)),
        Term("prediction_gold", "logits", gold, weight=0.25),
    )
    objective = Objective(tuple(map(Comparison, terms)), teacher_logits=torch.zeros(11, 3))
    batch = batch_of(dataset, range(6))
    loss, terms = objective(student, batch, LossCounts(6, 1, 1), CPU)
    logits = student(batch.input_ids, batch.token_type_ids, batch.attention_mask).logits
    gold = F.cross_entropy(logits, batch.labels.long(), reduction="none")
    counted = gold if on_augmented else gold[batch.flags == 0]
    assert terms["prediction_gold"].item() == pytest.approx(counted.sum().item() / 6, rel=1e-5)
    soft = F.cross_entropy(logits / 2, torch.full((6, 3), 1 / 3))
    assert terms["prediction"].item() == pytest.approx(soft.item(), rel=1e-5)
    expected = terms["prediction"] + 0.25 * terms["prediction_gold"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def layers(kinds: tuple[str, ...] = ("", "mse")) -> tuple[Comparison, ...]:
    terms = tuple(term for term in LAYER_TERMS if term.kind in kinds)
    return compare_layers(terms, ((1, 2), (2, 4)))


def logits() -> tuple[Comparison, ...]:
    gold = partial(gold_loss, kind="ce")
    terms = Term("prediction", "logits", prediction_loss), Term("prediction_gold", "logits", gold)
    return tuple(map(Comparison, terms))


STAGES = {"layers": layers(), "predictions": logits(), "both": layers() + logits()}


def objective_of(stage: str, config) -> Objective:
    return Objective(STAGES[stage], classifier(config, 2))


def student_of(config) -> TinyBertForSequenceClassification:
    return classifier(config, 3, num_hidden_layers=2, hidden_size=24, fit_size=32)


@pytest.mark.parametrize("stage", STAGES)
def test_padding_and_micro_batches_change_nothing(
    stage: str, tiny_config, dataset: PackedDataset
) -> None:
    """Loss and gradients of one batch, of the same padded to 40, and of it in two pieces."""
    objective = objective_of(stage, tiny_config)
    student = student_of(tiny_config)
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
            loss, _ = objective(student, piece, counts, CPU)
            loss.backward()
            total += loss.item()
        found.append((total, gradients(student)))
    for total, grads in found[1:]:
        assert total == pytest.approx(found[0][0], rel=1e-5)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, found[0][1][name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_of_a_data_set_is_that_of_one_batch_of_it(
    stage: str, tiny_config, dataset: PackedDataset
) -> None:
    objective = objective_of(stage, tiny_config)
    student = student_of(tiny_config)
    counts = LossCounts(len(dataset), dataset.tokens, dataset.square_tokens)
    with torch.no_grad():
        whole, terms = objective(student, batch_of(dataset, range(11)), counts, CPU)
    found = mean_loss(objective, student, dataset, 4, CPU)
    assert found["eval_loss"] == pytest.approx(whole.item(), rel=1e-5)
    assert set(found) == {"eval_loss", *(f"eval_{name}" for name in terms)}


def test_one_forward_pass_gives_layers_and_predictions(tiny_config, dataset: PackedDataset) -> None:
    """The terms of both together are those of each alone."""
    batch, counts = batch_of(dataset, range(6)), LossCounts(6, 60, 600)
    student = student_of(tiny_config)
    passes = []
    student.register_forward_hook(lambda *_: passes.append(1))
    found = {
        stage: objective_of(stage, tiny_config)(student, batch, counts, CPU) for stage in STAGES
    }
    assert len(passes) == 3
    apart = found["layers"][1] | found["predictions"][1]
    assert found["both"][1].keys() == apart.keys()
    for name, term in apart.items():
        torch.testing.assert_close(found["both"][1][name], term, msg=name)
    torch.testing.assert_close(found["both"][0], found["layers"][0] + found["predictions"][0])


@pytest.mark.parametrize("stage", STAGES)
def test_exactly_what_gets_no_gradient_is_frozen(
    stage: str, tiny_config, dataset: PackedDataset
) -> None:
    student, objective = student_of(tiny_config), objective_of(stage, tiny_config)
    frozen = freeze_unread(student, objective)
    assert ("fit_dense.weight" in frozen) == (stage == "predictions")
    assert ("classifier.weight" in frozen) == (stage == "layers")
    objective(student, batch_of(dataset, range(6)), LossCounts(6, 60, 600), CPU)[0].backward()
    for name, parameter in student.named_parameters():
        assert (parameter.grad is None) == (name in frozen) == (not parameter.requires_grad), name


def test_scaled_hidden_losses_are_shares_of_the_teachers_variance(
    tiny_config, dataset: PackedDataset
) -> None:
    """Every real token of the data set once, by NumPy."""
    teacher = classifier(tiny_config, 2)
    objective = Objective(layers(("scaled",)), teacher)
    scaled = with_variances(objective, dataset, 4, CPU)
    batch = batch_of(dataset, range(11))
    counts = LossCounts(11, dataset.tokens, dataset.square_tokens)
    terms = scaled(student_of(tiny_config), batch, counts, CPU)[1]
    plain = Objective(layers(("mse",)), teacher)(student_of(tiny_config), batch, counts, CPU)[1]
    assert set(terms) == {"hidden/1", "hidden/2"}
    with torch.no_grad():
        states = teacher(batch.input_ids, batch.token_type_ids, batch.attention_mask, num_layers=4)
    for m, g in ((1, 2), (2, 4)):
        real = states.hidden_states[g][batch.attention_mask].numpy().astype(np.float64)
        expected = plain[f"hidden/{m}"].item() / np.var(real, axis=0).mean()
        assert terms[f"hidden/{m}"].item() == pytest.approx(expected, rel=0.006)  # three digits


@pytest.mark.parametrize("model_type", ["bert", "albert", "electra", "nezha"])
def test_student_dropout_is_not_stored(model_type: str, tmp_path: Path, vocab_file: Path) -> None:
    """With 0 two forward passes in training are equal; config.json keeps the model's own."""
    dropouts = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = ARCHITECTURES[model_type].config(
        vocab_size=len(tiny_vocabulary()),
        id2label=LABELS,
        classifier_dropout=0.4,
        **sizes,
        **dropouts,
    )
    student = TinyBertForSequenceClassification(config).train()
    ids = torch.arange(5, 15)[None]

    def is_steady() -> bool:
        outputs = [student(ids, score_layers=(1, 2)) for _ in range(2)]
        return torch.equal(outputs[0].logits, outputs[1].logits)

    assert not is_steady()
    set_dropout(student, 0.0)
    assert is_steady()
    set_dropout(student, 0.5)
    assert not is_steady()
    save_checkpoint(student, BertTokenizer(vocab_file), tmp_path / "saved")
    saved = read_config(tmp_path / "saved").to_dict()
    assert {name: saved[name] for name in dropouts} == dropouts


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
