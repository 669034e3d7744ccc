"""The scripts as a user meets them: help, and one clear line for each mistake.

bash tests/run.sh tests/test_cli.py
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from script_runs import (
    ARGUMENTS,
    ROOT,
    SCRIPTS,
    Finished,
    augmentation_arguments,
    pregenerate_arguments,
    task_arguments,
)

from transformer.modeling import TinyBertForPreTraining


def assert_told(end: Finished, script: str, *parts: str) -> None:
    """Check that the user is told of a mistake: exit code 2, one line that names `parts`."""
    assert end.code == 2, end.stderr
    assert "Traceback" not in end.stderr
    lines = [line for line in end.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, end.stderr
    assert lines[0].startswith(f"{script}: error: ")
    assert end.stderr.splitlines()[-1] == lines[0]
    for part in parts:
        assert part in lines[0]


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_ends_with_examples_that_paste(script: str) -> None:
    parser = importlib.import_module(script.removesuffix(".py")).build_parser()
    assert parser.format_help().endswith(f"{parser.epilog}\n")
    assert all(len(line) <= 100 for line in parser.epilog.splitlines())
    lines = parser.epilog.replace("\\\n", "").splitlines()
    examples = [shlex.split(line) for line in lines if line.startswith("  ")]
    assert len(examples) >= 2
    for words in examples:
        assert words[0] in ("python", "torchrun")
        parser.parse_args(words[words.index(script) + 1 :])


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_tells_a_default_once_and_where_results_land(script: str) -> None:
    parser = importlib.import_module(script.removesuffix(".py")).build_parser()
    text = " ".join(parser.format_help().split())
    assert "(default: None)" not in text
    described = text.partition("options: ")[2].split(" --")
    assert [flag for flag in described if flag.count("default") > 1] == []
    place = "train_aug.tsv" if script == "data_augmentation.py" else "OUTPUT_DIR"
    assert place in parser.epilog


HELP = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv, sys.path[0] = [script, "--help"], script.rpartition("/")[0]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print("exit code:", end.code or 0)
"""


def test_help_works_from_anywhere(tmp_path: Path) -> None:
    """In one process of its own: importing everything takes seconds, in each."""
    end = subprocess.run(
        [sys.executable, "-c", HELP, *(str(ROOT / script) for script in SCRIPTS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert end.returncode == 0, end.stderr
    shown = end.stdout.split("exit code: 0\n")
    assert shown.pop() == ""
    for script, text in zip(SCRIPTS, shown, strict=True):
        assert text.startswith(f"usage: {script}")
    assert end.stderr == ""
    assert list(tmp_path.iterdir()) == [], "importing a script writes files"


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_and_unknown_flags_are_told(script: str, run: Callable[..., Finished]) -> None:
    assert_told(run(script), script, "required")
    end = run(script, "--no_such_flag", "1")
    assert end.code == 2
    assert "Traceback" not in end.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_setting_itself_works(
    script: str, setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    end = run(script, *ARGUMENTS[script](setting))
    assert end.code == 0, end.stderr
    assert "error" not in end.stderr


@pytest.mark.parametrize(
    "script", ["pregenerate_training_data.py", "general_distill.py", "task_distill.py"]
)
def test_output_directory_with_files_is_refused(
    script: str, setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    setting["out"].mkdir()
    (setting["out"] / "thesis.txt").write_text("mine")
    end = run(script, *ARGUMENTS[script](setting))
    assert_told(end, script, str(setting["out"]), "--overwrite_output_dir")
    assert (setting["out"] / "thesis.txt").read_text() == "mine"


def test_augmented_file_is_not_replaced_unasked(
    setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    (setting["task"] / "train_aug.tsv").write_text("mine")
    end = run("data_augmentation.py", *augmentation_arguments(setting))
    assert_told(end, "data_augmentation.py", "train_aug.tsv", "--overwrite_output")
    assert (setting["task"] / "train_aug.tsv").read_text() == "mine"


# --- models that do not fit ----------------------------------------------------------------------


@pytest.mark.parametrize("script", ["general_distill.py", "task_distill.py"])
def test_other_vocabulary_is_told(
    script: str, setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    vocab = setting["student"] / "vocab.txt"
    tokens = vocab.read_text(encoding="utf-8").splitlines()
    tokens[-1], tokens[-2] = tokens[-2], tokens[-1]
    vocab.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    assert_told(run(script, *ARGUMENTS[script](setting)), script, "vocab")


@pytest.mark.parametrize("script", ["general_distill.py", "task_distill.py"])
def test_other_number_of_heads_is_told(
    script: str, setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    config_file = setting["student"] / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config_file.write_text(json.dumps({**config, "num_attention_heads": 8}), encoding="utf-8")
    told = ("8", "4", "--attention_loss relation")
    assert_told(run(script, *ARGUMENTS[script](setting)), script, *told)


@pytest.mark.parametrize("script", ["general_distill.py", "task_distill.py"])
def test_depth_that_does_not_divide_is_told(
    script: str,
    setting: dict[str, Path],
    make_checkpoint: Callable[..., Path],
    run: Callable[..., Finished],
) -> None:
    student = make_checkpoint("three_layers", TinyBertForPreTraining, num_hidden_layers=3)
    end = run(script, *ARGUMENTS[script](setting, student_model=student))
    assert_told(end, script, "--layer_mapping", "3 student layers")


def test_teacher_of_other_labels_is_told(
    setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    config_file = setting["teacher"] / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    labels = {"id2label": {0: "ham", 1: "spam"}, "label2id": {"ham": 0, "spam": 1}}
    config_file.write_text(json.dumps({**config, **labels}), encoding="utf-8")
    end = run("task_distill.py", *task_arguments(setting))
    assert_told(end, "task_distill.py", "ham", "spam", "0", "1")


def test_teacher_without_classifier_is_told(
    setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    end = run("task_distill.py", *task_arguments(setting, teacher_model=setting["bert"]))
    assert_told(end, "task_distill.py", "bert", "--finetune")


def test_model_without_masked_lm_head_is_told(
    setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    arguments = augmentation_arguments(setting, pretrained_bert_model=setting["teacher"])
    assert_told(run("data_augmentation.py", *arguments), "data_augmentation.py", "--glove_only")


def test_full_disk_is_one_line(tmp_path: Path, setting: dict[str, Path]) -> None:
    """A file size limit stands for the full disk: writing fails in the middle of the run."""
    command = [sys.executable, ROOT / "pregenerate_training_data.py"]
    command += map(str, pregenerate_arguments(setting))
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; trap "" XFSZ; exec "$@"', "bash", *map(str, command)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert limited.returncode == 3, limited.stderr
    assert "Traceback" not in limited.stderr
    assert "pregenerate_training_data.py: error: " in limited.stderr
    assert not (setting["out"] / "epoch_0.json").exists()
