"""What a run reports for programs and as pictures: metrics.jsonl and its curves."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
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


# Fields of a report that are no curve.
NOT_DRAWN = {"step", "epoch", *TIMING_FIELDS}


def panels_of(records: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the panels of the curves, by title, with the fields that are drawn in each.

    Terms of one kind share a panel, whatever kinds there are; what was measured on held-out data
    has one of its own.
    """
    panels: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for record in records for name in record):
        if name not in NOT_DRAWN:
            kind = "held out" if name.startswith("eval_") else name.partition("/")[0]
            panels.setdefault(kind.replace("_", " "), []).append(name)
    return panels


def save_curves(metrics_path: Path, image_path: Path) -> bool:
    """Draw metrics.jsonl as training_curves.png: one panel a kind of term, one line a field.

    Returns False, with a word in the log, where matplotlib is missing or there is nothing to draw.
    """
    records = [record for record in read_metrics(metrics_path) if "step" in record]
    panels = panels_of(records)
    try:
        import matplotlib
    except ImportError:
        logger.warning("no training curves: matplotlib is not installed")
        return False
    if not panels:
        return False
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * min(len(panels), 3), 3.2 * -(-len(panels) // 3)))
    axes = list(figure.subplots(-(-len(panels) // 3), min(len(panels), 3), squeeze=False).flat)
    for axis, (title, held) in zip(axes, panels.items(), strict=False):
        for name in held:
            points = [(record["step"], record[name]) for record in records if name in record]
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1, marker=".", markersize=2)
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=6)
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.tight_layout()
    with atomic_write(image_path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    return True
