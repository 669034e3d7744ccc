"""Spoilt files: one file of a place is spoilt, and what reads it is run."""

from __future__ import annotations

import argparse
import gzip
import random
import resource
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mutations import spoil
from outcome import Outcome, judged
from places import (
    AUGMENT,
    GENERAL,
    PREGENERATE,
    TASK,
    Setting,
    copy_place,
    make_place,
    start,
    stopped_run,
)
from processes import CHECKPOINT, Script

# A configuration may ask for more than there is; it gets no more than this.
MEMORY_BYTES = 8 << 30

SHORT: dict[str, dict[str, Any]] = {
    PREGENERATE: {"epochs_to_generate": 1, "num_workers": 1},
    GENERAL: {"num_train_epochs": 1, "save_steps": 9, "train_batch_size": 8},
    AUGMENT: {"N": 1},
    TASK: {"num_train_epochs": 1, "save_steps": 9, "train_batch_size": 32, "save_bin": None},
}

OWN = {"task_name": "own", "text_columns": "text", "label_column": "label"}


class Target(NamedTuple):
    """A file to spoil, and the runs that read it: a script with flags."""

    file: str
    runs: tuple[tuple[str, dict[str, Any]], ...]


# The run that goes on has the flags of the one that was stopped: few steps are left of it.
FEW_STEPS = {"num_train_epochs": 2}

FINETUNE = {"finetune": True, "pred_distill": None, "teacher_model": None}
PREDICT = {
    **{"predict": "{file}", "output": "labelled", "student_model": "teacher"},
    **{"pred_distill": None, "data_dir": None, "task_name": None, "teacher_model": None},
    **{"output_dir": None, "text_columns": None, "label_column": None},
}
RESUME = {"resume": True}

TARGETS = (
    Target("glue/SST-2/train.tsv", ((TASK, FINETUNE), (AUGMENT, {}), (TASK, PREDICT))),
    Target("glue/SST-2/dev.tsv", ((TASK, FINETUNE), (TASK, PREDICT))),
    Target(
        "csv/train.csv",
        (
            (TASK, {**FINETUNE, **OWN, "data_dir": "csv"}),
            (AUGMENT, {**OWN, "data_dir": "csv", "glue_dir": None}),
            (TASK, {**PREDICT, "text_columns": "text"}),
        ),
    ),
    Target(
        "json/train.jsonl",
        (
            (TASK, {**FINETUNE, **OWN, "data_dir": "json"}),
            (AUGMENT, {**OWN, "data_dir": "json", "glue_dir": None}),
            (TASK, {**PREDICT, "text_columns": "text"}),
        ),
    ),
    Target("corpus.txt", ((PREGENERATE, {}),)),
    Target("corpus.jsonl", ((PREGENERATE, {"train_corpus": "{file}"}),)),
    Target("corpus.gz", ((PREGENERATE, {"train_corpus": "{file}"}),)),
    Target("glove.txt", ((AUGMENT, {}), (AUGMENT, {"glove_only": True}))),
    Target("glove.gz", ((AUGMENT, {"glove_embs": "{file}"}),)),
    Target("glove.zip", ((AUGMENT, {"glove_embs": "{file}"}),)),
    Target("bert/vocab.txt", ((PREGENERATE, {}), (AUGMENT, {}), (CHECKPOINT, {"": "bert"}))),
    Target("bert/tokenizer_config.json", ((PREGENERATE, {}), (CHECKPOINT, {"": "bert"}))),
    Target("fast/tokenizer.json", ((PREGENERATE, {"bert_model": "fast"}),)),
    Target("teacher/config.json", ((CHECKPOINT, {"": "teacher"}), (GENERAL, {}), (TASK, {}))),
    Target("student/config.json", ((CHECKPOINT, {"": "student"}), (GENERAL, {}), (TASK, {}))),
    Target("bert/config.json", ((CHECKPOINT, {"": "bert"}), (AUGMENT, {}))),
    Target("teacher/model.safetensors", ((CHECKPOINT, {"": "teacher"}), (GENERAL, {}), (TASK, {}))),
    Target("bin/pytorch_model.bin", ((CHECKPOINT, {"": "bin"}), (TASK, {"teacher_model": "bin"}))),
    Target("teacher.zip", ((CHECKPOINT, {"": "{file}"}),)),
    Target("teacher.tar.gz", ((CHECKPOINT, {"": "{file}"}),)),
    Target("pregenerated/epoch_0.json", ((GENERAL, {}),)),
    Target("pregenerated/epoch_0_metrics.json", ((GENERAL, {}),)),
    Target(
        "general/training_state.pt", ((GENERAL, {**RESUME, **FEW_STEPS, "output_dir": "general"}),)
    ),
    Target("general/metrics.jsonl", ((GENERAL, {**RESUME, **FEW_STEPS, "output_dir": "general"}),)),
    Target("general/args.json", ((GENERAL, {**RESUME, **FEW_STEPS, "output_dir": "general"}),)),
    Target("distilled/training_state.pt", ((TASK, {**RESUME, "output_dir": "distilled"}),)),
    Target("distilled/eval_results.json", ((TASK, {**RESUME, "output_dir": "distilled"}),)),
    Target(
        "corpus_run/pregenerate_state.json",
        ((PREGENERATE, {**RESUME, "output_dir": "corpus_run"}),),
    ),
    *(
        Target(
            f"augmented.tsv.parts/{note}.json",
            ((AUGMENT, {**RESUME, "output": "augmented.tsv"}),),
        )
        for note in ("plan", "neighbours", "fingerprint")
    ),
)


def make_template(directory: Path) -> Setting:
    """Make a place in which every file of `TARGETS` is, runs that were stopped among them."""
    setting = make_place(directory)
    for name, rows in (
        ("csv/{}.csv", ["text,label\n", *(f'"good, film {n}",{n % 2}\n' for n in range(20))]),
        ("json/{}.jsonl", [f'{{"text": "film {n}", "label": {n % 2}}}\n' for n in range(20)]),
    ):
        for part in ("train", "dev"):
            file = directory / name.format(part)
            file.parent.mkdir(exist_ok=True)
            file.write_text("".join(rows), encoding="utf-8")
    text = setting["corpus"].read_bytes()
    (directory / "corpus.gz").write_bytes(gzip.compress(text))
    lines = [f'{{"text": "{line}"}}\n' for line in text.decode().split("\n") if line]
    (directory / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    words = ("good", "film", "old", "story", "war")
    vectors = "".join(f"{word} {number} -{number}.5\n" for number, word in enumerate(words))
    setting["glove"].write_text(vectors, encoding="utf-8")
    (directory / "glove.gz").write_bytes(gzip.compress(vectors.encode()))
    with zipfile.ZipFile(directory / "glove.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(setting["glove"], "glove.txt")
    fast = shutil.copytree(setting["bert"], directory / "fast")
    (fast / "vocab.txt").unlink()
    _pack(setting["teacher"], directory)
    _stop_runs(directory, setting)
    return setting


def _pack(teacher: Path, directory: Path) -> None:
    """Write the teacher as a pickle and as archives."""
    import torch
    from safetensors.torch import load_file

    other = shutil.copytree(teacher, directory / "bin")
    torch.save(load_file(other / "model.safetensors"), other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    with zipfile.ZipFile(directory / "teacher.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(teacher.iterdir()):
            archive.write(file, file.name)
    with tarfile.open(directory / "teacher.tar.gz", "w:gz") as archive:
        archive.add(teacher, "teacher")


def _stop_runs(directory: Path, setting: Setting) -> None:
    """Leave a run of each script half-way."""
    for script, name, file, flags in (
        (GENERAL, "general", "general/training_state.pt", FEW_STEPS),
        (TASK, "distilled", "distilled/eval_results.json", {}),
        (PREGENERATE, "corpus_run", "corpus_run/epoch_1.json", {}),
        (AUGMENT, "augmented", "augmented.tsv.parts/plan.json", {}),
    ):
        run = {**setting, "out": directory / name}
        ended = stopped_run(script, run, (directory / file).exists, **flags)
        assert ended.code == 143, (name, ended)


def unspoilt(args: argparse.Namespace, directory: Path) -> Iterator[Outcome]:
    """Run what `fuzz` runs over files that nobody spoilt: all is done."""
    make_template(directory / "template")
    for target in TARGETS:
        for script, flags in target.runs if args.only in target.file else ():
            place = directory / "case"
            setting = copy_place(directory / "template", place)
            ended = _start(script, flags, place / target.file, setting).wait()
            outcome = judged(target.file, ended)
            if ended.code and not outcome.problem:
                outcome.problem, outcome.detail = "refused", f"{ended.command}\n{ended.stderr}"
            yield outcome
            shutil.rmtree(place)


def fuzz(args: argparse.Namespace, directory: Path) -> Iterator[Outcome]:
    """Spoil files, one after the other, and run what reads them."""
    make_template(directory / "template")
    targets = [target for target in TARGETS if args.only in target.file]
    for case in range(args.cases):
        rng = random.Random(f"{args.seed} {case}")
        target = targets[case % len(targets)]
        place = directory / f"case_{case}"
        setting = copy_place(directory / "template", place)
        way = spoil(place / target.file, rng)
        script, flags = rng.choice(target.runs)
        ended = _start(script, flags, place / target.file, setting).wait()
        note = f"seed {args.seed}, case {case}: {way} of {place / target.file}"
        outcome = judged(target.file, ended, note=note)
        yield outcome
        if not outcome.problem:
            shutil.rmtree(place)


def _start(script: str, flags: dict[str, Any], file: Path, setting: Setting) -> Script:
    """Start what reads `file`; flags that name a file of the place get its whole path."""
    place = setting["out"].parent
    whole = {
        name: str(file)
        if value == "{file}"
        else place / value
        if isinstance(value, str) and (place / value.partition(".")[0]).exists()
        else value
        for name, value in flags.items()
    }
    if script == CHECKPOINT:
        home = {"HOME": str(place / "home"), "HF_HOME": str(place / "home")}
        return Script(script, [whole[""]], place, redirect=_limit_memory, variables=home)
    if flags.get("output") == "augmented.tsv":
        whole["output"] = place / "augmented.tsv"
    is_resumed = "resume" in flags
    return start(
        script, setting, redirect=_limit_memory, **({} if is_resumed else SHORT[script]), **whole
    )


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
