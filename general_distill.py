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

if __name__ == "__main__":
    import transformer.runtime.interrupt  # noqa: F401 - Ctrl-C during the imports below

import argparse
import logging
import math
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from transformer.checkpoint.directory import Checkpoint, save_checkpoint
from transformer.checkpoint.model_card import write_model_card
from transformer.distillation.closed_form import ClosedFormReport
from transformer.distillation.layers import (
    DISTILLATION_FLAGS,
    Comparison,
    add_distillation_arguments,
    plan_comparisons,
)
from transformer.distillation.objectives import Objective, mean_loss, with_variances
from transformer.distillation.start import (
    START_FLAGS,
    add_start_arguments,
    begin_from_teacher,
    check_start_arguments,
    describe,
    has_teachers_shapes,
    plan_start,
    text_of,
)
from transformer.distillation.students import (
    check_vocabularies,
    check_words,
    freeze_unread,
    prepare_teacher,
    ready_to_train,
    set_dropout,
    student_changes,
    words_of_teacher,
)
from transformer.file_utils import model_path, upload
from transformer.files import UserError, file_digest
from transformer.modeling import TinyBertForPreTraining
from transformer.runtime.fingerprint import Fingerprint, digest_of
from transformer.runtime.output_dir import RunDirectory, check_directory, run_directory
from transformer.runtime.ranks import Runtime, add_runtime_arguments, close_runtime, setup_runtime
from transformer.runtime.script import (
    ScriptParser,
    file_path,
    model_name,
    optional_path,
    run_script,
    shipped_students,
    student_name,
)
from transformer.tokenization import BertTokenizer
from transformer.training.batches import BatchPlan
from transformer.training.dry_run import (
    StepMemory,
    batch_of_ones,
    made_in,
    plan_lines,
    print_plan,
    step_memory,
)
from transformer.training.epochs import (
    EpochFile,
    find_epoch_files,
    has_pairs,
    open_pretraining_data,
)
from transformer.training.loop import begin_state, finish_run, training_steps
from transformer.training.options import (
    TRAINING_FLAGS,
    add_training_arguments,
    check_training_arguments,
)
from transformer.training.packed import PackedDataset
from transformer.training.state import (
    RunState,
    earlier_state,
    is_finished,
    training_fingerprint,
)
from transformer.training.steps import RunPlan, steps_in_epochs

logger = logging.getLogger("general_distill")

# Flags that name what is read, and must not be written over.
INPUTS = ("pregenerated_data", "teacher_model", "student_model")

# Flags that decide the result, beside the content of what is read.
DECISIVE = (
    *("max_seq_length", "do_eval", "continue_train", "seed"),
    *START_FLAGS,
    *TRAINING_FLAGS,
    *DISTILLATION_FLAGS,
)

# With --do_eval, this share at the end of every epoch's examples is held out, but not more than so
# many: the last documents of the corpus, the same ones in every epoch.
HELD_OUT_SHARE = 0.01

HELD_OUT_MOST = 2000

START_EXAMPLES = 256  # at least so many give the loss before training


EXAMPLES = """\
examples:
  python general_distill.py --pregenerated_data pregenerated \\
      --teacher_model bert-base-uncased --student_model tinybert_4l_312d \\
      --init_from_teacher uniform --output_dir general
  torchrun --nproc_per_node=8 general_distill.py --pregenerated_data pregenerated \\
      --teacher_model bert-base-uncased --student_model my_student_config \\
      --train_batch_size 32 --learning_rate 1e-4 --output_dir general

OUTPUT_DIR gets the student (model.safetensors, config.json, vocab.txt, tokenizer.json, a model card
README.md) and the reports of its training (metrics.jsonl, training_curves.png); with --do_eval the
one of the lowest held-out loss is kept in OUTPUT_DIR/best. task_distill.py goes on with it:
--student_model OUTPUT_DIR."""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = ScriptParser(__doc__, epilog=EXAMPLES)
    add = parser.add_argument_group("data").add_argument
    add(
        "--pregenerated_data",
        type=file_path,
        required=True,
        help="directory with epoch_N.json; fewer files than epochs are used in turn",
    )
    add(
        "--max_seq_length",
        type=int,
        help="limit in tokens, for which longer data is refused; default: the data's own length. "
        "Batches are as long as their longest example",
    )
    add(
        "--cache_dir",
        type=optional_path,
        help="directory for the packed data and downloads; default: beside the data",
    )
    add(
        "--reduce_memory",
        action="store_true",
        help="accepted: data is always read from disk as it is needed",
    )
    add(
        "--do_eval",
        action="store_true",
        help="hold out 1%% of the examples and report their loss every --eval_step; the student "
        "with the lowest is kept in OUTPUT_DIR/best",
    )
    add = parser.add_argument_group("models").add_argument
    add("--teacher_model", type=model_name, required=True, help="BERT directory, name or address")
    add(
        "--student_model",
        type=student_name,
        required=True,
        help="directory with the student's config.json, or a configuration that comes with the "
        f"scripts: {', '.join(shipped_students())}",
    )
    add("--output_dir", type=file_path, required=True, help="directory for the student")
    add(
        "--continue_train",
        action="store_true",
        help="begin from the weights in --student_model (a new run; --resume goes on with one)",
    )
    add(
        "--do_lower_case",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="lower-case text; stored with the student. Default: what the teacher's files say",
    )
    add_start_arguments(parser)
    add_distillation_arguments(parser)
    add_training_arguments(parser, epochs=3.0, eval_batch_size=8, eval_step=1000)
    add_runtime_arguments(parser)
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Find mistakes that need no file to be read."""
    check_training_arguments(args)
    if args.max_seq_length is not None and args.max_seq_length < 3:
        raise UserError(f"--max_seq_length {args.max_seq_length}: give 3 or more")
    check_start_arguments(args)
    if args.continue_train and args.init_from_teacher:
        raise UserError("--continue_train and --init_from_teacher contradict each other; give one")


# --- models ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelPair:
    """A teacher and a student that fit each other and the flags, before any weight is read."""

    teacher: Checkpoint
    student: Checkpoint
    tokenizer: BertTokenizer
    student_changes: dict[str, Any]
    comparisons: tuple[Comparison, ...]


def find_models(args: argparse.Namespace) -> ModelPair:
    """Find teacher and student and check that they fit each other and the flags."""
    teacher, student = (
        Checkpoint(model_path(flag, args), args.do_lower_case)
        for flag in ("teacher_model", "student_model")
    )
    tokenizer = check_vocabulary(student, teacher)
    words = {} if args.continue_train else words_of_teacher(student.config, teacher.config)
    student_config = student.config.changed(**words)
    copies = bool(args.init_from_teacher) and has_teachers_shapes(student_config, teacher.config)
    changes = words | student_changes(student_config, teacher.config, copies_layers=copies)
    student_config = student.config.changed(**changes)
    comparisons = plan_comparisons(args, student_config, teacher.config)
    if args.continue_train and student.files is None:
        raise UserError(f"--continue_train: {student} has no weights; leave the flag out")
    if args.init_from_teacher:
        plan_start(args.init_from_teacher, student_config, teacher.config)
    teacher.check(TinyBertForPreTraining, config_changes={"fit_size": 0})
    if args.continue_train:
        student.check(TinyBertForPreTraining, config_changes=changes)
    return ModelPair(teacher, student, tokenizer, changes, comparisons)


def check_vocabulary(student: Checkpoint, teacher: Checkpoint) -> BertTokenizer:
    """Return the teacher's tokenizer, once both models can embed what it gives."""
    tokenizer = teacher.tokenizer
    check_words(tokenizer, student.config, "the student")
    if student.has_vocabulary:
        check_vocabularies(student.tokenizer, tokenizer, "teacher")
    return tokenizer


def load_models(
    pair: ModelPair, text: PackedDataset | None, args: argparse.Namespace, runtime: Runtime
) -> tuple[TinyBertForPreTraining, Objective, ClosedFormReport | None]:
    """Return the student, on its device, and what it learns from the frozen teacher.

    Args:
        text: to begin from the teacher on, if asked for; None where a saved state follows.

    Returns:
        also what the student keeps of its teacher, None unless it begins from it.
    """
    teacher, loaded = pair.teacher.load(TinyBertForPreTraining, config_changes={"fit_size": 0})
    loaded.log()
    torch.manual_seed(args.seed)
    if args.continue_train:
        changes = pair.student_changes
        student, continued = pair.student.load(TinyBertForPreTraining, config_changes=changes)
        continued.log()
    else:
        student = TinyBertForPreTraining.from_scratch(pair.student.config, **pair.student_changes)
    report = None
    if args.init_from_teacher and text is not None:
        batches = text_of(args, text, pair.tokenizer)
        report = begin_from_teacher(student, teacher, args.init_from_teacher, batches, runtime)
    objective = Objective(
        pair.comparisons,
        prepare_teacher(teacher, runtime, compiled=args.compile),
        classifiers=False,
        pad_to=args.max_seq_length if args.loss_on_padding else None,
    )
    dropout = args.student_dropout or 0.0
    student = ready_to_train(student, objective, args, runtime, dropout=dropout)
    return student, objective, report


# --- data --------------------------------------------------------------------------------------


class HeldOut(NamedTuple):
    """The examples of a data set, from `start` on, that the student is never trained on."""

    dataset: PackedDataset
    start: int


def check_segments(pair: ModelPair, file: EpochFile) -> None:
    """Raise UserError where examples have two segments and a model knows one."""
    for name, checkpoint in (("teacher", pair.teacher), ("student", pair.student)):
        if checkpoint.config.type_vocab_size < 2 and has_pairs(file):
            raise UserError(
                f"{file.path} has examples of two segments, but the {name} {checkpoint} knows one "
                "(type_vocab_size 1); make the data with --one_seq, or give another model"
            )


def find_data(args: argparse.Namespace) -> tuple[argparse.Namespace, list[EpochFile]]:
    """Return the epoch files of the run, and the flags with their length as --max_seq_length."""
    files = find_epoch_files(args.pregenerated_data, args.max_seq_length)
    files = files[: math.ceil(args.num_train_epochs)]
    longest = max(file.max_seq_length for file in files)
    return argparse.Namespace(**{**vars(args), "max_seq_length": longest}), files


def examples_to_train(file: EpochFile, args: argparse.Namespace) -> int:
    """Return how many examples of a file are not held out; UserError if none is left."""
    held_out = min(math.ceil(file.examples * HELD_OUT_SHARE), HELD_OUT_MOST)
    examples = file.examples - held_out * args.do_eval
    if examples < 1:
        raise UserError(f"{file.path}: {file.examples} examples leave none to train on")
    return examples


def load_data(
    args: argparse.Namespace, files: list[EpochFile], pair: ModelPair, runtime: Runtime
) -> tuple[RunPlan, HeldOut]:
    """Return the steps of the run and the held-out examples."""
    check_segments(pair, files[0])
    datasets = open_pretraining_data(
        files, pair.tokenizer.vocab, cache_dir=args.cache_dir, is_main=runtime.is_main
    )
    plans = []
    for file, dataset in zip(files, datasets, strict=True):
        examples = examples_to_train(file, args)
        global_batch_size = args.train_batch_size * runtime.world_size
        plans.append(BatchPlan(dataset, global_batch_size, args.seed, examples=examples))
    plan = RunPlan(plans, args.num_train_epochs)
    logger.info(
        "%d examples in %d file%s; %d x %d examples a step; %g epochs are %d steps",
        sum(p.examples for p in plans),
        len(files),
        "s" if len(files) > 1 else "",
        runtime.world_size,
        args.train_batch_size,
        args.num_train_epochs,
        plan.total_steps,
    )
    return plan, HeldOut(datasets[0], plans[0].examples)


# --- training ----------------------------------------------------------------------------------


def evaluate(
    state: RunState,
    objective: Objective,
    held_out: HeldOut,
    args: argparse.Namespace,
    runtime: Runtime,
) -> bool:
    """Measure the held-out loss; say whether it is the lowest so far."""
    data, start = held_out
    losses = mean_loss(objective, state.student, data, args.eval_batch_size, runtime, start=start)
    state.metrics.write(step=state.step, **losses)
    logger.info("step %d: held-out loss %.4f", state.step, losses["eval_loss"])
    is_lowest = state.best_score is None or losses["eval_loss"] < state.best_score
    if is_lowest:
        state.best_score, state.best_step = losses["eval_loss"], state.step
    return is_lowest


def measure_start(
    state: RunState,
    report: ClosedFormReport,
    objective: Objective,
    held_out: HeldOut,
    args: argparse.Namespace,
    runtime: Runtime,
) -> None:
    """Say what the student is worth before any training."""
    data, start = held_out
    start = min(start, max(len(data) - START_EXAMPLES, 0))
    losses = mean_loss(objective, state.student, data, args.eval_batch_size, runtime, start=start)
    state.metrics.write(step=0, **report.fields, **losses)
    state.facts["start"] = [f"loss before training {losses['eval_loss']:.4f}"]
    logger.info("%s", state.facts["start"][0])
    if report.explained:
        state.facts["start"].append(describe(report))


def publish(
    state: RunState, tokenizer: BertTokenizer, args: argparse.Namespace, *, is_best: bool
) -> None:
    """Write the student as it is now, the best one so far to a directory of its own as well."""
    for directory in (args.output_dir / "best", args.output_dir)[0 if is_best else 1 :]:
        save_checkpoint(state.student, tokenizer, directory, save_bin=args.save_bin)
        write_model_card(directory, run_dir=args.output_dir)
    upload(args.output_dir, args.data_url)


def what_decides(
    pair: ModelPair, plan: RunPlan, args: argparse.Namespace, runtime: Runtime
) -> Fingerprint:
    """Return the fingerprint of the run; a new student is made from its configuration alone."""
    config = digest_of(pair.student.config.to_dict())
    return training_fingerprint(
        *(args, DECISIVE, plan, runtime),
        teacher=pair.teacher.fingerprint,
        student=pair.student.fingerprint if args.continue_train else config,
        tokenizer=pair.tokenizer.fingerprint,
        init_text=args.init_text and file_digest(args.init_text),
    )


def train(args: argparse.Namespace, runtime: Runtime, directory: RunDirectory) -> None:
    """Train, or go on training; the output directory is touched when everything is checked."""
    args, files = find_data(args)
    pair = find_models(args)
    plan, held_out = load_data(args, files, pair, runtime)
    decides = runtime.on_main(lambda: what_decides(pair, plan, args, runtime))
    if is_finished(args, runtime, decides):
        return
    saved = earlier_state(args, runtime, decides)
    text = held_out.dataset if saved is None else None
    student, objective, report = load_models(pair, text, args, runtime)
    objective = with_variances(objective, held_out.dataset, args.eval_batch_size, runtime)
    directory.begin(args)

    state = begin_state(student, args, runtime, plan.total_steps, saved, decides)
    if report is not None:
        measure_start(state, report, objective, held_out, args, runtime)
    for due in training_steps(objective, plan, state, args, runtime, name="general"):
        if due.evaluate:  # once in a while: measure and publish the student
            is_best = args.do_eval and evaluate(state, objective, held_out, args, runtime)
            if runtime.is_main:
                publish(state, pair.tokenizer, args, is_best=is_best)
        if due.save:  # once in a while: all that a resumed run needs
            state.save(args.output_dir, runtime)

    facts = list(state.facts.get("start", ()))
    if state.best_score is not None:
        facts.append(f"lowest held-out loss {state.best_score:.4f}, at step {state.best_step}")
    results = [
        ("model.safetensors", "the student, with config.json and vocab.txt"),
        ("README.md", "its model card: how it was made"),
        ("best", "the student with the lowest held-out loss"),
    ]
    finish_run(state, runtime, args.output_dir, "general distillation", results, facts)


def dry_run(args: argparse.Namespace, runtime: Runtime) -> None:
    """Check what `train` checks before it reads data, and print what it would do and take."""
    args, files = find_data(args)
    pair = find_models(args)
    check_segments(pair, files[0])
    counts = [examples_to_train(file, args) for file in files]
    lengths = [math.ceil(n / (args.train_batch_size * runtime.world_size)) for n in counts]
    steps = sum(steps_in_epochs(lengths, args.num_train_epochs))

    def build() -> tuple[TinyBertForPreTraining, Objective, list[torch.Tensor]]:
        with made_in(runtime.dtype):
            teacher = TinyBertForPreTraining.from_scratch(pair.teacher.config, fit_size=0)
        teacher.eval().requires_grad_(False)
        student = TinyBertForPreTraining.from_scratch(pair.student.config, **pair.student_changes)
        set_dropout(student, args.student_dropout or 0.0)
        objective = Objective(pair.comparisons, teacher, classifiers=False)
        freeze_unread(student, objective)
        return student.train(), objective, list(teacher.parameters())

    def memory(rows: int, pieces: int) -> StepMemory:
        return step_memory(build, batch_of_ones(rows, args.max_seq_length), pieces, runtime)

    lines = [("data", f"{sum(counts):,} examples in {args.pregenerated_data}")]
    lines += plan_lines(args, steps, args.max_seq_length, runtime, memory)
    if runtime.is_main:
        print_plan("general distillation", lines)


def main(argv: list[str] | None = None) -> None:
    """Run general distillation as the command line says."""
    args = build_parser().parse_args(argv)
    check_args(args)
    runtime = setup_runtime(args)
    if args.dry_run:
        runtime.on_main(lambda: check_directory(args, INPUTS))
        dry_run(args, runtime)
    else:
        with run_directory(args, INPUTS, runtime) as directory:
            train(args, runtime, directory)
    close_runtime(runtime)


if __name__ == "__main__":
    sys.exit(run_script(main))
