"""General distillation: teach a small student the layers of BERT on a text corpus.

    python general_distill.py --pregenerated_data pregenerated --teacher_model BERT_DIR \\
        --student_model STUDENT_CONFIG_DIR --output_dir general_tinybert --train_batch_size 256

    torchrun --nproc_per_node=8 general_distill.py ...      the same on eight GPUs

The student learns attention scores, hidden states and embeddings of the teacher (section 3.1 of
arXiv 1909.10351); there is no prediction loss in this stage. Killed at any instant and started
again with --resume, a run ends with the same weights, bit for bit. The result is a checkpoint
directory without pooler and heads: task distillation trains those.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from torch import nn

from transformer.checkpoint.directory import save_checkpoint
from transformer.distillation.general_job import Job, load_data, load_models, plan_job
from transformer.distillation.layers import add_distillation_arguments
from transformer.distillation.objectives import lesson_loss
from transformer.file_utils import upload
from transformer.files import UserError
from transformer.runtime.metrics_log import save_curves
from transformer.runtime.output_dir import RunDirectory, run_directory
from transformer.runtime.progress import Progress, Speed, closing_summary
from transformer.runtime.ranks import add_runtime_arguments, close_runtime, setup_runtime
from transformer.runtime.script import run_script
from transformer.training.loop import Lesson, begin_state, distribute, is_due, report, take_step
from transformer.training.meter import stop_if_not_finite
from transformer.training.options import add_training_arguments, check_training_arguments
from transformer.training.packed import PackedDataset
from transformer.training.state import (
    RunState,
    StopSignal,
    check_same_run,
    fingerprint,
    mark_finished,
    read_state,
)
from transformer.training.steps import RunPlan, step_batches

logger = logging.getLogger("general_distill")

# Flags that name what is read, and must not be written over.
INPUTS = ("pregenerated_data", "teacher_model", "student_model")


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--pregenerated_data",
        type=Path,
        required=True,
        help="directory with epoch_N.json; fewer files than epochs are used in turn",
    )
    data.add_argument(
        "--max_seq_length",
        type=int,
        default=128,
        help="limit in tokens; batches are as long as their longest example",
    )
    data.add_argument(
        "--cache_dir", type=Path, help="for the packed data and downloads; default: beside the data"
    )
    data.add_argument(
        "--reduce_memory",
        action="store_true",
        help="accepted: data is always read from disk as it is needed",
    )
    data.add_argument(
        "--do_eval",
        action="store_true",
        help="hold out 1%% of the examples and report their loss every --eval_step; the student "
        "with the lowest is kept in OUTPUT_DIR/best",
    )
    models = parser.add_argument_group("models")
    models.add_argument("--teacher_model", required=True, help="BERT directory, name or address")
    models.add_argument(
        "--student_model", required=True, help="directory with the student's config.json"
    )
    models.add_argument("--output_dir", type=Path, required=True, help="gets the student")
    models.add_argument(
        "--continue_train",
        action="store_true",
        help="begin from the weights in --student_model (a new run; --resume goes on with one)",
    )
    models.add_argument(
        "--init_from_teacher",
        metavar="LAYERS",
        help="begin from copies of teacher layers: uniform, top, bottom or a list such as 2,4,6",
    )
    models.add_argument(
        "--do_lower_case",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="lower-case text; stored with the student. Default: what the teacher's files say",
    )
    add_distillation_arguments(parser)
    add_training_arguments(parser, epochs=3.0, eval_batch_size=8, eval_step=1000)
    add_runtime_arguments(parser)
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Find mistakes that need no file to be read."""
    check_training_arguments(args)
    if args.max_seq_length < 3:
        raise UserError(f"--max_seq_length {args.max_seq_length}: give 3 or more")
    if args.continue_train and args.init_from_teacher:
        raise UserError("--continue_train and --init_from_teacher contradict each other; give one")


# --- training ----------------------------------------------------------------------------------


def train(
    job: Job, plan: RunPlan, state: RunState, lesson: Lesson, held: tuple[PackedDataset, int]
) -> None:
    """Run the optimizer steps that are left."""
    args, runtime, total = job.args, job.runtime, plan.total_steps
    student = distribute(state.student, runtime)
    batches = step_batches(
        plan,
        runtime,
        first_step=state.step + 1,
        accumulation=args.gradient_accumulation_steps,
        pad_token_id=job.tokenizer.pad_id,
        pad_to=job.pad_to,
    )
    progress = Progress(
        total, description="general", initial=state.step, enabled=runtime.is_main, log_every=0
    )
    speed = Speed()
    with progress, StopSignal(runtime) as stop:
        for step_batch in batches:
            take_step(student, lesson, step_batch, state, runtime, args.seed)
            speed.add(step_batch.sequences, step_batch.tokens)
            progress.update()

            signum = stop.agreed()
            reporting = is_due(state.step, args.log_steps, total)
            evaluating = is_due(state.step, args.eval_step, total)
            saving = signum or is_due(state.step, args.save_steps, total)
            if reporting or evaluating or saving:
                stop_if_not_finite(state.meter, runtime, args.output_dir, plan.describe)
            if reporting:
                report(state, runtime, progress, speed, plan.epochs_done(state.step))
            if evaluating:
                evaluate_and_publish(job, state, lesson, held)
            if saving:
                state.save(args.output_dir, runtime)
            if evaluating or saving:
                speed.reset()
            if signum:
                raise SystemExit(128 + signum)


def evaluate_and_publish(
    job: Job, state: RunState, lesson: Lesson, held: tuple[PackedDataset, int]
) -> None:
    """Write the student as it is now; with --do_eval, measure it and keep the best one apart."""
    args, runtime = job.args, job.runtime
    if args.do_eval:
        data, start = held
        losses = lesson_loss(
            lesson,
            state.student,
            data,
            args.eval_batch_size,
            runtime,
            pad_to=job.pad_to,
            start=start,
        )
        state.metrics.write(step=state.step, **losses)
        logger.info("step %d: held-out loss %.4f", state.step, losses["eval_loss"])
        if state.best_score is None or losses["eval_loss"] < state.best_score:
            state.best_score, state.best_step = losses["eval_loss"], state.step
            if runtime.is_main:
                save_student(job, state.student, args.output_dir / "best")
    if runtime.is_main:
        save_student(job, state.student, args.output_dir)
        if args.data_url:
            upload(args.output_dir, args.data_url)


def save_student(job: Job, student: nn.Module, output_dir: Path) -> None:
    """Write the student as a checkpoint directory."""
    save_checkpoint(student, job.tokenizer, output_dir, save_bin=job.args.save_bin)


# --- main --------------------------------------------------------------------------------------


def finish(job: Job, state: RunState) -> None:
    """Draw the curves, say what is where, and note that the run is done."""
    output_dir = job.args.output_dir
    state.metrics.close()
    if not job.runtime.is_main:
        return
    save_curves(output_dir / "metrics.jsonl", output_dir / "training_curves.png")
    mark_finished(output_dir, state)
    facts = [f"{state.step} steps"]
    if state.best_score is not None:
        facts.append(f"lowest held-out loss {state.best_score:.4f}, at step {state.best_step}")
    closing_summary(
        "general distillation is done",
        [
            (output_dir / "model.safetensors", "the student, with config.json and vocab.txt"),
            (output_dir / "best", "the student with the lowest held-out loss"),
            (output_dir / "metrics.jsonl", "all reports"),
            (output_dir / "training_curves.png", "the same as curves"),
            (output_dir / "args.json", "what it was started with"),
        ],
        facts,
    )


def main(argv: list[str] | None = None) -> None:
    """Run general distillation as the command line says."""
    args = build_parser().parse_args(argv)
    check_args(args)
    runtime = setup_runtime(args)
    with run_directory(args, INPUTS, runtime) as directory:
        run(plan_job(args, runtime), directory)
    close_runtime(runtime)


def run(job: Job, directory: RunDirectory) -> None:
    """Train, or go on training; the output directory is touched when everything is checked."""
    args, runtime = job.args, job.runtime
    plan, held = load_data(job)
    saved = read_state(args.output_dir, runtime) if args.resume else None
    identity = fingerprint(args, runtime, data=plan.content_key())
    if saved:
        check_same_run(saved["fingerprint"], identity)
    if saved and saved["finished"]:
        logger.info("the run in %s is finished: nothing to do", args.output_dir)
        return
    student, lesson = load_models(job)
    directory.begin(args)
    state = begin_state(student, args, runtime, plan.total_steps, saved, identity)
    train(job, plan, state, lesson, held)
    finish(job, state)


if __name__ == "__main__":
    sys.exit(run_script(main))
