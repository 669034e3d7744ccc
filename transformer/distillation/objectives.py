"""What a student learns in one stage: teacher forward, student forward, terms, total."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transformer.distillation.layers import Comparison
from transformer.modeling import BertOutput
from transformer.runtime.ranks import Runtime
from transformer.training.batches import Batch, LossCounts, collate, evaluation_batches
from transformer.training.packed import PackedDataset

logger = logging.getLogger(__name__)


@dataclass
class Objective:
    """The loss of a stage: terms that compare student and teacher, and their weighted total.

    Args:
        comparisons: the terms, each at the layers where it compares.
        teacher: frozen; None where its logits are there already or nothing is asked of it.
        teacher_logits: of the whole training set, (N, C), on the device of the run.
        token_offsets: (N,), where the tokens of an example begin among `teacher_logits`, which then
            are those of each token.
        classifiers: both models have a classifier, which runs only where a term reads its logits.
        pad_to: the length of all batches, where padding counts; None where it does not.
    """

    comparisons: tuple[Comparison, ...]
    teacher: nn.Module | None = None
    teacher_logits: Tensor | None = None
    token_offsets: Tensor | None = None
    classifiers: bool = True
    pad_to: int | None = None

    def __call__(
        self, student: nn.Module, batch: Batch, counts: LossCounts, runtime: Runtime
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch (sections 3.1 and 3.2, equation 11) and its unweighted terms.

        Args:
            counts: denominators of the whole optimizer step: what comes of its micro-batches and
                ranks adds up.
        """
        # The teacher's forward pass: no gradient, no dropout, no further than a term reads.
        with torch.no_grad():
            teacher_output = self._ask_teacher(batch, runtime)

        # The student's forward pass over the same tokens.
        with runtime.autocast():
            inputs = batch.input_ids, batch.token_type_ids, batch.attention_mask
            student_output = self.ask_student(student, *inputs)

        # Every term, at every place where it compares the two.
        terms = {
            place.name: place.term.loss(
                place.of_student(student_output), place.of_teacher(teacher_output), batch, counts
            )
            for place in self.comparisons
        }

        # The total that is minimised.
        weighted = [place.term.weight * terms[place.name] for place in self.comparisons]
        return torch.stack(weighted).sum(), terms

    def ask_student(self, student: nn.Module, *inputs: Tensor) -> BertOutput:
        """Run the student; its hidden states are the projected ones, as wide as the teacher's."""
        output = student(*inputs, **self.forward_options("student_layer"))
        return output._replace(hidden_states=output.fitted)

    def _ask_teacher(self, batch: Batch, runtime: Runtime) -> BertOutput:
        if self.teacher_logits is not None:
            return BertOutput(logits=self._stored_logits(batch))
        if self.teacher is None:
            return BertOutput()
        options = self.forward_options("teacher_layer")
        # subtle: logits alone are computed as `predict_logits` computes those that are stored.
        with runtime.autocast() if "only_logits" in options else nullcontext():
            inputs = batch.input_ids, batch.token_type_ids, batch.attention_mask
            return self.teacher(*inputs, **options)

    def _stored_logits(self, batch: Batch) -> Tensor:
        """Return (B, C), or (B, T, C) of each token; that of padding is any other's."""
        if self.token_offsets is None:
            return self.teacher_logits[batch.indices]
        places = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        places = self.token_offsets[batch.indices][:, None] + places
        return self.teacher_logits[places.clamp(max=len(self.teacher_logits) - 1)]

    def forward_options(self, side: str) -> dict[str, Any]:
        """Return what a forward pass is asked for: what the terms read, and nothing more.

        Args:
            side: "student_layer" or "teacher_layer".
        """
        layers: dict[str, list[int]] = {}
        for place in self.comparisons:
            layers.setdefault(place.term.reads, []).append(getattr(place, side))
        if list(layers) == ["logits"]:
            return {"only_logits": True}
        options: dict[str, Any] = {
            "score_layers": tuple(layers.get("attention_scores", ())),
            "qkv_layers": tuple(layers.get("qkv", ())),
        }
        if side == "student_layer":
            options["fit_layers"] = tuple(layers.get("hidden_states", ()))
        if "logits" not in layers:
            options["num_layers"] = max(max(numbers) for numbers in layers.values())
            if self.classifiers:
                options["classify"] = False
        return options

    def read_tensors(self, student: nn.Module, *inputs: Tensor) -> list[Tensor]:
        """Return all tensors of the student that some term reads."""
        output = self.ask_student(student, *inputs)
        found = [place.of_student(output) for place in self.comparisons]
        return [x for value in found for x in (value if isinstance(value, tuple) else [value])]


# Examples that a teacher's variance is measured on.
VARIANCE_EXAMPLES = 256


def with_variances(
    objective: Objective, dataset: PackedDataset, batch_size: int, runtime: Runtime
) -> Objective:
    """Tell the losses that divide by the teacher's variance what it is in their layers.

    The variance of a layer is that of each coordinate over real tokens, mean over coordinates.

    Args:
        dataset: the training data; examples from all over it are taken.
    """
    layers = {place.teacher_layer for place in objective.comparisons if place.term.by_variance}
    if not layers:
        return objective
    count = min(len(dataset), VARIANCE_EXAMPLES)
    chosen = np.linspace(0, len(dataset) - 1, count).astype(np.int64)
    pad_token_id = objective.teacher.config.pad_token_id
    tokens, sums, squares = 0, dict.fromkeys(layers, 0), dict.fromkeys(layers, 0)
    for start in range(0, count, batch_size):
        rows = chosen[start : start + batch_size]
        batch = collate(dataset, rows, pad_token_id=pad_token_id).to(runtime.device)
        inputs = batch.input_ids, batch.token_type_ids, batch.attention_mask
        options = objective.forward_options("teacher_layer")
        with torch.no_grad():
            states = objective.teacher(*inputs, **options).hidden_states
        tokens += int(batch.attention_mask.sum())
        for layer in layers:
            real = states[layer][batch.attention_mask].double()
            sums[layer] += real.sum(0)
            squares[layer] += real.square().sum(0)
    variances = {
        layer: float((squares[layer] / tokens - (sums[layer] / tokens).square()).mean())
        for layer in layers
    }
    # subtle: rounded, so that a run that goes on with another number of threads has the same ones.
    variances = runtime.broadcast_object({n: float(f"{v:.2e}") for n, v in variances.items()})
    shown = ", ".join(f"{layer}: {variances[layer]:g}" for layer in sorted(variances))
    logger.info("hidden losses are divided by the variances of teacher layers %s", shown)
    return replace(
        objective,
        comparisons=tuple(_divided(place, variances) for place in objective.comparisons),
    )


def _divided(place: Comparison, variances: dict[int, float]) -> Comparison:
    if not place.term.by_variance:
        return place
    loss = partial(place.term.loss, variance=variances[place.teacher_layer])
    return place._replace(term=replace(place.term, loss=loss))


def mean_loss(
    objective: Objective,
    student: nn.Module,
    dataset: PackedDataset,
    batch_size: int,
    runtime: Runtime,
    *,
    start: int = 0,
) -> dict[str, float]:
    """Return the mean of an objective over a data set, as `eval_loss`, with its terms.

    Args:
        start: the first example that counts.
    """
    counts = LossCounts.from_lengths(dataset.lengths(np.arange(start, len(dataset))))
    was_training = student.training
    student.eval()
    names: list[str] = []
    total = torch.zeros((), dtype=torch.float64, device=runtime.device)
    batches = evaluation_batches(
        dataset, batch_size, rank=runtime.rank, world_size=runtime.world_size, start=start
    )
    # subtle: a rank without rows still has to name the terms, which are the same for any batch.
    is_idle = not batches
    pad = {"pad_token_id": student.config.pad_token_id, "pad_to": objective.pad_to}
    with torch.no_grad():
        for chosen in batches or [np.zeros(1, np.int64)]:
            batch = collate(dataset, chosen, **pad).to(runtime.device)
            loss, terms = objective(student, batch, counts, runtime)
            names = ["eval_loss", *(f"eval_{name}" for name in terms)]
            total = total + torch.stack([loss, *terms.values()]).double()
    student.train(was_training)
    # The device is waited for here, once.
    total = runtime.sum_over_ranks(total.cpu() * (not is_idle))
    return dict(zip(names, total.tolist(), strict=True))
