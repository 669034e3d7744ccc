"""Measure how task files are tokenised: time, memory and disk, as the number of rows grows.

    python benchmarks/task_data.py --data_dir GLUE_DIR/MNLI --task_name MNLI --vocab BERT_DIR
    python benchmarks/task_data.py ... --rows 100000 1000000 --num_workers 2

Rows are made from the task's own training file: each is one of its rows with some words exchanged
for words of other rows, as augmentation makes them. Every size is tokenised by a fresh process into
an empty cache, and its peak memory, workers included, is what the system reports; a second opening
finds the cache. The plain way, lists of Python integers padded to the maximum, is measured at the
smallest size only.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from transformer.runtime.parallel import usable_cores  # noqa: E402
from transformer.runtime.script import ScriptParser, run_script  # noqa: E402
from transformer.tasks.files import (
    RowReader,  # noqa: E402
    require_file,  # noqa: E402
    with_labels,  # noqa: E402
)
from transformer.tasks.table import (
    Task,  # noqa: E402
    add_task_arguments,  # noqa: E402
    resolve_task,  # noqa: E402
)
from transformer.tasks.token_cache import (
    TokenCache,  # noqa: E402
    build_input,  # noqa: E402
)
from transformer.tokenization import BertTokenizer  # noqa: E402

POOL_ROWS = 10000  # of the training file, to make rows from
EXCHANGED = 0.4  # share of words, as in augmentation


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="with the task's train.tsv")
    parser.add_argument("--vocab", type=Path, required=True, help="directory with vocab.txt")
    parser.add_argument("--rows", type=int, nargs="+", default=[10000, 100000, 1000000])
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--num_workers", type=int, default=usable_cores())
    parser.add_argument("--measure", choices=("packed", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--work_dir", type=Path, help=argparse.SUPPRESS)
    add_task_arguments(parser)
    return parser


def write_rows(task: Task, data_dir: Path, work_dir: Path, count: int) -> None:
    """Write a training file of `count` rows to `work_dir`."""
    source = require_file(data_dir, task.train, "making rows")
    reader = RowReader(source, task, task.train)
    pool = [row.cells for _, row in zip(range(POOL_ROWS), reader, strict=False)]
    words = [word for cells in pool for text in reader.texts(cells) for word in text.split()]
    rng = random.Random(0)
    with open(work_dir / source.name, "w", encoding="utf-8", newline="\n") as file:
        file.write(reader.format_header())
        for number in range(count):
            cells = pool[number % len(pool)]
            texts = tuple(
                " ".join(
                    rng.choice(words) if rng.random() < EXCHANGED else word for word in text.split()
                )
                for text in reader.texts(cells)
            )
            file.write(reader.format_row(reader.with_texts(cells, texts)))


def measure(args: argparse.Namespace, task: Task) -> dict[str, float]:
    """Tokenise the file in the work directory in this process; return what it took."""
    tokenizer = BertTokenizer.from_pretrained(args.vocab)
    path = require_file(args.work_dir, task.train, "the measurement")
    cache = TokenCache(
        args.work_dir / "cache", tokenizer, args.max_seq_length, args.num_workers, speak=False
    )
    started = time.perf_counter()
    if args.measure == "plain":
        kept = plain(path, task, tokenizer, args.max_seq_length)
        seconds, again, disk = time.perf_counter() - started, 0.0, 0
    else:
        kept = cache.open(path, task, task.train)
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        cache.open(path, task, task.train)
        again = time.perf_counter() - started
        disk = sum(file.stat().st_size for file in kept.path.iterdir())
    peaks = [
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    workers = args.num_workers if peaks[1] else 0
    return {
        "rows": len(kept),
        "seconds": seconds,
        "again": again,
        "peak_mb": peaks[0] + workers * peaks[1],
        "disk_mb": disk / 2**20,
    }


def plain(path: Path, task: Task, tokenizer: BertTokenizer, limit: int) -> list[list[list[int]]]:
    """Tokenise row by row into padded lists: ids, mask and segments, all kept."""
    reader = RowReader(path, task, task.train)
    kept = []
    for row in reader:
        pieces = [tokenizer.encode(text) for text in reader.texts(row.cells)]
        ids, first = build_input(tokenizer, pieces, limit)
        padding = [0] * (limit - len(ids))
        segments = [0] * first + [1] * (len(ids) - first) + padding
        kept.append([ids + padding, [1] * len(ids) + padding, segments])
    return kept


def run_fresh(kind: str, work_dir: Path) -> dict[str, float]:
    """Measure in a process of its own, so that the peak memory is that of this size alone."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", kind, "--work_dir", work_dir]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    """Print the table."""
    args = build_parser().parse_args()
    task = with_labels(resolve_task(args), args.data_dir)
    if args.measure:
        print(json.dumps(measure(args, task)))
        return
    print(f"{task.name}, at most {args.max_seq_length} tokens, {args.num_workers} workers")
    columns = ("rows", "seconds", "rows/s", "again s", "peak MB", "disk MB")
    print(f"{'':8}" + "".join(f"{name:>10}" for name in columns))
    for number, rows in enumerate(sorted(args.rows)):
        for kind in ("plain", "packed") if number == 0 else ("packed",):
            with tempfile.TemporaryDirectory() as work_dir:
                write_rows(task, args.data_dir, Path(work_dir), rows)
                found = run_fresh(kind, Path(work_dir))
            rate = found["rows"] / found["seconds"]
            print(
                f"{kind:8}{found['rows']:10d}{found['seconds']:10.2f}{rate:10.0f}"
                f"{found['again']:10.2f}{found['peak_mb']:10.0f}{found['disk_mb']:10.1f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(run_script(main))
