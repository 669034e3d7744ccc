"""What a student learns from the layers of its teacher (arXiv 1909.10351, section 3).

Which layer learns from which, the terms of the objective with their weights, the checks that
teacher and student fit, and the flags for all that. The losses themselves are in `losses.py`.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transformer.configuration import BertConfig
from transformer.distillation.losses import attention_loss, hidden_loss, relation_loss
from transformer.files import UserError
from transformer.modeling import BertOutput
from transformer.training.batches import LossCounts

LayerPairs = tuple[tuple[int, int], ...]


def layer_map(student_layers: int, teacher_layers: int, mapping: str) -> LayerPairs:
    """Return the pairs (m, g(m)): student layer m learns from teacher layer g(m) (section 3.1).

    Args:
        mapping: "uniform", g(m) = m N / M; "top", g(m) = m + N - M; "bottom", g(m) = m; or M
            teacher layers with commas between, where 0 leaves a student layer without a teacher.

    Example: (4, 12, "uniform") -> ((1, 3), (2, 6), (3, 9), (4, 12))
    Example: (4, 12, "0,0,0,11") -> ((4, 11),)

    Raises:
        UserError: this mapping does not fit these depths; says what would.
    """
    numbers = range(1, student_layers + 1)
    if mapping not in ("uniform", "top", "bottom"):
        return _listed_layers(student_layers, teacher_layers, mapping)
    if student_layers > teacher_layers:
        raise UserError(
            f"--layer_mapping {mapping}: the student has {student_layers} layers, the teacher only "
            f"{teacher_layers}; use a shallower student or a list of teacher layers"
        )
    if mapping == "top":
        return tuple((m, m + teacher_layers - student_layers) for m in numbers)
    if mapping == "bottom":
        return tuple((m, m) for m in numbers)
    if teacher_layers % student_layers:
        depths = [str(d) for d in range(1, teacher_layers + 1) if teacher_layers % d == 0]
        spread = ",".join(str(round(m * teacher_layers / student_layers)) for m in numbers)
        raise UserError(
            f"--layer_mapping uniform: {student_layers} student layers do not divide "
            f"{teacher_layers} teacher layers; students of {', '.join(depths)} layers do, "
            f"or use top, bottom or a list such as {spread}"
        )
    return tuple((m, m * teacher_layers // student_layers) for m in numbers)


def _listed_layers(student_layers: int, teacher_layers: int, mapping: str) -> LayerPairs:
    try:
        chosen = [int(number) for number in mapping.split(",")]
    except ValueError:
        raise UserError(
            f"--layer_mapping {mapping!r}: give uniform, top, bottom or {student_layers} teacher "
            "layers with commas between, such as 3,6,9,12"
        ) from None
    if len(chosen) != student_layers:
        raise UserError(
            f"--layer_mapping {mapping}: {len(chosen)} layers are listed, the student has "
            f"{student_layers}; name one teacher layer for each (0: none)"
        )
    if min(chosen) < 0 or max(chosen) > teacher_layers or not any(chosen):
        raise UserError(
            f"--layer_mapping {mapping}: teacher layers are 1 to {teacher_layers} "
            "(0 leaves a student layer out, but not all of them)"
        )
    return tuple((m, number) for m, number in enumerate(chosen, start=1) if number)


@dataclass(frozen=True)
class IntermediateObjective:
    """Say what a student learns from the layers of its teacher (equation 11), and compute it.

    Terms of weight 0 are not computed, nor is what only they would read.

    Raises:
        UserError: a weight that is negative, or nothing that is left to learn.
    """

    pairs: LayerPairs
    attention_weight: float = 1.0
    hidden_weight: float = 1.0
    embedding_weight: float = 1.0
    attention_loss: str = "mse"  # or "relation"
    relation_heads: int = 48
    loss_on_padding: bool = False

    def __post_init__(self) -> None:
        weights = self.attention_weight, self.hidden_weight, self.embedding_weight
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise UserError(
                "--attention_weight, --hidden_weight, --embedding_weight: "
                f"{', '.join(str(weight) for weight in weights)}; "
                "give numbers of 0 or more, of which at least one is above 0"
            )

    def student_layers(self) -> dict[str, Any]:
        """Return the keyword arguments of the student's forward pass: what the terms read."""
        fit_layers = [m for m, _ in self.pairs] if self.hidden_weight else []
        if self.embedding_weight:
            fit_layers.insert(0, 0)
        return {**self._layers(side=0), "fit_layers": tuple(fit_layers)}

    def teacher_layers(self) -> dict[str, Any]:
        """Return the keyword arguments of the teacher's forward pass: what the terms read."""
        return self._layers(side=1)

    def _layers(self, side: int) -> dict[str, Any]:
        mapped = tuple(pair[side] for pair in self.pairs)
        attended = mapped if self.attention_weight else ()
        relation = self.attention_loss == "relation"
        return {
            "score_layers": () if relation else attended,
            "qkv_layers": attended if relation else (),
            "num_layers": max(mapped) if self.attention_weight or self.hidden_weight else 0,
        }

    def __call__(
        self,
        student: BertOutput,
        teacher: BertOutput,
        mask: Tensor,
        counts: LossCounts | None = None,
    ) -> dict[str, Tensor]:
        """Return the terms before weighting, as "attention/1", "hidden/1", ..., "embedding".

        Args:
            student, teacher: outputs of forward passes with `student_layers()`, `teacher_layers()`.
            mask: (B, T) bool, true at real tokens.
            counts: denominators of the whole optimizer step; None: those of this batch.
        """
        terms: dict[str, Tensor] = {}
        tokens = None if counts is None else counts.tokens
        if self.loss_on_padding and counts is not None:
            tokens = counts.examples * mask.shape[1]
        positions = None if self.loss_on_padding else mask
        if self.embedding_weight:
            terms["embedding"] = hidden_loss(
                student.fitted[0], teacher.hidden_states[0], positions, tokens
            )
        for m, g in self.pairs:
            if self.attention_weight:
                terms[f"attention/{m}"] = self._attention_term(
                    student, teacher, (m, g), mask, counts
                )
            if self.hidden_weight:
                terms[f"hidden/{m}"] = hidden_loss(
                    student.fitted[m], teacher.hidden_states[g], positions, tokens
                )
        return terms

    def _attention_term(
        self,
        student: BertOutput,
        teacher: BertOutput,
        pair: tuple[int, int],
        mask: Tensor,
        counts: LossCounts | None,
    ) -> Tensor:
        m, g = pair
        if self.attention_loss == "relation":  # only over real tokens, with every option
            tokens = None if counts is None else counts.tokens
            return relation_loss(student.qkv[m], teacher.qkv[g], self.relation_heads, mask, tokens)
        pairs = None if counts is None else counts.pairs
        if self.loss_on_padding and counts is not None:
            pairs = counts.examples * mask.shape[1] ** 2
        return attention_loss(
            student.attention_scores[m],
            teacher.attention_scores[g],
            mask,
            pairs,
            loss_on_padding=self.loss_on_padding,
        )

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of the terms."""
        weights = {
            "attention": self.attention_weight,
            "hidden": self.hidden_weight,
            "embedding": self.embedding_weight,
        }
        weighted = [weights[name.partition("/")[0]] * term for name, term in terms.items()]
        return torch.stack(weighted).sum()

    def freeze_unread(self, student: nn.Module) -> list[str]:
        """Freeze the student's parameters that no term depends on; return their names.

        Without hidden terms, for instance, nothing reads the values and the feed-forward half of
        the last layer; DistributedDataParallel waits for a gradient from every parameter it gets.
        """
        names, parameters = zip(
            *((n, p) for n, p in student.named_parameters() if p.requires_grad), strict=True
        )
        ids = torch.zeros(1, 2, dtype=torch.long, device=parameters[0].device)
        output = student(ids, **self.student_layers())
        read = [*output.fitted.values(), *output.attention_scores.values()]
        read += [x for qkv in output.qkv.values() for x in qkv]
        gradients = torch.autograd.grad(
            sum(x.float().sum() for x in read), parameters, allow_unused=True
        )
        unread = [n for n, gradient in zip(names, gradients, strict=True) if gradient is None]
        for name in unread:
            student.get_parameter(name).requires_grad_(False)
        return unread


def check_teacher_and_student(
    student: BertConfig,
    teacher: BertConfig,
    objective: IntermediateObjective,
    max_seq_length: int | None = None,
) -> None:
    """Check that this student can learn from this teacher what the objective asks.

    Raises:
        UserError: it cannot; names both values and the flags that help.
    """
    if objective.attention_weight and objective.attention_loss == "mse":
        if student.num_attention_heads != teacher.num_attention_heads:
            raise UserError(
                f"the student has {student.num_attention_heads} attention heads, the teacher "
                f"{teacher.num_attention_heads}: their scores cannot be compared; use "
                "--attention_weight 0 or --attention_loss relation, or change the student"
            )
    elif objective.attention_weight:
        common = math.gcd(student.hidden_size, teacher.hidden_size)
        if objective.relation_heads < 1 or common % objective.relation_heads:
            allowed = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            raise UserError(
                f"--relation_heads {objective.relation_heads} does not divide both widths, "
                f"{student.hidden_size} (student) and {teacher.hidden_size} (teacher); "
                f"choose from {allowed}"
            )
    width = student.fit_size or student.hidden_size
    if (objective.hidden_weight or objective.embedding_weight) and width != teacher.hidden_size:
        raise UserError(
            f"the student projects its hidden states to width {width}, the teacher's width is "
            f"{teacher.hidden_size}; use the teacher that the student was made for, a student with "
            f"fit_size {teacher.hidden_size}, or --hidden_weight 0 --embedding_weight 0"
        )
    positions = min(student.max_position_embeddings, teacher.max_position_embeddings)
    if max_seq_length is not None and max_seq_length > positions:
        raise UserError(
            f"--max_seq_length {max_seq_length}: the student has {student.max_position_embeddings} "
            f"positions, the teacher {teacher.max_position_embeddings}; use at most {positions}"
        )


def add_distillation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose what the student learns from the teacher's layers."""
    group = parser.add_argument_group("layer distillation")
    group.add_argument(
        "--layer_mapping",
        default="uniform",
        help="which teacher layer each student layer learns from: uniform, top, bottom, or a list "
        "such as 3,6,9,12 (0: that student layer learns from none)",
    )
    for term in ("attention", "hidden", "embedding"):
        group.add_argument(
            f"--{term}_weight",
            type=float,
            default=1.0,
            help=f"weight of the {term} terms; 0 leaves them out, and their work",
        )
    group.add_argument(
        "--attention_loss",
        choices=("mse", "relation"),
        default="mse",
        help="mse compares raw attention scores head by head; relation compares query, key and "
        "value relations (MiniLMv2), for teachers with another number of heads",
    )
    group.add_argument(
        "--relation_heads",
        type=int,
        default=48,
        help="heads of the relation loss; must divide the widths of student and teacher",
    )
    group.add_argument(
        "--loss_on_padding",
        action="store_true",
        help="pad every batch to the maximum length and count padding in the means of the mse "
        "terms, as the authors' code does",
    )


def objective_from_args(
    args: argparse.Namespace, student: BertConfig, teacher: BertConfig
) -> IntermediateObjective:
    """Build the objective that the flags ask for, checked against both models.

    Raises:
        UserError: as `layer_map`, `IntermediateObjective` and `check_teacher_and_student`.
    """
    objective = IntermediateObjective(
        pairs=layer_map(student.num_hidden_layers, teacher.num_hidden_layers, args.layer_mapping),
        attention_weight=args.attention_weight,
        hidden_weight=args.hidden_weight,
        embedding_weight=args.embedding_weight,
        attention_loss=args.attention_loss,
        relation_heads=args.relation_heads,
        loss_on_padding=args.loss_on_padding,
    )
    max_seq_length = getattr(args, "max_seq_length", None)
    check_teacher_and_student(student, teacher, objective, max_seq_length)
    return objective
