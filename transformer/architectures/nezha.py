"""NEZHA: BERT with functional relative positions (Wei et al., arXiv 1909.00204).

It has no position embeddings. Instead the self-attention of every layer adds a fixed vector a[i, j]
to the keys and to the values, which depends on the distance j - i alone (section 2.1). With K the
largest distance that is told apart and T the table of 2K + 1 vectors of a head's width d:

    a[i, j]     = T[clip(j - i, -K, K) + K]
    T[p, 2n]    = sin(p / 10000^(2n / d)),   T[p, 2n + 1] = cos(p / 10000^(2n / d))
    score[i, j] = (q_i . k_j + q_i . a[i, j]) / sqrt(d)
    context_i   = sum_j P[i, j] (v_j + a[i, j]),   P = softmax of the scores

Letters in shapes are those of `modeling.py`, but T is a length there and K a head's width; W here
stands for the 2K + 1 distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from transformer.attention import dropout
from transformer.configuration import BertConfig
from transformer.files import UserError
from transformer.modeling import (
    BertEmbeddings,
    BertEncoder,
    BertLayer,
    BertModel,
    BertSelfAttention,
)


@dataclass
class NezhaConfig(BertConfig):
    """Hold the sizes of a NEZHA.

    `embedding_size`, which Hugging Face's class writes too, has no meaning and stays in `extra`.
    """

    model_type: ClassVar[str] = "nezha"

    max_relative_position: int = 64  # K; Huawei's files leave it out

    def __post_init__(self) -> None:
        super().__post_init__()
        reach = self.max_relative_position
        if not isinstance(reach, int) or reach < 1:
            raise UserError(
                f"config: max_relative_position {reach!r} must be a whole number of at least 1"
            )
        if self.hidden_size // self.num_attention_heads % 2:
            raise UserError(
                f"config: hidden_size {self.hidden_size} over num_attention_heads "
                f"{self.num_attention_heads} is odd; the relative positions of NEZHA need an even "
                "width of the heads"
            )

    @property
    def relative_positions(self) -> int:
        """Return how many relative positions each query is compared with, beside the keys."""
        return 2 * self.max_relative_position + 1


def relative_table(reach: int, width: int) -> Tensor:
    """Return the vectors (2 reach + 1, width) of the distances from -reach to reach."""
    # subtle: the sine is of the shifted distance 0..2K, so that distance 0 is row K and not row 0.
    places = torch.arange(2 * reach + 1).unsqueeze(1)
    angles = places / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


class NezhaEmbeddings(BertEmbeddings):
    """Word and segment embeddings; positions are left to the attention."""

    def __init__(self, config: NezhaConfig):
        super().__init__(config)
        del self.position_embeddings

    def positions(self, input_ids: Tensor) -> Tensor:
        return torch.zeros((), device=input_ids.device, dtype=self.word_embeddings.weight.dtype)


class NezhaSelfAttention(BertSelfAttention):
    """Attend with relative positions in keys and values.

    Each query meets the W vectors of the table, not a vector for each key: the work and the memory
    are those of (B, H, T, W) and not of the (T, T, d) that the formulas seem to ask for.
    """

    def __init__(self, config: NezhaConfig):
        super().__init__(config)
        self.reach = config.max_relative_position
        table = relative_table(self.reach, config.hidden_size // config.num_attention_heads)
        self.register_buffer("relative", table, persistent=False)

    def attend(
        self, heads: list[Tensor], mask: Tensor | None, want_scores: bool, tokens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return context and scores as `attention_with_scores` does; the scores with positions."""
        query, key, value = heads
        with torch.autocast(query.device.type, enabled=False):
            table = self.relative.float()
            query = query.float() * query.shape[-1] ** -0.5
            distances = self._distances(query, key, tokens)
            scores = query @ key.float().transpose(-1, -2)
            scores = scores + (query @ table.T).gather(-1, distances.expand_as(scores))
            probs = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            probs = dropout(probs, self.dropout_prob if self.training else 0.0)
            by_distance = probs.new_zeros(*probs.shape[:-1], len(table))  # (B, H, T, W)
            by_distance = by_distance.scatter_add(-1, distances.expand_as(probs), probs)
            context = probs.to(value.dtype) @ value + (by_distance @ table).to(value.dtype)
        return context, scores if want_scores else None

    def _distances(self, query: Tensor, key: Tensor, tokens: Tensor | None) -> Tensor:
        """Return the row of the table for each query and key: (B or 1, 1, T or Q, T)."""
        places = torch.arange(key.shape[2], device=key.device)
        origin = places[None, :, None] if tokens is None else tokens[:, :, None]
        return ((places - origin).clamp(-self.reach, self.reach) + self.reach).unsqueeze(1)


class NezhaEncoder(BertEncoder):
    """BERT's layers with NEZHA's attention."""

    def __init__(self, config: NezhaConfig):
        nn.Module.__init__(self)
        self.layer = nn.ModuleList(
            BertLayer(config, NezhaSelfAttention) for _ in range(config.num_hidden_layers)
        )


class NezhaModel(BertModel):
    """The encoder of NEZHA."""

    embeddings_class = NezhaEmbeddings
    encoder_class = NezhaEncoder


# Huawei's files have BERT's own names; these are Hugging Face's.
NAMES = (("nezha.", "bert."),)
