"""What a person sees of a run: progress, metrics.jsonl, curves."""

from __future__ import annotations

import json
import logging
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from tqdm import tqdm

from transformer.runtime.metrics_log import MetricsLog, read_metrics, save_curves, sum_by_kind
from transformer.runtime.progress import Progress, Speed, format_seconds, format_value


def test_plain_lines_when_not_a_terminal(caplog):
    caplog.set_level(logging.INFO)
    with Progress(100, description="work", unit="rows", log_every=40) as progress:
        for _ in range(10):
            progress.update(10, loss=0.5)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(" | ")[0] for line in lines] == [
        "work 040/100 rows (40.0%)",
        "work 080/100 rows (80.0%)",
        "work 100/100 rows (100.0%)",
    ]
    assert all("loss 0.5" in line for line in lines) and "left" in lines[0]


def test_progress_is_silent_on_other_ranks(caplog):
    caplog.set_level(logging.INFO)
    with Progress(2, description="work", enabled=False, log_every=1) as progress:
        progress.update()
        progress.report(loss=1.0)
    assert not caplog.records


def test_time_left_counts_only_what_this_process_did():
    progress = Progress(100, description="work", initial=90, log_every=0)
    progress.started -= 10.0
    progress.update(5)
    assert progress.seconds_left() == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05")]
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


def test_values_are_short():
    assert [format_value(v) for v in (0.123456, 12345.6, 0.0000123, 7, 0.0)] == [
        "0.1235",
        "1.235e+04",
        "1.230e-05",
        "7",
        "0",
    ]


def test_terms_are_added_by_kind():
    terms = {"loss": 6.0, "attention/1": 1.0, "attention/2": 2.0, "embedding": 3.0}
    assert sum_by_kind(terms) == {"loss": 6.0, "attention": 3.0, "embedding": 3.0}


def test_speed_is_counted_since_the_last_reading():
    speed = Speed()
    speed.started -= 2.0
    speed.add(10, 100)
    speed.add(10, 300)
    values = speed.read()
    assert values["sequences_per_second"] == pytest.approx(10, rel=0.05)
    assert values["tokens_per_second"] == pytest.approx(200, rel=0.05)
    assert speed.read()["tokens_per_second"] == 0


def test_metrics_are_cut_back_to_the_resumed_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(step=1, loss=2.0)
    offset = log.sync()
    log.write(step=2, loss=1.5)
    log.close()
    assert offset == len('{"step": 1, "loss": 2.0}\n')
    log = MetricsLog(path, offset=offset)
    log.write(step=2, loss=1.0)
    log.close()
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    MetricsLog(path).close()
    assert path.read_bytes() == b"", "a new run begins a new file"
    MetricsLog(path, offset=100).close()
    assert path.read_bytes() == b"", "a file that is shorter than expected is not filled up"


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    metrics = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 1, "loss": 2.0, "attention/1": 1.0, "hidden/1": 0.5, "learning_rate": 0.1},
        {"step": 2, "loss": 1.0, "attention/1": 0.5, "hidden/1": 0.2, "learning_rate": 0.0},
        {"step": 2, "eval_loss": 1.2},
    ]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert save_curves(metrics, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    metrics.write_text("")
    assert not save_curves(metrics, tmp_path / "none.png")


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path / "metrics.jsonl", tensorboard_dir=tmp_path / "board")
    log.write(step=3, loss=2.5)
    log.close()
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 2.5)]


def test_a_killed_process_leaves_the_lock_of_others_alone():
    pid = os.fork()
    if pid == 0:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    lock = tqdm.get_lock()
    # A thread of its own, because the lock may be taken twice by one.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lock.acquire, timeout=5).result()
        pool.submit(lock.release).result()
