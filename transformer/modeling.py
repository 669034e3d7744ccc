"""BERT and its heads, for teachers and for TinyBERT students.

The encoder of Devlin et al. (arXiv 1810.04805), the student classes of TinyBERT (arXiv 1909.10351).
Parameters keep the names of the published checkpoints, such as
`bert.encoder.layer.0.attention.self.query.weight`: attributes follow those names, not our taste.

Dimensions, used in every shape below:
    B  sequences in a batch          H  attention heads
    T  tokens in a sequence          K  width of a head (D / H)
    D  hidden width                  L  layers; layer m is one of 1..L, number 0 is the embeddings
    V  entries of the vocabulary     C  classes of a task
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.attention import MASKED_SCORE, Dropout, attention, attention_with_scores
from transformer.configuration import ACTIVATIONS, BertConfig
from transformer.files import UserError

Model = TypeVar("Model", bound="BertPreTrainedModel")


class BertOutput(NamedTuple):
    """Hold what a model computed; what was not asked for is None or empty.

    logits: (B, C) of a classifier; (B, T, V) of a masked LM, (B, Q, V) at chosen tokens.
    attention_scores: {m: (B, H, T, T)}, QK^T / sqrt(K) in fp32, before softmax and before the mask.
    hidden_states: (B, T, D) each; [0] is the embedding output, [m] the output of layer m. With
        `last_tokens`, which only heads of the model itself ask for, the last is (B, Q, D).
    pooled: (B, D), tanh of a linear map of the first token.
    fitted: {m: (B, T, fit_size)}, hidden states projected to the teacher's width.
    qkv: {m: (query, key, value)}, (B, T, D) each, heads side by side.
    nsp_logits: (B, 2), next-sentence prediction.
    """

    logits: Tensor | None = None
    attention_scores: dict[int, Tensor] = {}
    hidden_states: tuple[Tensor, ...] = ()
    pooled: Tensor | None = None
    fitted: dict[int, Tensor] = {}
    qkv: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    nsp_logits: Tensor | None = None


def _linear(config: BertConfig, width_in: int, width_out: int) -> nn.Linear:
    """Make a linear layer as BERT initialises it.

    Google's code cuts the normal at two deviations, the published PyTorch code does not; nor do we.
    """
    linear = nn.Linear(width_in, width_out)
    nn.init.normal_(linear.weight, std=config.initializer_range)
    nn.init.zeros_(linear.bias)
    return linear


def _embedding(config: BertConfig, rows: int) -> nn.Embedding:
    embedding = nn.Embedding(rows, config.embedding_width)
    nn.init.normal_(embedding.weight, std=config.initializer_range)
    return embedding


def head_dropout(config: BertConfig) -> Dropout:
    """Make the dropout before a classifier: its own, else that of the hidden states."""
    own = config.classifier_dropout
    return Dropout(config.hidden_dropout_prob if own is None else own)


class BertEmbeddings(nn.Module):
    """Sum word, position and segment embeddings; normalise; drop out."""

    def __init__(self, config: BertConfig):
        super().__init__()
        # subtle: the row of padding starts at zero; padding_idx would also freeze it there.
        self.word_embeddings = _embedding(config, config.vocab_size)
        nn.init.zeros_(self.word_embeddings.weight[config.pad_token_id])
        self.position_embeddings = _embedding(config, config.max_position_embeddings)
        self.token_type_embeddings = _embedding(config, config.type_vocab_size)
        self.LayerNorm = nn.LayerNorm(config.embedding_width, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:  # (B, T, D)
        places = self.positions(input_ids) + self.segments(token_type_ids)
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids) + places))

    def positions(self, input_ids: Tensor) -> Tensor:
        """Return the position embeddings (T, D) of `input_ids` (B, T)."""
        length, limit = input_ids.shape[1], self.position_embeddings.num_embeddings
        if length > limit:
            raise UserError(
                f"sequences of {length} tokens are longer than the {limit} positions of the model; "
                "lower the maximum sequence length"
            )
        return self.position_embeddings.weight[:length]

    def segments(self, token_type_ids: Tensor | None) -> Tensor:
        """Return the segment embeddings (B, T, D); None means all of segment 0 (D,)."""
        if token_type_ids is None:
            return self.token_type_embeddings.weight[0]
        return self.token_type_embeddings(token_type_ids)


def take_tokens(hidden: Tensor, tokens: Tensor | None) -> Tensor:
    """Return the states (B, Q, D) of `tokens` (B, Q) in `hidden` (B, T, D); None: all of it."""
    if tokens is None:
        return hidden
    return hidden.gather(1, tokens[:, :, None].expand(-1, -1, hidden.shape[2]))


class BertSelfAttention(nn.Module):
    """Attend from every token, or from some, to the real tokens of the sequence."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.query = _linear(config, config.hidden_size, config.hidden_size)
        self.key = _linear(config, config.hidden_size, config.hidden_size)
        self.value = _linear(config, config.hidden_size, config.hidden_size)

    def forward(
        self, hidden: Tensor, mask: Tensor | None, want_scores: bool, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor, Tensor]]:
        """Return the context (B, T, D), the raw scores if wanted, and (query, key, value).

        Args:
            tokens: (B, Q), the tokens to attend from; None: all of `hidden`.
        """
        query = self.query(take_tokens(hidden, tokens))
        qkv = query, self.key(hidden), self.value(hidden)
        # subtle: not unflatten, behind which torch.onnx takes the length for a constant.
        heads = [x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for x in qkv]
        context, scores = self.attend(heads, mask, want_scores, tokens)
        return context.transpose(1, 2).flatten(2), scores, qkv

    def attend(
        self, heads: list[Tensor], mask: Tensor | None, want_scores: bool, tokens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the context (B, H, T, K) of query, key and value, and the scores if wanted."""
        dropout_prob = self.dropout_prob if self.training else 0.0
        if want_scores:
            return attention_with_scores(*heads, mask, dropout_prob)
        return attention(*heads, mask, dropout_prob), None


class BertResidual(nn.Module):
    """Project, drop out, add the residual, normalise: the end of both halves of a layer."""

    def __init__(self, config: BertConfig, width: int):
        super().__init__()
        self.dense = _linear(config, width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class BertAttention(nn.Module):
    """Hold the attention half of a layer under its published names."""

    def __init__(self, config: BertConfig, self_attention: type[BertSelfAttention]):
        super().__init__()
        self.self = self_attention(config)
        self.output = BertResidual(config, config.hidden_size)


class BertTransform(nn.Module):
    """Map to another width and apply the activation: the inner part of the feed-forward half."""

    def __init__(self, config: BertConfig, width: int):
        super().__init__()
        self.dense = _linear(config, config.hidden_size, width)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))


class BertLayer(nn.Module):
    """One Transformer layer."""

    def __init__(
        self, config: BertConfig, self_attention: type[BertSelfAttention] = BertSelfAttention
    ):
        super().__init__()
        self.attention = BertAttention(config, self_attention)
        self.intermediate = BertTransform(config, config.intermediate_size)
        self.output = BertResidual(config, config.intermediate_size)

    def forward(
        self, hidden: Tensor, mask: Tensor | None, want_scores: bool, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor, Tensor]]:
        """Return the new hidden states (B, T, D), and scores and qkv as the attention does.

        Args:
            tokens: (B, Q), the tokens whose new states are wanted: the result is (B, Q, D).
        """
        context, scores, qkv = self.attention.self(hidden, mask, want_scores, tokens)
        hidden = self.attention.output(context, take_tokens(hidden, tokens))
        return self.output(self.intermediate(hidden), hidden), scores, qkv


class BertEncoder(nn.Module):
    """Hold the layers under their published name; `BertModel` runs them."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))


class BertPooler(nn.Module):
    """Map the first token to the vector that sentence-level heads read."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = _linear(config, config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:  # (B, T, D) -> (B, D)
        return torch.tanh(self.dense(hidden[:, 0]))


class BertPreTrainedModel(nn.Module):
    """Keep the configuration, and open checkpoints."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(cls: type[Model], path: str | Path, **config_changes: Any) -> Model:
        """Load a checkpoint directory; log what was missing or left over.

        Args:
            config_changes: values that replace those of its configuration, `num_labels` too.

        Raises:
            UserError: the directory cannot be read or holds no encoder of this shape.
        """
        from transformer.checkpoint.directory import load_model  # stands below this module

        model, report = load_model(cls, path, config_changes=config_changes)
        report.log()
        return model

    @classmethod
    def from_config(cls: type[Model], config: BertConfig) -> Model:
        """Build a model of the architecture that `config` is of, with random weights."""
        return cls(config)

    @classmethod
    def from_scratch(
        cls: type[Model], path_or_config: str | Path | BertConfig, **config_changes: Any
    ) -> Model:
        """Build a model with random weights from a configuration or a directory with one.

        Args:
            config_changes: as in `from_pretrained`.
        """
        config = path_or_config
        if not isinstance(config, BertConfig):
            from transformer.checkpoint.directory import read_config  # stands below this module

            config = read_config(config)
        return cls.from_config(config.changed(**config_changes))


def _contains(layers: Collection[int], number: int) -> bool:
    # subtle: torch.compile with dynamic shapes traces the arguments' integers as symbols, and takes
    # `number in layers` as false; comparing one by one makes it look at their values.
    return any(number == layer for layer in layers)


class BertModel(BertPreTrainedModel):
    """The encoder, with or without pooler.

    Other architectures are subclasses with parts of their own (`architectures/`).
    """

    embeddings_class: type[nn.Module] = BertEmbeddings
    encoder_class: type[nn.Module] = BertEncoder
    pooler_class: type[nn.Module] = BertPooler

    def __init__(self, config: BertConfig, add_pooler: bool = True):
        super().__init__(config)
        self.embeddings = self.embeddings_class(config)
        self.encoder = self.encoder_class(config)
        self.pooler = self.pooler_class(config) if add_pooler else None

    @classmethod
    def from_config(cls, config: BertConfig) -> BertModel:
        """Build the encoder of the architecture that `config` is of, with random weights."""
        return build_encoder(config)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        score_layers: Collection[int] = (),
        qkv_layers: Collection[int] = (),
        num_layers: int | None = None,
        pool: bool = True,
        last_tokens: Tensor | None = None,
    ) -> BertOutput:
        """Run the embeddings and the first `num_layers` layers (None: all).

        Args:
            input_ids: (B, T).
            token_type_ids: (B, T) segment numbers; None means all 0.
            attention_mask: (B, T), true at real tokens; None means no padding.
            score_layers, qkv_layers: numbers (1..L) of the layers whose raw attention scores, whose
                query, key and value are wanted. Other layers never build a (T, T) matrix.
            pool: compute `pooled`, if there is a pooler.
            last_tokens: (B, Q), the tokens that are wanted of the last layer. The others are needed
                there as keys and values only, which is a sixth of the work.
        """
        hidden = self.embeddings(input_ids, token_type_ids)
        mask = None
        if attention_mask is not None:  # (B, 1, 1, T)
            padding = attention_mask[:, None, None, :] == 0
            mask = padding.to(hidden.dtype) * MASKED_SCORE
        hidden_states, attention_scores, qkv = [hidden], {}, {}
        for number, layer in enumerate(self.encoder.layer, start=1):
            if num_layers is not None and number > num_layers:
                break
            tokens = last_tokens if number == self.config.num_hidden_layers else None
            want_scores = _contains(score_layers, number)
            hidden, scores, layer_qkv = layer(hidden, mask, want_scores, tokens)
            hidden_states.append(hidden)
            if scores is not None:
                attention_scores[number] = scores
            if _contains(qkv_layers, number):
                qkv[number] = layer_qkv
        pooled = self.pooler(hidden) if pool and self.pooler is not None else None
        return BertOutput(None, attention_scores, tuple(hidden_states), pooled, {}, qkv)


def build_encoder(config: BertConfig, add_pooler: bool = True) -> BertModel:
    """Build the encoder that a head stands on: that of the architecture of `config`."""
    from transformer.architectures.table import ARCHITECTURES  # its encoders extend BertModel

    return ARCHITECTURES[config.model_type].encoder(config, add_pooler)


class BertPredictionTransform(BertTransform):
    """Prepare hidden states for the vocabulary: as wide as the word embeddings."""

    def __init__(self, config: BertConfig):
        super().__init__(config, config.embedding_width)
        self.LayerNorm = nn.LayerNorm(config.embedding_width, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.LayerNorm(super().forward(hidden))


class BertPredictions(nn.Module):
    """Score every entry of the vocabulary; the decoder shares the word embeddings."""

    def __init__(self, config: BertConfig, word_embeddings: nn.Embedding):
        super().__init__()
        self.transform = BertPredictionTransform(config)
        self.decoder = nn.Linear(
            config.embedding_width, config.vocab_size, bias=False, device="meta"
        )
        self.decoder.weight = word_embeddings.weight
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:  # (..., D) -> (..., V)
        return F.linear(self.transform(hidden), self.decoder.weight, self.bias)


class BertHeads(nn.Module):
    """Hold the pre-training heads under their published names (`cls.*`)."""

    def __init__(self, config: BertConfig, word_embeddings: nn.Embedding, next_sentence: bool):
        super().__init__()
        self.predictions = BertPredictions(config, word_embeddings)
        if next_sentence:
            self.seq_relationship = _linear(config, config.hidden_size, 2)


class BertForMaskedLM(BertPreTrainedModel):
    """BERT that predicts masked tokens."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = build_encoder(config, add_pooler=False)
        self.cls = BertHeads(config, self.bert.embeddings.word_embeddings, next_sentence=False)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
    ) -> BertOutput:
        """Return logits (B, T, V), or (B, Q, V) of `tokens` (B, Q), which costs much less."""
        output = self.bert(input_ids, token_type_ids, attention_mask, last_tokens=tokens)
        return output._replace(logits=self.cls.predictions(output.hidden_states[-1]))


class BertForPreTraining(BertPreTrainedModel):
    """BERT with both heads that it was pre-trained with."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = build_encoder(config)
        self.cls = BertHeads(config, self.bert.embeddings.word_embeddings, next_sentence=True)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> BertOutput:
        """Return masked-LM logits (B, T, V) and next-sentence logits (B, 2)."""
        output = self.bert(input_ids, token_type_ids, attention_mask)
        return output._replace(
            logits=self.cls.predictions(output.hidden_states[-1]),
            nsp_logits=self.cls.seq_relationship(output.pooled),
        )


class TinyBertForPreTraining(BertPreTrainedModel):
    """A student for general distillation: the encoder and the projection to the teacher's width.

    The projection is W_h and W_e of equations 8 and 9: one matrix for all (`fit_dense`, the first
    release), or one for the embeddings and for each layer (`fit_denses.N`, the second).
    """

    add_pooler = False
    per_token = False  # logits are those of a text; of each of its tokens where true

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = build_encoder(config, add_pooler=self.add_pooler)
        if config.fit_size and config.fit_per_layer:
            self.fit_denses = nn.ModuleList(
                _linear(config, config.hidden_size, config.fit_size)
                for _ in range(config.num_hidden_layers + 1)
            )
        elif config.fit_size:
            self.fit_dense = _linear(config, config.hidden_size, config.fit_size)

    def fit(self, hidden: Tensor, number: int) -> Tensor:
        """Project hidden states of layer `number` (0: embeddings) to (B, T, fit_size)."""
        if not self.config.fit_size:
            return hidden
        return (
            self.fit_denses[number](hidden) if self.config.fit_per_layer else self.fit_dense(hidden)
        )

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        fit_layers: Collection[int] = (),
        only_logits: bool = False,
        **encoder_options: Any,
    ) -> BertOutput:
        """Run the encoder with the options of `BertModel.forward`; project the `fit_layers`.

        Args:
            only_logits: a promise to read nothing but the logits. A head that reads few tokens then
                computes little else; others go by it no differently.
        """
        output = self.bert(input_ids, token_type_ids, attention_mask, **encoder_options)
        fitted = {number: self.fit(output.hidden_states[number], number) for number in fit_layers}
        return output._replace(fitted=fitted)


class TinyBertForSequenceClassification(TinyBertForPreTraining):
    """A classifier (or, with one label, a regressor): teachers and students of the task stage."""

    add_pooler = True

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.dropout = head_dropout(config)
        self.classifier = _linear(config, config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        classify: bool = True,
        pool: bool = False,
        only_logits: bool = False,
        **options: Any,
    ) -> BertOutput:
        """Return logits (B, C) too, unless `classify` is off; options as in the parent class.

        Args:
            pool: compute `pooled` even where no logits, which are made of it, are.
            only_logits: return the logits alone, from a last layer that is computed at the first
                token only.
        """
        if only_logits:
            options["last_tokens"] = torch.zeros_like(input_ids[:, :1])
        output = super().forward(
            input_ids, token_type_ids, attention_mask, pool=pool or classify, **options
        )
        if not classify:
            return output
        pooled = F.relu(output.pooled) if self.config.classifier_relu else output.pooled
        logits = self.classifier(self.dropout(pooled))
        return BertOutput(logits) if only_logits else output._replace(logits=logits)


class TinyBertForTokenClassification(TinyBertForPreTraining):
    """A classifier of tokens, for entities and other tags: the head reads the last layer."""

    per_token = True
    head_name = "classifier"  # as the published checkpoints have it

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.dropout = head_dropout(config)
        head = _linear(config, config.hidden_size, config.num_labels)
        self.add_module(self.head_name, head)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        classify: bool = True,
        only_logits: bool = False,
        **options: Any,
    ) -> BertOutput:
        """Return logits (B, T, C) too, unless `classify` is off; options as in the parent class."""
        output = super().forward(input_ids, token_type_ids, attention_mask, **options)
        if not classify:
            return output
        head = getattr(self, self.head_name)
        logits = head(self.dropout(output.hidden_states[-1]))
        return BertOutput(logits) if only_logits else output._replace(logits=logits)


class TinyBertForQuestionAnswering(TinyBertForTokenClassification):
    """Say of each token whether an answer begins and whether it ends there: logits (B, T, 2)."""

    head_name = "qa_outputs"

    @property
    def classifier(self) -> nn.Module:
        """Return the head, by the name that those of other models have."""
        return self.qa_outputs
