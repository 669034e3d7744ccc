"""What a student learns from the layers of its teacher (arXiv 1909.10351, section 3).

Which layer learns from which, and the terms of the loss as one table: `LAYER_TERMS`. Their flags,
their weights, what the forward passes are asked for, what is frozen and what stands in
metrics.jsonl follow from it, so that a new term is a function in `losses.py` and a row here.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from transformer.configuration import BertConfig
from transformer.distillation.losses import attention_loss, hidden_loss, relation_loss
from transformer.files import UserError
from transformer.modeling import BertOutput

# ---------------------------------------------------------------- which layer learns from which

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


# ------------------------------------------------------------------------------ what is compared


def check_heads(student: BertConfig, teacher: BertConfig, args: argparse.Namespace) -> None:
    """Raise UserError unless raw scores can be compared head by head."""
    if student.num_attention_heads != teacher.num_attention_heads:
        raise UserError(
            f"the student has {student.num_attention_heads} attention heads, the teacher "
            f"{teacher.num_attention_heads}: their scores cannot be compared; use "
            "--attention_weight 0 or --attention_loss relation, or change the student"
        )


def check_relation_heads(
    student: BertConfig, teacher: BertConfig, args: argparse.Namespace
) -> None:
    """Raise UserError unless both widths can be cut into the relation heads."""
    common = math.gcd(student.hidden_size, teacher.hidden_size)
    if args.relation_heads < 1 or common % args.relation_heads:
        allowed = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        raise UserError(
            f"--relation_heads {args.relation_heads} does not divide both widths, "
            f"{student.hidden_size} (student) and {teacher.hidden_size} (teacher); "
            f"choose from {allowed}"
        )


def check_widths(student: BertConfig, teacher: BertConfig, args: argparse.Namespace) -> None:
    """Raise UserError unless the student's states are projected to the teacher's width."""
    width = student.fit_size or student.hidden_size
    if width != teacher.hidden_size:
        raise UserError(
            f"the student projects its hidden states to width {width}, the teacher's width is "
            f"{teacher.hidden_size}; use the teacher that the student was made for, a student with "
            f"fit_size {teacher.hidden_size}, or --hidden_weight 0 --embedding_weight 0"
        )


@dataclass(frozen=True)
class Term:
    """One term of a loss.

    Args:
        name: of the term in metrics.jsonl and of its flag, --NAME_weight.
        reads: what it compares, as a field of `BertOutput`. Of a student's "hidden_states" it gets
            the projected ones.
        loss: takes the student's, the teacher's, the batch and the counts of the step.
        kind: the value of --NAME_loss that chooses this row among those of one name.
        says: what the help of --NAME_loss says about the row.
        options: the flags that `loss` takes as keywords.
        check: raises UserError for two models that cannot be compared like this.
        by_variance: `loss` takes the teacher's variance at its layer as the keyword `variance`.
        at_embeddings: compare the embeddings, once, and not each mapped layer.
        weight: in the total.
    """

    name: str
    reads: str
    loss: Callable[..., Any]
    kind: str = ""
    says: str = ""
    options: tuple[str, ...] = ()
    check: Callable[[BertConfig, BertConfig, argparse.Namespace], None] | None = None
    by_variance: bool = False
    at_embeddings: bool = False
    weight: float = 1.0


# The first row of a name is the default.
LAYER_TERMS = (
    Term(
        "attention",
        reads="attention_scores",
        loss=attention_loss,
        kind="mse",
        says="compares raw attention scores head by head",
        options=("loss_on_padding",),
        check=check_heads,
    ),
    Term(
        "attention",
        reads="attention_scores",
        loss=partial(attention_loss, centred=True),
        kind="centred",
        says="does the same without what is constant over the keys of a query, which the softmax "
        "does not see",
        options=("loss_on_padding",),
        check=check_heads,
    ),
    Term(
        "attention",
        reads="qkv",
        loss=relation_loss,
        kind="relation",
        says="compares query, key and value relations (MiniLMv2), for teachers with another number "
        "of heads",
        options=("relation_heads",),
        check=check_relation_heads,
    ),
    Term(
        "hidden",
        reads="hidden_states",
        loss=hidden_loss,
        kind="mse",
        says="is the mean squared error, in which layers of small states hardly count",
        options=("loss_on_padding",),
        check=check_widths,
    ),
    Term(
        "hidden",
        reads="hidden_states",
        loss=hidden_loss,
        kind="scaled",
        says="divides it by the teacher's variance in each layer, as a sample of the data shows it",
        options=("loss_on_padding",),
        check=check_widths,
        by_variance=True,
    ),
    Term(
        "embedding",
        reads="hidden_states",
        loss=hidden_loss,
        options=("loss_on_padding",),
        check=check_widths,
        at_embeddings=True,
    ),
)


class Comparison(NamedTuple):
    """A term at one place: layer 0 is the embeddings, None the output of the whole model."""

    term: Term
    student_layer: int | None = None
    teacher_layer: int | None = None

    @property
    def name(self) -> str:
        """Return the name in metrics.jsonl: "attention/1", "hidden/1", ..., "embedding"."""
        return f"{self.term.name}/{self.student_layer}" if self.student_layer else self.term.name

    def of_student(self, output: BertOutput) -> Any:
        """Return what the term reads of the student."""
        return _read(output, self.term.reads, self.student_layer)

    def of_teacher(self, output: BertOutput) -> Any:
        """Return what the term reads of the teacher."""
        return _read(output, self.term.reads, self.teacher_layer)


def _read(output: BertOutput, reads: str, layer: int | None) -> Any:
    values = getattr(output, reads)
    return values if layer is None else values[layer]


def compare_layers(terms: tuple[Term, ...], pairs: LayerPairs) -> tuple[Comparison, ...]:
    """List what is compared: the embeddings first, then layer by layer.

    Terms of weight 0 are left out, and with them the work that only they would need.
    """
    return tuple(
        Comparison(term, m, g)
        for m, g in ((0, 0), *pairs)
        for term in terms
        if term.at_embeddings == (m == 0) and term.weight
    )


def plan_comparisons(
    args: argparse.Namespace, student: BertConfig, teacher: BertConfig
) -> tuple[Comparison, ...]:
    """Return what the flags ask to compare, checked against both models.

    Raises:
        UserError: weights, a mapping or models that do not fit; says what would.
    """
    pairs = layer_map(student.num_hidden_layers, teacher.num_hidden_layers, args.layer_mapping)
    terms = _chosen_terms(args)
    for term in terms:
        if term.weight and term.check is not None:
            term.check(student, teacher, args)
    positions = min(student.max_position_embeddings, teacher.max_position_embeddings)
    if args.max_seq_length > positions:
        raise UserError(
            f"--max_seq_length {args.max_seq_length} (or the data's own): the student has "
            f"{student.max_position_embeddings} positions, the teacher "
            f"{teacher.max_position_embeddings}; use at most {positions}"
        )
    return compare_layers(terms, pairs)


def _chosen_terms(args: argparse.Namespace) -> tuple[Term, ...]:
    """Return the rows that the flags choose, with their weights, their losses' options filled in.

    Raises:
        UserError: a weight that is negative, or nothing that is left to learn.
    """
    terms = []
    for row in LAYER_TERMS:
        if row.kind == getattr(args, f"{row.name}_loss", ""):
            loss = partial(row.loss, **{name: getattr(args, name) for name in row.options})
            terms.append(replace(row, loss=loss, weight=getattr(args, f"{row.name}_weight")))
    weights = [term.weight for term in terms]
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise UserError(
            f"{', '.join(f'--{term.name}_weight' for term in terms)}: "
            f"{', '.join(str(weight) for weight in weights)}; "
            "give numbers of 0 or more, of which at least one is above 0"
        )
    return tuple(terms)


# --------------------------------------------------------------------------------------- flags


# Flags of `add_distillation_arguments` that decide the result of a run: all.
DISTILLATION_FLAGS = (
    *("layer_mapping", "relation_heads", "loss_on_padding"),
    *dict.fromkeys(f"{term.name}_{what}" for term in LAYER_TERMS for what in ("weight", "loss")),
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
    rows_of: dict[str, list[Term]] = {}
    for term in LAYER_TERMS:
        rows_of.setdefault(term.name, []).append(term)
    for name in rows_of:
        group.add_argument(
            f"--{name}_weight",
            type=float,
            default=1.0,
            help=f"weight of the {name} terms; 0 leaves them out, and their work",
        )
    for name, rows in rows_of.items():
        if len(rows) > 1:
            group.add_argument(
                f"--{name}_loss",
                choices=[row.kind for row in rows],
                default=rows[0].kind,
                help="; ".join(f"{row.kind} {row.says}" for row in rows),
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
        "terms, as the authors' code does; the embedding of padding is frozen then",
    )
