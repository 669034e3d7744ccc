"""What TinyBERT's authors compute, written in NumPy from the published formulas, in float64.

BERT (arXiv 1810.04805), the losses of TinyBERT as its authors' code has them, BertAdam. Gradients
come of a tape: a `Value` knows which values it was computed from and how its gradient reaches them.
Nothing here is the toolkit's: parameters are arrays under their published names, texts are ids.

Letters in shapes are those of `transformer/modeling.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.special import erf

# --- arithmetic that remembers -----------------------------------------------------------------


@dataclass(eq=False)
class Value:
    """An array, and the values it was computed from with the way back to the gradient of each."""

    array: np.ndarray
    sources: tuple[tuple[Value, Callable[[np.ndarray], np.ndarray]], ...] = ()
    gradient: np.ndarray | None = field(default=None, repr=False)

    def __add__(self, other: Value) -> Value:
        return Value(
            self.array + other.array,
            (
                (self, lambda g: summed_to(g, self.array.shape)),
                (other, lambda g: summed_to(g, other.array.shape)),
            ),
        )

    def __matmul__(self, other: Value) -> Value:
        a, b = self.array, other.array
        return Value(
            a @ b,
            (
                (self, lambda g: summed_to(g @ b.swapaxes(-1, -2), a.shape)),
                (other, lambda g: summed_to(a.swapaxes(-1, -2) @ g, b.shape)),
            ),
        )

    def scaled(self, factor: float | np.ndarray) -> Value:
        return Value(self.array * factor, ((self, lambda g: g * factor),))

    def arranged(self, shape: Sequence[int], axes: Sequence[int] | None = None) -> Value:
        """Reshape, then change the axes' places."""
        axes = range(len(shape)) if axes is None else axes
        return Value(
            self.array.reshape(shape).transpose(axes),
            ((self, lambda g: g.transpose(np.argsort(axes)).reshape(self.array.shape)),),
        )

    def first(self) -> Value:
        """Return the first token of each sequence: (B, T, D) -> (B, D)."""

        def back(g: np.ndarray) -> np.ndarray:
            whole = np.zeros_like(self.array)
            whole[:, 0] = g
            return whole

        return Value(self.array[:, 0], ((self, back),))

    def backward(self) -> None:
        """Fill in the gradient of everything that this number was computed from."""
        order: list[Value] = []
        seen: set[int] = set()

        def visit(value: Value) -> None:
            if id(value) not in seen:
                seen.add(id(value))
                for source, _ in value.sources:
                    visit(source)
                order.append(value)

        visit(self)
        self.gradient = np.ones_like(self.array)
        for value in reversed(order):
            for source, back in value.sources:
                part = back(value.gradient)
                source.gradient = part if source.gradient is None else source.gradient + part


def summed_to(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo broadcasting: sum over the axes that `shape` lacks or has one entry in."""
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    ones = tuple(axis for axis, size in enumerate(shape) if size == 1 < gradient.shape[axis])
    return gradient.sum(ones, keepdims=True)


def gelu(x: Value) -> Value:
    a = x.array
    cumulative = 0.5 * (1 + erf(a / np.sqrt(2)))
    density = np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)
    return Value(a * cumulative, ((x, lambda g: g * (cumulative + a * density)),))


def tanh(x: Value) -> Value:
    y = np.tanh(x.array)
    return Value(y, ((x, lambda g: g * (1 - y**2)),))


def relu(x: Value) -> Value:
    return Value(np.maximum(x.array, 0), ((x, lambda g: g * (x.array > 0)),))


def softmax(x: Value) -> Value:
    e = np.exp(x.array - x.array.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    return Value(y, ((x, lambda g: y * (g - (g * y).sum(-1, keepdims=True))),))


def layer_norm(x: Value, weight: Value, bias: Value) -> Value:
    centred = x.array - x.array.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    y = centred / deviation

    def back(g: np.ndarray) -> np.ndarray:
        g = g * weight.array
        return (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True)) / deviation

    return Value(
        y * weight.array + bias.array,
        (
            (x, back),
            (weight, lambda g: summed_to(g * y, weight.array.shape)),
            (bias, lambda g: summed_to(g, bias.array.shape)),
        ),
    )


def look_up(table: Value, ids: np.ndarray, padding: int | None = None) -> Value:
    """Return rows of a table; that of `padding` gets no gradient."""

    def back(g: np.ndarray) -> np.ndarray:
        whole = np.zeros_like(table.array)
        np.add.at(whole, ids, g)
        if padding is not None:
            whole[padding] = 0
        return whole

    return Value(table.array[ids], ((table, back),))


def mean_squared_error(x: Value, target: np.ndarray) -> Value:
    difference = x.array - target
    return Value((difference**2).mean(), ((x, lambda g: g * 2 * difference / difference.size),))


def soft_cross_entropy(logits: Value, target_logits: np.ndarray) -> Value:
    """Return the mean over examples *and* classes of -softmax(target) log softmax(logits)."""
    target = softmax(Value(target_logits)).array
    probabilities = softmax(logits).array
    gradient = (probabilities - target) / target.size  # each row of the target sums to 1
    loss = -(target * np.log(probabilities)).mean()
    return Value(loss, ((logits, lambda g: g * gradient),))


# --- BERT --------------------------------------------------------------------------------------

Weights = dict[str, Value]


class Texts(NamedTuple):
    """A batch: ids and segments (B, T) and which tokens are real; gold values (B,) of a task."""

    ids: np.ndarray
    segments: np.ndarray
    is_real: np.ndarray
    gold: np.ndarray | None = None


class States(NamedTuple):
    """What both models show: masked scores (B, H, T, T) by layer, states (B, T, D) from 0 on."""

    scores: list[Value]
    hidden: list[Value]


def values_of(arrays: dict[str, np.ndarray]) -> Weights:
    return {name: Value(array.astype(np.float64)) for name, array in arrays.items()}


def linear(weights: Weights, name: str, x: Value) -> Value:
    matrix = weights[f"{name}.weight"]
    transposed = matrix.arranged(matrix.array.shape, (1, 0))
    return x @ transposed + weights[f"{name}.bias"]


def normalised(weights: Weights, name: str, x: Value) -> Value:
    return layer_norm(x, weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"])


def encode(weights: Weights, texts: Texts, heads: int) -> States:
    """Run BERT without dropout. Padding is id 0, whose embedding is frozen."""
    batch, length = texts.ids.shape
    name = "bert.embeddings"
    hidden = (
        look_up(weights[f"{name}.word_embeddings.weight"], texts.ids, padding=0)
        + look_up(weights[f"{name}.position_embeddings.weight"], np.arange(length))
        + look_up(weights[f"{name}.token_type_embeddings.weight"], texts.segments)
    )
    hidden = normalised(weights, name, hidden)
    states = States([], [hidden])
    mask = Value((1.0 - texts.is_real)[:, None, None, :] * -10000.0)
    layer = 0
    while f"bert.encoder.layer.{layer}.output.dense.bias" in weights:
        name = f"bert.encoder.layer.{layer}"
        width = hidden.array.shape[2] // heads
        query, key, value = (
            linear(weights, f"{name}.attention.self.{part}", hidden).arranged(
                (batch, length, heads, width), (0, 2, 1, 3)
            )
            for part in ("query", "key", "value")
        )
        turned = key.arranged(key.array.shape, (0, 1, 3, 2))
        scores = (query @ turned).scaled(1 / np.sqrt(width)) + mask
        context = (softmax(scores) @ value).arranged((batch, heads, length, width), (0, 2, 1, 3))
        context = context.arranged((batch, length, heads * width))
        attended = linear(weights, f"{name}.attention.output.dense", context) + hidden
        attended = normalised(weights, f"{name}.attention.output", attended)
        inner = gelu(linear(weights, f"{name}.intermediate.dense", attended))
        hidden = linear(weights, f"{name}.output.dense", inner) + attended
        hidden = normalised(weights, f"{name}.output", hidden)
        states.scores.append(scores)
        states.hidden.append(hidden)
        layer += 1
    return states


def classify(weights: Weights, texts: Texts, heads: int) -> Value:
    """Return logits (B, C): the authors' classifier reads ReLU(pooled)."""
    hidden = encode(weights, texts, heads).hidden[-1]
    pooled = tanh(linear(weights, "bert.pooler.dense", hidden.first()))
    return linear(weights, "classifier", relu(pooled))


# --- losses ------------------------------------------------------------------------------------


def without_masked(scores: Value) -> Value:
    """Set to 0 what is -100 or less, as padded keys are."""
    return scores.scaled((scores.array > -1e2).astype(np.float64))


def layer_loss(student: Weights, teacher: Weights, texts: Texts, heads: int) -> Value:
    """Return the loss of general distillation and of the intermediate stage."""
    ours, theirs = encode(student, texts, heads), encode(teacher, texts, heads)
    step = len(theirs.scores) // len(ours.scores)
    losses = [
        mean_squared_error(
            without_masked(scores), without_masked(theirs.scores[(m + 1) * step - 1]).array
        )
        for m, scores in enumerate(ours.scores)
    ]
    losses += [
        mean_squared_error(linear(student, "fit_dense", hidden), theirs.hidden[m * step].array)
        for m, hidden in enumerate(ours.hidden)
    ]
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def prediction_loss(student: Weights, teacher: Weights, texts: Texts, heads: int) -> Value:
    """Return the loss of prediction distillation, temperature 1."""
    return soft_cross_entropy(
        classify(student, texts, heads), classify(teacher, texts, heads).array
    )


def gold_regression_loss(student: Weights, teacher: Weights, texts: Texts, heads: int) -> Value:
    """Return the loss of STS-B's prediction stage: the teacher is not read."""
    return mean_squared_error(classify(student, texts, heads), texts.gold[:, None])


# --- the optimizer -----------------------------------------------------------------------------


def constant(progress: float) -> float:
    """Return the share of the learning rate: what the authors' intermediate stage uses."""
    return 1.0


def warmup_linear(progress: float) -> float:
    """Return the share of the learning rate: all other stages, which warm up for a tenth."""
    return progress / 0.1 if progress < 0.1 else max((progress - 1) / (0.1 - 1), 0)


def train(
    student: Weights,
    teacher: Weights,
    batches: Iterable[Texts],
    *,
    heads: int,
    steps: int,
    learning_rate: float,
    loss: Callable[[Weights, Weights, Texts, int], Value],
    schedule: Callable[[float], float],
) -> dict[str, np.ndarray]:
    """Take a step of BertAdam for each batch; return the weights at the end.

    Each tensor's gradient is clipped to norm 1 by itself, the moments have no bias correction, and
    0.01 of the weight is added to the update of all but biases and LayerNorm.
    """
    weights = {name: value.array for name, value in student.items()}
    first = {name: np.zeros_like(array) for name, array in weights.items()}
    second = {name: np.zeros_like(array) for name, array in weights.items()}
    for step, texts in enumerate(batches):
        current = {name: Value(array) for name, array in weights.items()}
        loss(current, teacher, texts, heads).backward()
        rate = learning_rate * schedule(step / steps)
        for name, value in current.items():
            if value.gradient is None:  # no term reads it: it does not even decay
                continue
            gradient = value.gradient * min(1, 1 / (np.sqrt((value.gradient**2).sum()) + 1e-6))
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            update = first[name] / (np.sqrt(second[name]) + 1e-6)
            if not name.endswith("bias") and "LayerNorm" not in name:
                update = update + 0.01 * weights[name]
            weights[name] = weights[name] - rate * update
    return weights
