"""Run a function over many tasks in worker processes, results in the order of the tasks.

It never runs ahead of its reader, so a stream of any length passes in bounded memory; a worker that
dies is an error and not a hang; and workers do not outlive a parent that was killed. The standard
library's `multiprocessing.Pool` promises none of this, and its `concurrent.futures` hangs where a
worker is killed in the middle of sending a result, as happens when memory runs out: its workers
share one pipe, whose writing end the parent holds too. Here each worker has a pipe of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from transformer.files import UserError

Task = TypeVar("Task")

Result = TypeVar("Result")

# subtle: forking costs nothing and shares the vocabulary, but a lock that another thread holds at
# that instant stays locked in the child for ever. Threads there are: tqdm's monitor, torch's and
# NumPy's. What runs in workers therefore tokenises, parses and samples, but neither shows progress
# nor multiplies matrices. Where forking is not the custom, workers are spawned.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@dataclass
class _Worker:
    """One process, and the number of the task it is at."""

    process: BaseProcess
    connection: Connection
    task: int = -1


def ordered_map(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    *,
    window: int | None = None,
) -> Iterator[Result]:
    """Yield `function(task)` for every task, in order; with one worker in this very process.

    `function` and its results must be picklable. Close the generator (contextlib.closing) to end
    the workers early.

    Args:
        window: how many tasks may be begun and not yet yielded; default 2 a worker.

    Raises:
        UserError: as `function` raised it.
        ChildProcessError: a worker was killed, for instance because memory ran out.
        RuntimeError: `function` raised something else; the worker's message is in it.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    crew: list[_Worker] = []
    try:
        for _ in range(workers):
            crew.append(_start(function))
        yield from _run(crew, tasks, window or 2 * workers)
    finally:
        for worker in crew:
            # subtle: not terminate(): a process that was just forked forgets such a signal.
            worker.process.kill()
        for worker in crew:
            worker.process.join()
            worker.connection.close()


def _start(function: Callable[[Any], Any]) -> _Worker:
    context = multiprocessing.get_context(START_METHOD)
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    # subtle: Python drops what the handler of a signal raises in the hooks it calls round a fork.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    # Closed here, so that the end of the worker is the end of the connection.
    theirs.close()
    return _Worker(process, ours)


def _run(crew: list[_Worker], tasks: Iterable[Any], window: int) -> Iterator[Any]:
    """Hand tasks to idle workers and yield the results in order."""
    numbered = enumerate(tasks)
    idle = list(crew)
    busy: dict[Connection, _Worker] = {}
    finished: dict[int, Any] = {}
    following = 0
    begun = 0
    exhausted = False
    while not exhausted or busy:
        while idle and not exhausted and begun < following + window:
            number, task = next(numbered, (-1, None))
            exhausted = number < 0
            if not exhausted:
                worker = idle.pop()
                _send(worker, number, task)
                busy[worker.connection] = worker
                begun += 1
        # subtle: waiting for nothing, when the last task was already answered, would never end.
        for connection in wait(list(busy)) if busy else ():
            worker = busy.pop(connection)
            finished[worker.task] = _receive(worker)
            idle.append(worker)
        while following in finished:
            yield finished.pop(following)
            following += 1


def _send(worker: _Worker, number: int, task: Any) -> None:
    worker.task = number
    try:
        worker.connection.send(task)
    except (BrokenPipeError, ConnectionResetError):
        _raise_death(worker)


def _receive(worker: _Worker) -> Any:
    try:
        result, error, message = worker.connection.recv()
    except (EOFError, OSError):  # the latter in the middle of a message
        _raise_death(worker)
    if error is not None:
        raise error
    if message:
        raise RuntimeError(f"worker process failed: {message}")
    return result


def _raise_death(worker: _Worker) -> None:
    worker.process.join()
    code = worker.process.exitcode or 0
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    advice = "; out of memory? try fewer workers" if code == -signal.SIGKILL else ""
    raise ChildProcessError(f"a worker process died ({how}){advice}")


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answer tasks until the parent is gone: the loop of a worker."""
    # Ctrl-C reaches the whole group; the parent answers it and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(_answer(function, task))


def _answer(function: Callable[[Any], Any], task: Any) -> tuple[Any, Exception | None, str]:
    """Return (result, error to raise as it is, message of another error)."""
    try:
        return function(task), None, ""
    except (UserError, OSError) as error:
        return None, error, ""
    except Exception as error:
        return None, None, f"{type(error).__name__}: {error}"


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
