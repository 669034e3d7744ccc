"""What models cost, measured in turns: parameters, bytes, FLOPs, speed, beside their dev scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from transformer.checkpoint.weight_files import find_weights
from transformer.costs import count_parameters, sentence_flops
from transformer.files import UserError, atomic_write
from transformer.runtime.progress import table_lines
from transformer.tasks.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIXED_LENGTH = 128  # tokens; the paper's figures are at this length

BATCH_SIZES = (1, 32)

# A machine is called noisy when, at one length, the slowest batches of a model take more than so
# many times the median one, or when its fast turns (90th percentile) are more than so many times
# as fast as its slow ones (10th).
NOISY_P99 = 2.0

NOISY_TURNS = 1.3


@dataclass(frozen=True)
class Effort:
    """How long each speed is measured."""

    sentences: int = 64  # in one pass over the task's sample, at batch size 1 as at 32
    turns: int = 5  # of each model, at least
    seconds: float = 3.0  # for each model: until then more turns are taken ...
    precision: float = 0.03  # ... as long as the medians are not known to this share
    turn_seconds: float = 0.2  # a turn is one pass, of a fast model as many as take this long
    warm_up_batches: int = 3


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Args:
        name: what tables call it, such as "student".
        model: gives `logits` of input_ids, token_type_ids and attention_mask; has a `config`.
        parameters: as `count_parameters` returns them.
        size_on_disk: bytes.
        weight_type: what the weights are held in, such as "bfloat16".
        autocast: gives the context that inference runs in, e.g. `runtime.autocast`.
        score: on the dev set, in `metric`; None if it was not measured.
    """

    name: str
    model: nn.Module
    parameters: tuple[int, int]
    size_on_disk: int
    device: torch.device
    weight_type: str
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    metric: str = ""
    score: float | None = None


class Turn(NamedTuple):
    """How fast a model was in one of its turns."""

    sentences_per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Speed:
    """How fast batches of one kind are answered; the time of tokenising is not in it."""

    batch_size: int
    sentences_per_second: float  # median over turns
    p50_ms: float  # time of one batch
    p99_ms: float
    turns: tuple[Turn, ...]  # those of the same place, of two models, were taken side by side


@dataclass(frozen=True)
class LengthFigures:
    """What a model costs at some lengths of sentences."""

    mean_length: float  # real tokens of a sentence, [CLS] and [SEP] among them
    flops: float  # of one sentence, mean
    speeds: tuple[Speed, ...]  # one for each of BATCH_SIZES


@dataclass(frozen=True)
class Figures:
    """What one model costs; `to_dict` is what goes into a JSON file."""

    name: str
    metric: str
    score: float | None  # on the dev set
    parameters: int  # without the projection, which only training uses
    parameters_without_embeddings: int
    size_on_disk: int  # bytes of the weight files
    device: str
    weight_type: str
    threads: int
    at_fixed_length: LengthFigures
    at_real_lengths: LengthFigures

    @property
    def key(self) -> str:
        """Return its name in JSON files."""
        return self.name.lower().replace(" ", "_")

    def to_dict(self) -> dict[str, Any]:
        """Return all but the single turns."""
        values = asdict(self)
        for place in ("at_fixed_length", "at_real_lengths"):
            for speed in values[place]["speeds"]:
                del speed["turns"]
        return values


def size_on_disk(model: nn.Module, directory: Path | None = None) -> int:
    """Return the bytes of the weight files in `directory`; of the weights themselves if None."""
    found = None if directory is None else find_weights(Path(directory))
    if found is not None:
        return sum(file.stat().st_size for file in found.files)
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def subject_of(
    name: str,
    model: nn.Module,
    directory: Path | None = None,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    metric: str = "",
    score: float | None = None,
) -> Subject:
    """Return a model of PyTorch as what is measured; see `Subject`.

    Args:
        directory: its checkpoint, for the size on disk.
    """
    weight = next(model.parameters())
    return Subject(
        name,
        model,
        parameters=count_parameters(model),
        size_on_disk=size_on_disk(model, directory),
        device=weight.device,
        weight_type=str(weight.dtype).removeprefix("torch."),
        autocast=autocast,
        metric=metric,
        score=score,
    )


def measure(
    subjects: Sequence[Subject], lengths: Sequence[int], *, effort: Effort | None = None
) -> list[Figures]:
    """Measure what models cost on the devices that they are on, in turns.

    Models are measured in eval mode and left as they were.

    Args:
        lengths: tokens of each sentence of the task, special tokens among them; a sample is drawn.
    """
    effort = effort or Effort()
    real = _sample(lengths, effort.sentences)
    positions = min(subject.model.config.max_position_embeddings for subject in subjects)
    fixed = np.full(max(BATCH_SIZES), min(FIXED_LENGTH, positions))
    with _in_eval_mode([subject.model for subject in subjects]):
        at_fixed = _measure_lengths(subjects, fixed, fixed, effort)
        at_real = _measure_lengths(subjects, real, lengths, effort)
    return [
        Figures(
            name=subject.name,
            metric=subject.metric,
            score=subject.score,
            parameters=subject.parameters[0],
            parameters_without_embeddings=subject.parameters[1],
            size_on_disk=subject.size_on_disk,
            device=_device_name(subject.device),
            weight_type=subject.weight_type,
            threads=torch.get_num_threads(),
            at_fixed_length=of_fixed,
            at_real_lengths=of_real,
        )
        for subject, of_fixed, of_real in zip(subjects, at_fixed, at_real, strict=True)
    ]


@contextmanager
def _in_eval_mode(models: Sequence[nn.Module]) -> Iterator[None]:
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _measure_lengths(
    subjects: Sequence[Subject],
    sample: np.ndarray,
    population: Sequence[int] | np.ndarray,
    effort: Effort,
) -> list[LengthFigures]:
    """Return the figures of each subject at the lengths of `sample`, drawn from `population`."""
    speeds = zip(*(_speeds(subjects, sample, size, effort) for size in BATCH_SIZES), strict=True)
    figures = []
    for subject, own in zip(subjects, speeds, strict=True):
        flops = [sentence_flops(subject.model.config, int(length)) for length in population]
        figures.append(LengthFigures(float(np.mean(population)), float(np.mean(flops)), own))
    return figures


def _sample(lengths: Sequence[int], count: int) -> np.ndarray:
    """Return `count` lengths, evenly spaced through the sorted ones: the task's in small."""
    ordered = np.sort(np.asarray(lengths))
    if len(ordered) == 0:
        raise UserError("there is no sentence to measure the speed on")
    return ordered[((np.arange(count) + 0.5) * len(ordered) / count).astype(int)]


def _speeds(
    subjects: Sequence[Subject], sample: np.ndarray, batch_size: int, effort: Effort
) -> list[Speed]:
    """Time all subjects on `sample` (sorted lengths), in batches padded to their longest sentence.

    They take turns: whatever else runs on the machine then slows one as much as the next.
    """
    batches = [
        [
            _random_batch(subject, sample[start : start + batch_size])
            for start in range(0, len(sample), batch_size)
        ]
        for subject in subjects
    ]
    for subject, own in zip(subjects, batches, strict=True):
        _take_turn(subject, own[: effort.warm_up_batches], seconds=0.0)
    turns: list[list[Turn]] = [[] for _ in subjects]
    times: list[list[float]] = [[] for _ in subjects]
    started, seconds = time.perf_counter(), effort.seconds * len(subjects)
    while len(turns[0]) < effort.turns or (
        _uncertainty(turns) > effort.precision and time.perf_counter() - started < seconds
    ):
        for number, subject in enumerate(subjects):
            taken = _take_turn(subject, batches[number], effort.turn_seconds)
            sentences = len(sample) * len(taken) / len(batches[number])
            turns[number].append(Turn(sentences / sum(taken), *_percentiles(taken)))
            times[number] += taken
    return [
        Speed(
            batch_size,
            float(np.median([turn.sentences_per_second for turn in own])),
            *_percentiles(all_times),
            tuple(own),
        )
        for own, all_times in zip(turns, times, strict=True)
    ]


def _uncertainty(turns: Sequence[Sequence[Turn]]) -> float:
    """Return how well the medians over turns are known, the worst of all models.

    It is the width of the 95% confidence interval between order statistics, as a share of the
    median: of the first model's sentences a second, and of the ratios of the others to it.
    """
    rates = np.array([[turn.sentences_per_second for turn in own] for own in turns])
    rates[1:] /= rates[0]
    ordered, count = np.sort(rates, axis=1), rates.shape[1]
    outside = int(max(count - 1.96 * count**0.5, 0) / 2)
    width = ordered[:, count - 1 - outside] - ordered[:, outside]
    return float((width / np.median(rates, axis=1)).max())


def _percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99 in milliseconds."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return float(p50), float(p99)


def _take_turn(
    subject: Subject, batches: Sequence[tuple[Tensor, Tensor, Tensor]], seconds: float
) -> list[float]:
    """Time every batch, all of them again until `seconds` are spent; return the times."""
    times: list[float] = []
    with torch.inference_mode(), subject.autocast():
        # One sentence first: the caches hold the weights of the model whose turn it was before.
        _timed(subject.model, tuple(part[:1] for part in batches[0]))
        while not times or sum(times) < seconds:
            times += [_timed(subject.model, batch) for batch in batches]
    return times


def _random_batch(subject: Subject, lengths: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Make input_ids, token_type_ids and attention_mask, (B, T) each, of the given lengths.

    Which tokens they are does not change the arithmetic.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (len(lengths), int(lengths.max()))
    ids = torch.randint(subject.model.config.vocab_size, shape, generator=generator)
    mask = torch.arange(shape[1]) < torch.as_tensor(lengths)[:, None]
    return tuple(part.to(subject.device) for part in (ids, torch.zeros_like(ids), mask))


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


# --- the comparison ----------------------------------------------------------------------------


class _Row(NamedTuple):
    """One figure: its key in the ratios, what the table calls it, and how a gain is worded.

    `turns` holds it turn by turn where it was measured in turns.
    """

    key: str
    label: str
    value: float
    text: str
    gain: str
    turns: tuple[float, ...] = ()


def comparison(figures: Sequence[Figures]) -> dict[str, Any]:
    """Return all figures, and their ratios to those of the first model, as one object for JSON.

    A ratio says how many times better a model is than the first: smaller, cheaper or faster. Of
    what was measured in turns it is the median over the ratios of turns side by side.
    """
    first, *others = figures
    result: dict[str, Any] = {model.key: model.to_dict() for model in figures}
    result["compared_with"] = first.key
    exports = {}
    for model in others:
        pairs = zip(_rows(model), _rows(first), strict=True)
        ratios = {mine.key: _ratio(mine, theirs) for mine, theirs in pairs}
        if model.key == "student":
            result["ratios"] = ratios
        else:
            exports[model.key] = ratios
    return {**result, "export_ratios": exports, "noise": noise(figures)}


def comparison_table(figures: Sequence[Figures]) -> str:
    """Return the figures as an aligned text table, compared with those of the first model."""
    first, *others = figures
    columns = [["", *(row.label for row in _rows(first))]]
    columns.append([first.name, *(row.text for row in _rows(first))])
    for model in others:
        pairs = zip(_rows(model), _rows(first), strict=True)
        gains = [(mine.text, _worded(_ratio(mine, theirs), mine.gain)) for mine, theirs in pairs]
        columns.append([model.name, *(f"{text} ({gain})" for text, gain in gains)])
    scores = _score_cells(figures)
    if any(scores):
        for column, cell in zip(columns, [f"dev {first.metric}", *scores], strict=True):
            column.insert(1, cell)
    lines = table_lines(list(zip(*columns, strict=True)))
    return "\n".join([*lines, *_remarks(figures)])


def _score_cells(figures: Sequence[Figures]) -> list[str]:
    """Return each model's dev score, and how much of the first one's it keeps."""
    first, cells = figures[0], []
    for model in figures:
        cell = "" if model.score is None else f"{model.score:.4f}"
        kept = None if model is first else share_kept(model.score, first.score, first.metric)
        cells.append(cell if kept is None else f"{cell} ({kept:.1%} kept)")
    return cells


def share_kept(score: float | None, reference: float | None, metric: str) -> float | None:
    """Return `score` as a share of `reference`; None where that says nothing, as for errors."""
    _, higher_is_better = METRICS.get(metric, (None, False))
    if score is None or reference is None or not higher_is_better or not reference > 0:
        return None
    return score / reference


def _remarks(figures: Sequence[Figures]) -> list[str]:
    """Return the lines below the table: where and how it was measured."""
    places: dict[str, list[str]] = {}
    for model in figures:
        place = f"on {model.device}, {model.threads} thread(s), {model.weight_type} weights"
        places.setdefault(place, []).append(model.name)
    shown = places.items()
    where = next(iter(places)) if len(places) == 1 else ""
    lines = [where or "; ".join(f"{', '.join(names)} {place}" for place, names in shown)]
    lines[0] += "; tokenising is not timed"
    if len(figures) > 1:
        lines.append(
            f"compared with the {figures[0].name}; speeds were measured in turns, and the ratio is "
            "the median over turns side by side"
        )
    said = noise(figures)
    return [*lines, said] if said else lines


def noise(figures: Sequence[Figures]) -> str | None:
    """Say in one line that something else ran on the machine, or nothing."""
    # At the task's own lengths p99 is far from p50 on a quiet machine too.
    fixed = [speed for model in figures for speed in model.at_fixed_length.speeds]
    speeds = [*fixed, *(speed for model in figures for speed in model.at_real_lengths.speeds)]
    tail = max(speed.p99_ms / speed.p50_ms for speed in fixed)
    spread = max(_spread(speed) for speed in speeds)
    signs = []
    if tail > NOISY_P99:
        signs.append(f"p99 was up to {tail:.1f} times p50")
    if spread > NOISY_TURNS:
        signs.append(f"turns of one model were up to {spread:.1f} times apart")
    if not signs:
        return None
    return (
        f"the machine was noisy: {', '.join(signs)}; trust the ratios of sentences/s more than "
        "the rest, and measure again on a quiet one"
    )


def _spread(speed: Speed) -> float:
    """Return how many times as fast the fast turns are as the slow ones."""
    slow, fast = np.percentile([turn.sentences_per_second for turn in speed.turns], [10, 90])
    return float(fast / slow)


LOSSES = {"smaller": "larger", "fewer": "more", "faster": "slower"}


def _worded(ratio: float, gain: str) -> str:
    """Return e.g. "2.5x faster" of 2.5, "2.5x slower" of 0.4, and "same" of 1."""
    factor = f"{max(ratio, 1 / ratio):.1f}x"
    if factor == "1.0x":
        return "same"
    return f"{factor} {gain if ratio > 1 else LOSSES[gain]}"


def _ratio(mine: _Row, theirs: _Row) -> float:
    more_is_better = mine.key.endswith("sentences_per_second")
    better, worse = (mine, theirs) if more_is_better else (theirs, mine)
    if not mine.turns:
        return better.value / worse.value
    return float(np.median(np.array(better.turns) / np.array(worse.turns)))


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
        *_length_rows("at_real_lengths", "mean", figures.at_real_lengths),
    ]


def _length_rows(key: str, kind: str, part: LengthFigures) -> list[_Row]:
    heading = f"FLOPs, {kind} {part.mean_length:.0f} tokens"
    rows = [_Row(f"{key}/flops", heading, part.flops, _short(part.flops), "fewer")]
    for speed in part.speeds:
        at, label = f"{key}/batch_{speed.batch_size}", f"  batch {speed.batch_size}:"
        for field, name, text in (
            ("sentences_per_second", "sentences/s", f"{speed.sentences_per_second:.1f}"),
            ("p50_ms", "p50 latency", f"{speed.p50_ms:.1f} ms"),
            ("p99_ms", "p99 latency", f"{speed.p99_ms:.1f} ms"),
        ):
            turns = tuple(getattr(turn, field) for turn in speed.turns)
            value = getattr(speed, field)
            rows.append(_Row(f"{at}/{field}", f"{label} {name}", value, text, "faster", turns))
    return rows


def _short(value: float) -> str:
    """Return e.g. "14.35 M" or "22.35 G"."""
    scale, letter = (1e9, "G") if value >= 1e9 else (1e6, "M")
    return f"{value / scale:.2f} {letter}"


# --- the picture -------------------------------------------------------------------------------


def comparison_picture(figures: Sequence[Figures]) -> Figure:
    """Draw size on disk against speed, one point a model, labelled with its dev score."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    speeds = [model.at_real_lengths.speeds[-1] for model in figures]
    points = [
        (model.size_on_disk / 1e6, speed.sentences_per_second)
        for model, speed in zip(figures, speeds, strict=True)
    ]
    picture = Figure(figsize=(6.4, 4.4))
    axis = picture.subplots()
    for model, point in zip(figures, points, strict=True):
        axis.plot(*point, marker="o")
        score = "" if model.score is None else f"\n{model.metric} {model.score:.3f}"
        # Below the point where another lies close above it, so that their labels keep apart.
        hidden = any(_lies_above(other, point) for other in points)
        axis.annotate(
            f"{model.name}{score}",
            point,
            xytext=(0, -8 if hidden else 8),
            textcoords="offset points",
            ha="center",
            va="top" if hidden else "bottom",
            fontsize=9,
        )
    axis.set(xscale="log", yscale="log", title="size and speed")
    axis.set_xlabel("size on disk, MB")
    axis.set_ylabel(f"sentences a second, batches of {speeds[0].batch_size}")
    axis.margins(0.25)
    axis.grid(which="both", alpha=0.2)
    picture.tight_layout()
    return picture


def _lies_above(other: tuple[float, float], point: tuple[float, float]) -> bool:
    """Say whether the label of `point`, written above it, would run into `other`."""
    return max(other[0] / point[0], point[0] / other[0]) < 2 and 1 < other[1] / point[1] < 2


def save_picture(figures: Sequence[Figures], path: Path) -> None:
    """Write `comparison_picture` as a PNG."""
    with atomic_write(path, "wb", encoding=None) as file:
        comparison_picture(figures).savefig(file, format="png", dpi=110)
