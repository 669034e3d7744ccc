"""Mistakes in columns, found by a look at the first rows of all files before torch is imported.

A script calls `check_columns` before its imports. Only what is wrong with the files is told here;
mistakes in the flags themselves are left to the script, which knows all of them.
"""

from __future__ import annotations

import argparse
import difflib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformer.files import UserError
from transformer.runtime.script import ScriptParser, file_path, stop_at_mistake
from transformer.tasks.files import RowReader, find_file
from transformer.tasks.options import InputFile, training_file, trains
from transformer.tasks.questions import QuestionReader
from transformer.tasks.sentences import open_sentences
from transformer.tasks.table import Source, Task, add_task_arguments, resolve_task

# Flags beside those of the task that decide which files are read.
PLACES = ("data_dir", "glue_dir", "transfer_file")
SWITCHES = ("finetune", "pred_distill", "joint", "do_eval", "do_predict", "benchmark", "aug_train")
VALUES = ("export_onnx", "predict")

TABLES = (".tsv", ".csv", ".jsonl")


def check_columns(*, only_training: bool = False) -> None:
    """End the script in one line if files that it is going to read lack columns.

    Args:
        only_training: the script reads the training file and no other.
    """
    stop_at_mistake(lambda: _check(only_training))


def _check(only_training: bool) -> None:
    try:
        asked = _parse(only_training)
    except UserError:  # the script says it
        return
    if asked is None:
        return
    task, files, errors = asked
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what readers say they say again when the script reads
    try:
        _raise_all(task, files, errors)
    except OSError:  # the script meets it again
        return
    finally:
        logging.disable(before)


def _parse(only_training: bool) -> tuple[Task, list[InputFile], str] | None:
    """Return the task of the command line, the files to read and --errors; None: nothing to see."""
    parser = ScriptParser(add_help=False)
    add_task_arguments(parser, required=False)
    for name in PLACES:
        parser.add_argument(f"--{name}", type=file_path)
    for name in SWITCHES:
        parser.add_argument(f"--{name}", action="store_true")
    for name in VALUES:
        parser.add_argument(f"--{name}")
    args, others = parser.parse_known_args()
    flags = [word.partition("=")[0] for word in others if word.startswith("-")]
    known = [flag for action in parser._actions for flag in action.option_strings]
    if any(flag in ("-h", "--help") or _is_misspelt(flag, known) for flag in flags):
        return None
    if args.predict is not None:
        return _to_predict(args)
    if args.task_name is None or not (args.data_dir or args.glue_dir):
        return None
    task = resolve_task(args)
    args.data_dir = args.data_dir or args.glue_dir / task.directory
    wanted = [training_file(args, task)] if only_training else _wanted(args, task)
    files = [file for file in wanted if file.path is not None and file.path.is_file()]
    return task, files, args.errors


def _is_misspelt(flag: str, known: list[str]) -> bool:
    """Say whether a flag may stand for one that is looked at here: the script asks."""
    shortened = len(flag) > 5 and any(other.startswith(flag) for other in known)
    return shortened or bool(difflib.get_close_matches(flag, known, n=1, cutoff=0.87))


def _to_predict(args: argparse.Namespace) -> tuple[Task, list[InputFile], str] | None:
    """Return the table that --predict names, if it is one and its columns are given."""
    path = Path(args.predict).expanduser()
    if not args.text_columns or path.suffix.lower() not in TABLES or not path.is_file():
        return None
    source = Source(path.name, header=not args.no_header)
    task = Task("predictions", tuple(args.text_columns), "", source, (), ())
    return task, [InputFile(path, source, labelled=False)], args.errors


def _wanted(args: argparse.Namespace, task: Task) -> Iterator[InputFile]:
    """Yield what task distillation reads."""
    if trains(args):
        yield training_file(args, task)
    if task.labels is None and task.kind.names_labels:
        yield InputFile(find_file(args.data_dir, task.train), task.train)
    if trains(args) or args.do_eval or args.benchmark:
        yield from (InputFile(find_file(args.data_dir, source), source) for source in task.dev)
    if args.do_predict:
        for source in task.test:
            yield InputFile(find_file(args.data_dir, source), source, labelled=False)


def _raise_all(task: Task, files: Iterable[InputFile], errors: str) -> None:
    """Raise UserError that names all mistakes; files with the same ones share a sentence."""
    told: dict[str, list[str]] = {}
    for path, source, labelled in dict.fromkeys(files):
        try:
            _look(path, task, source, labelled, errors)
        except UserError as error:
            what = str(error).removeprefix(f"{path}: ")
            paths = told.setdefault(what, [])
            if what != str(error):
                paths.append(str(path))
    if told:
        parts = [f"{', '.join(paths)}: {what}" if paths else what for what, paths in told.items()]
        raise UserError("; ".join(dict.fromkeys(parts)))


def _look(path: Path, task: Task, source: Source, labelled: bool, errors: str) -> None:
    """Read the first row of a file."""
    if task.kind.reads == "rows":
        RowReader(path, task, source, need_label=labelled, errors=errors)
    elif task.kind.reads == "sentences":
        open_sentences(path, task, need_tags=labelled, errors=errors)
    else:
        reader = QuestionReader(path, task, need_answers=labelled, errors=errors)
        if reader.is_lines:  # the official format has no columns
            next(iter(reader), None)
