"""What there is to know about a task: GLUE as a table, and your own by flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from transformer.files import UserError

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


def _files(
    name: str, columns: str, test_columns: str, **options: bool
) -> dict[str, Source | tuple[Source, ...]]:
    """Return train, dev and test of a task with one file of each; columns are tab-separated."""
    header = tuple(columns.split("|"))
    return {
        "train": Source("train.tsv", header, **options),
        "dev": (Source("dev.tsv", header, **options),),
        "test": (Source("test.tsv", tuple(test_columns.split("|")), name=name),),
    }


_PAIR = ("sentence1", "sentence2")

_MNLI_TEXT = (
    *("index", "promptID", "pairID", "genre", "sentence1_binary_parse"),
    *("sentence2_binary_parse", "sentence1_parse", "sentence2_parse", *_PAIR),
)

_MNLI_TRAIN = Source("train.tsv", (*_MNLI_TEXT, "label1", "gold_label"))

_MNLI_DEV = (
    *_MNLI_TEXT,
    "label1",
    "label2",
    "label3",
    "label4",
    "label5",
    "gold_label",
)

_MATCHED = Source("dev_matched.tsv", _MNLI_DEV)

_MISMATCHED = Source("dev_mismatched.tsv", _MNLI_DEV, name="-MM")

_MNLI_TESTS = (
    Source("test_matched.tsv", _MNLI_TEXT, name="MNLI-m"),
    Source("test_mismatched.tsv", _MNLI_TEXT, name="MNLI-mm"),
    # The diagnostic set has no training data: MNLI's model labels it. GLUE's download script puts
    # it beside the tasks.
    Source("../diagnostic/diagnostic.tsv", ("index", *_PAIR), name="AX"),
)

_STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"

_QQP = "id|qid1|qid2|question1|question2|is_duplicate"

_MRPC = "#1 ID|#2 ID|#1 String|#2 String"

_ENTAILMENT = ("entailment", "not_entailment")

_ZERO_ONE = {"labels": ("0", "1")}

_ACC_F1 = {"metrics": ("acc", "f1", "acc_and_f1")}

_CORRELATIONS = {"metrics": ("pearson", "spearmanr", "corr"), "best_metric": "corr"}

# Labels as Hugging Face's copies of the data sets call them, and so many checkpoints.
_EQUIVALENT = {"aliases": ("not_equivalent", "equivalent")}

_DUPLICATE = {"aliases": ("not_duplicate", "duplicate")}

_MNLI = {
    "train": _MNLI_TRAIN,
    "test": _MNLI_TESTS,
    "labels": ("contradiction", "entailment", "neutral"),
    "epochs": 10.0,
    "augmentations": 10,
}

_ROWS = (
    Task(
        "CoLA",
        ("sentence",),
        "label",
        **_files("CoLA", "source|label|mark|sentence", "index|sentence", header=False),
        **_ZERO_ONE,
        aliases=("unacceptable", "acceptable"),
        metrics=("mcc",),
        best_metric="mcc",
        epochs=50.0,
        max_seq_length=64,
        augmentations=30,
    ),
    Task(
        "SST-2",
        ("sentence",),
        "label",
        **_files("SST-2", "sentence|label", "index|sentence"),
        **_ZERO_ONE,
        aliases=("negative", "positive"),
        max_seq_length=64,
    ),
    Task(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        **_files("MRPC", "Quality|" + _MRPC, "index|" + _MRPC),
        **_ZERO_ONE | _ACC_F1 | _EQUIVALENT,
        augmentations=30,
    ),
    Task(
        "STS-B",
        _PAIR,
        "score",
        **_files("STS-B", _STSB + "|score", _STSB),
        **_CORRELATIONS,
        regression=True,
        bounds=(0.0, 5.0),
        augmentations=30,
    ),
    Task(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        **_files("QQP", _QQP, "id|question1|question2"),
        **_ZERO_ONE | _ACC_F1 | _DUPLICATE,
        epochs=10.0,
        augmentations=10,
    ),
    Task("MNLI", _PAIR, "gold_label", dev=(_MATCHED, _MISMATCHED), **_MNLI),
    Task(
        "MNLI-mm",
        _PAIR,
        "gold_label",
        dev=(replace(_MISMATCHED, name=""),),
        **_MNLI,
        folder="MNLI",
    ),
    Task(
        "QNLI",
        ("question", "sentence"),
        "label",
        **_files("QNLI", "index|question|sentence|label", "index|question|sentence"),
        labels=_ENTAILMENT,
        epochs=10.0,
    ),
    Task(
        "RTE",
        _PAIR,
        "label",
        **_files("RTE", "index|sentence1|sentence2|label", "index|sentence1|sentence2"),
        labels=_ENTAILMENT,
        augmentations=30,
    ),
    Task(
        "WNLI",
        _PAIR,
        "label",
        **_files("WNLI", "index|sentence1|sentence2|label", "index|sentence1|sentence2"),
        **_ZERO_ONE,
        aliases=("not_entailment", "entailment"),
        augmentations=30,
    ),
)


def _key(name: str) -> str:
    """Return the name as it is compared. Example: "STS-B" -> "stsb"."""
    return name.lower().replace("-", "").replace("_", "")


TASKS = {_key(task.name): task for task in _ROWS}


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --task_name and the flags that describe a task which is not in the table."""
    group = parser.add_argument_group("task", "columns counted from 0; a flag wins over the table")
    names = ", ".join(task.name for task in _ROWS)
    add = group.add_argument
    add(
        "--task_name",
        required=True,
        help=f"{names} (any case), or your own with --text_columns",
    )
    add(
        "--text_columns",
        nargs="+",
        metavar="COLUMN",
        help="one or two columns, names or numbers",
    )
    add("--label_column", metavar="COLUMN", help="name or number of the label's column")
    add(
        "--labels",
        nargs="+",
        metavar="LABEL",
        help="all labels; else found in the training file",
    )
    add("--regression", action="store_true", help="labels are numbers to predict")
    add(
        "--best_metric",
        help="the metric that chooses the best model, such as acc, macro_f1, corr",
    )
    add(
        "--train_file",
        help="in the data directory; .tsv, .csv, .jsonl or .json (JSON lines)",
    )
    add("--dev_file", help="the same for the dev set")
    add("--test_file", help="the same for the set to predict")
    add(
        "--no_header",
        action="store_true",
        help="the files' first line is a row, not a header",
    )
    add(
        "--errors",
        choices=["strict", "replace", "skip"],
        default="strict",
        help="bytes not in UTF-8: stop and name the line, put U+FFFD in their place, or drop them",
    )
    add(
        "--allow_short",
        action="store_true",
        help="go on although more than a fifth of a file's rows cannot be used",
    )


def resolve_task(args: argparse.Namespace) -> Task:
    """Return the task that the flags of `add_task_arguments` describe.

    Raises:
        UserError: an unknown task without --text_columns, or flags that contradict each other.
    """
    task = TASKS.get(_key(args.task_name))
    if task is None:
        task = _own_task(args)
    changes: dict[str, object] = {}
    if args.text_columns:
        changes["text"] = tuple(args.text_columns)
    if args.label_column:
        changes["label"] = args.label_column
    if args.labels:
        changes["labels"] = tuple(args.labels)
    task = replace(task, **_changed_files(task, args), **changes)
    _check_labels(task, args)
    return _with_best_metric(task, args.best_metric)


def _own_task(args: argparse.Namespace) -> Task:
    if not args.text_columns:
        names = ", ".join(task.name for task in _ROWS)
        raise UserError(
            f"--task_name: unknown task {args.task_name!r}; choose from {names}, or describe "
            "your own with --text_columns and --label_column"
        )
    if not args.label_column:
        raise UserError(f"--label_column: name the column of {args.task_name}'s labels")
    metrics = ("pearson", "spearmanr", "corr") if args.regression else ("acc", "macro_f1")
    return Task(
        args.task_name,
        text=(),
        label="",
        train=Source("train"),
        dev=(Source("dev"),),
        test=(Source("test", name=args.task_name),),
        regression=args.regression,
        metrics=metrics,
        best_metric="corr" if args.regression else "acc",
    )


def _changed_files(task: Task, args: argparse.Namespace) -> dict[str, object]:
    header = {"header": False} if args.no_header else {}
    train = replace(task.train, file=args.train_file or task.train.file, **header)
    dev = tuple(replace(source, **header) for source in task.dev)
    test = tuple(replace(source, **header) for source in task.test)
    if args.dev_file:
        dev = (replace(dev[0], file=args.dev_file),)
    if args.test_file:
        test = (replace(test[0], file=args.test_file),)
    return {"train": train, "dev": dev, "test": test}


def _check_labels(task: Task, args: argparse.Namespace) -> None:
    if not 1 <= len(task.text) <= 2:
        raise UserError(f"--text_columns: {len(task.text)} columns given; allowed are one or two")
    if task.label in task.text:
        raise UserError(f"--label_column: {task.label!r} is one of --text_columns")
    if args.regression and not task.regression:
        raise UserError(f"--regression: {task.name} is a classification task")
    if args.labels and task.regression:
        raise UserError("--labels: a regression task has none; leave the flag out")
    if args.labels and len(set(args.labels)) < max(2, len(args.labels)):
        raise UserError(f"--labels: {' '.join(args.labels)}: give at least two, each once")


def _with_best_metric(task: Task, metric: str | None) -> Task:
    if metric is None:
        return task
    allowed = REGRESSION_METRICS if task.regression else CLASSIFICATION_METRICS
    if metric not in allowed:
        raise UserError(f"--best_metric: {metric!r} for {task.name}; choose {', '.join(allowed)}")
    if metric in ("f1", "acc_and_f1") and task.labels is not None and len(task.labels) != 2:
        raise UserError(f"--best_metric: {metric} needs two labels; macro_f1 takes any number")
    metrics = task.metrics if metric in task.metrics else (*task.metrics, metric)
    return replace(task, metrics=metrics, best_metric=metric)
