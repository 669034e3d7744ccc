"""What a job of task distillation reads: tokenizer, training set and dev sets, by its flags."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from transformer.data import PackedDataset
from transformer.evaluation import DevSet
from transformer.file_utils import UserError
from transformer.rows import find_file, require_file
from transformer.runtime import Runtime
from transformer.task_data import TokenCache, default_workers
from transformer.task_models import check_vocabularies
from transformer.tasks import Task
from transformer.tokenization import BertTokenizer

logger = logging.getLogger(__name__)


def read_tokenizer(
    args: argparse.Namespace, student_dir: Path, teacher_dir: Path | None
) -> BertTokenizer:
    """Return the student's tokenizer, the teacher's if the student has none yet; compare both."""

    def read(directory: Path | None) -> BertTokenizer | None:
        names = ("vocab.txt", "tokenizer.json")
        if directory is None or not any((directory / name).is_file() for name in names):
            return None
        return BertTokenizer.from_pretrained(directory, do_lower_case=args.do_lower_case)

    student, teacher = read(student_dir), read(teacher_dir)
    if student is not None and teacher is not None:
        check_vocabularies(student, teacher)
    tokenizer = student or teacher
    if tokenizer is None:
        raise UserError(f"{student_dir}: no vocab.txt; copy the vocabulary of its teacher there")
    return tokenizer


def token_cache(args: argparse.Namespace, tokenizer: BertTokenizer, runtime: Runtime) -> TokenCache:
    """Return the cache of tokenised data: beside the data, or where --cache_dir says."""
    directory = args.cache_dir
    if directory is None:
        # Data that cannot be written to is cached beside the output directory.
        place = args.data_dir if os.access(args.data_dir, os.W_OK) else args.output_dir.parent
        directory = place / ".cache"
    workers = args.num_workers or default_workers()
    return TokenCache(directory, tokenizer, args.max_seq_length, workers, runtime.is_main)


def open_dev_sets(data_dir: Path, task: Task, cache: TokenCache) -> list[DevSet]:
    """Return the tokenised dev sets; a sister of the first one may be missing."""
    first = require_file(data_dir, task.dev[0], "the evaluation")
    dev_sets = [DevSet("", cache.open(first, task, task.dev[0]))]
    for source in task.dev[1:]:
        path = find_file(data_dir, source)
        if path is None:
            logger.warning("%s: no such file; its scores are left out", data_dir / source.file)
        else:
            dev_sets.append(DevSet(source.name, cache.open(path, task, source)))
    return dev_sets


def open_training_set(args: argparse.Namespace, task: Task, cache: TokenCache) -> PackedDataset:
    """Return the tokenised training set, or the augmented one with its flags."""
    original = find_file(args.data_dir, task.train)
    if not args.aug_train:
        return cache.open(original, task, task.train)
    augmented = find_file(args.data_dir, task.train, suffix="_aug")
    return cache.open(augmented, task, task.train, originals=original, is_augmented=True)
