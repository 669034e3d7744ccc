"""Measure the training engine against a plain implementation, on this machine, in one run.

    python benchmarks/training.py                               full size; a few minutes on a CPU
    python benchmarks/training.py --corpus TEXT --sentences TSV --vocab VOCAB_DIR
    python benchmarks/training.py --rows general --steps 3      a quick look at one row
    python benchmarks/training.py --batch_size 256 --compile    on a GPU

A teacher of BERT-base's size and a TinyBERT of 4 layers, both with random weights, in five jobs:
general distillation at 128 tokens; the intermediate stage and three epochs of the prediction stage
on single sentences (limit 64); and evaluation of both models. "ours" is what the scripts run:
packed data, `step_batches`, `take_step`, `teacher_logits`, `predict_logits`. "plain" is
plain_training.py. Utilisation is the arithmetic that the real tokens need, over the time, over
what a matrix multiplication of the same precision reaches in this run. Every figure is measured in
a process of its own, whose peak memory is shown.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plain_training import (
    Loss,
    PlainAdam,
    PlainBert,
    layer_loss,
    plain_step,
    soft_cross_entropy,
)
from transformer.configuration import BertConfig
from transformer.distillation.layers import (
    LAYER_TERMS,
    Comparison,
    Term,
    compare_layers,
    layer_map,
)
from transformer.distillation.losses import prediction_loss
from transformer.distillation.objectives import Objective
from transformer.distillation.students import freeze_teacher, freeze_unread
from transformer.distillation.teacher_logits import teacher_logits
from transformer.modeling import TinyBertForPreTraining, TinyBertForSequenceClassification
from transformer.packed_linear import pack_linears
from transformer.runtime.allocation import reuse_freed_memory
from transformer.runtime.metrics_log import MetricsLog
from transformer.runtime.ranks import PRECISIONS, Runtime, native_bf16
from transformer.runtime.script import ScriptParser, run_script
from transformer.tokenization import BertTokenizer
from transformer.training.batches import BatchPlan, collate
from transformer.training.inference import predict_logits
from transformer.training.loop import build_optimizer, compile_forward, take_step
from transformer.training.meter import LossMeter
from transformer.training.packed import PackedDataset, PackedWriter
from transformer.training.state import RunState
from transformer.training.steps import RunPlan, step_batches

BASE = BertConfig(hidden_dropout_prob=0.1)
TINY4 = BertConfig(
    hidden_size=312, num_hidden_layers=4, intermediate_size=1200, fit_size=BASE.hidden_size
)
GENERAL_LENGTH, SENTENCE_LENGTH, EVALUATION_LENGTH = 128, 64, 128
PREDICTION_EPOCHS = 3
ROWS = ("general", "intermediate", "prediction", "evaluation-base", "evaluation-tiny")
CLS, SEP = 101, 102


@dataclass(frozen=True)
class Result:
    """What one measurement found."""

    sequences_per_second: float
    tokens_per_second: float  # real tokens
    flops_per_second: float  # that the real tokens need
    peak_bytes: int


# --- data --------------------------------------------------------------------------------------


def generated_lengths(count: int, most: int) -> Iterator[int]:
    """Yield lengths like those of the real data: sentences of a task, or packed corpus text."""
    rng = random.Random(0)
    for _ in range(count):
        if most == GENERAL_LENGTH:
            yield (
                most - int(rng.expovariate(0.3)) % 20
                if rng.random() < 0.9
                else rng.randint(5, most)
            )
        else:
            yield min(most, 3 + int(rng.lognormvariate(2.1, 0.8)))


def text_examples(
    path: Path, tokenizer: BertTokenizer, most: int, packed: bool
) -> Iterator[list[int]]:
    """Yield the token ids of single sentences, or of consecutive sentences that fill `most`."""
    held: list[int] = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            ids = tokenizer.encode(line.split("\t")[0].strip())
            if not ids:
                continue
            if not packed:
                yield [CLS, *ids[: most - 2], SEP]
                continue
            held += ids
            while len(held) >= most - 2:
                yield [CLS, *held[: most - 2], SEP]
                held = held[most - 2 :]


def make_data(args: argparse.Namespace, directory: Path, most: int, count: int) -> PackedDataset:
    """Pack `count` examples of at most `most` tokens, from the user's text or generated."""
    packed = most == GENERAL_LENGTH
    source = args.corpus if packed else args.sentences
    if source is not None and args.vocab is not None:
        tokenizer = BertTokenizer.from_pretrained(args.vocab)
        examples: Iterable[list[int]] = text_examples(source, tokenizer, most, packed)
    else:
        rng = random.Random(1)
        lengths = generated_lengths(count, most)
        examples = ([CLS, *rng.choices(range(1000, 30000), k=n - 2), SEP] for n in lengths)
    writer = PackedWriter(directory / f"data{most}", BASE.vocab_size, labels=True)
    for ids in islice(examples, count):
        writer.add(ids, len(ids), label=0.0)
    return writer.close()


# --- arithmetic --------------------------------------------------------------------------------


def forward_flops(
    config: BertConfig, dataset: PackedDataset, *, layers: bool = False, fitted: int = 0
) -> float:
    """Count the multiplications and additions of a forward pass over all real tokens.

    Args:
        layers: all hidden states are wanted. Else it is a classifier, which reads one token of the
            last layer: there the others are needed as keys and values only.
        fitted: hidden states that are projected to the teacher's width.
    """
    width, inner = config.hidden_size, config.intermediate_size
    attended = dataset.square_tokens * 4 * width
    layer = dataset.tokens * (8 * width**2 + 4 * width * inner) + attended
    if layers:
        fit = fitted * 2 * dataset.tokens * width * config.fit_size
        return config.num_hidden_layers * layer + fit
    keys_and_values = dataset.tokens * 4 * width**2
    first = len(dataset) * (4 * width**2 + 4 * width * inner) + dataset.tokens * 4 * width
    return (config.num_hidden_layers - 1) * layer + keys_and_values + first


def job_flops(row: str, dataset: PackedDataset) -> float:
    """Count what a row needs for one pass over `dataset`: forward 1, forward and backward 3."""
    student = forward_flops(TINY4, dataset)
    fitted = forward_flops(TINY4, dataset, layers=True, fitted=5)
    teacher, layers = forward_flops(BASE, dataset), forward_flops(BASE, dataset, layers=True)
    return {
        "general": layers + 3 * fitted,
        "intermediate": layers + 3 * fitted,
        "prediction": teacher + PREDICTION_EPOCHS * 3 * student,
        "evaluation-base": teacher,
        "evaluation-tiny": student,
    }[row]


def matmul_rate(runtime: Runtime, dtype: torch.dtype, rows: int) -> float:
    """Return the operations a second of BERT-base's largest product, best of ten."""
    left = torch.randn(rows, 768, device=runtime.device, dtype=dtype)
    right = torch.randn(768, 3072, device=runtime.device, dtype=dtype)
    best = min(timed(lambda: left @ right, runtime) for _ in range(10))
    return 2 * rows * 768 * 3072 / best


def timed(job: Callable[[], object], runtime: Runtime) -> float:
    """Return the seconds that `job` takes, the device's work included."""
    synchronise(runtime)
    begun = time.perf_counter()
    job()
    synchronise(runtime)
    return time.perf_counter() - begun


def synchronise(runtime: Runtime) -> None:
    """Wait until the device has done what it was given."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()


# --- the two ways ------------------------------------------------------------------------------


def measure_ours(
    row: str, dataset: PackedDataset, args: argparse.Namespace, runtime: Runtime
) -> float:
    """Return the seconds that our engine takes for a row's whole pass over `dataset`."""
    torch.manual_seed(0)
    if row.startswith("evaluation"):
        model = TinyBertForSequenceClassification(BASE if row.endswith("base") else TINY4)
        # A teacher is held in the compute precision; a student is measured while it is trained.
        prepare(args, runtime, *((None, model) if row.endswith("base") else (model, None)))
        return best_pass(lambda: predict_logits(model, dataset, args.batch_size, runtime), runtime)
    kind = TinyBertForPreTraining if row == "general" else TinyBertForSequenceClassification
    student, teacher = kind(TINY4).train(), kind(BASE)
    prepare(args, runtime, student, teacher)
    if row == "prediction":
        return ours_prediction(student, teacher, dataset, args, runtime)
    terms = tuple(term for term in LAYER_TERMS if term.kind in ("", "mse"))
    comparisons = compare_layers(terms, layer_map(4, 12, "uniform"))
    objective = Objective(comparisons, teacher, classifiers=row != "general")
    freeze_unread(student, objective)
    return ours_training(student, objective, dataset, args, runtime)


def prepare(
    args: argparse.Namespace, runtime: Runtime, student: nn.Module | None, teacher: nn.Module | None
) -> None:
    """Bring the models to the device, and compile them or pack the teacher, as the scripts do."""
    if student is not None:
        student.to(runtime.device)
    if teacher is not None:
        freeze_teacher(teacher, runtime)
    if args.compile:
        compile_forward(*filter(None, (student, teacher)))
    elif teacher is not None:
        pack_linears(teacher)


def best_pass(job: Callable[[], object], runtime: Runtime) -> float:
    """Return the seconds of the faster of two passes: the first one warms up."""
    return min(timed(job, runtime) for _ in range(2))


def begin_training(student: nn.Module, plan: RunPlan, runtime: Runtime) -> RunState:
    """Return the state of a training that begins, with the scripts' optimizer."""
    options = argparse.Namespace(
        learning_rate=5e-5,
        weight_decay=0.01,
        warmup_proportion=0.1,
        schedule="warmup_linear",
        bias_correction=False,
    )
    optimizer, scaler = build_optimizer(student, options, plan.total_steps, runtime)
    return RunState(student, optimizer, scaler, LossMeter(runtime.device), MetricsLog(None), {})


def ours_training(
    student: nn.Module,
    objective: Objective,
    dataset: PackedDataset,
    args: argparse.Namespace,
    runtime: Runtime,
) -> float:
    """Return the seconds of an epoch, after another one that warms up."""
    plan = RunPlan([BatchPlan(dataset, args.batch_size, seed=0)], epochs=2)
    half = plan.total_steps // 2
    state = begin_training(student, plan, runtime)
    batches = step_batches(plan, runtime, first_step=1, accumulation=1, pad_token_id=0)

    def epoch() -> None:
        for step_batch in islice(batches, half):
            take_step(student, objective, step_batch, state, runtime, seed=0)

    epoch()
    seconds = timed(epoch, runtime)
    batches.close()
    return seconds


def ours_prediction(
    student: nn.Module,
    teacher: nn.Module,
    dataset: PackedDataset,
    args: argparse.Namespace,
    runtime: Runtime,
) -> float:
    """Return the seconds of the teacher's logits, once, and of all epochs of the student."""
    predict_logits(teacher, dataset, args.batch_size, runtime, part=(0, min(64, len(dataset))))
    with tempfile.TemporaryDirectory() as directory:
        begun = time.perf_counter()
        logits = teacher_logits(teacher, dataset, Path(directory), args.batch_size, runtime).clone()
        seconds = time.perf_counter() - begun
    learnt = (Comparison(Term("prediction", "logits", prediction_loss)),)
    objective = Objective(learnt, teacher_logits=logits)
    freeze_unread(student, objective)
    return seconds + PREDICTION_EPOCHS * ours_training(student, objective, dataset, args, runtime)


def measure_plain(
    row: str, dataset: PackedDataset, args: argparse.Namespace, runtime: Runtime
) -> float:
    """Return the seconds of the plain way for the same pass, from a few of its equal steps."""
    torch.manual_seed(0)
    limit = {
        "general": GENERAL_LENGTH,
        "intermediate": SENTENCE_LENGTH,
        "prediction": SENTENCE_LENGTH,
    }
    pad_to = limit.get(row, EVALUATION_LENGTH)
    size = args.batch_size
    batches = [
        collate(
            dataset,
            np.arange(n * size, (n + 1) * size) % len(dataset),
            pad_token_id=0,
            pad_to=pad_to,
        )
        for n in range(args.plain_steps + 1)
    ]
    batches = [batch.to(runtime.device) for batch in batches]
    steps = len(dataset) / size
    if row.startswith("evaluation"):
        model = PlainBert(BASE if row.endswith("base") else TINY4).to(runtime.device).eval()
        with torch.no_grad():
            times = [timed(lambda b=b: model(b).logits.cpu(), runtime) for b in batches]
        return steps * float(np.median(times[1:]))
    student = PlainBert(TINY4).to(runtime.device).train()
    teacher = PlainBert(BASE).to(runtime.device).eval()
    optimizer = PlainAdam(student.parameters(), 5e-5)
    loss: Loss = soft_cross_entropy if row == "prediction" else layer_loss
    times = [
        timed(lambda b=b: plain_step(student, teacher, optimizer, b, loss), runtime)
        for b in batches
    ]
    epochs = PREDICTION_EPOCHS if row == "prediction" else 1
    return epochs * steps * float(np.median(times[1:]))


# --- measuring and telling ---------------------------------------------------------------------


def make_runtime(args: argparse.Namespace) -> Runtime:
    """Return the runtime that the scripts would choose."""
    device = torch.device("cuda" if args.device == "cuda" else "cpu")
    if args.precision == "auto":
        return Runtime(device, torch.bfloat16 if native_bf16(device) else torch.float32)
    return Runtime(device, PRECISIONS[args.precision])


def measure(row: str, way: str, args: argparse.Namespace) -> Result:
    """Measure one row in one way, in this process."""
    runtime = make_runtime(args)
    if way == "ours" and runtime.device.type == "cpu":
        reuse_freed_memory()  # as setup_runtime does
    most = GENERAL_LENGTH if row == "general" else SENTENCE_LENGTH
    count = args.steps * args.batch_size
    with tempfile.TemporaryDirectory() as directory:
        dataset = make_data(args, Path(directory), most, count)
        seconds = {"ours": measure_ours, "plain": measure_plain}[way](row, dataset, args, runtime)
    passes = PREDICTION_EPOCHS if row == "prediction" else 1
    return Result(
        passes * len(dataset) / seconds,
        passes * dataset.tokens / seconds,
        job_flops(row, dataset) / seconds,
        peak_memory(runtime),
    )


def peak_memory(runtime: Runtime) -> int:
    """Return the most memory this process held: on the GPU, or resident."""
    if runtime.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_apart(row: str, way: str) -> Result:
    """Measure in a new process, so that its peak memory is its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", row, way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def print_table(args: argparse.Namespace, runtime: Runtime) -> None:
    """Measure all rows and print them."""
    dtype = str(runtime.dtype).removeprefix("torch.")
    rows = args.batch_size * GENERAL_LENGTH
    rate = matmul_rate(runtime, runtime.dtype, rows)
    plain_rate = matmul_rate(runtime, torch.float32, rows)
    name = torch.cuda.get_device_name() if runtime.device.type == "cuda" else "CPU"
    print(
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"batch {args.batch_size}"
    )
    print(
        f"matrix multiplication: {dtype} {rate / 1e9:.0f}, float32 {plain_rate / 1e9:.0f} GFLOP/s"
    )
    titles = (
        "job",
        "plain seq/s",
        "ours seq/s",
        "ratio",
        "tok/s",
        "utilisation",
        "plain MB",
        "ours MB",
    )
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles), flush=True)
    for row in args.rows:
        plain, ours = measure_apart(row, "plain"), measure_apart(row, "ours")
        cells = [
            row,
            f"{plain.sequences_per_second:.1f}",
            f"{ours.sequences_per_second:.1f}",
            f"{ours.sequences_per_second / plain.sequences_per_second:.1f}x",
            f"{ours.tokens_per_second:,.0f}",
            f"{100 * ours.flops_per_second / rate:.0f}%",
            f"{plain.peak_bytes / 2**20:,.0f}",
            f"{ours.peak_bytes / 2**20:,.0f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="jobs")
    parser.add_argument("--corpus", type=Path, help="text for general distillation")
    parser.add_argument("--sentences", type=Path, help="text or TSV with sentences in column 1")
    parser.add_argument("--vocab", type=Path, help="vocab.txt or directory; without: random ids")
    parser.add_argument("--batch_size", type=int, default=32, help="examples a step")
    parser.add_argument("--steps", type=int, default=20, help="of ours that are timed")
    parser.add_argument("--plain_steps", type=int, default=3, help="of the plain way")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where")
    parser.add_argument("--precision", choices=["auto", *PRECISIONS], default="auto", help="ours")
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile")
    parser.add_argument("--measure", nargs=2, metavar=("ROW", "WAY"), help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Print the table; or, in a process of its own, one measurement as JSON."""
    args = build_parser().parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.measure:
        print(json.dumps(vars(measure(*args.measure, args))))
    else:
        print_table(args, make_runtime(args))


if __name__ == "__main__":
    sys.exit(run_script(main))
