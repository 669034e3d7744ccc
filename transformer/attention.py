"""The attention of BERT, with and without its raw scores, and dropout.

Letters in shapes are those of `modeling.py`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Added to the scores of padded keys. Finite, so that a row of padding alone gives no NaN; within
# the range of fp16; and far enough down that exp() of it is exactly zero in fp32.
MASKED_SCORE = -3e4

# Keys up to which bf16 scores on a CPU are kept as a whole; more take the caches' room.
FEW_TOKENS = 256


def dropout(x: Tensor, probability: float) -> Tensor:
    """Set entries to zero with this probability (to within 2^-17) and scale the others up.

    On a CPU torch draws a number for each entry, which takes several times as long as the softmax
    before it. Here one draw of 64 bits serves four entries.
    """
    if probability == 0:
        return x
    if not x.is_cpu or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    threshold = round(probability * 2**16)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    uniform = draws.view(torch.int16)[: x.numel()].view(x.shape)  # each of 2^16 values alike
    kept = (uniform >= threshold - 2**15).to(x.dtype)
    return x * kept.mul_(2**16 / (2**16 - threshold))


class Dropout(nn.Module):
    """Drop out while training."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.probability) if self.training else x


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_prob: float
) -> Tensor:
    """Return the context (B, H, T, K) by the fastest way there is.

    Args:
        query, key, value: (B, H, T, K).
        mask: (B, 1, 1, T), added to the scores; None: no padding.
        dropout_prob: for the attention probabilities; 0 outside training.
    """
    if query.is_cpu and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # subtle: on a CPU the fused kernel knows no dropout, and its backward pass is slower.
        return attention_with_scores(query, key, value, mask, dropout_prob)[0]
    mask = None if mask is None else mask.to(query.dtype)
    if query.is_cpu and query.dtype == torch.bfloat16 and key.shape[2] <= FEW_TOKENS:
        # subtle: for so few, two batched products are faster than the fused kernel.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return torch.softmax(scores if mask is None else scores.add_(mask), dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_prob)


def attention_with_scores(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_prob: float
) -> tuple[Tensor, Tensor]:
    """Return the context and the raw scores (B, H, T, T), which are fp32 at any precision.

    Half-precision queries and keys are multiplied as fp32, where products of their values are
    exact; half-precision scores would carry rounding errors as large as what the loss compares.
    """
    with torch.autocast(query.device.type, enabled=False):
        scale = 1 / math.sqrt(query.shape[-1])
        scores = (query.float() * scale) @ key.float().transpose(-1, -2)
        probs = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        return dropout(probs, dropout_prob).to(value.dtype) @ value, scores
