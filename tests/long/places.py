"""Places with everything that the scripts read, among it runs that were stopped half-way."""

from __future__ import annotations

import hashlib
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from conftest import checkpoint_maker, make_tiny_config, write_corpus, write_vocabulary
from processes import Ended, Script
from script_runs import ARGUMENTS, SCRIPTS, make_setting
from toy_runs import metrics_of

from transformer.modeling import BertForPreTraining

PREGENERATE, GENERAL, AUGMENT, TASK = SCRIPTS

Setting = dict[str, Path]

# What the runs of the long tests have in common: some seconds of work, in steps that can be parted.
CHANGES: dict[str, dict[str, object]] = {
    PREGENERATE: {"epochs_to_generate": 12, "max_seq_len": 48, "num_workers": 2},
    GENERAL: {
        **{"num_train_epochs": 10, "train_batch_size": 2, "save_steps": 1, "eval_step": 7},
        **{"do_eval": True, "no_cuda": True, "log_steps": 3},
    },
    AUGMENT: {"N": 2, "no_cuda": True},
    TASK: {
        **{"pred_distill": True, "num_train_epochs": 3, "train_batch_size": 8, "save_steps": 1},
        **{"eval_step": 5, "no_cuda": True, "save_bin": True},
    },
}

# Endings of what a run is for; the rest is logs and states.
RESULTS = (".safetensors", ".bin", ".tsv", "config.json", "vocab.txt", "eval_results.json")


def make_place(directory: Path) -> Setting:
    """Make a new directory in which all four scripts can run."""
    directory.mkdir(parents=True)
    vocabulary = write_vocabulary(directory / "vocabulary")
    make = checkpoint_maker(directory, vocabulary, make_tiny_config())
    setting = make_setting(directory, make, write_corpus(directory / "corpus.txt"))
    make("pretrained", BertForPreTraining)
    rows = [f"good film number {n} , old story\t{n % 2}\n" for n in range(40)]
    for name in ("train.tsv", "dev.tsv"):
        content = "sentence\tlabel\n" + "".join(rows)
        (setting["task"] / name).write_text(content, encoding="utf-8")
    (directory / "home").mkdir()
    return setting


def copy_place(source: Path, target: Path) -> Setting:
    """Copy a place; its runs go on there as if they had begun there."""
    shutil.copytree(source, target)
    names = {
        **{"corpus": "corpus.txt", "bert": "bert", "teacher": "teacher", "student": "student"},
        **{"pregenerated": "pregenerated", "task": "glue/SST-2", "glove": "glove.txt"},
        "out": "out",
    }
    return {name: target / path for name, path in names.items()}


def start(script: str, setting: Setting, *, seed: int = 42, **options) -> Script:
    """Start a script in a place. What is no option of `Script` is a flag of the script."""
    own = {
        name: options.pop(name) for name in ("redirect", "variables", "stdin") if name in options
    }
    flags = {**CHANGES[script], "seed": seed, **options}
    if script == AUGMENT:
        flags.setdefault("output", setting["out"].with_suffix(".tsv"))
    home = str(setting["out"].parent / "home")
    own["variables"] = {"HOME": home, "HF_HOME": home, **own.get("variables", {})}
    return Script(script, ARGUMENTS[script](setting, **flags), setting["out"].parent, **own)


def result_of(setting: Setting) -> dict[str, str]:
    """Return a digest of every file that a run is for, by name."""
    out = setting["out"]
    files = [out.with_suffix(".tsv")] if out.with_suffix(".tsv").exists() else []
    if out.is_dir():
        files += [path for path in sorted(out.rglob("*")) if path.name.endswith(RESULTS)]
        files += sorted(out.glob("epoch_*"))
    found = {
        str(path.relative_to(out.parent)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    if (out / "metrics.jsonl").exists():
        found["metrics"] = str(metrics_of(out))
    return found


def stopped_run(
    script: str, setting: Setting, is_far_enough: Callable[[], bool], **flags: object
) -> Ended:
    """Run a script until it has got so far, then ask it to stop."""
    script_run = start(script, setting, **flags)
    limit = time.monotonic() + 120
    while not is_far_enough() and time.monotonic() < limit:
        time.sleep(0.001)
    script_run.signal(signal.SIGTERM)
    return script_run.wait()
