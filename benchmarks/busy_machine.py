"""Measure training beside other busy processes, against the share of the cores that is its due.

    python benchmarks/busy_machine.py                            a few minutes
    python benchmarks/busy_machine.py --busy 4 --rounds 1

A general step of a 6-layer teacher and a 3-layer student at 64 tokens runs in a process of its own,
beside so many processes that count. The due of a process with as many threads as there are cores
is cores / (cores + busy) of what it does alone. One row is the toolkit, which looks how long its
threads wait for a core (transformer/runtime/waiting.py), one the same step without that.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformer.runtime.parallel import usable_cores
from transformer.runtime.script import ScriptParser, run_script

TOOLKIT, PLAIN = "toolkit", "plain"


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add("--busy", type=int, nargs="+", default=[2, 4, 8], help="numbers of busy processes")
    add("--seconds", type=float, default=10.0, help="of each measurement")
    add("--rounds", type=int, default=2, help="measurements of each kind, in turns")
    add("--worker", choices=(TOOLKIT, PLAIN), help=argparse.SUPPRESS)
    return parser


def count_steps(seconds: float, *, watched: bool) -> float:
    """Return the optimizer steps a second of general distillation on random tokens."""
    import numpy as np
    import torch

    from benchmarks.training import begin_training
    from transformer.configuration import BertConfig
    from transformer.distillation.layers import LAYER_TERMS, compare_layers, layer_map
    from transformer.distillation.objectives import Objective
    from transformer.distillation.students import freeze_teacher, freeze_unread
    from transformer.modeling import TinyBertForPreTraining
    from transformer.packed_linear import pack_linears
    from transformer.runtime.ranks import Runtime
    from transformer.runtime.waiting import CHECK_SECONDS, watch_crowding
    from transformer.training.batches import BatchPlan
    from transformer.training.loop import take_step
    from transformer.training.packed import PackedWriter
    from transformer.training.steps import RunPlan, step_batches

    torch.manual_seed(0)
    runtime = Runtime(torch.device("cpu"))
    sizes = {"num_attention_heads": 12, "vocab_size": 8000}
    teacher = TinyBertForPreTraining(
        BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536, **sizes)
    )
    student = TinyBertForPreTraining(
        BertConfig(
            hidden_size=192, num_hidden_layers=3, intermediate_size=768, fit_size=384, **sizes
        )
    ).train()
    pack_linears(freeze_teacher(teacher, runtime))
    terms = tuple(term for term in LAYER_TERMS if term.kind in ("", "mse"))
    comparisons = compare_layers(terms, layer_map(3, 6, "uniform"))
    objective = Objective(comparisons, teacher, classifiers=False)
    freeze_unread(student, objective)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        writer = PackedWriter(Path(directory) / "data", 8000)
        for _ in range(2048):
            writer.add(rng.integers(1000, 8000, 64), 64)
        plan = RunPlan([BatchPlan(writer.close(), 32, seed=0)], epochs=1000)
        state = begin_training(student, plan, runtime)
        batches = step_batches(plan, runtime, first_step=1, accumulation=1, pad_token_id=0)
        if watched:
            watch_crowding()
        # Long enough to notice that the machine is busy.
        warmed = time.perf_counter() + 3 * CHECK_SECONDS
        while time.perf_counter() < warmed:
            take_step(student, objective, next(batches), state, runtime, seed=0)
        begun, steps = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            take_step(student, objective, next(batches), state, runtime, seed=0)
            steps += 1
        rate = steps / (time.perf_counter() - begun)
        batches.close()
    return rate


def measure(setting: str, busy: int, seconds: float) -> float:
    """Return the rate of a worker beside `busy` processes."""
    counting = [sys.executable, "-c", "while True: sum(range(10**6))"]
    others = [subprocess.Popen(counting) for _ in range(busy)]
    try:
        command = [sys.executable, __file__, "--worker", setting, "--seconds", str(seconds)]
        run = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(run.stdout)


def main(argv: list[str] | None = None) -> None:
    """Measure both settings beside all loads, in turns; print a table."""
    args = build_parser().parse_args(argv)
    if args.worker:
        print(count_steps(args.seconds, watched=args.worker == TOOLKIT))
        return
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.rounds):
        for busy in (0, *args.busy):
            for setting in (PLAIN, TOOLKIT):
                rate = measure(setting, busy, args.seconds)
                rates.setdefault((setting, busy), []).append(rate)
                print(f"{setting}, beside {busy}: {rate:.2f} steps/s", file=sys.stderr, flush=True)
    cores = usable_cores()
    alone = median(rates[PLAIN, 0])
    print(f"{cores} cores; steps/s, in brackets the share of what is due\n")
    print("| beside | due | plain | toolkit |\n|---|---|---|---|")
    for busy in (0, *args.busy):
        due = alone * cores / (cores + busy)
        both = [median(rates[setting, busy]) for setting in (PLAIN, TOOLKIT)]
        cells = " | ".join(f"{rate:.2f} ({rate / due:.0%})" for rate in both)
        print(f"| {busy} | {due:.2f} | {cells} |")


if __name__ == "__main__":
    sys.exit(run_script(main))
