"""data_augmentation.py as a user runs it. Run: pytest tests/test_data_augmentation.py"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import COMMON_WORDS, tiny_vocabulary
from safetensors.torch import load_file, save_file

import data_augmentation
from transformer.augmentation import rows as augmented_rows
from transformer.augmentation.parts import Parts, beside
from transformer.files import UserError
from transformer.modeling import BertForMaskedLM, TinyBertForSequenceClassification
from transformer.runtime.output_dir import RunLock
from transformer.runtime.script import run_script
from transformer.tasks.kinds import REGRESSION
from transformer.tasks.table import TASKS

RARE = ["zebra", "Horse", "quickly", "unfathomable"]  # of several pieces in the tiny vocabulary
Run = Callable[..., Path]


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(COMMON_WORDS + RARE, k=rng.randint(1, 9))) + " ."


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    words = [word.lower() for word in RARE] + COMMON_WORDS + ["zorse", "donkey", "slowly"]
    vectors = np.random.default_rng(0).normal(size=(len(words), 5))
    lines = [
        f"{word} {' '.join(f'{x:.4f}' for x in row)}\n"
        for word, row in zip(words, vectors, strict=True)
    ]
    path = tmp_path / "glove.5d.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path, glove: Path, make_checkpoint) -> Run:
    """Return `run(rows, *flags)`: augment a file of SST-2 in this process, return the output."""
    model = make_checkpoint("mlm", BertForMaskedLM)

    def run(content: str, *flags: object, task: str = "SST-2", name: str = "train.tsv") -> Path:
        directory = tmp_path / "glue" / (TASKS[key].directory if (key := _key(task)) else task)
        directory.mkdir(parents=True, exist_ok=True)
        source, wanted = directory / name, content.encode("utf-8")
        # subtle: ranks share the file; one must not find it empty because another writes it anew.
        if not source.exists() or source.read_bytes() != wanted:
            source.write_bytes(wanted)
        arguments = {
            "--pretrained_bert_model": model,
            "--glove_embs": glove,
            "--glue_dir": tmp_path / "glue",
            "--task_name": task,
            "--cache_dir": tmp_path / "cache",
        }
        data_augmentation.main([str(x) for x in (*_flat(arguments, flags), "--no_cuda", *flags)])
        return source.with_name(name.replace("train.", "train_aug."))

    return run


def _key(task: str) -> str:
    key = task.lower().replace("-", "")
    return key if key in TASKS else ""


def _flat(arguments: dict[str, Path], flags: tuple[object, ...]) -> list[object]:
    left_out = {"--glove_only": "--pretrained_bert_model", "--mlm_only": "--glove_embs"}
    without = {left_out[flag] for flag in flags if flag in left_out}
    pairs = ([name, value] for name, value in arguments.items() if name not in without)
    return [part for pair in pairs for part in pair]


def sst2(count: int, seed: int = 1) -> str:
    rng = random.Random(seed)
    return "sentence\tlabel\n" + "".join(f"{sentence(rng)}\t{i % 2}\n" for i in range(count))


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_rows_are_followed_by_their_variants(run: Run) -> None:
    content = sst2(12)
    lines = lines_of(run(content, "--N", 3))
    assert lines[0] == "sentence\tlabel"
    rows = content.split("\n")[1:-1]
    places = [lines.index(row, 1) for row in rows]
    assert places == sorted(places)
    for row, start, end in zip(rows, places, [*places[1:], len(lines)], strict=True):
        text, label = row.split("\t")
        variants = lines[start + 1 : end]
        assert 1 <= len(variants) <= 3
        assert len(set(variants)) == len(variants)
        for variant in variants:
            new_text, new_label = variant.split("\t")
            assert new_label == label
            assert new_text != text
            # Word for word: what changed is a word of letters, what did not is as it was.
            for new, old in zip(new_text.split(" "), text.split(" "), strict=True):
                assert new == old or (old.isalpha() and new.isalnum())


def test_quotes_marks_and_odd_characters_stay(run: Run) -> None:
    rows = [
        'the film "made" music\t1',
        'a "film\t0',
        "caf\u00e9\u2028film \u00a0 city\x0b time  \t1",
        "''\t0",
        "ok\t1",
    ]
    content = "\ufeffsentence\tlabel\r\n" + "\r\n".join(rows) + "\r\n"
    path = run(content, "--N", 2)
    text = path.read_bytes().decode("utf-8")
    assert text.startswith("\ufeffsentence\tlabel\n")
    lines = text.removeprefix("\ufeff").split("\n")[1:-1]
    assert [line for line in lines if line in rows] == rows
    assert all(line.count("\t") == 1 for line in lines)
    assert [line.count('"') for line in lines[:6]] == [2, 2, 2, 1, 1, 1]
    assert any(line.endswith("time  \t1") and line not in rows for line in lines)


def test_each_text_of_a_pair_is_augmented_with_the_other_intact(run: Run) -> None:
    first, second = "the big film was good .", "the river was long , Horse ."
    content = f"index\tsentence1\tsentence2\tlabel\n7\t{first}\t{second}\tentailment\n"
    lines = lines_of(run(content, "--N", 4, task="RTE"))
    rows = [line.split("\t") for line in lines[1:]]
    assert rows[0] == ["7", first, second, "entailment"]
    assert [row[2] for row in rows[1:5]] == [second] * 4
    assert [row[1] for row in rows[5:]] == [first] * 4
    assert first not in [row[1] for row in rows[1:5]]
    assert second not in [row[2] for row in rows[5:]]
    assert {(row[0], row[3]) for row in rows} == {("7", "entailment")}


@pytest.mark.parametrize("name", sorted(n for n in TASKS if TASKS[n].kind.reads == "rows"))
def test_every_task_of_the_table(run: Run, name: str) -> None:
    """The columns of each task's training file, its labels, header and width come through."""
    task = TASKS[name]
    rng = random.Random(4)
    columns = task.train.columns
    label = "3.2" if task.kind is REGRESSION else task.labels[0]
    rows = []
    for number in range(5):
        cells = [f"{column}-{number}" for column in columns]
        for column in task.text:
            cells[columns.index(column)] = sentence(rng)
        cells[columns.index(task.label)] = label
        rows.append("\t".join(cells))
    header = ["\t".join(columns)] if task.train.header else []
    output = run("\n".join(header + rows) + "\n", "--N", 2, task=task.name)
    lines = lines_of(output)
    assert lines[: len(header)] == header
    assert [line for line in lines[len(header) :] if line in rows] == rows
    texts = [columns.index(column) for column in task.text]

    def without_texts(line: str) -> tuple[str, ...]:
        return tuple(cell for i, cell in enumerate(line.split("\t")) if i not in texts)

    assert set(map(without_texts, lines[len(header) :])) == set(map(without_texts, rows))
    assert len(lines) > len(header) + len(rows)


def test_short_rows_are_reported_not_lost(run: Run, capsys: pytest.CaptureFixture) -> None:
    content = (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
        "1\t2\t3\tthe film was good ?\tgood film ?\t1\n"
        "4\t5\t6\tonly one question\n"
        "7\t8\t9\tbig city ?\tlong river ?\t0\n"
        "10\n"
    )
    output = run(content, "--N", 2, "--allow_short", task="QQP")
    report = output.with_name("train_aug.left_out.tsv").read_text(encoding="utf-8")
    lines = [line.rstrip("\t") for line in report.splitlines()]
    assert lines == ["3\t4\t5\t6\tonly one question", "5\t10"]
    assert {line.split("\t")[0] for line in lines_of(output)} == {"id", "1", "7"}
    assert "2 rows left out" in capsys.readouterr().out
    assert not run(sst2(2), "--N", 1).with_name("train_aug.left_out.tsv").exists()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_own_tasks_keep_their_format(run: Run, kind: str) -> None:
    rows = [{"topic": "a,b", "text": 'the "film", was good', "n": 1}]
    rows.append({"topic": "c", "text": "long river city", "n": 2})
    if kind == "csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, ["topic", "text", "n"])
        writer.writeheader()
        writer.writerows(rows)
        content = buffer.getvalue()
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows)
    flags = ["--text_columns", "text", "--label_column", "topic", "--N", 2]
    output = run(content, *flags, task="mine", name=f"train.{kind}")
    text = output.read_text(encoding="utf-8")
    if kind == "csv":
        made = list(csv.DictReader(io.StringIO(text)))
    else:
        made = [json.loads(line) for line in text.splitlines()]
    assert len(made) == 6
    assert [row["text"] for row in made[::3]] == [row["text"] for row in rows]
    assert [str(row["n"]) for row in made] == ["1"] * 3 + ["2"] * 3
    assert [row["topic"] for row in made] == ["a,b"] * 3 + ["c"] * 3


def test_options_win_over_the_table(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    assert len(lines_of(run("sentence\tlabel\nfilm city river\t1\n", "--N", 7))) == 1 + 1 + 7
    with caplog.at_level("INFO"):
        path = run("sentence\tlabel\nfilm city river\t1\n", "--overwrite_output")
    assert len(lines_of(path)) == 1 + 1 + TASKS["sst2"].augmentations
    assert f"--N {TASKS['sst2'].augmentations}, the default of SST-2" in caplog.text
    one = lines_of(run("sentence\tlabel\nfilm\t1\n", "--overwrite_output", "--N", 50, "--M", 4))
    assert len(one) == 1 + 1 + 4
    every = lines_of(run("sentence\tlabel\nfilm city\t1\n", "--overwrite_output", "--p", 1))
    assert all({"film", "city"}.isdisjoint(line.split()) for line in every[2:])


def test_sources_of_candidates(run: Run, tmp_path: Path) -> None:
    content = "sentence\tlabel\nzebra film\t1\n"
    everything = {"zebra", "film"}

    def words(place: int, *flags: object) -> set[str]:
        output = tmp_path / f"out{len(list(tmp_path.iterdir()))}.tsv"
        run(content, "--N", 400, "--M", 300, "--output", output, *flags)
        return {line.split("\t")[0].split(" ")[place] for line in lines_of(output)[1:]} - everything

    in_glove = {word.lower() for word in RARE} | set(COMMON_WORDS) | {"zorse", "donkey", "slowly"}
    in_vocabulary = {w for w in tiny_vocabulary() if w.isalnum()}
    assert words(0, "--mlm_only") == set()
    assert words(1, "--mlm_only") == in_vocabulary - everything
    assert words(0, "--glove_only") == in_glove - everything
    assert words(1, "--glove_only") == in_glove - everything
    assert words(0, "--glove_only", "--glove_words", 3) == {"horse", "quickly"}


def test_original_spacing_and_own_stop_words(run: Run, tmp_path: Path) -> None:
    stop_words = tmp_path / "stop.txt"
    stop_words.write_text("film\n", encoding="utf-8")
    content = "sentence\tlabel\nBob's  FILM, CITY!\t1\n"
    lines = lines_of(run(content, "--original_spacing", "--N", 3, "--stop_words", stop_words))
    assert lines[1] == "Bob's  FILM, CITY!\t1"
    for line in lines[2:]:
        words = line.split("\t")[0].split(" ")
        assert words[1:6:2] == ["'", "film", words[5]]
        assert line.islower()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--N", 0], "--N 0"),
        (["--M", 0], "--M 0"),
        (["--p", 0], "--p 0"),
        (["--p", 1.1], "--p 1.1"),
        (["--batch_size", 0], "--batch_size 0"),
        (["--max_seq_length", 3], "--max_seq_length 3"),
        (["--max_seq_length", 65], "64 positions"),
        (["--resume", "--overwrite_output"], "--resume and --overwrite_output"),
        (["--glove_embs", "absent.txt"], "absent.txt: no such file"),
        (["--stop_words", "absent.txt"], "absent.txt: no such file"),
        (["--output", "absent/x.tsv"], "no such directory"),
        (["--task_name", "nonesuch"], "unknown task 'nonesuch'"),
        (["--task_name", "RTE"], "is not a directory"),
        (["--pretrained_bert_model", "absent"], "absent"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    run: Run, tmp_path: Path, flags: list[object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(sst2(3), *flags)
    assert [path.name for path in (tmp_path / "glue" / "SST-2").iterdir()] == ["train.tsv"]


def test_models_and_files_that_will_not_do(run: Run, make_checkpoint, tmp_path: Path) -> None:
    no_head = make_checkpoint("classifier", TinyBertForSequenceClassification)
    with pytest.raises(UserError, match="--glove_only does without"):
        run(sst2(3), "--pretrained_bert_model", no_head)
    with pytest.raises(UserError, match="no row to augment"):
        run("sentence\tlabel\n")
    torn = tmp_path / "torn.txt"
    torn.write_text("a 1 2\nb 1 2\nc 1\n")
    with pytest.raises(UserError, match="torn.txt, line 3: 1 numbers"):
        run(sst2(3), "--glove_embs", torn)
    # None of this is in the way of the next run.
    assert run(sst2(3), "--N", 1).exists()


def test_an_existing_output_is_kept_unless_told(run: Run) -> None:
    output = run(sst2(3), "--N", 1)
    before = output.read_bytes()
    with pytest.raises(UserError, match="train_aug.tsv exists: give --overwrite_output"):
        run(sst2(3), "--N", 2)
    run(sst2(3), "--N", 1, "--resume")
    assert output.read_bytes() == before
    with pytest.raises(UserError, match="--N was 1 and is now 2"):
        run(sst2(3), "--N", 2, "--resume")
    with pytest.raises(UserError, match="training file was"):
        run(sst2(4), "--N", 1, "--resume")
    run(sst2(3), "--N", 2, "--overwrite_output_dir")
    assert len(lines_of(output)) > len(before.splitlines())


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_only_an_output_of_ours_is_replaced(run: Run, tmp_path: Path) -> None:
    before = files_in(run(sst2(3), "--N", 1).parent)
    mine = tmp_path / "glue" / "SST-2" / "dev.tsv"
    mine.write_text("mine")
    with pytest.raises(UserError, match="dev.tsv was not made by this script .*so it is not repl"):
        run(sst2(3), "--N", 1, "--output", mine, "--overwrite_output")
    parts = tmp_path / "new.tsv.parts"
    parts.mkdir()
    (parts / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no parts of this script"):
        run(sst2(3), "--N", 1, "--output", tmp_path / "new.tsv", "--overwrite_output")
    assert files_in(mine.parent) == {**before, "dev.tsv": b"mine"}


def test_threads_that_decide_are_told_and_compared(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    output = run(sst2(3), "--N", 1, "--precision", "fp32")
    assert "number of threads" not in caplog.text  # fp32
    record = json.loads(output.with_name("train_aug.args.json").read_text(encoding="utf-8"))
    assert record["fingerprint"]["threads"] == "any number"
    run(sst2(3), "--N", 1, "--precision", "bf16", "--overwrite_output")
    assert "depends on the number of threads a process, which is 1" in caplog.text
    with pytest.raises(UserError, match="threads was 1 and is now any number"):
        run(sst2(3), "--N", 1, "--precision", "fp32", "--resume")


def test_a_mistake_leaves_the_former_output_and_its_parts(run: Run, tmp_path: Path) -> None:
    output = run(sst2(3), "--N", 1)
    parts = output.with_name("train_aug.tsv.parts")
    parts.mkdir()
    for name in ("fingerprint.json", "plan.json", "00000000.json", "00000000.part"):
        (parts / name).write_text("{}")
    before, held = files_in(output.parent), files_in(parts)
    torn = tmp_path / "torn.txt"
    torn.write_text("a 1 2\nb 1 2\nc 1\n")
    with pytest.raises(UserError, match="torn.txt, line 3"):
        run(sst2(3), "--N", 1, "--overwrite_output", "--glove_embs", torn)
    assert (files_in(output.parent), files_in(parts)) == (before, held)
    assert sorted(path.name for path in output.parent.iterdir() if path.is_dir()) == [parts.name]


def test_a_mistake_in_planning_leaves_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row to augment"):
        run("sentence\tlabel\n", "--N", 1)
    assert [path.name for path in (tmp_path / "glue" / "SST-2").iterdir()] == ["train.tsv"]


def test_two_runs_with_one_output(run: Run, tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "glue" / "SST-2", "--output x", "train_aug.tsv")
    lock.file.parent.mkdir(parents=True)
    lock.take()
    child = in_child(lambda: run(sst2(3), "--N", 1, "--resume"))
    assert ended(child) != 0
    lock.release()
    run(sst2(3), "--N", 1)


def test_a_model_trained_again_under_its_name_is_another_run(run: Run, tmp_path: Path) -> None:
    run(sst2(3), "--N", 1)
    shutil.copytree(tmp_path / "mlm", tmp_path / "moved")
    run(sst2(3), "--N", 1, "--resume", "--pretrained_bert_model", tmp_path / "moved")
    weights = tmp_path / "mlm" / "model.safetensors"
    state = load_file(weights)
    state["cls.predictions.bias"] += 1
    save_file(state, weights)
    with pytest.raises(UserError, match="model was .* and is now"):
        run(sst2(3), "--N", 1, "--resume")


def test_names_of_what_belongs_to_an_output() -> None:
    assert beside(Path("d/train_aug.tsv"), "args.json") == Path("d/train_aug.args.json")
    assert beside(Path("x.v1"), "args.json") == Path("x.v1.args.json")


def test_summary_and_record(run: Run, capsys: pytest.CaptureFixture) -> None:
    output = run("sentence\tlabel\nGood film city\t1\nzebra\t0\n.\t1\n", "--N", 2)
    told = capsys.readouterr().out
    assert "3 rows with 3 texts became 7 rows" in told
    assert "4 words may be replaced: 100.0% have candidates, 15.0 each (3 from the masked" in told
    assert "texts with fewer than 2 variants: 1, with none: 1; 2 variants missing" in told
    examples = told.split("original and augmented:")[1]
    assert "Good film city     " in examples
    assert "zebra     " in examples
    record = json.loads(output.with_name("train_aug.args.json").read_text(encoding="utf-8"))
    assert record["args"]["N"] == "2"
    assert record["counts"]["variants"] == 4
    assert {path.name for path in output.parent.iterdir()} == {
        *("train.tsv", "train_aug.tsv", "train_aug.args.json")
    }


# ---------------------------------------------------------------------------------------------
# One result, whoever makes it


def in_child(action: Callable[[], None], **environment: object) -> int:
    """Start `action` in a forked process and return its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.environ |= {name: str(value) for name, value in environment.items()}
        sys.argv = ["data_augmentation.py"]
        code = run_script(action)
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmented_rows, "BLOCK_ROWS", 3)
    monkeypatch.setattr(augmented_rows, "BLOCK_CHARACTERS", 70)


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_writes_the_same(
    run: Run,
    small_blocks: None,
    tmp_path: Path,
    processes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = tmp_path / "log"
    original = augmented_rows.augment_block

    def logged(*args: object) -> augmented_rows.AugmentedBlock:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        return original(*args)

    flags = ["--N", 3, "--output"]
    alone, shared = tmp_path / "alone.tsv", tmp_path / "shared.tsv"
    run(sst2(30), *flags, alone)
    monkeypatch.setattr(data_augmentation, "augment_block", logged)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ranks = [
        in_child(
            lambda: run(sst2(30), *flags, shared),
            **{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes},
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(processes)
    ]
    assert [ended(pid) for pid in ranks] == [0] * processes
    assert shared.read_bytes() == alone.read_bytes()
    rows = sst2(30).split("\n")[1:-1]
    places = [lines_of(shared).index(row) for row in rows]
    assert places == sorted(places)
    shares = Counter(log.read_text().split())
    assert set(shares) == set(map(str, ranks))
    assert max(shares.values()) - min(shares.values()) <= 1
    assert sum(shares.values()) > 10


@pytest.mark.parametrize("step", ["plan", "block", "note", "join", "close"])
def test_killed_anywhere_and_resumed(
    run: Run, small_blocks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """kill -9 before or inside each kind of write; what is left is gone on with."""
    content, flags = sst2(30), ["--N", 3, "--output"]
    expected, output = tmp_path / "expected.tsv", tmp_path / "killed.tsv"
    run(content, *flags, expected)

    def killing(method: Callable[..., None], after: int, inside: str = "") -> Callable[..., None]:
        calls = []

        def wrapped(self: Parts, *args: object) -> None:
            calls.extend([1] if not inside or args[0] == inside else [])
            if len(calls) > after:
                os.kill(os.getpid(), signal.SIGKILL)
            method(self, *args)

        return wrapped

    name, after, inside = {
        "plan": ("save_note", 0, "plan"),
        "block": ("save_block", 3, ""),
        "note": ("save_note", 0, "00000002"),
        "join": ("join", 0, ""),
        "close": ("close", 0, ""),
    }[step]
    with monkeypatch.context() as patch:
        patch.setattr(Parts, name, killing(getattr(Parts, name), after, inside))
        child = in_child(lambda: run(content, *flags, output))
        assert ended(child) == -signal.SIGKILL
    assert output.exists() == (step == "close")
    if step in ("block", "note", "join"):
        with pytest.raises(UserError, match="holds an unfinished run: give --resume"):
            run(content, *flags, output)
        with pytest.raises(UserError, match="--p was 0.4 and is now 0.5"):
            run(content, *flags, output, "--resume", "--p", 0.5)
    made = []
    original = augmented_rows.augment_block
    monkeypatch.setattr(
        data_augmentation, "augment_block", lambda *args: made.append(1) or original(*args)
    )
    run(content, *flags, output, "--resume")
    assert output.read_bytes() == expected.read_bytes()
    assert not output.with_name("killed.tsv.parts").exists()
    if step in ("join", "close"):
        assert not made
    if step == "block":
        assert len(made) > 5


def test_rows_do_not_depend_on_their_neighbours(run: Run, tmp_path: Path) -> None:
    """A row's draws come from its number, not from what was drawn before it."""
    longer, shorter = tmp_path / "longer.tsv", tmp_path / "shorter.tsv"
    content = sst2(20)
    run(content, "--N", 3, "--precision", "fp32", "--output", longer)
    run(
        "\n".join(content.split("\n")[:11]) + "\n",
        "--N",
        3,
        "--precision",
        "fp32",
        "--output",
        shorter,
    )
    assert lines_of(longer)[: len(lines_of(shorter))] == lines_of(shorter)


def test_seeds(run: Run, tmp_path: Path) -> None:
    made = []
    for number, seed in enumerate((1, 1, 2)):
        output = tmp_path / f"{number}.tsv"
        run(sst2(10), "--N", 3, "--seed", seed, "--output", output)
        made.append(output.read_bytes())
    assert made[0] == made[1] != made[2]
