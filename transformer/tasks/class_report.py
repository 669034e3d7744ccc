"""What a model gets right, class by class: a table, the confusion matrix, and its picture."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from transformer.files import UserError, atomic_write, read_json
from transformer.runtime.progress import table_lines
from transformer.tasks.metrics import Tags, entities, entity_scores

logger = logging.getLogger(__name__)

TEXT, DATA, PICTURE = "dev_report.txt", "dev_report.json", "confusion_matrix.png"
FILES = (TEXT, DATA, PICTURE)

# Of more classes, the log shows the worst, and no matrix.
SHOWN = 20

# Of more classes, the picture has no names on its axes.
NAMED_IN_PICTURE = 60


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of a class; `support` is how often it is the right answer."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ClassReport:
    """The scores of all classes, their averages, and which were taken for which.

    matrix: (C, C) counts, a row for what is true, a column for what was answered; None where an
        answer is no single class.
    """

    classes: list[ClassScores]
    averages: list[ClassScores]
    matrix: list[list[int]] | None = None


# --- from answers ------------------------------------------------------------------------------


def report_of_classes(
    labels: Sequence[str], predictions: np.ndarray, truth: np.ndarray
) -> ClassReport:
    """Return the report of answers that are one class each: numbers of labels, (N,)."""
    from sklearn.metrics import confusion_matrix

    classes, averages = _scores(labels, predictions, truth, ("macro", "weighted"))
    matrix = confusion_matrix(truth, predictions, labels=range(len(labels)))
    return ClassReport(classes, averages, matrix.tolist())


def report_of_label_sets(
    labels: Sequence[str], predictions: np.ndarray, truth: np.ndarray
) -> ClassReport:
    """Return the report of answers that are any number of labels each: 0 and 1, (N, C)."""
    return ClassReport(*_scores(labels, predictions, truth, ("micro", "macro")))


def _scores(
    labels: Sequence[str], predictions: np.ndarray, truth: np.ndarray, means: Sequence[str]
) -> tuple[list[ClassScores], list[ClassScores]]:
    """Return the scores of each label, and the means over those that occur or are answered."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        truth, predictions, labels=range(len(labels)), zero_division=0
    )
    classes = [
        ClassScores(label, *map(float, scores), int(support))
        for label, *scores, support in zip(labels, *columns, strict=True)
    ]
    total = sum(row.support for row in classes)
    averages = []
    for mean in means:
        found = precision_recall_fscore_support(truth, predictions, average=mean, zero_division=0)
        averages.append(ClassScores(f"{mean} average", *map(float, found[:3]), total))
    return classes, averages


def report_of_entities(predictions: Tags, truth: Tags) -> ClassReport:
    """Return the report of tagged sentences, by type of entity, whole entities counted."""
    support = Counter(name for tags in truth for name, _, _ in entities(tags))
    rows = {
        name: ClassScores(name or "all entities", *scores, support[name])
        for name, scores in entity_scores(predictions, truth).items()
    }
    whole = rows.pop("")
    return ClassReport(list(rows.values()), [replace(whole, support=support.total())])


# --- as text -----------------------------------------------------------------------------------


def text_of(report: ClassReport, *, most: int | None = None) -> str:
    """Return the report as aligned text.

    Args:
        most: of more classes show so many, the worst by F1; None shows all.
    """
    rows = report.classes
    lines = []
    if most is not None and len(rows) > most:
        rows = sorted(rows, key=lambda row: (row.f1, -row.support))[:most]
        lines = [f"the worst {most} of {len(report.classes)} classes by F1"]
    table: list[list[Any]] = [["class", "precision", "recall", "F1", "support"]]
    for row in [*rows, *report.averages]:
        shares = [f"{value:.4f}" for value in (row.precision, row.recall, row.f1)]
        table.append([row.name, *shares, row.support])
    lines += table_lines(table)
    if report.matrix is not None:
        lines += ["", *_confusions(report)]
    return "\n".join(lines)


def _confusions(report: ClassReport) -> list[str]:
    """Return the matrix as lines, of many classes the pairs that are confused most."""
    names, matrix = [row.name for row in report.classes], report.matrix
    if len(names) <= SHOWN:
        title = "confusion matrix: a row for each true class, a column for the one answered"
        numbers = [str(number) for number in range(1, len(names) + 1)]
        named = [
            [f"{number:>2} {name}", *row]
            for number, name, row in zip(numbers, names, matrix, strict=True)
        ]
        return [title, *table_lines([["", *numbers], *named])]
    pairs = [
        [names[true], names[answer], count, f"{count / sum(row):.1%}"]
        for true, row in enumerate(matrix)
        for answer, count in enumerate(row)
        if count and answer != true
    ]
    pairs.sort(key=lambda pair: -pair[2])
    columns = ["true class", "answered", "times", "of the class"]
    return [
        f"the most frequent of {len(pairs)} confusions",
        *table_lines([columns, *pairs[:SHOWN]], names=2),
    ]


# --- as files ----------------------------------------------------------------------------------


def write_report(directory: Path, report: ClassReport | None) -> None:
    """Write dev_report.txt and .json; None, of answers that have no classes, writes nothing."""
    if report is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory / TEXT) as file:
        file.write(text_of(report) + "\n")
    with atomic_write(directory / DATA) as file:
        json.dump(asdict(report), file, ensure_ascii=False)
        file.write("\n")


def read_report(directory: Path) -> ClassReport | None:
    """Return the report that `write_report` wrote, None if there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = directory / DATA
    if not path.exists():
        return None
    held = read_json(path)
    try:
        rows = [[ClassScores(**row) for row in held[name]] for name in ("classes", "averages")]
        return ClassReport(*rows, held["matrix"])
    except (LookupError, TypeError):
        raise UserError(f"{path} is damaged; remove it") from None


def show_report(directory: Path, title: str) -> None:
    """Log the report in `directory`, the worst of many classes, and draw its matrix."""
    report = read_report(directory)
    if report is None:
        return
    text = text_of(report, most=SHOWN)
    logger.info("%s, class by class (all in %s):\n%s", title, directory / TEXT, text)
    if report.matrix is not None:
        draw_matrix(report, directory / PICTURE, title)


def draw_matrix(report: ClassReport, path: Path, title: str) -> None:
    """Draw the confusion matrix, coloured by the share of the true class."""
    try:
        import matplotlib
    except ImportError:
        logger.warning("no %s: matplotlib is not installed", path.name)
        return
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    matrix = np.array(report.matrix)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size = min(4 + 0.35 * len(matrix), 18)
    figure = Figure(figsize=(size + 1, size))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class")
    axes.set(xlabel="answered", ylabel="true")
    # Names are shown as they are: a $ begins no formula.
    axes.set_title(f"{title}: {matrix.sum()} answers", parse_math=False)
    if len(matrix) <= NAMED_IN_PICTURE:
        names = _drawable([row.name for row in report.classes])
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
    if len(matrix) <= SHOWN:
        for true, answer in np.argwhere(matrix):
            colour = "white" if shares[true, answer] > 0.5 else "black"
            place = {"ha": "center", "va": "center", "fontsize": 8}
            axes.text(answer, true, str(matrix[true, answer]), color=colour, **place)
    figure.tight_layout()
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)


def _drawable(names: list[str]) -> list[str]:
    """Return the names, or the numbers of dev_report.txt where the font lacks some letter."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    letters = get_font(findfont(FontProperties())).get_charmap()
    if all(ord(letter) in letters for name in names for letter in name):
        return [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    return [str(number) for number in range(1, len(names) + 1)]
