"""The student in closed form, against dense least squares in NumPy and teachers that fit exactly.

Run: pytest tests/distillation/test_closed_form.py
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from transformer import configuration
from transformer.configuration import BertConfig
from transformer.distillation.closed_form import (
    Moments,
    _ClosedForm,
    check_closed_form,
    compute_student,
    low_rank,
    ridge,
)
from transformer.distillation.layers import layer_map
from transformer.distillation.start import begin_from_teacher
from transformer.files import UserError
from transformer.modeling import (
    TinyBertForPreTraining,
    TinyBertForSequenceClassification,
)
from transformer.runtime.ranks import Runtime
from transformer.training.batches import Batch

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CPU = Runtime(torch.device("cpu"))


def batch_of(input_ids: torch.Tensor, lengths: list[int]) -> Batch:
    mask = torch.arange(input_ids.shape[1]) < torch.tensor(lengths)[:, None]
    segments = torch.zeros_like(input_ids)
    segments[:, input_ids.shape[1] // 2 :] = 1
    return Batch(input_ids, segments * mask, mask, None, None, torch.arange(len(lengths)))


def random_batches(config: BertConfig, count: int = 4, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for number in range(count):
        ids = torch.randint(1, config.vocab_size, (12, 9 + number), generator=generator)
        batches.append(batch_of(ids, [ids.shape[1] - row % 5 for row in range(12)]))
    return batches


# ------------------------------------------------------------------------------ least squares


def test_ridge_equals_dense_least_squares() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + 3, rng.normal(size=(50, 4)) - 1
    weights = rng.integers(1, 9, 50).astype(float)
    moments = Moments(6, 4, CPU.device)
    for part in (slice(0, 20), slice(20, 50)):  # added up in batches
        moments.add(*(torch.tensor(a[part]) for a in (x, y, weights)))
    found = ridge(moments, 1e-3).numpy()
    repeated_x, repeated_y = (np.repeat(a, weights.astype(int), axis=0) for a in (x, y))
    xc, yc = (a - a.mean(0) for a in (repeated_x, repeated_y))
    penalty = np.sqrt(1e-3 * np.mean(xc.var(0)) * len(xc))
    stacked = np.vstack([xc, penalty * np.eye(6)]), np.vstack([yc, np.zeros((6, 4))])
    expected = np.linalg.lstsq(*stacked, rcond=None)[0]
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-8)
    np.testing.assert_allclose(found[-1], repeated_y.mean(0) - repeated_x.mean(0) @ expected)
    errors = yc - xc @ expected
    share = 1 - (errors**2).sum() / (yc**2).sum()
    assert moments.explained(torch.tensor(found)) == pytest.approx(share, abs=1e-10)


def test_low_rank_is_the_best_product_on_the_text() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.normal(size=(7, 5)), rng.normal(size=(6, 5))
    x, y = rng.normal(size=(40, 7)) * np.arange(1, 8), rng.normal(size=(40, 6))
    moments = torch.tensor(x.T @ x / 40), torch.tensor(y.T @ y / 40)
    a, b, energy = low_rank(torch.tensor(left), torch.tensor(right), *moments, 3)
    # The scores of every row of x with every row of y, and their best approximation of rank 3.
    u, values, vt = np.linalg.svd(x @ left @ right.T @ y.T)
    best = u[:, :3] * values[:3] @ vt[:3]
    np.testing.assert_allclose(x @ a.numpy() @ b.numpy().T @ y.T, best, atol=1e-7 * values[0])
    assert energy == pytest.approx((values[:3] ** 2).sum() / (values**2).sum())
    wider = low_rank(torch.tensor(left), torch.tensor(right), *moments, 9)[0]
    assert wider.shape == (7, 9) and not wider[:, 5:].any()


@pytest.fixture
def narrow_config(tiny_config: BertConfig) -> BertConfig:
    return replace(tiny_config, hidden_size=20, num_hidden_layers=2, intermediate_size=24)


def pair_of(
    tiny_config: BertConfig, student_config: BertConfig, **changes: object
) -> tuple[TinyBertForPreTraining, TinyBertForPreTraining]:
    torch.manual_seed(3)
    teacher = TinyBertForPreTraining(tiny_config).eval()
    student = TinyBertForPreTraining(replace(student_config, fit_size=32, **changes)).eval()
    return student, teacher


def test_the_basis_leaves_out_the_direction_of_ones(
    tiny_config: BertConfig, narrow_config: BertConfig
) -> None:
    student, teacher = pair_of(tiny_config, narrow_config)
    batches = random_batches(tiny_config)
    steps = _ClosedForm(student, teacher, ((1, 2), (2, 4)), batches, 1e-3)
    with torch.no_grad():
        steps.find_basis()
        outputs = [teacher(b.input_ids, b.token_type_ids, b.attention_mask) for b in batches]
    basis = steps.basis.numpy()
    np.testing.assert_allclose(basis @ np.ones(20), 0, atol=1e-12)
    covariance = 0
    for g in (0, 2, 4):
        pairs = zip(outputs, batches, strict=True)
        rows = np.concatenate([o.hidden_states[g][b.attention_mask].numpy() for o, b in pairs])
        own = np.cov(rows.astype(float).T, bias=True)
        covariance = covariance + own / np.trace(own)
    leading = np.linalg.eigh(covariance)[1][:, -19:]
    np.testing.assert_allclose(basis @ basis.T, leading @ leading.T, atol=1e-6)


def test_an_output_is_fitted_to_what_the_target_lacks(
    tiny_config: BertConfig, narrow_config: BertConfig
) -> None:
    """Step 5, and gamma and beta of step 2, once more in NumPy."""
    student, teacher = pair_of(tiny_config, narrow_config)
    batches = random_batches(tiny_config)
    steps = _ClosedForm(student, teacher, ((1, 2), (2, 4)), batches, 1e-3)
    rng = torch.Generator().manual_seed(5)

    def states(width: int) -> list[torch.Tensor]:
        return [torch.randn(*b.input_ids.shape, width, generator=rng) for b in batches]

    inputs, residuals, targets = states(7), states(20), states(32)
    deviations = [state[..., :1].exp() for state in states(1)]
    block = student.bert.encoder.layer[0].output
    block.dense = torch.nn.Linear(7, 20)
    norm = torch.nn.LayerNorm(32)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    with torch.no_grad():
        steps.find_basis()
        steps.output(block, inputs, residuals, targets, deviations, norm)

    def rows(values: list[torch.Tensor]) -> np.ndarray:
        return np.concatenate(
            [v[b.attention_mask].double().numpy() for v, b in zip(values, batches, strict=True)]
        )

    wanted = (rows(targets) - steps.mean.numpy()) @ steps.basis.numpy()
    x, r = rows(inputs), rows(residuals)
    lacking = wanted * rows(deviations) / float(norm.weight.detach().mean()) - r
    xc, yc = x - x.mean(0), lacking - lacking.mean(0)
    gram = xc.T @ xc / len(x)
    weights = np.linalg.solve(gram + 1e-3 * np.trace(gram) / 7 * np.eye(7), xc.T @ yc / len(x))
    np.testing.assert_allclose(block.dense.weight.detach().numpy().T, weights, atol=1e-4)
    z = x @ weights + lacking.mean(0) - x.mean(0) @ weights + r
    u = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-12)
    for coordinate in range(20):
        line = np.polyfit(u[:, coordinate], wanted[:, coordinate], 1)
        found = block.LayerNorm.weight[coordinate], block.LayerNorm.bias[coordinate]
        np.testing.assert_allclose([float(v) for v in found], line, atol=1e-3)


# -------------------------------------------------------------------- teachers that fit exactly


def test_equal_widths_and_depth_reproduce_the_teacher(tiny_config: BertConfig) -> None:
    torch.manual_seed(1)
    config = replace(tiny_config, id2label={0: "a", 1: "b", 2: "c"})
    teacher = TinyBertForSequenceClassification(config).eval()
    student = TinyBertForSequenceClassification(config).eval()
    begin_from_teacher(student, teacher, "uniform", [], CPU)
    batch = random_batches(config)[0]
    inputs = batch.input_ids, batch.token_type_ids, batch.attention_mask
    assert torch.equal(student(*inputs).logits, teacher(*inputs).logits)


def doubled(student: TinyBertForPreTraining) -> TinyBertForPreTraining:
    """Return a teacher that holds every coordinate of a student twice, and nothing more."""
    config = student.config
    sizes = {"hidden_size": 2 * config.hidden_size, "fit_size": 0}
    teacher = TinyBertForPreTraining(replace(config, **sizes)).eval()
    weights = student.state_dict()
    with torch.no_grad():
        for name, target in teacher.named_parameters():
            source = weights[name]
            if name.endswith(("query.weight", "key.weight", "value.weight")):
                heads = source.unflatten(0, (config.num_attention_heads, -1))
                heads = torch.cat([heads, 0 * heads], 1)  # the head's other half is empty
                wide = torch.cat([heads.flatten(0, 1)] * 2, 1) / 2
                # Scores are divided by the root of the width, which is twice as large.
                target.copy_(wide if "value" in name else wide * 2**0.25)
            elif name.endswith("attention.output.dense.weight"):
                heads = source.unflatten(1, (config.num_attention_heads, -1))
                heads = torch.cat([heads, 0 * heads], 2).flatten(1)
                target.copy_(torch.cat([heads] * 2, 0))
            elif name.endswith("intermediate.dense.weight"):
                target.copy_(torch.cat([source] * 2, 1) / 2)
            elif name.endswith("output.dense.weight"):
                target.copy_(torch.cat([source] * 2, 0))
            elif source.shape == target.shape:
                target.copy_(source)
            else:  # embeddings, LayerNorm and biases
                target.copy_(torch.cat([source] * 2, -1))
    return teacher


def test_a_teacher_of_low_rank_is_reproduced(
    tiny_config: BertConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher lives in half its width, its mean is 0, and its LayerNorms only normalise.

    Everything in it is odd, and each sequence of the text has one with all signs turned, so that
    the mean is 0 exactly: then no step of the closed form is an approximation.
    """
    monkeypatch.setitem(configuration.ACTIVATIONS, "tanh", torch.tanh)
    config = replace(tiny_config, hidden_size=16, hidden_act="tanh", num_hidden_layers=2)
    torch.manual_seed(7)
    inner = TinyBertForPreTraining(replace(config, initializer_range=0.3)).eval()
    embeddings = inner.bert.embeddings
    with torch.no_grad():
        half = config.vocab_size // 2
        embeddings.word_embeddings.weight[half : 2 * half] = -embeddings.word_embeddings.weight[
            :half
        ]
        embeddings.position_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight.zero_()
    teacher = doubled(inner)
    batches = []
    for batch in random_batches(replace(config, vocab_size=half)):
        ids = torch.cat([batch.input_ids, batch.input_ids + half])
        mask = torch.cat([batch.attention_mask] * 2)
        batches.append(Batch(ids, torch.zeros_like(ids), mask, None, None, torch.arange(len(ids))))
    student = TinyBertForPreTraining(replace(config, fit_size=32)).eval()
    report = compute_student(student, teacher, ((1, 1), (2, 2)), batches, strength=1e-10)
    assert min(report.explained.values()) > 1 - 1e-6 and min(report.scores.values()) > 1 - 1e-6
    options = {"score_layers": (1, 2)}
    for batch in batches:
        inputs = batch.input_ids, batch.token_type_ids, batch.attention_mask
        ours = student(*inputs, fit_layers=(0, 1, 2), **options)
        theirs = teacher(*inputs, **options)
        real = batch.attention_mask
        for m in (0, 1, 2):
            difference = (ours.fitted[m] - theirs.hidden_states[m])[real]
            assert difference.abs().max() < 1e-3
        for m in (1, 2):
            pairs = real[:, None, :, None] & real[:, None, None, :]
            difference = (ours.attention_scores[m] - theirs.attention_scores[m]) * pairs
            assert difference.abs().max() < 1e-3


# --------------------------------------------------------------------------------- any student


@pytest.mark.parametrize(
    ("changes", "pairs"),
    [
        ({}, ((1, 2), (2, 4))),
        ({"num_attention_heads": 2}, ((1, 2), (2, 4))),  # two of the teacher's heads in one
        ({"num_attention_heads": 1}, ((1, 2), (2, 4))),
        ({"hidden_size": 24, "num_attention_heads": 8}, ((1, 2), (2, 4))),  # each head twice
        ({"hidden_size": 48, "intermediate_size": 300}, ((1, 2), (2, 4))),  # wider
        ({"intermediate_size": 5, "hidden_act": "relu"}, ((1, 1), (2, 4))),
        ({"fit_per_layer": True, "max_position_embeddings": 80}, ((1, 2), (2, 4))),
        ({}, ((2, 4),)),  # the first layer has no teacher
        ({"num_hidden_layers": 4}, ((1, 1), (2, 2), (3, 3), (4, 4))),
        ({"num_hidden_layers": 6}, ((1, 1), (2, 1), (3, 2), (4, 3), (5, 4), (6, 4))),  # deeper
        ({"hidden_size": 32}, ((1, 2), (2, 4))),  # equal width, other neurons
    ],
)
def test_any_student_begins_nearer_than_at_random(
    changes: dict, pairs: tuple, tiny_config: BertConfig, narrow_config: BertConfig
) -> None:
    student, teacher = pair_of(tiny_config, narrow_config, **changes)
    batches = random_batches(tiny_config, 6)

    def error() -> float:
        total = 0.0
        for batch in random_batches(tiny_config, 2, seed=9):
            inputs = batch.input_ids, batch.token_type_ids, batch.attention_mask
            ours, theirs = student(*inputs, fit_layers=(0, 1, 2)), teacher(*inputs)
            for m, g in ((0, 0), pairs[-1]):
                fitted = student.fit(ours.hidden_states[m], m)
                difference = (fitted - theirs.hidden_states[g])[batch.attention_mask]
                total += float(difference.square().mean())
        return total

    check_closed_form(student.config, teacher.config, pairs)
    with torch.no_grad():
        before = error()
        report = compute_student(student, teacher, pairs, batches)
        assert error() < 0.7 * before
    assert all(value.isfinite().all() for value in student.state_dict().values())
    assert set(report.explained) == {0, *(m for m, _ in pairs)}
    assert all(0 < share <= 1 for share in report.scores.values())
    first = {name: value.clone() for name, value in student.state_dict().items()}
    compute_student(student, teacher, pairs, batches)
    for name, value in student.state_dict().items():
        assert torch.equal(value, first[name]), name


def test_a_teacher_that_runs_in_bf16_gives_nearly_the_same_student(
    tiny_config: BertConfig, narrow_config: BertConfig
) -> None:
    student, teacher = pair_of(tiny_config, narrow_config)
    batches, pairs = random_batches(tiny_config, 6), ((1, 2), (2, 4))
    exact = compute_student(student, teacher, pairs, batches)
    query = student.bert.encoder.layer[0].attention.self.query.weight
    before = query.clone()
    in_bf16 = partial(torch.autocast, "cpu", torch.bfloat16)
    rough = compute_student(student, teacher, pairs, batches, autocast=in_bf16)
    assert query.dtype == torch.float32 and not torch.equal(query, before)
    for m, share in exact.explained.items():
        assert abs(rough.explained[m] - share) < 0.005, f"layer {m}"
        assert m == 0 or abs(rough.scores[m] - exact.scores[m]) < 0.005


@pytest.mark.parametrize(
    ("changes", "pairs", "told"),
    [
        ({"num_attention_heads": 5}, ((1, 2), (2, 4)), "5 heads cannot be made of the teacher's 4"),
        ({}, ((1, 4), (2, 2)), "list the teacher's layers in rising order"),
    ],
)
def test_what_cannot_be_computed_is_told(
    changes: dict, pairs: tuple, told: str, tiny_config: BertConfig, narrow_config: BertConfig
) -> None:
    with pytest.raises(UserError, match=told):
        check_closed_form(replace(narrow_config, **changes), tiny_config, pairs)


def test_layers_of_one_teacher_layer_share_its_neurons(
    tiny_config: BertConfig, narrow_config: BertConfig
) -> None:
    sizes = {"num_hidden_layers": 3, "intermediate_size": 12}
    student, teacher = pair_of(tiny_config, narrow_config, **sizes)
    batches = random_batches(tiny_config, 8)
    chosen = []
    steps = _ClosedForm(student, teacher, ((1, 3), (2, 3), (3, 3)), batches, 1e-3)
    neurons = steps.neurons

    def spy(layer: torch.nn.Module, x: list, teacher_layers: list) -> None:
        before = torch.cat([states.taken for states in teacher_layers])
        neurons(layer, x, teacher_layers)
        chosen.append(torch.cat([states.taken for states in teacher_layers]) & ~before)

    steps.neurons = spy
    with torch.no_grad():
        report = steps.run()
    # 12 + 12 + 12 of the 3 * 37 neurons of teacher layers 1 to 3, each once.
    assert [int(each.sum()) for each in chosen] == [12, 12, 12]
    assert int(torch.stack(chosen).sum(0).max()) == 1
    assert report.explained[1] < report.explained[2] < report.explained[3]


def test_rows_that_the_teacher_lacks_begin_at_the_mean(
    tiny_config: BertConfig, narrow_config: BertConfig
) -> None:
    more = {"max_position_embeddings": 80, "type_vocab_size": 3}
    student, teacher = pair_of(tiny_config, narrow_config, **more)
    compute_student(student, teacher, ((1, 2), (2, 4)), random_batches(tiny_config))
    for name, there in (("position_embeddings", 64), ("token_type_embeddings", 2)):
        table = getattr(student.bert.embeddings, name).weight
        mean = table[:there].mean(0)
        assert mean.abs().max() > 1e-3
        for row in table[there:]:
            torch.testing.assert_close(row, mean, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
def test_a_classifier_is_taken_over(
    relu: bool, tiny_config: BertConfig, narrow_config: BertConfig
) -> None:
    torch.manual_seed(2)
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "classifier_relu": relu}
    teacher = TinyBertForSequenceClassification(replace(tiny_config, **labels)).eval()
    student = TinyBertForSequenceClassification(replace(narrow_config, **labels)).eval()
    batches = random_batches(tiny_config, 30)
    report = compute_student(student, teacher, ((1, 2), (2, 4)), batches)
    inputs = [(b.input_ids, b.token_type_ids, b.attention_mask) for b in batches]
    with torch.no_grad():
        ours, theirs = (
            torch.cat([model(*each).logits for each in inputs]) for model in (student, teacher)
        )
    share = 1 - (ours - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum()
    assert report.logits == pytest.approx(float(share), abs=1e-4) and report.logits > 0.4


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real data beside the checkout")
def test_a_real_teachers_student_begins_below_a_fifth_of_the_random_loss() -> None:
    from transformer.checkpoint.directory import Checkpoint

    checkpoint = Checkpoint(DATA / "models" / "bert-6l-384-mlm")
    teacher, _ = checkpoint.load(TinyBertForPreTraining, config_changes={"fit_size": 0})
    sizes = {"hidden_size": 192, "num_hidden_layers": 3, "intermediate_size": 768, "fit_size": 384}
    torch.manual_seed(0)
    student = TinyBertForPreTraining(checkpoint.config.changed(**sizes)).eval()
    ids: list[int] = []
    with open(DATA / "corpus" / "enwiki.20mb.txt", encoding="utf-8") as file:
        while len(ids) < 6 * 16 * 64:
            ids += checkpoint.tokenizer.encode(file.readline())
    rows = torch.tensor(ids[: 6 * 16 * 64]).view(6, 16, 64)
    batches = [batch_of(ids, [64] * 16) for ids in rows]
    pairs = layer_map(3, 6, "uniform")

    def loss(batch: Batch) -> float:
        inputs = batch.input_ids, batch.token_type_ids, batch.attention_mask
        scores = {"score_layers": (1, 2, 3)}
        ours = student(*inputs, fit_layers=(0, 1, 2, 3), **scores)
        theirs = teacher.eval()(*inputs, score_layers=(2, 4, 6))
        total = (ours.fitted[0] - theirs.hidden_states[0]).square().mean()
        for m, g in pairs:
            total = total + (ours.fitted[m] - theirs.hidden_states[g]).square().mean()
            difference = ours.attention_scores[m] - theirs.attention_scores[g]
            total = total + 0.05 * difference.square().mean()
        return float(total)

    with torch.no_grad():
        random = loss(batches[-1])
        compute_student(student, teacher, pairs, batches[:-1])  # the last batch is held out
        assert loss(batches[-1]) < 0.2 * random
