"""What is done with a finished model: dev scores, predictions to submit, benchmark, ONNX."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transformer.checkpoint.directory import Checkpoint
from transformer.checkpoint.model_card import write_model_card
from transformer.distillation.students import freeze_teacher
from transformer.files import write_json
from transformer.modeling import TinyBertForSequenceClassification
from transformer.packed_linear import pack_linears
from transformer.runtime.output_dir import shown_args
from transformer.runtime.ranks import Runtime
from transformer.tasks.benchmark import comparison, comparison_table, measure
from transformer.tasks.classifiers import check_task_fits, load_classifier
from transformer.tasks.files import RowReader, find_file
from transformer.tasks.job import (
    load_teacher,
    open_checkpoint,
    open_dev_sets,
    shared_tokenizer,
    token_cache,
    with_known_labels,
)
from transformer.tasks.kinds import TOKEN_LABELS
from transformer.tasks.onnx_export import export_onnx
from transformer.tasks.options import prediction_file, stage_of, trains, with_defaults
from transformer.tasks.results import (
    evaluate,
    results_table,
    write_dev_results,
    write_predictions,
)
from transformer.tasks.sentences import SentenceReader, write_tags
from transformer.tasks.table import Source, Task
from transformer.tasks.token_cache import TokenCache
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
    if delivery.teacher is not None and (args.do_eval or args.benchmark):
        teacher = load_teacher(delivery.teacher, delivery.task, args, runtime)
    if args.do_eval:
        _evaluate(delivery, teacher)
    if args.do_predict:
        _predict(delivery)
    if args.export_onnx and runtime.is_main:
        export_onnx(delivery.model, delivery.cache.tokenizer, args.export_onnx, int8=args.int8)
    if args.benchmark and runtime.is_main:
        _benchmark(delivery, teacher)


def _plan(args: argparse.Namespace, task: Task, runtime: Runtime) -> Delivery:
    args = with_defaults(args, task)
    trained = str(args.output_dir) if trains(args) else args.student_model
    checkpoint = open_checkpoint(trained, args)
    teacher = open_checkpoint(args.teacher_model, args)
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


def _evaluate(delivery: Delivery, teacher: TinyBertForSequenceClassification | None) -> None:
    args, task, runtime = delivery.args, delivery.task, delivery.runtime
    dev_sets = open_dev_sets(args.data_dir, task, delivery.cache)
    results = evaluate(delivery.model, task, dev_sets, args.eval_batch_size, runtime)
    rows = {str(delivery.checkpoint): results}
    facts: dict[str, object] = {"task": task.name, "model": str(delivery.checkpoint)}
    if trains(args):
        facts["stage"] = stage_of(args)
    if teacher is not None:
        rows["teacher"] = evaluate(teacher, task, dev_sets, args.eval_batch_size, runtime)
        facts |= {f"teacher_{key}": value for key, value in rows["teacher"].items()}
    if runtime.is_main:
        write_dev_results(args.output_dir, dev_sets, results, facts)
        print(results_table(f"{task.name}, dev", rows), flush=True)


def _predict(delivery: Delivery) -> None:
    for source in delivery.task.test:
        path = find_file(delivery.args.data_dir, source)
        if path is None:
            logger.warning("%s: no such file; there is no %s.tsv", source.file, source.name)
        else:
            _predict_file(delivery, path, source)


def _predict_file(delivery: Delivery, path: Path, source: Source) -> None:
    args, task = delivery.args, delivery.task
    dataset = delivery.cache.open(path, task, source, labelled=False)
    logits = predict_logits(delivery.model, dataset, args.eval_batch_size, delivery.runtime)
    if not delivery.runtime.is_main:
        return
    target = prediction_file(args.output_dir, source)
    if task.kind is TOKEN_LABELS:
        logits, labels = task.kind.answers(dataset, logits)
        tags, _ = task.kind.compare(task, logits, labels)
        write_tags(target, SentenceReader(path, task, need_tags=False, errors=args.errors), tags)
        logger.info("%s: the tags of %d sentences", target, len(tags))
        return
    reader = RowReader(*(path, task, source), need_label=False, keep_all=True, errors=args.errors)
    indices = [
        str(number) if reader.index_key is None else row.cells[reader.index_key]
        for number, row in enumerate(reader)
    ]
    write_predictions(target, indices, task.kind.cells(task, logits))
    logger.info("%s: %d predictions", target, len(indices))


def _benchmark(delivery: Delivery, teacher: TinyBertForSequenceClassification | None) -> None:
    args, runtime = delivery.args, delivery.runtime
    dataset = open_dev_sets(args.data_dir, delivery.task, delivery.cache)[0].dataset
    lengths = dataset.lengths(np.arange(len(dataset)))
    # As it would be deployed here: weights held in the precision that the machine computes in.
    freeze_teacher(delivery.model, runtime)
    if not args.compile:
        pack_linears(delivery.model)
    figures = [
        measure(model, lengths, name=name, directory=checkpoint.path, autocast=runtime.autocast)
        for model, name, checkpoint in (
            (delivery.model, "student", delivery.checkpoint),
            (teacher, "teacher", delivery.teacher),
        )
        if model is not None and checkpoint is not None
    ]
    write_json(args.output_dir / "benchmark.json", comparison(*figures))
    if trains(args):  # the model is this directory's own
        write_model_card(args.output_dir)
    print(comparison_table(*figures), flush=True)
