"""Choose the size of a student: what each width keeps of its teacher, and what each size costs.

    python -m transformer.distillation.suggest TEACHER --init_text corpus.txt
    python -m transformer.distillation.suggest TEACHER --init_text corpus.txt \\
        --hidden_size 192 --num_hidden_layers 3 --output_dir my_student

A computed student of width d sees the teacher's states in the d - 1 directions that hold most of
their variance, the same ones in all layers (step 1 of closed_form.py). Of layer g with covariance
C they keep tr(E'CE) / tr(C): what no projection of the student's states can bring back is lost.

That is the share of the text that the directions were found on. On other text those of a BERT of
width 384 kept less, in half its width: .12 less when found on 1,000 tokens, .06 on 4,000 (10 for
each coordinate), .03 on 12,000.
"""

from __future__ import annotations

if __name__ == "__main__":
    import transformer.runtime.interrupt  # noqa: F401 - Ctrl-C during the imports below

import argparse
import math
import sys
from collections.abc import Sequence

import torch

from transformer.checkpoint.config_file import config_text
from transformer.checkpoint.directory import Checkpoint
from transformer.configuration import BertConfig
from transformer.costs import count_parameters, sentence_flops
from transformer.distillation.closed_form import (
    Moments,
    joint_covariance,
    leading_directions,
    state_moments,
    variance_kept,
)
from transformer.distillation.start import LEAST_TOKENS, text_lines
from transformer.file_utils import cached_path, told_with
from transformer.files import UserError, atomic_write, check_new_directory
from transformer.modeling import TinyBertForPreTraining, TinyBertForSequenceClassification
from transformer.runtime.progress import setup_logging, table_lines
from transformer.runtime.script import ScriptParser, file_path, model_name, run_script

FRACTIONS = (1 / 8, 1 / 4, 1 / 3, 2 / 5, 1 / 2, 2 / 3, 3 / 4, 1)  # of the teacher's width
DIVISORS = (1, 2, 3, 4, 6)  # of the teacher's depth
KEPT_ENOUGH = 0.85  # of the variance, mean over layers: what is suggested keeps at least so much
TOKENS_A_COORDINATE = 10
LENGTH = 128  # tokens of the sentence whose arithmetic is compared, as in the paper


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = ScriptParser(__doc__, prog="python -m transformer.distillation.suggest")
    parser.add_argument("teacher", type=model_name, help="BERT directory, hub name or address")
    parser.add_argument(
        "--init_text",
        type=file_path,
        required=True,
        metavar="FILE",
        help="text like that which the student will meet, one sentence or paragraph a line",
    )
    parser.add_argument(
        "--init_tokens", type=int, default=20_000, help="tokens of that text to look at"
    )
    parser.add_argument("--max_seq_length", type=int, default=128, help="limit of a line in tokens")
    parser.add_argument("--hidden_size", type=int, help="width of the student (default: suggested)")
    parser.add_argument(
        "--num_hidden_layers",
        type=int,
        help="depth of the student (default: half the teacher's, or the next divisor)",
    )
    parser.add_argument(
        "--output_dir", type=file_path, help="new or empty directory for the student's config.json"
    )
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Raise UserError for the mistakes that need no model to be read."""
    if not args.init_text.is_file():
        raise UserError(f"--init_text {args.init_text}: no such file")
    if args.init_tokens < LEAST_TOKENS:
        raise UserError(f"--init_tokens {args.init_tokens}: give {LEAST_TOKENS} or more")
    if args.max_seq_length < 3:
        raise UserError(f"--max_seq_length {args.max_seq_length}: give 3 or more")
    if args.output_dir is not None:
        with told_with("output_dir"):
            check_new_directory(args.output_dir)


def check_sizes(args: argparse.Namespace, teacher: BertConfig) -> None:
    """Raise UserError unless a student of the sizes asked for can be computed."""
    heads, width = teacher.num_attention_heads, args.hidden_size
    if width is not None and (width < heads or width % heads):
        near = max(width // heads, 1) * heads
        raise UserError(
            f"--hidden_size {width}: give a multiple of the teacher's {heads} heads, such as "
            f"{near} or {near + heads}"
        )
    if args.num_hidden_layers is not None and args.num_hidden_layers < 1:
        raise UserError(f"--num_hidden_layers {args.num_hidden_layers}: give 1 or more")
    if args.max_seq_length > teacher.max_position_embeddings:
        raise UserError(
            f"--max_seq_length {args.max_seq_length}: the teacher has "
            f"{teacher.max_position_embeddings} positions; give at most so many"
        )


# --- sizes -------------------------------------------------------------------------------------


def widths_of(teacher: BertConfig) -> list[int]:
    """Return widths of students, rising: fractions of the teacher's that its heads divide.

    >>> widths_of(BertConfig(hidden_size=384))
    [48, 96, 132, 156, 192, 252, 288, 384]
    """
    heads = teacher.num_attention_heads
    multiples = (max(round(teacher.hidden_size * part / heads), 1) for part in FRACTIONS)
    return sorted({heads * multiple for multiple in multiples})


def depths_of(teacher: BertConfig) -> list[int]:
    """Return depths of students, falling: divisors of the teacher's, not below 2 layers.

    >>> depths_of(BertConfig())
    [12, 6, 4, 3, 2]
    """
    layers = teacher.num_hidden_layers
    found = [layers // part for part in DIVISORS if layers % part == 0 and layers // part >= 2]
    return found or [layers]


def student_config(teacher: BertConfig, width: int, layers: int) -> BertConfig:
    """Return a BERT with the teacher's words and heads, its inner width in proportion."""
    return BertConfig(
        vocab_size=teacher.vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=teacher.num_attention_heads,
        intermediate_size=max(round(width * teacher.intermediate_size / teacher.hidden_size), 1),
        hidden_act=teacher.hidden_act,
        hidden_dropout_prob=teacher.hidden_dropout_prob,
        attention_probs_dropout_prob=teacher.attention_probs_dropout_prob,
        max_position_embeddings=teacher.max_position_embeddings,
        type_vocab_size=teacher.type_vocab_size,
        layer_norm_eps=teacher.layer_norm_eps,
        pad_token_id=teacher.pad_token_id,
    )


def parameters(config: BertConfig) -> int:
    """Count the parameters of a classifier of these sizes."""
    with torch.device("meta"):  # shapes without values
        return count_parameters(TinyBertForSequenceClassification(config))[0]


def layer_list(student_layers: int, teacher_layers: int) -> str:
    """Return what --init_from_teacher takes for these depths.

    >>> layer_list(3, 6), layer_list(5, 12), layer_list(4, 2)
    ('uniform', '3,5,8,10,12', '1,1,2,2')
    """
    if teacher_layers % student_layers == 0:
        return "uniform"
    numbers = range(1, student_layers + 1)
    return ",".join(str(math.ceil(m * teacher_layers / student_layers)) for m in numbers)


# --- what is kept ------------------------------------------------------------------------------


def shares_of(layers: dict[int, Moments], widths: Sequence[int]) -> dict[int, dict[int, float]]:
    """Return what share of the variance students of these widths keep, by width and layer.

    Args:
        layers: moments of the teacher's states, by layer; 0 is the embeddings.
    """
    _, covariance = joint_covariance(layers.values())
    directions = leading_directions(covariance, len(covariance))
    kept = {}
    for width in widths:
        rank = min(width - 1, len(covariance))  # LayerNorm takes a direction away
        kept[width] = {g: variance_kept(m, directions[:, -rank:]) for g, m in layers.items()}
    return kept


def mean(shares: dict[int, float]) -> float:
    """Return the mean of shares over layers."""
    return sum(shares.values()) / len(shares)


def table(teacher: BertConfig, kept: dict[int, dict[int, float]]) -> str:
    """Return one row a width: what it keeps, and what it costs at each depth."""
    depths = depths_of(teacher)
    lines = [["width", "kept, mean", "least (layer)", *(f"{depth} layers" for depth in depths)]]
    for width, shares in kept.items():
        least = min(shares, key=shares.get)
        costs = (cost(student_config(teacher, width, depth), teacher) for depth in depths)
        lines.append([str(width), f"{mean(shares):.3f}", f"{shares[least]:.3f} ({least})", *costs])
    return "\n".join(table_lines(lines, names=0))


def cost(student: BertConfig, teacher: BertConfig) -> str:
    """Return parameters, bytes in fp32, and how many times less arithmetic the student needs."""
    count = parameters(student)
    fewer = sentence_flops(teacher, LENGTH) / sentence_flops(student, LENGTH)
    return f"{count / 1e6:.1f}M {4 * count / 1e6:.0f}MB {fewer:.1f}x"


def main(argv: Sequence[str] | None = None) -> None:
    """Print what each width keeps and what each size costs; suggest one and write it."""
    args = build_parser().parse_args(argv)
    check_args(args)
    setup_logging()
    checkpoint = Checkpoint(cached_path(args.teacher))
    config = checkpoint.config
    check_sizes(args, config)
    checkpoint.check(TinyBertForPreTraining, config_changes={"fit_size": 0})
    batches = text_lines(
        args.init_text, args.init_tokens, args.max_seq_length, checkpoint.tokenizer
    )
    teacher, _ = checkpoint.load(TinyBertForPreTraining, config_changes={"fit_size": 0})
    every = range(config.num_hidden_layers + 1)
    moments = state_moments(teacher.eval().bert, batches, every)
    widths = widths_of(config)
    if args.hidden_size:
        widths = sorted({*widths, args.hidden_size})
    kept = shares_of(moments, widths)
    show(args, config, kept, int(moments[0].count))
    finish(args, config, kept)


def show(
    args: argparse.Namespace, teacher: BertConfig, kept: dict[int, dict[int, float]], tokens: int
) -> None:
    """Print the table, with what its columns are."""
    width, count = teacher.hidden_size, parameters(teacher)
    print(
        f"{args.teacher}: {teacher.num_hidden_layers} layers of {width}, "
        f"{teacher.num_attention_heads} heads, {count / 1e6:.1f}M parameters; "
        f"{tokens:,} tokens of {args.init_text}"
    )
    wanted = TOKENS_A_COORDINATE * width
    warning = "WARNING: " if tokens < wanted else ""
    print(f"{warning}text of fewer than about {wanted:,} tokens overstates what is kept")
    print("kept: share of the variance of the teacher's states, of which layer 0 is the embeddings")
    print(f"layers: parameters, bytes in fp32, times less arithmetic ({LENGTH} tokens)\n")
    print(table(teacher, kept))


def finish(
    args: argparse.Namespace, teacher: BertConfig, kept: dict[int, dict[int, float]]
) -> None:
    """Print the suggested student and how to make it; write its config.json if asked to."""
    enough = (width for width, shares in kept.items() if mean(shares) >= KEPT_ENOUGH)
    width = args.hidden_size or next(enough, max(kept))
    depths = depths_of(teacher)
    layers = args.num_hidden_layers or depths[min(1, len(depths) - 1)]
    student = student_config(teacher, width, layers)
    chosen = "your choice" if args.hidden_size else "a beginning"
    print(
        f"\n{chosen}: {layers} layers of {width}, inner width {student.intermediate_size}, "
        f"{cost(student, teacher)}, keeps {mean(kept[width]):.3f}"
    )
    place = args.output_dir or "DIR"
    if args.output_dir is not None:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(args.output_dir / "config.json") as file:
            file.write(config_text(student, (), "float32"))
        print(f"written: {args.output_dir / 'config.json'}")
    else:
        print("--output_dir DIR writes its config.json; other sizes: --hidden_size, and")
        print("--num_hidden_layers")
    print(
        "compute and distil it: task_distill.py --pred_distill --init_from_teacher "
        f"{layer_list(layers, teacher.num_hidden_layers)} --teacher_model {args.teacher} "
        f"--student_model {place} ..."
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
