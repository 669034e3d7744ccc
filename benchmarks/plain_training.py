"""The plain way to distil a BERT, for comparison with the engine in training.py.

fp32; every batch padded to the maximum; attention scores, hidden states and the pooled vector
materialised in all layers of both models; the teacher run again in every epoch; the optimizer a
loop over tensors. It computes the losses of the original release.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.configuration import BertConfig
from transformer.training.batches import Batch

MASKED = -10000.0


class PlainOutput(NamedTuple):
    """Everything a model computed."""

    logits: Tensor
    scores: list[Tensor]  # (B, H, T, T) of each layer
    hidden: list[Tensor]  # (B, T, D), the embeddings first


class PlainLayer(nn.Module):
    """One Transformer layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in "qkv")
        self.output = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def _split(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, H, T, K)
        return x.view(*x.shape[:2], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = (self._split(p(x)) for p in (self.query, self.key, self.value))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1]) + mask
        context = torch.matmul(self.dropout(torch.softmax(scores, dim=-1)), value)
        context = context.permute(0, 2, 1, 3).contiguous().view(x.shape)
        x = self.norms[0](self.dropout(self.output(context)) + x)
        inner = self.up(x)
        inner = inner * 0.5 * (1.0 + torch.erf(inner / math.sqrt(2.0)))
        return self.norms[1](self.dropout(self.down(inner)) + x), scores


class PlainBert(nn.Module):
    """A BERT classifier that always computes and returns everything."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.words = nn.Embedding(config.vocab_size, width)
        self.places = nn.Embedding(config.max_position_embeddings, width)
        self.segments = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(PlainLayer(config) for _ in range(config.num_hidden_layers))
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, config.num_labels)
        self.fit_dense = nn.Linear(width, config.fit_size) if config.fit_size else nn.Identity()

    def forward(self, batch: Batch) -> PlainOutput:
        places = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        x = self.words(batch.input_ids) + self.places(places) + self.segments(batch.token_type_ids)
        x = self.norm(x)
        mask = (1.0 - batch.attention_mask[:, None, None, :].float()) * MASKED
        hidden, scores = [x], []
        for layer in self.layers:
            x, layer_scores = layer(x, mask)
            hidden.append(x)
            scores.append(layer_scores)
        logits = self.classifier(torch.tanh(self.pooler(x[:, 0])))
        return PlainOutput(logits, scores, [self.fit_dense(h) for h in hidden])


class PlainAdam:
    """BertAdam as a loop over tensors, each clipped by itself."""

    def __init__(self, parameters: Iterator[nn.Parameter], rate: float) -> None:
        self.parameters, self.rate = list(parameters), rate
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        for parameter, (first, second) in zip(self.parameters, self.moments, strict=True):
            if parameter.grad is None:
                continue
            nn.utils.clip_grad_norm_(parameter, 1.0)
            first.mul_(0.9).add_(parameter.grad, alpha=0.1)
            second.mul_(0.999).addcmul_(parameter.grad, parameter.grad, value=0.001)
            update = first / (second.sqrt() + 1e-6) + 0.01 * parameter
            parameter.add_(update, alpha=-self.rate)
            parameter.grad = None


def layer_loss(student: PlainOutput, teacher: PlainOutput) -> Tensor:
    """Return the loss of layer distillation with the original's means, padding included."""
    ratio = len(teacher.scores) // len(student.scores)
    total = torch.zeros((), device=student.logits.device)
    for number, scores in enumerate(student.scores, start=1):
        target = teacher.scores[number * ratio - 1]
        zero = torch.zeros_like(scores)
        scores = torch.where(scores <= -1e2, zero, scores)
        target = torch.where(target <= -1e2, zero, target)
        total = total + F.mse_loss(scores, target)
    for number, hidden in enumerate(student.hidden):
        total = total + F.mse_loss(hidden, teacher.hidden[number * ratio])
    return total


def soft_cross_entropy(student: PlainOutput, teacher: PlainOutput) -> Tensor:
    """Return the prediction loss as the original computes it."""
    target = F.softmax(teacher.logits, dim=-1)
    return (-target * F.log_softmax(student.logits, dim=-1)).mean()


Loss = Callable[[PlainOutput, PlainOutput], Tensor]


def plain_step(
    student: PlainBert, teacher: PlainBert, optimizer: PlainAdam, batch: Batch, loss: Loss
) -> float:
    """Take one step and read its loss, as the original does each step."""
    with torch.no_grad():
        target = teacher(batch)
    value = loss(student(batch), target)
    value.backward()
    optimizer.step()
    return value.item()
