"""The losses equal explicit loops and hand-worked numbers; padding and splitting change nothing.

Run: pytest tests/distillation/test_layers.py
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import pytest
import torch

from transformer.configuration import BertConfig
from transformer.distillation.layers import (
    LAYER_TERMS,
    Term,
    add_distillation_arguments,
    layer_map,
    plan_comparisons,
)
from transformer.distillation.losses import (
    attention_loss,
    hidden_loss,
    prediction_loss,
    relation_loss,
)
from transformer.distillation.objectives import Objective
from transformer.distillation.students import freeze_unread
from transformer.files import UserError
from transformer.modeling import BertModel, TinyBertForPreTraining
from transformer.runtime.ranks import Runtime
from transformer.training.batches import Batch, LossCounts

TEACHER = BertConfig(
    vocab_size=99,
    hidden_size=32,
    num_hidden_layers=6,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=16,
    initializer_range=0.2,
)
STUDENT = replace(TEACHER, hidden_size=24, num_hidden_layers=3, intermediate_size=29, fit_size=32)
STUDENT = replace(STUDENT, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
UNIFORM = ((1, 2), (2, 4), (3, 6))
CPU = Runtime(torch.device("cpu"))


def plan(*words: str, student: BertConfig = STUDENT, teacher: BertConfig = TEACHER):
    """Return the comparisons that these flags ask for."""
    parser = argparse.ArgumentParser()
    add_distillation_arguments(parser)
    parser.add_argument("--max_seq_length", type=int, default=16)
    return plan_comparisons(parser.parse_args(words), student, teacher)


def weights(*values: float) -> list[str]:
    names = ("--attention_weight", "--hidden_weight", "--embedding_weight")
    return [str(word) for pair in zip(names, values, strict=True) for word in pair]


def objective_of(*words: str, teacher: torch.nn.Module | None = None) -> Objective:
    pad_to = 16 if "--loss_on_padding" in words else None
    return Objective(plan(*words), teacher, classifiers=False, pad_to=pad_to)


OBJECTIVES = {
    "centred": ["--attention_loss", "centred"],
    "mse": weights(0.7, 1.3, 0.4),
    "relation": ["--attention_loss", "relation", "--relation_heads", "8"],
}


def over(mask: torch.Tensor, examples: float | None = None) -> tuple[Batch, LossCounts]:
    """Return what a loss gets beside its tensors: a batch with this mask, and its own counts."""
    counts = LossCounts.from_lengths(mask.sum(1).tolist())
    if examples is not None:
        counts = counts._replace(examples=examples)
    return Batch(mask.long(), mask.long(), mask, None, None, torch.arange(len(mask))), counts


# ---- layer mapping


@pytest.mark.parametrize(
    ("student", "teacher", "mapping", "expected"),
    [
        (4, 12, "uniform", [3, 6, 9, 12]),
        (6, 12, "uniform", [2, 4, 6, 8, 10, 12]),
        (3, 6, "uniform", [2, 4, 6]),
        (4, 12, "top", [9, 10, 11, 12]),
        (4, 12, "bottom", [1, 2, 3, 4]),
        (5, 12, "2,4,7,9,12", [2, 4, 7, 9, 12]),
        (5, 12, "top", [8, 9, 10, 11, 12]),
    ],
)
def test_layer_map(student, teacher, mapping, expected):
    assert layer_map(student, teacher, mapping) == tuple(enumerate(expected, start=1))


def test_layer_map_can_leave_student_layers_out():
    assert layer_map(4, 12, "0,0,0,11") == ((4, 11),)


@pytest.mark.parametrize(
    ("student", "mapping", "message"),
    [
        (
            5,
            "uniform",
            "5 student layers do not divide 12 teacher layers; students of 1, 2, 3, 4, 6",
        ),
        (5, "uniform", "or use top, bottom or a list such as 2,5,7,10,12"),
        (13, "top", "the student has 13 layers, the teacher only 12"),
        (13, "bottom", "the student has 13 layers, the teacher only 12"),
        (4, "3,6,9", "3 layers are listed, the student has 4"),
        (4, "3,6,9,13", "teacher layers are 1 to 12"),
        (4, "3,6,9,-1", "teacher layers are 1 to 12"),
        (2, "0,0", "but not all of them"),
        (4, "middle", "'middle': give uniform, top, bottom or 4 teacher layers"),
    ],
)
def test_layer_map_refuses_what_cannot_be_mapped(student, mapping, message):
    with pytest.raises(UserError, match=message):
        layer_map(student, 12, mapping)


# ---- losses by hand and by loops

LENGTHS = [4, 2, 5]
MASK = torch.arange(5)[None, :] < torch.tensor(LENGTHS)[:, None]


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attention_loss_by_hand():
    # Two heads, two real tokens and one of padding. Differences at real pairs, head 0: 1 2 / 0 1,
    # head 1: 0 0 / 3 1. (1 + 4 + 0 + 1 + 0 + 0 + 9 + 1) / (2 heads * 4 pairs) = 2.
    student = torch.tensor(
        [[[[1.0, 2, 9], [0, 1, 9], [9, 9, 9]], [[0, 0, 9], [3, 1, 9], [9, 9, 9]]]]
    )
    mask = torch.tensor([[True, True, False]])
    assert attention_loss(student, torch.zeros_like(student), *over(mask)).item() == 2.0
    # As the authors: masked keys are no difference, but all 2 * 9 places count and the padded
    # query's real keys do: (16 + 4 * 81) / 18.
    loss = attention_loss(student, torch.zeros_like(student), *over(mask), loss_on_padding=True)
    assert loss.item() == pytest.approx(340 / 18)


def test_attention_loss_equals_loops():
    student, teacher = randn(3, 2, 5, 5, seed=1), randn(3, 2, 5, 5, seed=2)
    total, count = 0.0, 0
    for b, length in enumerate(LENGTHS):
        for h in range(2):
            for i in range(length):
                for j in range(length):
                    total += (student[b, h, i, j].item() - teacher[b, h, i, j].item()) ** 2
                    count += 1
    assert attention_loss(student, teacher, *over(MASK)).item() == pytest.approx(total / count)


def test_centred_attention_loss_sees_what_the_softmax_sees():
    """Against a softmax whose logarithm is centred again, by NumPy's and torch's own functions."""
    student, teacher = randn(3, 2, 5, 5, seed=1), randn(3, 2, 5, 5, seed=2)
    total = 0.0
    for b, length in enumerate(LENGTHS):
        logs = [torch.log_softmax(x[b, :, :length, :length], -1) for x in (student, teacher)]
        difference = (logs[0] - logs[1]).double()
        total += float((difference - difference.mean(-1, keepdim=True)).square().sum())
    expected = total / (2 * sum(length**2 for length in LENGTHS))
    loss = attention_loss(student, teacher, *over(MASK), centred=True)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    shifted = student + randn(3, 2, 5, 1, seed=3)
    again = attention_loss(shifted, teacher, *over(MASK), centred=True)
    assert again.item() == pytest.approx(expected, rel=1e-5)
    assert attention_loss(shifted, teacher, *over(MASK)).item() > 1.2 * expected


def test_hidden_loss_by_hand_and_by_loops():
    student = torch.tensor([[[1.0, 3.0], [2.0, 0.0], [50.0, 50.0]]])
    mask = torch.tensor([[True, True, False]])
    zeros = torch.zeros_like(student)
    assert hidden_loss(student, zeros, *over(mask)).item() == 14 / 4
    assert hidden_loss(student, zeros, *over(mask), loss_on_padding=True).item() == pytest.approx(
        5014 / 6
    )
    student, teacher = randn(3, 5, 7, seed=3), randn(3, 5, 7, seed=4)
    squares = [
        (student[b, t, d].item() - teacher[b, t, d].item()) ** 2
        for b, length in enumerate(LENGTHS)
        for t in range(length)
        for d in range(7)
    ]
    expected = sum(squares) / len(squares)
    assert hidden_loss(student, teacher, *over(MASK)).item() == pytest.approx(expected)


def test_squared_error_has_the_right_gradient():
    student = randn(3, 5, 7, seed=5).double().requires_grad_()
    teacher = randn(3, 5, 7, seed=6).double()
    assert torch.autograd.gradcheck(lambda s: hidden_loss(s, teacher, *over(MASK)), student)
    scores = randn(3, 2, 5, 5, seed=7).double().requires_grad_()
    targets = randn(3, 2, 5, 5, seed=8).double()
    for options in ({}, {"centred": True}, {"centred": True, "loss_on_padding": True}):
        assert torch.autograd.gradcheck(
            lambda s, kw=options: attention_loss(s, targets, *over(MASK), **kw), scores
        )


def test_losses_of_half_precision_are_fp32():
    student = randn(3, 5, 8, seed=1).bfloat16().requires_grad_()
    teacher = randn(3, 5, 8, seed=2).bfloat16()
    loss = hidden_loss(student, teacher, *over(MASK))
    expected = hidden_loss(student.detach().double(), teacher.double(), *over(MASK))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert student.grad.dtype == torch.bfloat16


def relation_row(vectors: torch.Tensor, head: slice, query: int, length: int) -> list[float]:
    """Softmax of one token's products with the real tokens, in one relation head, by loops."""
    width = head.stop - head.start
    products = []
    for key in range(length):
        pairs = zip(vectors[query, head].tolist(), vectors[key, head].tolist(), strict=True)
        products.append(sum(x * y for x, y in pairs) / math.sqrt(width))
    total = sum(math.exp(p) for p in products)
    return [math.exp(p) / total for p in products]


def test_relation_loss_equals_loops():
    heads, widths = 4, (8, 12)  # the student's and the teacher's
    student = tuple(randn(3, 5, widths[0], seed=seed) for seed in (1, 2, 3))
    teacher = tuple(randn(3, 5, widths[1], seed=seed) for seed in (4, 5, 6))
    total = 0.0
    for student_x, teacher_x in zip(student, teacher, strict=True):
        for b, length in enumerate(LENGTHS):
            for head in range(heads):
                slices = [slice(head * w // heads, (head + 1) * w // heads) for w in widths]
                for query in range(length):
                    learnt = relation_row(student_x[b], slices[0], query, length)
                    wanted = relation_row(teacher_x[b], slices[1], query, length)
                    total += sum(p * math.log(p / q) for p, q in zip(wanted, learnt, strict=True))
    expected = total / (heads * sum(LENGTHS))
    found = relation_loss(student, teacher, *over(MASK), relation_heads=heads)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    itself = relation_loss(teacher, teacher, *over(MASK), relation_heads=heads)
    assert itself.item() == pytest.approx(0, abs=1e-6)


def rows(count: int) -> torch.Tensor:
    return torch.ones(count, 1, dtype=torch.bool)


def test_prediction_loss_by_hand():
    student = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    teacher = torch.tensor([[math.log(4.0), 0.0], [0.0, 0.0]])
    # Teacher 4/5, 1/5 and 1/2, 1/2; student 1/2, 1/2 and 3/4, 1/4.
    cross = [math.log(2.0), -(0.5 * math.log(0.75) + 0.5 * math.log(0.25))]
    entropy = [-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)), math.log(2.0)]
    expected = sum(cross) / 2
    assert prediction_loss(student, teacher, *over(rows(len(student)))).item() == pytest.approx(
        expected
    )
    original = prediction_loss(student, teacher, *over(rows(len(student))), original_soft_ce=True)
    assert original.item() == pytest.approx(expected / 2)
    divergence = prediction_loss(student, teacher, *over(rows(len(student))), kind="kl").item()
    assert divergence == pytest.approx((sum(cross) - sum(entropy)) / 2)
    squared = prediction_loss(student, teacher, *over(rows(len(student))), kind="mse").item()
    assert squared == pytest.approx((math.log(4.0) ** 2 + math.log(3.0) ** 2) / 4)


def test_temperature_divides_both_logits():
    student = torch.tensor([[0.0, math.log(9.0)]])
    teacher = torch.tensor([[math.log(16.0), 0.0]])
    # At temperature 2: teacher 4/5, 1/5; student 1/4, 3/4.
    expected = -(0.8 * math.log(0.25) + 0.2 * math.log(0.75))
    assert prediction_loss(
        student, teacher, *over(rows(len(student))), temperature=2.0
    ).item() == pytest.approx(expected)


def test_regression_and_given_number_of_examples():
    student, teacher = torch.tensor([[2.0], [3.0]]), torch.tensor([[2.5], [1.0]])
    assert prediction_loss(
        student, teacher, *over(rows(len(student))), kind="mse"
    ).item() == pytest.approx(4.25 / 2)
    assert prediction_loss(student, teacher, *over(rows(2), 8), kind="mse").item() == 4.25 / 8


# ---- the objective on real models


@pytest.fixture(scope="module")
def models() -> tuple[TinyBertForPreTraining, BertModel]:
    torch.manual_seed(9)
    student = TinyBertForPreTraining(STUDENT)
    return student, BertModel(TEACHER, add_pooler=False).eval().requires_grad_(False)


def make_batch(pad_to: int = 7, rows: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([7, 2, 5, 3, 1, 6])[rows]
    generator = torch.Generator().manual_seed(8)
    ids = torch.randint(1, 99, (6, 16), generator=generator)[rows, :pad_to]
    mask = torch.arange(pad_to)[None, :] < lengths[:, None]
    return ids * mask, mask


def run(words, models, batch, counts=None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of a batch, (ids, mask), and its terms."""
    ids, mask = batch
    packed, own = over(mask)
    packed = packed._replace(input_ids=ids, token_type_ids=torch.zeros_like(ids))
    return objective_of(*words, teacher=models[1])(models[0], packed, counts or own, CPU)


def gradients_of(words, models, batches, counts) -> tuple[float, list[torch.Tensor]]:
    """Add up loss and gradients over `batches`, as accumulation does."""
    models[0].zero_grad()
    total = 0.0
    for batch in batches:
        loss, _ = run(words, models, batch, counts)
        loss.backward()
        total += loss.item()
    return total, [p.grad.clone() for p in models[0].parameters()]


def assert_same(first, second) -> None:
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    for one, other in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_padding_changes_neither_loss_nor_gradients(kind, models):
    objective = OBJECTIVES[kind]
    expected = gradients_of(objective, models, [make_batch()], None)
    assert expected[0] > 0.1
    assert_same(gradients_of(objective, models, [make_batch(pad_to=16)], None), expected)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_unequal_micro_batches_add_up_to_the_whole(kind, models):
    objective = OBJECTIVES[kind]
    counts = LossCounts.from_lengths([7, 2, 5, 3, 1, 6])
    assert counts == LossCounts(6, 24, 49 + 4 + 25 + 9 + 1 + 36)
    whole = gradients_of(objective, models, [make_batch()], None)
    parts = [make_batch(7, slice(0, 1)), make_batch(5, slice(1, 4)), make_batch(6, slice(4, 6))]
    assert_same(gradients_of(objective, models, parts, counts), whole)


def test_terms_are_those_of_the_mapped_layers(models):
    student, teacher = models
    ids, mask = make_batch()
    learnt = student(ids, None, mask, score_layers=(1, 2, 3))
    wanted = teacher(ids, None, mask, score_layers=range(1, 7))
    total, terms = run(OBJECTIVES["mse"], models, (ids, mask))
    for m, g in UNIFORM:
        scores = learnt.attention_scores[m], wanted.attention_scores[g]
        torch.testing.assert_close(terms[f"attention/{m}"], attention_loss(*scores, *over(mask)))
        states = student.fit_dense(learnt.hidden_states[m]), wanted.hidden_states[g]
        torch.testing.assert_close(terms[f"hidden/{m}"], hidden_loss(*states, *over(mask)))
    states = student.fit_dense(learnt.hidden_states[0]), wanted.hidden_states[0]
    torch.testing.assert_close(terms["embedding"], hidden_loss(*states, *over(mask)))
    by_hand = sum(
        term.item() * {"attention": 0.7, "hidden": 1.3, "embedding": 0.4}[name.split("/")[0]]
        for name, term in terms.items()
    )
    assert total.item() == pytest.approx(by_hand)


def test_loss_on_padding_is_the_formula_of_the_original(models):
    """Written out: masked scores are zeroed on both sides, then plain means over everything."""
    student, teacher = models
    ids, mask = make_batch(pad_to=16)
    learnt = student(ids, None, mask, score_layers=(1, 2, 3))
    wanted = teacher(ids, None, mask, score_layers=range(1, 7))
    keys = (~mask)[:, None, None, :] * -10000.0
    attention = hidden = torch.zeros(())
    for m, g in UNIFORM:
        ours, theirs = learnt.attention_scores[m] + keys, wanted.attention_scores[g] + keys
        ours = torch.where(ours <= -1e2, torch.zeros_like(ours), ours)
        theirs = torch.where(theirs <= -1e2, torch.zeros_like(theirs), theirs)
        attention = attention + torch.nn.functional.mse_loss(ours, theirs)
    for m, g in ((0, 0), *UNIFORM):
        projected = student.fit_dense(learnt.hidden_states[m])
        hidden = hidden + torch.nn.functional.mse_loss(projected, wanted.hidden_states[g])
    total, _ = run(["--loss_on_padding"], models, (ids, mask))
    torch.testing.assert_close(total, attention + hidden)


@pytest.mark.parametrize(
    ("values", "student", "teacher"),
    [
        ((1, 1, 1), ((1, 2, 3), 3, (0, 1, 2, 3)), ((2, 4, 6), 6)),
        ((0, 1, 1), ((), 3, (0, 1, 2, 3)), ((), 6)),
        ((1, 0, 1), ((1, 2, 3), 3, (0,)), ((2, 4, 6), 6)),
        ((1, 1, 0), ((1, 2, 3), 3, (1, 2, 3)), ((2, 4, 6), 6)),
        ((0, 0, 1), ((), 0, (0,)), ((), 0)),
    ],
)
def test_terms_of_weight_0_and_their_work_are_left_out(values, student, teacher, models):
    objective = objective_of(*weights(*values))
    asked = objective.forward_options("student_layer")
    assert (asked["score_layers"], asked["num_layers"], asked["fit_layers"]) == student
    asked = objective.forward_options("teacher_layer")
    assert (asked["score_layers"], asked["num_layers"]) == teacher
    _, terms = run(weights(*values), models, make_batch())
    kinds = {name.split("/")[0] for name in terms}
    names = ("attention", "hidden", "embedding")
    assert kinds == {name for name, weight in zip(names, values, strict=True) if weight}


def test_relation_asks_for_vectors_instead_of_scores():
    asked = objective_of(*OBJECTIVES["relation"]).forward_options("teacher_layer")
    assert asked == {"score_layers": (), "qkv_layers": (2, 4, 6), "num_layers": 6}


def test_nothing_above_the_last_mapped_layer():
    objective = objective_of("--layer_mapping", "bottom")
    assert objective.forward_options("teacher_layer")["num_layers"] == 3


def test_a_new_term_is_a_function_and_a_row(models, monkeypatch):
    """Its flag, its weight, what is computed for it and what it trains follow from the row."""

    def query_loss(student, teacher, batch, counts):
        return student[0].square().sum() / counts.tokens

    row = Term("query", reads="qkv", loss=query_loss)
    monkeypatch.setattr("transformer.distillation.layers.LAYER_TERMS", (*LAYER_TERMS, row))
    words = [*weights(0, 0, 0), "--query_weight", "0.5", "--layer_mapping", "0,4,0"]
    student = TinyBertForPreTraining(STUDENT)
    objective = objective_of(*words, teacher=models[1])
    assert objective.forward_options("teacher_layer")["qkv_layers"] == (4,)
    trained = set(student.state_dict()) - set(freeze_unread(student, objective))
    assert "bert.encoder.layer.1.attention.self.query.weight" in trained
    assert "bert.encoder.layer.1.output.dense.weight" not in trained
    total, terms = run(words, (student, models[1]), make_batch())
    assert list(terms) == ["query/2"] and total.item() == pytest.approx(
        0.5 * terms["query/2"].item()
    )


@pytest.mark.parametrize("values", [(1, 1, 0), (1, 0, 0), (0, 1, 0)])
def test_exactly_what_gets_no_gradient_is_frozen(values, models):
    torch.manual_seed(1)
    student = TinyBertForPreTraining(replace(STUDENT, fit_per_layer=True))
    words = ["--layer_mapping", "2,4,0", *weights(*values)]
    frozen = freeze_unread(student, objective_of(*words))
    assert "bert.encoder.layer.2.output.dense.weight" in frozen  # layer 3 learns nothing
    assert "fit_denses.0.weight" in frozen
    last_values = "bert.encoder.layer.1.attention.self.value.weight"
    assert (last_values in frozen) == (values == (1, 0, 0))
    run(words, (student, models[1]), make_batch())[0].backward()
    for name, parameter in student.named_parameters():
        assert (parameter.grad is None) == (name in frozen) == (not parameter.requires_grad), name


def test_student_learns_under_autocast_from_a_teacher_held_in_bf16():
    torch.manual_seed(2)
    student = TinyBertForPreTraining(STUDENT)
    teacher = BertModel(TEACHER, add_pooler=False).eval().requires_grad_(False)
    ids, mask = make_batch()
    exact = run(OBJECTIVES["mse"], (student, teacher), (ids, mask))[0].item()
    objective = objective_of(*OBJECTIVES["mse"], teacher=teacher.bfloat16())
    batch, counts = over(mask)
    batch = batch._replace(input_ids=ids, token_type_ids=torch.zeros_like(ids))
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss, terms = objective(student, batch, counts, Runtime(CPU.device, torch.bfloat16))
        assert all(term.dtype == torch.float32 for term in terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(exact, rel=0.02)
    assert losses[-1] < 0.5 * losses[0]


# ---- checks and flags


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"num_attention_heads": 6}, [], "student has 6 attention heads, the teacher 4.*"
         "--attention_weight 0 or --attention_loss relation"),
        ({"fit_size": 64}, [], "width 64, the teacher's width is 32"),
        ({"fit_size": 0}, [], "width 24, the teacher's width is 32"),
        ({}, ["--attention_loss", "relation"], "--relation_heads 48 does not divide both widths, "
         r"24 \(student\) and 32 \(teacher\); choose from 1, 2, 4, 8"),
        ({}, ["--attention_loss", "relation", "--relation_heads", "0"], "--relation_heads 0"),
        ({"max_position_embeddings": 12}, [], "--max_seq_length 14 .* use at most 12"),
    ],
)  # fmt: skip
def test_pairs_that_cannot_work_are_refused(changes, options, message):
    with pytest.raises(UserError, match=message):
        plan(*options, "--max_seq_length", "14", student=replace(STUDENT, **changes))


def test_the_ways_out_that_the_messages_name_work():
    other_heads = replace(STUDENT, num_attention_heads=6)
    plan("--attention_weight", "0", student=other_heads)
    plan(*OBJECTIVES["relation"], student=other_heads)
    plan(*weights(1, 0, 0), student=replace(STUDENT, fit_size=0))


@pytest.mark.parametrize("values", [(0, 0, 0), (-1, 1, 1), (1, float("nan"), 1)])
def test_senseless_weights_are_refused(values):
    with pytest.raises(UserError, match="--attention_weight, --hidden_weight, --embedding_weight"):
        plan(*weights(*values))


def test_flags():
    assert [place.name for place in plan()] == [
        *("embedding", "attention/1", "hidden/1", "attention/2", "hidden/2"),
        *("attention/3", "hidden/3"),
    ]
    assert {place.term.weight for place in plan()} == {1.0}
    assert [(c.student_layer, c.teacher_layer) for c in plan()[1::2]] == list(UNIFORM)
    argv = "--layer_mapping 1,0,5 --attention_weight 0.5 --hidden_weight 0 --embedding_weight 2"
    argv += " --attention_loss relation --relation_heads 4 --loss_on_padding"
    given = plan(*argv.split())
    assert [(c.name, c.teacher_layer, c.term.reads, c.term.weight) for c in given] == [
        ("embedding", 0, "hidden_states", 2.0),
        ("attention/1", 1, "qkv", 0.5),
        ("attention/3", 5, "qkv", 0.5),
    ]
    assert given[0].term.loss.keywords == {"loss_on_padding": True}
    assert given[1].term.loss.keywords == {"relation_heads": 4}
    with pytest.raises(UserError, match="--max_seq_length 32"):
        plan("--max_seq_length", "32")
