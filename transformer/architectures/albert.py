"""ALBERT: BERT with narrow embeddings and shared layers (Lan et al., arXiv 1909.11942).

The embedding tables are E wide and mapped to the hidden width D behind their LayerNorm (section
3.1, factorized embedding parameterization). The layers share their parameters: `num_hidden_layers`
counts how often a layer is applied, and layer m of a teacher is its m-th application.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from transformer.configuration import BertConfig
from transformer.files import UserError
from transformer.modeling import BertEmbeddings, BertLayer, BertModel


@dataclass
class AlbertConfig(BertConfig):
    """Hold the sizes of an ALBERT; the defaults are those of its published files."""

    model_type: ClassVar[str] = "albert"
    key_names: ClassVar[dict[str, str]] = {"classifier_dropout": "classifier_dropout_prob"}

    vocab_size: int = 30000
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout: float | None = 0.1
    embedding_size: int = 128  # E
    num_hidden_groups: int = 1  # layers with parameters of their own
    inner_group_num: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_embedding_size(self.embedding_size)
        groups = self.num_hidden_groups
        if not isinstance(groups, int) or not 1 <= groups <= self.num_hidden_layers:
            raise UserError(
                f"config: num_hidden_groups {groups!r} must be a whole number from 1 to "
                f"num_hidden_layers, {self.num_hidden_layers}"
            )
        if self.inner_group_num != 1:
            raise UserError(
                f"config: inner_group_num {self.inner_group_num!r} is not supported; only 1 is, "
                "which all published ALBERT models have"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AlbertConfig:
        """Build a configuration from the object in a config.json, brightmart's too.

        Those of brightmart (albert_zh) name no groups but where the LayerNorms stand, `ln_type`.
        """
        values = dict(values)
        if "num_hidden_groups" not in values and "ln_type" in values:
            if values["ln_type"] != "postln":
                raise UserError(
                    f"config: ln_type {values['ln_type']!r} is not supported; only postln is"
                )
            values["embedding_size"] = values["hidden_size"]  # see `multiply_out`
            del values["ln_type"]
        return super().from_dict(values)

    @property
    def embedding_width(self) -> int:
        """Return the width of the embedding tables."""
        return self.embedding_size


def check_embedding_size(size: int) -> None:
    """Raise UserError unless tables can be so wide."""
    if not isinstance(size, int) or size < 1:
        raise UserError(f"config: embedding_size {size!r} must be a whole number of at least 1")


def multiply_out(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an ALBERT, those of brightmart's files with whole word embeddings.

    There the word embeddings (V, E) alone are mapped, without a bias, by a matrix (E, D), and the
    other tables and the LayerNorm are D wide. Words times matrix, with the identity as the mapping
    behind the LayerNorm, compute the same; so does the masked-LM head, which uses both.
    """
    tables = "bert.embeddings."
    mapping = weights.get(tables + "word_embeddings_2")  # as TensorFlow has it: (E, D)
    if mapping is None:
        linear = weights.get(tables + "word_embeddings_2.weight")  # (D, E)
        if linear is None:
            return weights
        mapping = linear.T
    width = mapping.shape[1]
    adapted = {n: t for n, t in weights.items() if "word_embeddings_2" not in n}
    adapted[tables + "word_embeddings.weight"] = (
        weights[tables + "word_embeddings.weight"] @ mapping
    )
    adapted[tables + "projection.weight"] = torch.eye(width, device=mapping.device)
    adapted[tables + "projection.bias"] = torch.zeros(width, device=mapping.device)
    return adapted


class FactorisedEmbeddings(BertEmbeddings):
    """Embeddings of width E, mapped to the hidden width D."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.projection = nn.Linear(config.embedding_width, config.hidden_size)
        nn.init.normal_(self.projection.weight, std=config.initializer_range)
        nn.init.zeros_(self.projection.bias)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:  # (B, T, D)
        return self.projection(super().forward(input_ids, token_type_ids))


class AlbertEncoder(nn.Module):
    """Hold the shared layers, and give them as often as they are applied."""

    def __init__(self, config: AlbertConfig):
        super().__init__()
        self.group = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_groups))
        self.num_layers = config.num_hidden_layers

    @property
    def layer(self) -> list[BertLayer]:
        """Return the layer of each application: group 0 for the first ones, and so on."""
        # A property, so that each parameter has one name.
        groups, layers = len(self.group), self.num_layers
        return [self.group[number * groups // layers] for number in range(layers)]


class AlbertModel(BertModel):
    """The encoder of ALBERT."""

    embeddings_class = FactorisedEmbeddings
    encoder_class = AlbertEncoder


_LAYER = "albert.encoder.albert_layer_groups.{n}.albert_layers.0."
_GOOGLE_LAYER = "bert.encoder.transformer.group_{n}.inner_group_0."
_GROUP = "bert.encoder.group.{n}."

# Names of Hugging Face, then those of Google's TensorFlow files, then those of brightmart's files
# (albert_zh), which are BERT's but for the shared layer; beside ours.
NAMES = (
    ("albert.encoder.embedding_hidden_mapping_in.", "bert.embeddings.projection."),
    ("albert.embeddings.", "bert.embeddings."),
    (_LAYER + "attention.dense.", _GROUP + "attention.output.dense."),
    (_LAYER + "attention.LayerNorm.", _GROUP + "attention.output.LayerNorm."),
    (_LAYER + "attention.", _GROUP + "attention.self."),
    (_LAYER + "ffn.", _GROUP + "intermediate.dense."),
    (_LAYER + "ffn_output.", _GROUP + "output.dense."),
    (_LAYER + "full_layer_layer_norm.", _GROUP + "output.LayerNorm."),
    ("albert.pooler.", "bert.pooler.dense."),
    ("predictions.dense.", "cls.predictions.transform.dense."),
    ("predictions.LayerNorm.", "cls.predictions.transform.LayerNorm."),
    ("predictions.", "cls.predictions."),
    ("sop_classifier.classifier.", "cls.seq_relationship."),
    ("bert.encoder.embedding_hidden_mapping_in.", "bert.embeddings.projection."),
    (_GOOGLE_LAYER + "attention_1.", _GROUP + "attention."),
    (_GOOGLE_LAYER + "LayerNorm.", _GROUP + "attention.output.LayerNorm."),
    (_GOOGLE_LAYER + "ffn_1.intermediate.output.", _GROUP + "output."),
    (_GOOGLE_LAYER + "ffn_1.", _GROUP),
    (_GOOGLE_LAYER + "LayerNorm_1.", _GROUP + "output.LayerNorm."),
    ("bert.encoder.layer_shared.", "bert.encoder.group.0."),
)
