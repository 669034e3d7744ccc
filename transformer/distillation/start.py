"""How a student begins from its teacher: as copies of layers, or computed where it is narrower."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from transformer.configuration import BertConfig
from transformer.distillation.closed_form import (
    ClosedFormReport,
    check_closed_form,
    compute_student,
)
from transformer.distillation.layers import LayerPairs, layer_map
from transformer.files import UserError
from transformer.modeling import BertPreTrainedModel
from transformer.runtime.ranks import Runtime
from transformer.runtime.script import file_path
from transformer.tokenization import BertTokenizer
from transformer.training.batches import Batch, collate, pad_rows
from transformer.training.packed import PackedDataset

logger = logging.getLogger(__name__)

SAME_SHAPES = ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads")
BATCH_ROWS = 32  # texts that are computed together
LEAST_TOKENS = 1000


# Flags of `add_start_arguments` that decide the result of a run, beside the content of the text.
START_FLAGS = ("init_from_teacher", "init_tokens")


def add_start_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that let a student begin from its teacher."""
    group = parser.add_argument_group("start from the teacher")
    group.add_argument(
        "--init_from_teacher",
        metavar="LAYERS",
        help="begin from the teacher's layers: uniform, top, bottom or a list such as 2,4,6. A "
        "student of the teacher's widths gets copies; any other is computed from them by least "
        "squares on a little text, in seconds to a minute",
    )
    group.add_argument(
        "--init_text",
        type=file_path,
        metavar="FILE",
        help="text that a student is computed on, one sentence or paragraph a line (default: the "
        "data of the stage)",
    )
    group.add_argument(
        "--init_tokens",
        type=int,
        default=20_000,
        help="tokens of text that a student is computed on",
    )


def check_start_arguments(args: argparse.Namespace) -> None:
    """Find the mistakes in the flags of `add_start_arguments` that need no file to be read."""
    if args.init_tokens < LEAST_TOKENS:
        raise UserError(f"--init_tokens {args.init_tokens}: give {LEAST_TOKENS} or more")
    if args.init_text is not None:
        if not args.init_from_teacher:
            raise UserError("--init_text belongs to --init_from_teacher; give both or none")
        if not args.init_text.is_file():
            raise UserError(f"--init_text {args.init_text}: no such file")


def has_teachers_shapes(student: BertConfig, teacher: BertConfig) -> bool:
    """Say whether layers of the teacher can be copied into the student as they are."""
    return all(getattr(student, size) == getattr(teacher, size) for size in SAME_SHAPES)


def plan_start(mapping: str, student: BertConfig, teacher: BertConfig) -> LayerPairs:
    """Return which layer of the teacher each student layer begins from.

    Raises:
        UserError: the mapping does not fit, or no student of these sizes can be computed.
    """
    pairs = layer_map(student.num_hidden_layers, teacher.num_hidden_layers, mapping)
    if not has_teachers_shapes(student, teacher):
        if student.vocab_size != teacher.vocab_size:
            raise UserError(
                f"--init_from_teacher: vocab_size is {student.vocab_size} in the student and "
                f"{teacher.vocab_size} in the teacher; give both the same words"
            )
        check_closed_form(student, teacher, pairs)
    return pairs


def begin_from_teacher(
    student: BertPreTrainedModel,
    teacher: BertPreTrainedModel,
    mapping: str,
    batches: Sequence[Batch],
    runtime: Runtime,
) -> ClosedFormReport:
    """Give the student weights that it takes over from its teacher.

    Args:
        student, teacher: in fp32; both are moved to the device of the run.
        batches: text to compute a student of other widths on.

    Returns:
        what the student keeps of its teacher; nothing but the layers' numbers for copies.
    """
    pairs = plan_start(mapping, student.config, teacher.config)
    student.to(runtime.device), teacher.to(runtime.device)
    if has_teachers_shapes(student.config, teacher.config):
        copy_layers(student, teacher, pairs)
        return ClosedFormReport()
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    logger.info("computing the student from the teacher on %d tokens", tokens)
    text = [batch.to(runtime.device) for batch in batches]
    report = compute_student(student, teacher, pairs, text, autocast=runtime.autocast)
    if runtime.world_size > 1:
        # Ranks may add up in another order; all of them begin from the main one's weights.
        for value in student.state_dict().values():
            dist.broadcast(value, src=0)
    logger.info("%s", describe(report))
    return report


def describe(report: ClosedFormReport) -> str:
    """Say what a computed student keeps of its teacher; "" for copies."""
    if not report.explained:
        return ""
    shares = ", ".join(f"{m}: {share:.2f}" for m, share in report.explained.items())
    text = f"share of the teacher's variance that the student explains, by layer: {shares}"
    return text if report.logits is None else f"{text}; of its logits: {report.logits:.2f}"


def copy_layers(
    student: BertPreTrainedModel, teacher: BertPreTrainedModel, pairs: LayerPairs
) -> None:
    """Copy embeddings, the layers (m, g(m)), and pooler and classifier where both have one.

    What the architectures do not share stays as it is, and is said: position embeddings that the
    teacher lacks, tables of another width, a pooler with another activation.
    """
    for m, g in pairs:
        source = teacher.bert.encoder.layer[g - 1].state_dict()
        student.bert.encoder.layer[m - 1].load_state_dict(source)
    parts = ["bert.embeddings"]
    if student.bert.pooler is not None and type(student.bert.pooler) is type(teacher.bert.pooler):
        parts += ["bert.pooler", "classifier"]
    if getattr(student, "per_token", False):
        parts.append(student.head_name)
    others = dict(teacher.named_parameters())
    left = []
    with torch.no_grad():
        for name, target in student.named_parameters():
            if not name.startswith(tuple(parts)):
                continue
            source = others.get(name)
            if source is None or _row_shape(name, source) != _row_shape(name, target):
                left.append(name.removeprefix("bert."))
                continue
            rows = min(len(target), len(source))  # of position embeddings, as many as both have
            target[:rows] = source[:rows]
    which = ", which the teacher lacks or has in another width"
    logger.info(
        "student layers %s are copies of teacher layers %s; so are %s%s",
        ", ".join(str(m) for m, _ in pairs),
        ", ".join(str(g) for _, g in pairs),
        " and ".join(part.removeprefix("bert.") for part in parts),
        f", but for {', '.join(left)}{which}" if left else "",
    )


def _row_shape(name: str, tensor: torch.Tensor) -> torch.Size:
    """Return what must be equal to copy a tensor: of position embeddings, not how many."""
    return tensor.shape[1:] if "position_embeddings" in name else tensor.shape


# ------------------------------------------------------------------------------------- the text


def text_of(
    args: argparse.Namespace, dataset: PackedDataset, tokenizer: BertTokenizer
) -> list[Batch]:
    """Return the text to compute a student on: --init_text, else examples from all over the data.

    The same for any number of ranks.
    """
    if args.init_text is None:
        return _examples(dataset, args.init_tokens, tokenizer.pad_id)
    return text_lines(args.init_text, args.init_tokens, args.max_seq_length, tokenizer)


def _examples(dataset: PackedDataset, tokens: int, pad_id: int) -> list[Batch]:
    wanted = -(-tokens * len(dataset) // max(dataset.tokens, 1))
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(wanted, len(dataset))).astype(np.int64))
    chosen = chosen[np.argsort(dataset.lengths(chosen), kind="stable")]
    return [
        collate(dataset, chosen[start : start + BATCH_ROWS], pad_token_id=pad_id)
        for start in range(0, len(chosen), BATCH_ROWS)
    ]


def text_lines(
    path: Path, tokens: int, max_seq_length: int, tokenizer: BertTokenizer
) -> list[Batch]:
    """Return the first lines of --init_text, as single sequences, in batches of like lengths.

    Args:
        tokens: as many of the lines as hold so many tokens.

    Raises:
        UserError: the whole text is too short.
    """
    rows: list[list[int]] = []
    count = 0
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            ids = tokenizer.encode(line)[: max_seq_length - 2]
            if ids:
                rows.append([tokenizer.cls_id, *ids, tokenizer.sep_id])
                count += len(rows[-1])
            if count >= tokens:
                break
    if count < LEAST_TOKENS:
        raise UserError(
            f"--init_text {path} holds {count} tokens; {LEAST_TOKENS} or more are needed"
        )
    rows.sort(key=len)
    batches = []
    for start in range(0, len(rows), BATCH_ROWS):
        chosen = rows[start : start + BATCH_ROWS]
        lengths = [len(row) for row in chosen]  # single sequences: all of segment 0
        batches.append(pad_rows(chosen, lengths, max(lengths), tokenizer.pad_id))
    return batches
