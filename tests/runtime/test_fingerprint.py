"""What decides the result of a run, and what a resumed one is refused for."""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

import pytest

from transformer.files import UserError, file_digest
from transformer.runtime import fingerprint as module
from transformer.runtime.fingerprint import (
    check_fingerprint,
    fingerprint,
    sampled_digest,
)
from transformer.tasks import run as task_run

# Flags that decide nothing: where things are (what is read there is compared by content), how
# much is written, how a run is started, and how fast it is.
FREE = {
    *("help", "output_dir", "output", "data_url", "cache_dir", "tmp_dir"),
    *("bert_model", "train_corpus", "pregenerated_data", "teacher_model", "student_model"),
    *("pretrained_bert_model", "glove_embs", "stop_words", "data_dir", "glue_dir"),
    *("train_file", "dev_file", "test_file", "allow_short", "init_text", "transfer_file"),
    *("teacher_logits", "teacher_probabilities"),
    *("resume", "overwrite_output_dir", "overwrite_output", "dry_run", "local_rank", "no_cuda"),
    *("num_workers", "reduce_memory", "save_steps", "tensorboard", "save_safetensors", "save_bin"),
    *(
        "do_predict",
        "benchmark",
        "export_onnx",
        "int8",
        "predict",
    ),  # what is done with a finished model
}

# Free in one script only, with what is compared in its place.
ALSO_FREE = {
    "pregenerate_training_data": {
        "do_lower_case",  # the tokenizer
        "epochs_to_generate",  # more of them may be asked for
    },
    "general_distill": {
        *("precision", "fp16"),  # the precision computed in
        "do_lower_case",  # the tokenizer
    },
    "data_augmentation": {*("precision", "fp16")},
    "task_distill": {*("precision", "fp16"), "do_lower_case", "do_eval"},
}


@pytest.fixture(params=ALSO_FREE)
def script(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def test_each_flag_decides_or_is_known_not_to(script: ModuleType) -> None:
    """Whoever adds a flag says here, or in DECISIVE, whether a run may go on with another value."""
    free = FREE | ALSO_FREE[script.__name__]
    flags = {action.dest for action in script.build_parser()._actions}
    decisive = set(getattr(script, "DECISIVE", task_run.DECISIVE))
    assert flags - free - decisive == set(), "neither in DECISIVE nor free"
    assert free & decisive == set()


def test_changes_are_named():
    args = argparse.Namespace(seed=1, rate=0.1, save_steps=5)
    was = fingerprint(args, ("seed", "rate", "absent"), dev_sets=["x"])
    assert was == {"--seed": "1", "--rate": "0.1", "dev sets": "['x']"}
    check_fingerprint(was, dict(was), "out", "--anew")
    with pytest.raises(UserError) as told:
        check_fingerprint(was, {**was, "--seed": "2", "dev sets": "['y']"}, "out", "--anew")
    assert str(told.value) == (
        "--resume: out: --seed was 1 and is now 2; dev sets was ['x'] and is now ['y']. Give what "
        "the run was begun with, or begin anew with --anew"
    )


@pytest.mark.parametrize("saved", [None, [], "text"])
def test_what_cannot_be_read_is_told(saved):
    with pytest.raises(UserError, match="cannot be read; begin anew with --anew"):
        check_fingerprint(saved, {"--seed": "1"}, "out", "--anew")


def test_content_and_not_the_name_makes_a_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLED_BYTES", 40)
    monkeypatch.setattr(module, "PIECE_BYTES", 10)
    for size in (0, 15, 40, 99):
        first, moved, other = (tmp_path / f"{name}{size}" for name in "abc")
        first.write_bytes(bytes(range(size)))
        moved.write_bytes(bytes(range(size)))
        other.write_bytes(bytes(range(1, size + 1)) + b"x" * (size == 0))
        for digest in (file_digest, sampled_digest):
            assert digest(first) == digest(moved) != digest(other)
