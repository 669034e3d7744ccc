"""Print teacher and students side by side, from what `--do_eval --benchmark` wrote; let them speak.

python examples/show_results.py --results_dir RESULTS [RESULTS ...] [--models TEACHER STUDENT ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SENTENCES = (
    "a film to fall in love with",
    "two hours of my life that i will never get back",
    "it could have been worse",
)


def read_column(directory: Path) -> tuple[dict, dict]:
    """Return what eval_results.json and benchmark.json of a directory say."""
    names = ("eval_results.json", "benchmark.json")
    results, benchmark = (
        json.loads((directory / name).read_text(encoding="utf-8")) for name in names
    )
    return results, benchmark


def result_rows(columns: dict[str, tuple[dict, dict]]) -> list[tuple[str, ...]]:
    """Return the rows of the table: what, the teacher, and each student with a comparison.

    Args:
        columns: by the name of the student, eval_results.json (with `acc` and `teacher_acc`) and
            benchmark.json (with the figures of both models under their names, and the ratios).
    """
    benchmarks = [benchmark for _, benchmark in columns.values()]
    rows: list[tuple[str, ...]] = [("", "teacher", *columns)]
    first = benchmarks[0]["teacher"]
    batch_size = first["at_real_lengths"]["speeds"][1]["batch_size"]

    def add(title: str, ratio: str, read, show, gain: str, loss: str) -> None:
        cells = [
            f"{show(read(each['student']))} ({worded(each['ratios'][ratio], gain, loss)})"
            for each in benchmarks
        ]
        rows.append((title, show(read(first)), *cells))

    def speed(number: int, field: str):
        return lambda model: model["at_real_lengths"]["speeds"][number][field]

    size = "smaller", "larger"
    add("parameters", "parameters", lambda m: m["parameters"], lambda n: f"{n / 1e6:.1f} M", *size)
    on_disk = "size_on_disk"
    add("size on disk", on_disk, lambda m: m[on_disk], lambda n: f"{n / 1e6:.1f} MB", *size)
    at, pace = "at_real_lengths/batch_", ("faster", "slower")
    add(
        f"sentences/s, batches of {batch_size}",
        f"{at}{batch_size}/sentences_per_second",
        speed(1, "sentences_per_second"),
        lambda rate: f"{rate:.0f}",
        *pace,
    )
    # On a busy machine short answers fall between what else runs and long ones do not, so that the
    # median time flatters the faster model; its rate does not.
    title, rate = "ms per sentence, one at a time", f"{at}1/sentences_per_second"
    add(title, rate, speed(0, "p50_ms"), lambda ms: f"{ms:.2f}", *pace)
    scores = [(results["teacher_acc"], results["acc"]) for results, _ in columns.values()]
    kept = [f"{student:.1%} ({student / teacher:.1%} kept)" for teacher, student in scores]
    rows.append(("dev accuracy", f"{scores[0][0]:.1%}", *kept))
    return rows


def worded(ratio: float, gain: str, loss: str) -> str:
    """Say how many times better. Example: 0.5, "faster", "slower" -> "2.0x slower"."""
    return f"{ratio:.1f}x {gain}" if ratio >= 1 else f"{1 / ratio:.1f}x {loss}"


def format_table(rows: list[tuple[str, ...]]) -> str:
    """Align the rows as a Markdown table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join(
        "-" * (width + 1) + (":" if number else "-") for number, width in enumerate(widths)
    )
    return "\n".join([lines[0], rule + "|", *lines[1:]])


def spoken_rows(models: list[Path]) -> list[tuple[str, ...]]:
    """Return what each model says of three sentences."""
    from transformer import TextClassifier

    answers = [TextClassifier(model)(SENTENCES) for model in models]
    rows = [("", *(model.name for model in models))]
    for number, sentence in enumerate(SENTENCES):
        said = (model[number] for model in answers)
        rows.append((sentence, *(f"{each.label} ({each.probability:.2f})" for each in said)))
    return rows


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description="Print teacher and students side by side.")
    parser.add_argument(
        "--results_dir",
        type=Path,
        nargs="+",
        required=True,
        help="directories with eval_results.json and benchmark.json, one a student",
    )
    parser.add_argument(
        "--models", type=Path, nargs="+", default=[], help="models that classify three sentences"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the tables; return the exit code."""
    args = build_parser().parse_args(argv)
    try:
        columns = {directory.name: read_column(directory) for directory in args.results_dir}
    except OSError as error:
        print(f"show_results.py: error: {error}", file=sys.stderr)
        return 2
    print(f"\n{format_table(result_rows(columns))}")
    for name, (_, benchmark) in columns.items():
        if benchmark.get("noise"):
            print(f"\n{name}: {benchmark['noise']}")
    if args.models:
        print(f"\n{format_table(spoken_rows(args.models))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
