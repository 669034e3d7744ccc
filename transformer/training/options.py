"""The command-line flags of optimization, saving and resuming, and what they may hold."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys

from transformer.files import EnvironmentFault, UserError
from transformer.optimization import SCHEDULES
from transformer.runtime.output_dir import restarted

# Flags of `add_training_arguments` that decide the result of a run.
TRAINING_FLAGS = (
    *("train_batch_size", "eval_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("weight_decay", "num_train_epochs", "warmup_proportion", "compile"),
    *("eval_step", "log_steps", "schedule", "bias_correction", "student_dropout"),
)

# The schedule is planned by the epoch, and a batch is in memory.
MOST_EPOCHS, MOST_EXAMPLES, MOST_STEPS = 1_000_000, 1_000_000, 10**12

COUNT_FLAGS = (
    *("train_batch_size", "eval_batch_size", "gradient_accumulation_steps"),
    *("eval_step", "save_steps", "log_steps"),
)


def add_training_arguments(
    parser: argparse.ArgumentParser,
    *,
    epochs: float | None = 3.0,
    eval_batch_size: int = 32,
    eval_step: int | None = 50,
    schedule: str | None = "warmup_linear",
) -> None:
    """Add the flags of optimization, saving and resuming; the keywords are their defaults."""
    _add_optimization(parser, epochs, eval_batch_size, schedule)
    _add_saving(parser, eval_step)


def _add_optimization(
    parser: argparse.ArgumentParser,
    epochs: float | None,
    eval_batch_size: int,
    schedule: str | None,
) -> None:
    add = parser.add_argument_group("optimization").add_argument
    add(
        "--train_batch_size",
        type=int,
        default=32,
        help="examples of one optimizer step on each rank, over all accumulation steps",
    )
    add("--eval_batch_size", type=int, default=eval_batch_size, help="examples evaluated at once")
    add(
        "--gradient_accumulation_steps",
        type=int,
        default=1,
        help="parts that a rank's batch is computed in, to save memory; the result is the same",
    )
    add(
        "--learning_rate", type=float, default=5e-5, help="peak of the learning rate, after warm-up"
    )
    add(
        "--weight_decay",
        "--wd",
        type=float,
        default=0.01,
        help="decay of matrices; the original's flag said 1e-4, but 0.01 is what it really used",
    )
    add("--num_train_epochs", type=float, default=epochs, help="passes over the data; 0.5 is half")
    rises = "share of the steps in which the rate rises"
    add("--warmup_proportion", type=float, default=0.1, help=rises)
    add(
        "--schedule",
        choices=list(SCHEDULES),
        default=schedule,
        help="how the rate goes on: warmup_linear and warmup_cosine fall to 0, warmup_constant "
        "stays at its peak, none is the peak from the first step on. Default: none where "
        "task_distill.py distils layers alone, as in the original; else warmup_linear",
    )
    add(
        "--bias_correction",
        action="store_true",
        help="correct Adam's moments for their start at 0. BERT's Adam does not, so that the mean "
        "rate of a run of 200 steps is 4.5 times what was asked for, of 540 steps 2.8 times, of "
        "2,646 steps 1.5 times: short runs with this flag want a higher --learning_rate",
    )
    add(
        "--student_dropout",
        type=float,
        metavar="P",
        help="dropout of the student during this training. Default: 0 where it learns from a "
        "teacher, whose answers are no noisy labels; else what its config.json says. What the "
        "classifier reads is dropped out in fine-tuning only. The config.json that is written "
        "keeps the model's own, for later fine-tuning",
    )
    add("--compile", action="store_true", help="run models through torch.compile")


def _add_saving(parser: argparse.ArgumentParser, eval_step: int | None) -> None:
    group = parser.add_argument_group("saving and resuming")
    group.add_argument(
        "--eval_step", type=int, default=eval_step, help="steps between two evaluations"
    )
    group.add_argument(
        "--save_steps", type=int, default=500, help="steps between two states to resume from"
    )
    group.add_argument(
        "--log_steps",
        type=int,
        default=50,
        help="steps between two reports of the losses; every evaluation has one",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        default=restarted(),
        help="go on with the interrupted run in --output_dir (implied when torchrun restarts)",
    )
    group.add_argument(
        "--overwrite_output_dir", action="store_true", help="replace the run in --output_dir"
    )
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="check everything, print steps, shapes and device memory of the training and, where "
        "an earlier run tells, its time, and write nothing",
    )
    group.add_argument("--tensorboard", action="store_true", help="also write TensorBoard's events")
    group.add_argument(
        "--save_bin",
        action="store_true",
        help="also write pytorch_model.bin, for tools that do not read model.safetensors",
    )
    group.add_argument(
        "--save_safetensors",
        action="store_true",
        help="accepted: model.safetensors is always written",
    )
    group.add_argument(
        "--data_url", default="", help="s3://bucket/prefix or directory to copy results to"
    )


def check_training_arguments(args: argparse.Namespace) -> None:
    """Check the values of `add_training_arguments`.

    Raises:
        UserError: a value that no run can use.
    """
    for name in COUNT_FLAGS:
        most = MOST_EXAMPLES if name.endswith("batch_size") else MOST_STEPS
        if not 1 <= getattr(args, name) <= most:
            raise UserError(f"--{name} {getattr(args, name)}: give a number from 1 to {most:,}")
    if args.gradient_accumulation_steps > args.train_batch_size:
        raise UserError(
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps} cannot cut a "
            f"--train_batch_size of {args.train_batch_size}; give at most as many steps as examples"
        )
    if args.num_train_epochs is not None and not 0 < args.num_train_epochs <= MOST_EPOCHS:
        raise UserError(
            f"--num_train_epochs {args.num_train_epochs}: give a number above 0, at most "
            f"{MOST_EPOCHS:,}; a run is stopped by Ctrl-C and goes on with --resume"
        )
    for name, end, allowed in (
        ("warmup_proportion", 1, "a share from 0 to below 1"),
        ("student_dropout", 1, "a probability from 0 to below 1"),
        ("learning_rate", math.inf, "a number of 0 or more"),
        ("weight_decay", math.inf, "a number of 0 or more"),
    ):
        if not 0 <= (getattr(args, name) or 0) < end:
            raise UserError(f"--{name} {getattr(args, name)}: give {allowed}")
    if "://" in args.data_url and not args.data_url.startswith("s3://"):
        raise UserError(f"--data_url {args.data_url}: give s3://BUCKET/PREFIX or a directory")
    if args.tensorboard:
        _check_tensorboard()
    if args.compile:
        _check_compiler()


def _check_compiler() -> None:
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise EnvironmentFault(
            f"--compile needs a C++ compiler, and there is no {compiler} in PATH; install one, "
            "name one in CXX, or leave the flag out"
        )


def _check_tensorboard() -> None:
    try:
        import torch.utils.tensorboard  # noqa: F401 - only whether it can be imported
    except ImportError as error:
        raise UserError("--tensorboard: pip install tensorboard, or leave the flag out") from error
