"""Read and write checkpoint directories: config.json, weights, vocabulary.

Show what a directory holds, or rewrite any readable one as ours:

    python -m transformer.checkpoint DIR
    python -m transformer.checkpoint convert SRC DST [--to safetensors|bin]
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from transformer.checkpoint import weight_files
from transformer.checkpoint.config_file import (
    CONFIG_NAMES,
    config_text,
    read_config_with_notes,
    unnamed_labels,
)
from transformer.checkpoint.weight_files import (
    BIN,
    DECODER,
    GROUPS,
    INDEX_SUFFIX,
    SAFETENSORS,
    group_of,
    save_torch,
    write_file,
)
from transformer.configuration import BertConfig
from transformer.files import UserError, atomic_write

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

GROUP_NAMES = {
    "encoder": "the encoder (bert.embeddings, bert.encoder)",
    "pooler": "the pooler (bert.pooler)",
    "mlm": "the masked-LM head (cls.predictions)",
    "nsp": "the next-sentence head (cls.seq_relationship)",
    "classifier": "the classifier",
    "fit": "the projection (fit_dense)",
}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in directory `path` as fp32 tensors under the published names.

    Raises:
        UserError: no weights, a damaged file, a value that is not finite.
    """
    return weight_files.read_weights(Path(path))


@dataclass
class LoadReport:
    """Hold the names of the tensors that were loaded, newly initialised, and left over."""

    source: Path
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def log(self) -> None:
        """Log the report in groups, as one message: a warning if something is newly initialised."""
        parts = [f"loaded {grouped(self.loaded)}"]
        if self.missing:
            parts.append(f"not in the file, newly initialised: {grouped(self.missing)}")
        if self.unexpected:
            parts.append(f"in the file, not used: {grouped(self.unexpected)}")
        level = logging.WARNING if self.missing else logging.INFO
        logger.log(level, "%s: %s", self.source, "; ".join(parts + self.notes))


def grouped(names: Iterable[str]) -> str:
    """Return e.g. "encoder (69 tensors), mlm (5 tensors)"; unknown names are spelled out."""
    names = list(names)
    counts = Counter(group_of(name) for name in names)
    parts = [f"{key} ({counts[key]} tensors)" for key in GROUPS if counts[key]]
    return ", ".join(parts + [name for name in names if group_of(name) == "other"])


def load_model(
    model_class: type[Model],
    path: str | Path,
    *,
    require: Iterable[str] = ("encoder",),
    config_changes: dict[str, Any] | None = None,
) -> tuple[Model, LoadReport]:
    """Build a `model_class` from the directory `path` and load its weights in fp32.

    What `require` does not name may be missing; it is then initialised at random and reported.
    The encoder must always be there. A shared projection fills a model that has one for each layer;
    a projection to another width than `config_changes` asks for is left out.

    Args:
        require: keys of `weight_files.GROUPS`.
        config_changes: values that replace those of the stored configuration.

    Raises:
        UserError: as `read_config` and `read_weights`; a required group is missing; shapes differ.
    """
    path = Path(path)
    stored, notes = read_config_with_notes(path)
    changes = config_changes or {}
    weights = weight_files.read_weights(path)
    config = replace(stored, **changes)
    _check_labels(path, stored, config, weights)
    model = model_class(config)
    # subtle: a bare encoder has no prefix in its own names, but all names here have one.
    prefix = "" if hasattr(model, "bert") else "bert."
    wanted = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    wanted.pop(DECODER, None)
    _adapt_projection(weights, wanted)
    report = LoadReport(
        path,
        loaded=[name for name in wanted if name in weights],
        missing=[name for name in wanted if name not in weights],
        unexpected=[name for name in weights if name not in wanted],
        notes=notes if "classifier.weight" in wanted else [],
    )
    _check_required(report, {"encoder", *require}, weights)
    _check_shapes(path, weights, wanted)
    _check_leftovers(
        report, layers_changed="num_hidden_layers" in changes, mlm=hasattr(model, "cls")
    )
    state = {name.removeprefix(prefix): weights[name] for name in report.loaded}
    model.load_state_dict(state, strict=False)
    return model, report


def _check_labels(
    path: Path, stored: BertConfig, config: BertConfig, weights: dict[str, Tensor]
) -> None:
    if "classifier.weight" not in weights:
        return
    rows = len(weights["classifier.weight"])
    stored_labels = list((stored.id2label or unnamed_labels(stored.num_labels)).values())
    labels = list((config.id2label or unnamed_labels(config.num_labels)).values())
    if rows != len(stored_labels):
        raise UserError(
            f"{path}: the classifier has {rows} outputs, but the configuration names "
            f"{len(stored_labels)} labels ({', '.join(stored_labels)})"
        )
    if rows != len(labels):
        raise UserError(
            f"{path}: the classifier was trained for {rows} labels ({', '.join(stored_labels)}), "
            f"but {len(labels)} are asked for ({', '.join(labels)}); give a model of this task"
        )


def _adapt_projection(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Spread a shared projection over the layers if asked for, and drop one to another width."""
    for kind in ("weight", "bias"):
        shared = weights.get(f"fit_dense.{kind}")
        per_layer = [n for n in wanted if n.startswith("fit_denses.") and n.endswith(f".{kind}")]
        if shared is not None and per_layer and per_layer[0] not in weights:
            weights.update((name, shared) for name in per_layer)
            del weights[f"fit_dense.{kind}"]
    fit = [name for name in wanted if group_of(name) == "fit" and name in weights]
    if any(len(weights[name]) != len(wanted[name]) for name in fit):
        for name in fit:
            del weights[name]


def _check_required(report: LoadReport, require: set[str], weights: dict[str, Tensor]) -> None:
    for group in GROUPS:
        if group not in require:
            continue
        missing = [name for name in report.missing if group_of(name) == group]
        if missing or not any(group_of(name) == group for name in weights):
            detail = f" ({len(missing)} tensors missing, {missing[0]} first)" if missing else ""
            raise UserError(
                f"{report.source} lacks {GROUP_NAMES[group]}{detail}; "
                "give a checkpoint that was trained with it"
            )


def _check_shapes(path: Path, weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    differing = [n for n in wanted if n in weights and weights[n].shape != wanted[n].shape]
    if differing:
        name = differing[0]
        more = f" (and {len(differing) - 1} more tensors)" if len(differing) > 1 else ""
        raise UserError(
            f"{path}: {name} is {tuple(weights[name].shape)} in the file, but the configuration "
            f"makes it {tuple(wanted[name].shape)}{more}; they belong to different models"
        )


def _check_leftovers(report: LoadReport, *, layers_changed: bool, mlm: bool) -> None:
    encoder = [name for name in report.unexpected if group_of(name) == "encoder"]
    if encoder and not layers_changed:
        raise UserError(
            f"{report.source}: the file holds {len(encoder)} tensors of the encoder that the "
            f"configuration has no place for ({encoder[0]} first); they belong to different models"
        )
    if mlm and DECODER in report.unexpected:
        raise UserError(
            f"{report.source}: {DECODER} differs from the word embeddings; a masked-LM head with "
            "a decoder of its own is not supported"
        )


def save_checkpoint(
    model: nn.Module, tokenizer: Any, output_dir: str | Path, *, safetensors: bool = False
) -> None:
    """Write `model` (bare, with a `config`) and `tokenizer` as a checkpoint directory.

    Writes pytorch_model.bin, and model.safetensors too if asked. Each file appears whole or not at
    all; config.json comes last, so that a directory with one is complete.

    Raises:
        OSError: no space, no permission.
    """
    prefix = "" if hasattr(model, "bert") else "bert."
    weights = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    weights.pop(DECODER, None)  # readers tie it to the word embeddings
    formats = (BIN, SAFETENSORS) if safetensors else (BIN,)
    write_checkpoint(weights, model.config, tokenizer, Path(output_dir), formats)


def write_checkpoint(
    weights: dict[str, Tensor],
    config: BertConfig,
    tokenizer: Any,
    output_dir: Path,
    formats: tuple[str, ...],
) -> None:
    """Write published `weights` to the files `formats`, and what goes with them.

    Killed at any instant, this leaves the old checkpoint, the new one, or a directory that is
    refused because it has no config.json; never new weights under an old configuration.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    dtype = str(weights[weight_files.WORD_EMBEDDINGS].dtype).removeprefix("torch.")
    text = config_text(config, weights, dtype)
    config_file = output_dir / "config.json"
    if not config_file.is_file() or config_file.read_bytes() != text.encode():
        for name in CONFIG_NAMES:
            (output_dir / name).unlink(missing_ok=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(output_dir)
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
    stale = _weight_files_in(output_dir) - {output_dir / name for name in formats}
    # subtle: readers prefer safetensors. Written bin first, a kill before the old safetensors file
    # is replaced or removed leaves the old weights whole.
    for name in sorted(formats, key=(BIN, SAFETENSORS).index):
        _write_tensors(output_dir / name, tensors)
    # An index goes before its shards, lest it point at nothing.
    for path in sorted(stale, key=lambda path: not path.name.endswith(INDEX_SUFFIX)):
        path.unlink(missing_ok=True)
    with atomic_write(config_file) as file:
        file.write(text)
    if config.classifier_relu and "classifier.weight" in weights:
        _tell_about_relu(output_dir)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    if path.name == SAFETENSORS:
        write_file(safetensors_bytes(tensors, metadata={"format": "pt"}), path)
    else:
        save_torch(tensors, path)


def _weight_files_in(directory: Path) -> set[Path]:
    """Return all PyTorch weight files of `directory`, shards and indexes too."""
    stems = (SAFETENSORS, BIN)
    found = {directory / (stem + suffix) for stem in stems for suffix in ("", INDEX_SUFFIX)}
    for stem in stems:
        base, suffix = stem.rsplit(".", 1)
        found |= set(directory.glob(f"{base}-*-of-*.{suffix}"))
    return found


@cache
def _tell_about_relu(output_dir: Path) -> None:
    """Say, once for each directory, where other readers will get other numbers."""
    logger.info(
        "%s: its classifier reads ReLU(pooled); Hugging Face's BertForSequenceClassification has "
        "no ReLU there and gives other logits for it",
        output_dir,
    )
