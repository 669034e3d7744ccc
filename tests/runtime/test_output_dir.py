"""The output directory of a run: what is refused, what is replaced and when, one run at a time."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from transformer.files import UserError
from transformer.runtime import output_dir as module
from transformer.runtime.output_dir import made_with, run_directory, save_args


def arguments(path: Path, **changes: Any) -> argparse.Namespace:
    values = {"output_dir": path, "resume": False, "overwrite_output_dir": False, "model": None}
    return argparse.Namespace(**{**values, **changes})


def start(path: Path, *, begin: bool = True, **changes: Any) -> None:
    """Run something that does nothing in `path`."""
    args = arguments(path, **changes)
    with run_directory(args, ("model",)) as directory:
        if begin:
            directory.begin(args)


def tree(path: Path) -> dict[str, str]:
    """Return the content of every file below `path`, but for the lock."""
    hidden = (".lock", ".tmp")
    files = sorted(f for f in path.rglob("*") if f.is_file() and not f.name.endswith(hidden))
    return {str(file.relative_to(path)): file.read_text(encoding="utf-8") for file in files}


def write_run(path: Path, **files: str) -> dict[str, str]:
    """Make a directory that holds a finished run, and return its tree."""
    start(path)
    for name, content in {"model.safetensors": "old", "best/config.json": "{}", **files}.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(content, encoding="utf-8")
    return tree(path)


def test_a_new_directory_is_made(tmp_path):
    start(tmp_path / "a" / "b")
    assert json.loads((tmp_path / "a" / "b" / "args.json").read_text())["overwrite_output_dir"] is (
        False
    )


def test_what_is_held_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"notes.txt.*--resume.*--overwrite_output_dir"):
        start(tmp_path)
    with pytest.raises(UserError, match="no run"):
        start(tmp_path, resume=True)
    with pytest.raises(UserError, match="is a file"):
        start(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="contradict"):
        start(tmp_path, resume=True, overwrite_output_dir=True)


# --- nothing is left behind --------------------------------------------------------------------


@pytest.mark.parametrize("exists", [False, True])
def test_a_run_that_fails_in_planning_leaves_nothing(tmp_path, exists):
    path = tmp_path / "new" / "out"
    if exists:
        path.mkdir(parents=True)
    with pytest.raises(UserError, match="planning"), run_directory(arguments(path), ()):
        raise UserError("found in planning")
    assert list(tmp_path.rglob("*")) == ([path.parent, path] if exists else [])


def test_a_run_that_fails_in_planning_leaves_the_former_one(tmp_path):
    before = write_run(tmp_path)
    args = arguments(tmp_path, overwrite_output_dir=True)
    with pytest.raises(UserError, match="planning"), run_directory(args, ()):
        raise UserError("found in planning")
    assert tree(tmp_path) == before


# --- replacing ---------------------------------------------------------------------------------


def test_overwriting_replaces_the_run_and_nothing_else(tmp_path):
    write_run(tmp_path, **{"notes.txt": "mine", "seed_1/args.json": "{}", "epoch_0.json": "x"})
    start(tmp_path, overwrite_output_dir=True)
    assert sorted(tree(tmp_path)) == ["args.json", "notes.txt"]


@pytest.mark.parametrize("content", [None, "{}", "[]", "{", '{"output_dir": "x"}'])
def test_what_is_no_run_of_ours_is_not_replaced(tmp_path, content):
    (tmp_path / "model.safetensors").write_text("a BERT")
    if content is not None:
        (tmp_path / "args.json").write_text(content)
    before = tree(tmp_path)
    with pytest.raises(UserError, match="no run of this toolkit"):
        start(tmp_path, overwrite_output_dir=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("place", [".", "best", "models/bert", "bert.zip"])
def test_an_input_is_never_replaced(tmp_path, place):
    write_run(tmp_path, **{"bert.zip": "zip"})
    (tmp_path / "models" / "bert").mkdir(parents=True)
    before = tree(tmp_path)
    with pytest.raises(UserError, match="--model .* would be overwritten"):
        start(tmp_path, overwrite_output_dir=True, model=str(tmp_path / place))
    assert tree(tmp_path) == before


def test_an_input_reached_by_a_link_is_never_replaced(tmp_path):
    write_run(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(UserError, match="would be overwritten"):
        start(tmp_path / "out", overwrite_output_dir=True, model=[str(tmp_path / "link")])


def test_a_copy_does_not_go_into_what_is_copied(tmp_path):
    with pytest.raises(UserError, match="--data_url .* lies in"):
        start(tmp_path / "out", data_url=str(tmp_path / "out" / "copy"))
    start(tmp_path / "out", data_url=str(tmp_path / "copy"))


def test_killed_while_it_replaces_it_is_put_back(tmp_path, monkeypatch):
    """Whatever rename a run is killed at, the next one finds the old run whole, or the new one."""
    renames = 0
    for last in range(12):
        path = tmp_path / str(last)
        before = write_run(path)
        pid = os.fork()
        if pid == 0:
            replace, seen = os.replace, []

            def dying(source, target, replace=replace, seen=seen, last=last):
                if len(seen) == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen.append(target)
                replace(source, target)

            os.replace = dying
            start(path, overwrite_output_dir=True)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        renames += killed
        start(path, begin=False, resume=True)
        if killed:
            assert tree(path) == before
        else:
            assert list(tree(path)) == ["args.json"]
    # the note on the lock's holder, three files set aside, the new args.json
    assert renames == 5


def test_restart_by_torchrun_goes_before_overwriting(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    write_run(tmp_path, **{"training_state.pt": "state"})
    start(tmp_path, resume=True, overwrite_output_dir=True)
    assert (tmp_path / "training_state.pt").exists()


def test_resuming_removes_what_a_killed_save_left(tmp_path):
    write_run(tmp_path, **{".training_state.pt.x1y2.tmp": "half"})
    start(tmp_path, resume=True)
    assert not list(tmp_path.glob(".*.tmp"))


# --- one run at a time -------------------------------------------------------------------------


@pytest.mark.parametrize("second", [{}, {"resume": True}, {"overwrite_output_dir": True}])
def test_a_second_run_is_told_of_the_first(tmp_path, second, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    path = tmp_path / "out"
    with run_directory(arguments(path), ()) as directory:
        directory.begin(arguments(path))
        before = tree(path)
        pid = os.fork()
        if pid == 0:
            try:
                start(path, **second)
            except UserError as error:
                (tmp_path / "told").write_text(str(error))
            os._exit(0)
        os.waitpid(pid, 0)
        assert tree(path) == before
    told = (tmp_path / "told").read_text()
    if second:
        assert f"in use by another run (pid {os.getpid()} on " in told
    else:
        assert "holds files" in told


def test_the_lock_of_a_killed_run_is_free(tmp_path):
    pid = os.fork()
    if pid == 0:
        with run_directory(arguments(tmp_path), ()) as directory:
            directory.begin(arguments(tmp_path))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    start(tmp_path, resume=True)
    assert not (tmp_path / ".running").exists()


def test_a_directory_whose_lock_is_taken_is_not_removed(tmp_path, monkeypatch):
    """The second of two runs that begin at the same time fails, and the first goes on."""
    monkeypatch.setattr(module, "try_lock", lambda path, seconds: None)
    with pytest.raises(UserError, match="in use"):
        start(tmp_path / "out")


def test_args_are_saved(tmp_path, monkeypatch):
    argv = ["/place/run.py", "--data_url", "https://me:word@host/x?key=1", "--name", "a b"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    save_args(argparse.Namespace(output_dir=tmp_path, seed=3, name="é", odd="b\udcff"), tmp_path)
    saved = json.loads((tmp_path / "args.json").read_text(encoding="utf-8"))
    made = saved.pop("made_with")
    assert saved == {"output_dir": str(tmp_path), "seed": 3, "name": "é", "odd": "b\udcff"}
    assert made["command"] == "python run.py --data_url 'https://host/x?...' --name 'a b'"
    assert datetime.fromisoformat(made["date"]).utcoffset() == timedelta(0)
    assert made["versions"]["torch"] == torch.__version__
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert made_with()["command"].startswith("torchrun --nproc_per_node=4 run.py --data_url")
