"""BertAdam, its learning-rate schedules, and which parameters decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from transformer.files import UserError


def _none(progress: float, warmup: float) -> float:
    return 1.0


def _warmup_constant(progress: float, warmup: float) -> float:
    return progress / warmup if progress < warmup else 1.0


def _warmup_linear(progress: float, warmup: float) -> float:
    # Google's schedule is 1 - progress: it drops to 0.9 the moment a warm-up of 0.1 is over. Here
    # the fall starts from 1.
    if progress < warmup:
        return progress / warmup
    return max(1 - progress, 0.0) / (1 - warmup)


def _warmup_cosine(progress: float, warmup: float) -> float:
    if progress < warmup:
        return progress / warmup
    if progress >= 1:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "none": _none,
    "warmup_constant": _warmup_constant,
    "warmup_linear": _warmup_linear,
    "warmup_cosine": _warmup_cosine,
}


def schedule_factor(schedule: str | None, step: int, t_total: int, warmup: float) -> float:
    """Return what the learning rate is multiplied by in the update after `step` updates.

    Args:
        schedule: a key of `SCHEDULES`; None means "none".
        t_total: updates of the whole run; -1: no schedule, the factor is 1.
        warmup: share of the run in which the rate rises from 0; -1: none.

    Example: ("warmup_linear", 0, 100, 0.1) -> 0.0; step 5 -> 0.5; 10 -> 1.0; 55 -> 0.5; 100 -> 0.0
    """
    if t_total < 0:
        return 1.0
    return SCHEDULES[schedule or "none"](step / t_total, max(warmup, 0.0))


class BertAdam(Optimizer):
    """Adam as BERT was trained with it.

    It differs from AdamW in four ways: no bias correction, unless asked for; weight decay is added
    to the update (the same as decoupled decay, scaled by the scheduled rate); each parameter
    tensor's gradient is clipped by itself; and the learning rate follows its schedule without being
    told. With warm-up the first update has rate 0: it moves no weight and only fills the moments.

    Args:
        params: parameters, or groups such as `parameter_groups` gives.
        lr: learning rate at the peak.
        warmup, t_total, schedule: as in `schedule_factor`.
        b1, b2, e: decay rates of the moments, and epsilon.
        weight_decay: rate of decay, per unit of learning rate.
        max_grad_norm: limit for the norm of each tensor's gradient; -1 or 0: no clipping.
        bias_correction: divide the moments by 1 - b1^n and 1 - b2^n in a tensor's update n, as
            Adam (arXiv 1412.6980) does. Without, early updates are up to 1 / sqrt(1 - b2^n) times
            as large as the rate says: 4.5 times on the average of 200 updates that warm up for a
            tenth and decay linearly, 2.8 times of 540, 1.5 times of 2,646.

    Raises:
        UserError: a value out of range.
    """

    # torch.amp.GradScaler then leaves it to the kernel whether gradients that overflowed are
    # applied. Otherwise it reads from the device whether they did, and waits for that every step.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        warmup: float = -1,
        t_total: int = -1,
        schedule: str | None = "warmup_linear",
        b1: float = 0.9,
        b2: float = 0.999,
        e: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
        bias_correction: bool = False,
    ):
        defaults = {
            "lr": lr,
            "warmup": warmup,
            "t_total": t_total,
            "schedule": schedule or "none",
            "b1": b1,
            "b2": b2,
            "e": e,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "bias_correction": bias_correction,
            "step": 0,
        }
        _check_settings(defaults)
        super().__init__(params, defaults)

    def get_lr(self) -> list[float]:
        """Return the learning rate of the next update, one for each parameter group."""
        return [_scheduled_rate(group) for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)
            group["step"] += 1
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
                if group["bias_correction"]:
                    self.state[parameter]["step"] = torch.zeros((), device=parameter.device)
        gradients = [p.grad for p in parameters]
        # Of a GradScaler, while it calls `step`: the scale, if it has not taken that off, and
        # whether a gradient is not finite.
        scale, overflowed = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is not None:
            torch._foreach_div_(gradients, scale)
        if group["max_grad_norm"] > 0:
            clip_each(gradients, group["max_grad_norm"])
        # AdamW's fused kernel makes one pass over memory, and decays as BertAdam does. It counts
        # the updates of each tensor for its bias corrections, 1 - beta^updates: exactly 1 where it
        # counts on from infinity.
        infinity = torch.full((), math.inf, device=parameters[0].device)
        adamw(
            parameters,
            gradients,
            [self.state[p]["exp_avg"] for p in parameters],
            [self.state[p]["exp_avg_sq"] for p in parameters],
            max_exp_avg_sqs=[],
            state_steps=[self.state[p].get("step", infinity) for p in parameters],
            found_inf=overflowed,
            fused=True,
            amsgrad=False,
            beta1=group["b1"],
            beta2=group["b2"],
            lr=_scheduled_rate(group),
            weight_decay=group["weight_decay"],
            eps=group["e"],
            maximize=False,
        )


def _scheduled_rate(group: dict[str, Any]) -> float:
    return group["lr"] * schedule_factor(
        group["schedule"], group["step"], group["t_total"], group["warmup"]
    )


def _check_settings(settings: dict[str, Any]) -> None:
    if settings["schedule"] not in SCHEDULES:
        raise UserError(
            f"schedule {settings['schedule']!r} is unknown; choose from {', '.join(SCHEDULES)}"
        )
    rules = {
        "lr": (settings["lr"] >= 0, "0 or more"),
        "warmup": (
            0 <= settings["warmup"] < 1 or settings["warmup"] == -1,
            "a share from 0 to below 1, or -1 for none",
        ),
        "t_total": (
            settings["t_total"] >= 1 or settings["t_total"] == -1,
            "at least 1 update, or -1 for no schedule",
        ),
        "b1": (0 <= settings["b1"] < 1, "a share from 0 to below 1"),
        "b2": (0 <= settings["b2"] < 1, "a share from 0 to below 1"),
        "e": (settings["e"] >= 0, "0 or more"),
        "weight_decay": (settings["weight_decay"] >= 0, "0 or more"),
    }
    for name, (holds, allowed) in rules.items():
        if not holds:
            raise UserError(f"{name} {settings[name]} is out of range; give {allowed}")


def clip_each(gradients: list[Tensor], max_norm: float) -> None:
    """Scale down, in place, each gradient whose own norm exceeds `max_norm`."""
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    scaled = list(zip(gradients, factors.unbind(), strict=True))
    if norms.is_cpu:
        # subtle: to look at a number makes a GPU wait; on a CPU it saves a pass over the gradient.
        scaled = [(gradient, factor) for gradient, factor in scaled if not factor >= 1]
    if scaled:
        torch._foreach_mul_(*map(list, zip(*scaled, strict=True)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group the trainable parameters: matrices decay, biases and LayerNorm do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
