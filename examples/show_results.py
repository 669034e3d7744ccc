"""Print teacher and student side by side, from what `task_distill.py --do_eval --benchmark` wrote.

python examples/show_results.py --results_dir RESULTS
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def result_rows(results: dict, benchmark: dict) -> list[tuple[str, str, str, str]]:
    """Return the rows of the table: what, teacher, student, comparison.

    Args:
        results: eval_results.json, with `acc` and `teacher_acc`.
        benchmark: benchmark.json, with the figures of both models under their names.
    """
    teacher, student = benchmark["teacher"], benchmark["student"]
    alone, batched = (
        [model["at_real_lengths"]["speeds"][number] for model in (teacher, student)]
        for number in (0, 1)
    )
    rates = [speed["sentences_per_second"] for speed in batched]
    latencies = [speed["p50_ms"] for speed in alone]
    parameters = [model["parameters"] for model in (teacher, student)]
    sizes = [model["size_on_disk"] for model in (teacher, student)]
    scores = results["teacher_acc"], results["acc"]
    return [
        ("", "teacher", "student", ""),
        ("parameters", *(f"{n / 1e6:.1f} M" for n in parameters), ratio(parameters, "smaller")),
        ("size on disk", *(f"{n / 1e6:.1f} MB" for n in sizes), ratio(sizes, "smaller")),
        (
            f"sentences/s, batches of {batched[0]['batch_size']}",
            *(f"{rate:.0f}" for rate in rates),
            ratio(rates[::-1], "faster"),
        ),
        (
            "ms per sentence, one at a time",
            *(f"{ms:.2f}" for ms in latencies),
            ratio(latencies, "faster"),
        ),
        (
            "dev accuracy",
            *(f"{score:.1%}" for score in scores),
            f"{scores[1] / scores[0]:.1%} kept",
        ),
    ]


def ratio(pair: list[float], word: str) -> str:
    """Say how many times the first is the second. Example: [6.0, 2.0], "smaller": 3.0x smaller."""
    return f"{pair[0] / pair[1]:.1f}x {word}"


def format_table(rows: list[tuple[str, str, str, str]]) -> str:
    """Align the rows as a Markdown table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"| {row[0]:<{widths[0]}} | {row[1]:>{widths[1]}} | {row[2]:>{widths[2]}} "
        f"| {row[3]:>{widths[3]}} |"
        for row in rows
    ]
    rule = "|" + "|".join(
        "-" * (width + 1) + (":" if number else "-") for number, width in enumerate(widths)
    )
    return "\n".join([lines[0], rule + "|", *lines[1:]])


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description="Print teacher and student side by side.")
    parser.add_argument(
        "--results_dir",
        type=Path,
        required=True,
        help="directory with eval_results.json and benchmark.json",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the table; return the exit code."""
    directory = build_parser().parse_args(argv).results_dir
    try:
        results = json.loads((directory / "eval_results.json").read_text(encoding="utf-8"))
        benchmark = json.loads((directory / "benchmark.json").read_text(encoding="utf-8"))
    except OSError as error:
        print(f"show_results.py: error: {error}", file=sys.stderr)
        return 2
    print()
    print(format_table(result_rows(results, benchmark)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
