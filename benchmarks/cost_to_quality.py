"""Draw quality against cost: the paper's chain from a random start, and a computed student.

    python benchmarks/cost_to_quality.py --bert_model BERT_DIR --teacher_model FINE_TUNED_BERT \\
        --student_config examples/student_configs/quickstart_3l --corpus corpus.txt \\
        --data_dir GLUE_DIR/STS-B --task_name STS-B --output_dir cost_to_quality

The scripts are run one after the other, as a user would run them, and their metrics.jsonl is read
while it grows. In one run, on one machine, close all other programs first:

    loss   general distillation from a random start and from the closed form: loss of held-out text
    score  the paper's chain (corpus, general distillation, augmentation, layers, predictions) and
           the short way (computed from the fine-tuned teacher, then predictions): dev score

Both against seconds and against arithmetic, in cost_to_quality.png and .json. The clock holds all
that a user waits for, from the start of the first process: imports, tokenising, computing the
student, saving; only the evaluations that the curves are made of are taken off. The general loss
before training is that of at least 256 examples where the start is computed. Arithmetic is that
of the forward passes over real tokens, three times for a student that learns; the masked LM of
augmentation and the teacher's fine-tuning are not counted. The general stage of a computed student
is drawn, but is no part of the short way.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from transformer.checkpoint.directory import Checkpoint
from transformer.configuration import BertConfig
from transformer.costs import sentence_flops
from transformer.file_utils import told_with
from transformer.files import UserError, check_new_directory, read_json, write_json
from transformer.runtime.script import ScriptParser, file_path, run_script
from transformer.tasks.table import TASKS, Task, task_key

# Rates and weights of short runs: those of examples/quickstart.sh, but for predictions. At 3e-4 the
# chain ended at a correlation of -.10 on STS-B, at 1e-4 at .55, from the same layers.
ATTENTION_WEIGHT = "0.05"
GENERAL_RATE, INTERMEDIATE_RATE, PREDICTION_RATE = "1e-3", "5e-4", "1e-4"
COMPUTED_GENERAL_RATE = "3e-4"  # a good start wants a smaller one
INIT_TOKENS = 20_000
POLL_SECONDS = 0.02
GOAL = 0.98  # of the teacher's score

CHAIN, SHORT, RANDOM = "the paper's chain", "closed form", "random start"


# --- running the scripts -----------------------------------------------------------------------


@dataclass
class Timeline:
    """When a process did what, in seconds since its start.

    opened: its metrics.jsonl appeared; None if it has none.
    lines: (when, report) of each line of metrics.jsonl.
    """

    seconds: float = 0.0
    opened: float | None = None
    lines: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def on_the_clock(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """Yield (seconds, report) without the time of evaluations.

        An evaluation lasts from the line before it, which reports the training up to the same step,
        to its own; the one before training begins when the file is opened.
        """
        before, evaluations = self.opened or 0.0, 0.0
        for when, report in self.lines:
            if is_evaluation(report):
                evaluations += when - before
            yield when - evaluations, report
            before = when

    @property
    def cost(self) -> float:
        """Return the seconds of the whole process without those of evaluations."""
        last = list(self.on_the_clock())[-1:]
        return self.seconds - sum(self.lines[-1][0] - seconds for seconds, _ in last)


def is_evaluation(report: dict[str, Any]) -> bool:
    """Say whether a line of metrics.jsonl is about held-out data."""
    return any(name.startswith("eval_") for name in report)


def run(name: str, script: str, flags: Sequence[object], output_dir: Path) -> Timeline:
    """Run a script of the toolkit and watch the metrics.jsonl in its output directory.

    Raises:
        UserError: it failed; names the log.
    """
    log_path = output_dir.parent / f"{name.replace(' ', '_')}.log"
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    timeline, metrics = Timeline(), output_dir / "metrics.jsonl"
    print(f"{name} ...", end=" ", flush=True)
    with open(log_path, "wb") as log:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        reading, held = None, b""
        while True:
            ended = process.poll() is not None  # before the last look, so that no line is missed
            now = time.monotonic() - started
            if reading is None and metrics.exists():
                timeline.opened, reading = now, open(metrics, "rb")  # noqa: SIM115 - until the end
            *lines, held = (held + (reading.read() if reading else b"")).split(b"\n")
            timeline.lines += [(now, json.loads(line)) for line in lines]
            if ended:
                break
            time.sleep(POLL_SECONDS)
        timeline.seconds = now
    if reading:
        reading.close()
    if process.returncode:
        raise UserError(f"{script} ended with exit code {process.returncode}; see {log_path}")
    print(f"{timeline.seconds:.0f} s, {timeline.cost:.0f} s without evaluations", flush=True)
    return timeline


# --- arithmetic --------------------------------------------------------------------------------


def closed_form_flops(student: BertConfig, teacher: BertConfig, tokens: int, length: int) -> float:
    """Count what computing a student takes, on so many tokens in sequences of one length.

    The teacher runs twice and the student once; beside that, each step adds up second moments of
    rows of width n with themselves and with targets of width p: 2 n (n + p) a row.
    """
    own, theirs, inner = student.hidden_size, teacher.hidden_size, student.intermediate_size
    layers = student.num_hidden_layers
    moments = (layers + 1) * theirs * theirs  # the basis
    moments += (2 * layers + 1) * own * (own + theirs)  # reading back, and what is explained
    moments += teacher.num_hidden_layers * own * (own + theirs)  # the middles of all layers
    moments += layers * (own * 2 * own + inner * (inner + own))  # both outputs
    passes = 2 * sentence_flops(teacher, length) + sentence_flops(student, length)
    return tokens / length * passes + 2 * tokens * moments


def training_flops(
    student: BertConfig, teacher: BertConfig | None
) -> Callable[[dict[str, Any]], float]:
    """Return what counts the arithmetic of the steps that a line of metrics.jsonl reports.

    Args:
        teacher: if it runs in each step.
    """

    def flops(report: dict[str, Any]) -> float:
        sequences = report["sequences_per_second"] * report["seconds"]
        length = report["tokens_per_second"] / report["sequences_per_second"]
        each = 3 * sentence_flops(student, length)
        return sequences * (each + (sentence_flops(teacher, length) if teacher else 0.0))

    return flops


@dataclass
class Way:
    """What one way to a student has cost so far, and what was reached when.

    points: step, seconds, flops and value of each evaluation that is drawn.
    """

    seconds: float = 0.0
    flops: float = 0.0
    points: list[dict[str, float]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        name: str,
        timeline: Timeline,
        *,
        drawn: str = "",
        flops_before: float = 0.0,
        flops_of: Callable[[dict[str, Any]], float] | None = None,
    ) -> None:
        """Add a stage.

        Args:
            drawn: the field of metrics.jsonl that is the value of a point.
            flops_before: of what is done before the first step.
            flops_of: of the steps that one report is about.
        """
        flops = flops_before
        for seconds, report in timeline.on_the_clock():
            if flops_of is not None and "tokens_per_second" in report:
                flops += flops_of(report)
            if drawn in report:
                place = {"seconds": self.seconds + seconds, "flops": self.flops + flops}
                self.points.append({"step": report["step"], **place, "value": report[drawn]})
        self.seconds += timeline.cost
        self.flops += flops
        self.stages.append({"name": name, "seconds": timeline.cost, "flops": flops})


# --- the ways ----------------------------------------------------------------------------------


@dataclass
class Bench:
    """What all runs share."""

    args: argparse.Namespace
    task: Task
    teacher: BertConfig
    student: BertConfig

    @property
    def common(self) -> list[object]:
        """Return the flags of all trainings. Each evaluation follows a report of its step."""
        args = self.args
        return [
            *("--max_seq_length", args.max_seq_length, "--train_batch_size", args.batch_size),
            *("--eval_step", args.eval_step, "--log_steps", args.eval_step, "--seed", args.seed),
        ]

    def general(self, name: str, rate: str, more: Sequence[object] = ()) -> Timeline:
        """Distil on the corpus, with the loss of held-out examples now and then."""
        output = self.args.output_dir / name.replace(" ", "_")
        flags = [
            *("--pregenerated_data", self.args.output_dir / "pregenerated", "--do_eval"),
            *("--teacher_model", self.args.bert_model, "--student_model", self.args.student_config),
            *("--attention_weight", ATTENTION_WEIGHT, "--learning_rate", rate),
            *("--num_train_epochs", self.args.general_epochs, "--output_dir", output),
            *self.common,
        ]
        return run(name, "general_distill.py", [*flags, *more], output)

    def distil(self, name: str, data: str, student: Path, rate: str, *more: object) -> Timeline:
        """Distil on the task; by default its layers."""
        output = self.args.output_dir / name.replace(" ", "_")
        flags = [
            *("--task_name", self.args.task_name, "--data_dir", self.args.output_dir / data),
            *("--teacher_model", self.args.teacher_model, "--student_model", student),
            *("--learning_rate", rate, "--output_dir", output, *self.common, *more),
        ]
        return run(name, "task_distill.py", flags, output)

    def augment(self, name: str, data: str, *flags: object) -> Timeline:
        """Write train_aug.tsv."""
        directory = self.args.output_dir / data
        where = ["--task_name", self.args.task_name, "--data_dir", directory]
        return run(name, "data_augmentation.py", [*where, *flags], directory)


def prepare(args: argparse.Namespace) -> None:
    """Write the first lines of the corpus and the first rows of the task."""
    head(args.corpus, args.output_dir / "corpus.txt", args.corpus_lines)
    for name in ("chain_data", "short_data"):
        directory = args.output_dir / name
        directory.mkdir()
        head(args.data_dir / "train.tsv", directory / "train.tsv", args.rows + 1)
        for dev in args.data_dir.glob("dev*.tsv"):
            shutil.copyfile(dev, directory / dev.name)


def head(source: Path, target: Path, lines: int) -> None:
    """Copy the first lines of a file."""
    with open(source, encoding="utf-8", newline="") as file, open(target, "w", newline="") as copy:
        copy.writelines(islice(file, lines))


def general_stages(bench: Bench, chain: Way) -> dict[str, Way]:
    """Make the general data and distil on it from both starts; both go on `chain`'s clock."""
    args = bench.args
    made = args.output_dir / "pregenerated"
    flags = ["--train_corpus", args.output_dir / "corpus.txt", "--bert_model", args.bert_model]
    flags += ["--max_seq_len", args.max_seq_length, "--output_dir", made]
    flags += ["--epochs_to_generate", args.general_epochs]
    flags += ["--split_sentences"] * args.split_sentences
    chain.add("corpus", run("corpus", "pregenerate_training_data.py", flags, made))

    start = bench.general("random start before training", "0", ["--num_train_epochs", "1e-9"])
    first = next(report["eval_loss"] for _, report in start.lines if is_evaluation(report))
    before = {"step": 0, "seconds": chain.seconds, "flops": 0.0, "value": first}
    ways = {RANDOM: Way(chain.seconds, points=[before]), SHORT: Way(chain.seconds)}

    learns = training_flops(bench.student, bench.teacher)
    timeline = bench.general("general", GENERAL_RATE)
    ways[RANDOM].add("general", timeline, drawn="eval_loss", flops_of=learns)
    chain.add("general", timeline, flops_of=learns)

    init = ["--init_from_teacher", "uniform", "--init_tokens", INIT_TOKENS]
    timeline = bench.general("general from the closed form", COMPUTED_GENERAL_RATE, init)
    computing = closed_form_flops(bench.student, bench.teacher, INIT_TOKENS, args.max_seq_length)
    ways[SHORT].add("general", timeline, drawn="eval_loss", flops_before=computing, flops_of=learns)
    return ways


def task_chain(bench: Bench, chain: Way) -> None:
    """Go on with the paper's chain: augmentation, layers, predictions."""
    args = bench.args
    words = ["--glove_embs", args.glove_embs] if args.glove_embs else ["--mlm_only"]
    masked_lm = ["--pretrained_bert_model", args.masked_lm or args.bert_model]
    flags = [*masked_lm, *words, "--N", args.variants]
    chain.add("augmentation", bench.augment("augmentation", "chain_data", *flags))
    timeline = bench.distil(
        *("intermediate", "chain_data", args.output_dir / "general", INTERMEDIATE_RATE),
        *("--aug_train", "--num_train_epochs", args.intermediate_epochs),
        *("--attention_weight", ATTENTION_WEIGHT),
    )
    chain.add("layers", timeline, flops_of=training_flops(bench.student, bench.teacher))
    timeline = bench.distil(
        *("prediction", "chain_data", args.output_dir / "intermediate", PREDICTION_RATE),
        *("--pred_distill", "--aug_train", "--num_train_epochs", args.prediction_epochs),
    )
    add_predictions(bench, chain, timeline, "chain_data")


def short_way(bench: Bench, short: Way) -> None:
    """Compute the student from the fine-tuned teacher and distil its predictions."""
    args = bench.args
    data = ["--pred_distill", "--num_train_epochs", args.short_epochs]
    if args.recombine:
        timeline = bench.augment("recombination", "short_data", "--recombine", args.recombine)
        short.add("recombination", timeline)
        data += ["--aug_train"]
    timeline = bench.distil(
        *("short way", "short_data", args.student_config, PREDICTION_RATE, *data),
        *("--init_from_teacher", "uniform", "--init_tokens", INIT_TOKENS),
    )
    computing = closed_form_flops(
        bench.student, bench.teacher, INIT_TOKENS, round(mean_length(timeline))
    )
    add_predictions(bench, short, timeline, "short_data", computing)


def add_predictions(
    bench: Bench, way: Way, timeline: Timeline, data: str, computing: float = 0.0
) -> None:
    """Add a stage whose teacher answers each row once, before the first step."""
    directory = bench.args.output_dir / data
    augmented = directory / "train_aug.tsv"
    with open(augmented if augmented.exists() else directory / "train.tsv", "rb") as file:
        rows = sum(1 for _ in file) - 1
    asked = rows * sentence_flops(bench.teacher, mean_length(timeline))
    way.add(
        "predictions",
        timeline,
        drawn=f"eval_{bench.task.best_metric}",
        flops_before=computing + asked,
        flops_of=training_flops(bench.student, None),
    )


def mean_length(timeline: Timeline) -> float:
    """Return the mean number of real tokens of what was trained on."""
    reports = [report for _, report in timeline.lines if "tokens_per_second" in report]
    tokens = sum(report["tokens_per_second"] * report["seconds"] for report in reports)
    return tokens / sum(report["sequences_per_second"] * report["seconds"] for report in reports)


# --- results -----------------------------------------------------------------------------------


def first_reached(points: Sequence[dict[str, float]], value: float) -> dict[str, float] | None:
    """Return the first point with at least this value, None if there is none."""
    return next((point for point in points if point["value"] >= value), None)


def summarise(chain: Way, short: Way, teacher_score: float) -> dict[str, Any]:
    """Return what was reached, and what the short way costs to reach as much."""
    reached = {CHAIN: best(chain), SHORT: best(short)}
    summary: dict[str, Any] = {"teacher": teacher_score, "best": reached}
    summary["as_good_as_the_chain"] = first_reached(short.points, reached[CHAIN]["value"])
    summary[f"{GOAL:.0%} of the teacher"] = {
        name: first_reached(way.points, GOAL * teacher_score)
        for name, way in ((CHAIN, chain), (SHORT, short))
    }
    return summary


def best(way: Way) -> dict[str, float]:
    """Return the point of the highest score, with the cost of the whole way."""
    point = max(way.points, key=lambda point: point["value"])
    return {**point, "whole_seconds": way.seconds, "whole_flops": way.flops}


def print_summary(summary: dict[str, Any], metric: str) -> None:
    """Print the results as a table."""
    teacher = summary["teacher"]
    print(f"\n| | dev {metric} | kept | seconds | PFLOP |\n|---|---|---|---|---|")
    print(f"| teacher | {teacher:.4f} | | | |")
    for name, point in summary["best"].items():
        cost = f"{point['whole_seconds']:.0f} | {point['whole_flops'] / 1e15:.4f}"
        print(f"| {name} | {point['value']:.4f} | {point['value'] / teacher:.1%} | {cost} |")
    point, whole = summary["as_good_as_the_chain"], summary["best"][CHAIN]
    if point is None:
        print(f"{SHORT} does not reach the score of {CHAIN}")
    else:
        seconds, flops = point["seconds"], point["flops"]
        print(
            f"{SHORT} has the score of {CHAIN} after {seconds:.0f} s: "
            f"{seconds / whole['whole_seconds']:.1%} of its time, "
            f"{flops / whole['whole_flops']:.1%} of its arithmetic"
        )
    for name, point in summary[f"{GOAL:.0%} of the teacher"].items():
        when = f"after {point['seconds']:.0f} s" if point else "never"
        print(f"{name} has {GOAL:.0%} of the teacher's score {when}")


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw loss and score against seconds and arithmetic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8))
    axes = figure.subplots(2, 2)
    for row, (kind, label) in enumerate(
        (("loss", "general loss, held out"), ("score", f"dev {results['metric']}"))
    ):
        for column, (cost, unit) in enumerate((("seconds", "seconds"), ("flops", "FLOP"))):
            axis = axes[row][column]
            for name, way in results[kind].items():
                xs, ys = ([point[key] for point in way["points"]] for key in (cost, "value"))
                axis.plot(xs, ys, marker=".", label=name)
            if kind == "score":
                axis.axhline(results["summary"]["teacher"], color="gray", ls=":", label="teacher")
            axis.set(xlabel=unit, ylabel=label)
            axis.set_xlim(left=0)
            axis.legend()
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


# --- command line ------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = ScriptParser(__doc__)
    add = parser.add_argument_group("what to measure").add_argument
    add("--bert_model", type=file_path, required=True, help="pre-trained teacher")
    add("--teacher_model", type=file_path, required=True, help="that model, fine-tuned on the task")
    add("--student_config", type=file_path, required=True, help="directory of its config.json")
    add("--corpus", type=file_path, required=True, help="general text, one sentence a line")
    add("--split_sentences", action="store_true", help="lines of the corpus are paragraphs")
    add("--data_dir", type=file_path, required=True, help="holds train.tsv and dev.tsv")
    add("--task_name", required=True, help="a task of GLUE")
    add("--masked_lm", type=file_path, help="for augmentation (default: --bert_model)")
    add("--glove_embs", type=file_path, help="for augmentation (default: --mlm_only)")
    add("--output_dir", type=file_path, required=True, help="new or empty; gets all results")
    add = parser.add_argument_group("sizes: together about ten minutes on two cores").add_argument
    add("--rows", type=int, default=2000, help="rows of the task, for both ways")
    add("--corpus_lines", type=int, default=30_000, help="lines of the corpus")
    add("--general_epochs", type=int, default=1, help="passes over the corpus")
    add("--variants", type=int, default=2, help="variants of each text in the chain")
    add("--intermediate_epochs", type=float, default=1.0, help="passes over augmented rows")
    add("--prediction_epochs", type=float, default=1.0, help="passes in the chain's last stage")
    add("--recombine", type=float, default=2.0, help="rows added for each row of the short way")
    add("--short_epochs", type=float, default=2.0, help="passes over the rows of the short way")
    add("--eval_step", type=int, default=25, help="steps between two points of a curve")
    add("--max_seq_length", type=int, default=64, help="limit in tokens")
    add("--batch_size", type=int, default=32, help="examples of a step")
    add("--seed", type=int, default=42, help="seed of all trainings")
    return parser


def check_args(args: argparse.Namespace) -> Task:
    """Find mistakes before anything is run; return the row of the task."""
    task = TASKS.get(task_key(args.task_name))
    if task is None:
        raise UserError(f"--task_name {args.task_name}: give one of {', '.join(TASKS)}")
    for name in ("rows", "corpus_lines", "general_epochs", "variants", "eval_step", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more")
    for path in (args.corpus, args.data_dir / "train.tsv"):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    with told_with("output_dir"):
        check_new_directory(args.output_dir)
    return task


def main(argv: Sequence[str] | None = None) -> None:
    """Run both ways and write what they cost."""
    args = build_parser().parse_args(argv)
    task = check_args(args)
    student = Checkpoint(args.student_config).config
    teacher = Checkpoint(args.teacher_model).config
    args.output_dir.mkdir(parents=True, exist_ok=True)
    args.output_dir = args.output_dir.resolve()
    load = os.getloadavg()[0]
    bench = Bench(args, task, teacher, student)

    prepare(args)
    chain, short = Way(), Way()
    losses = general_stages(bench, chain)
    task_chain(bench, chain)
    short_way(bench, short)

    scores = read_json(args.output_dir / "short_way" / "eval_results.json")
    teacher_score = scores[f"teacher_{task.best_metric}"]
    results = {
        "task": task.name,
        "metric": task.best_metric,
        "options": {name: str(value) for name, value in vars(args).items()},
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "load_before": load},
        "loss": {name: asdict(way) for name, way in losses.items()},
        "score": {CHAIN: asdict(chain), SHORT: asdict(short)},
        "summary": summarise(chain, short, teacher_score),
    }
    write_json(args.output_dir / "cost_to_quality.json", results)
    draw(results, args.output_dir / "cost_to_quality.png")
    print_summary(results["summary"], task.best_metric)
    print(f"written: {args.output_dir / 'cost_to_quality.json'} and .png")


if __name__ == "__main__":
    sys.exit(run_script(main))
