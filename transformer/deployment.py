"""Set a student's costs beside its teacher's, and export it: what comes after the training.

The paper's claim is one about figures: 7.5x smaller and 9.4x faster than BERT-base. `measure` takes
them for one model, `comparison_table` and `comparison` put two side by side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from transformer.costs import FIXED_LENGTH, Effort, Figures, LengthFigures, measure
from transformer.onnx_export import export_onnx

__all__ = ["Effort", "Figures", "comparison", "comparison_table", "export_onnx", "measure"]


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
            gain = f"{_ratio(mine, theirs):.1f}x {mine.gain}"
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
