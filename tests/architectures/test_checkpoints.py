"""Checkpoints of other architectures: what Hugging Face and others write is read, what we write
opens there with the same numbers.

Run: pytest tests/architectures/test_checkpoints.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from other_models import VARIANTS, assert_close, every_variant, make_inputs, make_theirs, run_theirs
from safetensors.torch import load_file, save_file
from tensorflow_reader import FakeReader

from transformer.architectures.table import ARCHITECTURES
from transformer.checkpoint import load_model, read_config, save_checkpoint
from transformer.checkpoint.__main__ import convert, describe
from transformer.checkpoint.tensorflow import read_tf_weights
from transformer.checkpoint.weight_files import SAFETENSORS, find_weights, group_of, read_weights
from transformer.files import UserError
from transformer.modeling import (
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    TinyBertForPreTraining,
    TinyBertForSequenceClassification,
)

HEADS = {
    "Model": BertModel,
    "ForMaskedLM": BertForMaskedLM,
    "ForSequenceClassification": TinyBertForSequenceClassification,
}
INPUTS = make_inputs()


def numbers_of(ours, ids, segments, mask) -> torch.Tensor:
    """Return the logits of a model of ours, or its last hidden states, at real tokens."""
    output = ours(ids, segments, mask)
    if output.logits is not None and output.logits.ndim == 2:
        return output.logits
    return (output.hidden_states[-1] if output.logits is None else output.logits)[mask]


def numbers_of_theirs(theirs, ids, segments, mask) -> torch.Tensor:
    output = run_theirs(theirs, ids, segments, mask)
    values = output.logits if "logits" in output else output.last_hidden_state
    return values if values.ndim == 2 else values[mask]


@every_variant
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_both_directions_equal_hugging_face(head, variant, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs, model_type = make_theirs(variant, head)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, report = load_model(HEADS[head], tmp_path / "theirs")
    has_pooler = head == "ForSequenceClassification" or model_type in ("albert", "nezha")
    assert {group_of(name) for name in report.missing} <= (set() if has_pooler else {"pooler"})
    assert report.unexpected == []
    expected = numbers_of_theirs(theirs, *INPUTS)
    assert_close(numbers_of(ours.eval(), *INPUTS), expected)

    their_class = getattr(transformers, ARCHITECTURES[model_type].class_prefix + head)
    for safetensors in (True, False):
        save_checkpoint(ours, None, tmp_path / "ours", safetensors=safetensors)
        again = load_model(HEADS[head], tmp_path / "ours")[0].eval()
        assert torch.equal(numbers_of(again, *INPUTS), numbers_of(ours, *INPUTS))
        back, info = their_class.from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not info["missing_keys"] and not info.get("mismatched_keys")
        assert_close(numbers_of_theirs(back.eval(), *INPUTS), expected)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["model_type"] == model_type
    assert config["architectures"] == [ARCHITECTURES[model_type].class_prefix + head]


@pytest.mark.parametrize("model_type", [t for t in ARCHITECTURES if t != "bert"])
def test_a_student_of_any_architecture_reads_what_it_wrote(model_type, tmp_path):
    config = ARCHITECTURES[model_type].config(num_hidden_layers=2, fit_size=20, **SMALL)
    model = TinyBertForPreTraining(config)
    save_checkpoint(model, None, tmp_path / "student")
    assert read_config(tmp_path / "student").changed(extra={}) == config
    again, report = load_model(TinyBertForPreTraining, tmp_path / "student")
    assert report.missing == report.unexpected == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    task, report = load_model(TinyBertForSequenceClassification, tmp_path / "student")
    assert {group_of(name) for name in report.missing} == {"pooler", "classifier"}
    assert type(task.bert) is ARCHITECTURES[model_type].encoder


SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 11,
    "initializer_range": 0.2,
}


def write_files(directory: Path, name: str, values: dict, weights: dict[str, torch.Tensor]) -> Path:
    """Write a directory as somebody else would."""
    directory.mkdir()
    (directory / name).write_text(json.dumps(values))
    save_file({n: t.contiguous() for n, t in weights.items()}, directory / SAFETENSORS)
    return directory


# NEZHA -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_nezha_files_of_huawei_and_of_hugging_face_are_one_model(tmp_path):
    config = ARCHITECTURES["nezha"].config(num_hidden_layers=3, **SMALL)
    model = BertForPreTraining(config).eval()
    expected = model(*INPUTS).logits
    save_checkpoint(model, None, tmp_path / "ours", safetensors=True)
    weights = load_file(tmp_path / "ours" / SAFETENSORS)
    assert all(name.startswith(("nezha.", "cls.")) for name in weights)
    huawei = write_files(
        tmp_path / "huawei",
        "bert_config.json",
        {**SMALL, "num_hidden_layers": 3, "use_relative_position": True},
        {name.replace("nezha.", "bert."): tensor for name, tensor in weights.items()},
    )
    tables = {
        f"nezha.encoder.layer.{n}.attention.self.relative_positions_encoding.positions_encoding": (
            torch.randn(11, 11, 8)
        )
        for n in range(3)
    }
    # The embedding_size that Hugging Face's class writes has no meaning.
    values = {**SMALL, "num_hidden_layers": 3, "model_type": "nezha", "embedding_size": 7}
    hugging_face = write_files(tmp_path / "hf", "config.json", values, weights | tables)
    for directory in (huawei, hugging_face, tmp_path / "ours"):
        loaded, report = load_model(BertForPreTraining, directory)
        assert report.missing == report.unexpected == []
        assert loaded.config.max_relative_position == 64
        assert_close(loaded.eval()(*INPUTS).logits, expected)


# ALBERT ------------------------------------------------------------------------------------------


LAYER = "bert/encoder/transformer/group_0/inner_group_0/"
GOOGLE_NAMES = {
    "bert/encoder/embedding_hidden_mapping_in/kernel": "bert.embeddings.projection.weight",
    LAYER + "attention_1/self/query/kernel": "bert.encoder.group.0.attention.self.query.weight",
    LAYER + "attention_1/output/dense/bias": "bert.encoder.group.0.attention.output.dense.bias",
    LAYER + "LayerNorm/gamma": "bert.encoder.group.0.attention.output.LayerNorm.weight",
    LAYER + "ffn_1/intermediate/dense/kernel": "bert.encoder.group.0.intermediate.dense.weight",
    LAYER + "ffn_1/intermediate/output/dense/kernel": "bert.encoder.group.0.output.dense.weight",
    LAYER + "LayerNorm_1/beta": "bert.encoder.group.0.output.LayerNorm.bias",
    "bert/pooler/dense/kernel": "bert.pooler.dense.weight",
    "cls/predictions/output_bias": "cls.predictions.bias",
    "cls/predictions/transform/LayerNorm/beta": "cls.predictions.transform.LayerNorm.bias",
}


def test_names_of_google_are_known(tmp_path):
    generator = np.random.default_rng(0)
    variables = {
        name: generator.random((3, 5) if name.endswith("kernel") else 3, np.float32)
        for name in GOOGLE_NAMES
    }
    weights = read_tf_weights(Path("x"), FakeReader(variables))
    save_file(weights, tmp_path / SAFETENSORS)
    read = read_weights(find_weights(tmp_path), "albert")
    assert read.keys() == set(GOOGLE_NAMES.values())
    for name, ours in GOOGLE_NAMES.items():
        value = variables[name]
        assert np.array_equal(read[ours], value.T if name.endswith("kernel") else value)


@pytest.mark.parametrize("as_linear", [False, True])
@torch.no_grad()
def test_files_of_brightmart_compute_what_their_code_does(as_linear, tmp_path):
    """Words are mapped alone, without a bias; positions, segments and LayerNorm are D wide."""
    torch.manual_seed(0)
    model = BertForPreTraining(
        ARCHITECTURES["albert"].config(
            num_hidden_layers=3, embedding_size=32, hidden_act="gelu", **SMALL
        )
    ).eval()
    for parameter in model.parameters():
        parameter.copy_(0.2 * torch.randn_like(parameter))
    weights = {
        name.replace("encoder.group.0.", "encoder.layer_shared."): tensor.clone()
        for name, tensor in model.state_dict().items()
        if "projection" not in name and "decoder" not in name
    }
    narrow, mapping = 0.3 * torch.randn(99, 19), 0.3 * torch.randn(19, 32)
    weights["bert.embeddings.word_embeddings.weight"] = narrow
    if as_linear:
        weights["bert.embeddings.word_embeddings_2.weight"] = mapping.T
    else:
        weights["bert.embeddings.word_embeddings_2"] = mapping
    values = {**SMALL, "num_hidden_layers": 3, "hidden_act": "gelu", "embedding_size": 19}
    directory = write_files(
        tmp_path / "tiny", "albert_config.json", {**values, "ln_type": "postln"}, weights
    )
    loaded, report = load_model(BertForPreTraining, directory)
    assert report.missing == report.unexpected == []
    ids, segments, mask = INPUTS
    output = loaded.eval()(ids, segments, mask)
    tables = model.bert.embeddings
    embedded = torch.nn.functional.layer_norm(
        narrow[ids] @ mapping
        + tables.position_embeddings.weight[:7]
        + tables.token_type_embeddings.weight[segments],
        (32,),
        tables.LayerNorm.weight,
        tables.LayerNorm.bias,
        1e-12,
    )
    assert_close(output.hidden_states[0], embedded)
    hidden = embedded
    for layer in model.bert.encoder.layer:
        hidden = layer(hidden, ((~mask) * -3e4)[:, None, None, :], False)[0]
    assert_close(output.hidden_states[-1], hidden)
    prepared = model.cls.predictions.transform(hidden)
    assert_close(output.logits, prepared @ mapping.T @ narrow.T + model.cls.predictions.bias)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_size": 0}, "embedding_size 0 must be a whole number of at least 1"),
        ({"num_hidden_groups": 5}, "num_hidden_groups 5 must be .* from 1 to num_hidden_layers, 2"),
        ({"inner_group_num": 2}, "inner_group_num 2 is not supported"),
        ({"num_hidden_groups": None, "ln_type": "preln"}, "num_hidden_groups None"),
    ],
)
def test_impossible_alberts_are_refused(changes, message, tmp_path):
    values = {**SMALL, "num_hidden_layers": 2, "model_type": "albert", **changes}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


# python -m transformer.checkpoint ----------------------------------------------------------------


@pytest.mark.parametrize("variant", ["albert", "electra", "distilbert"])
def test_a_directory_is_described_and_converted(variant, tmp_path):
    theirs, model_type = make_theirs(variant, "ForSequenceClassification")
    theirs.save_pretrained(tmp_path / "theirs")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(94))]
    (tmp_path / "theirs" / "vocab.txt").write_text("\n".join(words))
    text = describe(tmp_path / "theirs")
    assert f"{ARCHITECTURES[model_type].title}, 5 layers, width 32, 4 heads" in text
    teacher = next(line for line in text.splitlines() if "teacher, task_distill.py" in line)
    assert teacher.endswith("  yes")
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert f"{count / 1e6:.2f} M" in text
    convert(tmp_path / "theirs", tmp_path / "ours", SAFETENSORS)
    ours = load_model(TinyBertForSequenceClassification, tmp_path / "ours")[0].eval()
    assert_close(numbers_of(ours, *INPUTS), numbers_of_theirs(theirs, *INPUTS))


def test_every_variant_is_known():
    assert {model_type for model_type, _ in VARIANTS.values()} == ARCHITECTURES.keys() - {"bert"}
