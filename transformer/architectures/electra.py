"""ELECTRA: BERT pre-trained to tell real tokens from replaced ones (Clark et al., 2003.10555).

Its encoder is BERT's, with embeddings that may be narrower than the hidden states (ELECTRA-Small:
128 for 256). It was not pre-trained with a pooler: the classifier has a layer with GELU of its own,
which stands in the pooler's place here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from transformer.architectures.albert import FactorisedEmbeddings, check_embedding_size
from transformer.configuration import BertConfig
from transformer.modeling import BertEmbeddings, BertModel, BertPooler, head_dropout


@dataclass
class ElectraConfig(BertConfig):
    """Hold the sizes of an ELECTRA."""

    model_type: ClassVar[str] = "electra"

    embedding_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_embedding_size(self.embedding_size)

    @property
    def embedding_width(self) -> int:
        """Return the width of the embedding tables."""
        return self.embedding_size


class ElectraPooler(BertPooler):
    """Map the first token to what the classifier reads."""

    def __init__(self, config: ElectraConfig):
        super().__init__(config)
        self.dropout = head_dropout(config)

    def forward(self, hidden: Tensor) -> Tensor:  # (B, T, D) -> (B, D)
        return F.gelu(self.dense(self.dropout(hidden[:, 0])))


class ElectraModel(BertModel):
    """The encoder of ELECTRA: of a discriminator, or of a generator with its masked-LM head."""

    pooler_class = ElectraPooler

    def __init__(self, config: ElectraConfig, add_pooler: bool = True):
        narrow = config.embedding_size != config.hidden_size
        self.embeddings_class = FactorisedEmbeddings if narrow else BertEmbeddings
        super().__init__(config, add_pooler)


# Hugging Face's names, and ours. What tells replaced tokens apart (discriminator_predictions) is
# not used.
NAMES = (
    ("electra.embeddings_project.", "bert.embeddings.projection."),
    ("generator_predictions.", "cls.predictions.transform."),
    ("generator_lm_head.weight", "cls.predictions.decoder.weight"),
    ("generator_lm_head.bias", "cls.predictions.bias"),
    ("classifier.dense.", "bert.pooler.dense."),
    ("electra.", "bert."),
    ("classifier.out_proj.", "classifier."),
)
