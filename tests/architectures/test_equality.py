"""ALBERT, ELECTRA and DistilBERT equal Hugging Face's on random small models; NEZHA its formulas.

NEZHA is compared with Hugging Face's too where transformers still has it (up to 4.40).

Run: pytest tests/architectures/test_equality.py
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from other_models import (
    BATCH,
    LAYERS,
    LENGTH,
    LENGTHS,
    SIZES,
    assert_close,
    every_variant,
    make_inputs,
    make_theirs,
    run_theirs,
)

from transformer.architectures.table import ARCHITECTURES, our_name
from transformer.modeling import (
    BertForMaskedLM,
    BertModel,
    TinyBertForPreTraining,
    TinyBertForSequenceClassification,
    build_encoder,
)


def make_pair(variant: str, head: str, our_class: type):
    """Return a random Hugging Face model and ours with its weights, both in eval mode."""
    theirs, model_type = make_theirs(variant, head)
    config = ARCHITECTURES[model_type].config.from_dict(theirs.config.to_dict())
    bare = "" if any(name.startswith(model_type) for name in theirs.state_dict()) else model_type
    weights = {
        our_name(model_type, f"{bare}.{name}" if bare else name): tensor
        for name, tensor in theirs.state_dict().items()
        if not name.endswith((".position_ids", "decoder.bias"))
    }
    ours = build_encoder(config) if our_class is BertModel else our_class(config)
    if our_class is BertModel:
        weights = {name.removeprefix("bert."): tensor for name, tensor in weights.items()}
        if model_type in ("electra", "distilbert"):  # theirs have no pooler
            weights |= {n: t for n, t in ours.state_dict().items() if n.startswith("pooler.")}
    ours.load_state_dict(weights)
    return theirs, ours.eval()


@every_variant
@torch.no_grad()
def test_encoder_equals_hugging_face(variant):
    theirs, ours = make_pair(variant, "Model", BertModel)
    ids, segments, mask = make_inputs()
    expected = run_theirs(
        theirs, ids, segments, mask, output_hidden_states=True, output_attentions=True
    )
    output = ours(ids, segments, mask, score_layers=range(1, LAYERS + 1))
    assert len(output.hidden_states) == LAYERS + 1
    for actual, wanted in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert_close(actual[mask], wanted[mask])
    if "pooler_output" in expected:
        assert_close(output.pooled, expected.pooler_output)
    for number, probs in enumerate(expected.attentions, start=1):
        scores = output.attention_scores[number].masked_fill(~mask[:, None, None, :], -math.inf)
        real_queries = mask[:, None, :, None].expand_as(scores)
        assert_close(scores.softmax(-1)[real_queries], probs[real_queries])


@every_variant
@torch.no_grad()
def test_masked_lm_equals_hugging_face(variant):
    theirs, ours = make_pair(variant, "ForMaskedLM", BertForMaskedLM)
    ids, segments, mask = make_inputs()
    expected = run_theirs(theirs, ids, segments, mask).logits
    assert_close(ours(ids, segments, mask).logits[mask], expected[mask])
    places = torch.tensor([[0, int(length) - 1] for length in LENGTHS])
    some = ours(ids, segments, mask, tokens=places).logits
    assert_close(some, expected.gather(1, places[:, :, None].expand(-1, -1, 99)))


@every_variant
@torch.no_grad()
def test_classifier_equals_hugging_face(variant):
    theirs, ours = make_pair(
        variant, "ForSequenceClassification", TinyBertForSequenceClassification
    )
    ids, segments, mask = make_inputs()
    expected = run_theirs(theirs, ids, segments, mask).logits
    assert_close(ours(ids, segments, mask).logits, expected)
    # With options, the last layer is computed at all tokens.
    assert_close(ours(ids, segments, mask, score_layers=(1,)).logits, expected)


# NEZHA -------------------------------------------------------------------------------------------


def make_nezha(our_class: type = TinyBertForPreTraining, **changes):
    """Return a random NEZHA whose relative distances are clipped at 3."""
    config = ARCHITECTURES["nezha"].config(**SIZES, max_relative_position=3, **changes)
    torch.manual_seed(5)
    model = our_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def attention_by_loops(
    hidden: np.ndarray, length: int, state: dict[str, np.ndarray], reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return context (T, D) and scores (H, T, T) of one sequence, number by number."""
    heads, (tokens, width) = 4, hidden.shape
    size = width // heads
    query, key, value = (
        hidden @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        for name in ("query", "key", "value")
    )
    context, scores = np.zeros((tokens, width)), np.zeros((heads, tokens, tokens))

    def relative(i: int, j: int, n: int) -> float:
        place = max(-reach, min(reach, j - i)) + reach
        angle = place / 10000 ** (2 * (n // 2) / size)
        return math.sin(angle) if n % 2 == 0 else math.cos(angle)

    for head in range(heads):
        first = head * size
        for i in range(tokens):
            for j in range(tokens):
                scores[head, i, j] = sum(
                    query[i, first + n] * (key[j, first + n] + relative(i, j, n))
                    for n in range(size)
                ) / math.sqrt(size)
            weights = np.exp(scores[head, i, :length])
            weights /= weights.sum()
            for n in range(size):
                context[i, first + n] = sum(
                    weights[j] * (value[j, first + n] + relative(i, j, n)) for j in range(length)
                )
    return context, scores


@torch.no_grad()
def test_nezha_attention_equals_its_formulas():
    model = make_nezha()
    attention = model.bert.encoder.layer[0].attention.self
    state = {name: t.double().numpy() for name, t in attention.named_parameters()}
    hidden = torch.randn(2, LENGTH, 32)
    lengths = (LENGTH, 5)
    mask = (torch.arange(LENGTH) >= torch.tensor(lengths)[:, None])[:, None, None] * -3e4
    context, scores, _ = attention(hidden, mask, True)
    # Some queries in any order, as for the last layer of a masked LM.
    places = torch.tensor([[6, 0], [2, 4]])
    some, _, _ = attention(hidden, mask, False, places)
    for row, length in enumerate(lengths):
        expected, expected_scores = attention_by_loops(
            hidden[row].double().numpy(), length, state, reach=3
        )
        assert_close(scores[row].double(), torch.from_numpy(expected_scores))
        assert_close(context[row].double(), torch.from_numpy(expected))
        assert_close(some[row].double(), torch.from_numpy(expected)[places[row]])


@torch.no_grad()
def test_nezha_knows_only_relative_positions():
    """What stands behind padding at the left is computed as if it stood at the beginning."""
    model = make_nezha()
    assert not any("position" in name for name in model.state_dict())
    ids, segments, _ = make_inputs()
    shifted = torch.nn.functional.pad(ids[:, :4], (3, 0))
    mask = (torch.arange(LENGTH) >= 3).expand(BATCH, -1)
    output = model(shifted, torch.nn.functional.pad(segments[:, :4], (3, 0)), mask)
    expected = model(ids[:, :4], segments[:, :4])
    for actual, wanted in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert_close(actual[:, 3:], wanted)


# All of them -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_gradients_reach_every_parameter_of_a_classifier(model_type):
    config = ARCHITECTURES[model_type].config(**SIZES)
    model = TinyBertForSequenceClassification(config).train()
    ids, segments, mask = make_inputs()
    logits = model(ids, segments, mask).logits
    torch.nn.functional.cross_entropy(logits, ids[:, 0] % 2).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []
    zero = [
        name
        for name, p in model.named_parameters()
        # A bias of the keys moves all scores of a query alike, which softmax does not see.
        if not p.grad.any() and not name.endswith("key.bias")
    ]
    assert zero == []


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@torch.no_grad()
def test_options_change_cost_and_not_numbers(model_type):
    config = ARCHITECTURES[model_type].config(**SIZES)
    torch.manual_seed(7)
    model = TinyBertForPreTraining(config).eval()
    ids, segments, mask = make_inputs()
    whole = model(ids, segments, mask, score_layers=(2, 4), qkv_layers=(3,))
    part = model(ids, segments, mask, num_layers=2)
    assert whole.attention_scores.keys() == {2, 4}
    assert whole.attention_scores[2].shape == (BATCH, 4, LENGTH, LENGTH)
    assert [x.shape for x in whole.qkv[3]] == [(BATCH, LENGTH, 32)] * 3
    assert len(part.hidden_states) == 3
    for number, hidden in enumerate(part.hidden_states):
        assert_close(hidden, whole.hidden_states[number])


def test_layers_of_an_albert_share_their_parameters():
    config = ARCHITECTURES["albert"].config(**SIZES, num_hidden_groups=2)
    layers = build_encoder(config).encoder.layer
    # int(i / (5 / 2)) for i = 0..4, as the paper's authors have it.
    assert [layers.index(layer) for layer in layers] == [0, 0, 0, 3, 3]
    names = [name for name, _ in build_encoder(config).named_parameters()]
    assert sum(name.endswith("self.query.weight") for name in names) == 2
