"""Several ranks: the same result as one, and a job that survives the loss of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import tiny_vocabulary
from toy_runs import ForkedRun, metrics_of, write_epochs, write_student

from transformer.checkpoint.directory import read_weights
from transformer.modeling import BertForPreTraining
from transformer.runtime.ranks import Runtime, agree_on_round

ROOT = Path(__file__).resolve().parents[1]
# A script that behaves as general_distill.py until its second rank is lost at step 7, once.
DYING = """
import os, signal, sys
sys.path.insert(0, {root!r})
import general_distill
from transformer.training import loop
take_step = loop.take_step
def dying(*args):
    take_step(*args)
    is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if is_first and os.environ["RANK"] == "1" and args[2].step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
loop.take_step = dying
sys.exit(general_distill.run_script(general_distill.main))
"""


@pytest.fixture
def command(tmp_path, make_checkpoint, tiny_config) -> Callable[..., list[str]]:
    """Return a function that makes the command line of a run of 10 steps; 33 examples an epoch."""
    data = write_epochs(tmp_path / "data", tiny_vocabulary(), examples=34)
    teacher = make_checkpoint("teacher", BertForPreTraining)
    student = write_student(tmp_path / "student", tiny_config)

    def make(*more: str, **changes: object) -> list[str]:
        flags = {
            "pregenerated_data": data,
            "teacher_model": teacher,
            "student_model": student,
            "max_seq_length": 40,
            "train_batch_size": 8,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "precision": "fp32",
            "log_steps": 1,
            "eval_step": 4,
            **changes,
        }
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        return [*words, "--do_eval", "--no_cuda", *more]

    return make


def finish(run: ForkedRun, code: int = 0) -> str:
    codes = run.wait()
    assert codes == [code] * len(codes), run.log.read_text()
    return run.log.read_text()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_equal_one_with_twice_the_batch(tmp_path, command, accumulation):
    """The last batch of an epoch holds one example: the second rank has none of its own."""
    one, two = tmp_path / "one", tmp_path / "two"
    finish(ForkedRun(command(output_dir=one), log=tmp_path / "log1"))
    argv = command(output_dir=two, train_batch_size=4, gradient_accumulation_steps=accumulation)
    log = finish(ForkedRun(argv, log=tmp_path / "log2", ranks=2))
    assert log.count("general distillation is done") == 1, "only the main rank speaks"
    assert "Warning" not in log
    for a, b in zip(metrics_of(one), metrics_of(two), strict=True):
        assert b == pytest.approx(a, rel=2e-4, abs=1e-7)
    ours, theirs = read_weights(one), read_weights(two)
    for name, tensor in ours.items():
        assert np.allclose(theirs[name], tensor, atol=2e-4), name


def test_dropout_differs_between_ranks(tmp_path, command):
    """With dropout on, two ranks are not one rank with twice the batch."""
    argv = command(output_dir=tmp_path / "two", train_batch_size=4, student_dropout=0.1)
    log = tmp_path / "log"

    def watch() -> None:
        from transformer.training import loop as training

        seed_step = training.seed_step

        def telling(*key: int) -> None:
            seed_step(*key)
            state = torch.get_rng_state()
            # In one call and on a line of its own: both ranks write to one file.
            os.write(2, f"\nDRAW {key[1]} {torch.rand(1).item()}\n".encode())
            torch.set_rng_state(state)

        training.seed_step = telling

    text = finish(ForkedRun(argv, log=log, ranks=2, prepare=watch))
    prints = [line.split()[1:] for line in text.splitlines() if line.startswith("DRAW")]
    first = [value for step, value in prints if step == "1"]
    assert len(first) == len(set(first)) == 2


def test_terminated_job_saves_and_resumes(tmp_path, command):
    out, expected = tmp_path / "out", tmp_path / "expected"
    log = tmp_path / "log"
    finish(ForkedRun(command(output_dir=expected), log=log, ranks=2))

    def slowly() -> None:
        from transformer.training import loop

        take_step = loop.take_step

        def waiting(*args: object) -> None:
            take_step(*args)
            time.sleep(0.2)

        loop.take_step = waiting

    run = ForkedRun(command(output_dir=out), log=log, ranks=2, prepare=slowly)
    while not (out / "metrics.jsonl").exists() or len(metrics_of(out)) < 2:
        time.sleep(0.02)
    # The ranks hear of it at different moments, and still stop after the same step.
    os.kill(run.pids[1], signal.SIGTERM)
    finish(run, code=143)
    assert len(metrics_of(out)) < len(metrics_of(expected))
    finish(ForkedRun(command("--resume", output_dir=out), log=log, ranks=2))
    assert metrics_of(out) == metrics_of(expected)
    name = "model.safetensors"
    assert (out / name).read_bytes() == (expected / name).read_bytes()


def test_other_number_of_ranks_cannot_resume(tmp_path, command):
    log = tmp_path / "log"
    finish(ForkedRun(command(output_dir=tmp_path / "out"), log=log, ranks=2))
    text = finish(ForkedRun(command("--resume", output_dir=tmp_path / "out"), log=log), code=2)
    assert "ranks was 2 and is now 1" in text


def test_survivors_of_a_lost_rank_leave_with_a_message(tmp_path, command):
    def die_at_step_three() -> None:
        from transformer.training import loop

        take_step = loop.take_step

        def dying(*args: object) -> None:
            take_step(*args)
            if os.environ["RANK"] == "1" and args[2].step == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        loop.take_step = dying

    log = tmp_path / "log"
    argv = command(output_dir=tmp_path / "out")
    codes = ForkedRun(argv, log=log, ranks=2, prepare=die_at_step_three).wait()
    assert codes == [1, -signal.SIGKILL]
    assert "lost contact with another rank" in log.read_text()


def test_torchrun_brings_back_a_lost_rank(tmp_path, command):
    """Kill one rank from outside; torchrun starts all again, and they go on from the state."""
    expected, out = tmp_path / "expected", tmp_path / "out"
    few = {"train_batch_size": 4, "save_steps": 2}
    finish(ForkedRun(command(output_dir=expected, **few), log=tmp_path / "log", ranks=2))
    wrapper = tmp_path / "dying.py"
    wrapper.write_text(DYING.format(root=str(ROOT)))
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    program += ["--standalone", "--max-restarts=1", str(wrapper)]
    argv = command(output_dir=out, **few)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*program, *argv], capture_output=True, text=True, env=environment, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert "going on from step 6" in done.stderr
    assert metrics_of(out) == metrics_of(expected)
    name = "model.safetensors"
    assert (out / name).read_bytes() == (expected / name).read_bytes()


def test_ranks_do_not_believe_an_earlier_start():
    store = dist.HashStore()
    store.set("announced", "lost")
    store.set("lost/answers/x", "yes")
    with ThreadPoolExecutor(3) as threads:
        others = [threads.submit(agree_on_round, store, rank, 3) for rank in (1, 2)]
        time.sleep(0.4)  # they ask the lost main rank meanwhile
        main = threads.submit(agree_on_round, store, 0, 3)
        names = {job.result(timeout=20) for job in [main, *others]}
    assert len(names) == 1 and names != {"lost"}


def test_runtime_of_one_rank_needs_no_group():
    runtime = Runtime(torch.device("cpu"))
    runtime.barrier()
    assert runtime.gather_objects(3) == [3]
    assert runtime.broadcast_object("x") == "x"
    assert runtime.sum_over_ranks(torch.tensor([1.0])).item() == 1.0
