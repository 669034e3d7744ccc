"""Texts without labels as what is learnt from: bash tests/run.sh tests/test_transfer.py"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_vocabulary
from toy_runs import write_student

import task_distill
from transformer.checkpoint.directory import read_weights
from transformer.files import UserError
from transformer.modeling import TinyBertForSequenceClassification


@pytest.fixture
def texts() -> list[str]:
    rng = random.Random(4)
    return [" ".join(rng.choices(tiny_vocabulary()[5:], k=rng.randint(2, 9))) for _ in range(40)]


@pytest.fixture
def run(
    tmp_path: Path, vocab_file: Path, make_checkpoint, tiny_config, texts: list[str]
) -> Callable[..., Path]:
    """Return `run(name, *flags)`: a short training in tmp_path / name, on films called good or not.

    The data directory holds 40 training and 20 dev rows.
    """
    for name, rows in (("train", texts), ("dev", texts[:20])):
        lines = [f"{text}\t{('bad', 'good')[n % 2]}" for n, text in enumerate(rows)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    names = {"id2label": {0: "bad", 1: "good"}}
    teacher = make_checkpoint("teacher", TinyBertForSequenceClassification, **names)
    student = write_student(tmp_path / "student", tiny_config)
    shutil.copy(vocab_file, student)
    shared = ["--data_dir", tmp_path, "--task_name", "films", "--text_columns", "text"]
    shared += ["--label_column", "label", "--student_model", student, "--teacher_model", teacher]
    shared += ["--max_seq_length", 16, "--num_train_epochs", 2, "--learning_rate", "1e-3"]
    shared += ["--precision", "fp32", "--num_workers", 1, "--train_batch_size", 8]

    def run_stage(name: str, *flags: object) -> Path:
        out = tmp_path / name
        task_distill.main([*map(str, [*shared, "--output_dir", out, *flags])])
        return out

    return run_stage


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = read_weights(one), read_weights(other)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


FILES = {
    "plain.txt": lambda texts: "\n".join(texts) + "\n",
    "more.tsv": lambda texts: "id\ttext\n" + "".join(f"{n}\t{t}\n" for n, t in enumerate(texts)),
    "others.csv": lambda texts: "text,label\n" + "".join(f'"{t}",?\n' for t in texts),
    "lines.jsonl": lambda texts: "".join(json.dumps({"text": t}) + "\n\n" for t in texts),
}


@pytest.mark.parametrize("stage", [["--pred_distill"], [], ["--joint"]])
def test_the_teacher_alone_says_what_is_learnt(stage, run, texts, tmp_path) -> None:
    """The same texts with and without labels, and with wrong ones, make the same student."""
    expected = run("labelled", *stage)
    for name, content in (
        FILES.items() if stage == ["--pred_distill"] else [("plain.txt", FILES["plain.txt"])]
    ):
        (tmp_path / name).write_text(content(texts), encoding="utf-8")
        out = run(f"from {name}", *stage, "--transfer_file", tmp_path / name)
        assert_same(out, expected)
    results = json.loads((out / "eval_results.json").read_text())
    assert results == json.loads((expected / "eval_results.json").read_text())


def test_a_teacher_knows_the_labels_where_there_is_no_training_file(run, texts, tmp_path) -> None:
    expected = run("labelled", "--pred_distill")
    (tmp_path / "train.tsv").unlink()
    (tmp_path / "more.txt").write_text("\n".join([texts[0], "", " ", *texts[1:]]))
    out = run("unlabelled", "--pred_distill", "--transfer_file", tmp_path / "more.txt")
    assert_same(out, expected)
    again = run(
        "unlabelled", "--pred_distill", "--transfer_file", tmp_path / "more.txt", "--resume"
    )
    assert_same(again, expected)
    (tmp_path / "more.txt").write_text("\n".join(texts[1:]))
    with pytest.raises(UserError, match="--resume: .*data was"):
        run("unlabelled", "--pred_distill", "--transfer_file", tmp_path / "more.txt", "--resume")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--transfer_file", "{}/no.txt"], "--transfer_file .*no.txt: no such file"),
        (["--finetune", "--transfer_file", "{}/dev.tsv"], "it is for distillation; leave"),
        (["--hard_labels", "--transfer_file", "{}/dev.tsv"], "it is for distillation; leave"),
        (["--hard_label_weight", "1", "--transfer_file", "{}/dev.tsv"], "hard_label_weight out"),
        (["--aug_train", "--transfer_file", "{}/dev.tsv"], "two sets to learn from; give one"),
        (["--transfer_file", "{}/two.tsv"], "no column 'text' .*the file has 'one', 'two'"),
        (["--transfer_file", "{}/x.pdf"], "unknown kind of file; allowed are .tsv"),
        (["--transfer_file", "{}/empty.txt"], "the file is empty"),
        (["--transfer_file", "{}/short.jsonl"], "66% of the rows|67% of the rows"),
        (["--output_dir", "{}", "--transfer_file", "{}/dev.tsv"], "overwritten by the run"),
        (
            ["--text_columns", "text", "other", "--transfer_file", "{}/pairs.txt"],
            "a line of plain text is one text, but films has pairs; .* columns text and other",
        ),
    ],
)
def test_mistakes(flags, told, run, tmp_path) -> None:
    for name, content in {
        "two.tsv": "one\ttwo\na\tb\n",
        "x.pdf": "a\n",
        "empty.txt": "\n\n",
        "pairs.txt": "a\n",
        "short.jsonl": '{"text": "a"}\n{"txt": "b"}\n{"text": " "}\n',
    }.items():
        (tmp_path / name).write_text(content)
    stage = [] if flags[0] == "--finetune" else ["--pred_distill"]
    with pytest.raises(UserError, match=told) as error:
        run("mistake", *stage, *(flag.format(tmp_path) for flag in flags))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "mistake").glob("*.safetensors"))
