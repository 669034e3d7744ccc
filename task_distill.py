"""Task distillation: fine-tune a teacher, distil it into a student, measure and deploy the result.

    python task_distill.py --finetune --student_model BERT_DIR --data_dir GLUE_DIR/SST-2 \\
        --task_name SST-2 --output_dir teacher                      a teacher, from gold labels
    python task_distill.py --teacher_model teacher --student_model GENERAL_TINYBERT \\
        --data_dir GLUE_DIR/SST-2 --task_name SST-2 --aug_train --output_dir intermediate
    python task_distill.py --pred_distill --teacher_model teacher --student_model intermediate \\
        --data_dir GLUE_DIR/SST-2 --task_name SST-2 --aug_train --output_dir tinybert
    python task_distill.py --do_eval --do_predict --benchmark --teacher_model teacher \\
        --student_model tinybert --data_dir GLUE_DIR/SST-2 --task_name SST-2 --output_dir results
    python task_distill.py --student_model tinybert --predict reviews.csv --output labelled.csv

    torchrun --nproc_per_node=8 task_distill.py ...                 the same on eight GPUs

The two stages are those of section 3.2 of arXiv 1909.10351: the intermediate one (the default)
teaches the teacher's layers, --pred_distill its predictions; --joint teaches both at once.
--do_eval, --do_predict, --benchmark and --export_onnx alone train nothing; with --finetune,
--pred_distill or --joint they follow the training.
"""

from __future__ import annotations

if __name__ == "__main__":
    import transformer.runtime.interrupt  # noqa: F401 - Ctrl-C during the imports below
    from transformer.tasks.columns import check_columns

    check_columns()  # before torch is imported, which takes seconds

import argparse
import logging
import shutil
import sys
from pathlib import Path

from transformer.checkpoint.directory import save_checkpoint
from transformer.checkpoint.model_card import write_model_card
from transformer.distillation.layers import add_distillation_arguments
from transformer.distillation.start import add_start_arguments
from transformer.file_utils import upload
from transformer.runtime.metrics_log import shown_terms
from transformer.runtime.output_dir import (
    RunDirectory,
    check_directory,
    run_directory,
    save_args,
)
from transformer.runtime.ranks import add_runtime_arguments, close_runtime, setup_runtime
from transformer.runtime.script import (
    ScriptParser,
    file_path,
    model_name,
    optional_path,
    run_script,
    seed_number,
    shipped_students,
    student_name,
)
from transformer.tasks.class_report import show_report, write_report
from transformer.tasks.deliver import deliver
from transformer.tasks.dry_run import dry_run
from transformer.tasks.job import plan_job
from transformer.tasks.metrics import Results, chance_score
from transformer.tasks.options import (
    add_learning_arguments,
    check_args,
    delivers,
    learner,
    trains,
)
from transformer.tasks.predict import check_predict, predict
from transformer.tasks.results import (
    TRAINED_AT_CHANCE,
    Answers,
    report_seeds,
    results_table,
    seed_directory,
    warn_of_chance,
    write_dev_results,
)
from transformer.tasks.run import Job, Run, metric_fields
from transformer.tasks.table import add_task_arguments
from transformer.training.loop import begin_state, finish_run, training_steps
from transformer.training.options import add_training_arguments
from transformer.training.state import RunState, earlier_state, is_finished

logger = logging.getLogger("task_distill")

# Flags that name what is read, and must not be written over.
INPUTS = (
    *("data_dir", "student_model", "teacher_model"),
    *("transfer_file", "teacher_logits", "teacher_probabilities"),
)


EXAMPLES = """\
examples:
  python task_distill.py --finetune --model bert-base-uncased \\
      --data_dir glue/SST-2 --task_name SST-2 --learning_rate 2e-5 --output_dir teacher
  python task_distill.py --pred_distill --init_from_teacher uniform \\
      --teacher_model teacher --student_model tinybert_4l_312d \\
      --data_dir glue/SST-2 --task_name SST-2 --learning_rate 1e-4 --output_dir student
  python task_distill.py --benchmark --model student --teacher_model teacher \\
      --data_dir glue/SST-2 --task_name SST-2 --output_dir results
  python task_distill.py --model student --predict reviews.csv --output labelled.csv

A training writes the model with the best dev score to OUTPUT_DIR (model.safetensors, config.json,
vocab.txt, tokenizer.json, a model card README.md), its scores to eval_results.json and, class by
class, to dev_report.txt and confusion_matrix.png, its reports to metrics.jsonl and
training_curves.png, and the model of the last step to OUTPUT_DIR/last.
--benchmark writes benchmark.json and benchmark.png there, --do_predict one TASK.tsv a test set."""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = ScriptParser(__doc__, epilog=EXAMPLES)
    add = parser.add_argument_group("what to do").add_argument
    add("--finetune", action="store_true", help="train --student_model on gold labels: a teacher")
    add("--pred_distill", action="store_true", help="teach predictions instead of layers")
    add("--joint", action="store_true", help="teach layers and predictions in one stage")
    add("--do_eval", action="store_true", help="measure on the dev set: eval_results, dev_report")
    add("--do_predict", action="store_true", help="label the test set, in the leaderboard's format")
    add("--benchmark", action="store_true", help="measure size and speed, beside --teacher_model's")
    predict = "label a file, standard input (-) or one text with --student_model alone"
    add("--predict", metavar="WHAT", help=predict)
    graph = "write the student as an ONNX graph: a directory, or a FILE.onnx alone"
    add("--export_onnx", type=file_path, metavar="DIR", help=graph)
    add("--int8", action="store_true", help="with --export_onnx DIR: write an int8 graph as well")
    _add_file_arguments(parser)
    add_task_arguments(parser, required=False)
    _add_prediction_arguments(parser)
    add_learning_arguments(parser)
    add_distillation_arguments(parser)
    add_start_arguments(parser)
    add_training_arguments(parser, epochs=None, eval_step=None, schedule=None)
    add_runtime_arguments(parser, seed=False)
    seeds = "seed of order, dropout and new weights; of several, the best student is kept"
    parser.add_argument("--seed", type=seed_number, nargs="+", default=[42], help=seeds)
    return parser


def _add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name what is read and what is written, and how text is tokenised."""
    add = parser.add_argument_group("data and models").add_argument
    add("--data_dir", type=file_path, help="directory with the task's files")
    add(
        *("--student_model", "--model"),
        type=student_name,
        required=True,
        help="directory, name or address of the model to train or to use, or a configuration that "
        f"comes with the scripts: {', '.join(shipped_students())}",
    )
    add(
        "--teacher_model",
        type=model_name,
        help="directory, name or address of the fine-tuned teacher (--finetune makes one)",
    )
    add("--output_dir", type=file_path, help="directory for the model and the results")
    add(
        "--output",
        type=file_path,
        metavar="FILE",
        help="file for what --predict answers; default: stdout",
    )
    add("--overwrite_output", action="store_true", help="replace the --output that is there")
    add(
        "--cache_dir",
        type=optional_path,
        help="directory for tokenised data and downloads; default: DATA_DIR/.cache",
    )
    add("--max_seq_length", type=int, help="limit in tokens; default: the task's, 64 to 384")
    case = "lower-case text; default: what the model's files say"
    add("--do_lower_case", action=argparse.BooleanOptionalAction, help=case)
    add("--num_workers", type=int, help="processes that tokenise; default: one a processor")
    add("--aug_train", action="store_true", help="train on train_aug.tsv (data_augmentation.py)")
    add(
        "--transfer_file",
        type=file_path,
        metavar="FILE",
        help="distil on these texts instead of the training file: .tsv, .csv or .jsonl with the "
        "task's text columns, or .txt with a text a line; labels in it are not read",
    )


def _add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of --pred_distill."""
    add = parser.add_argument_group("prediction distillation").add_argument
    add(
        "--teacher_logits",
        type=file_path,
        nargs="+",
        metavar="FILE",
        help="the teacher's answers in place of --teacher_model: a row for each row that is learnt "
        "from, in .npy with the labels in the task's order, or .tsv, .csv, .jsonl with one column "
        "a label (text columns are compared); several files are averaged",
    )
    add(
        "--teacher_probabilities",
        type=file_path,
        nargs="+",
        metavar="FILE",
        help="like --teacher_logits, of a teacher that says probabilities",
    )
    add(
        "--temperature",
        type=float,
        default=1.0,
        help="divide logits of teacher and student by this",
    )
    loss = "loss between the logits of student and teacher"
    add("--prediction_loss", choices=("ce", "kl", "mse"), default="ce", help=loss)
    add("--original_soft_ce", action="store_true", help="also divide ce by the number of classes")
    add("--hard_labels", action="store_true", help="learn gold labels instead of the teacher's")
    gold = "weight of the loss against gold labels, beside the teacher's"
    add("--hard_label_weight", type=float, default=0.0, help=gold)
    copied = "learn gold labels of augmented rows as well, which are copies"
    add("--hard_labels_on_augmented", action="store_true", help=copied)


# --- training ----------------------------------------------------------------------------------


def evaluate_and_keep(run: Run, state: RunState, total_steps: int) -> None:
    """Measure the student on the dev sets; keep it if it is the best so far, or the last."""
    results, answers = run.measure(state)
    state.metrics.write(step=state.step, **metric_fields(results))
    shown = "  ".join(f"{key} {value:.4f}" for key, value in shown_terms(results).items())
    if answers is not None and "chance" not in state.facts:  # the labels stay the same
        state.facts["chance"] = chance_score(run.job.task, answers[1])
    logger.info("%s step %d of %d: dev %s", run.stage, state.step, total_steps, shown)
    run.compare_with_start(state, results)
    keep_if_best(run, state, results, answers, is_last=state.step == total_steps)


def keep_if_best(
    run: Run, state: RunState, results: Results, answers: Answers | None, *, is_last: bool
) -> None:
    """Write the student as it is now if it is the best so far, or the last."""
    keep = run.choose(state, results, is_last=is_last)
    is_last = is_last or state.stopped
    if run.runtime.is_main and (keep or is_last):
        directory = run.args.output_dir if keep else run.args.output_dir / "last"
        publish(run, state, directory, results if keep else None)
        if keep and answers is not None:
            task = run.job.task
            write_report(run.args.output_dir, task.kind.class_report(task, *answers))


def publish(run: Run, state: RunState, directory: Path, results: dict[str, float] | None) -> None:
    """Write the student as a checkpoint directory, with its results, and copy it to --data_url."""
    args, job = run.args, run.job
    # A model that is finished needs no map to its teacher's width; one that learned layers may go
    # on learning them.
    save_checkpoint(
        state.student,
        job.tokenizer,
        directory,
        save_bin=args.save_bin,
        keep_projection=not run.keeps_best,
    )
    if results is not None:
        facts = {**job.facts, "seed": args.seed, "global_step": state.step}
        write_dev_results(args.output_dir, job.dev_sets, results, facts)
        write_model_card(directory)
    upload(args.output_dir, args.data_url)


def run_seed(run: Run, directory: RunDirectory) -> dict[str, float]:
    """Train one student; return the results of the model that is kept."""
    args, runtime, objective = run.args, run.runtime, run.job.objective
    plan = run.plan_steps()
    decides = runtime.on_main(lambda: run.what_decides(plan))
    if is_finished(args, runtime, decides):
        return run.stored_results()
    saved = earlier_state(args, runtime, decides)
    student, report = run.load_student(is_new=saved is None)
    begin(run, directory)
    if runtime.is_main and saved is None:  # what a former run left would pass for this one's
        shutil.rmtree(args.output_dir / "last", ignore_errors=True)

    state = begin_state(student, args, runtime, plan.total_steps, saved, decides)
    if report is not None:
        results, answers = run.measure_start(state, report)
        if run.keeps_best:  # what no training improves is delivered as it was computed
            keep_if_best(run, state, results, answers, is_last=False)
    for due in training_steps(objective, plan, state, args, runtime, name=run.stage):
        if due.evaluate:  # once in a while: the dev score, and the best student is kept
            evaluate_and_keep(run, state, plan.total_steps)
        if due.save:  # once in a while: all that --resume needs
            state.save(args.output_dir, runtime)
    report_result(run, state)
    return state.facts["results"]


def report_result(run: Run, state: RunState) -> None:
    """Print the dev scores of the model that was kept and of its teacher; say what is where."""
    task, results = run.job.task, state.facts["results"]
    name = learner(run.args)
    if run.runtime.is_main:
        rows = {name: shown_terms(results)}
        if run.keeps_best and run.job.teacher_results:
            rows["teacher"] = run.job.teacher_results
        print(results_table(f"{task.name}, dev", rows), flush=True)
        show_report(run.args.output_dir, f"{task.name}, dev")
    if "chance" in state.facts and run.keeps_best:
        score, advice = results[task.best_metric], TRAINED_AT_CHANCE.format(run.args.learning_rate)
        warn_of_chance(task, score, state.facts["chance"], f"the {name}", advice)
    which = "the best" if run.keeps_best else "the last: layers have no dev score to choose by"
    if not state.best_step:
        which += ", before any training"
        if run.args.learning_rate:
            logger.warning(
                "WARNING: no evaluation was better than the student before training, which is "
                "kept; lower --learning_rate (it is %g)",
                run.args.learning_rate,
            )
    written = [
        ("model.safetensors", f"the {name} of step {state.best_step}, {which}"),
        ("README.md", "its model card: how good it is, how it was made"),
        ("last", f"the {name} of the last step"),
        ("eval_results.json", "its results on the dev set"),
        ("dev_report.txt", "the same, class by class"),
        ("confusion_matrix.png", "which classes are taken for which"),
    ]
    title = f"{run.stage} of {task.name}"
    facts = list(state.facts.get("start", ()))
    if state.stopped:
        facts.append(f"stopped by --patience {run.args.patience}")
    teacher = metric_fields(run.job.teacher_results) if run.keeps_best else None
    finish_run(state, run.runtime, run.args.output_dir, title, written, facts, teacher)


def begin(run: Run, directory: RunDirectory) -> None:
    """Take over the output directory and, with several seeds, make this seed's own in it."""
    has_own = run.args.output_dir != directory.path
    directory.begin(run.job.args if has_own else run.args)
    if has_own and run.runtime.is_main:
        run.args.output_dir.mkdir(exist_ok=True)
        save_args(run.args, run.args.output_dir)


def run_seeds(job: Job, directory: RunDirectory) -> None:
    """Train with every seed; with several, report mean and deviation and keep the best."""
    args, seeds = job.args, job.args.seed
    if len(seeds) == 1:
        run_seed(Run(job, argparse.Namespace(**{**vars(args), "seed": seeds[0]})), directory)
        return
    results = {}
    for seed in seeds:
        logger.info("seed %d", seed)
        changes = {"seed": seed, "output_dir": seed_directory(args.output_dir, seed)}
        own_args = argparse.Namespace(**{**vars(args), **changes})
        results[seed] = run_seed(Run(job, own_args), directory)
    if job.runtime.is_main:
        metric = job.task.best_metric if job.keeps_best else "eval_loss"
        report_seeds(args.output_dir, job.facts, results, metric)


def main(argv: list[str] | None = None) -> None:
    """Run what the command line says."""
    args = build_parser().parse_args(argv)
    if args.predict is not None:
        check_predict(args)
        runtime = setup_runtime(args)
        predict(args, runtime)
        close_runtime(runtime)
        return
    task = check_args(args)
    runtime = setup_runtime(args)
    if args.dry_run:
        runtime.on_main(lambda: check_directory(args, INPUTS))
        dry_run(args, task, runtime)
        close_runtime(runtime)
        return
    with run_directory(args, INPUTS, runtime, starts_run=trains(args)) as directory:
        if trains(args):
            run_seeds(plan_job(args, task, runtime), directory)
        if delivers(args):
            deliver(args, task, runtime)
    close_runtime(runtime)


if __name__ == "__main__":
    sys.exit(run_script(main))
