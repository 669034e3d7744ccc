"""Prove students in closed form on GLUE: teachers, students computed from them, distilled; a table.

    python examples/proof.py --bert_model BERT --glue_dir GLUE_DIR --work_dir proof \\
        --tasks STS-B SST-2 --students examples/student_configs/quickstart_3l --seeds 42 43 44
    python examples/proof.py ... -- --learning_rate 2e-4     other flags for the students: own rows
    python examples/proof.py ... --ways chain general --corpus TEXT     other ways: own rows

For each task, BERT is fine-tuned on all rows and teaches the students. There are three ways:

    short    the student is computed from the teacher, scored, and distilled on the first --rows
             rows and what is recombined from them
    general  the same, but computed from BERT before its fine-tuning, and distilled on the corpus
    chain    the paper's: it begins at random and goes through general distillation on the corpus,
             one augmented variant of each row, its layers, and its predictions

What is finished is not run again, what was stopped goes on; so another BERT or corpus wants another
WORK_DIR. The table of all that is in it is printed after each student and written to its table.md.
"""

from __future__ import annotations

import argparse
import itertools
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
from transformer.tasks.targets import missing_onnx_packages


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
    "MNLI": Recipe(teacher_epochs=4, begins_as="STS-B", recombine=2),
    "QNLI": Recipe(teacher_epochs=2, begins_as="STS-B", recombine=2),
    "RTE": Recipe(teacher_epochs=5, begins_as="MNLI", recombine=2),
}
GLUE = {task.name: task for task in TASKS.values()}
TEACHER_RATE, STUDENT_RATE = "5e-5", "1e-4"
# Of general distillation and of layers as in examples/quickstart.sh.
GENERAL_RATES = {"random": "1e-3", "computed": "3e-4"}
LAYERS_RATE, ATTENTION_WEIGHT = "5e-4", "0.05"
BATCH_SIZE = "32"
EVAL_STEP = "500"  # steps between two looks at the dev set; the last step always has one
DONE = ".done"
TASK_SCRIPT = "task_distill.py"
MEASURED = "measured"  # a directory beside those of the seeds
SPEED = "at_real_lengths/batch_32/sentences_per_second"  # a ratio in benchmark.json
WAYS = ("short", "general", "chain")


def run_script(script: str, arguments: Sequence[object], threads: int) -> None:
    """Run a script of the toolkit; end with its exit code if it fails."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    print("\n+", *command[1:], file=sys.stderr, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        print(f"proof.py: {script} ended with exit code {code}; see above", file=sys.stderr)
        sys.exit(code)


def train(output_dir: Path, threads: int, *arguments: object, script: str = TASK_SCRIPT) -> Path:
    """Run a training into a directory unless it is finished; return the directory."""
    if not (output_dir / DONE).exists():
        resume = ["--resume"] if (output_dir / "args.json").exists() else []
        shared = ["--train_batch_size", BATCH_SIZE, "--eval_step", EVAL_STEP, "--log_steps", 100]
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        run_script(script, [*shared, "--output_dir", output_dir, *resume, *arguments], threads)
        (output_dir / DONE).touch()
    return output_dir


def begin(directory: Path) -> bool:
    """Say whether what goes into a directory is still to be made; clear what is half there."""
    if (directory / DONE).exists():
        return False
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return True


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
        *("--cache_dir", args.work_dir / task.name / "cache", "--num_workers", args.threads),
        *("--num_train_epochs", args.teacher_epochs or recipe.teacher_epochs),
        *("--learning_rate", TEACHER_RATE),
    )


def make_general(config: Path, start: str, args: argparse.Namespace) -> Path:
    """Distil a student on the corpus, from a random start or computed from BERT, for all tasks."""
    directory = args.work_dir / "general" / "examples"
    examples = directory / "data"
    if begin(directory):
        flags = ["--train_corpus", args.corpus, "--bert_model", args.bert_model]
        flags += ["--epochs_to_generate", 1, "--num_workers", args.threads]
        flags += ["--output_dir", examples]
        run_script("pregenerate_training_data.py", flags, args.threads)
        (directory / DONE).touch()
    return train(
        args.work_dir / "general" / f"{config.name}-{start}",
        args.threads,
        *("--pregenerated_data", examples, "--teacher_model", args.bert_model),
        *("--student_model", config, "--num_train_epochs", 1),
        *(["--init_from_teacher", "uniform"] if start == "computed" else []),
        *("--learning_rate", GENERAL_RATES[start], "--attention_weight", ATTENTION_WEIGHT),
        script="general_distill.py",
    )


def student_data(task: Task, more: str, count: float, args: argparse.Namespace) -> Path:
    """Return a directory with the first rows of the training file and what is made of them.

    Args:
        more: "recombine", or "N" for variants by masked LM and GloVe.
        count: how many of them for each row; with 0 none are made.
    """
    directory = args.work_dir / task.name / f"data_rows{args.rows or 'all'}_{more}{count:g}"
    if not begin(directory):
        return directory
    source = args.glue_dir / task.directory
    for dev in task.dev:
        shutil.copy(source / dev.file, directory)
    with open(source / task.train.file, encoding="utf-8", newline="") as file:
        lines = file.readlines()[: args.rows + task.train.header if args.rows else None]
    (directory / task.train.file).write_text("".join(lines), encoding="utf-8", newline="")
    if count:
        arguments = [f"--{more}", count, "--data_dir", directory, "--task_name", task.name]
        if more == "N":
            words = ["--glove_embs", args.glove_embs] if args.glove_embs else ["--mlm_only"]
            arguments += ["--pretrained_bert_model", args.bert_model, *words]
        run_script("data_augmentation.py", arguments, args.threads)
    (directory / DONE).touch()
    return directory


def make_student(task: Task, config: Path, way: str, seed: int, args: argparse.Namespace) -> Path:
    """Make a student of the task's teacher in one of the WAYS."""
    recipe = RECIPES[task.name]
    recombine = recipe.recombine if args.recombine is None else args.recombine
    more, count = ("N", 1) if way == "chain" else ("recombine", recombine)
    data = student_data(task, more, count, args)
    flags = re.sub(r"[^\w.-]+", "_", " ".join(args.flags).replace("--", ""))
    way_name = "" if way == "short" else way
    name = "-".join(filter(None, [config.name, way_name, data.name.removeprefix("data_"), flags]))
    directory = args.work_dir / task.name
    shared = ["--teacher_model", make_teacher(task, args)]
    shared += ["--seed", seed, "--num_workers", args.threads]
    shared += ["--data_dir", data, "--task_name", task.name, *(["--aug_train"] if count else [])]
    start, epochs = [config, "--init_from_teacher", "uniform"], recipe.epochs
    if way == "general":
        start = [make_general(config, "computed", args)]
    elif way == "chain":
        epochs = 1
        layers = train(
            directory / "layers" / name / f"seed_{seed}",
            args.threads,
            *("--student_model", make_general(config, "random", args), *shared),
            *("--num_train_epochs", epochs, "--learning_rate", LAYERS_RATE),
            *("--attention_weight", ATTENTION_WEIGHT),
        )
        start = [layers]
    return train(
        directory / "students" / name / f"seed_{seed}",
        args.threads,
        *([] if "--joint" in args.flags else ["--pred_distill"]),
        *("--student_model", *start, *shared),
        *("--num_train_epochs", epochs, "--learning_rate", STUDENT_RATE),
        *args.flags,
    )


def measure(student: Path, args: argparse.Namespace) -> None:
    """Score and time a student beside its teacher and in int8, unless it is measured."""
    made = json.loads((student / "args.json").read_text(encoding="utf-8"))
    output_dir = student.parent / MEASURED
    if (output_dir / DONE).exists():
        return
    flags = ["--do_eval", "--benchmark", "--teacher_model", made["teacher_model"]]
    flags += ["--student_model", student, "--data_dir", made["data_dir"]]
    flags += ["--task_name", made["task_name"], "--num_workers", args.threads]
    flags += ["--output_dir", output_dir, "--overwrite_output_dir"]
    run_script(TASK_SCRIPT, flags, args.threads)
    (output_dir / DONE).touch()


# ------------------------------------------------------------------------------------- the table


def read_run(directory: Path, task: Task) -> tuple[float, float | None, float, int]:
    """Return a run's scores of teacher, student before and after training, and its rows.

    Only of a student that is computed there is a score before training.
    """
    results = json.loads((directory / "eval_results.json").read_text(encoding="utf-8"))
    first = json.loads((directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    args = json.loads((directory / "args.json").read_text(encoding="utf-8"))
    metric, file = task.best_metric, Path(task.train.file)
    if args["aug_train"]:
        file = Path(f"{file.stem}_aug{file.suffix}")
    text = (Path(args["data_dir"]) / file).read_text(encoding="utf-8")
    rows = text.count("\n") - task.train.header
    start = first[f"eval_{metric}"] if first["step"] == 0 else None
    return results[f"teacher_{metric}"], start, results[metric], rows


def read_measured(directory: Path) -> list[str]:
    """Return a student's speed in times that of its teacher, its score in int8, and its speed then.

    They are blank where it was not measured. Speeds are of batches of 32 sentences of the dev set.
    """
    if not (directory / DONE).exists():
        return ["", "", ""]
    figures = json.loads((directory / "benchmark.json").read_text(encoding="utf-8"))
    plain, small = figures["ratios"], figures["export_ratios"]["student_int8"]
    score = 100 * figures["student_int8"]["score"]
    return [f"{plain[SPEED]:.1f}x", f"{score:.1f}", f"{small[SPEED]:.1f}x"]


def table(work_dir: Path) -> str:
    """Return all finished students under a directory as a Markdown table, scores times 100."""
    lines = [
        "| task | student | seeds | rows | teacher | computed | distilled | kept | speed "
        "| int8 | speed of int8 |",
        f"|{11 * '---|'}",
    ]
    for variant in sorted(work_dir.glob("*/students/*")):
        task = GLUE[variant.parts[-3]]
        runs = [read_run(done.parent, task) for done in sorted(variant.glob(f"seed_*/{DONE}"))]
        if not runs:
            continue
        teachers, starts, scores, rows = zip(*runs, strict=True)
        kept = [score / teacher for score, teacher in zip(scores, teachers, strict=True)]
        computed = "" if None in starts else spread(starts)
        cells = [task.name, variant.name, len(runs), rows[0], spread(teachers), computed]
        cells += [spread(scores), spread(kept, "%"), *read_measured(variant / MEASURED)]
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
    add("--ways", nargs="+", choices=WAYS, default=["short"], help="how students are made (short)")
    add("--corpus", type=Path, help="text of the ways general and chain, one sentence a line")
    add(
        "--glove_embs", type=Path, help="word vectors of the chain's augmentation; none: --mlm_only"
    )
    add(
        "--benchmark",
        action="store_true",
        help="measure the speed of the first seed's students and score them in int8 as well; "
        "needs the packages of requirements-onnx.txt, and no other program beside",
    )
    add("--threads", type=int, default=2, help="processor threads of a training (2)")
    return parser


def check(args: argparse.Namespace, tasks: Sequence[Task]) -> None:
    """End with exit code 2, before anything is trained, if something that it needs is missing."""
    needed = [config / "config.json" for config in args.students]
    for task in tasks:
        needed += [args.glue_dir / task.directory / file.file for file in (task.train, *task.dev)]
    needed += [path for path in (args.corpus, args.glove_embs) if path]
    mistakes = [f"{path}: no such file" for path in needed if not path.is_file()]
    if args.ways != ["short"] and not args.corpus:
        mistakes.append("--ways general and chain need --corpus TEXT")
    packages = missing_onnx_packages() if args.benchmark else []
    if packages:
        mistakes.append(
            f"--benchmark needs {', '.join(packages)}: pip install -r requirements-onnx.txt"
        )
    for mistake in mistakes[:1]:
        print(f"proof.py: error: {mistake}", file=sys.stderr)
        sys.exit(2)


def main(argv: Sequence[str]) -> None:
    """Make what is missing, in the order seeds, students, tasks, ways; print the table."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    args = build_parser().parse_args(own)
    args.flags = argv[len(own) + 1 :]
    tasks = [GLUE[name] for name in args.tasks]
    check(args, tasks)
    if not args.students:
        for task in tasks:
            make_teacher(task, args)
    wanted = itertools.product(args.seeds, args.students, tasks, args.ways)
    for seed, config, task, way in wanted:
        student = make_student(task, config, way, seed, args)
        if args.benchmark and seed == args.seeds[0]:
            measure(student, args)
        text = table(args.work_dir)
        (args.work_dir / "table.md").write_text(text, encoding="utf-8")
        print(f"\n{text}", end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
