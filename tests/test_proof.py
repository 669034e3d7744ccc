"""The proof table of computed students, on a toy task: pytest tests/test_proof.py"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import proof
import pytest
from test_task_distill import STUDENT_SIZES, TEACHER_SIZES, save_random, write_data

from transformer.files import write_json
from transformer.modeling import BertForPreTraining

# What the toy models want of each script, which the proof does not ask for.
SMALLER = {
    "pregenerate_training_data.py": ["--max_seq_len", "32"],
    "general_distill.py": ["--precision", "fp32", "--max_seq_length", "32"],
    "data_augmentation.py": ["--precision", "fp32"],
    "task_distill.py": ["--precision", "fp32", "--max_seq_length", "32"],
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Run the scripts in this process, and list what was run."""
    made = []

    def run_here(script: str, arguments: Sequence[object], threads: int) -> None:
        made.append((script, list(map(str, arguments))))
        module = importlib.import_module(script.removesuffix(".py"))
        module.main([*made[-1][1], *SMALLER[script]])

    monkeypatch.setattr(proof, "run_script", run_here)
    return made


def prepare(directory: Path, vocab_file: Path) -> list[str]:
    """Write a toy BERT, a student's configuration and data; return the flags that name them."""
    write_data(directory / "glue")
    save_random(directory / "bert", BertForPreTraining, vocab_file, **TEACHER_SIZES)
    config = json.loads((directory / "bert" / "config.json").read_text()) | STUDENT_SIZES
    (directory / "tiny").mkdir()
    write_json(directory / "tiny" / "config.json", config)
    command = ["--bert_model", str(directory / "bert"), "--glue_dir", str(directory / "glue")]
    command += ["--work_dir", str(directory / "work"), "--students", str(directory / "tiny")]
    return [*command, "--threads", "1"]


def args_of(directory: Path) -> dict:
    return json.loads((directory / "args.json").read_text())


def test_students_are_made_once_and_told_in_a_table(
    tmp_path: Path, vocab_file: Path, calls: list, capsys: pytest.CaptureFixture
) -> None:
    command = [*prepare(tmp_path, vocab_file), "--tasks", "STS-B", "--rows", "90"]
    proof.main([*command, "--", "--learning_rate", "1e-3"])
    assert [script for script, _ in calls] == [
        *("data_augmentation.py", "task_distill.py", "task_distill.py")
    ]
    runs = tmp_path / "work/STS-B/students/tiny-rows90_recombine2-learning_rate_1e-3"
    assert args_of(runs / "seed_42")["learning_rate"] == 1e-3
    rows = (tmp_path / "work/STS-B/data_rows90_recombine2/train.tsv").read_text().splitlines()
    assert rows == (tmp_path / "glue/STS-B/train.tsv").read_text().splitlines()[:91]

    proof.main([*command, "--", "--learning_rate", "1e-3"])
    assert len(calls) == 3
    proof.main([*command, "--seeds", "42", "43", "--", "--learning_rate", "1e-3"])
    assert len(calls) == 4

    for seed, score in ((42, 0.5), (43, 0.6)):
        results = json.loads((runs / f"seed_{seed}/eval_results.json").read_text())
        assert {"corr", "teacher_corr"} <= set(results)
        write_json(runs / f"seed_{seed}/eval_results.json", {"corr": score, "teacher_corr": 0.8})
        reports = (runs / f"seed_{seed}/metrics.jsonl").read_text().splitlines()
        assert json.loads(reports[0])["step"] == 0 and "eval_corr" in json.loads(reports[0])
        first = {**json.loads(reports[0]), "eval_corr": 0.25}
        (runs / f"seed_{seed}/metrics.jsonl").write_text("\n".join([json.dumps(first), *reports]))
    capsys.readouterr()
    proof.main([*command, "--", "--learning_rate", "1e-3"])
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]]
    assert cells[:2] == ["STS-B", runs.name]
    made = (tmp_path / "work/STS-B/data_rows90_recombine2/train_aug.tsv").read_text()
    assert cells[2:4] == ["2", str(len(made.splitlines()) - 1)]
    # 50 and 60 of 80: 62.5% and 75% kept; the deviations are those of n - 1.
    assert cells[4:] == ["80.0", "25.0", "55.0 ± 7.1", "68.8% ± 8.8", "", "", ""]
    assert (tmp_path / "work/table.md").read_text().splitlines()[-1].split("|")[
        1
    ].strip() == "STS-B"


def test_other_ways_begin_on_general_text(
    tmp_path: Path, vocab_file: Path, calls: list, capsys: pytest.CaptureFixture
) -> None:
    command = [*prepare(tmp_path, vocab_file), "--tasks", "SST-2"]
    (tmp_path / "corpus.txt").write_text("a fine film .\na long day .\n\nthe end .\nno .\n" * 30)
    command += ["--corpus", str(tmp_path / "corpus.txt"), "--ways", "general", "chain"]
    proof.main(command)
    assert [script for script, _ in calls] == [
        *("task_distill.py", "pregenerate_training_data.py", "general_distill.py"),
        *("task_distill.py", "data_augmentation.py", "general_distill.py"),
        *("task_distill.py", "task_distill.py"),
    ]
    general, chain = tmp_path / "work/general", tmp_path / "work/SST-2"
    begun = {name: args_of(general / f"tiny-{name}") for name in ("computed", "random")}
    assert begun["computed"]["init_from_teacher"] == "uniform"
    assert begun["random"]["init_from_teacher"] is None
    made = args_of(chain / "students/tiny-general-rows20000_recombine0/seed_42")
    assert made["student_model"] == str(general / "tiny-computed")
    layers = chain / "layers/tiny-chain-rows20000_N1/seed_42"
    assert args_of(layers)["student_model"] == str(general / "tiny-random")
    assert not args_of(layers)["pred_distill"]
    made = args_of(chain / "students/tiny-chain-rows20000_N1/seed_42")
    assert (made["student_model"], made["aug_train"]) == (str(layers), True)

    count = len(calls)
    capsys.readouterr()
    proof.main(command)
    assert len(calls) == count
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [row[6].strip() for row in rows] == ["", ""], "neither was computed from this teacher"


def test_what_was_measured_is_told(tmp_path: Path) -> None:
    assert proof.read_measured(tmp_path) == ["", "", ""]
    (tmp_path / proof.DONE).touch()
    figures = {
        "ratios": {proof.SPEED: 7.26},
        "export_ratios": {"student_int8": {proof.SPEED: 9.02}},
        "student_int8": {"score": 0.8125},
    }
    write_json(tmp_path / "benchmark.json", figures)
    assert proof.read_measured(tmp_path) == ["7.3x", "81.2", "9.0x"]


@pytest.mark.parametrize("way", ["general", "chain"])
def test_other_ways_need_a_corpus(
    way: str, tmp_path: Path, vocab_file: Path, calls: list, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        proof.main([*prepare(tmp_path, vocab_file), "--ways", "short", way])
    assert (end.value.code, calls) == (2, [])
    assert "need --corpus TEXT" in capsys.readouterr().err


def test_pairs_are_recombined_and_single_texts_are_not() -> None:
    pairs = {name for name in proof.RECIPES if len(proof.GLUE[name].text) == 2}
    assert {name for name, recipe in proof.RECIPES.items() if recipe.recombine} == pairs


def test_a_missing_student_is_found_before_a_teacher_is_trained(
    tmp_path: Path, calls: list, capsys: pytest.CaptureFixture
) -> None:
    write_data(tmp_path / "glue")
    command = ["--bert_model", "bert", "--glue_dir", str(tmp_path / "glue")]
    command += ["--work_dir", str(tmp_path / "work"), "--students", str(tmp_path / "nowhere")]
    with pytest.raises(SystemExit) as end:
        proof.main(command)
    assert (end.value.code, calls) == (2, [])
    missing = tmp_path / "nowhere" / "config.json"
    assert capsys.readouterr().err == f"proof.py: error: {missing}: no such file\n"
