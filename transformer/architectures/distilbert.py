"""DistilBERT: BERT without segments and with half its layers (Sanh et al., arXiv 1910.01108).

The layers compute what BERT's do. The classifier has a layer with ReLU of its own, which stands in
the pooler's place here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer.configuration import BertConfig
from transformer.modeling import BertEmbeddings, BertModel, BertPooler


@dataclass
class DistilBertConfig(BertConfig):
    """Hold the sizes of a DistilBERT; its config.json calls many of them by other names."""

    model_type: ClassVar[str] = "distilbert"
    key_names: ClassVar[dict[str, str]] = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
    }

    num_hidden_layers: int = 6
    classifier_dropout: float | None = 0.2


class DistilBertEmbeddings(BertEmbeddings):
    """Word and position embeddings; segments are not told apart."""

    def __init__(self, config: DistilBertConfig):
        super().__init__(config)
        del self.token_type_embeddings

    def segments(self, token_type_ids: Tensor | None) -> Tensor:
        weight = self.word_embeddings.weight
        return torch.zeros((), device=weight.device, dtype=weight.dtype)


class DistilBertPooler(BertPooler):
    """Map the first token to what the classifier reads."""

    def forward(self, hidden: Tensor) -> Tensor:  # (B, T, D) -> (B, D)
        return F.relu(self.dense(hidden[:, 0]))


class DistilBertModel(BertModel):
    """The encoder of DistilBERT."""

    embeddings_class = DistilBertEmbeddings
    pooler_class = DistilBertPooler


_THEIRS, _OURS = "distilbert.transformer.layer.{n}.", "bert.encoder.layer.{n}."

# Hugging Face's names, and ours.
NAMES = (
    ("distilbert.embeddings.", "bert.embeddings."),
    (_THEIRS + "attention.q_lin.", _OURS + "attention.self.query."),
    (_THEIRS + "attention.k_lin.", _OURS + "attention.self.key."),
    (_THEIRS + "attention.v_lin.", _OURS + "attention.self.value."),
    (_THEIRS + "attention.out_lin.", _OURS + "attention.output.dense."),
    (_THEIRS + "sa_layer_norm.", _OURS + "attention.output.LayerNorm."),
    (_THEIRS + "ffn.lin1.", _OURS + "intermediate.dense."),
    (_THEIRS + "ffn.lin2.", _OURS + "output.dense."),
    (_THEIRS + "output_layer_norm.", _OURS + "output.LayerNorm."),
    ("pre_classifier.", "bert.pooler.dense."),
    ("vocab_transform.", "cls.predictions.transform.dense."),
    ("vocab_layer_norm.", "cls.predictions.transform.LayerNorm."),
    ("vocab_projector.weight", "cls.predictions.decoder.weight"),
    ("vocab_projector.bias", "cls.predictions.bias"),
)
