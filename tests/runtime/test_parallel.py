"""Tasks over worker processes, in order."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from transformer.files import UserError
from transformer.runtime.parallel import ordered_map, usable_cores

ROOT = Path(__file__).resolve().parents[2]


def square_late(number: int) -> int:
    time.sleep(0.02 * (number % 3 == 0))
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise UserError("three is not allowed")
    if number == 13:
        raise KeyError("thirteen")
    return number


def die_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_tasks(workers):
    assert list(ordered_map(square_late, range(20), workers)) == [i * i for i in range(20)]


def test_no_tasks_and_fewer_tasks_than_workers():
    assert list(ordered_map(square_late, [], 2)) == []
    assert list(ordered_map(square_late, [5], 3)) == [25]


def test_tasks_are_not_drawn_far_ahead_of_the_reader():
    drawn = []

    def tasks():
        for number in range(100):
            drawn.append(number)
            yield number

    results = ordered_map(square_late, tasks(), 2)
    for number in range(10):
        assert next(results) == number * number
        assert len(drawn) <= number + 1 + 4
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_users_mistake_arrives_as_it_is(workers):
    results = ordered_map(fail_at_three, range(10), workers)
    with pytest.raises(UserError, match="three is not allowed"):
        list(results)


def test_another_error_names_itself():
    with pytest.raises(RuntimeError, match="KeyError.*thirteen"):
        list(ordered_map(fail_at_three, [12, 13], 2))


def test_a_killed_worker_is_an_error_and_not_a_hang():
    with pytest.raises(ChildProcessError, match="killed by signal 9"):
        list(ordered_map(die_at_two, range(10), 2))


def die_while_sending(number: int) -> bytes:
    if number == 1:

        def send_half(self: Connection, buffer: bytes) -> None:
            os.write(self.fileno(), bytes(buffer)[: len(buffer) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        Connection._send = send_half
    return bytes(1 << 17)


def test_a_worker_killed_while_it_sends_is_an_error_and_not_a_hang():
    with pytest.raises(ChildProcessError, match="killed by signal 9"):
        list(ordered_map(die_while_sending, range(10), 2))


def test_cores_are_counted_where_the_system_knows_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6


SLEEPERS = """
import os, sys, time
sys.path.insert(0, {root!r})
from transformer.runtime.parallel import ordered_map
def work(number):
    os.write(1, b"%d\\n" % os.getpid())  # a whole line at once, as both write into one pipe
    time.sleep(60)
list(ordered_map(work, range(2), 2))
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_do_not_outlive_a_killed_parent():
    parent = subprocess.Popen(
        [sys.executable, "-c", SLEEPERS.format(root=str(ROOT))], stdout=subprocess.PIPE, text=True
    )
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers are still there"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_signal_in_the_middle_of_a_fork_is_not_lost():
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from transformer.runtime.parallel import ordered_map
from transformer.runtime.script import run_script
os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGTERM))
sys.exit(run_script(lambda: list(ordered_map(abs, range(5), 2))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "")
