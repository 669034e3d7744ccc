"""How a script begins and ends: its command line, exit codes, mistakes told in one line.

The exit codes, of all scripts:

    0    done
    1    the run failed: a loss that is not finite, another rank that was lost
    2    a mistake of the user's: nothing was changed
    3    a fault of the machine's: a package is missing, a disk is full, memory ran out, or a place
         that the command line does not name cannot be written
    130  interrupted (Ctrl-C); 143 terminated; 141 nobody reads the output

Does not import torch, which takes a second and more than a script without a model wants to wait.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from transformer.files import EnvironmentFault, UserError, without_secrets
from transformer.runtime.program import program_name
from transformer.runtime.progress import printable

LONGEST_MESSAGE = 2000  # characters


class RunError(RuntimeError):
    """A run that cannot go on, told in one line; the exit code is 1."""


# --- the command line --------------------------------------------------------------------------


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show what must be given and defaults that are values; that a flag is off unless given goes
    without saying. Examples keep their lines."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required:
            return f"{action.help} (required)"
        if action.default is None or action.default is False or action.default == "":
            return action.help
        return super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class ScriptParser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the flag that was probably meant.

    Flags are given in full: what an abbreviation means would change with every new flag.

    Args:
        documentation: of the module; its first paragraph is shown. None under `python -OO`.
        options: of argparse; `epilog` is shown as it stands, with examples and what is written.
    """

    def __init__(self, documentation: str | None = None, **options: Any) -> None:
        options.setdefault("formatter_class", _HelpFormatter)
        options.setdefault("description", " ".join((documentation or "").split("\n\n")[0].split()))
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse the command line.

        Raises:
            UserError: it is wrong; names the flag and, if it is unknown, what may have been meant.
        """
        words = list(sys.argv[1:] if args is None else args)
        for word in words[: words.index("--")] if "--" in words else words:
            flag = word.partition("=")[0]
            if flag.startswith("--") and " " not in flag and flag not in self._flags():
                self.error(self._unknown(flag))
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise `message` as the user's mistake."""
        stop = "" if message.endswith("?") else ";"
        raise UserError(f"{message}{stop} --help explains all flags")

    def _flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]

    def _unknown(self, flag: str) -> str:
        """Say what may have been meant: flags that begin so, else similar ones."""
        known = self._flags()
        meant = [other for other in known if other.startswith(flag)]
        meant = meant or difflib.get_close_matches(flag, known, n=3, cutoff=0.75)
        question = f"; did you mean {' or '.join(meant)}?" if meant else ""
        return f"{flag} is no flag of this script{question}"


def _check_name(text: str) -> None:
    """Refuse a name that is not UTF-8: safetensors opens no such file, nor does JSON hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f"{text} is not UTF-8; rename it, or set PYTHONUTF8=1 if it is"
        ) from None


def file_path(text: str) -> Path:
    """Turn a word of the command line into a path; `~` is the home directory."""
    if not text:
        raise argparse.ArgumentTypeError("an empty text is no path")
    _check_name(text)
    return Path(text).expanduser()


def optional_path(text: str) -> Path | None:
    """Turn a word of the command line into a path, an empty one into None: the default place."""
    return file_path(text) if text else None


def model_name(text: str) -> str:
    """Check the name, path or address of a model."""
    if not text:
        raise argparse.ArgumentTypeError("an empty text names no model")
    _check_name(text)
    return os.path.expanduser(text)


# The configurations of students that come with the scripts, one directory each.
SHIPPED_STUDENTS = Path(__file__).resolve().parents[2] / "examples" / "student_configs"


def shipped_students() -> list[str]:
    """Return the names of the configurations that come with the scripts."""
    return sorted(path.parent.name for path in SHIPPED_STUDENTS.glob("*/config.json"))


def student_name(text: str) -> str:
    """Check the name of a model; that of a shipped configuration becomes its path.

    What is there under the name, in the working directory, goes first.
    """
    name = model_name(text)
    shipped = shipped_students()
    if os.path.exists(name):
        return name
    if name in shipped:
        return str(SHIPPED_STUDENTS / name)
    meant = difflib.get_close_matches(name, shipped, n=1, cutoff=0.85)
    if meant and "/" not in name:
        raise argparse.ArgumentTypeError(f"{name} is not there; did you mean {meant[0]}?")
    return name


def seed_number(text: str) -> int:
    """Turn a word of the command line into a seed that every generator takes."""
    try:
        seed = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if not -(2**63) <= seed < 2**64:
        raise argparse.ArgumentTypeError(f"{text} is not from -2**63 to 2**64 - 1")
    return seed


# --- the end of a run --------------------------------------------------------------------------

# Errors of the system that are no mistake of the user's, whatever file they name.
MACHINE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENOMEM),
    *(errno.EMFILE, errno.ENFILE),
)


# The signals that asked the script to end. subtle: a library in another language may make an error
# of its own of what a handler raises, such as "ValueError: could not determine the shape".
_received: list[int] = []


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Unwind at the first Ctrl-C, and end at once at the second."""
    _received.append(signum)
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    raise KeyboardInterrupt


def _terminate(signum: int, frame: FrameType | None) -> None:
    _received.append(signum)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    raise SystemExit(128 + signum)


def _listen_to_signals() -> None:
    """Let signals outside the training loop clean up and say their code, too."""
    _received.clear()
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in the background of a shell script
        signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _raise_again


def _raise_again(dropped: sys.UnraisableHookArgs) -> None:
    """Send the first signal again if what its handler raised was dropped, as from a `__del__`."""
    if not _received or not isinstance(dropped.exc_value, KeyboardInterrupt | SystemExit):
        sys.__unraisablehook__(dropped)
        return
    first = _received[0]
    _listen_to_signals()
    # In a moment: what this call's own frames raise would be dropped, too.
    again = threading.Timer(0.05, os.kill, (os.getpid(), first))
    again.daemon = True
    again.start()


def _occupy_closed_streams() -> None:
    """Open the null device where a standard stream is closed.

    subtle: the next file that is opened would get the stream's number, and what a library in C
    writes to stderr would go into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the smallest number that is free: this one


def _tolerate_encodings() -> None:
    """Write what the terminal has no letters for as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _hold_nothing_back() -> None:
    """Write to stderr at once.

    subtle: what a buffer could not write, because the disk is full, it keeps, and it raises
    wherever the stream is flushed next, such as the start of a worker process.
    """
    try:
        file = io.FileIO(sys.stderr.fileno(), "w", closefd=False)
    except (OSError, ValueError, AttributeError):  # nobody listens, or it is no file
        return
    encoding = sys.stderr.encoding
    sys.stderr = io.TextIOWrapper(file, encoding, "backslashreplace", write_through=True)


def _forget_broken_stderr() -> None:
    """Keep what could not be written to stderr from turning the exit code into another."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = None


def _is_lost_rank(error: RuntimeError) -> bool:
    """Say whether `error` comes from a collective whose partner is gone."""
    dist = sys.modules.get("torch.distributed")
    if dist is None:
        return False
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return dist.is_initialized() and any(word in text for word in ("gloo", "nccl", "connection"))


def _tell(message: str) -> None:
    """Say in one line of stderr, if anybody listens, why the script ends."""
    rank = os.environ.get("RANK", "0")
    prefix = f"rank {rank}: " if rank != "0" else ""
    line = printable(without_secrets(" ".join(message.split("\n"))))
    if len(line) > LONGEST_MESSAGE:  # it quotes a cell that is no word of any language
        line = f"{line[: LONGEST_MESSAGE // 2]} ... {line[-LONGEST_MESSAGE // 2 :]}"
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{program_name()}: error: {prefix}{line}\n")
        sys.stderr.flush()


def _fault_code(error: OSError) -> int:
    """Return 2 where the user named what is not there or not allowed, else 3."""
    if error.errno in MACHINE_ERRORS:
        return 3
    if isinstance(error, PermissionError) and error.filename is not None:
        named = [word.partition("=")[2] or word for word in sys.argv[1:]]
        file = os.path.abspath(os.fsdecode(error.filename))
        return 2 if any(file.startswith(os.path.abspath(word)) for word in named) else 3
    users = FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError
    return 2 if isinstance(error, users) else 3


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "t allocate memory" in text


def _told(error: BaseException) -> int | None:
    """Tell why the run ended; return the exit code, or None where a traceback says more."""
    if _received and _received[0] == signal.SIGTERM:
        return 128 + signal.SIGTERM
    if _received or isinstance(error, KeyboardInterrupt):
        _tell("interrupted")
        return 130
    if isinstance(error, UserError):
        # Every rank finds the same mistake; the others leave the main one time to say it.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(2)
        _tell(str(error))
        return 3 if isinstance(error, EnvironmentFault) else 2
    if isinstance(error, RunError):
        _tell(str(error))
        return 1
    if isinstance(error, OSError):
        _tell(str(error))
        return _fault_code(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        _tell(f"the package {error.name} is missing: pip install -r requirements.txt")
        return 3
    if _is_out_of_memory(error):
        first = (str(error).splitlines() or ["out of memory"])[0]
        _tell(f"{first}; smaller batches, or more --gradient_accumulation_steps, need less")
        return 3
    if isinstance(error, RuntimeError) and _is_lost_rank(error):
        _tell(f"lost contact with another rank, so the job stops ({str(error).splitlines()[0]})")
        return 1
    return None


def stop_at_mistake(check: Callable[[], Any]) -> None:
    """Call `check` before the imports of a script, and end the script at a mistake of the user's.

    Unlike `run_script` it leaves signals to `transformer.runtime.interrupt`.
    """
    try:
        check()
    except UserError as error:
        sys.exit(_told(error))


def run_script(main: Callable[[], Any]) -> int:
    """Call `main` and return the exit code, as the head of this file lists them.

    Whatever is no defect of ours becomes one line on stderr.
    """
    if os.name != "posix":
        _tell("this system is not supported; Linux and macOS are, and Windows by way of WSL")
        return 3
    _occupy_closed_streams()
    _listen_to_signals()
    _tolerate_encodings()
    _hold_nothing_back()
    try:
        main()
    except BrokenPipeError:
        # The reader of our stdout has left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (Exception, KeyboardInterrupt) as error:
        code = _told(error)
        if code is None:
            raise
        return code
    finally:
        _forget_broken_stderr()
    return 0
