"""The table of tasks and flags for one of one's own: pytest tests/tasks/test_table.py"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from transformer.files import UserError
from transformer.tasks.files import LabelReader, RowReader, find_file, with_labels
from transformer.tasks.kinds import REGRESSION
from transformer.tasks.table import TASKS, Task, add_task_arguments, resolve_task

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

# What the official files look like: a header (or none) and one row, for train and for test, with
# the texts and the label that a reader must find in them.
SENTENCE, PAIR = ("a b",), ("a b", "c d")
MNLI_CELLS = ["0", "1", "1e", "genre", "p1", "p2", "q1", "q2", "a b", "c d"]
MNLI_HEADER = [
    *("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse"),
    *("sentence1_parse", "sentence2_parse", "sentence1", "sentence2"),
]
STSB_CELLS = ["0", "main", "file", "2012", "7", "none", "none", "a b", "c d"]
STSB_HEADER = [
    *("index", "genre", "filename", "year", "old_index", "source1", "source2"),
    *("sentence1", "sentence2"),
]
OFFICIAL = {
    "CoLA": (None, ["gj04", "1", "*", "a b"], ["index", "sentence"], ["0", "a b"], SENTENCE, "1"),
    "SST-2": (
        ["sentence", "label"],
        ["a b", "0"],
        ["index", "sentence"],
        ["0", "a b"],
        SENTENCE,
        "0",
    ),
    "MRPC": (
        ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
        ["1", "11", "12", "a b", "c d"],
        ["index", "#1 ID", "#2 ID", "#1 String", "#2 String"],
        ["0", "11", "12", "a b", "c d"],
        PAIR,
        "1",
    ),
    "STS-B": (
        [*STSB_HEADER, "score"],
        [*STSB_CELLS, "3.750"],
        STSB_HEADER,
        STSB_CELLS,
        PAIR,
        "3.750",
    ),
    "QQP": (
        ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        ["0", "1", "2", "a b", "c d", "1"],
        ["id", "question1", "question2"],
        ["0", "a b", "c d"],
        PAIR,
        "1",
    ),
    "MNLI": (
        [*MNLI_HEADER, "label1", "gold_label"],
        [*MNLI_CELLS, "neutral", "entailment"],
        MNLI_HEADER,
        MNLI_CELLS,
        PAIR,
        "entailment",
    ),
    "QNLI": (
        ["index", "question", "sentence", "label"],
        ["0", "a b", "c d", "not_entailment"],
        ["index", "question", "sentence"],
        ["0", "a b", "c d"],
        PAIR,
        "not_entailment",
    ),
    "RTE": (
        ["index", "sentence1", "sentence2", "label"],
        ["0", "a b", "c d", "entailment"],
        ["index", "sentence1", "sentence2"],
        ["0", "a b", "c d"],
        PAIR,
        "entailment",
    ),
    "WNLI": (
        ["index", "sentence1", "sentence2", "label"],
        ["0", "a b", "c d", "0"],
        ["index", "sentence1", "sentence2"],
        ["0", "a b", "c d"],
        PAIR,
        "0",
    ),
}


def resolve(*flags: str) -> Task:
    """Return the task that these flags describe."""
    parser = argparse.ArgumentParser()
    add_task_arguments(parser)
    return resolve_task(parser.parse_args(flags))


def write(path: Path, *rows: list[str] | None) -> Path:
    """Write rows as TSV; a header of None is none."""
    lines = ["\t".join(row) for row in rows if row is not None]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return path


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_are_read(name: str, tmp_path: Path) -> None:
    header, row, test_header, test_row, texts, label = OFFICIAL[name]
    task = resolve("--task_name", name)
    reader = RowReader(write(tmp_path / "train.tsv", header, row, row), task, task.train)
    rows = list(reader)
    assert [reader.texts(r.cells) for r in rows] == [texts, texts]
    assert [reader.label(r.cells) for r in rows] == [label, label]
    number = LabelReader.of(task)(label, reader.path, 1)
    assert number == (3.75 if task.kind is REGRESSION else task.labels.index(label))
    test_path = write(tmp_path / "test.tsv", test_header, test_row)
    reader = RowReader(test_path, task, task.test[0], need_label=False, keep_all=True)
    assert [reader.texts(r.cells) for r in reader] == [texts]
    assert reader.index_key == 0


def test_mnli_dev_sets_have_their_label_in_another_place(tmp_path: Path) -> None:
    task = resolve("--task_name", "mnli")
    header = [*MNLI_HEADER, "label1", "label2", "label3", "label4", "label5", "gold_label"]
    row = [*MNLI_CELLS, "neutral", "neutral", "entailment", "neutral", "entailment", "neutral"]
    for source in task.dev:
        reader = RowReader(write(tmp_path / source.file, header, row), task, source)
        assert [reader.label(r.cells) for r in reader] == ["neutral"]
    assert [source.name for source in task.dev] == ["", "-MM"]
    mismatched = resolve("--task_name", "MNLI-mm")
    assert [source.file for source in mismatched.dev] == ["dev_mismatched.tsv"]
    assert mismatched.directory == "MNLI"


def test_columns_with_other_names_are_found_by_place(tmp_path: Path) -> None:
    """People put their own data into a task's layout, with a header of their own."""
    task = resolve("--task_name", "rte")
    path = write(
        tmp_path / "train.tsv", ["n", "one", "two", "y"], ["0", "a b", "c d", "entailment"]
    )
    reader = RowReader(path, task, task.train)
    assert [(reader.texts(r.cells), reader.label(r.cells)) for r in reader] == [
        (PAIR, "entailment")
    ]


@pytest.mark.parametrize("spelling", ["sts-b", "STSB", "Sts_B", "STS-B"])
def test_names_in_any_case_and_without_hyphens(spelling: str) -> None:
    assert resolve("--task_name", spelling) == TASKS["stsb"]


def test_defaults_of_the_paper_and_the_original() -> None:
    """Epochs of the intermediate stage, lengths, N of the augmentation, metrics (design, 3)."""
    augmentations = {task.name: task.augmentations for task in TASKS.values()}
    wanted = {"CoLA": 30, "MNLI": 10, "MRPC": 30, "SST-2": 20, "STS-B": 30, "QQP": 10, "QNLI": 20}
    assert augmentations.items() >= (wanted | {"RTE": 30}).items()
    epochs = {task.name: task.epochs for task in TASKS.values()}
    assert {name for name in epochs if epochs[name] == 10} == {
        *("MNLI", "MNLI-mm", "QQP", "QNLI", "NER", "SQuAD", "SQuAD2")
    }
    assert epochs["CoLA"] == 50 and epochs["RTE"] == epochs["SST-2"] == 20
    lengths = {task.name: task.max_seq_length for task in TASKS.values()}
    assert {name for name in lengths if lengths[name] == 64} == {"CoLA", "SST-2"}
    assert {name for name in lengths if lengths[name] == 384} == {"SQuAD", "SQuAD2"}
    assert set(lengths.values()) == {64, 128, 384}
    assert TASKS["mnli"].labels == ("contradiction", "entailment", "neutral")
    assert TASKS["cola"].best_metric == "mcc" and TASKS["stsb"].best_metric == "corr"
    assert set(TASKS["qqp"].metrics) == {"acc", "f1", "acc_and_f1"}


def test_own_task_by_flags(tmp_path: Path) -> None:
    task = resolve(
        *("--task_name", "mine", "--text_columns", "premise", "hypothesis"),
        *("--label_column", "label", "--best_metric", "macro_f1", "--dev_file", "held.jsonl"),
    )
    (tmp_path / "train.csv").write_text(
        'id,premise,hypothesis,label\n1,"a, b","say ""c""",10\n2,x,y,9\n', encoding="utf-8"
    )
    (tmp_path / "held.jsonl").write_text(
        '{"premise": "a", "hypothesis": null, "label": 9}\n', encoding="utf-8"
    )
    task = with_labels(task, tmp_path)
    assert task.labels == ("9", "10")  # numbers by value, not by spelling
    reader = RowReader(find_file(tmp_path, task.train), task, task.train)
    assert [reader.texts(row.cells) for row in reader] == [("a, b", 'say "c"'), ("x", "y")]
    reader = RowReader(find_file(tmp_path, task.dev[0]), task, task.dev[0])
    assert [(reader.texts(r.cells), reader.label(r.cells)) for r in reader] == [(("a", ""), "9")]
    assert (task.best_metric, task.max_seq_length) == ("macro_f1", 128)


def test_own_task_with_column_numbers_and_no_header(tmp_path: Path) -> None:
    task = resolve(
        *("--task_name", "mine", "--text_columns", "1", "--label_column", "-1", "--no_header"),
    )
    write(tmp_path / "train.tsv", ["x", "a b", "yes"], ["y", "c", "no"])
    task = with_labels(task, tmp_path)
    assert task.labels == ("no", "yes")
    reader = RowReader(tmp_path / "train.tsv", task, task.train)
    assert [reader.texts(row.cells) for row in reader] == [("a b",), ("c",)]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--task_name", "sst3"], "unknown task 'sst3'; choose from CoLA, SST-2"),
        (["--task_name", "m", "--text_columns", "a"], "--label_column"),
        (["--task_name", "m", "--text_columns", "a", "b", "c", "--label_column", "l"], "3 columns"),
        (["--task_name", "m", "--text_columns", "l", "--label_column", "l"], "is one of"),
        (["--task_name", "rte", "--regression"], "classification"),
        (["--task_name", "stsb", "--labels", "0", "1"], "--labels"),
        (["--task_name", "rte", "--labels", "yes"], "at least two"),
        (["--task_name", "rte", "--best_metric", "corr"], "choose acc, f1"),
        (["--task_name", "mnli", "--best_metric", "f1"], "two labels"),
    ],
)
def test_mistakes_in_flags(flags: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        resolve(*flags)


def test_best_metric_is_reported_too() -> None:
    task = resolve("--task_name", "sst-2", "--best_metric", "mcc")
    assert (task.metrics, task.best_metric) == (("acc", "mcc"), "mcc")


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real data beside the checkout")
def test_real_glue_files_have_no_surprises() -> None:
    rows = {"CoLA": 8551, "SST-2": 67349, "RTE": 2490, "STS-B": 5749}
    for name, count in rows.items():
        task = resolve("--task_name", name)
        reader = RowReader(DATA / "glue" / name / "train.tsv", task, task.train)
        read = LabelReader.of(task)
        labels = [read(reader.label(row.cells), reader.path, row.line) for row in reader]
        assert (len(labels), reader.left_out) == (count, {})
