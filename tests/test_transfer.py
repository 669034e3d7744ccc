"""Texts without labels, and answers without a teacher: bash tests/run.sh tests/test_transfer.py"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_vocabulary
from scipy.special import softmax
from toy_runs import ForkedRun, write_student

import task_distill
from transformer.checkpoint.directory import read_weights
from transformer.files import UserError
from transformer.modeling import (
    TinyBertForSequenceClassification,
    TinyBertForTokenClassification,
)


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

    run_stage.shared = shared
    return run_stage


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = read_weights(one), read_weights(other)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def assert_close(one: Path, other: Path) -> None:
    ours, theirs = read_weights(one), read_weights(other)
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], atol=3e-4, err_msg=name)


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


def test_a_teacher_tags_words_without_tags(run, texts, make_checkpoint, tmp_path) -> None:
    names = {"id2label": dict(enumerate(("O", "B-X", "I-X")))}
    teacher = make_checkpoint("tagger", TinyBertForTokenClassification, **names)
    sentences = [text.split() for text in texts]
    for name in ("train.txt", "dev.txt"):
        words = [[f"{w} {('O', 'B-X', 'I-X')[len(w) % 3]}" for w in each] for each in sentences]
        (tmp_path / name).write_text("".join("\n".join(lines) + "\n\n" for lines in words))
    flags = ["--pred_distill", "--task_name", "ner", "--text_columns", "0", "--label_column", "-1"]
    flags += ["--teacher_model", str(teacher)]
    expected = run("tagged", *flags)
    (tmp_path / "words.txt").write_text("".join("\n".join(each) + "\n\n" for each in sentences))
    assert_same(run("untagged", *flags, "--transfer_file", tmp_path / "words.txt"), expected)


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


# ----------------------------------------------------------------- answers in place of a teacher


@pytest.fixture
def taught(run, tmp_path) -> tuple[Path, np.ndarray]:
    """Return a student of a teacher model, and the logits that it was taught, (40, 2)."""
    out = run("labelled", "--pred_distill")
    (logits,) = (tmp_path / ".cache").glob("logits-*.npy")
    return out, np.load(logits)


NO_MODEL = ("--pred_distill", "--teacher_model", "nowhere/at/all")


def test_answers_teach_as_the_model_does(run, texts, taught, tmp_path, caplog) -> None:
    expected, logits = taught
    np.save(tmp_path / "answers.npy", logits)
    out = run("npy", *NO_MODEL, "--teacher_logits", tmp_path / "answers.npy")
    assert_same(out, expected)
    labels = np.arange(40) % 2  # as in the training file
    accuracy = (logits.argmax(1) == labels).mean()
    assert f"for 40 labelled training rows: acc {accuracy:.4f}" in caplog.text

    lines = [f"{b}\t{a}\t{text}" for text, (a, b) in zip(texts, logits.tolist(), strict=True)]
    (tmp_path / "answers.tsv").write_text("\n".join(["good\tbad\ttext", *lines]))
    out = run("tsv", *NO_MODEL, "--teacher_logits", tmp_path / "answers.tsv")
    assert_same(out, expected)

    (tmp_path / "train.tsv").unlink()  # labels are known by their columns, and texts need none
    (tmp_path / "more.txt").write_text("\n".join(texts))
    more = ("--transfer_file", tmp_path / "more.txt")
    answers = ("--teacher_logits", tmp_path / "answers.npy", tmp_path / "answers.tsv")
    (tmp_path / "answers.tsv").write_text("\n".join(["bad\tgood\ttext", *lines]))  # the other way
    np.save(tmp_path / "answers.npy", 2 * logits - logits[:, ::-1])
    out = run("both", *NO_MODEL, *more, *answers)
    assert_close(out, expected)


def test_probabilities_teach_the_same(run, taught, tmp_path) -> None:
    expected, logits = taught
    np.save(tmp_path / "answers.npy", softmax(logits, axis=1))
    out = run("soft", *NO_MODEL, "--teacher_probabilities", tmp_path / "answers.npy")
    assert_close(out, expected)


def test_other_answers_are_another_run(run, taught, tmp_path) -> None:
    flags = *NO_MODEL, "--teacher_logits", tmp_path / "answers.npy"
    np.save(tmp_path / "answers.npy", taught[1])
    run("resumed", *flags)
    run("resumed", *flags, "--resume")
    np.save(tmp_path / "answers.npy", -taught[1])
    with pytest.raises(UserError, match="--resume: .*teacher answers was .'logits "):
        run("resumed", *flags, "--resume")


def test_answers_on_two_ranks(run, taught, tmp_path) -> None:
    np.save(tmp_path / "answers.npy", taught[1])
    flags = [*NO_MODEL, "--teacher_logits", tmp_path / "answers.npy", "--no_cuda"]
    flags = [*map(str, [*run.shared, *flags])]
    log, four = tmp_path / "log", ["--train_batch_size", "4"]
    two = ForkedRun(
        [*flags, *four, "--output_dir", str(tmp_path / "two")],
        log=log,
        script=task_distill,
        ranks=2,
    )
    assert two.wait() == [0, 0], log.read_text()
    assert_close(tmp_path / "two", taught[0])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([*NO_MODEL, "--teacher_logits", "{}/none.npy"], "--teacher_logits .*none.npy: no such"),
        ([*NO_MODEL, "--teacher_logits", "{}/dev.npy", "{}/x.pt"], "x.pt: unknown kind of file"),
        (["--teacher_logits", "{}/dev.npy"], "belongs to --pred_distill: layers are learnt"),
        (["--finetune", "--teacher_probabilities", "{}/dev.npy"], "belongs to --pred_distill"),
        (
            [*NO_MODEL, "--hard_labels", "--teacher_logits", "{}/dev.npy"],
            "belongs to --pred_distill",
        ),
        (
            [*NO_MODEL, "--teacher_logits", "{}/dev.npy", "--teacher_probabilities", "{}/dev.npy"],
            "give one of them",
        ),
        (
            [*NO_MODEL, "--teacher_probabilities", "{}/dev.npy", "--prediction_loss", "mse"],
            "mse compares logits, which probabilities are not; give ce or kl",
        ),
        (
            [*NO_MODEL, "--regression", "--teacher_probabilities", "{}/dev.npy"],
            "a score has no probability; give the scores by --teacher_logits",
        ),
        ([*NO_MODEL, "--teacher_logits", "{}/dev.npy"], "holds 20 answers; .* has 40 rows: one"),
        (
            [*NO_MODEL, "--teacher_logits", "{}/out/a.npy", "--output_dir", "{}/out"],
            "out holds files",
        ),
    ],
)
def test_mistakes_about_answers(flags, told, run, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("dev.npy", "out/a.npy"):
        np.save(tmp_path / name, np.ones((20, 2)))
    (tmp_path / "x.pt").write_text("x")
    with pytest.raises(UserError, match=told) as error:
        run("mistake", *(flag.format(tmp_path) for flag in flags))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mistake" / "args.json").exists()
