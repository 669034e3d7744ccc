"""Turn a text corpus into training examples for general distillation.

    python pregenerate_training_data.py --train_corpus corpus.txt --bert_model BERT_DIR \\
        --output_dir pregenerated --num_workers 8

The corpus is tokenised once into a packed file; then every epoch is sampled from it anew and
written as epoch_N.json (one example a line) with epoch_N_metrics.json beside it. Memory does not
grow with the corpus, the number of workers does not change a byte of the result, and a run that
was killed goes on with --resume.
"""

from __future__ import annotations

if __name__ == "__main__":
    import transformer.runtime.interrupt  # noqa: F401 - Ctrl-C during the imports below

import argparse
import logging
import os
import sys
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import IO

from transformer.corpus.blocks import Corpus, Survey, find_corpus_files
from transformer.corpus.instances import InstanceSampler, InstanceSettings, PartWriter, TokenTable
from transformer.corpus.run import (
    PregenerationRun,
    check_space,
    estimate_sizes,
    full_disk_explained,
)
from transformer.corpus.token_store import PART_TOKENS, StoreState, TokenStore, TokenStoreWriter
from transformer.corpus.tokens import BlockTokenizer, token_dtype
from transformer.file_utils import told_with, upload
from transformer.files import UserError
from transformer.runtime.allocation import reuse_freed_memory
from transformer.runtime.fingerprint import fingerprint
from transformer.runtime.output_dir import run_directory
from transformer.runtime.parallel import ordered_map
from transformer.runtime.progress import Progress, closing_summary, setup_logging
from transformer.runtime.script import (
    ScriptParser,
    file_path,
    model_name,
    optional_path,
    run_script,
    seed_number,
)
from transformer.tokenization import BertTokenizer

logger = logging.getLogger("pregenerate")

# Flags that decide what is written, beside the content of corpus and vocabulary.
DECISIVE = (
    *("max_seq_len", "short_seq_prob", "masked_lm_prob", "max_predictions_per_seq"),
    *("do_whole_word_mask", "one_seq", "seed", "split_sentences", "errors"),
)

# With more long lines than this share, the corpus is hardly one sentence a line.
SUSPICIOUS_SHARE = 0.02


EXAMPLES = """\
examples:
  python pregenerate_training_data.py --train_corpus corpus.txt \\
      --bert_model bert-base-uncased --output_dir pregenerated
  python pregenerate_training_data.py --train_corpus "wiki/*.gz" --split_sentences \\
      --bert_model bert-base-uncased --epochs_to_generate 3 --num_workers 8 \\
      --output_dir pregenerated

OUTPUT_DIR gets epoch_0.json and so on, one example a line, each with epoch_0_metrics.json beside
it. general_distill.py goes on with them: --pregenerated_data OUTPUT_DIR."""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = ScriptParser(__doc__, epilog=EXAMPLES)
    add = parser.add_argument_group("data").add_argument
    corpus_help = (
        "files, quoted globs, or - for standard input; UTF-8 text (one sentence a line, blank line "
        "between documents) or WikiExtractor's --json lines, plain or .gz"
    )
    add("--train_corpus", nargs="+", required=True, help=corpus_help)
    add("--output_dir", type=file_path, required=True, help="directory for epoch_N.json")
    add("--split_sentences", action="store_true", help="lines are paragraphs: split them")
    errors_help = "bytes not in UTF-8: stop and name the line, drop the bytes, or drop the line"
    add("--errors", choices=["strict", "replace", "skip"], default="strict", help=errors_help)
    add("--data_url", default="", help="s3://bucket/prefix or directory for a copy")
    add = parser.add_argument_group("vocabulary").add_argument
    add(
        "--bert_model", type=model_name, required=True, help="directory or name with the vocabulary"
    )
    case_help = "lower-case the text; without the flag as the vocabulary wants it"
    add("--do_lower_case", action=argparse.BooleanOptionalAction, default=None, help=case_help)
    add = parser.add_argument_group("examples").add_argument
    add("--epochs_to_generate", type=int, default=3, help="number of epoch files")
    add("--max_seq_len", type=int, default=128, help="limit in tokens, special ones included")
    add("--short_seq_prob", type=float, default=0.1, help="share of documents in short sequences")
    add("--masked_lm_prob", type=float, default=0.0, help="share of tokens to mask; 0 masks none")
    add("--max_predictions_per_seq", type=int, default=20, help="most masked tokens a sequence")
    add("--do_whole_word_mask", action="store_true", help="mask all pieces of a word together")
    add("--one_seq", action="store_true", help="single sequences, no next-sentence pairs")
    add("--seed", type=seed_number, default=42, help="seed of everything random")
    add = parser.add_argument_group("runtime").add_argument
    add("--num_workers", type=int, default=1, help="worker processes")
    add(
        "--reduce_memory",
        action="store_true",
        help="shorter parts and fewer of them in memory: slower with many workers",
    )
    add(
        "--tmp_dir",
        type=optional_path,
        default=None,
        help="directory for the packed tokens; default: output_dir",
    )
    add("--resume", action="store_true", help="go on with the interrupted run in output_dir")
    add("--overwrite_output_dir", action="store_true", help="replace the run in output_dir")
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Find the mistakes that the values themselves show."""
    shortest = 3 if args.one_seq else 5
    limits = {
        "max_seq_len": (shortest, 1 << 15),
        "epochs_to_generate": (1, 1 << 20),
        "max_predictions_per_seq": (1, 1 << 15),
        "num_workers": (1, 1 << 10),
        "short_seq_prob": (0.0, 1.0),
        "masked_lm_prob": (0.0, 1.0),
    }
    for name, (least, most) in limits.items():
        value = getattr(args, name)
        if not least <= value <= most:
            raise UserError(f"--{name} {value}: give a number from {least} to {most}")
    if args.do_whole_word_mask and args.masked_lm_prob == 0:
        logger.warning("--do_whole_word_mask does nothing: --masked_lm_prob is 0")


@dataclass(frozen=True)
class Inputs:
    """What the examples are made from; a pipe has no survey, because it can be read only once."""

    corpus: Corpus
    survey: Survey | None
    tokenizer: BertTokenizer
    table: TokenTable
    settings: InstanceSettings


def main(argv: list[str] | None = None) -> None:
    """Check everything, tokenise the corpus, write the epochs."""
    args = build_parser().parse_args(argv)
    setup_logging()
    check_args(args)
    with run_directory(args, ("train_corpus", "bert_model")) as directory:
        inputs = open_inputs(args)
        run = open_run(args, inputs)
        directory.begin(args)
        if not args.resume:
            run.remove_store()
        if args.data_url:
            # An address that cannot be written is told now, not after hours.
            upload(args.output_dir / "args.json", args.data_url)
        with full_disk_explained(run):
            generate(args, run, inputs)
        if args.data_url:
            run.upload_epochs(args.data_url)
    summarize(args, run)


def open_inputs(args: argparse.Namespace) -> Inputs:
    """Open corpus and vocabulary, and read the corpus once for mistakes in it.

    Raises:
        UserError: no such file or vocabulary, no text, a single document for pairs, or (strict)
            bytes that are not UTF-8.
    """
    corpus = Corpus(tuple(find_corpus_files(args.train_corpus)))
    with told_with("bert_model"):
        tokenizer = BertTokenizer.from_pretrained(args.bert_model, do_lower_case=args.do_lower_case)
    survey = None
    if corpus.can_be_read_twice:
        survey = corpus.survey(args.errors)
        check_documents(args, 2 if survey.has_two_documents else int(survey.has_text))
    settings = InstanceSettings(
        max_seq_len=args.max_seq_len,
        short_seq_prob=args.short_seq_prob,
        masked_lm_prob=args.masked_lm_prob,
        max_predictions_per_seq=args.max_predictions_per_seq,
        whole_word_mask=args.do_whole_word_mask,
        one_seq=args.one_seq,
        seed=args.seed,
    )
    return Inputs(corpus, survey, tokenizer, TokenTable(tokenizer.vocab), settings)


def check_documents(args: argparse.Namespace, documents: int) -> None:
    """Refuse a corpus without text, or of one document where pairs are wanted."""
    names = " ".join(args.train_corpus)
    if documents == 0:
        raise UserError(f"--train_corpus {names} holds no text")
    if documents == 1 and not args.one_seq:
        raise UserError(
            f"--train_corpus {names} holds 1 document; next-sentence pairs need at least 2. "
            "Separate documents with a blank line, or give --one_seq"
        )


def open_run(args: argparse.Namespace, inputs: Inputs) -> PregenerationRun:
    """Begin a run, or go on with the one in output_dir; compare its size with the free space.

    Raises:
        UserError: the run in output_dir was started in another way, or there is too little space.
    """
    decides = fingerprint(
        args,
        DECISIVE,
        tokenizer=inputs.tokenizer.fingerprint,
        train_corpus=inputs.survey.fingerprint if inputs.survey else "a pipe",
    )
    run = PregenerationRun(args.output_dir, args.tmp_dir, decides)
    if args.resume:
        run.restore()
    if inputs.survey is not None:
        tokenize = BlockTokenizer(inputs.tokenizer, inputs.settings.piece_lengths, errors="skip")
        sizes = estimate_sizes(
            inputs.corpus, inputs.survey, tokenize, inputs.table, inputs.settings
        )
        check_space(run, args.epochs_to_generate, sizes)
    return run


def generate(args: argparse.Namespace, run: PregenerationRun, inputs: Inputs) -> None:
    """Write what is missing of the epochs."""
    if run.state.epoch < args.epochs_to_generate:
        reuse_freed_memory()
        store = tokenize_corpus(args, run, inputs)
        write_epochs(args, run, store, inputs)
    run.remove_store()
    run.save()


def tokenize_corpus(args: argparse.Namespace, run: PregenerationRun, inputs: Inputs) -> TokenStore:
    """Make the token store, or the rest of it, and open it.

    Raises:
        UserError: fewer documents than needed, known only now where the corpus is a pipe.
    """
    state = run.store_state()
    dtype = token_dtype(len(inputs.tokenizer.vocab))
    if not state.complete:
        if inputs.survey is None:
            # What was read from a pipe cannot be read again to find the place.
            state = StoreState()
        part_tokens = PART_TOKENS // 4 if args.reduce_memory else PART_TOKENS
        with closing(TokenStoreWriter(run.store_dir, dtype, state, part_tokens)) as writer:
            append_blocks(args, run, writer, inputs)
            run.state.store = writer.finish()
        run.save()
    check_documents(args, state.documents)
    return TokenStore.from_state(run.store_dir, dtype, state)


def append_blocks(
    args: argparse.Namespace, run: PregenerationRun, writer: TokenStoreWriter, inputs: Inputs
) -> None:
    """Tokenise the blocks that are not in the store yet."""
    pieces = inputs.settings.piece_lengths
    tokenize = BlockTokenizer(inputs.tokenizer, pieces, args.split_sentences, args.errors)
    done = writer.state.blocks
    blocks = islice(inputs.corpus.blocks(), done, None)
    total = inputs.survey.blocks if inputs.survey else None
    results = ordered_map(tokenize, blocks, args.num_workers, window=task_window(args))
    with (
        closing(results),
        Progress(total, description="tokenise", unit="blocks", initial=done) as progress,
    ):
        for block in results:
            writer.append(block)
            progress.update(tokens=writer.state.tokens, documents=writer.state.documents)
            if run.saving_is_due():
                run.state.store = writer.flush()
                run.save()


def write_epochs(
    args: argparse.Namespace, run: PregenerationRun, store: TokenStore, inputs: Inputs
) -> None:
    """Sample and write the epochs that are not there yet, part by part in order."""
    make_part = PartWriter(InstanceSampler(store, inputs.table, inputs.settings))
    parts = len(store.part_starts) - 1
    total = parts * args.epochs_to_generate
    done = run.state.epoch * parts + run.state.parts
    tasks = (divmod(number, parts) for number in range(done, total))
    results = ordered_map(make_part, tasks, args.num_workers, window=task_window(args))
    with (
        closing(results),
        Progress(total, description="write", unit="parts", initial=done) as progress,
    ):
        while run.state.epoch < args.epochs_to_generate:
            with run.open_partial() as file:
                for lines, instances in islice(results, parts - run.state.parts):
                    file.write(lines)
                    run.add_part(len(lines), instances)
                    progress.update(epoch=run.state.epoch, instances=run.state.instances)
                    if run.saving_is_due():
                        bring_to_disk(file)
                        run.save()
                bring_to_disk(file)
            run.save()
            run.publish_epoch(args.max_seq_len)
            if args.data_url:
                run.upload_epochs(args.data_url)


def task_window(args: argparse.Namespace) -> int:
    """Return how many tasks may be in memory, done or not."""
    return args.num_workers if args.reduce_memory else 2 * args.num_workers


def bring_to_disk(file: IO[bytes]) -> None:
    """Flush all that was written."""
    file.flush()
    os.fsync(file.fileno())


def summarize(args: argparse.Namespace, run: PregenerationRun) -> None:
    """Say what was read and written."""
    store = StoreState(**run.state.store)
    split = store.counts.get("lines split", 0)
    if split > SUSPICIOUS_SHARE * store.sentences and not args.split_sentences:
        logger.warning(
            "%d lines were longer than a sequence and were split at no particular place; if a "
            "line is a paragraph, give --split_sentences",
            split,
        )
    facts = [
        f"{store.documents} documents, {store.sentences} sentences, {store.tokens} tokens",
        *(f"{count} {what}" for what, count in store.counts.items() if count),
        f"{sum(run.state.instances_of_epoch)} instances in {run.state.epoch} epochs",
        f"{args.num_workers} worker processes",
    ]
    written = [
        (run.epoch_path(epoch), f"{instances} instances")
        for epoch, instances in enumerate(run.state.instances_of_epoch)
    ]
    closing_summary("pregenerated training data", written, facts)


if __name__ == "__main__":
    sys.exit(run_script(main))
