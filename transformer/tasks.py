"""What there is to know about a task: its files, columns, labels, metrics and defaults."""

from __future__ import annotations

from dataclasses import dataclass

CLASSIFICATION_METRICS = ("acc", "f1", "acc_and_f1", "macro_f1", "mcc")
REGRESSION_METRICS = ("pearson", "spearmanr", "corr", "mse")


@dataclass(frozen=True)
class Source:
    """One file of a task.

    Args:
        file: name under the data directory; without extension, the first of .tsv .csv .jsonl .json.
        columns: the official header; used by position where a file calls its columns otherwise.
        header: False where the first line is already a row.
        name: what tells it from its sisters: "-MM" for MNLI's second dev set (the suffix of its
            result directory), the name of the leaderboard's file for a test set.
    """

    file: str
    columns: tuple[str, ...] = ()
    header: bool = True
    name: str = ""


@dataclass(frozen=True)
class Task:
    """What is known about a task. `labels` is None for regression, and for a task of the user's
    until they are found in the training file."""

    name: str
    text: tuple[str, ...]
    label: str
    train: Source
    dev: tuple[Source, ...]
    test: tuple[Source, ...]
    labels: tuple[str, ...] | None = None
    regression: bool = False
    metrics: tuple[str, ...] = ("acc",)
    best_metric: str = "acc"
    epochs: float = 20.0  # of the intermediate stage
    max_seq_length: int = 128
    augmentations: int = 20  # N of data_augmentation.py
    folder: str = ""  # under GLUE_DIR, where it is not the task's name
    bounds: tuple[float, float] | None = None  # of a regression's predictions
    aliases: tuple[str, ...] = ()  # other names that checkpoints give the labels, in their order

    @property
    def num_labels(self) -> int:
        """Return the width of the classifier."""
        return 1 if self.regression else len(self.labels or ())

    @property
    def directory(self) -> str:
        """Return the name of the task's directory under GLUE_DIR."""
        return self.folder or self.name
