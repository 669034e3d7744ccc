"""The losses of TinyBERT (arXiv 1909.10351, section 3) and of MiniLMv2 (arXiv 2012.15828).

Means are over real tokens only, so that a loss does not depend on how far a batch was padded. Their
denominators can be given (`LossCounts`): then the losses of micro-batches and of ranks add up
exactly to the loss of the whole batch, however unequal their parts are.

Letters in shapes are those of `modeling.py`. Every loss is an fp32 scalar.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer.attention import MASKED_SCORE

Denominator = int | float | Tensor

QueryKeyValue = tuple[Tensor, Tensor, Tensor]


class _SquaredError(torch.autograd.Function):
    """Sum (mask * (student - teacher))^2 in fp32, holding one tensor of full size and no more.

    Attention scores are the largest tensors of a training step. Written with plain operations this
    would keep the difference, its square and the masked product alive until the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        dtype = torch.promote_types(student.dtype, torch.float32)
        difference = student.to(dtype) - teacher
        if mask is not None:
            difference.mul_(mask)
        ctx.save_for_backward(difference)
        ctx.student_dtype = student.dtype
        # Row norms first: a sum over millions of squares in one go loses digits in fp32.
        return torch.linalg.vector_norm(difference, dim=-1).square().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return (difference * (2 * gradient)).to(ctx.student_dtype), None, None


def attention_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor,
    pairs: Denominator | None = None,
    *,
    loss_on_padding: bool = False,
) -> Tensor:
    """Return the mean squared error of raw attention scores (equation 7).

    Args:
        student_scores, teacher_scores: (B, H, T, T), before softmax and before the mask.
        mask: (B, T), true at real tokens. Pairs of which one is padding do not count.
        pairs: (query, key) pairs to divide by, besides the heads; None: those of this batch.
        loss_on_padding: the authors' mean: all T * T pairs are in the denominator, padded queries
            count, padded keys count as no difference.
    """
    keys = mask[:, None, None, :]
    weights = keys if loss_on_padding else keys & mask[:, None, :, None]
    if pairs is None:
        pairs = keys.numel() * keys.shape[-1] if loss_on_padding else weights.sum()
    total = _SquaredError.apply(student_scores, teacher_scores, weights)
    return total / (pairs * student_scores.shape[1])


def hidden_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None, tokens: Denominator | None = None
) -> Tensor:
    """Return the mean squared error of hidden states or embeddings (equations 8 and 9).

    Args:
        student: (B, T, D), projected to the teacher's width; teacher: (B, T, D).
        mask: (B, T), true at real tokens; None: every position counts.
        tokens: tokens to divide by, besides the width; None: those of this batch.
    """
    if tokens is None:
        tokens = student.shape[0] * student.shape[1] if mask is None else mask.sum()
    weights = None if mask is None else mask[:, :, None]
    return _SquaredError.apply(student, teacher, weights) / (tokens * student.shape[-1])


def _log_relations(vectors: Tensor, heads: int, mask: Tensor) -> Tensor:
    """Return log softmax(A A^T / sqrt(d)) over real keys: (B, T, D) -> (B, heads, T, T)."""
    split = vectors.float().unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = (split / math.sqrt(split.shape[-1])) @ split.transpose(-1, -2)
    return torch.log_softmax(scores + MASKED_SCORE * (~mask)[:, None, None, :], dim=-1)


def relation_loss(
    student_qkv: QueryKeyValue,
    teacher_qkv: QueryKeyValue,
    heads: int,
    mask: Tensor,
    tokens: Denominator | None = None,
) -> Tensor:
    """Return the self-attention relation loss of MiniLMv2 (arXiv 2012.15828, section 3.1).

    KL(teacher || student) of the query-query, key-key and value-value relations, summed over the
    three, mean over relation heads and real tokens. Numbers of attention heads may differ.

    Args:
        student_qkv, teacher_qkv: query, key and value, (B, T, D) each; widths may differ.
        heads: relation heads; must divide both widths.
        mask: (B, T), true at real tokens.
        tokens: tokens to divide by, besides the heads; None: those of this batch.
    """
    tokens = mask.sum() if tokens is None else tokens
    total = torch.zeros((), device=mask.device)
    with torch.autocast(mask.device.type, enabled=False):
        for student, teacher in zip(student_qkv, teacher_qkv, strict=True):
            target = _log_relations(teacher, heads, mask)
            relations = _log_relations(student, heads, mask)
            divergence = F.kl_div(relations, target, reduction="none", log_target=True).sum(-1)
            total = total + (divergence * mask[:, None, :]).sum()
    return total / (tokens * heads)


def prediction_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    kind: str = "ce",
    temperature: float = 1.0,
    examples: Denominator | None = None,
    original_soft_ce: bool = False,
) -> Tensor:
    """Return the loss of the student's logits against the teacher's (equation 10).

    Args:
        student_logits, teacher_logits: (B, C); C is 1 for a regression, which wants kind "mse".
        kind: "ce", soft cross-entropy; "kl", the same less the teacher's entropy (same gradient);
            "mse", mean squared error of the logits.
        temperature: divides both logits.
        examples: examples to divide by; None: those of this batch.
        original_soft_ce: divide "ce" and "kl" by C as well, as the authors' code does.
    """
    student, teacher = student_logits.float() / temperature, teacher_logits.float() / temperature
    classes = student.shape[-1]
    if kind == "mse":
        losses = (student - teacher).square().sum(-1)
    else:
        target = torch.log_softmax(teacher, dim=-1)
        shift = target if kind == "kl" else 0
        losses = (target.exp() * (shift - torch.log_softmax(student, dim=-1))).sum(-1)
    per_class = kind == "mse" or original_soft_ce
    count = losses.numel() if examples is None else examples
    return losses.sum() / (count * classes if per_class else count)
