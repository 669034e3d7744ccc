"""The leaves of the training loops: steps, denominators, meter, state, signals, flags."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_vocabulary

from transformer.configuration import BertConfig
from transformer.distillation.layers import LAYER_TERMS, compare_layers
from transformer.distillation.objectives import Objective
from transformer.distillation.students import freeze_teacher
from transformer.files import UserError
from transformer.modeling import TinyBertForPreTraining
from transformer.runtime.metrics_log import MetricsLog
from transformer.runtime.ranks import Runtime
from transformer.runtime.script import RunError
from transformer.training.batches import Batch, BatchPlan, LossCounts, collate
from transformer.training.loop import (
    begin_state,
    build_optimizer,
    compile_forward,
    is_due,
    take_step,
)
from transformer.training.meter import LossMeter, stop_if_not_finite
from transformer.training.options import add_training_arguments, check_training_arguments
from transformer.training.packed import PackedDataset, PackedWriter
from transformer.training.state import (
    RunState,
    StopSignal,
    is_finished,
    mark_finished,
    read_state,
)
from transformer.training.steps import RunPlan, step_batches, step_counts

CPU = Runtime(torch.device("cpu"))
WORDS = len(tiny_vocabulary())


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_training_arguments(parser, epochs=3.0, eval_step=10)
    return parser.parse_args(words)


@pytest.fixture
def dataset(tmp_path) -> PackedDataset:
    """Pack 45 examples of 3 to 40 tokens."""
    rng = np.random.default_rng(5)
    writer = PackedWriter(tmp_path / "store", WORDS)
    for length in rng.integers(3, 41, 45):
        writer.add(rng.integers(5, WORDS, length), int(rng.integers(1, length)))
    return writer.close()


@pytest.fixture
def models(tiny_config) -> tuple[TinyBertForPreTraining, TinyBertForPreTraining]:
    """Build a student of 2 layers and a frozen teacher of 4, without dropout."""
    torch.manual_seed(0)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    values = {**tiny_config.to_dict(), **quiet}
    teacher = TinyBertForPreTraining(BertConfig.from_dict(values))
    small = {"hidden_size": 24, "num_hidden_layers": 2, "fit_size": 32}
    student = TinyBertForPreTraining(BertConfig.from_dict({**values, **small}))
    return student.train(), freeze_teacher(teacher, CPU)


TERMS = tuple(term for term in LAYER_TERMS if term.kind in ("", "mse"))


def objective_of(teacher: torch.nn.Module, pairs=((1, 2), (2, 4))) -> Objective:
    return Objective(compare_layers(TERMS, pairs), teacher, classifiers=False)


def loss_of(student, teacher, batch: Batch, counts: LossCounts | None = None) -> torch.Tensor:
    """Return the loss of a batch; without `counts` it is a step of its own."""
    own = LossCounts.from_lengths(batch.attention_mask.sum(1).tolist())
    return objective_of(teacher)(student, batch, counts or own, CPU)[0]


def begin(student: torch.nn.Module, steps: int) -> RunState:
    args = parse("--learning_rate", "1e-2")
    optimizer, scaler = build_optimizer(student, args, steps, CPU)
    return RunState(student, optimizer, scaler, LossMeter(CPU.device), MetricsLog(None), {})


# --- padding, sorting and cutting change nothing -----------------------------------------------


def gradients_of(student, teacher, batches, counts) -> tuple[float, dict[str, torch.Tensor]]:
    student.zero_grad()
    total = 0.0
    for batch in batches:
        loss = loss_of(student, teacher, batch, counts)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in student.named_parameters()}


@pytest.mark.parametrize("pieces", [1, 3])
def test_padding_and_accumulation_change_neither_loss_nor_gradients(dataset, models, pieces):
    indices = np.arange(12)
    counts = LossCounts.from_lengths(dataset.lengths(indices))
    padded = collate(dataset, indices, pad_token_id=0, pad_to=64)
    expected_loss, expected = gradients_of(*models, [padded], None)
    parts = np.array_split(indices[np.argsort(dataset.lengths(indices))], pieces)
    batches = [collate(dataset, part, pad_token_id=0) for part in parts]
    assert all(batch.input_ids.shape[1] < 64 for batch in batches)
    loss, gradients = gradients_of(*models, batches, counts)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name


def test_sorting_by_length_does_not_change_the_mean_loss_of_an_epoch(dataset, models):
    """Every token weighs the same in a batch of short sequences and in a mixed one."""
    batch_size = 9

    def mean_loss(batches: list[np.ndarray]) -> float:
        losses = []
        for indices in batches:
            counts = step_counts(dataset, len(indices))
            batch = collate(dataset, indices, pad_token_id=0)
            losses.append(loss_of(*models, batch, counts))
        return torch.stack(losses).mean().item()

    with torch.no_grad():
        plan = BatchPlan(dataset, batch_size, seed=3)
        bucketed = mean_loss([plan.batch(0, step) for step in range(len(plan))])
        shuffled = np.random.default_rng(4).permutation(len(dataset)).reshape(-1, batch_size)
        unsorted = mean_loss(list(shuffled))
        whole = collate(dataset, np.arange(len(dataset)), pad_token_id=0)
        corpus = loss_of(*models, whole).item()
    assert bucketed == pytest.approx(unsorted, rel=1e-5)
    assert bucketed == pytest.approx(corpus, rel=1e-5)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shares_of_all_ranks_add_up_to_the_step(dataset, models, world_size):
    """The mean over ranks of what the ranks compute is the loss of the whole batch."""
    plan = RunPlan([BatchPlan(dataset, 11, seed=0)], epochs=1)
    last = plan.total_steps  # a batch of one example: some ranks have none of their own
    sums = []
    for rank in range(world_size):
        runtime = Runtime(torch.device("cpu"), rank=rank, world_size=world_size)
        items = list(step_batches(plan, runtime, first_step=1, accumulation=2, pad_token_id=0))
        assert [item.step for item in items] == list(range(1, last + 1))
        losses = []
        for item in items:
            with torch.no_grad():
                parts = [loss_of(*models, batch, item.counts) for batch in item.batches]
            losses.append(float(sum(parts)))
        sums.append(losses)
    expected = []
    for step in range(last):
        indices = plan.batch(step)[1]
        with torch.no_grad():
            batch = collate(dataset, indices, pad_token_id=0)
            counts = step_counts(dataset, len(indices))
            expected.append(loss_of(*models, batch, counts).item())
    assert np.allclose(np.mean(sums, axis=0), expected, rtol=1e-5)


# --- steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "steps"), [(1, [5]), (2, [5, 5]), (0.5, [3]), (2.2, [5, 5, 1]), (0.01, [1])]
)
def test_fractional_epochs(dataset, epochs, steps):
    plan = RunPlan([BatchPlan(dataset, 9, seed=0)], epochs)
    assert plan.steps_in_epochs == steps
    assert plan.total_steps == sum(steps)
    assert plan.locate(plan.total_steps - 1) == (len(steps) - 1, steps[-1] - 1)
    with pytest.raises(IndexError):
        plan.locate(plan.total_steps)


def test_epoch_files_are_used_in_turn(dataset, tmp_path):
    writer = PackedWriter(tmp_path / "other", WORDS)
    for _ in range(10):
        writer.add([5, 6, 7], 3)
    other = writer.close()
    plan = RunPlan([BatchPlan(d, 9, seed=0) for d in (dataset, other)], epochs=3)
    assert plan.steps_in_epochs == [5, 2, 5]
    used = [plan.batch(step)[0].path.name for step in range(plan.total_steps)]
    assert used == ["store"] * 5 + ["other"] * 2 + ["store"] * 5
    first, third = ([plan.batch(s)[1].tolist() for s in range(n, n + 5)] for n in (0, 7))
    assert first != third, "a file that is used again is shuffled anew"
    assert plan.epochs_done(7) == 2.0


def test_schedule_ends_at_exactly_zero(dataset, models):
    student, teacher = models
    plan = RunPlan([BatchPlan(dataset, 9, seed=0)], epochs=1.5)
    state = begin(student, plan.total_steps)
    objective = objective_of(teacher)
    rates = []
    for item in step_batches(plan, CPU, first_step=1, accumulation=2, pad_token_id=0):
        rates.append(state.optimizer.get_lr()[0])
        take_step(student, objective, item, state, CPU, seed=0)
    assert len(rates) == plan.total_steps == 8
    assert min(rates[1:]) > 0
    assert state.optimizer.get_lr()[0] == 0.0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("none", [1, 1, 1]), ("warmup_constant", [0, 1, 1]), ("warmup_linear", [0, 1, 0])],
)
def test_the_schedule_is_the_users(models, schedule, expected):
    """The rates of the first, the third and the last of twenty steps, a tenth of them warm-up."""
    args = parse("--schedule", schedule, "--learning_rate", "1")
    optimizer, _ = build_optimizer(models[0], args, 20, CPU)
    rates = []
    for step in (0, 2, 20):
        optimizer.param_groups[0]["step"] = step
        rates.append(optimizer.get_lr()[0])
    assert rates == expected


def test_loss_falls(dataset, models):
    student, teacher = models
    plan = RunPlan([BatchPlan(dataset, 9, seed=0)], epochs=8)
    state = begin(student, plan.total_steps)
    objective = objective_of(teacher)
    losses = []
    for item in step_batches(plan, CPU, first_step=1, accumulation=1, pad_token_id=0):
        take_step(student, objective, item, state, CPU, seed=0)
        losses.append(state.meter.read(CPU)["loss"])
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_student_gives_the_same_losses(dataset, models):
    """One layer of the student, compiled for any length: compiling more takes minutes."""
    student, teacher = models
    objective = objective_of(teacher, pairs=((1, 1),))
    counts = LossCounts(4, 60, 900)

    def run() -> tuple[list[float], dict[str, torch.Tensor]]:
        student.zero_grad()
        losses = []
        for first in (0, 4):
            batch = collate(dataset, np.arange(first, first + 4), pad_token_id=0)
            loss, _ = objective(student, batch, counts, CPU)
            loss.backward()
            losses.append(loss.item())
        return losses, {n: p.grad for n, p in student.named_parameters() if p.grad is not None}

    losses, gradients = run()
    compile_forward(student)
    compiled_losses, compiled = run()
    assert compiled_losses == pytest.approx(losses, rel=1e-4)
    assert compiled.keys() == gradients.keys()
    for name, gradient in compiled.items():
        assert torch.allclose(gradient, gradients[name], rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize(("step", "due"), [(4, False), (5, True), (10, True), (12, True)])
def test_due_every_so_many_steps_and_at_the_end(step, due):
    assert is_due(step, 5, 12) is due


# --- meter -------------------------------------------------------------------------------------


def test_meter_reads_means_of_steps():
    meter = LossMeter(torch.device("cpu"))
    for step, parts in enumerate([[1.0, 2.0], [5.0]], start=1):
        for part in parts:  # micro-batches of a step add up
            meter.add({"loss": torch.tensor(part), "hidden/1": torch.tensor(part / 2)})
        meter.end_step(step)
    assert meter.read(CPU) == {"loss": 4.0, "hidden/1": 2.0}
    meter.add({"loss": torch.tensor(7.0), "hidden/1": torch.tensor(1.0)})
    meter.end_step(3)
    assert meter.read(CPU) == {"loss": 7.0, "hidden/1": 1.0}


def test_meter_goes_on_exactly():
    first, second = LossMeter(torch.device("cpu")), LossMeter(torch.device("cpu"))
    values = torch.rand(6)
    for step, value in enumerate(values[:3], start=1):
        first.add({"loss": value})
        first.end_step(step)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for meter in (first, second):
        for step, value in enumerate(values[3:], start=4):
            meter.add({"loss": value})
            meter.end_step(step)
    assert first.read(CPU) == second.read(CPU)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_first_loss_that_is_not_finite_stops_the_run(tmp_path, bad):
    meter = LossMeter(torch.device("cpu"))
    for step, value in enumerate([1.0, 2.0, bad, 4.0, math.nan], start=1):
        meter.add({"loss": torch.tensor(value), "hidden/1": torch.tensor(0.5)})
        meter.end_step(step)
    with pytest.raises(RunError, match=r"step 3 is not finite \(loss (nan|inf)\)"):
        stop_if_not_finite(meter, CPU, tmp_path, lambda step: {"indices": [step, 8]})
    report = json.loads((tmp_path / "nonfinite_step_3.json").read_text())
    assert report["indices"] == [3, 8]
    assert report["terms"] == {"loss": str(bad), "hidden/1": "0.5"}


def test_finite_losses_do_not_stop_the_run(tmp_path):
    meter = LossMeter(torch.device("cpu"))
    stop_if_not_finite(meter, CPU, tmp_path, dict)
    meter.add({"loss": torch.tensor(1e30)})
    meter.end_step(1)
    stop_if_not_finite(meter, CPU, tmp_path, dict)


# --- state and signals -------------------------------------------------------------------------


def test_state_is_one_file_that_restores_everything(tmp_path, dataset, models):
    student, teacher = models
    plan = RunPlan([BatchPlan(dataset, 9, seed=0)], epochs=1)
    args = parse("--learning_rate", "1e-2", "--bias_correction", "--schedule", "none")
    args.output_dir = tmp_path
    state = begin_state(student, args, CPU, plan.total_steps, None, {"--seed": "0"})
    objective = objective_of(teacher)
    for item in step_batches(plan, CPU, first_step=1, accumulation=1, pad_token_id=0):
        take_step(student, objective, item, state, CPU, seed=0)
        if item.step == 3:
            break
    state.best_score, state.best_step, state.facts = 0.25, 2, {"note": [1, 2]}
    state.since_best, state.stopped = 4, True
    state.save(tmp_path, CPU)
    assert [path.name for path in tmp_path.glob("*.pt")] == ["training_state.pt"]

    saved = read_state(tmp_path, CPU)
    other = TinyBertForPreTraining(student.config)
    again = begin_state(other, args, CPU, plan.total_steps, saved, {"--seed": "0"})
    assert (again.step, again.best_score, again.best_step) == (3, 0.25, 2)
    assert again.facts == {"note": [1, 2]}
    assert (again.since_best, again.stopped) == (4, True)
    for name, tensor in student.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    assert again.optimizer.get_lr() == state.optimizer.get_lr()
    assert again.meter.read(CPU) == state.meter.read(CPU)


def test_a_finished_run_leaves_no_state(tmp_path, models, caplog):
    caplog.set_level("INFO")
    state = begin(models[0], steps=3)
    state.fingerprint, state.step = {"--seed": "0"}, 3
    args = parse("--resume")
    args.output_dir = tmp_path
    assert not is_finished(args, CPU, {"--seed": "0"})
    (tmp_path / "args.json").write_text('{"output_dir": "here"}')
    assert not is_finished(args, CPU, {"--seed": "0"})
    state.save(tmp_path, CPU)
    left = (tmp_path / "training_state.pt").read_bytes()
    mark_finished(tmp_path, state)
    assert [path.name for path in tmp_path.iterdir()] == ["args.json"]
    held = json.loads((tmp_path / "args.json").read_text())
    done = {"step": 3, "fingerprint": {"--seed": "0"}, "files": []}
    assert held == {"output_dir": "here", "finished": done}

    (tmp_path / "training_state.pt").write_bytes(left)  # killed before it could remove this
    assert is_finished(args, CPU, {"--seed": "0"})
    assert "is finished: nothing to do" in caplog.text
    assert not (tmp_path / "training_state.pt").exists()
    with pytest.raises(UserError, match="--seed was 0 and is now 1"):
        is_finished(args, CPU, {"--seed": "1"})
    assert not is_finished(parse(), CPU, {"--seed": "0"})  # not asked to go on with it
    for damaged, told in (
        ("5", "args.json"),
        ('{"finished": 5}', "args.json is damaged"),
        ('{"finished": {"files": [7], "fingerprint": {}}}', "finished, but 7 is gone"),
        ('{"finished": {"files": [], "fingerprint": 5}}', "cannot be read; begin anew"),
    ):
        (tmp_path / "args.json").write_text(damaged)
        with pytest.raises(UserError, match=told):
            is_finished(args, CPU, {"--seed": "0"})


def test_a_file_that_is_no_state_is_refused(tmp_path):
    (tmp_path / "training_state.pt").write_bytes(b"no zip")
    with pytest.raises(UserError, match="training_state.pt is damaged"):
        read_state(tmp_path, CPU)
    (tmp_path / "training_state.pt").unlink()
    assert read_state(tmp_path, CPU) is None


def write_with_digest(path, content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())


def test_a_state_that_was_changed_is_refused(tmp_path):
    file = tmp_path / "training_state.pt"
    content = {"fingerprint": {}, "step": 3, "student": {}, "optimizer": {}, "metrics_offset": 0}
    write_with_digest(file, content)
    assert read_state(tmp_path, CPU) == content
    torch.save({**content, "step": 4}, file)  # as an earlier version, or a person, would
    with pytest.raises(UserError, match="is damaged"):
        read_state(tmp_path, CPU)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"step": 3},
        {"fingerprint": [], "step": 3, "student": {}, "optimizer": {}, "metrics_offset": 0},
        {"fingerprint": {}, "step": 3},
        {"fingerprint": {}, "step": "3", "student": {}, "optimizer": {}, "metrics_offset": 0},
        {"fingerprint": {}, "step": 3, "student": {}, "optimizer": {}, "metrics_offset": 0.5},
    ],
)
def test_a_state_of_wrong_types_is_refused(tmp_path, content):
    write_with_digest(tmp_path / "training_state.pt", content)
    with pytest.raises(UserError, match="is damaged") as told:
        read_state(tmp_path, CPU)
    assert "weights_only" not in str(told.value)


def test_a_state_that_holds_code_is_refused_without_advice_to_run_it(tmp_path):
    write_with_digest(tmp_path / "training_state.pt", SimpleNamespace(step=3))
    with pytest.raises(UserError, match="is damaged") as told:
        read_state(tmp_path, CPU)
    assert "weights_only" not in str(told.value)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_noticed_and_handlers_restored(signum):
    before = signal.getsignal(signum)
    with StopSignal(CPU) as stop:
        assert stop.agreed() == 0
        os.kill(os.getpid(), signum)
        assert stop.agreed() == signum
    assert signal.getsignal(signum) == before


def test_a_second_signal_ends_the_process_at_once():
    pid = os.fork()
    if pid == 0:
        with StopSignal(Runtime(torch.device("cpu"), rank=1)):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143


# --- flags -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--train_batch_size", "0"], "--train_batch_size 0"),
        (["--gradient_accumulation_steps", "33"], "at most as many steps as examples"),
        (["--num_train_epochs", "0"], "--num_train_epochs"),
        (["--num_train_epochs", "nan"], "--num_train_epochs"),
        (["--warmup_proportion", "1"], "--warmup_proportion"),
        (["--student_dropout", "1"], "--student_dropout 1.0: give a probability from 0 to below 1"),
        (["--learning_rate", "-1"], "--learning_rate"),
        (["--log_steps", "0"], "--log_steps"),
        (["--data_url", "ftp://x/y"], "--data_url"),
    ],
)
def test_impossible_values_are_refused(words, says):
    with pytest.raises(UserError, match=says):
        check_training_arguments(parse(*words))


def test_defaults_are_accepted_and_decay_is_what_the_original_used():
    args = parse()
    check_training_arguments(args)
    assert args.weight_decay == 0.01
    assert parse("--wd", "0.1").weight_decay == 0.1


def test_restart_by_torchrun_implies_resuming(monkeypatch):
    assert not parse().resume
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert parse().resume
