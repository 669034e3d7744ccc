"""Augment the training set of a task by Algorithm 1 of the TinyBERT paper.

    python data_augmentation.py --pretrained_bert_model BERT_DIR --glove_embs glove.6B.300d.txt \
        --glue_dir GLUE_DIR --task_name SST-2
    python data_augmentation.py --recombine 2 --data_dir GLUE_DIR/STS-B --task_name STS-B
    torchrun --nproc_per_node=N data_augmentation.py ...    the same file, sooner (in bf16: with
                                                            as many threads a process)

Writes GLUE_DIR/TASK/train_aug.tsv: every row, followed by up to N variants of each of its texts,
or (--recombine) by rows that are made of it and others without any model. BERT_DIR is a
pre-trained BERT with its masked-LM head, not a fine-tuned one.
"""

from __future__ import annotations

if __name__ == "__main__":
    import transformer.runtime.interrupt  # noqa: F401 - Ctrl-C during the imports below
    from transformer.tasks.columns import check_columns

    check_columns(only_training=True)  # before torch is imported, which takes seconds

import argparse
import codecs
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch

from transformer.augmentation.algorithm import AugmentationConfig, Augmenter
from transformer.augmentation.answered import AnsweredRows
from transformer.augmentation.glove import find_source, load_word_vectors, nearest_words
from transformer.augmentation.masked_lm import MaskedLM
from transformer.augmentation.parts import Parts, beside
from transformer.augmentation.rows import (
    Reader,
    augment_block,
    merge_notes,
    read_blocks,
    side_by_side,
    summarise,
    survey_rows,
)
from transformer.augmentation.tagged import TaggedRows
from transformer.augmentation.words import STOP_WORDS
from transformer.checkpoint.directory import Checkpoint
from transformer.file_utils import model_path
from transformer.files import UserError, file_digest, file_lock
from transformer.modeling import BertForMaskedLM
from transformer.packed_linear import pack_linears
from transformer.runtime.fingerprint import Fingerprint, fingerprint, sampled_digest
from transformer.runtime.output_dir import RunLock, restarted
from transformer.runtime.progress import Progress, printable, spent
from transformer.runtime.ranks import Runtime, add_runtime_arguments, close_runtime, setup_runtime
from transformer.runtime.script import ScriptParser, file_path, run_script
from transformer.tasks.files import RowReader, require_file
from transformer.tasks.table import TASK_FLAGS, Task, add_task_arguments, resolve_task
from transformer.tokenization import BasicTokenizer

logger = logging.getLogger("data_augmentation")

LEFT_OUT = "left_out.tsv"  # ending of the copy of the rows that could not be used
LIMITS = {
    "N": (1, 10_000),
    "M": (1, 10_000),
    "batch_size": (1, 1_000_000),
    "glove_words": (0, 10**9),
}
MIN_LENGTH = 8  # of the masked LM's input: room for a window in either context
# Flags that decide the output, beside the content of what is read.
DECISIVE = (
    *("N", "M", "p", "mlm_context", "glove_only", "mlm_only", "glove_words", "original_spacing"),
    *("do_lower_case", "max_seq_length", "batch_size", "seed"),
    *("recombine", "swap_entities", *TASK_FLAGS),
)


EXAMPLES = """\
examples:
  python data_augmentation.py --pretrained_bert_model bert-base-uncased \\
      --glove_embs glove.6B.300d.txt --data_dir glue/SST-2 --task_name SST-2
  python data_augmentation.py --recombine 2 --data_dir my_data --task_name my_task \\
      --text_columns premise hypothesis --label_column label

The rows are written to train_aug.tsv beside the training file (train_aug.csv for a .csv and so on),
or to --output. task_distill.py learns from them with --aug_train."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = ScriptParser(__doc__, epilog=EXAMPLES)
    files = parser.add_argument_group("files")
    add = files.add_argument
    add("--pretrained_bert_model", help="directory, hub name or address of a BERT with MLM head")
    add(
        "--glove_embs",
        type=file_path,
        help="GloVe or word2vec text, also .gz and ARCHIVE.zip[/FILE]",
    )
    add("--data_dir", type=file_path, help="directory of the task's files")
    add(
        "--glue_dir",
        type=file_path,
        help="holds one directory for each task, in place of --data_dir",
    )
    add(
        "--output",
        type=file_path,
        help="file to write; default: train_aug beside the training file",
    )
    add("--resume", action="store_true", help="go on with a run that was killed")
    add(
        *("--overwrite_output", "--overwrite_output_dir"),
        action="store_true",
        help="replace the output, and an unfinished one",
    )
    add("--cache_dir", default="", help="directory for downloads and parsed word vectors")
    add_task_arguments(parser)
    add_method_arguments(parser)
    add_runtime_arguments(parser)
    return parser


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how rows are made of rows."""
    add = parser.add_argument_group("method").add_argument
    add("--N", type=int, help="variants of each text (default: 10 to 30, by the task)")
    add("--M", type=int, default=15, help="candidates for each word")
    add("--p", type=float, default=0.4, help="probability to replace a word")
    add(
        "--mlm_context",
        choices=("masked", "original"),
        default="masked",
        help="masked: the paper's; original: shown the unmasked text too, as the first "
        "TinyBERT code did",
    )
    add(
        "--recombine",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="rows to add for each row without a model: a pair swapped, then recombined with the "
        "second text of another row; a text without some words, with words swapped, joined with "
        "another. 2 suits pairs. Alone, it needs neither BERT nor word vectors",
    )
    add(
        "--swap_entities",
        type=float,
        default=0.0,
        help="probability to replace a named entity in a variant by another of its type",
    )
    add("--glove_only", action="store_true", help="take word vectors for all words; no masked LM")
    add(
        "--mlm_only",
        action="store_true",
        help="leave words of several pieces alone; no word vectors",
    )
    add(
        "--glove_words",
        type=int,
        default=100_000,
        help="first lines of --glove_embs to read (0: all)",
    )
    add("--stop_words", type=file_path, help="words to leave alone, one a line (default: built in)")
    add(
        "--original_spacing",
        action="store_true",
        help="write variants as tokens and blanks, lower-cased",
    )
    add(
        "--do_lower_case",
        action=argparse.BooleanOptionalAction,
        help="lower-case text; default: what the model's files say",
    )
    add("--max_seq_length", type=int, help="pieces round a masked word that are read")
    add("--batch_size", type=int, default=128, help="masked copies that are computed together")


def check_args(args: argparse.Namespace) -> None:
    """Find the mistakes that need no file.

    Raises:
        UserError: a number out of its range, a flag missing or one too many.
    """
    for name, (least, most) in LIMITS.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} {value}: give a number from {least} to {most:,}")
    if args.max_seq_length is not None and args.max_seq_length < MIN_LENGTH:
        raise UserError(f"--max_seq_length {args.max_seq_length}: give at least {MIN_LENGTH}")
    swap_is_wrong, p_is_wrong = not 0 <= args.swap_entities <= 1, not 0 < args.p <= 1
    if args.stop_words and not args.stop_words.is_file():
        raise UserError(f"--stop_words {args.stop_words}: no such file")
    if not 0 <= args.recombine <= 100:
        raise UserError(f"--recombine {args.recombine}: give a share from 0 to 100")
    alone = only_recombines(args)
    no_model = not (alone or args.glove_only or args.pretrained_bert_model)
    no_vectors = not (alone or args.mlm_only or args.glove_embs)
    for wrong, message in (
        (p_is_wrong, f"--p {args.p}: a probability above 0 and up to 1"),
        (swap_is_wrong, f"--swap_entities {args.swap_entities}: a probability from 0 to 1"),
        (args.glove_only and args.mlm_only, "--glove_only and --mlm_only: give one of them"),
        (args.data_dir and args.glue_dir, "--data_dir and --glue_dir: give one of them"),
        (not (args.data_dir or args.glue_dir), "--data_dir is needed: the task's directory"),
        (alone and args.N, "--N: replacing words needs --pretrained_bert_model or --glove_embs"),
        (args.resume and args.overwrite_output, "--resume and --overwrite_output: give one"),
        (no_model, "--pretrained_bert_model is needed, or --glove_only to do without"),
        (no_vectors, "--glove_embs is needed, or --mlm_only to do without"),
        (args.glove_embs and args.mlm_only, "--mlm_only reads no --glove_embs; leave one out"),
    ):
        if wrong:
            raise UserError(message)
    if args.glove_embs:
        find_source(args.glove_embs)


def only_recombines(args: argparse.Namespace) -> bool:
    """Say whether no word is to be replaced, because nothing is given to replace it from."""
    return bool(args.recombine) and not (args.pretrained_bert_model or args.glove_embs)


def open_input(args: argparse.Namespace, task: Task) -> Reader:
    """Return the reader of the task's training file, and set `args.output` if not given.

    Raises:
        UserError: no such directory or file, an output that cannot be one, or as `open_rows`.
    """
    directory = args.data_dir or args.glue_dir / task.directory
    if not directory.is_dir():
        flag = "--data_dir" if args.data_dir else "--glue_dir"
        raise UserError(f"{flag}: {directory} is not a directory")
    path = require_file(directory, task.train, "augmentation")
    reader = open_rows(args, path, task)
    if args.output is None:
        args.output = reader.path.with_name(f"{reader.path.stem}_aug{reader.path.suffix}")
    if args.output.resolve() == reader.path.resolve():
        raise UserError(f"--output {args.output} is the training file itself")
    if args.output.is_dir():
        raise UserError(f"--output {args.output} is a directory; give a file")
    if not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: no such directory")
    return reader


def open_rows(args: argparse.Namespace, path: Path, task: Task) -> Reader:
    """Return the reader of a file by what the task reads.

    Raises:
        UserError: a flag that such a file has no use for, or the file cannot be read.
    """
    reads = task.kind.reads
    if args.swap_entities and reads != "sentences":
        raise UserError(f"--swap_entities: {task.name} has no entities")
    if reads == "rows":
        return RowReader(path, task, task.train, errors=args.errors)
    for flag in ("original_spacing", "recombine"):
        if getattr(args, flag):
            raise UserError(f"--{flag}: {task.name} has labels within its texts, which would part")
    if reads == "questions":
        return AnsweredRows(path, task, errors=args.errors)
    return TaggedRows(path, task, errors=args.errors, swap=args.swap_entities)


def load_augmenter(
    args: argparse.Namespace, checkpoint: Checkpoint | None, runtime: Runtime
) -> Augmenter:
    """Load the masked LM and its tokenizer; word vectors are added later.

    Raises:
        UserError: the model has no masked-LM head, or --stop_words is not UTF-8.
    """
    stop_words = STOP_WORDS
    if args.stop_words:
        try:
            lines = args.stop_words.read_text(encoding="utf-8-sig").lower().split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"--stop_words {args.stop_words}: not UTF-8; convert it") from error
        stop_words = frozenset(line.strip() for line in lines)
    config = AugmentationConfig(args.N, args.M, args.p, args.original_spacing)
    if checkpoint is None:
        return Augmenter(
            config, BasicTokenizer(args.do_lower_case is not False), stop_words=stop_words
        )
    tokenizer = checkpoint.tokenizer
    if args.glove_only:
        return Augmenter(config, tokenizer.basic_tokenizer, stop_words=stop_words)
    try:
        model, report = checkpoint.load(BertForMaskedLM, require=("encoder", "mlm"))
    except UserError as error:
        raise UserError(f"--pretrained_bert_model: {error}; --glove_only does without") from error
    report.log()
    masked_lm = MaskedLM(
        # Held in the precision to compute in: casting at each call would cost more than it saves.
        pack_linears(model.eval().to(runtime.device, runtime.dtype)),
        tokenizer,
        candidates=args.M,
        original_context=args.mlm_context == "original",
        max_seq_length=args.max_seq_length,
        batch_size=args.batch_size,
    )
    return Augmenter(config, tokenizer.basic_tokenizer, masked_lm, stop_words=stop_words)


def open_checkpoint(args: argparse.Namespace) -> Checkpoint | None:
    """Find the masked LM, or the BERT whose tokenizer is used; None without one."""
    if not args.pretrained_bert_model:
        return None
    return Checkpoint(model_path("pretrained_bert_model", args), args.do_lower_case)


def threads_matter(args: argparse.Namespace, runtime: Runtime) -> bool:
    """Say whether the output depends on the number of threads a process.

    How many threads share a sum decides its rounding. In bf16 on a CPU that turns the order of
    candidates that are almost equally likely; fp32 tells them apart.
    """
    has_model = bool(args.pretrained_bert_model) and not args.glove_only
    return has_model and runtime.device.type == "cpu" and runtime.dtype != torch.float32


def what_decides(
    args: argparse.Namespace, runtime: Runtime, source: Path, checkpoint: Checkpoint | None
) -> Fingerprint:
    """Return whatever decides the output; a run may only be resumed by its like."""
    return fingerprint(
        args,
        DECISIVE,
        precision=runtime.dtype,
        device=runtime.device.type,
        threads=torch.get_num_threads() if threads_matter(args, runtime) else "any number",
        training_file=file_digest(source),
        model=checkpoint and checkpoint.fingerprint,
        word_vectors=args.glove_embs and sampled_digest(find_source(args.glove_embs)),
        stop_words=args.stop_words and file_digest(args.stop_words),
    )


def plan_blocks(
    args: argparse.Namespace,
    parts: Parts,
    reader: Reader,
    augmenter: Augmenter,
    device: torch.device,
) -> dict[str, Any]:
    """Read the training file and the word vectors; note neighbours of words, return the blocks.

    Raises:
        UserError: too few rows can be used, or none.
    """
    vectors = None
    if args.glove_embs:
        vectors = load_word_vectors(args.glove_embs, args.glove_words, args.cache_dir or None)
    survey = survey_rows(reader, augmenter, vectors, beside(args.output, LEFT_OUT))
    logger.info("%s: %s", reader.path, reader.check_left_out(args.allow_short))
    if not sum(survey.blocks):
        raise UserError(f"{reader.path}: no row to augment")
    if vectors is not None:
        parts.save_note("neighbours", nearest_words(vectors, sorted(survey.words), args.M, device))
        logger.info("nearest words found for %d words", len(survey.words))
    plan = {"blocks": survey.blocks, "rows_left_out": survey.rows_left_out}
    parts.save_note("plan", plan)
    return plan


def augment(
    args: argparse.Namespace,
    parts: Parts,
    sizes: list[int],
    reader: Reader,
    augmenter: Augmenter,
    runtime: Runtime,
) -> None:
    """Make this process's share of the blocks that are not finished yet."""
    finished, started, sentences = parts.finished(), time.monotonic(), 0
    with Progress(
        sum(sizes),
        description="augment",
        unit="rows",
        initial=sum(sizes[number] for number in finished),
        enabled=runtime.is_main,
    ) as progress:
        for number, block in enumerate(read_blocks(reader)):
            if number % runtime.world_size != runtime.rank or number in finished:
                continue
            result = augment_block(block, reader, augmenter, args.seed, args.recombine)
            note = {"counts": result.counts, "examples": result.examples}
            parts.save_block(number, result.lines, note)
            if runtime.is_main:
                new = parts.finished() - finished  # those of the other processes too
                finished |= new
                rows = sum(sizes[block] for block in new)
                sentences += rows * len(reader.text_keys)
                rate = sentences / (time.monotonic() - started)
                progress.update(rows, **{"sentences/s": rate})


def finish(args: argparse.Namespace, parts: Parts, plan: dict[str, Any], reader: Reader) -> None:
    """Join the blocks of all processes, keep the arguments, tell what was made."""
    sizes = plan["blocks"]
    parts.wait_for(len(sizes))
    with open(reader.path, "rb") as file:
        has_mark = file.read(3) == codecs.BOM_UTF8
    parts.join(("\ufeff" if has_mark else "") + reader.format_header(), len(sizes))
    counts, examples = merge_notes(map(parts.block_note, range(len(sizes))))
    parts.close({"args": {k: str(v) for k, v in vars(args).items()}, "counts": counts})
    print("\n".join(summarise(counts, args.N)))
    if plan["rows_left_out"]:
        report = beside(args.output, LEFT_OUT)
        print(f"{plan['rows_left_out']:,} rows left out, copied to {report}")
    if examples:
        print("\nSome of them, original and augmented:\n")
    pairs = side_by_side((original, variant) for _, original, variant in examples)
    print(printable("\n".join(pairs)))
    logger.info("written: %s; took %s", args.output, spent())


def run(
    args: argparse.Namespace,
    parts: Parts,
    reader: Reader,
    checkpoint: Checkpoint | None,
    runtime: Runtime,
) -> None:
    """Make what is missing of the output."""
    augmenter = load_augmenter(args, checkpoint, runtime)
    if runtime.is_main:
        parts.begin(resume=args.resume or restarted())
    runtime.barrier()
    # One process plans; a long reading must not make the others give up waiting.
    with file_lock(parts.directory / "lock", "reading the training file and the word vectors"):
        plan = parts.note("plan") or plan_blocks(args, parts, reader, augmenter, runtime.device)
    if runtime.is_main:
        parts.settle()
    augmenter.neighbours = parts.note("neighbours") or {}
    augment(args, parts, plan["blocks"], reader, augmenter, runtime)
    if runtime.is_main:
        finish(args, parts, plan, reader)


def main(argv: list[str] | None = None) -> None:
    """Augment a training set; see the head of this file."""
    args = build_parser().parse_args(argv)
    check_args(args)
    task = resolve_task(args)
    reader = open_input(args, task)
    inherited = args.N is None and not only_recombines(args)
    args.N = 0 if only_recombines(args) else args.N or task.augmentations
    runtime = setup_runtime(args)
    if inherited:
        logger.info("--N %d, the default of %s", args.N, task.name)
    if threads_matter(args, runtime):
        logger.info(
            "in %s the output depends on the number of threads a process, which is %d "
            "(OMP_NUM_THREADS); --precision fp32 writes the same with any number, but is slower",
            *(str(runtime.dtype).removeprefix("torch."), torch.get_num_threads()),
        )
    checkpoint = open_checkpoint(args)
    parts = Parts(args.output, what_decides(args, runtime, reader.path, checkpoint))
    lock = RunLock(args.output.parent, f"--output {args.output}", args.output.name)
    resume, overwrite = args.resume or restarted(), args.overwrite_output
    try:
        runtime.on_main(lock.take)
        if runtime.on_main(lambda: parts.is_needed(resume=resume, overwrite=overwrite)):
            run(args, parts, reader, checkpoint, runtime)
        else:
            logger.info("%s is complete; nothing to do", args.output)
    finally:
        if lock.held:
            parts.undo_plan()
            lock.release(remove=True)
    close_runtime(runtime)


if __name__ == "__main__":
    sys.exit(run_script(main))
