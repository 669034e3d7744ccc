"""The commands of README.md, as bash reads them there, on generated text and tiny models.

bash tests/run.sh tests/test_chain.py
"""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_runs import ForkedRun

from transformer.checkpoint.directory import read_config
from transformer.modeling import BertForPreTraining

ROOT = Path(__file__).resolve().parents[1]
FILLERS = ["film", "movie", "story", "actor", "plot", "music", "people", "city", "the", "of"]
CUES = {"1": ["good", "great", "large"], "0": ["bad", "dull", "small"]}
# What makes the README's commands small: appended to each, and the last of two equal flags wins.
TRAINING = "--max_seq_length 32 --train_batch_size 16 --learning_rate 1e-3 --log_steps 5"
SMALL = {
    "pregenerate_training_data": "--max_seq_len 32 --num_workers 2",
    "general_distill": TRAINING,
    "data_augmentation": "--N 2 --M 3 --p 0.2",
    "task_distill": f"{TRAINING} --num_train_epochs 8",
    "transformer.distillation.suggest": "--max_seq_length 32",
}
AUGMENTED = ["--num_train_epochs", "4"]  # passes over three times as many rows


def write_task(task_dir: Path, rng: random.Random) -> None:
    """Write a task that is separable: one word of each sentence decides its label."""
    task_dir.mkdir(parents=True)
    for name, rows in (("train.tsv", 320), ("dev.tsv", 80)):
        lines = ["sentence\tlabel"]
        for row in range(rows):
            label = str(row % 2)
            words = [*rng.choices(FILLERS, k=rng.randint(3, 8)), rng.choice(CUES[label])]
            rng.shuffle(words)
            lines.append(f"{' '.join(words)} .\t{label}")
        (task_dir / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def write_glove(path: Path, rng: random.Random) -> None:
    """Write word vectors of five dimensions for words of the toy language."""
    words = FILLERS + CUES["0"] + CUES["1"]
    lines = [" ".join([word, *(f"{rng.gauss(0, 1):.4f}" for _ in range(5))]) for word in words]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def readme_chain() -> str:
    """Return the bash blocks of the sections on the short way and on the four steps."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sections = "".join(
        section
        for section in readme.split("\n## ")
        if section.startswith(("The short way", "The four steps"))
    )
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", sections, re.MULTILINE | re.DOTALL))


@pytest.fixture
def chain_dir(tmp_path: Path, make_checkpoint: Callable[..., Path], corpus_file: Path) -> Path:
    """Run the README's chain in a directory of its own, and return that directory."""
    rng = random.Random(7)
    bert = make_checkpoint("bert", BertForPreTraining)
    config = {**json.loads((bert / "config.json").read_text()), "num_hidden_layers": 2}
    config |= {"hidden_size": 16, "intermediate_size": 24}
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text(json.dumps(config))
    write_task(tmp_path / "glue" / "SST-2", rng)
    write_glove(tmp_path / "glove.txt", rng)

    own_paths = {
        "CORPUS": corpus_file,
        "BERT": bert,
        "GLOVE": "glove.txt",
        "GLUE_DIR": "glue",
        "STUDENT_CONFIG": "student",
        "OUT": "runs",
    }
    script = readme_chain()
    for name, value in own_paths.items():
        script, found = re.subn(rf"^{name}=\S+", f"{name}='{value}'", script, flags=re.MULTILINE)
        assert found == 1, f"the README does not set {name}"
    for name, *arguments in calls_of(script, tmp_path):
        name, *arguments = arguments if name == "-m" else [name, *arguments]
        name = name.removesuffix(".py")
        # Measuring speed takes most of a minute, and has tests of its own.
        arguments = [argument for argument in arguments if argument != "--benchmark"]
        run = ForkedRun(
            [*arguments, *SMALL[name].split(), *(AUGMENTED if "--aug_train" in arguments else [])],
            script=importlib.import_module(name),
            log=tmp_path / "log.txt",
            prepare=lambda: go_to(tmp_path),
        )
        assert run.wait() == [0], run.log.read_text()[-3000:]
    return tmp_path


def calls_of(script: str, directory: Path) -> list[list[str]]:
    """Let bash read the commands; return the words that each call of `python` gets."""
    calls = directory / "calls"
    prelude = """
    set -euo pipefail
    python() { printf '%s\\0' "$#" "$@" >> calls; }
    """
    done = subprocess.run(
        ["bash"], input=prelude + script, cwd=directory, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    words = iter(calls.read_text().split("\0")[:-1])
    return [[next(words) for _ in range(int(count))] for count in words]


def go_to(directory: Path) -> None:
    """Work in a directory, with stdout in a file there."""
    os.chdir(directory)
    file = os.open("stdout.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sys.stdout = os.fdopen(file, "w", buffering=1, encoding="utf-8")


def test_readme_chain_makes_a_student_that_solves_the_task(chain_dir: Path) -> None:
    runs = chain_dir / "runs"
    results = json.loads((runs / "sst2_eval" / "eval_results.json").read_text())
    assert results["teacher_acc"] > 0.95
    short = json.loads((runs / "short_student" / "eval_results.json").read_text())
    assert short["acc"] > 0.95
    assert results["acc"] > 0.95
    student, teacher = read_config(runs / "sst2_tinybert"), read_config(runs / "sst2_teacher")
    assert (student.num_hidden_layers, student.hidden_size) == (2, 16)
    assert (teacher.num_hidden_layers, teacher.hidden_size) == (4, 32)
    # Every stage learned: its loss at the end is below that of the first report.
    for stage in ("general", "sst2_teacher", "sst2_intermediate", "sst2_tinybert"):
        reports = (runs / stage / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in reports if '"loss"' in line]
        assert losses[-1] < losses[0], stage
    augmented = (chain_dir / "glue" / "SST-2" / "train_aug.tsv").read_text().splitlines()
    assert augmented[0] == "sentence\tlabel"
    assert 2 * 320 < len(augmented) - 1 <= 3 * 320
    # The tables of the last command name both models.
    assert "teacher" in (chain_dir / "stdout.txt").read_text()
