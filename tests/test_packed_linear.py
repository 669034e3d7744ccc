"""Packed linear layers: pytest tests/test_packed_linear.py"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transformer.configuration import BertConfig
from transformer.modeling import BertForMaskedLM, TinyBertForSequenceClassification
from transformer.packed_linear import PackedLinear, _can_pack, pack_linears

CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=100,
    max_position_embeddings=40,
    initializer_range=0.2,
)
IDS = torch.arange(5, 45).view(2, 20)
REAL = torch.arange(20) < torch.tensor([[20], [13]])

needs_kernels = pytest.mark.skipif(
    not _can_pack(torch.zeros(1, dtype=torch.bfloat16)), reason="no packed kernels here"
)


def packed_layers(model: nn.Module) -> int:
    return sum(isinstance(module, PackedLinear) for module in model.modules())


def classifier(dtype: torch.dtype, **changes: object) -> TinyBertForSequenceClassification:
    torch.manual_seed(1)
    model = TinyBertForSequenceClassification.from_scratch(CONFIG, **changes)
    return model.eval().requires_grad_(False).to(dtype)


@needs_kernels
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_a_packed_model_computes_the_same(activation: str) -> None:
    exact = classifier(torch.float32, hidden_act=activation)
    plain = classifier(torch.bfloat16, hidden_act=activation)
    packed = pack_linears(classifier(torch.bfloat16, hidden_act=activation))
    assert packed_layers(packed) == 3 * 6
    options = {"score_layers": (2,), "qkv_layers": (3,)}
    expected, rough, output = (
        model(IDS, None, REAL, **options) for model in (exact, plain, packed)
    )
    for number, states in enumerate(expected.hidden_states):
        off = (output.hidden_states[number] - states)[REAL].pow(2).mean().sqrt()
        allowed = (rough.hidden_states[number] - states)[REAL].pow(2).mean().sqrt()
        assert off <= 1.1 * allowed, f"layer {number}"
    torch.testing.assert_close(
        output.attention_scores[2], rough.attention_scores[2], atol=0.1, rtol=0
    )
    torch.testing.assert_close(output.logits.float(), expected.logits, atol=0.05, rtol=0)


@needs_kernels
def test_packed_weights_can_be_read_back() -> None:
    plain, packed = classifier(torch.bfloat16), pack_linears(classifier(torch.bfloat16))
    states = packed.state_dict()
    assert states.keys() == plain.state_dict().keys()
    for name, weight in plain.state_dict().items():
        held = states[name]
        assert torch.equal(held.to_dense() if held.is_mkldnn else held, weight), name


@needs_kernels
def test_what_other_layers_share_stays_plain() -> None:
    model = pack_linears(BertForMaskedLM(CONFIG).eval().bfloat16())
    assert packed_layers(model) == 3 * 6
    assert not model.cls.predictions.decoder.weight.is_mkldnn
    assert model(IDS).logits.shape == (2, 20, 50)


def test_fp32_models_are_left_alone() -> None:
    model = classifier(torch.float32)
    before = model(IDS).logits
    assert packed_layers(pack_linears(model)) == 0
    assert torch.equal(model(IDS).logits, before)
