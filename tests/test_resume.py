"""A run that is killed at any instant and resumed ends as if it had never been interrupted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import tiny_vocabulary
from toy_runs import ForkedRun, kill_and_resume, metrics_of, write_epochs, write_student

from transformer.modeling import BertForPreTraining

CONFIGURATIONS = [(1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16")]
KILLS_EACH = 6


@pytest.fixture
def arguments(tmp_path: Path, make_checkpoint, tiny_config) -> Callable[..., list[str]]:
    """Return a function that makes the command line of a toy run of 21 steps in 3 epochs."""
    data = write_epochs(tmp_path / "data", tiny_vocabulary())
    teacher = make_checkpoint("teacher", BertForPreTraining)
    student = write_student(tmp_path / "student", tiny_config)

    def make(output_dir: Path, *more: str, ranks: int = 1) -> list[str]:
        flags = {
            "--pregenerated_data": data,
            "--teacher_model": teacher,
            "--student_model": student,
            "--output_dir": output_dir,
            "--max_seq_length": 40,
            "--train_batch_size": 4 // ranks,
            "--gradient_accumulation_steps": 2,
            "--num_train_epochs": 2.6,
            "--learning_rate": 1e-3,
            "--student_dropout": 0.1,
            "--hidden_loss": "scaled",
            "--log_steps": 3,
            "--eval_step": 7,
            "--save_steps": 2,
        }
        words = [str(word) for pair in flags.items() for word in pair]
        return [*words, "--do_eval", "--no_cuda", *more]

    return make


def assert_same_result(output_dir: Path, expected: Path) -> None:
    for name in ("model.safetensors", "best/model.safetensors", "config.json"):
        assert (output_dir / name).read_bytes() == (expected / name).read_bytes(), name
    assert metrics_of(output_dir) == metrics_of(expected)
    assert not list(output_dir.glob(".*.tmp")), "a killed save left its file behind"
    assert not (output_dir / "training_state.pt").exists(), "a run that is done leaves no state"


@pytest.mark.parametrize(("ranks", "precision"), CONFIGURATIONS)
def test_killed_at_random_instants(ranks, precision, arguments, tmp_path):
    log = tmp_path / "log"
    flags = ["--precision", precision]
    expected, output_dir = tmp_path / "expected", tmp_path / "killed"
    begun = time.monotonic()
    run = ForkedRun(arguments(expected, *flags, ranks=ranks), log=log, ranks=ranks)
    assert run.wait() == [0] * ranks, log.read_text()
    duration = time.monotonic() - begun

    argv = arguments(output_dir, *flags, "--resume", ranks=ranks)
    kill_and_resume(
        lambda: ForkedRun(argv, log=log, ranks=ranks),
        lambda: assert_same_result(output_dir, expected),
        output_dir,
        kills=KILLS_EACH,
        duration=duration,
        seed=f"{ranks} {precision}",
    )


def dying_at(file: str, count: int, moment: str) -> Callable[[], None]:
    """Return what makes a process kill itself around its `count`th rename to a name `file`."""

    def prepare() -> None:
        replace, seen = os.replace, []

        def dying(source: str, target: str) -> None:
            seen.append(Path(target).name == file)
            is_now = seen[-1] and sum(seen) == count
            if is_now and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            if is_now:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = dying

    return prepare


def test_killed_while_a_file_takes_its_name(arguments, tmp_path):
    """The instants at which a save is half done: around the rename of each of its files."""
    expected, log = tmp_path / "expected", tmp_path / "log"
    assert ForkedRun(arguments(expected), log=log).wait() == [0], log.read_text()
    for file, count in [
        ("training_state.pt", 4),
        ("model.safetensors", 2),
        ("config.json", 2),
        ("args.json", 2),  # the word that the run is done
    ]:
        for moment in ("before", "after"):
            output_dir = tmp_path / f"{file}-{moment}"
            argv = arguments(output_dir, "--resume")
            run = ForkedRun(argv, log=log, prepare=dying_at(file, count, moment))
            assert run.wait() == [-signal.SIGKILL], log.read_text()
            assert ForkedRun(argv, log=log).wait() == [0], log.read_text()
            assert_same_result(output_dir, expected)
