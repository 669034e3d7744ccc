"""Device, precision, ranks, seeds, output directories and exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from transformer.files import UserError, file_lock
from transformer.runtime import ranks as runtime_module
from transformer.runtime.ranks import add_runtime_arguments, seed_step, setup_runtime
from transformer.runtime.script import RunError, run_script

ROOT = Path(__file__).resolve().parents[2]


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_runtime_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    level, handlers = logging.root.level, list(logging.root.handlers)
    yield
    logging.root.setLevel(level)
    logging.root.handlers[:] = handlers


# --- device and precision ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "native", "expected"),
    [
        ([], True, torch.bfloat16),
        ([], False, torch.float32),
        (["--precision", "fp32"], True, torch.float32),
        (["--precision", "bf16"], False, torch.bfloat16),
    ],
)
def test_precision(monkeypatch, words, native, expected):
    monkeypatch.setattr(runtime_module, "native_bf16", lambda device: native)
    assert setup_runtime(parse("--no_cuda", *words)).dtype == expected


@pytest.mark.parametrize("words", [["--fp16"], ["--precision", "fp16"]])
def test_fp16_is_refused_on_a_cpu(words):
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        setup_runtime(parse("--no_cuda", *words))


def test_contradicting_precisions_are_refused():
    with pytest.raises(UserError, match="contradict"):
        setup_runtime(parse("--no_cuda", "--fp16", "--precision", "bf16"))


def test_autocast_computes_in_the_precision():
    runtime = runtime_module.Runtime(torch.device("cpu"), torch.bfloat16)
    with runtime.autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    with runtime_module.Runtime(torch.device("cpu")).autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


@pytest.mark.parametrize("flag", ["--local_rank", "--local-rank"])
def test_both_spellings_of_local_rank(flag):
    assert parse(f"{flag}=1").local_rank == 1


def test_local_rank_without_a_launcher_is_refused():
    with pytest.raises(UserError, match="torchrun"):
        setup_runtime(parse("--local_rank", "1"))
    assert setup_runtime(parse("--local_rank", "-1", "--no_cuda")).world_size == 1


def test_ranks_come_from_the_launcher(monkeypatch):
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runtime_module.dist, "is_initialized", lambda: True)
    runtime = setup_runtime(parse("--no_cuda"))
    assert (runtime.rank, runtime.local_rank, runtime.world_size) == (5, 1, 8)
    assert not runtime.is_main
    assert logging.root.level == logging.ERROR, "only the main rank speaks"


def test_a_rank_without_gpu_is_told_how_many_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--nproc_per_node=2"):
        setup_runtime(parse())


def test_dropout_depends_on_seed_step_and_rank_alone():
    def draw(*key: int) -> list[float]:
        torch.rand(3)  # whatever ran before
        seed_step(*key)
        return torch.rand(4).tolist()

    assert draw(42, 7, 1) == draw(42, 7, 1)
    assert len({tuple(draw(*key)) for key in [(42, 7, 1), (42, 7, 0), (42, 8, 1), (43, 7, 1)]}) == 4


# --- locks -------------------------------------------------------------------------------------


def test_lock_makes_others_wait(tmp_path):
    order = []
    pid = os.fork()
    if pid == 0:
        with file_lock(tmp_path / "lock", "the child"):
            (tmp_path / "held").touch()
            time.sleep(0.3)
            (tmp_path / "made").touch()
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with file_lock(tmp_path / "lock", "the child"):
        order.append((tmp_path / "made").exists())
    os.waitpid(pid, 0)
    assert order == [True]


# --- exit codes --------------------------------------------------------------------------------


def fail(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("--x 3: give 4"), 2, "--x 3: give 4"),
        (FileNotFoundError(2, "No such file", "x.txt"), 2, "x.txt"),
        (OSError(28, "No space left on device", "x.txt"), 3, "No space left"),
        (PermissionError(13, "Permission denied", "/a/cache"), 3, "/a/cache"),
        (ModuleNotFoundError("No module", name="onnx"), 3, "package onnx is missing"),
        (MemoryError(), 3, "out of memory"),
        (RunError("the loss is not finite"), 1, "not finite"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_are_told_in_one_line(error, code, says, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/script.py"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run_script(fail(error)) == code
    finally:
        signal.signal(signal.SIGTERM, before)
    told = capsys.readouterr().err
    assert told.startswith("script.py: error: ") and told.count("\n") == 1 and says in told


def test_our_own_mistakes_keep_their_traceback():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="shapes"):
        run_script(fail(RuntimeError("shapes")))
    signal.signal(signal.SIGTERM, before)


def test_sigterm_outside_the_loop_leaves_with_143(tmp_path):
    program = f"""
        import sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from transformer.runtime.script import run_script
        def main():
            print("ready", flush=True)
            time.sleep(30)
        sys.exit(run_script(main))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.terminate()
        assert process.wait(20) == 143
