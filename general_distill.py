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
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transformer.checkpoint import load_model, read_config, save_checkpoint
from transformer.data import BatchPlan, PackedDataset
from transformer.distillation import (
    IntermediateObjective,
    add_distillation_arguments,
    layer_map,
    objective_from_args,
)
from transformer.file_utils import UserError, cached_path
from transformer.lessons import IntermediateLesson, lesson_loss
from transformer.modeling import BertConfig, TinyBertForPreTraining
from transformer.pretraining_data import find_epoch_files, open_pretraining_data
from transformer.reporting import Progress, Speed, closing_summary, save_curves
from transformer.runtime import (
    Runtime,
    add_runtime_arguments,
    close_runtime,
    prepare_output_dir,
    run_script,
    save_args,
    setup_runtime,
)
from transformer.task_models import check_vocabularies, copy_layers, student_changes
from transformer.tokenization import BertTokenizer
from transformer.training import (
    Lesson,
    RunPlan,
    RunState,
    StopSignal,
    add_training_arguments,
    begin_state,
    check_same_run,
    check_training_arguments,
    compile_forward,
    distribute,
    fingerprint,
    freeze_teacher,
    is_due,
    mark_finished,
    read_state,
    report,
    step_batches,
    stop_if_not_finite,
    take_step,
)

logger = logging.getLogger("general_distill")

# With --do_eval, this share at the end of every epoch's examples is held out, but not more than so
# many: the last documents of the corpus, the same ones in every epoch.
HELD_OUT_SHARE = 0.01
HELD_OUT_MOST = 2000


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


# --- checks and set-up -------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a run is about, known before any weight is read."""

    args: argparse.Namespace
    runtime: Runtime
    teacher_dir: Path
    student_dir: Path
    tokenizer: BertTokenizer
    student_changes: dict[str, Any]
    objective: IntermediateObjective

    @property
    def pad_to(self) -> int | None:
        """Return the length of all batches, where padding counts; None where it does not."""
        return self.args.max_seq_length if self.args.loss_on_padding else None


def check_args(args: argparse.Namespace) -> None:
    """Find mistakes in single flags."""
    check_training_arguments(args)
    if args.max_seq_length < 3:
        raise UserError(f"--max_seq_length {args.max_seq_length}: give 3 or more")
    if args.continue_train and args.init_from_teacher:
        raise UserError("--continue_train and --init_from_teacher contradict each other; give one")


def plan_job(args: argparse.Namespace, runtime: Runtime) -> Job:
    """Find the models and check that they fit each other and the flags."""
    teacher_dir = cached_path(args.teacher_model, args.cache_dir)
    student_dir = cached_path(args.student_model, args.cache_dir)
    tokenizer = BertTokenizer.from_pretrained(teacher_dir, do_lower_case=args.do_lower_case)
    teacher_config = read_config(teacher_dir)
    changes = student_changes(
        student_dir, teacher_config, copies_layers=bool(args.init_from_teacher)
    )
    student_config = BertConfig.from_dict({**read_config(student_dir).to_dict(), **changes})
    for whose, config in (("teacher", teacher_config), ("student", student_config)):
        if config.vocab_size < len(tokenizer.vocab):
            raise UserError(
                f"the {whose}'s vocab_size is {config.vocab_size}, but the teacher's vocabulary "
                f"has {len(tokenizer.vocab)} entries; set it to that in the {whose}'s config.json"
            )
    if (student_dir / "vocab.txt").is_file():
        check_vocabularies(BertTokenizer.from_pretrained(student_dir), tokenizer)
    objective = objective_from_args(args, student_config, teacher_config)
    if args.init_from_teacher:
        depths = student_config.num_hidden_layers, teacher_config.num_hidden_layers
        layer_map(*depths, args.init_from_teacher)
    return Job(args, runtime, teacher_dir, student_dir, tokenizer, changes, objective)


def load_data(job: Job) -> tuple[RunPlan, tuple[PackedDataset, int]]:
    """Return the steps of the run; and the data and first number of the held-out examples."""
    args = job.args
    files = find_epoch_files(args.pregenerated_data, args.max_seq_length)
    datasets = open_pretraining_data(
        files, job.tokenizer.vocab, cache_dir=args.cache_dir, is_main=job.runtime.is_main
    )
    plans = []
    for file, dataset in zip(files, datasets, strict=True):
        held_out = min(math.ceil(len(dataset) * HELD_OUT_SHARE), HELD_OUT_MOST)
        examples = len(dataset) - held_out * args.do_eval
        if examples < 1:
            raise UserError(f"{file.path}: {len(dataset)} examples leave none to train on")
        batch_size = args.train_batch_size * job.runtime.world_size
        plans.append(BatchPlan(dataset, batch_size, args.seed, examples=examples))
    plan = RunPlan(plans, args.num_train_epochs)
    logger.info(
        "%d examples in %d file%s; %d x %d examples a step; %g epochs are %d steps",
        sum(p.examples for p in plans),
        len(files),
        "s" if len(files) > 1 else "",
        job.runtime.world_size,
        args.train_batch_size,
        args.num_train_epochs,
        plan.total_steps,
    )
    return plan, (datasets[0], plans[0].examples)


def load_models(job: Job) -> tuple[TinyBertForPreTraining, IntermediateLesson]:
    """Return the student, on its device, and what the frozen teacher has to teach it."""
    args, runtime = job.args, job.runtime
    teacher, loaded = load_model(
        TinyBertForPreTraining, job.teacher_dir, config_changes={"fit_size": 0}
    )
    loaded.log()
    torch.manual_seed(args.seed)
    if args.continue_train:
        student = TinyBertForPreTraining.from_pretrained(job.student_dir, **job.student_changes)
    else:
        student = TinyBertForPreTraining.from_scratch(job.student_dir, **job.student_changes)
    if args.init_from_teacher:
        depths = student.config.num_hidden_layers, teacher.config.num_hidden_layers
        copy_layers(student, teacher, layer_map(*depths, args.init_from_teacher))
    frozen = job.objective.freeze_unread(student)
    if frozen:
        logger.info("not trained, because no loss term reads them: %d tensors", len(frozen))
    student.to(runtime.device).train()
    freeze_teacher(teacher, runtime)
    if args.compile:
        compile_forward(student, teacher)
    return student, IntermediateLesson(teacher, job.objective, classifiers=False)


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


def save_student(job: Job, student: nn.Module, output_dir: Path) -> None:
    """Write the student as a checkpoint directory."""
    save_checkpoint(student, job.tokenizer, output_dir, safetensors=job.args.save_safetensors)


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
            (output_dir / "pytorch_model.bin", "the student, with config.json and vocab.txt"),
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
    job = plan_job(args, runtime)
    prepare_output_dir(
        args.output_dir,
        resume=args.resume,
        overwrite=args.overwrite_output_dir,
        is_main=runtime.is_main,
    )
    plan, held = load_data(job)
    saved = read_state(args.output_dir, runtime) if args.resume else None
    identity = fingerprint(args, runtime, data=plan.content_key())
    if saved:
        check_same_run(saved["fingerprint"], identity)
    if saved and saved["finished"]:
        logger.info("the run in %s is finished: nothing to do", args.output_dir)
        return
    if runtime.is_main:
        save_args(args, args.output_dir)
    student, lesson = load_models(job)
    state = begin_state(student, args, runtime, plan.total_steps, saved, identity)
    train(job, plan, state, lesson, held)
    finish(job, state)
    close_runtime(runtime)


if __name__ == "__main__":
    sys.exit(run_script(main))
