"""BertAdam equals its formula in NumPy; its schedules, its state and its groups.

Run: pytest tests/test_optimization.py
"""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from transformer.configuration import BertConfig
from transformer.files import UserError
from transformer.modeling import TinyBertForSequenceClassification
from transformer.optimization import BertAdam, clip_each, parameter_groups, schedule_factor

STEPS = 12


def reference_factor(schedule: str, step: int, total: int, warmup: float) -> float:
    """The schedules, written out again from their definition."""
    x = step / total
    if schedule == "none":
        return 1.0
    if x < warmup:
        return x / warmup
    if schedule == "warmup_constant":
        return 1.0
    if schedule == "warmup_linear":
        return max((x - 1) / (warmup - 1), 0.0)
    return 0.5 * (1 + math.cos(math.pi * (x - warmup) / (1 - warmup)))


def reference_adam(values, gradients, rates, decay, corrected, b1=0.9, b2=0.999, e=1e-6, limit=1.0):
    """BertAdam on one tensor, in float64; `corrected` as algorithm 1 of arXiv 1412.6980."""
    p = values.astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for n, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = gradient * min(1.0, limit / (np.sqrt((gradient**2).sum()) + 1e-6))
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        mean, square = (m / (1 - b1**n), v / (1 - b2**n)) if corrected else (m, v)
        p = p - rate * (mean / (np.sqrt(square) + e) + decay * p)
    return p


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("schedule", ["none", "warmup_constant", "warmup_linear", "warmup_cosine"])
def test_equals_numpy(schedule, corrected):
    rng = np.random.default_rng(6)
    # The first tensor's gradients stay below the norm of 1, the others' do not: clipping by the
    # norm of a group, or of all, would shrink the first as well.
    shapes, sizes, decays = ((5, 3), (2, 6), (4,)), (0.05, 2, 3), (0.3, 0.3, 0.0)
    starts = [rng.normal(size=shape) for shape in shapes]
    gradients = [
        rng.normal(size=(STEPS, *shape)) * size for shape, size in zip(shapes, sizes, strict=True)
    ]
    parameters = [nn.Parameter(torch.tensor(s, dtype=torch.float32)) for s in starts]
    groups = [
        {"params": parameters[:2], "weight_decay": 0.3},
        {"params": parameters[2:], "weight_decay": 0.0},
    ]
    optimizer = BertAdam(
        groups, lr=0.1, warmup=0.25, t_total=STEPS, schedule=schedule, bias_correction=corrected
    )
    rates = [0.1 * reference_factor(schedule, i, STEPS, 0.25) for i in range(STEPS)]
    for i in range(STEPS):
        assert optimizer.get_lr() == pytest.approx([rates[i], rates[i]])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient[i], dtype=torch.float32)
        optimizer.step()
    for parameter, start, gradient, decay in zip(
        parameters, starts, gradients, decays, strict=True
    ):
        expected = reference_adam(start, gradient, rates, decay, corrected)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_bias_correction_goes_on_from_a_saved_state():
    """Killed after three updates of six; a tensor whose gradient comes late counts its own."""
    gradients = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))

    def begin(values: list[torch.Tensor]) -> tuple[list[nn.Parameter], BertAdam]:
        parameters = [nn.Parameter(value.clone()) for value in values]
        return parameters, BertAdam(parameters, lr=0.1, bias_correction=True)

    def go_on(parameters, optimizer, steps) -> None:
        for step in steps:
            parameters[0].grad = gradients[step].clone()
            parameters[1].grad = None if step < 2 else gradients[step].clone()
            optimizer.step()

    whole, optimizer = begin([torch.ones(4), torch.ones(4)])
    go_on(whole, optimizer, range(6))
    half, optimizer = begin([torch.ones(4), torch.ones(4)])
    go_on(half, optimizer, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    again, other = begin(half)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    go_on(again, other, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    late = reference_adam(np.ones(4), gradients[2:].double().numpy(), [0.1] * 4, 0.01, True)
    np.testing.assert_allclose(whole[1].detach().numpy(), late, rtol=1e-5)


def test_what_the_help_says_of_short_runs():
    """The mean of 1 / sqrt(1 - b2^n) over updates, weighted by their scheduled rates."""
    for steps, stated in ((200, 4.5), (540, 2.8), (2646, 1.5)):
        rates = [reference_factor("warmup_linear", step, steps, 0.1) for step in range(steps)]
        larger = [(1 - 0.999 ** (step + 1)) ** -0.5 for step in range(steps)]
        mean = sum(r * x for r, x in zip(rates, larger, strict=True)) / sum(rates)
        assert round(mean, 1) == stated


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # progress 0, half of the warm-up, its end, half of the rest, the end, beyond it
        ("none", [1, 1, 1, 1, 1, 1]),
        ("warmup_constant", [0, 0.5, 1, 1, 1, 1]),
        ("warmup_linear", [0, 0.5, 1, 0.5, 0, 0]),
        ("warmup_cosine", [0, 0.5, 1, 0.5, 0, 0]),
    ],
)
def test_schedule_at_its_corners(schedule, expected):
    steps = (0, 10, 20, 60, 100, 130)
    factors = [schedule_factor(schedule, step, 100, 0.2) for step in steps]
    assert factors == pytest.approx(expected, abs=1e-12)
    assert schedule_factor(schedule, 100, 100, 0.2) == expected[4]  # the end is exact
    assert schedule_factor(schedule, 50, -1, 0.2) == 1.0


def test_no_warmup_starts_at_the_peak():
    assert schedule_factor("warmup_linear", 0, 10, -1) == 1.0
    assert schedule_factor("warmup_linear", 5, 10, 0.0) == 0.5
    assert schedule_factor(None, 5, 10, 0.5) == 1.0


def test_first_update_of_a_warmup_moves_nothing_but_counts():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = BertAdam([parameter], lr=1.0, warmup=0.5, t_total=4)
    parameter.grad = torch.full((3,), 0.1)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(3))
    assert optimizer.state[parameter]["exp_avg"].tolist() == pytest.approx([0.01] * 3)
    assert optimizer.get_lr() == [0.5]


def test_hundred_steps_reach_a_known_minimum():
    target = torch.tensor([0.4, 0.2, -0.5])
    parameter = nn.Parameter(torch.tensor([0.1, -0.2, -0.1]))
    optimizer = BertAdam([parameter], lr=0.2, weight_decay=0.0)
    for _ in range(100):
        optimizer.zero_grad()
        (parameter - target).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), target, atol=1e-2, rtol=0)


def test_each_tensor_is_clipped_by_itself():
    small, large = torch.tensor([0.3, 0.4]), torch.tensor([[3.0], [4.0]])
    clip_each([small, large], 1.0)
    assert small.tolist() == pytest.approx([0.3, 0.4])
    assert large.flatten().tolist() == pytest.approx([0.6, 0.8], rel=1e-5)


def test_clipping_can_be_switched_off():
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = BertAdam([parameter], lr=0.1, max_grad_norm=0)
    parameter.grad = torch.tensor([30.0, 40.0])
    optimizer.step()
    assert optimizer.state[parameter]["exp_avg"].tolist() == pytest.approx([3.0, 4.0])


def make_model() -> TinyBertForSequenceClassification:
    torch.manual_seed(0)
    return TinyBertForSequenceClassification(
        BertConfig(
            vocab_size=99,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=37,
            max_position_embeddings=16,
        )
    )


def run_steps(model: nn.Module, optimizer: BertAdam, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        ids = torch.randint(0, 99, (4, 6))
        optimizer.zero_grad()
        model(ids).logits.square().mean().backward()
        optimizer.step()


def make_optimizer(model: nn.Module) -> BertAdam:
    return BertAdam(parameter_groups(model, 0.01), lr=1e-3, warmup=0.2, t_total=10)


def test_resumed_run_is_bit_identical_and_its_state_holds_only_tensors_and_numbers():
    unbroken = make_model()
    run_steps(unbroken, make_optimizer(unbroken), 0, 8)

    first = make_model()
    optimizer = make_optimizer(first)
    run_steps(first, optimizer, 0, 3)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = make_model()
    second.load_state_dict(state["model"])
    resumed = make_optimizer(second)
    resumed.load_state_dict(state["optimizer"])
    assert resumed.get_lr() == optimizer.get_lr()
    run_steps(second, resumed, 3, 8)
    for name, weight in unbroken.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name


def test_one_step_count_whatever_had_gradients():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = BertAdam([{"params": [used]}, {"params": [unused]}], lr=1.0, t_total=4)
    used.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.get_lr() == [0.75, 0.75]
    assert unused.tolist() == [1.0, 1.0] and unused not in optimizer.state


def test_closure_and_gradient_scaler():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = BertAdam([parameter], lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = parameter.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    before = parameter.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer.zero_grad()
    scaler.scale(parameter.sum() * math.inf).backward()
    scaler.step(optimizer)  # gradients overflowed: the update is left out
    scaler.update()
    assert torch.equal(parameter.detach(), before) and scaler.get_scale() == 2.0
    optimizer.zero_grad()
    scaler.scale(parameter.sum() * 0.1).backward()
    scaler.step(optimizer)
    assert parameter.grad.tolist() == pytest.approx([0.1, 0.1])
    assert not torch.equal(parameter.detach(), before)


def test_groups_decay_matrices_only_and_leave_out_what_is_frozen():
    model = make_model()
    model.bert.pooler.requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.02)
    names = {id(p): n for n, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.02 and plain["weight_decay"] == 0.0
    for parameter in decayed["params"]:
        assert names[id(parameter)].endswith("weight")
        assert "LayerNorm" not in names[id(parameter)]
    for parameter in plain["params"]:
        name = names[id(parameter)]
        assert name.endswith("bias") or "LayerNorm" in name
    listed = [*decayed["params"], *plain["params"]]
    assert len(listed) == len(list(model.parameters())) - 2
    assert all(p.requires_grad for p in listed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr -1.0 is out of range; give 0 or more"),
        ({"lr": float("nan")}, "lr nan is out of range"),
        ({"warmup": 1.0}, "warmup 1.0 is out of range"),
        ({"warmup": -0.5}, "warmup -0.5 is out of range"),
        ({"t_total": 0}, "t_total 0 is out of range; give at least 1 update"),
        ({"b1": 1.0}, "b1 1.0 is out of range"),
        ({"b2": -0.1}, "b2 -0.1 is out of range"),
        ({"e": -1e-6}, "e -1e-06 is out of range"),
        ({"weight_decay": -0.1}, "weight_decay -0.1 is out of range"),
        ({"schedule": "warmup_square"}, "schedule 'warmup_square' is unknown; choose from none"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        BertAdam([nn.Parameter(torch.ones(1))], **{"lr": 0.1, **settings})


@pytest.mark.parametrize("unscaled", [False, True])
def test_a_loss_scaler_changes_nothing_but_skips_an_overflow(unscaled: bool) -> None:
    """Three updates of the same gradients, of which the second one's are not finite."""
    plain, scaled = (torch.nn.Parameter(torch.linspace(-1, 1, 6)) for _ in "ab")
    optimizers = [BertAdam([p], lr=0.1, bias_correction=True) for p in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for update in range(3):
        gradient = torch.full((6,), 0.5 + update)
        if update != 1:
            plain.grad = gradient.clone()
            optimizers[0].step()
        scaler.scale(torch.zeros(()))  # sets the scaler up
        scaled.grad = gradient * scaler.get_scale() if update != 1 else gradient / 0
        if unscaled:
            scaler.unscale_(optimizers[1])
        scaler.step(optimizers[1])
        scaler.update()
        torch.testing.assert_close(scaled, plain)
    assert scaler.get_scale() == 4.0
