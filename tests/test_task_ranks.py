"""The task stage on several ranks, and killed at any instant."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_vocabulary
from toy_runs import ForkedRun, kill_and_resume, metrics_of, write_student

import task_distill
from transformer.checkpoint.directory import read_weights
from transformer.modeling import (
    TinyBertForQuestionAnswering,
    TinyBertForSequenceClassification,
    TinyBertForTokenClassification,
)

STAGES = {
    "finetune": ["--finetune"],
    "layers": [],
    "prediction": ["--pred_distill", "--hard_label_weight", "0.5"],
    "joint": [
        *("--joint", "--hard_label_weight", "0.5", "--hidden_loss", "scaled"),
        *("--attention_loss", "centred", "--bias_correction", "--schedule", "warmup_cosine"),
    ],
}
KILLS_EACH = 5


# Of each task: the teacher's class, and the names of its outputs.
TEACHERS = {
    "SST-2": (TinyBertForSequenceClassification, ("0", "1")),
    "NER": (TinyBertForTokenClassification, ("O", "B-X", "I-X")),
    "SQuAD2": (TinyBertForQuestionAnswering, ("start", "end")),
}


def write_data(directory: Path, rng: random.Random, name: str, count: int) -> None:
    """Write random texts as a file of every task."""
    texts = [rng.choices(tiny_vocabulary()[5:], k=rng.randint(1, 12)) for _ in range(count)]
    rows = [f"{' '.join(words)}\t{row % 2}\n" for row, words in enumerate(texts)]
    (directory / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows), encoding="utf-8")
    tags = [[rng.choice(["O", "O", "B-X", "I-X"]) for _ in words] for words in texts]
    lines = [
        "".join(f"{word}\t{tag}\n" for word, tag in zip(*pair, strict=True))
        for pair in zip(texts, tags, strict=True)
    ]
    (directory / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    asked = []
    for row, words in enumerate(texts):
        context = " ".join(words * 4)
        held = [{"text": words[-1], "answer_start": context.rindex(words[-1])}] * (row % 3 > 0)
        qas = [{"id": f"{row}", "question": words[0], "answers": held}]
        asked.append({"context": context, "qas": qas})
    content = json.dumps({"data": [{"paragraphs": asked}]})
    (directory / f"{name}-v2.0.json").write_text(content, encoding="utf-8")


@pytest.fixture
def arguments(
    tmp_path: Path, vocab_file: Path, make_checkpoint, tiny_config
) -> Callable[..., list[str]]:
    """Return a function that makes the command line of a stage; 37 rows are 5 steps an epoch."""
    rng = random.Random(11)
    data = tmp_path / "data"
    data.mkdir()
    for name, count in (("train", 37), ("dev", 21)):
        write_data(data, rng, name, count)
    teachers = {
        task: make_checkpoint(f"teacher{task}", kind, id2label=dict(enumerate(names)))
        for task, (kind, names) in TEACHERS.items()
    }
    student = write_student(tmp_path / "student", tiny_config)
    shutil.copy(vocab_file, student)

    def make(
        stage: str,
        output_dir: Path,
        *more: str,
        batch: int = 8,
        dropout: bool,
        task: str = "SST-2",
    ) -> list[str]:
        flags = {
            "--data_dir": data,
            "--task_name": task,
            "--student_model": student,
            "--student_dropout": 0.1 if dropout else 0,
            "--output_dir": output_dir,
            "--max_seq_length": 24,
            "--train_batch_size": batch,
            "--num_train_epochs": 2.6,
            "--learning_rate": 1e-3,
            "--precision": "fp32",
            "--log_steps": 3,
            "--eval_step": 4,
            "--save_steps": 2,
            "--num_workers": 1,
        }
        if stage != "finetune":
            flags["--teacher_model"] = teachers[task]
        if task == "SQuAD2":
            flags |= {"--max_query_length": 4, "--doc_stride": 8}
        words = [str(word) for pair in flags.items() for word in pair]
        return [*words, *STAGES[stage], "--no_cuda", *more]

    return make


def finish(run: ForkedRun) -> None:
    codes = run.wait()
    assert codes == [0] * len(codes), run.log.read_text()


def results_of(output_dir: Path) -> dict[str, float]:
    results = json.loads((output_dir / "eval_results.json").read_text(encoding="utf-8"))
    return {name: value for name, value in results.items() if isinstance(value, float)}


RANKED = [*((stage, "SST-2") for stage in STAGES)]
RANKED += [("finetune", "NER"), ("joint", "NER"), ("joint", "SQuAD2"), ("prediction", "SQuAD2")]


@pytest.mark.parametrize(("stage", "task"), RANKED)
def test_two_ranks_equal_one_with_twice_the_batch(stage, task, arguments, tmp_path):
    """The last batch of an epoch has five rows, and the dev set an odd number."""
    one, two, log = tmp_path / "one", tmp_path / "two", tmp_path / "log"
    argv = arguments(stage, one, dropout=False, task=task)
    finish(ForkedRun(argv, log=log, script=task_distill))
    argv = arguments(stage, two, batch=4, dropout=False, task=task)
    finish(ForkedRun(argv, log=log, script=task_distill, ranks=2))
    for a, b in zip(metrics_of(one), metrics_of(two), strict=True):
        assert b == pytest.approx(a, rel=5e-4, abs=1e-6)
    assert results_of(two) == pytest.approx(results_of(one), rel=5e-4)
    ours, theirs = read_weights(one), read_weights(two)
    for name, tensor in ours.items():
        assert np.allclose(theirs[name], tensor, atol=3e-4), name


KILLED = [("joint", 1, "SST-2"), ("prediction", 1, "SST-2"), ("prediction", 2, "SST-2")]
KILLED += [("joint", 1, "NER"), ("prediction", 1, "SQuAD2")]


@pytest.mark.parametrize(("stage", "ranks", "task"), KILLED)
def test_killed_at_random_instants(stage, ranks, task, arguments, tmp_path):
    """Also while data is tokenised, and while the teacher is asked for its logits."""
    expected, output_dir, log = tmp_path / "expected", tmp_path / "killed", tmp_path / "log"
    options = {"log": log, "script": task_distill, "ranks": ranks}
    begun = time.monotonic()
    cache = ["--cache_dir", str(tmp_path / "cache")]
    argv = arguments(stage, expected, *cache, dropout=True, task=task)
    finish(ForkedRun(argv, **options))
    duration = time.monotonic() - begun

    cache = ["--cache_dir", str(tmp_path / "other_cache")]
    argv = arguments(stage, output_dir, "--resume", *cache, dropout=True, task=task)
    kill_and_resume(
        lambda: ForkedRun(argv, **options),
        lambda: assert_same_result(output_dir, expected),
        output_dir,
        kills=KILLS_EACH,
        duration=duration,
        seed=f"{stage} {ranks} {task}",
    )


def assert_same_result(output_dir: Path, expected: Path) -> None:
    for name in ("model.safetensors", "config.json", "eval_results.json", "eval_results.txt"):
        assert (output_dir / name).read_bytes() == (expected / name).read_bytes(), name
    assert metrics_of(output_dir) == metrics_of(expected)
    assert not list(output_dir.glob(".*.tmp")), "a killed save left its file behind"
    assert not (output_dir / "training_state.pt").exists(), "a run that is done leaves no state"


def test_patience_ends_all_ranks_at_one_step(arguments, tmp_path):
    """At a rate of 0 the first evaluation stays the best; two later, at step 12 of 13, it ends."""
    output_dir, log = tmp_path / "out", tmp_path / "log"
    argv = arguments("finetune", output_dir, "--patience", "2", batch=4, dropout=False)
    argv += ["--learning_rate", "0"]
    finish(ForkedRun(argv, log=log, script=task_distill, ranks=2))
    done = json.loads((output_dir / "args.json").read_text())["finished"]
    assert done["step"] == 12
    results = json.loads((output_dir / "eval_results.json").read_text())
    assert results["global_step"] == 4
