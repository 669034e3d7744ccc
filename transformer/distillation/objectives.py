"""What a student is taught in a stage of task distillation.

A lesson runs the student on a batch and returns the loss with its terms. Terms are sums over the
batch divided by the counts of the whole optimizer step, so those of micro-batches and ranks add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.distillation.layers import IntermediateObjective
from transformer.distillation.losses import prediction_loss
from transformer.runtime.ranks import Runtime
from transformer.training.batches import Batch, LossCounts, collate, evaluation_batches
from transformer.training.loop import Lesson
from transformer.training.packed import PackedDataset


def layer_terms(
    student: nn.Module,
    teacher: nn.Module,
    objective: IntermediateObjective,
    batch: Batch,
    counts: LossCounts | None,
    runtime: Runtime,
    **options: bool,
) -> dict[str, Tensor]:
    """Return the unweighted terms of layer distillation for a batch.

    Each model computes what the objective reads and nothing more; `options` go to both, such as
    `classify=False` for classifiers.
    """
    inputs = batch.input_ids, batch.token_type_ids, batch.attention_mask
    with torch.no_grad():
        teacher_output = teacher(*inputs, **objective.teacher_layers(), **options)
    with runtime.autocast():
        student_output = student(*inputs, **objective.student_layers(), **options)
    return objective(student_output, teacher_output, batch.attention_mask, counts)


Taught = tuple[Tensor, dict[str, Tensor]]


@dataclass
class IntermediateLesson:
    """Learn the teacher's attention, hidden states and embeddings (section 3.1, equation 11).

    Args:
        classifiers: both models have a classifier, which is then not computed.
    """

    teacher: nn.Module
    objective: IntermediateObjective
    classifiers: bool = True

    def __call__(
        self, student: nn.Module, batch: Batch, counts: LossCounts, runtime: Runtime
    ) -> Taught:
        options = {"classify": False} if self.classifiers else {}
        terms = layer_terms(
            student, self.teacher, self.objective, batch, counts, runtime, **options
        )
        return self.objective.total(terms), terms


Targets = Callable[[Batch], Tensor]


@dataclass
class StoredTargets:
    """The teacher's logits of the whole training set, (N, C), on the device of the run."""

    logits: Tensor

    def __call__(self, batch: Batch) -> Tensor:
        return self.logits[batch.indices]


@dataclass
class TeacherTargets:
    """The teacher itself, for a run that sees every row at most once."""

    teacher: nn.Module
    runtime: Runtime

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        with self.runtime.autocast():
            inputs = batch.input_ids, batch.token_type_ids, batch.attention_mask
            return self.teacher(*inputs).logits


@dataclass
class PredictionLesson:
    """Learn the teacher's logits (equation 10), gold labels, or both.

    Args:
        targets: gives the teacher's logits (B, C) for a batch; None learns gold labels alone.
        gold_weight: of the loss against gold labels.
        gold_on_augmented: count it on augmented rows too, whose labels were only copied.
        kind, temperature, original_soft_ce: as in `prediction_loss`; a regression is always
            taught by squared error, at temperature 1.
    """

    regression: bool
    targets: Targets | None
    gold_weight: float = 0.0
    gold_on_augmented: bool = False
    kind: str = "ce"
    temperature: float = 1.0
    original_soft_ce: bool = False

    def __call__(
        self, student: nn.Module, batch: Batch, counts: LossCounts, runtime: Runtime
    ) -> Taught:
        with runtime.autocast():
            output = student(batch.input_ids, batch.token_type_ids, batch.attention_mask)
        terms: dict[str, Tensor] = {}
        logits = output.logits.float()
        total = logits.new_zeros(())
        if self.targets is not None:
            terms["prediction"] = prediction_loss(
                logits,
                self.targets(batch),
                kind="mse" if self.regression else self.kind,
                temperature=1.0 if self.regression else self.temperature,
                examples=counts.examples,
                original_soft_ce=self.original_soft_ce,
            )
            total = total + terms["prediction"]
        if self.gold_weight:
            terms["prediction_gold"] = self._gold_loss(batch, logits) / counts.examples
            total = total + self.gold_weight * terms["prediction_gold"]
        return total, terms

    def _gold_loss(self, batch: Batch, logits: Tensor) -> Tensor:
        """Return the sum of the losses against gold labels; rows that do not count add nothing."""
        if self.regression:
            losses = (logits[:, 0] - batch.labels).square()
        else:
            losses = F.cross_entropy(logits, batch.labels.long(), reduction="none")
        if batch.flags is not None and not self.gold_on_augmented:
            losses = losses * (batch.flags == 0)
        return losses.sum()


def lesson_loss(
    lesson: Lesson,
    student: nn.Module,
    dataset: PackedDataset,
    batch_size: int,
    runtime: Runtime,
    *,
    pad_to: int | None = None,
    start: int = 0,
) -> dict[str, float]:
    """Return the mean loss of a lesson over a data set, as `eval_loss`, with its terms.

    Args:
        start: the first example to look at.
    """
    counts = LossCounts.from_lengths(dataset.lengths(np.arange(start, len(dataset))))
    was_training = student.training
    student.eval()
    names: list[str] = []
    total = torch.zeros(0, dtype=torch.float64)
    batches = evaluation_batches(
        dataset, batch_size, rank=runtime.rank, world_size=runtime.world_size, start=start
    )
    # subtle: a rank without rows still has to name the terms, which are the same for any batch.
    is_idle = not batches
    with torch.no_grad():
        for chosen in batches or [np.zeros(1, np.int64)]:
            batch = collate(
                dataset, chosen, pad_token_id=student.config.pad_token_id, pad_to=pad_to
            )
            loss, terms = lesson(student, batch.to(runtime.device), counts, runtime)
            names = ["eval_loss", *(f"eval_{name}" for name in terms)]
            values = torch.stack([loss, *terms.values()]).double().cpu()
            total = values if len(total) == 0 else total + values
    student.train(was_training)
    total = runtime.sum_over_ranks(total * (not is_idle))
    return dict(zip(names, total.tolist(), strict=True))
