"""How a script ends, whoever listens: signals, streams that are closed or full, odd encodings."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from transformer.files import UserError, without_secrets
from transformer.runtime.progress import printable
from transformer.runtime.script import ScriptParser, shipped_students, student_name

ROOT = Path(__file__).resolve().parents[2]

HEAD = f"""
import logging, os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from transformer.runtime.progress import Progress, setup_logging
from transformer.runtime.script import run_script
"""


def start(main: str, *, redirect: str = "", **variables: str) -> subprocess.Popen:
    """Start `main`, the body of a function, as a script of ours."""
    program = f"{HEAD}def main():\n{textwrap.indent(textwrap.dedent(main), '    ')}\n"
    program += "sys.exit(run_script(main))"
    command = ["bash", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, program]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env={**os.environ, **variables}, **streams)


# --- nobody listens ----------------------------------------------------------------------------


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", ">&- 2>&-"])
@pytest.mark.parametrize("ending", ["", "raise KeyboardInterrupt"])
def test_a_log_line_that_cannot_be_written_ends_no_run(redirect: str, ending: str) -> None:
    main = f"""
        setup_logging()
        with Progress(3, description="train", log_every=1) as progress:
            for step in range(3):
                logging.getLogger("x").warning("step %d", step)
                progress.update()
        {ending}
    """
    process = start(main, redirect=redirect)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (130 if ending else 0, "")


def test_a_full_stderr_does_not_stop_the_start_of_a_worker() -> None:
    main = """
        from transformer.runtime.parallel import ordered_map
        setup_logging()
        logging.getLogger("x").warning("a line")
        print(list(ordered_map(abs, range(3), 2)))
    """
    process = start(main, redirect="2>/dev/full")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "[0, 1, 2]\n")


def test_a_file_does_not_take_the_place_of_a_closed_stderr(tmp_path: Path) -> None:
    main = f"""
        file = open({str(tmp_path / "file")!r}, "w")
        os.write(2, b"a warning of a library in C")
        file.close()
    """
    process = start(main, redirect="2>&-")
    process.communicate(timeout=60)
    assert (process.returncode, (tmp_path / "file").read_text()) == (0, "")


def test_what_the_terminal_has_no_letters_for_is_escaped() -> None:
    process = start('print("größe \\udcff")', PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "gr\\xf6\\xdfe \\udcff\n"), err


# --- signals -----------------------------------------------------------------------------------

# subtle: in short pieces. Python sees a signal that comes just before a sleep only after it.
STUBBORN = """
    def wait():
        for _ in range(1200):
            time.sleep(0.05)

    try:
        print("ready", flush=True)
        wait()
    finally:
        print("cleaning up", flush=True)
        wait()
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_the_clean_up_too(signum: int, code: int) -> None:
    with start(STUBBORN) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        assert process.stdout.readline() == "cleaning up\n"
        process.send_signal(signum)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, "")


@pytest.mark.parametrize(
    ("signum", "code", "told"),
    [(signal.SIGINT, 130, "-c: error: interrupted\n"), (signal.SIGTERM, 143, "")],
)
def test_a_signal_that_a_library_makes_an_error_of_is_a_signal(signum, code, told) -> None:
    main = """
        try:
            print("ready", flush=True)
            for _ in range(1200):
                time.sleep(0.05)
        except BaseException as error:
            raise ValueError("could not determine the shape") from error
    """
    with start(main) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, told)


@pytest.mark.parametrize(
    ("signum", "code", "told"),
    [(signal.SIGINT, 130, "-c: error: interrupted\n"), (signal.SIGTERM, 143, "")],
)
def test_a_signal_whose_exception_is_dropped_is_raised_again(signum, code, told) -> None:
    main = f"""
        class Dropping:  # Python prints what is raised here, and goes on
            def __del__(self):
                os.kill(os.getpid(), {signum:d})
                time.sleep(0.05)
        dropping = Dropping()
        del dropping
        try:
            for _ in range(1200):
                time.sleep(0.05)
        finally:
            print("clean", flush=True)
    """
    with start(main) as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (code, "clean\n", told)


def test_what_else_is_dropped_is_told() -> None:
    main = """
        class Broken:
            def __del__(self):
                raise ValueError("broken")
        broken = Broken()
        del broken
    """
    with start(main) as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "ValueError: broken" in err


def test_ctrl_c_during_the_imports_is_one_line() -> None:
    program = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import transformer.runtime.interrupt
print("ready", flush=True)
for _ in range(1200):
    time.sleep(0.05)
"""
    command = [sys.executable, "-c", program]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **streams) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "-c: error: interrupted\n")


MODULES = [ROOT / "transformer" / name for name in ("checkpoint/__main__", "distillation/suggest")]
PROGRAMS = [*sorted(ROOT.glob("*.py")), *(path.with_suffix(".py") for path in MODULES)]


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda path: path.stem)
def test_scripts_listen_before_they_import(script: Path) -> None:
    imports = re.findall(r"^ *(?:import|from) (\S+)", script.read_text(encoding="utf-8"), re.M)
    assert imports[:2] == ["__future__", "transformer.runtime.interrupt"]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformer.checkpoint", "transformer.checkpoint"),
        ("transformer.distillation.suggest", "suggest.py"),
    ],
)
def test_ctrl_c_at_a_command_of_a_module_is_one_line(module: str, name: str) -> None:
    program = f"""
import os, runpy, signal, sys
sys.path.insert(0, {str(ROOT)!r})
class CtrlC:  # as soon as torch is asked for
    def find_spec(self, name, path, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, CtrlC())
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, f"{name}: error: interrupted\n")


# --- what is shown -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:p@ss@host/a", "https://host/a"),
        ("s3://key:secret@bucket/x, or", "s3://bucket/x, or"),
        ("https:/me:pass@host/a", "https:/host/a"),  # as a Path writes it
        ("https://host/a?X-Amz-Signature=12&b=3: no answer", "https://host/a?...: no answer"),
        ("'https://host/a?sig=1'", "'https://host/a?...'"),
        ("mail me@host, what? yes", "mail me@host, what? yes"),
        ("https://host/a#sha256=12", "https://host/a#sha256=12"),
    ],
)
def test_secrets_of_addresses_are_not_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_a_cell_without_end_is_told_at_once_and_in_short() -> None:
    code = (
        "from transformer.files import UserError\n"
        "from transformer.runtime.script import run_script\n"
        "def main(): raise UserError('train.tsv, line 3: ' + 'a' * 500_000 + ' is not a number')\n"
        "raise SystemExit(run_script(main))"
    )
    # Looked through for addresses letter by letter, it would take an hour.
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 2 and len(run.stderr) < 2100
    assert "train.tsv, line 3: aaa" in run.stderr and run.stderr.endswith("a is not a number\n")


def test_data_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2J\r\x07\x9b\u202eb") == "a\\x1b[2J\\r\\x07\\x9b\\u202eb"
    assert printable("größe\t電影\n") == "größe\t電影\n"


def test_log_lines_are_cleaned() -> None:
    main = """
        setup_logging()
        logging.getLogger("x").warning("read %s: \\x1b[31m", "https://a:b@host/x?sig=1")
    """
    _, err = start(main).communicate(timeout=60)
    assert err.endswith(" read https://host/x?...: \\x1b[31m\n")


# --- the parser --------------------------------------------------------------------------------


def test_a_script_without_documentation_has_a_parser() -> None:
    """As under `python -OO`."""
    assert "--seed" not in ScriptParser(None).format_help()
    assert ScriptParser("First.\n\nSecond.").description == "First."


def test_help_says_what_must_be_given_and_keeps_examples_as_they_are() -> None:
    example = "examples:\n  python x.py --seed 1 \\\n      --rate 2"
    parser = ScriptParser("One\nparagraph.\n\nNot this.", epilog=example)
    parser.add_argument("--name", required=True, help="of it")
    parser.add_argument("--seed", type=int, help="a number")
    parser.add_argument("--rate", type=float, default=0.5, help="of learning")
    text = parser.format_help()
    assert "of it (required)\n" in text and "of learning (default: 0.5)\n" in text
    assert "a number\n" in text and "None" not in text
    assert "\nOne paragraph.\n" in text and "Not this" not in text
    assert text.endswith(f"{example}\n")


def test_shipped_students_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configs = ROOT / "examples" / "student_configs"
    assert student_name("tinybert_4l_312d") == str(configs / "tinybert_4l_312d")
    assert "tinybert_4l_312d" in shipped_students()
    for name in ("bert-base-uncased", "org/tinybert_4l_312d", "https://host/tinybert_4l_312d"):
        assert student_name(name) == name
    with pytest.raises(argparse.ArgumentTypeError, match="did you mean tinybert_4l_312d?"):
        student_name("tinybert_4l_312")
    (tmp_path / "tinybert_4l_312d").mkdir()  # the user's own goes first
    (tmp_path / "tinybert_4l_312").mkdir()
    assert student_name("tinybert_4l_312d") == "tinybert_4l_312d"
    assert student_name("tinybert_4l_312") == "tinybert_4l_312"


def test_flags_are_given_in_full() -> None:
    parser = ScriptParser("")
    parser.add_argument("--train_batch_size", type=int)
    parser.add_argument("words", nargs="*")
    assert parser.parse_args(["--train_batch_size=3", "--", "--train"]).words == ["--train"]
    with pytest.raises(UserError, match="--train is no flag .* did you mean --train_batch_size?"):
        parser.parse_args(["--train", "3"])
    with pytest.raises(UserError, match="did you mean --train_batch_size?"):
        parser.parse_args(["--train_batchsize=3"])
