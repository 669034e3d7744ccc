"""What is done with a finished model: dev scores, predictions to submit, benchmark, ONNX."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from transformer.checkpoint.directory import Checkpoint
from transformer.checkpoint.model_card import write_model_card
from transformer.distillation.students import freeze_teacher
from transformer.files import write_json
from transformer.modeling import TinyBertForSequenceClassification
from transformer.packed_linear import pack_linears
from transformer.runtime.output_dir import shown_args
from transformer.runtime.ranks import Runtime
from transformer.tasks.benchmark import (
    Subject,
    comparison,
    comparison_table,
    measure,
    save_picture,
    subject_of,
)
from transformer.tasks.class_report import show_report, write_report
from transformer.tasks.classifiers import check_task_fits, load_classifier
from transformer.tasks.files import find_file
from transformer.tasks.job import (
    load_teacher,
    open_checkpoint,
    open_dev_sets,
    shared_tokenizer,
    token_cache,
    with_known_labels,
)
from transformer.tasks.metrics import Results, chance_score
from transformer.tasks.onnx_export import GraphModel, export_onnx, make_graph, quantize
from transformer.tasks.options import stage_of, trains, with_defaults
from transformer.tasks.results import (
    MODEL_AT_CHANCE,
    TEACHER_AT_CHANCE,
    Answers,
    DevSet,
    evaluate,
    evaluate_with_answers,
    results_table,
    warn_of_chance,
    write_dev_results,
)
from transformer.tasks.table import Source, Task
from transformer.tasks.targets import missing_onnx_packages, prediction_file
from transformer.tasks.token_cache import INPUTS, TokenCache
from transformer.training.inference import predict_logits
from transformer.training.loop import compile_forward

logger = logging.getLogger(__name__)


@dataclass
class Delivery:
    """A finished model with what it is measured on."""

    args: argparse.Namespace
    task: Task
    runtime: Runtime
    cache: TokenCache
    checkpoint: Checkpoint
    model: TinyBertForSequenceClassification
    teacher: Checkpoint | None


def deliver(args: argparse.Namespace, task: Task, runtime: Runtime) -> None:
    """Do what --do_eval, --do_predict, --export_onnx and --benchmark ask for, in this order.

    The model is the one just trained, in --output_dir, else --student_model.
    """
    delivery = _plan(args, task, runtime)
    if runtime.is_main:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        write_json(args.output_dir / "eval_args.json", shown_args(delivery.args))
    teacher = None
    dev_sets: list[DevSet] = []
    scores: dict[str, Results] = {}
    if args.do_eval or args.benchmark:
        if delivery.teacher is not None:
            teacher = load_teacher(delivery.teacher, delivery.task, args, runtime)
        dev_sets = open_dev_sets(args.data_dir, delivery.task, delivery.cache)
        scores, answers = _evaluate(delivery, teacher, dev_sets)
        if args.do_eval and runtime.is_main:
            _report(delivery, scores, answers, dev_sets)
    if args.do_predict:
        _predict(delivery)
    if runtime.is_main:
        graph = _graph(delivery)
        if args.export_onnx:
            places = delivery.cache.tokenizer, args.export_onnx
            export_onnx(graph, delivery.model, *places, int8=args.int8)
        if args.benchmark:
            _benchmark(delivery, teacher, dev_sets[0], scores, graph)


def _plan(args: argparse.Namespace, task: Task, runtime: Runtime) -> Delivery:
    args = with_defaults(args, task)
    checkpoint = open_checkpoint("student_model", args)
    if trains(args):  # what was just made of it
        checkpoint = Checkpoint(args.output_dir, args.do_lower_case)
    teacher = open_checkpoint("teacher_model", args)
    config = checkpoint.config
    check_task_fits(task, args.max_seq_length, config, "the model")
    # A task of the user's own may come without its training file: the model knows the labels.
    task = with_known_labels(task, args, checkpoint)
    tokenizer = shared_tokenizer(checkpoint, teacher)
    model = load_classifier(checkpoint, task, "the model", need_classifier=True)
    model.to(runtime.device).eval()
    if args.compile:
        compile_forward(model)
    cache = token_cache(args, tokenizer, runtime)
    return Delivery(args, task, runtime, cache, checkpoint, model, teacher)


def _evaluate(
    delivery: Delivery, teacher: TinyBertForSequenceClassification | None, dev_sets: list[DevSet]
) -> tuple[dict[str, Results], Answers]:
    """Return the dev scores of the "student" and any "teacher", and the student's answers."""
    rest = delivery.task, dev_sets, delivery.args.eval_batch_size, delivery.runtime
    results, *answers = evaluate_with_answers(delivery.model, *rest)
    scores = {"student": results}
    if teacher is not None:
        scores["teacher"] = evaluate(teacher, *rest)
    return scores, tuple(answers)


def _report(
    delivery: Delivery, scores: dict[str, Results], answers: Answers, dev_sets: list[DevSet]
) -> None:
    """Write and print the dev scores, and how well each class is answered."""
    args, task = delivery.args, delivery.task
    facts: dict[str, object] = {"task": task.name, "model": str(delivery.checkpoint)}
    if trains(args):
        facts["stage"] = stage_of(args)
    theirs = scores.get("teacher", {})
    facts |= {f"teacher_{key}": value for key, value in theirs.items()}
    write_dev_results(args.output_dir, dev_sets, scores["student"], facts)
    rows = {str(delivery.checkpoint): scores["student"]} | ({"teacher": theirs} if theirs else {})
    print(results_table(f"{task.name}, dev", rows), flush=True)
    chance = chance_score(task, answers[1])
    if not trains(args):  # else it was said when the training ended
        score = scores["student"][task.best_metric]
        warn_of_chance(task, score, chance, f"the model {delivery.checkpoint}", MODEL_AT_CHANCE)
    if theirs:
        score = theirs[task.best_metric]
        warn_of_chance(task, score, chance, "the teacher", TEACHER_AT_CHANCE)
    write_report(args.output_dir, task.kind.class_report(task, *answers))
    show_report(args.output_dir, f"{task.name}, dev")


def _predict(delivery: Delivery) -> None:
    for source in delivery.task.test:
        path = find_file(delivery.args.data_dir, source)
        if path is None:
            target = prediction_file(delivery.args.output_dir, delivery.task, source)
            logger.warning("%s: no such file; there is no %s", source.file, target.name)
        else:
            _predict_file(delivery, path, source)


def _predict_file(delivery: Delivery, path: Path, source: Source) -> None:
    args, task = delivery.args, delivery.task
    dataset = delivery.cache.open(path, task, source, labelled=False)
    logits = predict_logits(delivery.model, dataset, args.eval_batch_size, delivery.runtime)
    if delivery.runtime.is_main:
        data = INPUTS[task.kind.reads](path, task, source, labelled=False, errors=args.errors)
        target = prediction_file(args.output_dir, task, source)
        count = data.write_predictions(target, dataset, logits)
        logger.info("%s: what is predicted for %d %s", target, count, data.unit)


def _graph(delivery: Delivery) -> bytes | None:
    """Return the model as an ONNX graph if it is asked for, or can be measured as well."""
    missing = missing_onnx_packages()
    if delivery.args.benchmark and missing:
        logger.info(
            "--benchmark leaves out ONNX and int8: without %s (pip install -r "
            "requirements-onnx.txt) there are none",
            ", ".join(missing),
        )
    if not delivery.args.export_onnx and (missing or not delivery.args.benchmark):
        return None
    return make_graph(delivery.model, delivery.cache.tokenizer)


def _benchmark(
    delivery: Delivery,
    teacher: TinyBertForSequenceClassification | None,
    dev_set: DevSet,
    scores: dict[str, Results],
    graph: bytes | None,
) -> None:
    """Measure the model beside its teacher and its graphs; write and print the comparison."""
    args, runtime, dataset = delivery.args, delivery.runtime, dev_set.dataset
    # As it would be deployed here: weights held in the precision that the machine computes in.
    freeze_teacher(delivery.model, runtime)
    if not args.compile:
        pack_linears(delivery.model)
    metric = delivery.task.best_metric
    subjects = [
        subject_of(
            *(name, model, checkpoint.path),
            autocast=runtime.autocast,
            metric=metric,
            score=scores[name][metric],
        )
        for name, model, checkpoint in (
            ("teacher", teacher, delivery.teacher),
            ("student", delivery.model, delivery.checkpoint),
        )
        if model is not None and checkpoint is not None
    ]
    if graph is not None:
        subjects += [
            _graph_subject(delivery, subjects[-1], dev_set, *named)
            for named in (
                ("student ONNX", graph, "float32"),
                ("student int8", quantize(graph), "int8"),
            )
        ]
    figures = measure(subjects, dataset.lengths(np.arange(len(dataset))))
    write_json(args.output_dir / "benchmark.json", comparison(figures))
    save_picture(figures, args.output_dir / "benchmark.png")
    if trains(args):  # the model is this directory's own
        write_model_card(args.output_dir)
    print(comparison_table(figures), flush=True)


def _graph_subject(
    delivery: Delivery,
    student: Subject,
    dev_set: DevSet,
    name: str,
    graph: bytes,
    weight_type: str,
) -> Subject:
    """Return a graph of the student as what is measured, with its own dev score."""
    model, task = GraphModel(graph, delivery.model), delivery.task
    alone = Runtime(torch.device("cpu"))
    results = evaluate(model, task, [dev_set], delivery.args.eval_batch_size, alone)
    return replace(
        student,
        name=name,
        model=model,
        size_on_disk=len(graph),
        device=alone.device,
        weight_type=weight_type,
        autocast=alone.autocast,
        score=results[task.best_metric],
    )
