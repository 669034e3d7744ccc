"""The flags of task distillation: what they ask for, what contradicts, what the table fills in."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from transformer.files import UserError
from transformer.tasks.class_weights import class_weights
from transformer.tasks.files import find_file, require_file
from transformer.tasks.table import Source, Task, resolve_task, transfer_source
from transformer.tasks.targets import PREDICTIONS, check_export, check_target, prediction_file

logger = logging.getLogger(__name__)

PREDICTION_EPOCHS = 3.0

# An evaluation may cost about as many rows as were trained on since the last one; one of layers,
# which runs the teacher too, a quarter of that.
LEAST_EVAL_STEP = 50

ANSWER_ENDINGS = (".npy", ".tsv", ".csv", ".jsonl", ".json")

# Flags of `add_learning_arguments`, which decide the result of a training.
LEARNING_FLAGS = ("class_weights", "patience")

DELIVERIES = ("do_eval", "do_predict", "benchmark", "export_onnx")


def add_learning_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of trainings that learn the task itself."""
    add = parser.add_argument_group("fine-tuning and prediction distillation").add_argument
    add(
        "--class_weights",
        type=class_weights,
        metavar="WEIGHTS",
        help='factors of the loss of a gold label, for classes of unequal size: "auto", which is '
        'rows / (classes * rows of the class), "label=weight,label=weight", or a JSON file of '
        "them; labels without one have 1",
    )
    add(
        "--patience",
        type=int,
        metavar="N",
        help="stop after N evaluations (every --eval_step steps) without a better dev score; of "
        "equal scores the one with the lower dev loss is better. The learning rate is planned for "
        "all epochs nevertheless",
    )


def delivers(args: argparse.Namespace) -> bool:
    """Say whether something is asked for that needs a finished model."""
    return any(getattr(args, name) for name in DELIVERIES)


def trains(args: argparse.Namespace) -> bool:
    """Say whether a model is to be trained."""
    return learns_task(args) or not delivers(args)


def stage_of(args: argparse.Namespace) -> str:
    """Return what progress lines call the training."""
    if args.finetune:
        return "fine-tuning"
    if args.joint:
        return "joint distillation"
    return "prediction distillation" if args.pred_distill else "intermediate distillation"


def learner(args: argparse.Namespace) -> str:
    """Return what messages call the model that is trained."""
    return "model" if args.finetune else "student"


def check_args(args: argparse.Namespace) -> Task:
    """Find the mistakes that need no model to be read; return the task, its table row or flags.

    Raises:
        UserError: as it says.
    """
    from transformer.training.options import check_training_arguments  # torch: not for columns.py

    for flag, value, what in (
        ("--task_name", args.task_name, "a task of GLUE, or your own with --text_columns"),
        ("--data_dir", args.data_dir, "the directory of the task's files"),
        ("--output_dir", args.output_dir, "the directory that gets the model and the results"),
    ):
        if value is None:
            raise UserError(f"{flag} is needed: {what} (only --predict does without)")
    if args.output is not None or args.overwrite_output:
        raise UserError("--output and --overwrite_output belong to --predict")
    eval_step = LEAST_EVAL_STEP if args.eval_step is None else args.eval_step
    check_training_arguments(argparse.Namespace(**{**vars(args), "eval_step": eval_step}))
    _check_values(args)
    task = resolve_task(args)
    if args.class_weights is not None and not (task.kind.names_labels and task.kind.gold == "ce"):
        raise UserError(
            f"--class_weights: a {task.kind.name} task has no classes of which one is right; leave "
            "the flag out"
        )
    if not args.data_dir.is_dir():
        raise UserError(f"--data_dir {args.data_dir}: no such directory")
    if args.dev_share is not None:
        _check_dev_share(args)
    if given_answers(args):
        _check_answers(args, task)
    if trains(args):
        _check_training(args, task)
    elif args.dry_run:
        raise UserError(
            "--dry_run plans a training; give --finetune, --pred_distill or --joint with it"
        )
    _check_deliveries(args, task)
    return task


def _check_dev_share(args: argparse.Namespace) -> None:
    """Refuse to hold out rows where there is a dev set."""
    whole = resolve_task(argparse.Namespace(**{**vars(args), "dev_share": None}))
    for source in whole.dev:
        path = find_file(args.data_dir, source)
        if path is not None:
            raise UserError(
                f"--dev_share {args.dev_share}: there is a dev set, {path}; leave the flag out, or "
                "move the file away"
            )


def given_answers(args: argparse.Namespace) -> list[Path]:
    """Return the files that hold the teacher's answers, if any are given."""
    return args.teacher_logits or args.teacher_probabilities or []


def _check_answers(args: argparse.Namespace, task: Task) -> None:
    """Check what --teacher_logits or --teacher_probabilities go with, and that files are there."""
    if args.teacher_logits and args.teacher_probabilities:
        raise UserError("--teacher_logits and --teacher_probabilities: give one of them")
    flag = "--teacher_logits" if args.teacher_logits else "--teacher_probabilities"
    if not args.pred_distill or args.hard_labels:
        raise UserError(
            f"{flag} belongs to --pred_distill: layers are learnt from a model, and --hard_labels "
            "from nobody's answers"
        )
    if task.kind.reads != "rows":
        raise UserError(
            f"{flag}: {task.name} has more than one answer a text; give a --teacher_model"
        )
    if args.teacher_probabilities and not task.kind.names_labels:
        raise UserError(f"{flag}: a score has no probability; give the scores by --teacher_logits")
    if args.teacher_probabilities and args.prediction_loss == "mse":
        raise UserError(
            "--prediction_loss mse compares logits, which probabilities are not; give ce or kl"
        )
    for path in given_answers(args):
        if not path.is_file():
            raise UserError(f"{flag} {path}: no such file")
        if path.suffix.lower() not in ANSWER_ENDINGS:
            endings = ", ".join(ANSWER_ENDINGS)
            raise UserError(f"{flag} {path}: unknown kind of file; allowed are {endings}")


def _check_deliveries(args: argparse.Namespace, task: Task) -> None:
    """Check what comes after a training, or without one: its data and the files it writes."""
    if args.do_predict and not any(find_file(args.data_dir, source) for source in task.test):
        names = ", ".join(source.file for source in task.test)
        raise UserError(f"--do_predict: {args.data_dir} holds no {names}")
    if args.do_eval or args.benchmark:
        require_file(args.data_dir, task.dev[0], "the evaluation")
    if args.do_predict:
        kind = PREDICTIONS[task.kind.reads]
        for source in task.test:
            check_target("--do_predict", prediction_file(args.output_dir, task, source), kind)
    if args.export_onnx:
        check_export(args.export_onnx, args.int8, args.output_dir)
    elif args.int8:
        raise UserError("--int8 belongs to --export_onnx DIR")


def _check_values(args: argparse.Namespace) -> None:
    stages = [name for name in ("finetune", "pred_distill", "joint") if getattr(args, name)]
    if len(stages) > 1:
        flags = " and ".join(f"--{name}" for name in stages)
        raise UserError(f"{flags} contradict each other; give one")
    if args.joint and args.hard_labels:
        raise UserError(
            "--joint learns the teacher's predictions; --hard_label_weight adds gold labels, "
            "--hard_labels goes with --pred_distill"
        )
    if not args.temperature > 0:
        raise UserError(f"--temperature {args.temperature}: give a number above 0")
    if not 0 <= args.hard_label_weight < float("inf"):
        raise UserError(f"--hard_label_weight {args.hard_label_weight}: give a number of 0 or more")
    if args.hard_labels and args.hard_label_weight:
        raise UserError(
            "--hard_labels learns gold labels alone, --hard_label_weight adds them to the "
            "teacher's; give one"
        )
    _check_patience(args)
    if args.class_weights is not None and not learns_gold(args):
        raise UserError(
            "--class_weights are factors of the loss of gold labels, and none are learnt here; it "
            "goes with --finetune, --hard_labels, or --hard_label_weight of --pred_distill and "
            "--joint"
        )
    if len(set(args.seed)) < len(args.seed):
        raise UserError(f"--seed {' '.join(map(str, args.seed))}: give each seed once")
    if args.num_workers is not None and args.num_workers < 1:
        raise UserError(f"--num_workers {args.num_workers}: give a number of 1 or more")


def _check_patience(args: argparse.Namespace) -> None:
    if args.patience is None:
        return
    if args.patience < 1:
        raise UserError(f"--patience {args.patience}: give a number of 1 or more evaluations")
    if not learns_task(args):
        raise UserError(
            "--patience waits for a better dev score, and layers alone have none; it goes with "
            "--finetune, --pred_distill or --joint"
        )


def _check_training(args: argparse.Namespace, task: Task) -> None:
    from transformer.distillation.start import check_start_arguments  # torch: not for columns.py

    if args.teacher_model is None and asks_teacher(args):
        raise UserError(
            "--teacher_model is needed for distillation: a model fine-tuned on the task (make one "
            "with --finetune); --finetune, --do_eval and --do_predict need none"
        )
    check_start_arguments(args)
    if args.teacher_model is None and args.init_from_teacher:
        raise UserError("--init_from_teacher needs --teacher_model")
    allowed = () if args.original_soft_ce and "mse" not in task.kind.losses else task.kind.losses
    if needs_teacher(args) and args.prediction_loss not in allowed:
        flag = "--prediction_loss mse" if args.prediction_loss == "mse" else "--original_soft_ce"
        raise UserError(
            f"{flag}: {task.name} is a {task.kind.name} task, whose classes are the tokens of a "
            "text; give --prediction_loss ce or kl"
        )
    require_file(args.data_dir, task.dev[0], "choosing the best model")
    if args.transfer_file is not None:
        _check_transfer_file(args, task)
    elif not args.aug_train:
        require_file(args.data_dir, task.train, "training")
    elif find_file(args.data_dir, task.train, suffix="_aug") is None:
        name = Path(task.train.file)
        augmented = f"{name.stem}_aug{name.suffix or '.tsv'}"
        raise UserError(
            f"--aug_train: {args.data_dir} holds no {augmented}; make it "
            "with data_augmentation.py, or leave the flag out to train on the task's own data"
        )


def _check_transfer_file(args: argparse.Namespace, task: Task) -> None:
    path = args.transfer_file
    if not path.is_file():
        raise UserError(f"--transfer_file {path}: no such file")
    if not needs_teacher(args):
        raise UserError(
            "--transfer_file has no labels to learn: it is for distillation; leave --finetune and "
            "--hard_labels out"
        )
    if args.hard_label_weight:
        raise UserError("--transfer_file has no labels; leave --hard_label_weight out")
    if args.aug_train:
        raise UserError("--aug_train and --transfer_file name two sets to learn from; give one")
    if path.suffix.lower() == ".txt" and len(task.text) > 1:
        raise UserError(
            f"--transfer_file {path}: a line of plain text is one text, but {task.name} has pairs; "
            f"give a .tsv, .csv or .jsonl with the columns {' and '.join(task.text)}"
        )


class InputFile(NamedTuple):
    """A file of the task: its path, None if it is not there; how it is read; with labels or not."""

    path: Path | None
    source: Source
    labelled: bool = True


def training_file(args: argparse.Namespace, task: Task) -> InputFile:
    """Return the task's training file, or what --aug_train or --transfer_file put in its place."""
    if args.transfer_file is not None:
        source = transfer_source(args.transfer_file, task, header=not args.no_header)
        return InputFile(args.transfer_file, source, labelled=False)
    if args.aug_train:
        augmented = find_file(args.data_dir, task.train, suffix="_aug")
        return InputFile(augmented, replace(task.train, part=""))
    return InputFile(find_file(args.data_dir, task.train), task.train)


def needs_teacher(args: argparse.Namespace) -> bool:
    """Say whether the training learns from a teacher."""
    return not args.finetune and not (args.pred_distill and args.hard_labels)


def asks_teacher(args: argparse.Namespace) -> bool:
    """Say whether the training learns from a teacher whose answers are not in a file."""
    return needs_teacher(args) and not given_answers(args)


def learns_task(args: argparse.Namespace) -> bool:
    """Say whether the student learns the task itself: labels or the teacher's predictions."""
    return args.finetune or args.pred_distill or args.joint


def learns_gold(args: argparse.Namespace) -> bool:
    """Say whether gold labels are in the loss."""
    return learns_task(args) and (not needs_teacher(args) or args.hard_label_weight > 0)


def learns_layers(args: argparse.Namespace) -> bool:
    """Say whether the student learns from the teacher's layers."""
    return args.joint or not learns_task(args)


def student_dropout(args: argparse.Namespace) -> float | None:
    """Return the student's dropout in the training; None: what its config.json says."""
    if args.student_dropout is None and needs_teacher(args):
        return 0.0
    return args.student_dropout


def padded_length(args: argparse.Namespace) -> int | None:
    """Return the length of all batches, where padding counts; None where it does not."""
    return args.max_seq_length if learns_layers(args) and args.loss_on_padding else None


def with_defaults(args: argparse.Namespace, task: Task) -> argparse.Namespace:
    """Return the flags with the table's values where the user gave none, and say which."""
    changes: dict[str, object] = {}
    if args.max_seq_length is None:
        changes["max_seq_length"] = task.max_seq_length
    if args.num_train_epochs is None and trains(args):
        changes["num_train_epochs"] = PREDICTION_EPOCHS if learns_task(args) else task.epochs
    if args.schedule is None and trains(args):
        changes["schedule"] = "warmup_linear" if learns_task(args) else "none"
    for name, value in changes.items():
        shown = f"{value:g}" if isinstance(value, float | int) else value
        logger.info("--%s %s: the default for %s", name, shown, task.name)
    return argparse.Namespace(**{**vars(args), **changes})


def with_eval_step(args: argparse.Namespace, dev_rows: int) -> argparse.Namespace:
    """Return the flags with an evaluation interval that suits the dev set's size."""
    if args.eval_step is not None:
        return args
    steps = dev_rows * (1 if learns_task(args) else 4) // args.train_batch_size
    eval_step = max(LEAST_EVAL_STEP, steps)
    logger.info("--eval_step %d: the default for a dev set of %d rows", eval_step, dev_rows)
    return argparse.Namespace(**{**vars(args), "eval_step": eval_step})
