"""What a model gets right, class by class, against scikit-learn's own report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from transformer.files import UserError
from transformer.tasks.class_report import (
    ClassReport,
    read_report,
    show_report,
    text_of,
    write_report,
)
from transformer.tasks.kinds import CLASSIFICATION, MULTI_LABEL, REGRESSION, TOKEN_LABELS, Kind
from transformer.tasks.metrics import METRICS
from transformer.tasks.table import Source, Task


def task_of(kind: Kind, *labels: str) -> Task:
    source = Source("dev")
    return Task("t", ("x",), "y", source, (source,), (), labels=labels or None, kind=kind)


def class_report(task: Task, answers: tuple[np.ndarray, np.ndarray]) -> ClassReport | None:
    return task.kind.class_report(task, *answers)


def many_answers(classes: int, rows: int) -> tuple[Task, np.ndarray, np.ndarray]:
    """Return a task, logits and labels; the last class never occurs and is never answered."""
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(rows, classes)).astype(np.float32)
    logits[:, -1] = -9
    labels = rng.integers(0, classes - 1, rows)
    logits[np.arange(rows), labels] += 1
    return task_of(CLASSIFICATION, *(f"class {n}" for n in range(classes))), logits, labels


def assert_like(row: object, expected: dict[str, float]) -> None:
    assert [row.precision, row.recall, row.f1, row.support] == pytest.approx(
        [expected[name] for name in ("precision", "recall", "f1-score", "support")]
    )


@pytest.mark.filterwarnings("error")
def test_classes_equal_scikit_learns_report() -> None:
    task, logits, labels = many_answers(6, 200)
    report = class_report(task, (logits, labels.astype(np.float32)))
    guesses = logits.argmax(1)
    expected = sk.classification_report(
        labels, guesses, labels=range(6), output_dict=True, zero_division=0
    )
    for number, row in enumerate(report.classes):
        assert row.name == f"class {number}"
        assert_like(row, expected[str(number)])
    present = sk.classification_report(labels, guesses, output_dict=True, zero_division=0)
    macro, weighted = report.averages
    assert_like(macro, present["macro avg"])
    assert_like(weighted, present["weighted avg"])
    assert macro.f1 == pytest.approx(METRICS["macro_f1"][0](guesses, labels))
    matrix = np.zeros((6, 6), int)
    np.add.at(matrix, (labels, guesses), 1)
    assert report.matrix == matrix.tolist()


def test_several_labels_a_text_are_reported_each() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(50, 3)).astype(np.float32)
    labels = (rng.random((50, 3)) < 0.4).astype(np.float32)
    report = class_report(task_of(MULTI_LABEL, "x", "y", "z"), (logits, labels))
    expected = sk.classification_report(labels, logits > 0, output_dict=True, zero_division=0)
    for number, row in enumerate(report.classes):
        assert_like(row, expected[str(number)])
    assert_like(report.averages[0], expected["micro avg"])
    assert_like(report.averages[1], expected["macro avg"])
    assert report.matrix is None


def test_entities_are_reported_by_type() -> None:
    labels = ("O", "B-PER", "I-PER", "B-LOC")
    true, answered = [1, 2, 0, 3, 1, 0, 3], [1, 2, 0, 3, 0, 0, 1]
    places = np.array([[tag, number > 3] for number, tag in enumerate(true)])
    report = class_report(task_of(TOKEN_LABELS, *labels), (np.eye(4)[answered], places))
    rows = {row.name: row for row in [*report.classes, *report.averages]}
    # True: PER 0-1, LOC 3 in the first sentence, PER 4, LOC 6; answered: PER 0-1, LOC 3, PER 6.
    assert [(row.precision, row.recall, row.support) for row in rows.values()] == [
        (1, 0.5, 2),  # LOC
        (0.5, 0.5, 2),  # PER
        (2 / 3, 0.5, 4),
    ]
    assert list(rows) == ["LOC", "PER", "all entities"]


def test_numbers_have_no_classes(tmp_path: Path) -> None:
    answers = np.ones((3, 1), np.float32), np.ones(3)
    assert class_report(task_of(REGRESSION), answers) is None
    write_report(tmp_path, None)
    show_report(tmp_path, "t")
    assert list(tmp_path.iterdir()) == []


def small_report() -> ClassReport:
    """Return the report of 10 answers: a Chinese name, which takes two columns a letter."""
    truth = np.array([0] * 7 + [1] * 3)
    guesses = np.array([0] * 6 + [1] + [1] * 2 + [0])
    task = task_of(CLASSIFICATION, "财经", "sport")
    return class_report(task, (np.eye(2)[guesses], truth))


def test_the_table_is_aligned(tmp_path: Path) -> None:
    assert text_of(small_report()).splitlines() == [
        "class             precision  recall      F1  support",
        "财经                 0.8571  0.8571  0.8571        7",
        "sport                0.6667  0.6667  0.6667        3",
        "macro average        0.7619  0.7619  0.7619       10",
        "weighted average     0.8000  0.8000  0.8000       10",
        "",
        "confusion matrix: a row for each true class, a column for the one answered",
        "          1  2",
        " 1 财经   6  1",
        " 2 sport  1  2",
    ]


def test_of_many_classes_the_worst_are_shown() -> None:
    task, logits, labels = many_answers(30, 3000)
    report = class_report(task, (logits, labels))
    lines = text_of(report, most=20).splitlines()
    assert lines[0] == "the worst 20 of 30 classes by F1"
    names = [line[:8].strip() for line in lines[2:22]]
    scores = sk.f1_score(labels, logits.argmax(1), labels=range(30), average=None, zero_division=0)
    worst = np.lexsort((-np.bincount(labels, minlength=30), scores))  # of equal ones the frequent
    assert names == [f"class {number}" for number in worst[:20]]
    assert len([line for line in text_of(report).splitlines() if line.startswith("class ")]) >= 30
    place = next(n for n, line in enumerate(lines) if line.startswith("the most frequent of"))
    matrix = sk.confusion_matrix(labels, logits.argmax(1), labels=range(30))
    np.fill_diagonal(matrix, 0)
    assert lines[place] == f"the most frequent of {np.count_nonzero(matrix)} confusions"
    assert lines[place + 2].split()[4] == str(matrix.max())
    assert len(lines) == place + 2 + 20


@pytest.mark.filterwarnings("error")  # letters that the font lacks, say
@pytest.mark.parametrize("classes", [2, 30, 90])
def test_what_is_written_is_read_and_drawn(
    classes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    report = small_report() if classes == 2 else class_report(*_split(many_answers(classes, 500)))
    write_report(tmp_path, report)
    assert read_report(tmp_path) == report
    assert (tmp_path / "dev_report.txt").read_text(encoding="utf-8") == text_of(report) + "\n"
    show_report(tmp_path, "a $title^")
    assert "a $title^, class by class" in caplog.text
    assert text_of(report, most=20) in caplog.text
    assert (tmp_path / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


def _split(answers: tuple[Task, np.ndarray, np.ndarray]) -> tuple[Task, tuple]:
    return answers[0], answers[1:]


def test_a_damaged_report_is_refused(tmp_path: Path) -> None:
    for content in ("{}", "[]", '{"classes": [{}], "averages": [], "matrix": null}', "half"):
        (tmp_path / "dev_report.json").write_text(content)
        with pytest.raises(UserError, match="dev_report.json"):
            read_report(tmp_path)
    empty = {"classes": [], "averages": [], "matrix": None}
    (tmp_path / "dev_report.json").write_text(json.dumps(empty))
    assert read_report(tmp_path) == ClassReport([], [])
