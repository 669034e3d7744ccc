"""The model equals Hugging Face's on random small BERTs; its options change cost, not numbers.

Run: pytest tests/test_modeling.py
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from transformer.attention import attention, attention_with_scores, dropout
from transformer.configuration import BertConfig
from transformer.files import UserError
from transformer.modeling import (
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    TinyBertForPreTraining,
    TinyBertForSequenceClassification,
)

BATCH, LENGTH, LAYERS = 13, 7, 5
LENGTHS = torch.tensor([7, 1, 2, 3, 4, 5, 6, 7, 3, 2, 5, 1, 6])
# The initializer_range is large, so that attention is not uniform nor any activation linear.
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 11,
    "type_vocab_size": 3,
    "initializer_range": 0.2,
}
HIDDEN_ACTS = ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "swish", "silu"]


def make_config(**changes) -> BertConfig:
    return replace(BertConfig(**SIZES), **changes)


def make_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, segments and the boolean mask of 13 sequences of 1 to 7 tokens."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 99, (BATCH, LENGTH), generator=generator)
    segments = torch.randint(0, 3, (BATCH, LENGTH), generator=generator)
    mask = torch.arange(LENGTH)[None, :] < LENGTHS[:, None]
    return ids * mask, segments, mask


def make_pair(hf_class_name: str, our_class: type, hidden_act: str = "gelu", **hf_changes):
    """Return a random Hugging Face model and ours with its weights, both in eval mode."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(11)
    hf_config = transformers.BertConfig(**SIZES, hidden_act=hidden_act, **hf_changes)
    hf_config._attn_implementation = "eager"
    theirs = getattr(transformers, hf_class_name)(hf_config).eval()
    with torch.no_grad():  # biases and LayerNorm too, which are initialised to 0 and 1
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    ours = our_class(BertConfig.from_dict(hf_config.to_dict())).eval()
    weights = theirs.state_dict()
    weights.pop("cls.predictions.decoder.bias", None)  # the same tensor as cls.predictions.bias
    ours.load_state_dict(weights)
    return theirs, ours


def assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("hidden_act", HIDDEN_ACTS)
@torch.no_grad()
def test_encoder_equals_hugging_face(hidden_act):
    theirs, ours = make_pair("BertModel", BertModel, hidden_act)
    ids, segments, mask = make_inputs()
    expected = theirs(
        ids,
        token_type_ids=segments,
        attention_mask=mask.long(),
        output_hidden_states=True,
        output_attentions=True,
    )
    output = ours(ids, segments, mask, score_layers=range(1, LAYERS + 1))
    assert len(output.hidden_states) == LAYERS + 1
    for actual, wanted in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert_close(actual[mask], wanted[mask])
    assert_close(output.pooled, expected.pooler_output)
    for number, probs in enumerate(expected.attentions, start=1):
        scores = output.attention_scores[number]
        assert scores.shape == (BATCH, 4, LENGTH, LENGTH)
        actual = scores.masked_fill(~mask[:, None, None, :], float("-inf")).softmax(-1)
        real_queries = mask[:, None, :, None].expand_as(actual)
        assert_close(actual[real_queries], probs[real_queries])


@torch.no_grad()
def test_without_mask_and_segments_all_tokens_are_real_and_of_segment_0():
    theirs, ours = make_pair("BertModel", BertModel)
    ids, _, _ = make_inputs()
    expected = theirs(ids, attention_mask=torch.ones_like(ids))
    assert_close(ours(ids).hidden_states[-1], expected.last_hidden_state)


@torch.no_grad()
def test_layer_norm_eps_is_honoured():
    theirs, ours = make_pair("BertModel", BertModel, layer_norm_eps=0.5)
    ids, segments, mask = make_inputs()
    expected = theirs(ids, token_type_ids=segments, attention_mask=mask.long())
    assert_close(ours(ids, segments, mask).hidden_states[-1][mask], expected[0][mask])


@torch.no_grad()
def test_pretraining_heads_equal_hugging_face():
    theirs, ours = make_pair("BertForPreTraining", BertForPreTraining)
    ids, segments, mask = make_inputs()
    expected = theirs(ids, token_type_ids=segments, attention_mask=mask.long())
    output = ours(ids, segments, mask)
    assert_close(output.logits[mask], expected.prediction_logits[mask])
    assert_close(output.nsp_logits, expected.seq_relationship_logits)


@torch.no_grad()
def test_masked_lm_equals_hugging_face_at_all_and_at_chosen_positions():
    theirs, ours = make_pair("BertForMaskedLM", BertForMaskedLM)
    ids, segments, mask = make_inputs()
    expected = theirs(ids, token_type_ids=segments, attention_mask=mask.long()).logits
    assert_close(ours(ids, segments, mask).logits[mask], expected[mask])
    last = mask.sum(1, keepdim=True) - 1
    tokens = torch.cat([last, torch.zeros_like(last)], 1)
    chosen = expected[torch.arange(BATCH)[:, None], tokens]
    assert_close(ours(ids, segments, mask, tokens=tokens).logits, chosen)


@torch.no_grad()
def test_classifier_equals_hugging_face_and_relu_head_differs():
    theirs, ours = make_pair(
        "BertForSequenceClassification", TinyBertForSequenceClassification, num_labels=6
    )
    ids, segments, mask = make_inputs()
    expected = theirs(ids, token_type_ids=segments, attention_mask=mask.long()).logits
    output = ours(ids, segments, mask)
    assert output.logits.shape == (BATCH, 6)
    assert_close(output.logits, expected)
    with_relu = TinyBertForSequenceClassification(replace(ours.config, classifier_relu=True))
    with_relu.load_state_dict(ours.state_dict())
    expected = ours.classifier(output.pooled.clamp(min=0))
    assert_close(with_relu.eval()(ids, segments, mask).logits, expected)


def random_student(**changes) -> TinyBertForSequenceClassification:
    torch.manual_seed(5)
    return TinyBertForSequenceClassification(make_config(**changes)).eval()


@torch.no_grad()
def test_options_do_not_change_the_numbers():
    model = random_student(fit_size=48, fit_per_layer=True)
    inputs = make_inputs()
    full = model(*inputs, score_layers=range(1, 6), fit_layers=range(6), qkv_layers=(2,))
    lean = model(*inputs, only_logits=True)
    assert lean == (lean.logits, {}, (), None, {}, {}, None)
    assert_close(lean.logits, full.logits)
    some = model(*inputs, score_layers=(2,), fit_layers=(0, 3), num_layers=3, classify=False)
    assert some.logits is None and some.pooled is None
    assert list(some.attention_scores) == [2] and list(some.fitted) == [0, 3]
    assert len(some.hidden_states) == 4
    assert_close(some.attention_scores[2], full.attention_scores[2])
    for number in range(4):
        assert_close(some.hidden_states[number], full.hidden_states[number])
    for number in (0, 3):
        projected = model.fit_denses[number](full.hidden_states[number])
        assert_close(some.fitted[number], projected)
    query, key, _ = (x.unflatten(-1, (4, 8)).transpose(1, 2) for x in full.qkv[2])
    assert_close(query @ key.transpose(-1, -2) / 8**0.5, full.attention_scores[2])


@torch.no_grad()
def test_hidden_states_have_one_shape_whatever_else_is_asked():
    model = random_student(fit_size=48)
    inputs = make_inputs()
    expected = model.bert(*inputs).hidden_states
    asked = ({}, {"score_layers": (1,)}, {"pool": True}, {"classify": False}, {"fit_layers": (5,)})
    for options in asked:
        found = model(*inputs, **options).hidden_states
        assert [x.shape for x in found] == [(BATCH, LENGTH, 32)] * (LAYERS + 1)
        assert_close(found[-1], expected[-1])


@torch.no_grad()
def test_a_classifier_gives_the_pooled_vector_with_and_without_logits():
    model = random_student()
    inputs = make_inputs()
    states = model.bert(*inputs).hidden_states[-1]
    expected = torch.tanh(states[:, 0] @ model.bert.pooler.dense.weight.T)  # its bias is 0
    for options in ({}, {"pool": True}, {"pool": True, "classify": False}):
        assert_close(model(*inputs, **options).pooled, expected)
    assert model(*inputs, classify=False).pooled is None


def test_logits_alone_cost_the_last_layer_at_one_token():
    model = random_student()
    inputs = make_inputs()
    queried = []
    query = model.bert.encoder.layer[-1].attention.self.query
    query.register_forward_hook(lambda module, args, result: queried.append(result.shape[1]))
    model(*inputs)
    model(*inputs, only_logits=True)
    assert queried == [LENGTH, 1]


@torch.no_grad()
def test_projection_shared_per_layer_or_none():
    inputs = make_inputs()
    shared = random_student(fit_size=48)
    output = shared(*inputs, fit_layers=(0, 5))
    assert_close(output.fitted[5], shared.fit_dense(output.hidden_states[5]))
    assert "fit_dense.weight" in shared.state_dict()
    assert "fit_denses.5.bias" in random_student(fit_size=48, fit_per_layer=True).state_dict()
    plain = random_student()(*inputs, fit_layers=(4,))
    assert plain.fitted[4] is plain.hidden_states[4]


def test_general_student_has_neither_pooler_nor_heads():
    student = TinyBertForPreTraining(make_config(fit_size=48))
    assert not [n for n in student.state_dict() if "pooler" in n or "cls" in n or "class" in n]
    output = student(*make_inputs(), score_layers=(1,), fit_layers=(1,))
    assert output.logits is None and output.pooled is None


def test_fused_attention_equals_the_explicit_one():
    torch.manual_seed(2)
    query, key, value = (torch.randn(3, 4, 7, 8) for _ in range(3))
    mask = torch.zeros(3, 1, 1, 7)
    mask[1, ..., 4:] = -3e4
    expected, scores = attention_with_scores(query, key, value, mask, 0.0)
    with torch.no_grad():
        assert_close(attention(query, key, value, mask, 0.0), expected)
    written_out = torch.einsum("bhqk,bhtk->bhqt", query, key) / 8**0.5
    assert_close(scores, written_out)
    real = written_out[1, :, :, :4].softmax(-1) @ value[1, :, :4]
    assert_close(expected[1], real)


def test_a_sequence_of_padding_alone_gives_no_nan():
    model = random_student()
    ids, segments, mask = make_inputs()
    mask[3] = False
    for layers in ((), (1, 2, 3, 4, 5)):
        with torch.no_grad():
            assert model(ids, segments, mask, score_layers=layers).logits.isfinite().all()


def test_further_padding_changes_neither_outputs_nor_gradients():
    model = random_student()
    ids, segments, mask = make_inputs()
    padded = [torch.nn.functional.pad(x, (0, 4)) for x in (ids, segments, mask)]
    gradients = []
    for batch in ((ids, segments, mask), padded):
        model.zero_grad()
        output = model(*batch, score_layers=(2,))
        output.logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.bert.encoder.parameters()])
        gradients[-1].append(output.hidden_states[-1][batch[2]].detach())
    for short, long in zip(*gradients, strict=True):
        assert_close(short, long, atol=1e-4)


@pytest.mark.parametrize("hold", [True, False], ids=["held in bf16", "autocast"])
def test_bf16_is_close_to_fp32_and_keeps_scores_in_fp32(hold):
    model = random_student(initializer_range=0.1)
    inputs = make_inputs()
    with torch.inference_mode():
        expected = model(*inputs, score_layers=(1, 5))
        if hold:
            output = model.bfloat16()(*inputs, score_layers=(1, 5))
        else:
            with torch.autocast("cpu", torch.bfloat16):
                output = model(*inputs, score_layers=(1, 5))
    for number in (1, 5):
        assert output.attention_scores[number].dtype == torch.float32
        assert_close(output.attention_scores[number], expected.attention_scores[number], atol=0.1)
    if not hold:
        assert output.hidden_states[-1].dtype == torch.float32
    real = inputs[2]
    difference = output.hidden_states[-1].float()[real] - expected.hidden_states[-1][real]
    assert difference.abs().mean() < 0.02


def test_scores_of_half_precision_are_the_exact_products():
    torch.manual_seed(4)
    query, key = (torch.randn(2, 3, 9, 26).bfloat16() * 4 for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        _, scores = attention_with_scores(query, key, query, None, 0.0)
    exact = query.double() @ key.double().transpose(-1, -2) / 26**0.5
    assert_close(scores, exact.float(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_rate_scale_and_gradient(dtype):
    torch.manual_seed(1)
    x = torch.ones(3, 333_337, dtype=dtype, requires_grad=True)  # not a multiple of 4
    y = dropout(x, 0.1)
    kept = (y != 0).float()
    # 5 standard deviations of a mean over a million draws of probability 0.1
    assert abs(kept.mean().item() - 0.9) < 5 * (0.09 / x.numel()) ** 0.5
    for position in range(4):  # each quarter of the drawn bits by itself
        share = kept.flatten()[position::4].mean().item()
        assert abs(share - 0.9) < 5 * (0.09 * 4 / x.numel()) ** 0.5
    assert_close(y[y != 0].float().mean(), torch.tensor(1 / 0.9), atol=0.01)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert dropout(x, 0.0) is x


def test_dropout_follows_the_seed_and_acts_in_training_only():
    model = random_student()
    inputs = make_inputs()
    assert torch.equal(model(*inputs).logits, model(*inputs).logits)
    model.train()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(model(*inputs).logits)
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])


def test_dropout_stands_before_the_classifier():
    model = random_student(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.dropout.probability = 0.9
    inputs = make_inputs()
    expected = model(*inputs).logits
    assert not torch.allclose(model.train()(*inputs).logits, expected)


def test_initialisation():
    torch.manual_seed(0)
    config = make_config(vocab_size=3000, pad_token_id=7, initializer_range=0.02)
    model = BertForPreTraining(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "LayerNorm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.5), name
    words = model.bert.embeddings.word_embeddings.weight
    assert words.abs().sum(-1).eq(0).nonzero().flatten().tolist() == [7]
    assert words[7].requires_grad and model.bert.embeddings.word_embeddings.padding_idx is None
    assert model.cls.predictions.decoder.weight is words


def test_the_row_of_padding_is_learnt():
    model = BertModel(make_config())
    output = model(torch.zeros(1, 3, dtype=torch.long))
    output.hidden_states[0].square().sum().backward()
    model(torch.zeros(1, 3, dtype=torch.long)).hidden_states[-1][..., 0].sum().backward()
    assert model.embeddings.word_embeddings.weight.grad[0].abs().sum() > 0


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_model_gives_the_same_numbers(dynamic):
    model = random_student(fit_size=48, num_hidden_layers=3)
    inputs = make_inputs()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    options = {"score_layers": (1,), "fit_layers": (0, 2), "qkv_layers": (2,)}
    options |= {"num_layers": 2, "classify": False}
    expected, output = model(*inputs, **options), compiled(*inputs, **options)
    assert list(output.attention_scores) == [1] and list(output.fitted) == [0, 2]
    assert list(output.qkv) == [2] and len(output.hidden_states) == 3
    assert_close(output.attention_scores[1], expected.attention_scores[1])
    for number in (0, 2):
        assert_close(output.fitted[number], expected.fitted[number])


def test_config_round_trip_keeps_unknown_keys():
    source = {
        **SIZES,
        "hidden_act": "relu",
        "id2label": {"0": "no", "1": "maybe", "2": "yes"},
        "label2id": {"no": 0, "maybe": 1, "yes": 2},
        "pre_trained": "",
        "model_type": "bert",
        "pad_token_id": None,
    }
    config = BertConfig.from_dict(source)
    assert config.num_labels == 3 and config.id2label[1] == "maybe"
    written = config.to_dict()
    assert written["pre_trained"] == "" and written["model_type"] == "bert"
    assert written["label2id"] == source["label2id"]
    assert BertConfig.from_dict(written) == config


def test_number_of_labels():
    assert BertConfig().num_labels == 2
    assert BertConfig(problem_type="regression").num_labels == 1
    assert BertConfig.from_dict({"label2id": {"b": 1, "a": 0}}).id2label == {0: "a", 1: "b"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 30}, "hidden_size 30 is not a multiple of num_attention_heads 4"),
        ({"hidden_act": "gleu"}, "hidden_act 'gleu' is unknown; choose from gelu, gelu_new"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0 must be a whole number of at least 1"),
        ({"vocab_size": "99"}, "vocab_size '99' must be a whole number"),
        ({"pad_token_id": 99}, "pad_token_id 99 must be a number of at least 0 and below 99"),
        (
            {"hidden_dropout_prob": 1.0},
            "hidden_dropout_prob 1.0 must be a number of at least 0 and below 1",
        ),
        ({"fit_size": -1}, "fit_size -1"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps 'small'"),
        ({"id2label": {0: "a", 2: "b"}}, r"id2label, \[0, 2\], must be 0, 1"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_config(**changes)


def test_too_long_sequences_are_refused():
    with pytest.raises(UserError, match="12 tokens are longer than the 11 positions"):
        BertModel(make_config())(torch.ones(2, 12, dtype=torch.long))


def test_from_scratch_takes_a_configuration_with_changes():
    model = TinyBertForPreTraining.from_scratch(make_config(), fit_size=48)
    assert model.fit_dense.out_features == 48


def test_what_scripts_of_the_first_release_call(make_checkpoint, tmp_path):
    general = make_checkpoint("general", TinyBertForPreTraining)
    encoder = BertModel.from_pretrained(make_checkpoint("bert", BertForPreTraining), num_labels=3)
    assert encoder.config.num_labels == 3
    assert encoder(torch.tensor([[5, 6]])).pooled.shape == (1, 32)
    student = TinyBertForSequenceClassification.from_pretrained(general, num_labels=3)
    assert student(torch.tensor([[5, 6]])).logits.shape == (1, 3)
    config = student.config
    config.to_json_file(tmp_path / "config.json")
    written = (tmp_path / "config.json").read_text()
    assert written == config.to_json_string()
    assert json.loads(written)["hidden_size"] == config.to_dict()["hidden_size"] == 32
    assert BertConfig.from_json_file(tmp_path / "config.json") == config
