"""What a model costs: parameters, bytes, FLOPs, speed; a student beside its teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from transformer.checkpoint.weight_files import find_weights, group_of
from transformer.configuration import BertConfig
from transformer.files import UserError

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
    NEZHA's queries meet R relative positions beside the T keys: 4 T (T + R) D for its 4 T^2 D.
    Biases, softmax, activations and normalisation, below 2 %, are left out. It is the usual count:
    the last layer, of which a classifier reads one token, is in it like the others.

    >>> round(sentence_flops(BertConfig(), 128) / 1e9, 1)
    22.3
    """
    width, inner = config.hidden_size, config.intermediate_size
    keys = length + config.relative_positions
    layer = 8 * length * width**2 + 4 * length * keys * width + 4 * length * width * inner
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
    model(*batch, only_logits=True)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started


class _Row(NamedTuple):
    """One figure: its key in the ratios, what the table calls it, and how a gain is worded."""

    key: str
    label: str
    value: float
    text: str
    gain: str


def comparison(student: Figures, teacher: Figures | None = None) -> dict[str, Any]:
    """Return all figures, and the ratios to those of the teacher, as one object for a JSON file.

    A ratio says how many times better the student is: smaller, cheaper or faster.
    """
    result: dict[str, Any] = {"student": student.to_dict()}
    if teacher is not None:
        pairs = zip(_rows(student), _rows(teacher), strict=True)
        ratios = {mine.key: _ratio(mine, theirs) for mine, theirs in pairs}
        result |= {"teacher": teacher.to_dict(), "ratios": ratios}
    return result


def comparison_table(student: Figures, teacher: Figures | None = None) -> str:
    """Return the figures as an aligned text table, with the ratios if there is a teacher."""
    if teacher is None:
        lines = [["", student.name], *([row.label, row.text] for row in _rows(student))]
    else:
        lines = [["", student.name, teacher.name, "student is"]]
        for mine, theirs in zip(_rows(student), _rows(teacher), strict=True):
            gain = _worded(_ratio(mine, theirs), mine.gain)
            lines.append([mine.label, mine.text, theirs.text, gain])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join([label.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip()
        for label, *cells in lines
    ]
    table.append(
        f"on {student.device}, {student.threads} thread(s), {student.weight_type} weights; "
        "tokenising is not timed"
    )
    return "\n".join(table)


LOSSES = {"smaller": "larger", "fewer": "more", "faster": "slower"}


def _worded(ratio: float, gain: str) -> str:
    """Return e.g. "2.5x faster" of 2.5, and "2.5x slower" of 0.4."""
    return f"{ratio:.1f}x {gain}" if ratio >= 1 else f"{1 / ratio:.1f}x {LOSSES[gain]}"


def _ratio(student: _Row, teacher: _Row) -> float:
    more_is_better = student.key.endswith("sentences_per_second")
    better, worse = (student, teacher) if more_is_better else (teacher, student)
    return better.value / worse.value


def _rows(figures: Figures) -> list[_Row]:
    """Return the rows of the table for one model; the same rows for every model."""
    total, core = figures.parameters, figures.parameters_without_embeddings
    disk = figures.size_on_disk
    return [
        _Row("parameters", "parameters", total, _short(total), "smaller"),
        _Row(
            "parameters_without_embeddings", "  without embeddings", core, _short(core), "smaller"
        ),
        _Row("size_on_disk", "size on disk", disk, _short(disk) + "B", "smaller"),
        *_length_rows(f"at_{FIXED_LENGTH}", "all of", figures.at_fixed_length),
        *_length_rows("at_real_lengths", "the task's lengths, mean", figures.at_real_lengths),
    ]


def _length_rows(key: str, kind: str, part: LengthFigures) -> list[_Row]:
    heading = f"FLOPs per sentence, {kind} {part.mean_length:.0f} tokens"
    rows = [_Row(f"{key}/flops", heading, part.flops, _short(part.flops), "fewer")]
    for speed in part.speeds:
        at, label = f"{key}/batch_{speed.batch_size}", f"  batch {speed.batch_size}:"
        rate, p50, p99 = speed.sentences_per_second, speed.p50_ms, speed.p99_ms
        rows += [
            _Row(
                f"{at}/sentences_per_second", f"{label} sentences/s", rate, f"{rate:.1f}", "faster"
            ),
            _Row(f"{at}/p50_ms", f"{label} p50 latency", p50, f"{p50:.1f} ms", "faster"),
            _Row(f"{at}/p99_ms", f"{label} p99 latency", p99, f"{p99:.1f} ms", "faster"),
        ]
    return rows


def _short(value: float) -> str:
    """Return e.g. "14.35 M" or "22.35 G"."""
    scale, letter = (1e9, "G") if value >= 1e9 else (1e6, "M")
    return f"{value / scale:.2f} {letter}"
