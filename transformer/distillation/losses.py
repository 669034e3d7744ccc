"""The losses of TinyBERT (arXiv 1909.10351, section 3) and of MiniLMv2 (arXiv 2012.15828).

All take the same four arguments: what the student computed, what it is compared with, the batch,
and `LossCounts`, the denominators of the whole optimizer step. Sums over a micro-batch are divided
by those, so that the losses of micro-batches and of ranks add up exactly to the loss of the whole
step, however unequal its parts are. Only real tokens count, however far a batch was padded.

Letters in shapes are those of `modeling.py`. Every loss is an fp32 scalar.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer.attention import MASKED_SCORE
from transformer.training.batches import Batch, LossCounts

QueryKeyValue = tuple[Tensor, Tensor, Tensor]


class _SquaredError(torch.autograd.Function):
    """Sum (mask * (student - teacher))^2 in fp32, holding one tensor of full size and no more.

    Centred, the mean of each row's differences where the mask is true is taken off them first.

    Attention scores are the largest tensors of a training step. Written with plain operations this
    would keep the difference, its square and the masked product alive until the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor | None, centred: bool = False
    ) -> Tensor:
        dtype = torch.promote_types(student.dtype, torch.float32)
        difference = student.to(dtype) - teacher
        if mask is not None:
            difference.mul_(mask)
        if centred:
            counts = mask.sum(-1, keepdim=True).clamp(min=1)
            difference.sub_(difference.sum(-1, keepdim=True) / counts).mul_(mask)
        ctx.save_for_backward(difference)
        ctx.student_dtype = student.dtype
        # Row norms first: a sum over millions of squares in one go loses digits in fp32.
        return torch.linalg.vector_norm(difference, dim=-1).square().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        # Centring is a projection, and the centred difference is its own.
        (difference,) = ctx.saved_tensors
        return (difference * (2 * gradient)).to(ctx.student_dtype), None, None, None


def attention_loss(
    student: Tensor,
    teacher: Tensor,
    batch: Batch,
    counts: LossCounts,
    *,
    loss_on_padding: bool = False,
    centred: bool = False,
) -> Tensor:
    """Return the mean squared error of raw attention scores (equation 7).

    Args:
        student, teacher: (B, H, T, T), before softmax and before the mask. Pairs of a query and a
            key of which one is padding do not count.
        loss_on_padding: the authors' mean: all T * T pairs are in the denominator, padded queries
            count, padded keys count as no difference.
        centred: first take off each query's scores their mean over real keys, which the softmax
            does not see.
    """
    keys = batch.attention_mask[:, None, None, :]
    weights = keys if loss_on_padding else keys & batch.attention_mask[:, None, :, None]
    pairs = counts.examples * keys.shape[-1] ** 2 if loss_on_padding else counts.pairs
    total = _SquaredError.apply(student, teacher, weights, centred)
    return total / (pairs * student.shape[1])


def hidden_loss(
    student: Tensor,
    teacher: Tensor,
    batch: Batch,
    counts: LossCounts,
    *,
    loss_on_padding: bool = False,
    variance: float = 1.0,
) -> Tensor:
    """Return the mean squared error of hidden states or embeddings (equations 8 and 9).

    Args:
        student: (B, T, D), projected to the teacher's width; teacher: (B, T, D).
        loss_on_padding: the authors' mean: every position counts.
        variance: to divide by. With the teacher's own, the loss is the share of the teacher's
            variance that the student does not explain, alike for layers of any size.
    """
    tokens = counts.examples * student.shape[1] if loss_on_padding else counts.tokens
    weights = None if loss_on_padding else batch.attention_mask[:, :, None]
    total = _SquaredError.apply(student, teacher, weights)
    return total / (tokens * student.shape[-1] * variance)


def _log_relations(vectors: Tensor, heads: int, mask: Tensor) -> Tensor:
    """Return log softmax(A A^T / sqrt(d)) over real keys: (B, T, D) -> (B, heads, T, T)."""
    split = vectors.float().unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = (split / math.sqrt(split.shape[-1])) @ split.transpose(-1, -2)
    return torch.log_softmax(scores + MASKED_SCORE * (~mask)[:, None, None, :], dim=-1)


def relation_loss(
    student: QueryKeyValue,
    teacher: QueryKeyValue,
    batch: Batch,
    counts: LossCounts,
    *,
    relation_heads: int,
) -> Tensor:
    """Return the self-attention relation loss of MiniLMv2 (arXiv 2012.15828, section 3.1).

    KL(teacher || student) of the query-query, key-key and value-value relations, summed over the
    three, mean over relation heads and real tokens. Numbers of attention heads may differ.

    Args:
        student, teacher: query, key and value, (B, T, D) each; widths may differ.
        relation_heads: must divide both widths.
    """
    mask = batch.attention_mask
    total = torch.zeros((), device=mask.device)
    with torch.autocast(mask.device.type, enabled=False):
        for own, other in zip(student, teacher, strict=True):
            target = _log_relations(other, relation_heads, mask)
            relations = _log_relations(own, relation_heads, mask)
            divergence = F.kl_div(relations, target, reduction="none", log_target=True).sum(-1)
            total = total + (divergence * mask[:, None, :]).sum()
    return total / (counts.tokens * relation_heads)


def prediction_loss(
    student: Tensor,
    teacher: Tensor,
    batch: Batch,
    counts: LossCounts,
    *,
    kind: str = "ce",
    temperature: float = 1.0,
    original_soft_ce: bool = False,
    counted: Tensor | None = None,
) -> Tensor:
    """Return the loss of the student's logits against the teacher's (equation 10).

    Args:
        student, teacher: logits, (B, C); C is 1 for a regression, which wants kind "mse".
        kind: "ce", soft cross-entropy; "kl", the same less the teacher's entropy (same gradient);
            "mse", mean squared error of the logits.
        temperature: divides both logits.
        original_soft_ce: divide "ce" and "kl" by C as well, as the authors' code does.
        counted: (B,) bool, the rows that count; None: all.
    """
    student, teacher = student.float() / temperature, teacher.float() / temperature
    classes = student.shape[-1]
    if kind == "bce":
        target = torch.sigmoid(teacher)
        losses = F.binary_cross_entropy_with_logits(student, target, reduction="none").sum(-1)
    elif kind == "mse":
        losses = (student - teacher).square().sum(-1)
    else:
        target = torch.log_softmax(teacher, dim=-1)
        shift = target if kind == "kl" else 0
        losses = (target.exp() * (shift - torch.log_softmax(student, dim=-1))).sum(-1)
    if counted is not None:
        losses = losses * counted
    per_class = kind in ("mse", "bce") or original_soft_ce
    return losses.sum() / (counts.examples * classes if per_class else counts.examples)


def gold_loss(
    student: Tensor,
    teacher: None,
    batch: Batch,
    counts: LossCounts,
    *,
    kind: str = "ce",
    on_augmented: bool = False,
    counted: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the loss against gold labels.

    Args:
        student: logits, (B, C).
        teacher: not read; the labels are the batch's.
        kind: "ce", cross-entropy; "bce", binary cross-entropy, mean over labels that are 0 or 1
            each; "mse", the squared error of a regression.
        on_augmented: augmented rows count too, whose labels were only copied. Where they do not,
            they are still in the denominator.
        counted: (B,) bool, the rows that count; None: all.
        class_weights: (C,), factors of a row's cross-entropy by its label; None: 1. The denominator
            stays the number of rows, so that the losses of micro-batches and ranks add up.
    """
    logits = student.float()
    if kind == "mse":
        losses = (logits[:, 0] - batch.labels).square()
    elif kind == "bce":
        losses = F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none").mean(-1)
    else:
        labels = batch.labels.long()
        losses = F.cross_entropy(logits, labels, weight=class_weights, reduction="none")
    if batch.flags is not None and not on_augmented:
        losses = losses * (batch.flags == 0)
    if counted is not None:
        losses = losses * counted
    return losses.sum() / counts.examples


def over_tagged_tokens(
    loss: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor | None,
    batch: Batch,
    counts: LossCounts,
) -> Tensor:
    """Return a loss of texts as one of tokens: mean over those that have a tag to learn.

    Args:
        student, teacher: logits, (B, T, C).
        batch: its labels are tags (B, T), below 0 where a token has none.
    """
    # subtle: to pick out the tokens that have a tag, the program would have to wait until a GPU has
    # counted them. So the others are computed too, and count 0.
    tags = batch.labels.flatten()
    flags = None if batch.flags is None else batch.flags[:, None].expand_as(batch.labels).flatten()
    return loss(
        student.flatten(0, 1),
        None if teacher is None else teacher.flatten(0, 1),
        batch._replace(labels=tags.clamp(min=0), flags=flags),
        counts._replace(examples=counts.tagged),
        counted=tags >= 0,
    )


def over_span_ends(
    loss: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor | None,
    batch: Batch,
    counts: LossCounts,
) -> Tensor:
    """Return a loss of texts as one of spans, whose classes are the real tokens of a sequence.

    It is the mean of that of where a span begins and that of where it ends.

    Args:
        student, teacher: logits, (B, T, 2).
        batch: its labels are the two tokens, (B, 2).
    """
    padding = ~batch.attention_mask
    total = torch.zeros((), device=student.device)
    for side in (0, 1):
        own, other = (
            None if logits is None else logits[..., side].float().masked_fill(padding, MASKED_SCORE)
            for logits in (student, teacher)
        )
        labels = None if batch.labels is None else batch.labels[:, side]
        total = total + loss(own, other, batch._replace(labels=labels), counts) / 2
    return total
