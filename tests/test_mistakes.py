"""The messages of the scripts: for each mistake the command, the exit code and the one line.

A row is a complete and right command with one thing changed (None leaves a flag out, True gives it
without a value); {out}, {task}, ... stand for the places of `script_runs.make_setting`, and ...
for any words. To add one, write the command and what the user should read.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file, save_file
from script_runs import ARGUMENTS, ROOT, Finished

from transformer.runtime.output_dir import RunLock

PREGENERATE, GENERAL = "pregenerate_training_data.py", "general_distill.py"
AUGMENT, TASK = "data_augmentation.py", "task_distill.py"


class Mistake(NamedTuple):
    """A changed command, what the user reads after "SCRIPT: error: ", and the exit code."""

    script: str
    changes: dict[str, Any]
    line: str
    code: int = 2


MISTAKES = [
    # --- the command line
    Mistake(
        GENERAL,
        {"pregenerated_dta": "x"},
        "--pregenerated_dta is no flag of this script; did you mean --pregenerated_data? "
        "--help explains all flags",
    ),
    Mistake(
        TASK,
        {"pred": True},
        "--pred is no flag of this script; did you mean --pred_distill or --predict or "
        "--prediction_loss? --help explains all flags",
    ),
    Mistake(
        AUGMENT,
        {"no_such_flag": "1"},
        "--no_such_flag is no flag of this script; --help explains all flags",
    ),
    Mistake(
        PREGENERATE,
        {"output_dir": None},
        "the following arguments are required: --output_dir; --help explains all flags",
    ),
    Mistake(
        PREGENERATE,
        {"seed": "x"},
        "argument --seed: 'x' is no whole number; --help explains all flags",
    ),
    Mistake(
        GENERAL,
        {"precision": "fp8"},
        "argument --precision: invalid choice: 'fp8' (choose from 'auto', 'fp32', 'bf16', "
        "'fp16'); --help explains all flags",
    ),
    Mistake(
        GENERAL,
        {"seed": "1180591620717411303424"},
        "argument --seed: 1180591620717411303424 is not from -2**63 to 2**64 - 1; --help "
        "explains all flags",
    ),
    Mistake(
        TASK,
        {"seed": "-1180591620717411303424"},
        "argument --seed: -1180591620717411303424 is not from -2**63 to 2**64 - 1; --help "
        "explains all flags",
    ),
    Mistake(
        TASK,
        {"output_dir": ""},
        "argument --output_dir: an empty text is no path; --help explains all flags",
    ),
    Mistake(
        TASK,
        {"student_model": ""},
        "argument --student_model/--model: an empty text names no model; --help explains all flags",
    ),
    Mistake(
        GENERAL,
        {"student_model": "tinybert_4l_312"},
        "argument --student_model: tinybert_4l_312 is not there; did you mean tinybert_4l_312d? "
        "--help explains all flags",
    ),
    Mistake(
        TASK,
        {"output_dir": "b\udcff"},
        "argument --output_dir: b\\udcff is not UTF-8; rename it, or set PYTHONUTF8=1 if it is; "
        "--help explains all flags",
    ),
    Mistake(
        GENERAL,
        {"teacher_model": ""},
        "argument --teacher_model: an empty text names no model; --help explains all flags",
    ),
    Mistake(
        PREGENERATE,
        {"bert_model": ""},
        "argument --bert_model: an empty text names no model; --help explains all flags",
    ),
    Mistake(
        AUGMENT,
        {"output": ""},
        "argument --output: an empty text is no path; --help explains all flags",
    ),
    # --- pregeneration
    Mistake(
        PREGENERATE,
        {"train_corpus": "nowhere.txt"},
        "--train_corpus nowhere.txt: no such file, and no file matches it",
    ),
    Mistake(
        PREGENERATE,
        {"bert_model": "/nowhere"},
        "--bert_model /nowhere: no such file or directory",
    ),
    Mistake(
        PREGENERATE,
        {"masked_lm_prob": 2},
        "--masked_lm_prob 2.0: give a number from 0.0 to 1.0",
    ),
    Mistake(
        PREGENERATE,
        {"num_workers": 0},
        "--num_workers 0: give a number from 1 to 1024",
    ),
    Mistake(
        PREGENERATE,
        {"epochs_to_generate": 0},
        "--epochs_to_generate 0: give a number from 1 to 1048576",
    ),
    Mistake(
        PREGENERATE,
        {"max_seq_len": 4},
        "--max_seq_len 4: give a number from 5 to 32768",
    ),
    Mistake(
        PREGENERATE,
        {
            "train_corpus": "nowhere.txt",
            "bert_model": "{bert}",
            "output_dir": "{bert}",
            "overwrite_output_dir": True,
        },
        "--bert_model {bert} would be overwritten by the run in --output_dir {bert}; give "
        "another directory",
    ),
    Mistake(
        PREGENERATE,
        {"output_dir": "{bert}"},
        "--bert_model {bert} would be overwritten by the run in --output_dir {bert}; give "
        "another directory",
    ),
    Mistake(
        PREGENERATE,
        {"output_dir": "{bert}", "overwrite_output_dir": True},
        "--bert_model {bert} would be overwritten by the run in --output_dir {bert}; give "
        "another directory",
    ),
    Mistake(
        PREGENERATE,
        {"output_dir": "{task}", "overwrite_output_dir": True},
        "--overwrite_output_dir: {task} holds files (dev.tsv, ...) but no run of this "
        "toolkit (no args.json of ours), so nothing in it is replaced; give another directory",
    ),
    Mistake(
        PREGENERATE,
        {"output_dir": "{corpus}"},
        "--train_corpus {corpus} would be overwritten by the run in --output_dir {corpus}; "
        "give another directory",
    ),
    Mistake(
        PREGENERATE,
        {"output_dir": "{task}", "resume": True},
        "--resume: {task} holds files but no run (no args.json); give another directory",
    ),
    Mistake(
        PREGENERATE,
        {"resume": True, "overwrite_output_dir": True},
        "--resume and --overwrite_output_dir contradict each other; give one",
    ),
    # --- general distillation
    Mistake(
        GENERAL,
        {"pregenerated_data": "/nowhere"},
        "--pregenerated_data /nowhere: no such directory",
    ),
    Mistake(
        GENERAL,
        {"teacher_model": "/nowhere"},
        "--teacher_model /nowhere: no such file or directory",
    ),
    Mistake(
        GENERAL,
        {"student_model": "/nowhere"},
        "--student_model /nowhere: no such file or directory",
    ),
    Mistake(
        GENERAL,
        {"max_seq_length": 16},
        "{pregenerated}/epoch_0.json was generated with --max_seq_len 32, but --max_seq_length is "
        "16; leave --max_seq_length out or generate with --max_seq_len 16",
    ),
    Mistake(
        GENERAL,
        {"fp16": True, "no_cuda": True},
        "fp16 needs a GPU; on a CPU give --precision auto, bf16 or fp32",
    ),
    Mistake(
        GENERAL,
        {"precision": "fp16", "no_cuda": True},
        "fp16 needs a GPU; on a CPU give --precision auto, bf16 or fp32",
    ),
    Mistake(
        GENERAL,
        {"num_train_epochs": 0},
        "--num_train_epochs 0.0: give a number above 0, at most 1,000,000; a run is stopped "
        "by Ctrl-C and goes on with --resume",
    ),
    Mistake(
        GENERAL,
        {"num_train_epochs": "1e9"},
        "--num_train_epochs 1000000000.0: give a number above 0, at most 1,000,000; a run is "
        "stopped by Ctrl-C and goes on with --resume",
    ),
    Mistake(
        GENERAL,
        {"train_batch_size": 0},
        "--train_batch_size 0: give a number from 1 to 1,000,000",
    ),
    Mistake(
        GENERAL,
        {"train_batch_size": 1000000000},
        "--train_batch_size 1000000000: give a number from 1 to 1,000,000",
    ),
    Mistake(
        GENERAL,
        {"gradient_accumulation_steps": 64},
        "--gradient_accumulation_steps 64 cannot cut a --train_batch_size of 32; give at "
        "most as many steps as examples",
    ),
    Mistake(
        GENERAL,
        {"layer_mapping": "1,9"},
        "--layer_mapping 1,9: teacher layers are 1 to 4 (0 leaves a student layer out, but "
        "not all of them)",
    ),
    Mistake(
        GENERAL,
        {"attention_weight": -1},
        "--attention_weight, --hidden_weight, --embedding_weight: -1.0, 1.0, 1.0; give "
        "numbers of 0 or more, of which at least one is above 0",
    ),
    Mistake(
        GENERAL,
        {"output_dir": "{student}", "overwrite_output_dir": True},
        "--student_model {student} would be overwritten by the run in --output_dir "
        "{student}; give another directory",
    ),
    Mistake(
        GENERAL,
        {"data_url": "ftp://me:pass@host/x"},
        "--data_url ftp://host/x: give s3://BUCKET/PREFIX or a directory",
    ),
    Mistake(
        GENERAL,
        {"teacher_model": "ftp://me:pass@host/x?sig=abc"},
        "--teacher_model ftp://host/x?...: unknown kind of address; http://, https:// and s3:// "
        "are read",
    ),
    Mistake(
        GENERAL,
        {"data_url": "{out}/copy"},
        "--data_url {out}/copy lies in --output_dir {out}, of which it gets a copy; give a "
        "directory outside",
    ),
    # --- augmentation
    Mistake(
        AUGMENT,
        {"task_name": "SST2x"},
        "--task_name: unknown task 'SST2x'; choose from CoLA, SST-2, ..., or describe your own "
        "with --text_columns and --label_column",
    ),
    Mistake(
        AUGMENT,
        {"glue_dir": "/nowhere"},
        "--glue_dir: /nowhere/SST-2 is not a directory",
    ),
    Mistake(
        AUGMENT,
        {"glove_embs": "/nowhere"},
        "--glove_embs /nowhere: no such file; give a text file of word vectors",
    ),
    Mistake(
        AUGMENT,
        {"p": 1.5},
        "--p 1.5: a probability above 0 and up to 1",
    ),
    Mistake(
        AUGMENT,
        {"N": 1000000000},
        "--N 1000000000: give a number from 1 to 10,000",
    ),
    Mistake(
        AUGMENT,
        {"glove_words": "1180591620717411303424"},
        "--glove_words 1180591620717411303424: give a number from 0 to 1,000,000,000",
    ),
    Mistake(
        AUGMENT,
        {"pretrained_bert_model": None},
        "--pretrained_bert_model is needed, or --glove_only to do without",
    ),
    Mistake(
        AUGMENT,
        {"output": "{task}/train.tsv", "overwrite_output": True},
        "--output {task}/train.tsv is the training file itself",
    ),
    Mistake(
        AUGMENT,
        {"output": "{task}/dev.tsv"},
        "{task}/dev.tsv exists: give --overwrite_output to replace it, or another --output",
    ),
    Mistake(
        AUGMENT,
        {"output": "{task}/dev.tsv", "overwrite_output": True},
        "--overwrite_output: {task}/dev.tsv was not made by this script (no dev.args.json "
        "beside it), so it is not replaced; give another --output",
    ),
    # --- task distillation
    Mistake(
        TASK,
        {"task_name": "sst5"},
        "--task_name: unknown task 'sst5'; choose from CoLA, SST-2, ..., or describe your own "
        "with --text_columns and --label_column",
    ),
    Mistake(
        TASK,
        {"data_dir": "/nowhere"},
        "--data_dir /nowhere: no such directory",
    ),
    Mistake(
        TASK,
        {"teacher_model": None},
        "--teacher_model is needed for distillation: a model fine-tuned on the task (make "
        "one with --finetune); --finetune, --do_eval and --do_predict need none",
    ),
    Mistake(
        TASK,
        {"student_model": "/nowhere"},
        "--student_model /nowhere: no such file or directory",
    ),
    Mistake(
        TASK,
        {"aug_train": True},
        "--aug_train: {task} holds no train_aug.tsv; make it with data_augmentation.py, or "
        "leave the flag out to train on the task's own data",
    ),
    Mistake(
        TASK,
        {"dev_share": 0.1},
        "--dev_share 0.1: there is a dev set, {task}/dev.tsv; leave the flag out, or move the file "
        "away",
    ),
    Mistake(
        TASK,
        {"transfer_file": "/nowhere.txt"},
        "--transfer_file /nowhere.txt: no such file",
    ),
    Mistake(
        TASK,
        {"teacher_model": None, "teacher_logits": "{task}/train.tsv", "pred_distill": True},
        "{task}/train.tsv: its columns are label; needed is one for each label, called by its "
        "name: 0, 1",
    ),
    Mistake(
        TASK,
        {"temperature": 0, "pred_distill": True},
        "--temperature 0.0: give a number above 0",
    ),
    Mistake(
        TASK,
        {"best_metric": "pearson"},
        "--best_metric: 'pearson' for SST-2; choose acc, f1, acc_and_f1, macro_f1, mcc",
    ),
    Mistake(
        TASK,
        {"finetune": True, "pred_distill": True},
        "--finetune and --pred_distill contradict each other; give one",
    ),
    Mistake(
        TASK,
        {"do_eval": True, "export_onnx": "{task}/train.tsv"},
        "--export_onnx would replace {task}/train.tsv, which is not an ONNX graph; move it away",
    ),
    Mistake(
        TASK,
        {"do_eval": True, "export_onnx": "{task}"},
        "--export_onnx: {task} holds files (dev.tsv, ...) but no export of ours; give a new "
        "directory",
    ),
    Mistake(
        TASK,
        {"do_eval": True, "export_onnx": "/nowhere/x.onnx"},
        "--export_onnx /nowhere/x.onnx: no such directory; create /nowhere first",
    ),
    Mistake(
        TASK,
        {"output_dir": "{teacher}", "overwrite_output_dir": True},
        "--teacher_model {teacher} would be overwritten by the run in --output_dir "
        "{teacher}; give another directory",
    ),
    Mistake(
        TASK,
        {"output_dir": "{task}", "overwrite_output_dir": True},
        "--data_dir {task} would be overwritten by the run in --output_dir {task}; give "
        "another directory",
    ),
    # --- columns: all of them at once, with the names that were probably meant
    Mistake(
        TASK,
        {"task_name": "own", "text_columns": "sentense", "label_column": "lable"},
        "{task}/train.tsv, {task}/dev.tsv: no column 'sentense' (--text_columns; did you mean "
        "'sentence'?) and no column 'lable' (--label_column; did you mean 'label'?); the file has "
        "'sentence', 'label'",
    ),
    Mistake(
        TASK,
        {"label_column": "9", "do_eval": True},
        "{task}/dev.tsv: no column '9' (--label_column); the file has 'sentence', 'label'",
    ),
    Mistake(
        TASK,
        {"task_name": "ner", "train_file": "train.tsv", "text_columns": "word"},
        "{task}/train.tsv, {task}/dev.tsv: --text_columns word: its columns have no names; give a "
        "number (0 is the first, -1 the last)",
    ),
    Mistake(
        AUGMENT,
        {"task_name": "SST-2", "text_columns": "Sentenze", "label_column": "gold"},
        "{task}/train.tsv: no column 'Sentenze' (--text_columns; did you mean 'sentence'?) and no "
        "column 'gold' (--label_column); the file has 'sentence', 'label'",
    ),
    Mistake(  # which flag is meant is asked first
        TASK,
        {"task_name": "own", "text_column": "sentence", "label_column": "lable"},
        "--text_column is no flag of this script; did you mean --text_columns? --help explains "
        "all flags",
    ),
    Mistake(
        TASK,
        {"student_model": "\x1b[31mred"},
        "--student_model \\x1b[31mred: no such file or directory",
    ),
]


def filled(changes: dict[str, Any], setting: dict[str, Path]) -> dict[str, Any]:
    """Put the places of the setting into the values of flags."""
    return {
        name: value.format(**setting) if isinstance(value, str) else value
        for name, value in changes.items()
    }


NO_TORCH = "raise SystemExit('torch was imported')"


@pytest.mark.parametrize(
    ("script", "changes", "told"),
    [
        (TASK, {"label_column": "lable"}, "did you mean 'label'?"),
        (AUGMENT, {"label_column": "lable"}, "did you mean 'label'?"),
        (TASK, {"predict": "{task}/dev.tsv", "text_columns": "texts"}, "no column 'texts'"),
        (TASK, {"label_column": "label"}, "torch was imported"),
    ],
)
def test_columns_are_looked_at_before_torch_is_imported(
    script: str, changes: dict[str, Any], told: str, setting: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "torch.py").write_text(NO_TORCH)
    arguments = map(str, ARGUMENTS[script](setting, **filled(changes, setting)))
    end = subprocess.run(
        [sys.executable, ROOT / script, *arguments],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "stub")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told in end.stderr
    assert end.stderr.count("\n") == 1
    assert end.returncode == (1 if "torch" in told else 2)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: f"{m.script[:3]}-{'-'.join(m.changes)}")
def test_a_mistake_is_one_line(
    mistake: Mistake, setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    changes = filled(mistake.changes, setting)
    before = everything_in(setting["task"].parents[1])
    end = run(mistake.script, *ARGUMENTS[mistake.script](setting, **changes))
    assert_one_line(end, mistake.script, mistake.line.format(**setting), mistake.code)
    assert everything_in(setting["task"].parents[1]) == before, "nothing is left behind"


# --- files that are spoilt ----------------------------------------------------------------------


def only_configuration(setting: dict[str, Path], **changes: object) -> None:
    """Make the student a configuration alone."""
    for file in setting["student"].iterdir():
        if file.name != "config.json":
            file.unlink()
    configure(setting["student"], **changes)


def configure(directory: Path, **changes: object) -> None:
    """Change values of a config.json."""
    file = directory / "config.json"
    values = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    file.write_text(json.dumps(values), encoding="utf-8")


def rename_encoder(setting: dict[str, Path]) -> None:
    """Call the tensors of the teacher's encoder by names that are nobody's."""
    file = setting["teacher"] / "model.safetensors"
    tensors = {name.replace("bert.", "net."): value for name, value in load_file(file).items()}
    save_file({n: t for n, t in tensors.items() if "word_embeddings" not in n}, file)


def hold_output(setting: dict[str, Path]) -> None:
    """Be another run that writes to the same file."""
    lock = RunLock(setting["out"].parent, "--output", setting["out"].name)
    lock.take()
    HELD.append(lock)


HELD: list[RunLock] = []  # a lock is given back with the last name for it


@pytest.fixture(autouse=True)
def give_back() -> Iterator[None]:
    """Give back what `hold_output` took."""
    yield
    while HELD:
        HELD.pop().release()


class Spoilt(NamedTuple):
    """A right command over a setting that was spoilt, and what the user reads."""

    script: str
    spoil: Callable[[dict[str, Path]], object]
    line: str
    changes: dict[str, Any] = {}
    code: int = 2


SPOILT = [
    *(
        Spoilt(
            script,
            lambda setting: only_configuration(setting, vocab_size=100),
            "the student's vocab_size is 100, but the vocabulary has 160 entries; set it to that "
            "in the student's config.json",
        )
        for script in (GENERAL, TASK)
    ),
    Spoilt(
        AUGMENT,
        lambda setting: configure(setting["bert"], vocab_size=100),
        "{bert}/vocab.txt holds 160 entries, but config.json says vocab_size 100; both must come "
        "from the same model",
    ),
    Spoilt(
        GENERAL,
        rename_encoder,
        "{teacher} lacks the encoder (bert.embeddings, bert.encoder) (69 tensors missing, "
        "bert.embeddings.word_embeddings.weight first; what is there is called net.embeddings..., "
        "...); give a checkpoint that was trained with it",
    ),
    Spoilt(
        GENERAL,
        lambda setting: configure(setting["student"], num_hidden_layers=10**9),
        "{student}/config.json: num_hidden_layers 1,000,000,000 is beyond reason; at most 1,000 "
        "are built",
    ),
    Spoilt(
        TASK,
        hold_output,
        "--output {out} is in use by another run (pid ... on ...); wait until that one has ended, "
        "or give another output",
        {"predict": "good film", "student_model": "{teacher}", "output": "{out}"},
    ),
    Spoilt(
        TASK,
        lambda setting: (setting["teacher"] / "config.json").write_text("[" * 100_000),
        "{teacher}/config.json: not JSON that is ours: it is nested too deeply",
    ),
    Spoilt(
        TASK,
        lambda setting: (setting["task"] / "train.tsv").write_bytes(b"sentence\tlabel\n\xff\t1\n"),
        "{task}/train.tsv, line 2: not UTF-8...",
    ),
]


@pytest.mark.parametrize("case", SPOILT, ids=lambda case: f"{case.script[:3]}-{case.line[:30]}")
def test_a_spoilt_file_is_one_line(
    case: Spoilt, setting: dict[str, Path], run: Callable[..., Finished]
) -> None:
    case.spoil(setting)
    end = run(case.script, *ARGUMENTS[case.script](setting, **filled(case.changes, setting)))
    assert_one_line(end, case.script, case.line.format(**setting), case.code)


def test_a_compiler_that_is_missing_is_told(
    setting: dict[str, Path], run: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    end = run(TASK, *ARGUMENTS[TASK](setting, compile=True))
    line = "--compile needs a C++ compiler, and there is no no-such-compiler in PATH; ..."
    assert_one_line(end, TASK, line, 3)


FINISHED = [(GENERAL, {}, "model.safetensors"), (TASK, {"save_bin": True}, "pytorch_model.bin")]


@pytest.mark.parametrize(("script", "changes", "file"), FINISHED)
def test_a_finished_run_has_its_files(
    script: str,
    changes: dict[str, Any],
    file: str,
    setting: dict[str, Path],
    run: Callable[..., Finished],
) -> None:
    assert run(script, *ARGUMENTS[script](setting, **changes)).code == 0
    arguments = ARGUMENTS[script](setting, **changes, resume=True)
    assert run(script, *arguments).code == 0
    (setting["out"] / file).unlink()
    line = f"--resume: the run in {setting['out']} is finished, but {file} is gone; ..."
    assert_one_line(run(script, *arguments), script, line, 2)


def assert_one_line(end: Finished, script: str, line: str, code: int) -> None:
    """Compare the error that is told, in which ... stands for any words."""
    told = [row for row in end.stderr.splitlines() if "error:" in row]
    assert len(told) == 1, end.stderr
    expected = re.escape(f"{script}: error: {line}").replace(r"\.\.\.", ".*")
    assert re.fullmatch(expected, told[0]), told[0]
    assert end.stderr.splitlines()[-1] == told[0], "the mistake is the last that is said"
    assert end.code == code


def everything_in(directory: Path) -> set[str]:
    """Return the paths of all files and directories, but for caches."""
    found = {str(path.relative_to(directory)) for path in directory.rglob("*")}
    return {path for path in found if ".cache" not in path and ".packed" not in path}


LAUNCHERS = [
    ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x in the environment: a whole number from 0 to 1"),
    ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 in the environment: a whole number from 0 to 1"),
    ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment: a whole number from 1 "),
    (
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "-1"},
        "LOCAL_RANK=-1 in the environment: a whole number from 0 to 0",
    ),
]


@pytest.mark.parametrize(("variables", "line"), LAUNCHERS)
def test_a_launchers_mistake_is_one_line(
    variables: dict[str, str],
    line: str,
    setting: dict[str, Path],
    run: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    end = run(GENERAL, *ARGUMENTS[GENERAL](setting))
    assert (end.code, line in end.stderr) == (2, True), end.stderr
    assert len([row for row in end.stderr.splitlines() if "error:" in row]) == 1
