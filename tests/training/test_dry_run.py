"""What --dry_run says: no file is written, steps are those of the run, memory is what is taken."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from script_runs import Finished, general_arguments, task_arguments

from transformer.distillation.layers import LAYER_TERMS, compare_layers
from transformer.distillation.objectives import Objective
from transformer.modeling import TinyBertForPreTraining
from transformer.runtime.ranks import Runtime
from transformer.training.batches import LossCounts
from transformer.training.dry_run import batch_of_ones, made_in, step_memory

GOLD = {"finetune": True, "teacher_model": None, "class_weights": "auto"}


def files_below(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


@pytest.mark.parametrize(
    ("script", "arguments", "changes", "steps"),
    [
        # 8 examples in batches of 3: 3 steps an epoch, and half of them rounded up.
        ("general_distill.py", general_arguments, {"num_train_epochs": 1.5}, 3 + 2),
        ("task_distill.py", task_arguments, {"num_train_epochs": 4}, 4),
        ("task_distill.py", task_arguments, {"num_train_epochs": 4, "pred_distill": True}, 4),
        ("task_distill.py", task_arguments, {**GOLD, "num_train_epochs": 4}, 4),
    ],
)
def test_a_dry_run_plans_and_writes_nothing(
    script: str,
    arguments: Callable[..., list[object]],
    changes: dict[str, object],
    steps: int,
    setting: dict[str, Path],
    run: Callable[..., Finished],
    tmp_path: Path,
) -> None:
    before = files_below(tmp_path)
    end = run(script, *arguments(setting, train_batch_size=3, dry_run=True, **changes))
    assert end.code == 0, end.stderr
    assert files_below(tmp_path) == before
    planned = f"{steps} in {changes['num_train_epochs']} epochs"
    assert re.search(rf"^  steps +{planned}$", end.stdout, re.M), end.stdout
    assert re.search(r"^  memory +about [\d,]+ MiB on cpu: student ", end.stdout, re.M)


def test_a_dry_run_of_no_training_is_refused(
    setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    end = run("task_distill.py", *task_arguments(setting, do_eval=True, dry_run=True))
    assert end.code == 2
    assert "--dry_run plans a training" in end.stderr


def peak_of(step: Callable[[], None]) -> int:
    """Return the most bytes that torch's profiler saw allocated at a time."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pieces", [1, 3])
def test_memory_is_what_a_real_step_takes(tiny_config, dtype: torch.dtype, pieces: int) -> None:
    runtime = Runtime(torch.device("cpu"), dtype)
    config = replace(tiny_config, hidden_size=96, intermediate_size=200)
    terms = tuple(term for term in LAYER_TERMS if term.kind in ("", "mse"))

    def build() -> tuple[torch.nn.Module, Objective, list[torch.Tensor]]:
        with made_in(dtype):
            teacher = TinyBertForPreTraining(config).eval().requires_grad_(False)
        student = TinyBertForPreTraining(replace(config, num_hidden_layers=2, fit_size=96)).train()
        objective = Objective(compare_layers(terms, ((1, 2), (2, 4))), teacher, classifiers=False)
        return student, objective, list(teacher.parameters())

    batch = batch_of_ones(8, 64)
    estimate = step_memory(build, batch, pieces, runtime)
    student, objective, held = build()
    parameters = sum(p.numel() for p in student.parameters())
    assert estimate.student == estimate.gradients == 4 * parameters
    assert estimate.moments == 8 * parameters
    assert estimate.teacher == sum(p.numel() for p in held) * dtype.itemsize

    def step() -> None:
        for _ in range(pieces):
            loss, _ = objective(student, batch, LossCounts(8, 512, 4096), runtime)
            loss.backward()

    step()  # what torch keeps from its first call on
    student.zero_grad(set_to_none=True)
    # The teacher's fused attention, where no term reads the scores, is counted as if it held them.
    assert 0.95 < (estimate.gradients + estimate.activations) / peak_of(step) < 1.2
