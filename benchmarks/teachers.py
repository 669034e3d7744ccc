"""Measure what other architectures cost beside a BERT of the same size, on this machine.

    python benchmarks/teachers.py                           BERT-base's size; minutes on a CPU
    python benchmarks/teachers.py --layers 2 --rounds 3     a quick look
    python benchmarks/teachers.py --batch_size 256          on a GPU

Three jobs on random weights and whole batches: "teach", the forward pass of a frozen teacher that
gives hidden states and raw attention scores of every layer; "classify", the logits of a frozen
classifier; "fine-tune", forward, backward and nothing else. The architectures take turns, round by
round, so that a machine that slows down slows all of them; shown are the median, how much slower
than BERT it is, and the spread over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformer.architectures.table import ARCHITECTURES
from transformer.distillation.students import freeze_teacher
from transformer.modeling import TinyBertForSequenceClassification
from transformer.packed_linear import pack_linears
from transformer.runtime.ranks import PRECISIONS, Runtime, native_bf16
from transformer.runtime.script import ScriptParser, run_script

JOBS = ("teach", "classify", "fine-tune")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "--types", nargs="+", default=["bert", "nezha", "albert"], help="to compare"
    )
    parser.add_argument("--layers", type=int, default=12, help="of each model (default 12)")
    parser.add_argument("--length", type=int, default=128, help="tokens (default 128)")
    parser.add_argument("--batch_size", type=int, default=32, help="sequences (default 32)")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each (default 7)")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: the machine's best")
    return parser.parse_args(argv)


def make_job(
    model_type: str, job: str, args: argparse.Namespace, runtime: Runtime
) -> Callable[[], object]:
    """Return a function that does one batch of `job`."""
    torch.manual_seed(0)
    config = ARCHITECTURES[model_type].config(
        vocab_size=30522, num_hidden_layers=args.layers, hidden_act="gelu"
    )
    model = TinyBertForSequenceClassification(config)
    shape = (args.batch_size, args.length)
    ids = torch.randint(1000, 30000, shape, device=runtime.device)
    labels = torch.zeros(len(ids), dtype=torch.long, device=runtime.device)
    if job == "fine-tune":
        model.to(runtime.device).train()

        def step() -> None:
            model.zero_grad()
            with runtime.autocast():
                logits = model(ids, only_logits=True).logits
            F.cross_entropy(logits.float(), labels).backward()

        return step
    pack_linears(freeze_teacher(model, runtime))
    options: dict[str, object] = {"only_logits": True}
    if job == "teach":
        options = {"score_layers": tuple(range(1, args.layers + 1)), "classify": False}

    def forward() -> object:
        with torch.inference_mode(), runtime.autocast():
            return model(ids, **options)

    return forward


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return how long one batch takes."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    args = parse(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    best = "bf16" if native_bf16(device) else "fp32"
    runtime = Runtime(device, PRECISIONS[args.precision or best])
    print(
        f"{args.layers} layers, width 768, {args.batch_size} x {args.length} tokens, "
        f"{device.type}, {runtime.dtype}, {torch.get_num_threads()} thread(s)"
    )
    for job in JOBS:
        runs = {name: make_job(name, job, args, runtime) for name in args.types}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds + 1):  # the first one warms up
            for name, run in runs.items():
                times[name].append(seconds(run, device))
        medians = {name: statistics.median(found[1:]) for name, found in times.items()}
        for name, median in medians.items():
            spread = max(times[name][1:]) / min(times[name][1:])
            rate, ratio = args.batch_size / median, median / medians[args.types[0]]
            print(
                f"{job:10s} {name:10s} {rate:9.1f} sequences/s  {ratio:5.2f} x {args.types[0]}'s "
                f"time  (spread {spread:.2f})"
            )


if __name__ == "__main__":
    sys.exit(run_script(main))
