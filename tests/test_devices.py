"""Training steps on a device that is not there: nothing is mixed, and nothing waits.

The meta device computes shapes alone. It holds no number, so that whatever would make a program
wait for a GPU fails there: `.item()`, `.cpu()`, the truth of a tensor, a boolean index. A whole
step runs on it in fp32. Autocast knows no such device; what a step does in half precision, but for
the backward pass, therefore runs on CUDA tensors of `FakeTensorMode`, which need no GPU either.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transformer.configuration import BertConfig
from transformer.distillation.layers import LAYER_TERMS, Comparison, Term, compare_layers
from transformer.distillation.losses import gold_loss, prediction_loss
from transformer.distillation.objectives import Objective, mean_loss
from transformer.distillation.students import ready_to_train
from transformer.modeling import (
    TinyBertForPreTraining,
    TinyBertForQuestionAnswering,
    TinyBertForSequenceClassification,
    TinyBertForTokenClassification,
)
from transformer.runtime.metrics_log import MetricsLog
from transformer.runtime.ranks import Runtime
from transformer.tasks.kinds import SPANS, TOKEN_LABELS
from transformer.training import loop
from transformer.training.batches import Batch, LossCounts
from transformer.training.inference import predict_logits
from transformer.training.meter import LossMeter
from transformer.training.options import add_training_arguments
from transformer.training.packed import PackedDataset, PackedWriter
from transformer.training.state import RunState
from transformer.training.steps import StepBatch

META = torch.device("meta")
CUDA = torch.device("cuda", 0)
ROWS, LENGTH = 4, 16
PAIRS = ((1, 2), (2, 4))

# What copies a number to the host, and so waits until the device has it.
WAITS = {
    *(torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero, torch.ops.aten.equal),
    *(torch.ops.aten.nonzero, torch.ops.aten.masked_select),
}


class OneDevice(TorchDispatchMode):
    """Refuse operations on tensors of two devices, and copies from the device to the host."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        # A tensor of one number may lie on the host: kernels take it as an argument.
        places = {x.device.type for x in given if x.ndim or x.device.type != "cpu"}
        assert len(places) < 2, f"{func} mixes {' and '.join(sorted(places))}"
        if self.device.type in places:
            waits = func.overloadpacket in WAITS
            leaves = torch.device(kwargs.get("device") or self.device).type != self.device.type
            assert not waits and not leaves, f"{func} waits for the device"
        return func(*args, **kwargs)


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """Give the meta device, of which autocast knows nothing."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    return Runtime(META)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let fake tensors be of a GPU, where there is none."""
    if torch.cuda.is_available():
        yield
        return
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args: True)
    # subtle: to index a tensor torch asks for the guard of its device, which a build without CUDA
    # lacks. That of the meta device, which does nothing, serves.
    library = next(Path(torch.__file__).parent.glob("lib/libc10.*"))
    guards = (ctypes.c_void_p * 15).in_dll(
        ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE"
    )
    of_cuda, of_meta = 1, 14
    guards[of_cuda] = guards[of_meta]
    yield
    guards[of_cuda] = None


# --- the stages ------------------------------------------------------------------------------


def terms_of(*kinds: str) -> tuple[Comparison, ...]:
    """Return the layer terms of these kinds, with the options that the flags would give."""
    options = {"relation_heads": 8, "loss_on_padding": False}
    rows = [row for row in LAYER_TERMS if row.kind in kinds]
    terms = [
        replace(row, loss=partial(row.loss, **{name: options[name] for name in row.options}))
        for row in rows
    ]
    return compare_layers(tuple(terms), PAIRS)


def answers(over: Callable[[Any], Any] = lambda loss: loss, **gold: Any) -> tuple[Comparison, ...]:
    """Return the terms of prediction distillation with gold labels."""
    terms = (
        Term("prediction", "logits", over(partial(prediction_loss, temperature=2.0))),
        Term("prediction_gold", "logits", over(partial(gold_loss, **gold)), weight=0.5),
    )
    return tuple(map(Comparison, terms))


TEXTS, TOKENS = TinyBertForSequenceClassification, TinyBertForTokenClassification
ENDS = TinyBertForQuestionAnswering

# The head, what is learnt, and whether the teacher's logits are stored.
STAGES: dict[str, tuple[type[nn.Module], tuple[Comparison, ...], bool]] = {
    "general": (TinyBertForPreTraining, terms_of("", "mse"), False),
    "general, other terms": (TinyBertForPreTraining, terms_of("", "centred", "scaled"), False),
    "general, relations": (TinyBertForPreTraining, terms_of("relation"), False),
    "intermediate": (TEXTS, terms_of("", "mse"), False),
    "prediction": (TEXTS, answers(), False),
    "prediction, stored": (TEXTS, answers(), True),
    "joint": (TEXTS, terms_of("", "mse") + answers(), False),
    "tokens, joint": (TOKENS, terms_of("", "mse") + answers(TOKEN_LABELS.over_answers), False),
    "tokens, stored": (TOKENS, answers(TOKEN_LABELS.over_answers), True),
    "spans, joint": (ENDS, terms_of("", "mse") + answers(SPANS.over_answers), False),
    "spans, stored": (ENDS, answers(SPANS.over_answers), True),
}


def make_step(
    stage: str, config: BertConfig, runtime: Runtime
) -> tuple[RunState, Objective, StepBatch]:
    """Return the student with its optimizer, what it learns, and the batches of two micro-steps."""
    head, comparisons, is_stored = STAGES[stage]
    outputs = 2 if head is ENDS else 3
    config = replace(config, id2label=dict(enumerate("abc"[:outputs])))
    # Fake tensors cannot be converted as `freeze_teacher` does it.
    torch.set_default_dtype(runtime.dtype)
    teacher = head(config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    objective = Objective(comparisons, teacher, classifiers=head is not TinyBertForPreTraining)
    if is_stored:
        logits = torch.zeros(ROWS * (LENGTH if teacher.per_token else 1), outputs)
        offsets = torch.arange(ROWS) * LENGTH if teacher.per_token else None
        objective = Objective(comparisons, teacher_logits=logits, token_offsets=offsets)
    student = head(replace(config, num_hidden_layers=2, hidden_size=24, fit_size=32))
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    args = parser.parse_args([])
    if runtime.device == META:  # what finds the unread parameters goes backward
        ready_to_train(student, objective, args, runtime, dropout=0.1)
    optimizer, scaler = loop.build_optimizer(student.train(), args, 10, runtime)
    meter = LossMeter(runtime.device)
    state = RunState(student, optimizer, scaler, meter, MetricsLog(None), {})
    labels = torch.zeros(ROWS, 2) if head is ENDS else torch.zeros(ROWS)
    if head is TOKENS:
        labels = torch.zeros(ROWS, LENGTH, dtype=torch.int16)
    ids = torch.ones(ROWS, LENGTH, dtype=torch.long)
    flags = torch.zeros(ROWS, dtype=torch.uint8)
    batch = Batch(ids, ids, ids > 0, labels, flags, torch.arange(ROWS))
    counts = LossCounts(2 * ROWS, 100, 1000, 50)
    return state, objective, StepBatch(1, 0, [batch, batch], counts, 2 * ROWS, 100)


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_neither_mixes_devices_nor_waits(
    stage: str, tiny_config: BertConfig, meta: Runtime
) -> None:
    with META:
        state, objective, step_batch = make_step(stage, tiny_config, meta)
    with OneDevice(META):
        loop.take_step(state.student, objective, step_batch, state, meta, seed=1)
    trained = [p for p in state.student.parameters() if p.requires_grad]
    assert trained and all(p in state.optimizer.state for p in trained)
    assert {p.device for p in state.student.parameters()} == {META}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stage", STAGES)
def test_neither_does_one_in_half_precision(
    stage: str, dtype: torch.dtype, tiny_config: BertConfig, cuda: None
) -> None:
    """Forward passes and losses; then the loss scaler, the optimizer and the meter."""
    runtime = Runtime(CUDA, dtype)
    with torch.no_grad(), FakeTensorMode():
        with CUDA:
            state, objective, step_batch = make_step(stage, tiny_config, runtime)
        assert state.scaler.is_enabled() == (dtype == torch.float16)
        with OneDevice(CUDA):
            loss, terms = objective(
                state.student, step_batch.batches[0], step_batch.counts, runtime
            )
            assert (loss.dtype, loss.device) == (torch.float32, CUDA)
            state.scaler.scale(loss)
            state.meter.add({"loss": loss, **terms})
            for parameter in state.student.parameters():
                parameter.grad = torch.zeros_like(parameter)
            loop._optimizer_step(state.optimizer, state.scaler, 1)
            state.meter.end_step(1)


FAULTS: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda x: x.sum().item(),
    "a truth": lambda x: bool((x > 0).all()),
    "a list": lambda x: x.tolist(),
    "a copy": lambda x: x.to("cpu"),
    "a boolean index": lambda x: x[x > 0],
    "two devices": lambda x: x + torch.ones(3, device="cpu"),
    "an index of the host": lambda x: x[torch.zeros(2, dtype=torch.long, device="cpu")],
}


@pytest.mark.parametrize("device", [META, CUDA])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault: str, device: torch.device, cuda: None) -> None:
    """What these tests look for does not pass them."""
    with FakeTensorMode() if device == CUDA else nullcontext(), OneDevice(device):
        x = torch.ones(3, device=device)
        assert (x + 1).device == device
        with pytest.raises((AssertionError, RuntimeError)):
            FAULTS[fault](x)


# --- evaluation ------------------------------------------------------------------------------


@pytest.fixture
def host_copies(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Collect the shapes of what is copied to the host, which gets zeros."""
    shapes: list[torch.Size] = []

    def cpu(tensor: Tensor) -> Tensor:
        shapes.append(tensor.shape)
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")

    monkeypatch.setattr(Tensor, "cpu", cpu)
    return shapes


def write_examples(directory: Path, *, tags: bool) -> PackedDataset:
    rng = np.random.default_rng(1)
    writer = PackedWriter(directory, 90, labels=not tags, tags=tags)
    for row in range(11):
        length = int(rng.integers(3, LENGTH))
        own = {"tags": np.zeros(length)} if tags else {"labels": np.array([row % 3])}
        writer.add_packed(
            rng.integers(5, 90, length), np.array([length]), np.array([length]), **own
        )
    return writer.close()


@pytest.mark.parametrize("head", [TEXTS, TOKENS])
def test_evaluation_waits_once(
    head: type[nn.Module],
    tmp_path: Path,
    tiny_config: BertConfig,
    meta: Runtime,
    host_copies: list[torch.Size],
) -> None:
    dataset = write_examples(tmp_path / "store", tags=head is TOKENS)
    with META:
        model = head(replace(tiny_config, id2label={0: "a", 1: "b", 2: "c"}))
    logits = predict_logits(model, dataset, 4, meta)
    rows = dataset.tokens if head is TOKENS else len(dataset)
    assert logits.shape == (rows, 3)
    assert host_copies == [(rows, 3)]


def test_the_loss_of_a_data_set_is_read_once(
    tmp_path: Path, tiny_config: BertConfig, meta: Runtime, host_copies: list[torch.Size]
) -> None:
    dataset = write_examples(tmp_path / "store", tags=False)
    with META:
        state, objective, _ = make_step("joint", tiny_config, meta)
    found = mean_loss(objective, state.student, dataset, 4, meta)
    assert host_copies == [(len(found),)]
