"""Measure what a classifier costs to run: parameters, bytes, operations, speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transformer.configuration import BertConfig
from transformer.file_utils import UserError
from transformer.weight_files import find_weights, group_of

FIXED_LENGTH = 128  # tokens; the paper's figures are at this length
BATCH_SIZES = (1, 32)


@dataclass(frozen=True)
class Effort:
    """Say how long each speed is measured."""

    sentences: int = 64  # in one pass over the sample, at batch size 1 as at 32
    passes: int = 5  # at least; the speed is the median over them
    seconds: float = 5.0  # more passes are made until this much time is spent
    warm_up_batches: int = 3


@dataclass(frozen=True)
class Speed:
    """Hold how fast batches of one kind are answered; the time of tokenising is not in it."""

    batch_size: int
    sentences_per_second: float  # median over passes
    p50_ms: float  # time of one batch
    p99_ms: float


@dataclass(frozen=True)
class LengthFigures:
    """Hold the costs at the given lengths."""

    mean_length: float  # real tokens of a sentence, [CLS] and [SEP] among them
    flops: float  # of one sentence, mean
    speeds: tuple[Speed, ...]  # one for each of BATCH_SIZES


@dataclass(frozen=True)
class Figures:
    """Hold what one model costs; `to_dict` is what goes into a JSON file."""

    name: str
    parameters: int  # without the projection, which only training uses
    parameters_without_embeddings: int
    size_on_disk: int  # bytes of the weight files
    device: str
    weight_type: str  # what the weights are held in, such as "bfloat16"
    threads: int
    at_fixed_length: LengthFigures
    at_real_lengths: LengthFigures

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count the parameters that inference uses: all, and all but the three embedding tables."""
    counts = [
        (name, parameter.numel())
        for name, parameter in model.named_parameters()
        if group_of(name) != "fit"
    ]
    tables = sum(count for name, count in counts if name.endswith("_embeddings.weight"))
    total = sum(count for _, count in counts)
    return total, total - tables


def sentence_flops(config: BertConfig, length: int) -> float:
    """Count the floating-point operations of one classified sentence of `length` tokens.

    With T tokens, width D, inner width I, L layers and C labels, a multiplication and an addition
    counted as two operations as in the paper's table 1:

        L * (8 T D^2 + 4 T^2 D + 4 T D I) + 2 D^2 + 2 D C

    that is query, key, value and output; scores and context; feed-forward; pooler; classifier.
    Biases, softmax, activations and normalisation, below 2 %, are left out. It is the usual count:
    the last layer, of which a classifier reads one token, is in it like the others.

    >>> round(sentence_flops(BertConfig(), 128) / 1e9, 1)
    22.3
    """
    width, inner = config.hidden_size, config.intermediate_size
    layer = 8 * length * width**2 + 4 * length**2 * width + 4 * length * width * inner
    return config.num_hidden_layers * layer + 2 * width**2 + 2 * width * config.num_labels


def size_on_disk(model: nn.Module, directory: Path | None = None) -> int:
    """Return the bytes of the weight files in `directory`; of the weights themselves if None."""
    found = None if directory is None else find_weights(Path(directory))
    if found is not None:
        return sum(file.stat().st_size for file in found.files)
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def measure(
    model: nn.Module,
    lengths: Sequence[int],
    *,
    name: str,
    directory: Path | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    effort: Effort | None = None,
) -> Figures:
    """Measure what `model` costs on the device that it is on.

    Args:
        model: classifier with a `config`; it is measured in eval mode and left as it was.
        lengths: tokens of each sentence of the task, special tokens among them; a sample is drawn.
        name: what tables call it, such as "student".
        directory: its checkpoint, for the size on disk.
        autocast: gives the context that inference runs in, e.g. `runtime.autocast`.
    """
    effort = effort or Effort()
    total, without_embeddings = count_parameters(model)
    device = next(model.parameters()).device
    real = _sample(lengths, effort.sentences)
    fixed = np.full(effort.sentences, min(FIXED_LENGTH, model.config.max_position_embeddings))

    def figures(sample: np.ndarray, population: Sequence[int] | np.ndarray) -> LengthFigures:
        flops = [sentence_flops(model.config, int(length)) for length in population]
        speeds = tuple(_speed(model, sample, size, autocast, effort) for size in BATCH_SIZES)
        return LengthFigures(float(np.mean(population)), float(np.mean(flops)), speeds)

    was_training = model.training
    model.eval()
    try:
        at_fixed, at_real = figures(fixed, fixed), figures(real, lengths)
    finally:
        model.train(was_training)
    return Figures(
        name=name,
        parameters=total,
        parameters_without_embeddings=without_embeddings,
        size_on_disk=size_on_disk(model, directory),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        weight_type=str(next(model.parameters()).dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        at_fixed_length=at_fixed,
        at_real_lengths=at_real,
    )


def _sample(lengths: Sequence[int], count: int) -> np.ndarray:
    """Return `count` lengths, evenly spaced through the sorted ones: the task's in small."""
    ordered = np.sort(np.asarray(lengths))
    if len(ordered) == 0:
        raise UserError("there is no sentence to measure the speed on")
    return ordered[((np.arange(count) + 0.5) * len(ordered) / count).astype(int)]


def _speed(
    model: nn.Module,
    sample: np.ndarray,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    effort: Effort,
) -> Speed:
    """Time passes over `sample` (sorted lengths), in batches padded to their longest sentence."""
    batches = [
        _random_batch(model, sample[start : start + batch_size])
        for start in range(0, len(sample), batch_size)
    ]
    passes: list[list[float]] = []
    with torch.inference_mode(), autocast():
        for batch in batches[: effort.warm_up_batches]:
            _timed(model, batch)
        started = time.perf_counter()
        while len(passes) < effort.passes or time.perf_counter() - started < effort.seconds:
            passes.append([_timed(model, batch) for batch in batches])
    p50, p99 = np.percentile(np.concatenate(passes), [50, 99]) * 1e3
    seconds = float(np.median([sum(times) for times in passes]))
    return Speed(batch_size, len(sample) / seconds, float(p50), float(p99))


def _random_batch(model: nn.Module, lengths: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Make input_ids, token_type_ids and attention_mask, (B, T) each, of the given lengths.

    Which tokens they are does not change the arithmetic.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    shape = (len(lengths), int(lengths.max()))
    ids = torch.randint(model.config.vocab_size, shape, generator=generator)
    mask = torch.arange(shape[1]) < torch.as_tensor(lengths)[:, None]
    return ids.to(device), torch.zeros_like(ids).to(device), mask.to(device)


def _timed(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> float:
    """Return the seconds of one forward pass."""
    on_gpu = batch[0].is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    model(*batch)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started
