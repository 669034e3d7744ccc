"""The architectures of teachers and students, one row each.

What the toolkit asks of an architecture is an encoder: a `BertModel` whose forward pass takes ids,
segments and a mask and returns the hidden states, raw attention scores, queries, keys and values
that are asked for. All heads are BERT's. So an architecture is a file beside this one, with its
configuration, its encoder and its names in checkpoints, and a row below.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from transformer.architectures import albert, distilbert, electra, nezha
from transformer.configuration import BertConfig
from transformer.files import UserError
from transformer.modeling import BertModel

Names = tuple[tuple[str, str], ...]

Weights = dict[str, Tensor]


def _unchanged(weights: Weights) -> Weights:
    return weights


@dataclass(frozen=True)
class Architecture:
    """Hold what sets an architecture apart.

    names: beginnings of names of tensors, in checkpoints of others and in ours; "{n}" is a number.
        The first pair that fits is applied.
    adapt: makes of the renamed weights of a file what the encoder reads, where names do not do.
    """

    title: str
    class_prefix: str  # of Hugging Face's classes, such as AlbertForMaskedLM
    config: type[BertConfig]
    encoder: type[BertModel]
    names: Names = ()
    adapt: Callable[[Weights], Weights] = _unchanged


# By model_type, as config.json has it.
ARCHITECTURES = {
    "bert": Architecture("BERT", "Bert", BertConfig, BertModel),
    "nezha": Architecture("NEZHA", "Nezha", nezha.NezhaConfig, nezha.NezhaModel, nezha.NAMES),
    "albert": Architecture(
        "ALBERT",
        "Albert",
        albert.AlbertConfig,
        albert.AlbertModel,
        albert.NAMES,
        albert.multiply_out,
    ),
    "electra": Architecture(
        "ELECTRA", "Electra", electra.ElectraConfig, electra.ElectraModel, electra.NAMES
    ),
    "distilbert": Architecture(
        "DistilBERT",
        "DistilBert",
        distilbert.DistilBertConfig,
        distilbert.DistilBertModel,
        distilbert.NAMES,
    ),
}

# Architectures whose tokens are others than BERT's, so that no layer of theirs can be compared with
# one of a BERT student.
OTHER_WORDS = (
    *("roberta", "xlm-roberta", "camembert", "modernbert", "deberta", "deberta-v2"),
    *("mpnet", "xlnet", "gpt2", "t5"),
)


def model_type_of(values: dict[str, Any]) -> str:
    """Return the model_type of a config.json; of one that says none, what its keys tell.

    Raises:
        UserError: an architecture that is not supported; says which are, or the way out.
    """
    model_type = values.get("model_type")
    # subtle: NEZHA files of some authors call themselves bert.
    if model_type in (None, "bert") and values.get("use_relative_position"):
        return "nezha"
    if model_type is None:
        is_albert = "num_hidden_groups" in values or "ln_type" in values
        return "albert" if is_albert else "bert"
    if model_type in OTHER_WORDS:
        raise UserError(
            f"model_type {model_type} has other words than BERT, so a BERT student cannot learn "
            "from its layers; to learn from its predictions, give its logits by --teacher_logits"
        )
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UserError(
            f"model_type {model_type} is not supported; choose a model of type "
            f"{', '.join(ARCHITECTURES)}"
        )
    return model_type


def our_name(model_type: str, name: str) -> str:
    """Return our name of the tensor that a checkpoint of this type calls `name`.

    >>> our_name("albert", "albert.pooler.weight")
    'bert.pooler.dense.weight'
    """
    return _renamed(name, _patterns(model_type, to_ours=True))


def their_name(model_type: str, name: str) -> str:
    """Return Hugging Face's name of the tensor that we call `name`.

    >>> their_name("nezha", "bert.encoder.layer.0.output.dense.bias")
    'nezha.encoder.layer.0.output.dense.bias'
    """
    return _renamed(name, _patterns(model_type, to_ours=False))


def _renamed(name: str, patterns: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in patterns:
        if pattern.match(name):
            return pattern.sub(replacement, name, count=1)
    return name


@cache
def _patterns(model_type: str, to_ours: bool) -> list[tuple[re.Pattern[str], str]]:
    """Return the pairs of names as regular expressions with their replacements."""
    patterns = []
    for theirs, ours in ARCHITECTURES[model_type].names:
        old, new = (theirs, ours) if to_ours else (ours, theirs)
        expression = "^" + re.escape(old).replace(r"\{n\}", r"(\d+)")
        patterns.append((re.compile(expression), new.replace("{n}", r"\1")))
    return patterns
