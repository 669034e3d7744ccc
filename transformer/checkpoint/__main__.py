"""Tell what a checkpoint directory holds, and rewrite it: `python -m transformer.checkpoint`."""

from __future__ import annotations

if __name__ == "__main__":
    import transformer.runtime.interrupt  # noqa: F401 - Ctrl-C during the imports below

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from transformer.architectures.table import ARCHITECTURES
from transformer.checkpoint.directory import Checkpoint, LoadReport, grouped, write_checkpoint
from transformer.checkpoint.weight_files import BIN, DECODER, SAFETENSORS, group_of
from transformer.configuration import BertConfig
from transformer.file_utils import cached_path
from transformer.files import UserError, check_new_directory
from transformer.modeling import (
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    TinyBertForPreTraining,
    TinyBertForSequenceClassification,
)
from transformer.runtime.progress import setup_logging
from transformer.runtime.script import ScriptParser, file_path, model_name, run_script
from transformer.tokenization import BertTokenizer

FORMATS = {"bin": BIN, "safetensors": SAFETENSORS}

# What a directory can be used as: the class that loads it, and the groups that must be there.
USES = (
    ("teacher, general_distill.py", TinyBertForPreTraining, {"encoder"}),
    (
        "teacher, task_distill.py",
        TinyBertForSequenceClassification,
        {"encoder", "pooler", "classifier"},
    ),
    ("general student, task_distill.py", TinyBertForSequenceClassification, {"encoder"}),
    (
        "task student, task_distill.py --do_eval",
        TinyBertForSequenceClassification,
        {"encoder", "pooler", "classifier"},
    ),
    ("masked LM, data_augmentation.py", BertForMaskedLM, {"encoder", "mlm"}),
)

# Showing -----------------------------------------------------------------------------------------


def describe(directory: Path) -> str:
    """Return a text that says what `directory` holds and what it can be used for.

    Raises:
        UserError: it is not a BERT, or a file of it is damaged.
    """
    checkpoint = Checkpoint(directory)
    config = checkpoint.config
    weights = checkpoint.read_weights() if checkpoint.files else {}
    tokenizer, tokenizer_problem = _tokenizer(checkpoint)
    files = f"{checkpoint.files.name}: {grouped(weights)}" if checkpoint.files else "none"
    rows = [
        ("directory", str(directory)),
        ("architecture", _architecture(config)),
        ("positions", str(config.max_position_embeddings)),
        ("tokenizer", tokenizer_problem or _tokenizer_line(tokenizer)),
        ("weights", files),
        ("parameters", f"{sum(tensor.numel() for tensor in weights.values()) / 1e6:.2f} M"),
        ("labels", _labels(checkpoint)),
        ("projection", _projection(checkpoint)),
        *(("note", note) for note in checkpoint.notes),
        ("use as", ""),
        *(
            (f"  {use}", _usable(checkpoint, model_class, needs, tokenizer_problem))
            for use, model_class, needs in USES
        ),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label.ljust(width)}  {text}".rstrip() for label, text in rows)


def _architecture(config: BertConfig) -> str:
    title = ARCHITECTURES[config.model_type].title
    return (
        f"{title}, {config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, inner width {config.intermediate_size}, "
        f"{config.hidden_act}, {config.vocab_size} words"
    )


def _tokenizer(checkpoint: Checkpoint) -> tuple[BertTokenizer | None, str]:
    """Return the tokenizer, or None and why there is none."""
    try:
        return checkpoint.tokenizer, ""
    except UserError as error:
        return None, f"none ({error})"


def _tokenizer_line(tokenizer: BertTokenizer) -> str:
    case = "lower-cases" if tokenizer.do_lower_case else "keeps capitals"
    return f"{len(tokenizer.vocab)} entries, {case}"


def _labels(checkpoint: Checkpoint) -> str:
    if "classifier" not in checkpoint.groups:
        return "none (no classifier)"
    config = checkpoint.config
    if config.problem_type == "regression":
        return "one number (regression)"
    return ", ".join(f"{label_id} {name}" for label_id, name in (config.id2label or {}).items())


def _projection(checkpoint: Checkpoint) -> str:
    if "fit" not in checkpoint.groups:
        return "none"
    config = checkpoint.config
    kind = "fit_denses.N, one a layer" if config.fit_per_layer else "fit_dense, shared"
    return f"{kind}, {config.hidden_size} -> {config.fit_size}"


def _usable(
    checkpoint: Checkpoint, model_class: type[nn.Module], needs: set[str], tokenizer_problem: str
) -> str:
    report = checkpoint.compare(model_class)
    for name, (there, here) in report.differing.items():
        return f"no: {name} is {there}, not {here} as configured"
    lacking = [name for name in report.missing if group_of(name) in needs]
    if lacking:
        return f"no: it lacks {grouped(lacking)}"
    if tokenizer_problem:
        return "no: it has no vocabulary"
    return f"yes; newly initialised: {grouped(report.missing)}" if report.missing else "yes"


# Converting --------------------------------------------------------------------------------------


def convert(source: Path, target: Path, weight_file: str) -> LoadReport:
    """Rewrite the checkpoint in `source` as ours in `target`, all weights that we know in fp32.

    Raises:
        UserError: `source` is not usable, or `target` holds something.
    """
    check_new_directory(target)
    checkpoint = Checkpoint(source)
    # Loading it into the richest class that fits checks names and shapes.
    model, report = checkpoint.load(_class_for(checkpoint.groups))
    weights = checkpoint.read_weights()
    tokenizer, problem = _tokenizer(checkpoint)
    if problem:
        report.notes.append(f"tokenizer: {problem}")
    kept = {name: tensor for name, tensor in weights.items() if group_of(name) != "other"}
    kept.pop(DECODER, None)
    write_checkpoint(kept, model.config, tokenizer, target, (weight_file,))
    return report


def _class_for(groups: frozenset[str]) -> type[nn.Module]:
    if "classifier" in groups:
        return TinyBertForSequenceClassification
    if "mlm" in groups:
        return BertForPreTraining if {"nsp", "pooler"} <= groups else BertForMaskedLM
    return TinyBertForPreTraining if "fit" in groups else BertModel


# Command line ------------------------------------------------------------------------------------


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse `DIR` or `convert SRC DST`."""
    parser = ScriptParser(
        prog="python -m transformer.checkpoint",
        description="Show what a checkpoint directory holds and what it can be used for.",
        epilog="'convert SRC DST [--to safetensors|bin]' rewrites a checkpoint instead; "
        "see 'convert --help'.",
    )
    parser.add_argument(
        "directory", type=model_name, help="checkpoint directory, hub name or address"
    )
    if list(argv[:1]) != ["convert"]:
        return parser.parse_args(argv)
    parser = ScriptParser(
        prog="python -m transformer.checkpoint convert",
        description="Rewrite any readable checkpoint (safetensors or pickle, whole or in shards, "
        "PyTorch or TensorFlow) in the layout of this toolkit, in fp32.",
    )
    parser.add_argument("source", type=model_name, help="checkpoint directory, hub name or address")
    parser.add_argument("target", type=file_path, help="new or empty directory")
    parser.add_argument(
        "--to",
        choices=FORMATS,
        default="safetensors",
        help="format of the weights (default: safetensors)",
    )
    return parser.parse_args(argv[1:])


def main(argv: Sequence[str] | None = None) -> None:
    """Show or convert a checkpoint, as the command line says."""
    args = _parse(sys.argv[1:] if argv is None else argv)
    if hasattr(args, "directory"):
        print(describe(Path(cached_path(args.directory))))
        return
    setup_logging()
    convert(Path(cached_path(args.source)), args.target, FORMATS[args.to]).log()
    print(f"wrote {args.target}")


if __name__ == "__main__":
    sys.exit(run_script(main))
