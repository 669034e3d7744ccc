"""Prove students in closed form on GLUE: teachers, students computed from them, distilled; a table.

    python examples/proof.py --bert_model BERT --glue_dir GLUE_DIR --work_dir proof \\
        --tasks STS-B SST-2 --students examples/student_configs/quickstart_3l --seeds 42 43 44
    python examples/proof.py ... -- --learning_rate 2e-4     other flags for the students: own rows

For each task: BERT is fine-tuned on all rows; each student is computed from that teacher, scored,
and distilled on the first --rows rows and what is recombined from them. What is finished is not run
again, what was stopped goes on. The table of all that is in WORK_DIR is printed after each student
and written to WORK_DIR/table.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from transformer.tasks.table import TASKS, Task


@dataclass(frozen=True)
class Recipe:
    """What a task wants: first for its teacher, then for its students."""

    teacher_epochs: float
    begins_as: str = ""  # the task whose teacher this one is fine-tuned from
    recombine: float = 0.0  # rows that are made of each row
    epochs: float = 2.0  # passes over all of them


RECIPES = {
    "CoLA": Recipe(teacher_epochs=3),
    "SST-2": Recipe(teacher_epochs=1),
    "MRPC": Recipe(teacher_epochs=5, recombine=2),
    "STS-B": Recipe(teacher_epochs=4, recombine=2),
    "QQP": Recipe(teacher_epochs=2, recombine=2),
    "MNLI": Recipe(teacher_epochs=5, recombine=2),
    "QNLI": Recipe(teacher_epochs=3, recombine=2),
    "RTE": Recipe(teacher_epochs=5, begins_as="QNLI", recombine=2),
}
GLUE = {task.name: task for task in TASKS.values()}
TEACHER_RATE, STUDENT_RATE = "5e-5", "1e-4"
BATCH_SIZE = "32"
EVAL_STEP = "500"  # steps between two looks at the dev set; the last step always has one
DONE = ".done"


def run_script(script: str, arguments: Sequence[object], threads: int) -> None:
    """Run a script of the toolkit; end with its exit code if it fails."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    print("\n+", *command[1:], file=sys.stderr, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        print(f"proof.py: {script} ended with exit code {code}; see above", file=sys.stderr)
        sys.exit(code)


def train(output_dir: Path, threads: int, *arguments: object) -> Path:
    """Run task_distill.py into a directory unless it is finished; return the directory."""
    if not (output_dir / DONE).exists():
        resume = ["--resume"] if (output_dir / "args.json").exists() else []
        shared = ["--train_batch_size", BATCH_SIZE, "--eval_step", EVAL_STEP, "--log_steps", 100]
        shared += ["--num_workers", threads, "--output_dir", output_dir, *resume]
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        run_script("task_distill.py", [*shared, *arguments], threads)
        (output_dir / DONE).touch()
    return output_dir


def make_teacher(task: Task, args: argparse.Namespace) -> Path:
    """Fine-tune the teacher of a task on all of its rows."""
    recipe = RECIPES[task.name]
    start = args.bert_model
    if recipe.begins_as:
        start = make_teacher(GLUE[recipe.begins_as], args)
    return train(
        args.work_dir / task.name / "teacher",
        args.threads,
        "--finetune",
        *("--student_model", start),
        *("--data_dir", args.glue_dir / task.directory, "--task_name", task.name),
        *("--cache_dir", args.work_dir / task.name / "cache"),
        *("--num_train_epochs", args.teacher_epochs or recipe.teacher_epochs),
        *("--learning_rate", TEACHER_RATE),
    )


def student_data(task: Task, rows: int, recombine: float, args: argparse.Namespace) -> Path:
    """Return a directory with the first rows of the training file and what is made of them."""
    directory = args.work_dir / task.name / f"data_rows{rows or 'all'}_recombine{recombine:g}"
    if (directory / DONE).exists():
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    source = args.glue_dir / task.directory
    for dev in task.dev:
        shutil.copy(source / dev.file, directory)
    with open(source / task.train.file, encoding="utf-8", newline="") as file:
        lines = file.readlines()[: rows + task.train.header if rows else None]
    (directory / task.train.file).write_text("".join(lines), encoding="utf-8", newline="")
    if recombine:
        arguments = ["--recombine", recombine, "--data_dir", directory, "--task_name", task.name]
        run_script("data_augmentation.py", arguments, args.threads)
    (directory / DONE).touch()
    return directory


def make_student(task: Task, config: Path, seed: int, args: argparse.Namespace) -> None:
    """Compute a student from the task's teacher and distil it."""
    recipe = RECIPES[task.name]
    recombine = recipe.recombine if args.recombine is None else args.recombine
    data = student_data(task, args.rows, recombine, args)
    flags = re.sub(r"[^\w.-]+", "_", " ".join(args.flags).replace("--", ""))
    name = "-".join(filter(None, [config.name, data.name.removeprefix("data_"), flags]))
    train(
        args.work_dir / task.name / "students" / name / f"seed_{seed}",
        args.threads,
        *([] if "--joint" in args.flags else ["--pred_distill"]),
        *("--init_from_teacher", "uniform"),
        *("--teacher_model", make_teacher(task, args), "--student_model", config),
        *("--data_dir", data, "--task_name", task.name, *(["--aug_train"] if recombine else [])),
        *("--num_train_epochs", recipe.epochs, "--learning_rate", STUDENT_RATE, "--seed", seed),
        *args.flags,
    )


# ------------------------------------------------------------------------------------- the table


def read_run(directory: Path, task: Task) -> tuple[float, float, float, int]:
    """Return a run's scores of teacher, student before and after training, and its rows."""
    results = json.loads((directory / "eval_results.json").read_text(encoding="utf-8"))
    first = json.loads((directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    args = json.loads((directory / "args.json").read_text(encoding="utf-8"))
    metric, file = task.best_metric, Path(task.train.file)
    if args["aug_train"]:
        file = Path(f"{file.stem}_aug{file.suffix}")
    text = (Path(args["data_dir"]) / file).read_text(encoding="utf-8")
    rows = text.count("\n") - task.train.header
    return results[f"teacher_{metric}"], first[f"eval_{metric}"], results[metric], rows


def table(work_dir: Path) -> str:
    """Return all finished students under a directory as a Markdown table, scores times 100."""
    lines = [
        "| task | student | seeds | rows | teacher | computed | distilled | kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant in sorted(work_dir.glob("*/students/*")):
        task = GLUE[variant.parts[-3]]
        runs = [read_run(done.parent, task) for done in sorted(variant.glob(f"seed_*/{DONE}"))]
        if not runs:
            continue
        teachers, starts, scores, rows = zip(*runs, strict=True)
        kept = [score / teacher for score, teacher in zip(scores, teachers, strict=True)]
        cells = [task.name, variant.name, len(runs), rows[0], spread(teachers), spread(starts)]
        cells += [spread(scores), spread(kept, "%")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], unit: str = "") -> str:
    """Return the mean and, of values that differ, the sample deviation, times 100.

    Example: (0.5, 0.6) -> "55.0 ± 7.1".
    """
    mean = f"{100 * statistics.fmean(values):.1f}{unit}"
    return mean if len(set(values)) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


# ----------------------------------------------------------------------------------- the program


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--bert_model", required=True, help="pre-trained model that becomes the teachers")
    add("--glue_dir", type=Path, required=True, help="holds one directory for each task")
    add("--work_dir", type=Path, required=True, help="directory for all that is made")
    add("--tasks", nargs="+", choices=RECIPES, default=["STS-B", "SST-2"], help="tasks of GLUE")
    add(
        "--students",
        nargs="*",
        type=Path,
        default=[],
        help="directories of configurations; none: teachers only",
    )
    add("--teacher_epochs", type=float, help="passes of fine-tuning; default: by the task")
    add("--seeds", nargs="+", type=int, default=[42], help="seeds of the students")
    add("--rows", type=int, default=20_000, help="training rows of a student; 0: all (20,000)")
    add("--recombine", type=float, help="rows to make of each row; default: 2 for pairs, else 0")
    add("--threads", type=int, default=2, help="processor threads of a training (2)")
    return parser


def check_files(args: argparse.Namespace, tasks: Sequence[Task]) -> None:
    """End with exit code 2, before anything is trained, if a file to read is not there."""
    needed = [config / "config.json" for config in args.students]
    for task in tasks:
        needed += [args.glue_dir / task.directory / file.file for file in (task.train, *task.dev)]
    for path in needed:
        if not path.is_file():
            print(f"proof.py: error: {path}: no such file", file=sys.stderr)
            sys.exit(2)


def main(argv: Sequence[str]) -> None:
    """Make what is missing, in the order seeds, students, tasks; print the table."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    args = build_parser().parse_args(own)
    args.flags = argv[len(own) + 1 :]
    tasks = [GLUE[name] for name in args.tasks]
    check_files(args, tasks)
    if not args.students:
        for task in tasks:
            make_teacher(task, args)
    for seed in args.seeds:
        for config in args.students:
            for task in tasks:
                make_student(task, config, seed, args)
                text = table(args.work_dir)
                (args.work_dir / "table.md").write_text(text, encoding="utf-8")
                print(f"\n{text}", end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
