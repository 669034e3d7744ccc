"""What a run reports for programs and as pictures: metrics.jsonl and its curves."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformer.files import atomic_write
from transformer.runtime.progress import TIMING_FIELDS

logger = logging.getLogger(__name__)


def sum_by_kind(terms: Mapping[str, float]) -> dict[str, float]:
    """Add up the terms of all layers.

    >>> sum_by_kind({"loss": 3.0, "attention/1": 1.0, "attention/2": 2.0})
    {'loss': 3.0, 'attention': 3.0}
    """
    kinds: dict[str, float] = {}
    for name, value in terms.items():
        kind = name.partition("/")[0]
        kinds[kind] = kinds.get(kind, 0.0) + value
    return kinds


def shown_terms(terms: Mapping[str, float]) -> dict[str, float]:
    """Return the terms for people: by kind, and without a lone one that is the whole loss.

    >>> shown_terms({"loss": 3.0, "prediction": 3.0})
    {'loss': 3.0}
    """
    kinds = sum_by_kind(terms)
    if len(kinds) == 2 and len(set(kinds.values())) == 1:
        return dict([next(iter(kinds.items()))])
    return kinds


class MetricsLog:
    """metrics.jsonl: one JSON object a line, cut back to the resumed step.

    Args:
        path: of the file; None on ranks that do not write.
        offset: bytes to keep of what is there (0: begin anew).
        tensorboard_dir: also write scalars there, with the tensorboard package.
    """

    def __init__(
        self, path: Path | None, *, offset: int = 0, tensorboard_dir: Path | None = None
    ) -> None:
        self._file = None
        self._board = None
        if path is None:
            return
        self._file = open(path, "ab")  # noqa: SIM115 - held open for the length of the run
        self._file.truncate(min(offset, self._file.tell()))
        if tensorboard_dir is not None:
            self._board = _summary_writer(tensorboard_dir)

    def write(self, **fields: Any) -> None:
        """Append one report; `step`, if there, is the x axis."""
        if self._file is None:
            return
        self._file.write((json.dumps(fields) + "\n").encode())
        self._file.flush()
        if self._board is not None:
            for name, value in fields.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, fields.get("step", 0))

    def sync(self) -> int:
        """Flush to the disk and return the size in bytes, for the training state."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file and TensorBoard's writer."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _summary_writer(directory: Path) -> Any:
    """Return TensorBoard's writer; imported only where asked for."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl back."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def known_rate(path: Path) -> float | None:
    """Return the sequences a second that metrics.jsonl reports last, None if it tells none."""
    if not path.is_file():
        return None
    with suppress(ValueError):  # of a line that was cut off
        rates = [record.get("sequences_per_second") for record in read_metrics(path)]
        return next((rate for rate in reversed(rates) if rate), None)
    return None


# Fields of a report that are no curve.
NOT_DRAWN = {"step", "epoch", *TIMING_FIELDS}

HELD_OUT = "eval_"


def panels_of(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the panels of the curves, by title, with the fields that are drawn in each.

    Terms of one kind share a panel, whatever kinds there are, and so do the scores of several dev
    sets; those come last. A term that is the whole loss is not drawn again, and what is told of the
    start alone is no curve.
    """
    panels: dict[str, list[str]] = {}
    drawn: list[list[tuple[int, float]]] = []
    names = dict.fromkeys(name for record in records for name in record)
    for name in sorted(names, key=lambda name: name.startswith(HELD_OUT)):
        points = points_of(records, name)
        is_of_start = not name.startswith(HELD_OUT) and not any(step for step, _ in points)
        if name in NOT_DRAWN or is_of_start or points in drawn:
            continue
        drawn.append(points)
        kind = name.removeprefix(HELD_OUT).partition("/")[0].partition("-")[0]
        where = "held out: " if name.startswith(HELD_OUT) else ""
        panels.setdefault(where + kind.replace("_", " "), []).append(name)
    return panels


def points_of(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Return (step, value) of a field wherever it was reported."""
    return [(record["step"], record[name]) for record in records if name in record]


def save_curves(
    metrics_path: Path,
    image_path: Path,
    *,
    title: str = "",
    best_step: int | None = None,
    teacher: Mapping[str, float] | None = None,
) -> bool:
    """Draw metrics.jsonl as training_curves.png: one panel a kind of term, one line a field.

    Returns False, with a word in the log, where matplotlib is missing or there is nothing to draw.

    Args:
        title: over all panels.
        best_step: marked in what was measured on held-out data; None where no step was chosen.
        teacher: scores of the teacher, under the names that the student's have in the file.
    """
    records = [record for record in read_metrics(metrics_path) if "step" in record]
    try:
        import matplotlib
    except ImportError:
        logger.warning("no training curves: matplotlib is not installed")
        return False
    if not panels_of(records):
        return False
    matplotlib.use("Agg")
    figure = draw_curves(records, title, best_step, teacher or {})
    with atomic_write(image_path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    return True


def draw_curves(
    records: Sequence[Mapping[str, Any]],
    title: str,
    best_step: int | None,
    teacher: Mapping[str, float],
) -> Any:
    """Return the matplotlib figure of `save_curves`."""
    from matplotlib.figure import Figure

    panels = panels_of(records)
    columns, rows = min(len(panels), 3), -(-len(panels) // 3)
    figure = Figure(figsize=(5 * columns, 3.2 * rows + 0.4))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (kind, names) in zip(axes, panels.items(), strict=False):
        for name in names:
            points = points_of(records, name)
            size = 2 if len(points) > 1 else 5  # of a short run, there may be one
            line = axis.plot(
                *zip(*points, strict=True), label=name, linewidth=1, marker=".", markersize=size
            )[0]
            if name in teacher:
                level = {"label": f"teacher {teacher[name]:.4f}", "color": line.get_color()}
                axis.axhline(teacher[name], linestyle="--", linewidth=1, **level)
        if best_step is not None and names[0].startswith(HELD_OUT):
            label = f"kept: step {best_step}"
            axis.axvline(best_step, color="grey", linestyle=":", linewidth=1, label=label)
        axis.set(title=kind, xlabel="step")
        axis.legend(fontsize=6)
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.suptitle(title)
    figure.tight_layout()
    return figure
