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


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Run the scripts in this process, and list what was run."""
    made = []

    def run_here(script: str, arguments: Sequence[object], threads: int) -> None:
        made.append((script, list(map(str, arguments))))
        module = importlib.import_module(script.removesuffix(".py"))
        small = ["--precision", "fp32"]
        small += ["--max_seq_length", "32"] if script == "task_distill.py" else []
        module.main([*made[-1][1], *small])

    monkeypatch.setattr(proof, "run_script", run_here)
    return made


def test_students_are_made_once_and_told_in_a_table(
    tmp_path: Path, vocab_file: Path, calls: list, capsys: pytest.CaptureFixture
) -> None:
    write_data(tmp_path / "glue")
    save_random(tmp_path / "bert", BertForPreTraining, vocab_file, **TEACHER_SIZES)
    config = json.loads((tmp_path / "bert" / "config.json").read_text()) | STUDENT_SIZES
    (tmp_path / "tiny").mkdir()
    write_json(tmp_path / "tiny" / "config.json", config)
    command = ["--bert_model", str(tmp_path / "bert"), "--glue_dir", str(tmp_path / "glue")]
    command += ["--work_dir", str(tmp_path / "work"), "--students", str(tmp_path / "tiny")]
    command += ["--tasks", "STS-B", "--threads", "1", "--rows", "90"]
    proof.main([*command, "--", "--learning_rate", "1e-3"])
    assert [script for script, _ in calls] == [
        *("data_augmentation.py", "task_distill.py", "task_distill.py")
    ]
    runs = tmp_path / "work/STS-B/students/tiny-rows90_recombine2-learning_rate_1e-3"
    assert json.loads((runs / "seed_42/args.json").read_text())["learning_rate"] == 1e-3
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
    assert cells[4:] == ["80.0", "25.0", "55.0 ± 7.1", "68.8% ± 8.8"]
    assert (tmp_path / "work/table.md").read_text().splitlines()[-1].split("|")[
        1
    ].strip() == "STS-B"


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
