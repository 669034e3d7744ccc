"""Read config.json, whoever wrote it, and compose ours."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformer.architectures.table import ARCHITECTURES, model_type_of
from transformer.checkpoint.weight_files import find_weights, group_of
from transformer.configuration import BertConfig, unnamed_labels
from transformer.files import UserError, read_json

CONFIG_NAMES = ("config.json", "bert_config.json", "albert_config.json")

REQUIRED_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)

# Keys of a config.json that would need other arithmetic than BERT's, with the values that do not.
FATAL_KEYS = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (),
}

# Keys that describe how the weights were stored before; they would be wrong beside ours.
STALE_KEYS = (
    "architectures",
    "torch_dtype",
    "dtype",
    "num_labels",
    "tie_word_embeddings",
    "transformers_version",
    "_name_or_path",
    *FATAL_KEYS,
)

# What Hugging Face's class for a checkpoint is called, behind the name of the architecture: the
# first row whose groups are all present.
HEADS = (
    ("ForSequenceClassification", ("classifier", "pooler")),
    ("ForTokenClassification", ("classifier",)),
    ("ForQuestionAnswering", ("span",)),
    ("ForPreTraining", ("mlm", "nsp")),
    ("ForMaskedLM", ("mlm",)),
    ("Model", ()),
)


def make_config(
    file: Path, values: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> tuple[BertConfig, list[str]]:
    """Return the configuration in `file`, and notes on what had to be inferred.

    Args:
        values: from `read_values`; what only the weights tell is added to it.
        shapes: of the weights beside it, by published name; nothing without weights.

    Raises:
        UserError: a value that no model can have, or `vocab.txt` beside it holds more entries.
    """
    notes = _infer(values, shapes)
    try:
        config = ARCHITECTURES[values["model_type"]].config.from_dict(values)
    except UserError as error:
        raise UserError(f"{file}: {str(error).removeprefix('config: ')}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: a value has the wrong type ({error})") from None
    _check_vocabulary(file, config)
    return config, notes


def find_config(path: Path) -> Path:
    """Return the configuration file in directory `path`, or `path` itself if it is one.

    Raises:
        UserError: there is none; a PEFT adapter.
    """
    if path.is_file() and path.suffix == ".json":
        return path
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}; give a directory with config.json and weights")
    if (path / "adapter_config.json").exists() and find_weights(path) is None:
        raise UserError(
            f"{path} is a PEFT adapter (adapter_config.json), not a whole model; merge it into its "
            "base model (merge_and_unload), save that, and give its directory"
        )
    for name in CONFIG_NAMES:
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} holds neither {' nor '.join(CONFIG_NAMES)}")


def read_values(file: Path) -> dict[str, Any]:
    """Return the object in a config.json, with our names for its keys and a model_type.

    Raises:
        UserError: not readable, not JSON, or an architecture that is not supported.
    """
    values = read_json(file)
    try:
        model_type = model_type_of(values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    architecture = ARCHITECTURES[model_type]
    values = architecture.config.with_our_keys({**values, "model_type": model_type})
    for key, allowed in FATAL_KEYS.items():
        if values.get(key) is not None and values[key] not in allowed:
            raise UserError(f"{file}: {key} {json.dumps(values[key])} is not supported")
    absent = [key for key in REQUIRED_KEYS if key not in values]
    if absent:
        names = ", ".join(architecture.config.key_names.get(key, key) for key in absent)
        raise UserError(
            f"{file} lacks {names}; it is not the configuration of {architecture.title}"
        )
    return values


def _infer(values: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Add to `values` what only the weights tell; return notes on it."""
    notes = []
    fit = shapes.get("fit_denses.0.weight") or shapes.get("fit_dense.weight")
    classifier = shapes.get("classifier.weight")
    if fit:
        values.setdefault("fit_size", fit[0])
        values.setdefault("fit_per_layer", "fit_denses.0.weight" in shapes)
    # subtle: a general model has no classifier yet. The one that it gets reads what those of its
    # authors read; in the models that we write, the key is always there.
    if fit or classifier:
        stored = "classifier_relu" in values
        relu = values.setdefault("classifier_relu", fit is not None)
        reason = "as config.json says" if stored else f"there is {'a' if relu else 'no'} projection"
        notes.append(f"the classifier reads {'ReLU(pooled)' if relu else 'pooled'} ({reason})")
    if classifier:
        num_labels = classifier[0]
        if not values.get("id2label") and not values.get("label2id"):
            values["id2label"] = unnamed_labels(num_labels)
        if num_labels == 1 and values.get("problem_type") is None:
            values["problem_type"] = "regression"
    return notes


def _check_vocabulary(config_file: Path, config: BertConfig) -> None:
    vocab_file = config_file.parent / "vocab.txt"
    if not vocab_file.is_file():
        return
    try:
        # subtle: only "\n" ends an entry; other line separators of Unicode can be entries.
        entries = vocab_file.read_bytes().rstrip(b"\r\n").count(b"\n") + 1
    except PermissionError:
        raise UserError(f"{vocab_file}: no permission to read it") from None
    # subtle: fewer are right. Models are padded to a round number of rows that no entry reaches.
    if entries > config.vocab_size:
        raise UserError(
            f"{vocab_file} holds {entries} entries, but {config_file.name} says vocab_size "
            f"{config.vocab_size}; both must come from the same model"
        )


def config_text(config: BertConfig, weight_names: Iterable[str], dtype: str) -> str:
    """Return config.json: ours, with all that Hugging Face's Auto classes ask for.

    Args:
        weight_names: the published names of the tensors that the weight files hold.
        dtype: their type, as Hugging Face spells it ("float32").
    """
    groups = {group_of(name) for name in weight_names}
    head = next(name for name, needs in HEADS if groups.issuperset(needs))
    class_name = ARCHITECTURES[config.model_type].class_prefix + head
    if "classifier" in groups:
        single = "regression" if config.num_labels == 1 else "single_label_classification"
        config = replace(
            config,
            id2label=config.id2label or unnamed_labels(config.num_labels),
            problem_type=config.problem_type or single,
        )
    values = {key: value for key, value in config.to_dict().items() if key not in STALE_KEYS}
    values |= {
        "model_type": config.model_type,
        "architectures": [class_name],
        "dtype": dtype,
    }
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
