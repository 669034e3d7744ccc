"""Tell what a checkpoint directory holds, and rewrite it: `python -m transformer.checkpoint`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from transformer.checkpoint.config_file import read_config_with_notes
from transformer.checkpoint.directory import LoadReport, grouped, load_model, write_checkpoint
from transformer.checkpoint.weight_files import (
    BIN,
    DECODER,
    SAFETENSORS,
    find_weights,
    group_of,
    read_weights,
)
from transformer.configuration import BertConfig
from transformer.file_utils import cached_path
from transformer.files import UserError
from transformer.modeling import (
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    TinyBertForPreTraining,
    TinyBertForSequenceClassification,
)
from transformer.runtime.progress import setup_logging
from transformer.runtime.script import run_script
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
    config, notes = read_config_with_notes(directory)
    found = find_weights(directory)
    weights = {} if found is None else read_weights(directory)
    tokenizer, tokenizer_problem = _tokenizer(directory)
    rows = [
        ("directory", str(directory)),
        ("architecture", _architecture(config)),
        ("positions", str(config.max_position_embeddings)),
        ("tokenizer", tokenizer_problem or _tokenizer_line(tokenizer)),
        ("weights", "none" if found is None else f"{found.name}: {grouped(weights)}"),
        ("parameters", f"{sum(tensor.numel() for tensor in weights.values()) / 1e6:.2f} M"),
        ("labels", _labels(config, weights)),
        ("projection", _projection(config, weights)),
        *(("note", note) for note in notes),
        ("use as", ""),
        *(
            (f"  {use}", _usable(model_class, needs, config, weights, tokenizer_problem))
            for use, model_class, needs in USES
        ),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label.ljust(width)}  {text}".rstrip() for label, text in rows)


def _architecture(config: BertConfig) -> str:
    return (
        f"BERT, {config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, inner width {config.intermediate_size}, "
        f"{config.hidden_act}, {config.vocab_size} words"
    )


def _tokenizer(directory: Path) -> tuple[BertTokenizer | None, str]:
    """Return the tokenizer, or None and why there is none."""
    try:
        return BertTokenizer.from_pretrained(directory), ""
    except UserError as error:
        return None, f"none ({error})"


def _tokenizer_line(tokenizer: BertTokenizer) -> str:
    case = "lower-cases" if tokenizer.do_lower_case else "keeps capitals"
    return f"{len(tokenizer.vocab)} entries, {case}"


def _labels(config: BertConfig, weights: dict[str, Tensor]) -> str:
    if "classifier.weight" not in weights:
        return "none (no classifier)"
    if config.problem_type == "regression":
        return "one number (regression)"
    return ", ".join(f"{label_id} {name}" for label_id, name in (config.id2label or {}).items())


def _projection(config: BertConfig, weights: dict[str, Tensor]) -> str:
    if not any(group_of(name) == "fit" for name in weights):
        return "none"
    kind = "fit_denses.N, one a layer" if config.fit_per_layer else "fit_dense, shared"
    return f"{kind}, {config.hidden_size} -> {config.fit_size}"


def _expected(model_class: type[nn.Module], config: BertConfig) -> dict[str, Tensor]:
    """Return the tensors that `model_class` reads, by published name, without their values."""
    with torch.device("meta"):
        model = model_class(config)
    prefix = "" if hasattr(model, "bert") else "bert."
    expected = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    expected.pop(DECODER, None)
    return expected


def _usable(
    model_class: type[nn.Module],
    needs: set[str],
    config: BertConfig,
    weights: dict[str, Tensor],
    tokenizer_problem: str,
) -> str:
    expected = _expected(model_class, config)
    for name, tensor in expected.items():
        if name in weights and weights[name].shape != tensor.shape:
            shapes = f"{tuple(weights[name].shape)}, not {tuple(tensor.shape)} as configured"
            return f"no: {name} is {shapes}"
    absent = [name for name in expected if name not in weights]
    lacking = [name for name in absent if group_of(name) in needs]
    if lacking:
        return f"no: it lacks {grouped(lacking)}"
    if tokenizer_problem:
        return "no: it has no vocabulary"
    new = [name for name in absent if group_of(name) not in needs]
    return f"yes; newly initialised: {grouped(new)}" if new else "yes"


# Converting --------------------------------------------------------------------------------------


def convert(source: Path, target: Path, weight_file: str) -> LoadReport:
    """Rewrite the checkpoint in `source` as ours in `target`, all weights that we know in fp32.

    Raises:
        UserError: `source` is not usable, or `target` holds something.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is not an empty directory; give a new one")
    weights = read_weights(source)
    # Loading it into the richest class that fits checks names and shapes.
    model, report = load_model(_class_for({group_of(name) for name in weights}), source)
    tokenizer, problem = _tokenizer(source)
    if problem:
        report.notes.append(f"tokenizer: {problem}")
    kept = {name: tensor for name, tensor in weights.items() if group_of(name) != "other"}
    kept.pop(DECODER, None)
    write_checkpoint(kept, model.config, tokenizer, target, (weight_file,))
    return report


def _class_for(groups: set[str]) -> type[nn.Module]:
    if "classifier" in groups:
        return TinyBertForSequenceClassification
    if "mlm" in groups:
        return BertForPreTraining if {"nsp", "pooler"} <= groups else BertForMaskedLM
    return TinyBertForPreTraining if "fit" in groups else BertModel


# Command line ------------------------------------------------------------------------------------


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse `DIR` or `convert SRC DST`."""
    parser = argparse.ArgumentParser(
        prog="python -m transformer.checkpoint",
        description="Show what a checkpoint directory holds and what it can be used for.",
        epilog="'convert SRC DST [--to safetensors|bin]' rewrites a checkpoint instead; "
        "see 'convert --help'.",
    )
    parser.add_argument("directory", help="checkpoint directory, hub name or address")
    if list(argv[:1]) != ["convert"]:
        return parser.parse_args(argv)
    parser = argparse.ArgumentParser(
        prog="python -m transformer.checkpoint convert",
        description="Rewrite any readable checkpoint (safetensors or pickle, whole or in shards, "
        "PyTorch or TensorFlow) in the layout of this toolkit, in fp32.",
    )
    parser.add_argument("source", help="checkpoint directory, hub name or address")
    parser.add_argument("target", type=Path, help="new or empty directory")
    parser.add_argument(
        "--to", choices=FORMATS, default="bin", help="format of the weights (default: bin)"
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
