"""What a person sees of a run: progress, metrics.jsonl, curves."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import re
import resource
import signal
import struct
import termios
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from tqdm import tqdm

from transformer.runtime.metrics_log import (
    MetricsLog,
    draw_curves,
    known_rate,
    panels_of,
    read_metrics,
    save_curves,
    shown_terms,
    sum_by_kind,
)
from transformer.runtime.progress import (
    Progress,
    Speed,
    closing_summary,
    format_seconds,
    format_value,
)


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


CURVES = [
    {"step": 0, "explained/0": 0.9, "eval_acc": 0.5},
    {"step": 1, "loss": 2.0, "attention/1": 1.0, "attention/2": 0.5, "learning_rate": 0.1},
    {"step": 2, "loss": 1.0, "attention/1": 0.5, "attention/2": 0.2, "learning_rate": 0.0},
    {"step": 2, "eval_acc": 0.75, "eval_acc-mm": 0.7, "eval_loss": 1.2},
]


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in CURVES))
    assert save_curves(metrics, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    metrics.write_text("")
    assert not save_curves(metrics, tmp_path / "none.png")


def test_curves_have_a_title_the_step_that_is_kept_and_the_teachers_line():
    pytest.importorskip("matplotlib")
    figure = draw_curves(CURVES, "joint of SST-2, out", 2, {"eval_acc": 0.9})
    assert figure.get_suptitle() == "joint of SST-2, out"
    lines = {
        axis.get_title(): {line.get_label(): list(line.get_ydata()) for line in axis.lines}
        for axis in figure.axes
    }
    assert lines["held out: acc"] == {
        "eval_acc": [0.5, 0.75],
        "teacher 0.9000": [0.9, 0.9],
        "eval_acc-mm": [0.7],
        "kept: step 2": [0, 1],  # from the lower edge to the upper
    }
    assert list(lines["held out: loss"]) == ["eval_loss", "kept: step 2"]
    assert lines["attention"] == {"attention/1": [1.0, 0.5], "attention/2": [0.5, 0.2]}
    assert list(lines["loss"]) == ["loss"]
    trained = ["loss", "attention", "learning rate"]
    assert list(lines) == [*trained, "held out: acc", "held out: loss"]


def test_a_term_that_is_the_whole_loss_is_drawn_and_said_once():
    records = [{"step": step, "loss": 1 / step, "prediction": 1 / step} for step in (1, 2)]
    assert panels_of(records) == {"loss": ["loss"]}
    assert shown_terms({"loss": 2.0, "prediction": 2.0}) == {"loss": 2.0}
    assert shown_terms({"loss": 2.0, "prediction": 1.0}) == {"loss": 2.0, "prediction": 1.0}
    both = {"loss": 2.0, "hidden": 2.0, "attention": 0.0}
    assert shown_terms(both) == both


def read_all(terminal: int) -> str:
    """Return what was written to a terminal whose other end is closed."""
    content = b""
    with open(terminal, "rb", buffering=0) as file, suppress(OSError):
        while chunk := file.read(4096):
            content += chunk
    return content.decode()


TERMS = {"loss": 1.23456, "attention": 0.51234, "hidden": 0.41234, "embedding": 0.031234}
RATES = {"lr": 5e-5, "seq/s": 123.45, "tok/s": 1234.5}


@pytest.mark.parametrize(
    ("columns", "description", "shown"),
    [
        (200, "general", "general:  10%|"),
        (200, "general", "loss 1.235 | attention 0.5123 | hidden 0.4123 | embedding 0.03123 | lr"),
        (80, "intermediate distillation", "intermediate  10%|"),
        (80, "intermediate distillation", "<?, loss 1.23 att 0.512 hid 0.412 emb 0.0312"),
        (74, "intermediate distillation", "<?, loss 1.2 att 0.51 hid 0.41 emb 0.031"),
        (40, "general", "loss 1.2"),
    ],
)
def test_a_narrow_bar_shortens_the_losses(columns, description, shown, monkeypatch):
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 25, columns, 0, 0))
    with open(its, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with Progress(20000, description=description, initial=2000, log_every=0) as progress:
            progress.report(**TERMS, **RATES)
    last = [line for line in read_all(ours).splitlines() if line.strip()][-1]
    assert shown in last
    assert len(last.rstrip()) <= columns


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


def test_the_last_rate_is_known(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert known_rate(path) is None
    path.write_text('{"step": 1, "sequences_per_second": 9.0}\n{"step": 1, "eval_acc": 1.0}\n')
    assert known_rate(path) == 9.0
    path.write_text('{"step": 1, "sequences_per_sec')
    assert known_rate(path) is None


def test_the_summary_says_what_the_run_took(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    held = bytearray(64 << 20)  # touched, so that it is resident
    closing_summary(
        "training is done", [(tmp_path, "all"), (tmp_path / "no", "nothing")], ["3 steps"]
    )
    title, steps, took, written = (record.getMessage() for record in caplog.records)
    assert (title, steps, written) == ("training is done", "  3 steps", f"  {tmp_path}: all")
    match = re.fullmatch(r"  took \d+:\d\d:\d\d, at most (\d+) MiB of memory", took)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    assert len(held) >> 20 < int(match[1]) <= peak + 1
