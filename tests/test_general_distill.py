"""`general_distill.py` as a user runs it, and the epoch files that it reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_vocabulary
from safetensors.torch import load_file, save_file
from toy_runs import metrics_of, write_epochs, write_student

import general_distill
from transformer.checkpoint.directory import load_model, read_weights
from transformer.files import UserError
from transformer.modeling import (
    BertForPreTraining,
    TinyBertForPreTraining,
    TinyBertForSequenceClassification,
)
from transformer.runtime.script import RunError
from transformer.training import epochs as pretraining_data
from transformer.training.epochs import find_epoch_files, open_pretraining_data
from transformer.training.packed import PackedDataset

ROOT = Path(__file__).resolve().parents[1]
VOCAB = {token: number for number, token in enumerate(tiny_vocabulary())}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_epochs(tmp_path / "data", tiny_vocabulary())


@pytest.fixture
def command(tmp_path, data, make_checkpoint, tiny_config) -> Callable[..., list[str]]:
    """Return a function that makes the command line of a run of a few steps in fp32."""
    teacher = make_checkpoint("teacher", BertForPreTraining)
    student = write_student(tmp_path / "student", tiny_config)

    def make(*more: object, **changes: object) -> list[str]:
        flags = {
            "pregenerated_data": data,
            "teacher_model": teacher,
            "student_model": student,
            "output_dir": tmp_path / "out",
            "max_seq_length": 40,
            "train_batch_size": 8,
            "num_train_epochs": 1,
            "learning_rate": 1e-2,
            "precision": "fp32",
            **changes,
        }
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        return [*words, "--no_cuda", *map(str, more)]

    return make


def run(argv: list[str]) -> None:
    general_distill.main(argv)


# --- the script --------------------------------------------------------------------------------


def test_run_from_another_directory_writes_everything(tmp_path, command):
    argv = command("--do_eval", num_train_epochs=2.5, log_steps=2, eval_step=3)
    program = [sys.executable, str(ROOT / "general_distill.py"), *argv]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    out = tmp_path / "out"
    for name in (
        *("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json"),
        *("args.json", "metrics.jsonl", "training_curves.png", "best/model.safetensors"),
    ):
        assert (out / name).stat().st_size > 0, name
        assert name.split("/")[0] in done.stderr or name in ("vocab.txt", "tokenizer_config.json")
    reports = metrics_of(out)
    assert [r["step"] for r in reports if "loss" in r] == [
        2,
        3,
        4,
        6,
        8,
        9,
        10,
    ]  # and at evaluations
    assert [r["step"] for r in reports if "eval_loss" in r] == [3, 6, 9, 10]
    terms = {"attention/1", "attention/2", "hidden/1", "hidden/2", "embedding", "learning_rate"}
    assert terms <= reports[0].keys()
    last = [r for r in reports if "loss" in r][-1]
    assert last["learning_rate"] == 0.0
    assert last["loss"] < reports[0]["loss"]
    assert last["loss"] == pytest.approx(
        sum(v for k, v in last.items() if k.startswith(("attention", "hidden", "embedding"))),
        rel=1e-5,
    )
    assert json.loads((out / "args.json").read_text())["learning_rate"] == 1e-2


def test_result_is_a_general_tinybert(tmp_path, command):
    run(command())
    names = read_weights(tmp_path / "out")
    assert not [n for n in names if n.startswith(("cls.", "classifier", "bert.pooler"))]
    assert names["fit_dense.weight"].shape == (32, 24), "as wide as the teacher"
    student, report = load_model(TinyBertForSequenceClassification, tmp_path / "out")
    assert student.config.fit_size == 32
    assert not [n for n in report.missing if "encoder" in n or "embeddings" in n]


def test_the_same_seed_gives_the_same_files(tmp_path, command):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(command(output_dir=tmp_path / name, seed=seed))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_accumulation_changes_nothing_but_rounding(tmp_path, command):
    for steps in (1, 3):
        run(
            command(
                output_dir=tmp_path / f"out{steps}",
                gradient_accumulation_steps=steps,
                train_batch_size=7,
                log_steps=1,
            )
        )
    once, thrice = (metrics_of(tmp_path / f"out{steps}") for steps in (1, 3))
    assert len(once) == len(thrice) == 5
    for a, b in zip(once, thrice, strict=True):
        assert b == pytest.approx(a, rel=1e-4)


def test_bf16_follows_fp32(tmp_path, command):
    for precision in ("fp32", "bf16"):
        run(command(output_dir=tmp_path / precision, precision=precision, num_train_epochs=4))
    fp32, bf16 = (metrics_of(tmp_path / name)[-1]["loss"] for name in ("fp32", "bf16"))
    assert bf16 == pytest.approx(fp32, rel=0.03)


def test_finished_run_is_left_alone(tmp_path, command, caplog):
    run(command())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    caplog.clear()
    run(command("--resume"))
    assert "is finished: nothing to do" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    with pytest.raises(UserError, match="--seed was 42 and is now 7"):
        run(command("--resume", seed=7))
    with pytest.raises(UserError, match="holds files"):
        run(command())
    teacher, moved = tmp_path / "teacher", tmp_path / "moved"
    shutil.copytree(teacher, moved)
    run(command("--resume", teacher_model=moved))
    state = load_file(teacher / "model.safetensors")
    state["bert.embeddings.LayerNorm.bias"] += 1
    save_file(state, teacher / "model.safetensors")
    with pytest.raises(UserError, match="teacher was .* and is now"):
        run(command("--resume"))
    with pytest.raises(UserError, match="would be overwritten"):
        run(command("--overwrite_output_dir", student_model=tmp_path / "out"))
    run(command("--overwrite_output_dir", seed=7))


def test_no_state_is_left(tmp_path, command):
    run(command(save_steps=1, eval_step=1))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    weights = {name for name in names if name.endswith((".pt", ".bin", ".safetensors"))}
    assert weights == {"model.safetensors"}, "a run that is done leaves no state"
    done = json.loads((tmp_path / "out" / "args.json").read_text())["finished"]
    assert done["step"] == metrics_of(tmp_path / "out")[-1]["step"]


def test_continue_train_begins_from_the_weights(tmp_path, command):
    run(command())
    weights = read_weights(tmp_path / "out")
    run(
        command(
            "--continue_train",
            student_model=tmp_path / "out",
            output_dir=tmp_path / "more",
            learning_rate=0,
        )
    )
    for name, tensor in read_weights(tmp_path / "more").items():
        assert torch.equal(tensor, weights[name]), name


def test_continue_train_needs_weights(command):
    with pytest.raises(UserError, match="--continue_train: .* has no weights"):
        run(command("--continue_train"))


def test_layers_are_copied_from_the_teacher(tmp_path, command, tiny_config):
    student = write_student(tmp_path / "wide", tiny_config, hidden_size=32)
    run(command("--init_from_teacher", "2,4", student_model=student, learning_rate=0))
    ours, theirs = read_weights(tmp_path / "out"), read_weights(tmp_path / "teacher")
    name = "bert.encoder.layer.{}.attention.self.query.weight"
    assert torch.equal(ours[name.format(0)], theirs[name.format(1)])
    assert torch.equal(ours[name.format(1)], theirs[name.format(3)])
    words = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(ours[words], theirs[words])


def test_a_narrow_student_is_computed_from_the_teacher(tmp_path, command):
    run(command("--init_from_teacher", "2,4", "--do_eval", learning_rate=0))
    start, *_, last = metrics_of(tmp_path / "out")
    assert start["step"] == 0 and start["explained/0"] > 0.3
    run(command(output_dir=tmp_path / "random", learning_rate=0))
    begun = metrics_of(tmp_path / "out")[1]["loss"]
    assert begun < 0.7 * metrics_of(tmp_path / "random")[0]["loss"]


def test_terms_of_weight_zero_are_not_computed(tmp_path, command):
    run(command("--attention_weight", 0, "--embedding_weight", 0, "--layer_mapping", "top"))
    fields = metrics_of(tmp_path / "out")[-1].keys()
    assert fields == {"step", "epoch", "loss", "hidden/1", "hidden/2", "learning_rate"}


@pytest.mark.parametrize("limit", [[], ["--max_seq_length", 128]])
def test_loss_on_padding_pads_to_the_length_of_the_data(command, monkeypatch, limit):
    widths = set()
    forward = TinyBertForPreTraining.forward

    def watch(self, input_ids, *args, **options):
        widths.add(input_ids.shape[1])
        return forward(self, input_ids, *args, **options)

    monkeypatch.setattr(TinyBertForPreTraining, "forward", watch)
    run(without_length(command("--loss_on_padding"), *limit))
    assert widths - {2} == {40}  # 2: the probe for parameters that no term reads


def without_length(argv: list[str], *more: object) -> list[str]:
    place = argv.index("--max_seq_length")
    return [*argv[:place], *argv[place + 2 :], *map(str, more)]


def test_data_longer_than_128_tokens_needs_no_flag(data, command):
    facts = {"num_training_examples": 30, "max_seq_len": 200}
    (data / "epoch_0_metrics.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="200 .or the data's own.: .*64 positions.* at most 64"):
        run(without_length(command()))


def test_the_embedding_of_padding_is_frozen_where_padding_counts(tmp_path, command):
    run(command(learning_rate=0))
    start = tmp_path / "out"
    row = read_weights(start)["bert.embeddings.word_embeddings.weight"][0]
    assert not row.any()
    weights = load_file(start / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][0] = 1.0
    save_file(weights, start / "model.safetensors")
    for flags in ([], ["--loss_on_padding"]):
        out = tmp_path / f"padding{len(flags)}"
        run(
            command("--continue_train", *flags, student_model=start, output_dir=out, weight_decay=0)
        )
        row = read_weights(out)["bert.embeddings.word_embeddings.weight"][0]
        assert torch.equal(row, torch.ones(24))


def test_an_empty_cache_dir_is_the_default_place(tmp_path, data, command, monkeypatch):
    """The original's default, spelled out."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(command(cache_dir=""))
    assert not list((tmp_path / "elsewhere").iterdir()) and list(data.glob("*.packed"))


def test_results_are_copied_to_data_url(tmp_path, command):
    run(command(data_url=tmp_path / "copy"))
    original = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == original


def test_exploding_run_stops_with_the_examples(tmp_path, command):
    with pytest.raises(RunError, match="is not finite"):
        run(command(learning_rate=1e30, log_steps=2, num_train_epochs=3))
    report = json.loads(next((tmp_path / "out").glob("nonfinite_step_*.json")).read_text())
    assert len(report["indices"]) in (6, 8) and report["terms"]["loss"] in ("nan", "inf")
    assert not (tmp_path / "out" / "model.safetensors").exists()


# --- mistakes, found before anything starts ----------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pregenerated_data": "nowhere"}, "nowhere"),
        ({"teacher_model": "no/such/place at all"}, "no/such/place"),
        ({"max_seq_length": 30}, "--max_seq_length"),
        ({"layer_mapping": "1,2,3"}, "3 layers are listed"),
        ({"train_batch_size": 0}, "--train_batch_size"),
        ({"num_train_epochs": -1}, "--num_train_epochs"),
        ({"init_from_teacher": "4,2"}, "list the teacher's layers in rising order"),
        ({"init_tokens": 10}, "--init_tokens 10: give 1000 or more"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, command, changes, says):
    with pytest.raises(UserError, match=says):
        run(command(**changes))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_student_of_another_vocabulary_is_refused(tmp_path, command, tiny_config):
    student = write_student(tmp_path / "foreign", tiny_config)
    words = tiny_vocabulary()
    words[7], words[8] = words[8], words[7]
    (student / "vocab.txt").write_text("\n".join(words) + "\n")
    with pytest.raises(UserError, match="vocabular"):
        run(command(student_model=student))
    (student / "vocab.txt").unlink()
    write_student(tmp_path / "small", tiny_config, vocab_size=50)
    with pytest.raises(UserError, match="vocab_size is 50"):
        run(command(student_model=tmp_path / "small"))
    # One that was written for a larger vocabulary gets the teacher's, so that the next stage has
    # embeddings for its words alone.
    write_student(tmp_path / "large", tiny_config, vocab_size=3000)
    run(command(student_model=tmp_path / "large"))
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert made["vocab_size"] == len(words)


def test_models_that_do_not_fit_are_refused_before_the_data_is_packed(
    tmp_path, command, tiny_config, make_checkpoint
):
    student = write_student(tmp_path / "one", tiny_config, type_vocab_size=1)
    with pytest.raises(UserError, match="student .*one knows one .type_vocab_size 1.*--one_seq"):
        run(command(student_model=student))
    teacher = make_checkpoint("cut", BertForPreTraining)
    values = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 6}))
    with pytest.raises(UserError, match="lacks the encoder.*layer.4"):
        run(command(teacher_model=teacher))
    (teacher / "config.json").write_text(json.dumps({**values, "intermediate_size": 36}))
    with pytest.raises(UserError, match="37.* in the file, but the configuration makes it .*36"):
        run(command(teacher_model=teacher))
    assert not list(tmp_path.glob("**/*.packed"))


def test_other_number_of_heads_is_refused(tmp_path, command, tiny_config):
    student = write_student(tmp_path / "heads", tiny_config, num_attention_heads=3)
    with pytest.raises(UserError, match="--attention_weight 0"):
        run(command(student_model=student))
    run(command("--attention_weight", 0, student_model=student))


# --- epoch files -------------------------------------------------------------------------------


def pack(data: Path, **options: object) -> list[PackedDataset]:
    return open_pretraining_data(find_epoch_files(data, 40), VOCAB, **options)


def line_of(data: Path, number: int) -> dict:
    return json.loads((data / "epoch_0.json").read_text().splitlines()[number])


def test_packed_examples_are_the_lines(data, monkeypatch):
    monkeypatch.setattr("transformer.training.epochs.CHUNK_BYTES", 1000)
    store = pack(data)[0]
    assert len(store) == 30
    rows = store.rows(np.arange(30))
    for number in (0, 7, 29):
        line = line_of(data, number)
        assert rows[number].tolist() == [VOCAB[token] for token in line["tokens"]]
        assert store.first_length[number] == line["segment_ids"].count(0)


def break_line(data: Path, number: int, change: Callable[[str], str]) -> None:
    path = data / "epoch_0.json"
    lines = path.read_text().splitlines()
    lines[number] = change(lines[number])
    path.write_text("\n".join(lines) + "\n")


def edited(**changes: object) -> Callable[[str], str]:
    return lambda line: json.dumps({**json.loads(line), **changes})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda line: line[:40], "cut off"),
        (lambda line: "", "cut off"),
        (lambda line: "[1, 2]", "cut off"),
        (edited(masked_lm_labels=True), "must be lists"),
        (edited(tokens=["[CLS]", "zebra"], segment_ids=[0, 0]), "'zebra' is not in"),
        (edited(tokens=["[CLS]", 7], segment_ids=[0, 0]), "token 7"),
        (edited(tokens=["the"] * 41, segment_ids=[0] * 41), "41 tokens, more than the 40"),
        (edited(tokens=[], segment_ids=[]), "not empty"),
        (edited(segment_ids=[0]), "segment_ids"),
        (edited(tokens=["the"] * 3, segment_ids=[1, 0, 1]), "segment_ids"),
        (edited(masked_lm_positions=[99]), "masked_lm_positions"),
        (edited(masked_lm_positions=["x"]), "masked_lm_positions"),
        (edited(masked_lm_labels=["the", "the"]), "masked_lm_positions"),
    ],
)
def test_bad_lines_are_named_by_number(data, change, says, monkeypatch):
    monkeypatch.setattr("transformer.training.epochs.CHUNK_BYTES", 2000)
    break_line(data, 20, change)
    with pytest.raises(UserError, match=f"epoch_0.json: line 21: .*{says}"):
        pack(data)
    assert not list(data.glob("*.packed")) and not list(data.glob(".*.tmp"))


def test_several_bad_lines_are_all_named(data):
    for number in (3, 9):
        break_line(data, number, lambda line: line[:40])
    with pytest.raises(UserError, match="line 4: .*; line 10: "):
        pack(data)


@pytest.mark.parametrize("keep", [29, 31])
def test_count_must_match_the_metrics(data, keep):
    path = data / "epoch_1.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join((lines * 2)[:keep]) + "\n")
    with pytest.raises(UserError, match=rf"epoch_1.json .*{keep}.*counts 30"):
        pack(data)


def test_missing_files_are_named(data):
    (data / "epoch_1_metrics.json").unlink()
    with pytest.raises(UserError, match="epoch_1_metrics.json is missing"):
        find_epoch_files(data, 40)
    (data / "epoch_0.json").unlink()
    with pytest.raises(UserError, match="no epoch_0.json"):
        find_epoch_files(data, 40)


def ages(data: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in data.glob("*.packed/ids.bin")}


def test_store_is_made_once(data):
    pack(data)
    before = ages(data)
    pack(data)
    assert ages(data) == before and len(before) == 2


def test_store_with_a_trusted_quick_fingerprint_is_not_even_hashed(data, monkeypatch):
    monkeypatch.setattr(pretraining_data, "SETTLED_SECONDS", 0.0)
    pack(data)
    monkeypatch.setattr(pretraining_data, "_hash_file", lambda path: pytest.fail("hashed"))
    pack(data)


def test_changed_file_is_packed_again_whatever_its_date(data):
    path = data / "epoch_0.json"
    status = path.stat()
    pack(data)
    content = path.read_text()
    tokens = line_of(data, 0)["tokens"]
    other = next(t for t in "abcdefgh" if t != tokens[1])
    same_size = next(n for n, t in enumerate(tokens) if len(t) == 1)
    line = line_of(data, 0)
    line["tokens"][same_size] = other
    lines = content.splitlines()
    path.write_text("\n".join([json.dumps(line), *lines[1:]]) + "\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert pack(data)[0].rows(np.array([0]))[0][same_size] == VOCAB[other]


def test_touched_file_is_not_packed_again(data):
    pack(data)
    before = ages(data)
    os.utime(data / "epoch_0.json", (1, 1))
    pack(data)
    assert ages(data) == before


def test_other_vocabulary_has_its_own_store(data):
    pack(data)
    swapped = {**VOCAB, "the": VOCAB["of"], "of": VOCAB["the"]}
    files = find_epoch_files(data, 40)
    other = open_pretraining_data(files, swapped)[0]
    line = next(n for n in range(30) if "the" in line_of(data, n)["tokens"])
    place = line_of(data, line)["tokens"].index("the")
    assert other.rows(np.array([line]))[0][place] == VOCAB["of"]
    assert pack(data)[0].rows(np.array([line]))[0][place] == VOCAB["the"]


def test_cache_dir_keeps_stores_of_two_corpora_apart(data, tmp_path):
    twin = write_epochs(tmp_path / "twin", tiny_vocabulary()[:40])
    ours, theirs = (pack(d, cache_dir=tmp_path / "cache")[0] for d in (data, twin))
    assert ours.path != theirs.path
    assert ours.path.parent == theirs.path.parent == tmp_path / "cache"
    assert not list(data.glob("*.packed"))


def test_half_written_stores_are_cleared_away(data):
    store = pack(data)[0].path
    for child in store.iterdir():
        child.unlink()
    store.rmdir()
    (data / f".{store.name}.99.tmp").mkdir()
    pack(data)
    assert store.is_dir() and not list(data.glob(".*.tmp"))


def test_two_processes_make_one_store(data):
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            pack(data)
            os._exit(0)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    before = ages(data)
    time.sleep(0.01)
    pack(data)
    assert ages(data) == before
