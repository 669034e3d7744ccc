"""What there is to know about a task: GLUE as a table, and your own by flags."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

from transformer.files import UserError
from transformer.tasks.kinds import (
    CLASSIFICATION,
    MULTI_LABEL,
    REGRESSION,
    SPANS,
    TOKEN_LABELS,
    Kind,
    check_labels_flag,
)


@dataclass(frozen=True)
class Source:
    """One file of a task.

    Args:
        file: name under the data directory.
        columns: the official header; used by position where a file calls its columns otherwise.
        header: False where the first line is already a row.
        endings: of files that are looked for where `file` has none.
        name: what tells it from its sisters: "-MM" for MNLI's second dev set (the suffix of its
            result directory), the name of the leaderboard's file for a test set.
        part: of a file that is training and dev set in one, which of the two; TRANSFER for texts
            that a teacher answers, whose labels are not read.
        dev_share: of the file that is its dev set.
    """

    file: str
    columns: tuple[str, ...] = ()
    header: bool = True
    name: str = ""
    endings: tuple[str, ...] = (".tsv", ".csv", ".jsonl", ".json")
    part: str = ""
    dev_share: float = 0.0


TRAIN_PART, DEV_PART, TRANSFER = "training", "dev", "transfer"

LARGEST_DEV_SHARE = 0.5


@dataclass(frozen=True)
class Task:
    """What is known about a task. `labels` is None where its kind names none, and for a task of
    the user's until they are found in the training file."""

    name: str
    text: tuple[str, ...]
    label: str
    train: Source
    dev: tuple[Source, ...]
    test: tuple[Source, ...]
    kind: Kind = CLASSIFICATION
    labels: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ("acc",)
    best_metric: str = "acc"
    epochs: float = 20.0  # of the intermediate stage
    max_seq_length: int = 128
    augmentations: int = 20  # N of data_augmentation.py
    folder: str = ""  # under GLUE_DIR, where it is not the task's name
    bounds: tuple[float, float] | None = None  # of a regression's predictions
    aliases: tuple[str, ...] = ()  # other names that checkpoints give the labels, in their order
    always_answered: bool = True  # every question has an answer in its context
    doc_stride: int = 128  # of windows of a context, in tokens
    max_query_length: int = 64  # of a question, in tokens
    max_answer_length: int = 30  # of a predicted one, in tokens
    null_threshold: float = 0.0  # what "no answer" must score above the best span

    @property
    def num_labels(self) -> int:
        """Return the width of the classifier."""
        return len(self.kind.output_names(self))

    @property
    def directory(self) -> str:
        """Return the name of the task's directory under GLUE_DIR."""
        return self.folder or self.name


# Columns of official files that several rows share.
_MNLI_TEXT = (
    *("index", "promptID", "pairID", "genre", "sentence1_binary_parse"),
    *("sentence2_binary_parse", "sentence1_parse", "sentence2_parse", "sentence1", "sentence2"),
)

_MNLI_TRAIN = Source("train.tsv", (*_MNLI_TEXT, "label1", "gold_label"))

_MNLI_DEV = (*_MNLI_TEXT, "label1", "label2", "label3", "label4", "label5", "gold_label")

_MNLI_TEST = (
    Source("test_matched.tsv", _MNLI_TEXT, name="MNLI-m"),
    Source("test_mismatched.tsv", _MNLI_TEXT, name="MNLI-mm"),
    # The diagnostic set has no training data: MNLI's model labels it. GLUE's download script puts
    # it beside the tasks.
    Source("../diagnostic/diagnostic.tsv", ("index", "sentence1", "sentence2"), name="AX"),
)

_MRPC_TEXT = ("#1 ID", "#2 ID", "#1 String", "#2 String")

_STSB_TEXT = (
    *("index", "genre", "filename", "year", "old_index", "source1", "source2"),
    *("sentence1", "sentence2"),
)

_QQP = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")

_QNLI = ("index", "question", "sentence", "label")

_PAIR = ("index", "sentence1", "sentence2", "label")

_COLA = ("source", "label", "mark", "sentence")

_SENTENCES = (".txt", ".conll", ".bio", ".tsv", ".jsonl", ".json")


def _squad(name: str, version: str, *, always_answered: bool) -> Task:
    return Task(
        name=name,
        kind=SPANS,
        text=("question", "context"),
        label="answers",
        train=Source(f"train-v{version}.json"),
        dev=(Source(f"dev-v{version}.json"),),
        test=(Source(f"test-v{version}.json", name=name),),
        metrics=SPANS.metrics,
        best_metric=SPANS.best_metric,
        epochs=10.0,
        max_seq_length=384,
        always_answered=always_answered,
    )


# The aliases are what Hugging Face's copies of the data sets call the labels, and many checkpoints.
_ROWS = (
    Task(
        name="CoLA",
        text=("sentence",),
        label="label",
        train=Source("train.tsv", _COLA, header=False),
        dev=(Source("dev.tsv", _COLA, header=False),),
        test=(Source("test.tsv", ("index", "sentence"), name="CoLA"),),
        labels=("0", "1"),
        aliases=("unacceptable", "acceptable"),
        metrics=("mcc",),
        best_metric="mcc",
        epochs=50.0,
        max_seq_length=64,
        augmentations=30,
    ),
    Task(
        name="SST-2",
        text=("sentence",),
        label="label",
        train=Source("train.tsv", ("sentence", "label")),
        dev=(Source("dev.tsv", ("sentence", "label")),),
        test=(Source("test.tsv", ("index", "sentence"), name="SST-2"),),
        labels=("0", "1"),
        aliases=("negative", "positive"),
        max_seq_length=64,
    ),
    Task(
        name="MRPC",
        text=("#1 String", "#2 String"),
        label="Quality",
        train=Source("train.tsv", ("Quality", *_MRPC_TEXT)),
        dev=(Source("dev.tsv", ("Quality", *_MRPC_TEXT)),),
        test=(Source("test.tsv", ("index", *_MRPC_TEXT), name="MRPC"),),
        labels=("0", "1"),
        aliases=("not_equivalent", "equivalent"),
        metrics=("acc", "f1", "acc_and_f1"),
        augmentations=30,
    ),
    Task(
        name="STS-B",
        kind=REGRESSION,
        text=("sentence1", "sentence2"),
        label="score",
        train=Source("train.tsv", (*_STSB_TEXT, "score")),
        dev=(Source("dev.tsv", (*_STSB_TEXT, "score")),),
        test=(Source("test.tsv", _STSB_TEXT, name="STS-B"),),
        metrics=("pearson", "spearmanr", "corr"),
        best_metric="corr",
        bounds=(0.0, 5.0),
        augmentations=30,
    ),
    Task(
        name="QQP",
        text=("question1", "question2"),
        label="is_duplicate",
        train=Source("train.tsv", _QQP),
        dev=(Source("dev.tsv", _QQP),),
        test=(Source("test.tsv", ("id", "question1", "question2"), name="QQP"),),
        labels=("0", "1"),
        aliases=("not_duplicate", "duplicate"),
        metrics=("acc", "f1", "acc_and_f1"),
        epochs=10.0,
        augmentations=10,
    ),
    Task(
        name="MNLI",
        text=("sentence1", "sentence2"),
        label="gold_label",
        train=_MNLI_TRAIN,
        dev=(
            Source("dev_matched.tsv", _MNLI_DEV),
            Source("dev_mismatched.tsv", _MNLI_DEV, name="-MM"),
        ),
        test=_MNLI_TEST,
        labels=("contradiction", "entailment", "neutral"),
        epochs=10.0,
        augmentations=10,
    ),
    Task(
        name="MNLI-mm",
        text=("sentence1", "sentence2"),
        label="gold_label",
        train=_MNLI_TRAIN,
        dev=(Source("dev_mismatched.tsv", _MNLI_DEV),),
        test=_MNLI_TEST,
        labels=("contradiction", "entailment", "neutral"),
        epochs=10.0,
        augmentations=10,
        folder="MNLI",
    ),
    Task(
        name="QNLI",
        text=("question", "sentence"),
        label="label",
        train=Source("train.tsv", _QNLI),
        dev=(Source("dev.tsv", _QNLI),),
        test=(Source("test.tsv", _QNLI[:-1], name="QNLI"),),
        labels=("entailment", "not_entailment"),
        epochs=10.0,
    ),
    Task(
        name="RTE",
        text=("sentence1", "sentence2"),
        label="label",
        train=Source("train.tsv", _PAIR),
        dev=(Source("dev.tsv", _PAIR),),
        test=(Source("test.tsv", _PAIR[:-1], name="RTE"),),
        labels=("entailment", "not_entailment"),
        augmentations=30,
    ),
    Task(
        name="WNLI",
        text=("sentence1", "sentence2"),
        label="label",
        train=Source("train.tsv", _PAIR),
        dev=(Source("dev.tsv", _PAIR),),
        test=(Source("test.tsv", _PAIR[:-1], name="WNLI"),),
        labels=("0", "1"),
        aliases=("not_entailment", "entailment"),
        augmentations=30,
    ),
    Task(
        name="NER",
        kind=TOKEN_LABELS,
        text=("0",),
        label="-1",
        train=Source("train", endings=_SENTENCES),
        dev=(Source("dev", endings=_SENTENCES),),
        test=(Source("test", name="NER", endings=_SENTENCES),),
        metrics=TOKEN_LABELS.metrics,
        best_metric="entity_f1",
        epochs=10.0,
    ),
    _squad("SQuAD", "1.1", always_answered=True),
    _squad("SQuAD2", "2.0", always_answered=False),
)


def task_key(name: str) -> str:
    """Return the name as it is compared. Example: "STS-B" -> "stsb"."""
    return name.lower().replace("-", "").replace("_", "")


TASKS = {task_key(task.name): task for task in _ROWS}


# Flags of questions with contexts, and the members of `Task` that they set.
QUESTION_FLAGS = {
    "doc_stride": "doc_stride",
    "max_query_length": "max_query_length",
    "max_answer_length": "max_answer_length",
    "null_score_diff_threshold": "null_threshold",
}

# Flags of `add_task_arguments` that decide what a run makes of the same files.
TASK_FLAGS = (
    *("task_name", "text_columns", "label_column", "labels", "regression", "multi_label"),
    *("best_metric", "no_header", "errors", "dev_share", *QUESTION_FLAGS),
)


def add_task_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add --task_name and the flags that describe a task which is not in the table."""
    group = parser.add_argument_group("task", "columns counted from 0; a flag wins over the table")
    names = ", ".join(task.name for task in _ROWS)
    add = group.add_argument
    add(
        "--task_name",
        required=required,
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
        help="all labels; default: those of the training file",
    )
    add("--regression", action="store_true", help="labels are numbers to predict")
    add(
        "--multi_label",
        action="store_true",
        help="a row may have several labels, or none: a JSON list, or names with , ; or | between",
    )
    add(
        "--doc_stride",
        type=int,
        help="tokens from one window of a context to the next (default 128)",
    )
    add("--max_query_length", type=int, help="limit of a question in tokens (default 64)")
    add("--max_answer_length", type=int, help="limit of a predicted answer in tokens (default 30)")
    add(
        "--null_score_diff_threshold",
        type=float,
        help='of SQuAD2: by how much "no answer" must beat the best answer (default 0)',
    )
    add(
        "--best_metric",
        help="the metric that chooses the best model, such as acc, macro_f1, corr",
    )
    _add_file_arguments(group)


def _add_file_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags that say where a task's rows are and how its files are read."""
    add = group.add_argument
    add(
        "--train_file",
        help="training file in the data directory; .tsv, .csv, .jsonl or .json (JSON lines)",
    )
    add("--dev_file", help="dev set in the data directory, as --train_file")
    add(
        "--dev_share",
        type=float,
        metavar="SHARE",
        help="where there is no dev set: hold out this share of the training file, such as 0.1, of "
        "every label alike; the same rows in every stage and with every --seed",
    )
    add("--test_file", help="set to predict in the data directory, as --train_file")
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
    task = TASKS.get(task_key(args.task_name))
    if task is None:
        task = _own_task(args)
    changes: dict[str, object] = {}
    if args.text_columns:
        changes["text"] = tuple(args.text_columns)
    if args.label_column:
        changes["label"] = args.label_column
    if args.labels:
        changes["labels"] = tuple(args.labels)
    task = replace(with_question_flags(task, args), **_changed_files(task, args), **changes)
    _check_labels(task, args)
    if args.dev_share is not None:
        task = _with_dev_share(task, args)
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
    kind = REGRESSION if args.regression else MULTI_LABEL if args.multi_label else CLASSIFICATION
    return Task(
        args.task_name,
        text=(),
        label="",
        train=Source("train"),
        dev=(Source("dev"),),
        test=(Source("test", name=args.task_name),),
        kind=kind,
        metrics=kind.metrics,
        best_metric=kind.best_metric,
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


def with_question_flags(task: Task, args: argparse.Namespace) -> Task:
    """Return the task with its questions read and answered as the flags say.

    Raises:
        UserError: it has no questions, or a number is out of its range.
    """
    changes = {}
    for flag, name in QUESTION_FLAGS.items():
        value = getattr(args, flag)
        if value is None:
            continue
        if task.kind is not SPANS:
            raise UserError(f"--{flag}: {task.name} has no questions with contexts")
        is_length = flag != "null_score_diff_threshold"
        if is_length and not 1 <= value <= 10_000:
            raise UserError(f"--{flag} {value}: give a number of tokens from 1 to 10,000")
        if not math.isfinite(value):
            raise UserError(f"--{flag} {value}: give a number")
        changes[name] = value
    return replace(task, **changes)


def _check_labels(task: Task, args: argparse.Namespace) -> None:
    if not 1 <= len(task.text) <= 2:
        raise UserError(f"--text_columns: {len(task.text)} columns given; allowed are one or two")
    if task.label in task.text:
        raise UserError(f"--label_column: {task.label!r} is one of --text_columns")
    if args.regression and task.kind is not REGRESSION:
        raise UserError(f"--regression: {task.name} is a {task.kind.name} task")
    if args.multi_label and task.kind is not MULTI_LABEL:
        raise UserError(f"--multi_label: {task.name} is a {task.kind.name} task")
    if args.labels:
        check_labels_flag(task.kind, args.labels)


def _with_dev_share(task: Task, args: argparse.Namespace) -> Task:
    """Return the task with its training file in the place of its dev set, too."""
    share = args.dev_share
    if not 0 < share <= LARGEST_DEV_SHARE:
        raise UserError(f"--dev_share {share}: give a share above 0, at most {LARGEST_DEV_SHARE}")
    if args.dev_file:
        raise UserError("--dev_file and --dev_share contradict each other; give one")
    if task.kind.reads != "rows":
        raise UserError(f"--dev_share: {task.name} holds {task.kind.reads}; give it a dev file")
    dev = replace(task.train, part=DEV_PART, dev_share=share)
    return replace(task, train=replace(dev, part=TRAIN_PART), dev=(dev,))


def transfer_source(path: Path, task: Task, *, header: bool = True) -> Source:
    """Return how a file of texts without labels is read: a table, or in .txt a text a line."""
    if path.suffix.lower() == ".txt" and task.kind.reads == "rows":
        return Source(path.name, task.text, header=False, part=TRANSFER)
    return Source(path.name, header=header, part=TRANSFER)


def _with_best_metric(task: Task, metric: str | None) -> Task:
    if metric is None:
        return task
    allowed = task.kind.allowed_metrics
    if metric not in allowed:
        raise UserError(f"--best_metric: {metric!r} for {task.name}; choose {', '.join(allowed)}")
    if metric in ("f1", "acc_and_f1") and task.labels is not None and len(task.labels) != 2:
        raise UserError(f"--best_metric: {metric} needs two labels; macro_f1 takes any number")
    metrics = task.metrics if metric in task.metrics else (*task.metrics, metric)
    return replace(task, metrics=metrics, best_metric=metric)
