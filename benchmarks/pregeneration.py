"""Measure pregeneration against the plain way, and its time and memory as the corpus grows.

    python benchmarks/pregeneration.py --corpus corpus.txt --vocab BERT_DIR [--scales 1 4 16]

First table: the plain way (benchmarks/plain_pregeneration.py, one process), then ours, whole
commands from start to end, with the rates of the three stages in one process. Second table: the
corpus 1, 4, 16 times, ours. Last: what that means for a Wikipedia.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from transformer.corpus.blocks import Corpus
from transformer.corpus.instances import InstanceSampler, InstanceSettings, TokenTable, format_line
from transformer.corpus.token_store import StoreState, TokenStore, TokenStoreWriter
from transformer.corpus.tokens import BlockTokenizer, token_dtype
from transformer.runtime.parallel import usable_cores
from transformer.runtime.script import ScriptParser, run_script
from transformer.tokenization import BertTokenizer

WIKIPEDIA_WORDS = 2.5e9
STAGES = ("tokenising", "sampling", "writing")
POLL_SECONDS = 0.1


@dataclass
class Measured:
    """What one command took: seconds of the clock, of the processor, and memory in MiB."""

    seconds: float = 0.0
    main_cpu: float = 0.0
    worker_cpu: float = 0.0
    main_memory: float = 0.0
    worker_memory: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)


def children_of(pid: int) -> list[int]:
    """Return the child processes of `pid`."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    except OSError:
        return []
    return [int(child) for child in text.split()]


def private_memory(pid: int) -> float:
    """Return the anonymous memory of a process in MiB; pages of files can be dropped any time."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    sizes = [line.split()[1] for line in lines if line.startswith("RssAnon")]
    return int(sizes[0]) / 1024 if sizes else 0.0


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process, without that of its children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ended(process: subprocess.Popen[str]) -> bool:
    """Wait a moment for the end of a process."""
    try:
        process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def best(measure_once: Callable[[], Measured], repeats: int) -> Measured:
    """Measure several times and return the fastest."""
    return min((measure_once() for _ in range(repeats)), key=lambda measured: measured.seconds)


def measure(command: list[str]) -> tuple[Measured, str]:
    """Run a command, watch it and its workers, and return what it printed too."""
    measured = Measured()
    worker_cpu: dict[int, float] = {}
    os.sync()  # what was written before is not to be written during the measurement
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        while not ended(process):
            measured.main_memory = max(measured.main_memory, private_memory(process.pid))
            measured.main_cpu = max(measured.main_cpu, cpu_seconds(process.pid))
            for child in children_of(process.pid):
                measured.worker_memory = max(measured.worker_memory, private_memory(child))
                worker_cpu[child] = max(worker_cpu.get(child, 0.0), cpu_seconds(child))
        measured.seconds = time.perf_counter() - started
        measured.worker_cpu = sum(worker_cpu.values())
        output = process.stdout.read()
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{log.read()}")
    return measured, output


def measure_plain(args: argparse.Namespace, vocab_file: Path, directory: Path) -> Measured:
    """Run the plain way."""
    script = str(ROOT / "benchmarks" / "plain_pregeneration.py")
    measured, output = measure(
        [sys.executable, script, args.corpus, str(vocab_file), str(directory), str(args.epochs)]
    )
    figures = json.loads(output)
    amounts = [figures["tokens"], figures["written"], figures["written"]]
    measured.stages = {
        stage: amount / figures[stage] for stage, amount in zip(STAGES, amounts, strict=True)
    }
    return measured


def measure_ours(corpus: str, vocab: str, output_dir: Path, epochs: int, workers: int) -> Measured:
    """Run the script."""
    script = str(ROOT / "pregenerate_training_data.py")
    command = [sys.executable, script, "--train_corpus", corpus, "--bert_model", vocab]
    command += ["--output_dir", str(output_dir), "--epochs_to_generate", str(epochs)]
    measured, _ = measure([*command, "--num_workers", str(workers)])
    shutil.rmtree(output_dir)
    return measured


def stage_rates(args: argparse.Namespace, directory: Path) -> dict[str, float]:
    """Return the tokens/s of each of our stages in this process, for one epoch."""
    tokenizer = BertTokenizer.from_pretrained(args.vocab)
    settings = InstanceSettings()
    dtype = token_dtype(len(tokenizer.vocab))
    tokenize = BlockTokenizer(tokenizer, settings.piece_lengths)
    times = [time.perf_counter()]
    writer = TokenStoreWriter(directory, dtype, StoreState())
    for block in Corpus((args.corpus,)).blocks():
        writer.append(tokenize(block))
    writer.finish()
    writer.close()
    times.append(time.perf_counter())
    store = TokenStore.from_state(directory, dtype, writer.state)
    sampler = InstanceSampler(store, TokenTable(tokenizer.vocab), settings)
    sampling = writing = 0.0
    written = 0
    with open(directory / "epoch.json", "wb") as file:
        for part in range(len(store.part_starts) - 1):
            begun = time.perf_counter()
            instances = list(sampler.part(0, part))
            sampled = time.perf_counter()
            file.write(b"".join(map(format_line, instances)))
            sampling += sampled - begun
            writing += time.perf_counter() - sampled
            written += sum(len(instance.tokens) for instance in instances)
    seconds = [times[1] - times[0], sampling, writing]
    amounts = [writer.state.tokens, written, written]
    return {
        stage: amount / second
        for stage, amount, second in zip(STAGES, amounts, seconds, strict=True)
    }


def print_rows(header: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print(f"| {' | '.join(cells)} |")
    print(flush=True)


def compare(args: argparse.Namespace, directory: Path) -> dict[int, Measured]:
    """Print the first table and return our measurements by number of workers."""
    vocab = Path(args.vocab)
    vocab_file = vocab / "vocab.txt" if vocab.is_dir() else vocab
    plain = best(lambda: measure_plain(args, vocab_file, directory), args.repeats)
    ours = {}
    for workers in args.workers:
        arguments = args.corpus, args.vocab, directory / "out", args.epochs, workers
        ours[workers] = best(partial(measure_ours, *arguments), args.repeats)
    rates = stage_rates(args, directory / "stages")
    rows = []
    named = [("plain way, 1 process", plain)]
    named += [(f"ours, --num_workers {workers}", measured) for workers, measured in ours.items()]
    for name, measured in named:
        stages = measured.stages or (rates if name.endswith(" 1") else {})
        rows.append(
            [name, f"{measured.seconds:.1f}", f"{plain.seconds / measured.seconds:.1f}x"]
            + [f"{stages[stage]:,.0f}" if stages else "" for stage in STAGES]
            + [f"{measured.main_memory:.0f}", f"{measured.worker_memory or 0:.0f}"]
        )
    header = ["", "seconds", "times as fast", *(f"{stage}, tokens/s" for stage in STAGES)]
    name = Path(args.corpus).name
    print(f"{args.epochs} epochs of {name}, {usable_cores()} cores, best of {args.repeats}\n")
    print_rows([*header, "MiB, main process", "MiB, a worker"], rows)
    return ours


def grow(args: argparse.Namespace, directory: Path) -> None:
    """Print the second table: the same corpus several times over."""
    workers = max(args.workers)
    rows = []
    for scale in args.scales:
        corpus = directory / "corpus.txt"
        with corpus.open("wb") as file:
            for _ in range(scale):
                file.write(Path(args.corpus).read_bytes() + b"\n\n")
        measured = measure_ours(str(corpus), args.vocab, directory / "out", 1, workers)
        size = corpus.stat().st_size / 2**20
        rows.append(
            [f"{scale}x", f"{size:.0f}", f"{measured.seconds:.1f}"]
            + [f"{measured.seconds / size * 1000:.1f}"]
            + [f"{measured.main_memory:.0f}", f"{measured.worker_memory or 0:.0f}"]
        )
        corpus.unlink()
    print(f"1 epoch, --num_workers {workers}, growing corpus\n")
    header = ["corpus", "MiB", "seconds", "ms per MiB", "MiB, main process", "MiB, a worker"]
    print_rows(header, rows)


def extrapolate(args: argparse.Namespace, measured: Measured, start_cpu: float) -> None:
    """Say what the processor times mean for a Wikipedia."""
    with open(args.corpus, encoding="utf-8") as file:
        words = sum(len(line.split()) for line in file)
    factor = WIKIPEDIA_WORDS / words / 3600
    main_hours = max(measured.main_cpu - start_cpu, 0.0) * factor
    worker_hours = measured.worker_cpu * factor
    print(f"{words:,} words here; {WIKIPEDIA_WORDS:,.0f} words and {args.epochs} epochs take")
    for cores in (2, 32):
        hours = max((main_hours + worker_hours) / cores, main_hours)
        print(f"  {hours:.1f} hours on {cores} cores like these")
    print(
        f"assuming that processor time grows with the words (workers {worker_hours:.1f} hours, "
        f"reading and joining in the main process {main_hours:.1f} hours, which are not shared "
        "out), that cores do not slow each other down, and that the disk keeps up"
    )


def main() -> None:
    """Run what was asked for."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--corpus", required=True, help="plain text, one sentence a line")
    parser.add_argument("--vocab", required=True, help="directory with vocab.txt")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="of the first table")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--scales", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--work_dir", default=None, help="for the files; default: system's own")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work_dir) as name:
        ours = compare(args, Path(name))
        grow(args, Path(name))
        script = str(ROOT / "pregenerate_training_data.py")
        start, _ = measure([sys.executable, script, "--help"])
        extrapolate(args, ours[max(ours)], start.main_cpu)


if __name__ == "__main__":
    sys.exit(run_script(main))
