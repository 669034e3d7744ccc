"""Checkpoint directories: reading anybody's, writing ours, refusing what is none.

python -m pytest tests/checkpoint/test_directory.py
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorflow_reader import FakeReader

from transformer.checkpoint.__main__ import FORMATS, convert, describe, main
from transformer.checkpoint.directory import (
    Checkpoint,
    load_model,
    read_config,
    read_weights,
    save_checkpoint,
)
from transformer.checkpoint.tensorflow import read_tf_shapes, read_tf_weights
from transformer.files import UserError
from transformer.modeling import (
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    TinyBertForPreTraining,
    TinyBertForSequenceClassification,
)
from transformer.tokenization import BertTokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
REAL_MLM = REPOSITORY.parent / "shared" / "data" / "models" / "bert-6l-384-mlm"
NLI = {0: "contradiction", 1: "entailment", 2: "neutral"}


def edit_config(directory: Path, *, drop: tuple[str, ...] = (), **changes: object) -> None:
    """Change keys of the config.json in `directory`."""
    file = directory / "config.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: values[key] for key in values if key not in drop}))


def edit_weights(directory: Path, edit) -> dict[str, torch.Tensor]:
    """Replace model.safetensors by a pytorch_model.bin of what `edit` makes of its tensors."""
    weights = edit(load_file(directory / "model.safetensors"))
    (directory / "model.safetensors").unlink()
    torch.save(weights, directory / "pytorch_model.bin")
    return weights


def inputs(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, segments and a mask with padding; 3 sequences of 11, 7 and 4 tokens."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(vocab_size, (3, 11), generator=generator)
    segments = (torch.arange(11) > 3).long().expand(3, 11)
    mask = (torch.arange(11) < torch.tensor([[11], [7], [4]])).long()
    return ids, segments, mask


def same_weights(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.fixture
def task_dir(make_checkpoint) -> Path:
    """Make a classifier with three labels and a projection."""
    return make_checkpoint("task", TinyBertForSequenceClassification, id2label=NLI, fit_size=48)


# Round trips -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({}, {"model.safetensors"}),
        ({"save_bin": True}, {"model.safetensors", "pytorch_model.bin"}),
        ({"safetensors": False}, {"pytorch_model.bin"}),
    ],
)
@pytest.mark.parametrize(
    "model_class",
    [
        BertModel,
        BertForMaskedLM,
        BertForPreTraining,
        TinyBertForPreTraining,
        TinyBertForSequenceClassification,
    ],
)
def test_what_was_saved_is_loaded(model_class, options, files, tiny_config, vocab_file, tmp_path):
    config = replace(tiny_config, id2label=NLI, fit_size=48, fit_per_layer=True)
    model = model_class(config)
    tokenizer = BertTokenizer(str(vocab_file), do_lower_case=True)
    save_checkpoint(model, tokenizer, tmp_path / "saved", **options)
    weights = {"pytorch_model.bin", "model.safetensors"}
    assert weights & {path.name for path in (tmp_path / "saved").iterdir()} == files

    loaded, report = load_model(model_class, tmp_path / "saved")
    assert same_weights(model, loaded)
    assert loaded.config.id2label == NLI
    assert not report.missing
    assert not report.unexpected
    assert BertTokenizer.from_pretrained(tmp_path / "saved").do_lower_case
    assert (tmp_path / "saved" / "vocab.txt").read_bytes() == vocab_file.read_bytes()


def test_unknown_configuration_keys_survive_and_stale_ones_do_not(task_dir, tmp_path):
    edit_config(task_dir, my_note="kept", transformers_version="1.0", torch_dtype="float16")
    model, _ = load_model(TinyBertForSequenceClassification, task_dir)
    save_checkpoint(model, None, tmp_path / "again")
    values = json.loads((tmp_path / "again" / "config.json").read_text())
    assert values["my_note"] == "kept"
    assert values["label2id"] == {"contradiction": 0, "entailment": 1, "neutral": 2}
    assert values["dtype"] == "float32"
    assert not {"transformers_version", "torch_dtype"} & values.keys()


def test_overwriting_never_leaves_weights_of_another_format(task_dir, vocab_file, tiny_config):
    """Old shards and indexes, and those of a former version, may not outlive a new model."""
    old = edit_weights(task_dir, dict)
    save_file(old, task_dir / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}
    (task_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.manual_seed(1)
    model = TinyBertForSequenceClassification(replace(tiny_config, id2label=NLI, fit_size=48))
    for options, name in (
        ({}, "model.safetensors"),
        ({"safetensors": False}, "pytorch_model.bin"),
        ({}, "model.safetensors"),
    ):
        save_checkpoint(model, BertTokenizer(str(vocab_file)), task_dir, **options)
        assert same_weights(model, load_model(type(model), task_dir)[0])
        found = [*task_dir.glob("*.safetensors*"), *task_dir.glob("*.bin*")]
        assert [path.name for path in found] == [name]


def test_of_two_formats_safetensors_is_read(task_dir):
    """Where a former version wrote both, they are equal; where not, one must win for good."""
    weights = load_file(task_dir / "model.safetensors")
    torch.save({name: value + 1 for name, value in weights.items()}, task_dir / "pytorch_model.bin")
    read = read_weights(task_dir)
    assert all(torch.equal(read[name], weights[name]) for name in weights)


def test_what_only_training_uses_is_left_out_of_a_finished_model(task_dir, tmp_path):
    model, _ = load_model(TinyBertForSequenceClassification, task_dir)
    save_checkpoint(model, None, tmp_path / "done", keep_projection=False)
    names = load_file(tmp_path / "done" / "model.safetensors").keys()
    assert names == {name for name in model.state_dict() if not name.startswith("fit_")}
    values = json.loads((tmp_path / "done" / "config.json").read_text())
    assert (values["fit_size"], values["fit_per_layer"]) == (0, False)
    assert model.config.fit_size == 48  # the model itself stays as it is
    again, report = load_model(TinyBertForSequenceClassification, tmp_path / "done")
    assert not report.missing and not report.unexpected
    ids = inputs(model.config.vocab_size)
    with torch.no_grad():
        assert torch.equal(again.eval()(*ids).logits, model.eval()(*ids).logits)


class Crash(BaseException):
    """Stand for a process that is killed."""


@pytest.mark.parametrize("same_config", [True, False])
@pytest.mark.parametrize("stale", ["safetensors", "bin"])
def test_killed_at_any_step_a_save_leaves_old_or_new_or_nothing(
    same_config, stale, tiny_config, vocab_file, tmp_path, monkeypatch
):
    """Die before each change to the file system in turn; the directory is never a mixture."""
    tokenizer = BertTokenizer(str(vocab_file), do_lower_case=True)
    config = replace(tiny_config, id2label=NLI)
    old = TinyBertForSequenceClassification(config)
    new = TinyBertForSequenceClassification(
        config if same_config else replace(config, classifier_relu=True)
    )
    real_replace, real_unlink = os.replace, Path.unlink
    outcomes = set()
    for survived in range(20):
        directory = tmp_path / f"{survived}"
        save_checkpoint(old, tokenizer, directory, safetensors=stale == "safetensors")
        steps = iter(range(survived))

        def dying(real, steps=steps):
            def call(*args, **kwargs):
                if next(steps, None) is None:
                    raise Crash
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying(real_replace))
            patch.setattr(Path, "unlink", dying(real_unlink))
            try:
                save_checkpoint(new, tokenizer, directory)
                finished = True
            except Crash:
                finished = False
        try:
            loaded, _ = load_model(type(old), directory)
        except UserError as error:
            assert "neither config.json" in str(error)
            outcomes.add("refused")
            continue
        is_new = same_weights(loaded, new)
        assert is_new or same_weights(loaded, old)
        assert loaded.config.classifier_relu == (new if is_new else old).config.classifier_relu
        outcomes.add("new" if is_new else "old")
        if finished:
            assert is_new
            break
    assert finished
    assert outcomes == ({"old", "new"} if same_config else {"old", "refused", "new"})


# Opened once -------------------------------------------------------------------------------------


def test_a_checkpoint_is_opened_once(task_dir, monkeypatch):
    """Every file of it is read once, whoever asks for what; the weights when they are loaded."""
    counts = Counter()
    for module, name in (
        ("directory", "read_values"),
        ("weight_files", "_read_shapes"),
        ("weight_files", "_read_file"),
        ("directory", "find_weights"),
    ):
        target = f"transformer.checkpoint.{module}.{name}"
        real = getattr(import_module(f"transformer.checkpoint.{module}"), name)

        def counted(*args, name=name, real=real):
            counts[name] += 1
            return real(*args)

        monkeypatch.setattr(target, counted)
    checkpoint = Checkpoint(task_dir)
    assert checkpoint.config is checkpoint.config
    assert checkpoint.tokenizer is checkpoint.tokenizer
    assert checkpoint.shapes["classifier.weight"] == (3, 32)
    assert checkpoint.groups == {"encoder", "pooler", "classifier", "fit"}
    checkpoint.check(TinyBertForSequenceClassification, require=("classifier",))
    assert counts == {"read_values": 1, "find_weights": 1, "_read_shapes": 1}
    checkpoint.load(TinyBertForSequenceClassification)
    assert counts == {"read_values": 1, "find_weights": 1, "_read_shapes": 1, "_read_file": 1}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 36}, "the configuration makes it"),
        ({"num_hidden_layers": 5}, "lacks the encoder"),
        ({"num_hidden_layers": 3}, "no place for"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": None}, "3 outputs, .* names 2 labels"),
    ],
)
def test_check_finds_from_headers_what_load_would(changes, says, task_dir, monkeypatch):
    edit_config(task_dir, **changes)
    with pytest.raises(UserError, match=says):
        Checkpoint(task_dir).load(TinyBertForSequenceClassification)
    monkeypatch.setattr(Checkpoint, "read_weights", None)
    with pytest.raises(UserError, match=says):
        Checkpoint(task_dir).check(TinyBertForSequenceClassification)


# What others wrote -------------------------------------------------------------------------------


def old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name LayerNorm's parameters as the first releases did."""
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in weights.items()
    }


def without_prefix(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("bert."): tensor for name, tensor in weights.items()}


def with_extras(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add what Hugging Face's older versions and DataParallel add."""
    extras = {
        "bert.embeddings.position_ids": torch.arange(64)[None],
        "cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"].clone(),
        "cls.predictions.decoder.bias": weights["cls.predictions.bias"].clone(),
    }
    return {f"module.{name}": tensor for name, tensor in {**weights, **extras}.items()}


def wrapped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name the weights as an attribute `net` of another module, beside something of its own."""
    return {f"net.{name}": tensor for name, tensor in weights.items()}


def wrapped_without_prefix(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        f"0.auto_model.{name.removeprefix('bert.')}" if name.startswith("bert.") else name: tensor
        for name, tensor in weights.items()
    }


@pytest.mark.parametrize(
    "edit", [old_names, without_prefix, with_extras, wrapped, wrapped_without_prefix]
)
def test_names_of_others(edit, make_checkpoint):
    directory = make_checkpoint("mlm", BertForMaskedLM)
    expected, _ = load_model(BertForMaskedLM, directory)
    edited = edit_weights(directory, edit)
    assert not edited.keys() <= expected.state_dict().keys()
    loaded, report = load_model(BertForMaskedLM, directory, require=("mlm",))
    assert same_weights(loaded, expected)
    assert not report.unexpected
    assert not report.missing


def test_decoder_bias_alone_is_the_bias(make_checkpoint):
    directory = make_checkpoint("mlm", BertForMaskedLM)

    def rename(weights):
        weights["cls.predictions.decoder.bias"] = weights.pop("cls.predictions.bias") + 0.5
        return weights

    edit_weights(directory, rename)
    loaded, _ = load_model(BertForMaskedLM, directory, require=("mlm",))
    assert torch.equal(
        loaded.cls.predictions.bias.data, torch.full_like(loaded.cls.predictions.bias.data, 0.5)
    )


def test_bert_config_json_is_read(task_dir):
    (task_dir / "config.json").rename(task_dir / "bert_config.json")
    assert read_config(task_dir).id2label == NLI


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_shards(kind, task_dir):
    expected, _ = load_model(TinyBertForSequenceClassification, task_dir)
    weights = load_file(task_dir / "model.safetensors")
    (task_dir / "model.safetensors").unlink()
    names = sorted(weights)
    stem, suffix, save = {
        "bin": ("pytorch_model", "bin", torch.save),
        "safetensors": ("model", "safetensors", save_file),
    }[kind]
    weight_map = {}
    for number, part in enumerate((names[:20], names[20:]), start=1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        save({name: weights[name] for name in part}, task_dir / file)
        weight_map.update(dict.fromkeys(part, file))
    index = task_dir / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert same_weights(load_model(TinyBertForSequenceClassification, task_dir)[0], expected)

    (task_dir / f"{stem}-00002-of-00002.{suffix}").unlink()
    with pytest.raises(UserError, match="shard .*-00002-of-00002.* is missing"):
        load_model(TinyBertForSequenceClassification, task_dir)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.bin"}}))
    with pytest.raises(UserError, match="outside of the directory"):
        read_weights(task_dir)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_fp32(dtype, task_dir):
    halves = edit_weights(task_dir, lambda weights: {k: v.to(dtype) for k, v in weights.items()})
    model, _ = load_model(TinyBertForSequenceClassification, task_dir)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, halves[name].float())


def test_files_from_before_pytorch_1_6(task_dir):
    expected, _ = load_model(TinyBertForSequenceClassification, task_dir)
    weights = edit_weights(task_dir, dict)
    torch.save(weights, task_dir / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert same_weights(load_model(TinyBertForSequenceClassification, task_dir)[0], expected)


def test_an_original_release_is_recognised(make_checkpoint, caplog):
    """The original's config.json says nothing of projection, labels or the ReLU before them."""
    directory = make_checkpoint(
        "old", TinyBertForSequenceClassification, id2label=NLI, fit_size=48, fit_per_layer=True
    )
    ours = ("fit_size", "fit_per_layer", "classifier_relu", "id2label", "label2id", "model_type")
    edit_config(directory, drop=(*ours, "problem_type", "architectures", "dtype"))
    config = read_config(directory)
    assert (config.fit_size, config.fit_per_layer, config.classifier_relu) == (48, True, True)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    _, report = load_model(TinyBertForSequenceClassification, directory)
    with caplog.at_level(logging.INFO):
        report.log()
    (record,) = caplog.records
    assert "ReLU(pooled)" in record.message
    assert "fit (10 tensors)" in record.message


def test_a_general_model_of_the_authors_gets_a_classifier_with_relu(make_checkpoint, caplog):
    """It holds no classifier yet; the one that it gets must read what the original's reads."""
    directory = make_checkpoint("general", TinyBertForPreTraining, fit_size=48)
    assert not read_config(directory).classifier_relu  # written here, it says so itself
    edit_config(directory, drop=("classifier_relu", "fit_size", "fit_per_layer"))
    assert read_config(directory).classifier_relu
    with caplog.at_level(logging.INFO):
        student = TinyBertForSequenceClassification.from_pretrained(directory, num_labels=3)
    assert student.config.classifier_relu
    assert "reads ReLU(pooled) (there is a projection)" in caplog.text


def test_a_foreign_classifier_without_projection_has_no_relu(make_checkpoint):
    directory = make_checkpoint("hf", TinyBertForSequenceClassification, id2label=NLI)
    edit_config(directory, drop=("classifier_relu", "fit_size"))
    assert not read_config(directory).classifier_relu
    edit_config(directory, classifier_relu=True)
    assert read_config(directory).classifier_relu


def test_one_output_is_a_regression(make_checkpoint):
    directory = make_checkpoint("sts", TinyBertForSequenceClassification, problem_type="regression")
    edit_config(directory, drop=("id2label", "label2id", "problem_type"))
    assert read_config(directory).problem_type == "regression"


def test_a_shared_projection_fills_one_for_each_layer(make_checkpoint):
    directory = make_checkpoint("general", TinyBertForPreTraining, fit_size=48)
    shared, _ = load_model(TinyBertForPreTraining, directory)
    changes = {"fit_per_layer": True}
    model, report = load_model(TinyBertForPreTraining, directory, config_changes=changes)
    assert not report.missing
    for dense in model.fit_denses:
        assert torch.equal(dense.weight, shared.fit_dense.weight)


def test_a_projection_to_another_width_is_made_anew(make_checkpoint):
    directory = make_checkpoint("general", TinyBertForPreTraining, fit_size=48)
    model, report = load_model(TinyBertForPreTraining, directory, config_changes={"fit_size": 64})
    assert report.missing == ["fit_dense.weight", "fit_dense.bias"]
    assert sorted(report.unexpected) == ["fit_dense.bias", "fit_dense.weight"]
    assert model.fit_dense.weight.shape == (64, 32)
    with pytest.raises(UserError, match="lacks the projection"):
        load_model(
            TinyBertForPreTraining, directory, require=("fit",), config_changes={"fit_size": 64}
        )


def test_a_general_student_becomes_a_task_student(make_checkpoint, caplog):
    directory = make_checkpoint("general", TinyBertForPreTraining, fit_size=48)
    general, _ = load_model(TinyBertForPreTraining, directory)
    model, report = load_model(
        TinyBertForSequenceClassification, directory, config_changes={"id2label": NLI}
    )
    assert same_weights(model.bert.encoder, general.bert.encoder)
    assert model.classifier.out_features == 3
    assert {name.split(".")[0] for name in report.missing} == {"bert", "classifier"}
    with caplog.at_level(logging.WARNING):
        report.log()
    (record,) = caplog.records
    assert "newly initialised: pooler (2 tensors), classifier (2 tensors)" in record.message


def test_left_over_heads_are_reported_in_groups(make_checkpoint, caplog):
    directory = make_checkpoint("both", BertForPreTraining)
    edit_weights(directory, lambda weights: {**weights, "strange.thing": torch.ones(2)})
    _, report = load_model(BertModel, directory)
    with caplog.at_level(logging.INFO):
        report.log()
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "not used: mlm (5 tensors), nsp (2 tensors), strange.thing" in record.message


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_class", "group", "message"),
    [
        (BertForMaskedLM, "mlm", "lacks the masked-LM head .*5 tensors missing"),
        (TinyBertForSequenceClassification, "classifier", "lacks the classifier"),
        (BertModel, "pooler", "lacks the pooler"),
        (TinyBertForPreTraining, "fit", "lacks the projection"),
    ],
)
def test_a_requested_part_must_be_there(model_class, group, message, make_checkpoint):
    directory = make_checkpoint("bare", TinyBertForPreTraining)
    with pytest.raises(UserError, match=message):
        load_model(model_class, directory, require=("encoder", group))


@pytest.mark.parametrize("beginning", ["bert.", "bert.encoder.layer.3.", "bert.embeddings.word"])
def test_an_encoder_that_is_not_whole_is_refused(beginning, task_dir):
    edit_weights(
        task_dir, lambda weights: {k: v for k, v in weights.items() if not k.startswith(beginning)}
    )
    with pytest.raises(UserError, match="lacks the encoder"):
        load_model(TinyBertForSequenceClassification, task_dir, require=())


def test_layers_that_the_configuration_does_not_know_are_refused(task_dir):
    edit_config(task_dir, num_hidden_layers=3)
    with pytest.raises(UserError, match=r"16 tensors of the encoder.*bert.encoder.layer.3"):
        load_model(TinyBertForSequenceClassification, task_dir)


def test_fewer_layers_may_be_asked_for(make_checkpoint):
    directory = make_checkpoint("general", TinyBertForPreTraining)
    changes = {"num_hidden_layers": 2}
    model, _ = load_model(TinyBertForPreTraining, directory, config_changes=changes)
    assert len(model.bert.encoder.layer) == 2


def test_other_shapes_are_refused_with_both(task_dir):
    edit_config(task_dir, intermediate_size=39)
    with pytest.raises(UserError, match=r"intermediate.*\(37, 32\).*\(39, 32\)"):
        load_model(TinyBertForSequenceClassification, task_dir)


def test_a_classifier_of_another_size_shows_both_label_lists(task_dir):
    changes = {"id2label": {0: "no", 1: "yes"}}
    message = r"3 labels \(contradiction, entailment, neutral\).*2 are asked for \(no, yes\)"
    with pytest.raises(UserError, match=message):
        load_model(TinyBertForSequenceClassification, task_dir, config_changes=changes)
    edit_config(task_dir, id2label={"0": "no", "1": "yes"})
    with pytest.raises(UserError, match=r"3 outputs.*2 labels \(no, yes\)"):
        load_model(TinyBertForSequenceClassification, task_dir)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, task_dir):
    name = "bert.encoder.layer.2.attention.self.key.bias"

    def spoil(weights):
        weights[name][3] = value
        return weights

    edit_weights(task_dir, spoil)
    with pytest.raises(UserError, match=f"{name} holds values that are NaN or infinite"):
        load_model(TinyBertForSequenceClassification, task_dir)


def test_quantised_weights_are_refused(task_dir):
    edit_weights(task_dir, lambda weights: {k: v.to(torch.int8) for k, v in weights.items()})
    with pytest.raises(UserError, match="is int8; quantised"):
        load_model(TinyBertForSequenceClassification, task_dir)


@pytest.mark.parametrize("kind", ["bin", "legacy", "safetensors"])
def test_a_file_cut_short_is_refused(kind, task_dir):
    """Cut at every 61st part of the file; at none may it load or raise anything else."""
    file = task_dir / "model.safetensors"
    if kind != "safetensors":
        weights = edit_weights(task_dir, dict)
        file = task_dir / "pytorch_model.bin"
        torch.save(weights, file, _use_new_zipfile_serialization=kind == "bin")
    content = file.read_bytes()
    for part in range(61):
        file.write_bytes(content[: len(content) * part // 61])
        with pytest.raises(UserError, match=r"cut short|is empty"):
            load_model(TinyBertForSequenceClassification, task_dir)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(UserError, match="Git LFS"):
        load_model(TinyBertForSequenceClassification, task_dir)


class Payload:
    """Pickle to a call, as a malicious file would."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_pickle_runs_nothing(task_dir, tmp_path):
    target = tmp_path / "executed"
    edit_weights(task_dir, lambda weights: {**weights, "payload": Payload(target)})
    with pytest.raises(UserError, match="holds Python objects besides tensors"):
        read_weights(task_dir)
    assert not target.exists()


def test_a_whole_pickled_training_state_is_refused(task_dir):
    edit_weights(task_dir, lambda weights: {"model": weights, "step": 3})
    with pytest.raises(UserError, match="not a dictionary of tensors"):
        read_weights(task_dir)


def test_an_own_decoder_is_refused_for_masked_lm_only(make_checkpoint):
    directory = make_checkpoint("mlm", BertForMaskedLM)

    def untie(weights):
        decoder = weights["bert.embeddings.word_embeddings.weight"] + 1
        return {**weights, "cls.predictions.decoder.weight": decoder}

    edit_weights(directory, untie)
    load_model(BertModel, directory)
    with pytest.raises(UserError, match="decoder of its own"):
        load_model(BertForMaskedLM, directory)


def test_a_vocabulary_of_more_entries_is_refused(task_dir):
    file = task_dir / "vocab.txt"
    entries = [*file.read_text().splitlines(), "one-more"]
    file.write_text("\n".join(entries) + "\n")
    message = rf"holds {len(entries)} entries.*vocab_size {len(entries) - 1}"
    with pytest.raises(UserError, match=message):
        load_model(TinyBertForSequenceClassification, task_dir)
    ids = {token: number for number, token in enumerate(entries)}
    file.unlink()
    tokenizer = {"model": {"type": "WordPiece", "vocab": ids}}
    (task_dir / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=rf"the vocabulary holds {len(entries)} entries"):
        Checkpoint(task_dir).tokenizer  # noqa: B018


def test_a_model_may_have_more_rows_than_entries(task_dir):
    """As those whose words were padded to a round number."""
    file = task_dir / "vocab.txt"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    load_model(TinyBertForSequenceClassification, task_dir)


@pytest.mark.parametrize("value", [torch.tensor(3), torch.tensor(True), torch.tensor(-math.inf)])
def test_what_is_no_weight_may_be_anything(value, task_dir):
    edit_weights(task_dir, lambda weights: {**weights, "val_acc.total": value})
    _, report = load_model(TinyBertForSequenceClassification, task_dir)
    assert report.unexpected == ["val_acc.total"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "roberta"},
            "model_type roberta has other words.*--teacher_logits",
        ),
        (
            {"model_type": "gru"},
            "model_type gru is not supported; choose .* bert, nezha",
        ),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type .* not supported"),
        ({"is_decoder": True}, "is_decoder true is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": "wide"}, "config.json: hidden_size 'wide'"),
        ({"hidden_dropout_prob": "much"}, "config.json: hidden_dropout_prob .much."),
        ({"id2label": ["a", "b"]}, "config.json: a value has the wrong type"),
        ({"num_attention_heads": 5}, "config.json: hidden_size 32 is not a multiple of .* 5"),
    ],
)
def test_other_models_and_impossible_values_are_refused(changes, message, task_dir):
    edit_config(task_dir, **changes)
    with pytest.raises(UserError, match=message):
        load_model(TinyBertForSequenceClassification, task_dir)


WRONG_VALUES = [
    *(None, True, "false", "", 1.5, -1, 10**9, 10**30, math.inf, math.nan),
    *([], ["a"], {}, {"a": []}, [{}]),
]


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_wrong_types_are_used_or_refused_in_one_line(file, task_dir):
    """Put every wrong value under every key, and read the checkpoint again."""
    if file == "tokenizer.json":
        (task_dir / "vocab.txt").unlink()
    original = json.loads((task_dir / file).read_text(encoding="utf-8"))
    keys = {*original, "added_tokens_decoder", "additional_special_tokens", "never_split"}
    refused = set()
    for key in sorted(keys):
        for value in WRONG_VALUES:
            (task_dir / file).write_text(json.dumps({**original, key: value}))
            try:
                read_config(task_dir)
                BertTokenizer.from_pretrained(task_dir)
            except UserError as error:
                assert "\n" not in str(error) and str(task_dir) in str(error), (key, value)
                refused.add(key)
    assert refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1,000,000,000 is beyond reason"),
        ({"hidden_size": 10**9}, "a model of .* parameters is beyond reason"),
        ({"vocab_size": 10**12}, "a model of .* parameters is beyond reason"),
        ({"fit_size": 10**12}, "a model of .* parameters is beyond reason"),
        ({"num_hidden_layers": True}, "num_hidden_layers True must be a whole number"),
        ({"classifier_relu": "false"}, "classifier_relu 'false' must be true or false"),
        ({"pad_token_id": 0.5}, "pad_token_id 0.5 must be a whole number"),
    ],
)
def test_sizes_beyond_reason_are_refused_before_anything_is_allocated(
    changes, message, task_dir, monkeypatch
):
    monkeypatch.setattr(torch.nn.Embedding, "__init__", lambda *sizes: pytest.fail(f"{sizes}"))
    edit_config(task_dir, **changes)
    with pytest.raises(UserError, match=message):
        load_model(TinyBertForSequenceClassification, task_dir)
    with pytest.raises(UserError, match=message):
        main([str(task_dir)])


@pytest.mark.parametrize(
    "file",
    ["config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors.index.json"],
)
def test_json_that_is_nested_too_deeply_is_told(file, task_dir):
    (task_dir / file).write_text('{"a":' * 200_000)
    if "index" in file:
        (task_dir / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"\.json: .*nested too deeply"):
        load_model(TinyBertForSequenceClassification, task_dir)
        BertTokenizer.from_pretrained(task_dir)


@pytest.mark.parametrize("names", [[1], {"a": 1}, {"a": None}, {"a": ["b"]}, "a", None])
def test_index_of_other_types_is_refused(names, task_dir):
    (task_dir / "model.safetensors").unlink()
    (task_dir / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(UserError, match="index.json: not a valid index"):
        load_model(TinyBertForSequenceClassification, task_dir)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"num_layers": 4}', "\x00\xff"])
def test_what_is_no_configuration_is_refused(text, task_dir):
    (task_dir / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(task_dir)


def test_directories_that_are_no_checkpoint_are_refused(task_dir, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_model(BertModel, tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a file"):
        load_model(BertModel, task_dir / "vocab.txt")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    with pytest.raises(UserError, match=r"neither config\.json nor bert_config\.json"):
        load_model(BertModel, adapter)
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="PEFT adapter"):
        load_model(BertModel, adapter)
    (task_dir / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        load_model(BertModel, task_dir)
    assert read_config(task_dir).hidden_size == 32


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_no_permission_is_told(name, task_dir, monkeypatch):
    """Permissions do not bind the superuser, so the refusal is staged."""

    def refuse(real):
        def call(path, *args, **kwargs):
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **kwargs)

        return call

    monkeypatch.setattr("builtins.open", refuse(open))
    monkeypatch.setattr(Path, "read_text", refuse(Path.read_text))
    monkeypatch.setattr(Path, "read_bytes", refuse(Path.read_bytes))
    with pytest.raises(UserError, match=f"{name}: no permission to read it"):
        load_model(TinyBertForSequenceClassification, task_dir)


def test_a_full_disk_is_told_and_leaves_the_old_checkpoint(task_dir):
    """Files may not grow beyond 60 kB in the child process; the weights need more."""
    code = (
        "import resource, signal, sys\n"
        "from transformer.checkpoint import load_model, save_checkpoint\n"
        "from transformer.modeling import TinyBertForSequenceClassification as Model\n"
        "model, _ = load_model(Model, sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "try:\n"
        "    save_checkpoint(model, None, sys.argv[1])\n"
        "except OSError as error:\n"
        "    sys.exit(str(error))\n"
    )
    before = (task_dir / "model.safetensors").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", code, str(task_dir)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == f"[Errno 27] File too large: '{task_dir / 'model.safetensors'}'\n"
    assert (task_dir / "model.safetensors").read_bytes() == before
    assert not list(task_dir.glob(".*"))


# Hugging Face ------------------------------------------------------------------------------------


@pytest.mark.parametrize("safetensors", [False, True])
def test_hugging_face_opens_ours(safetensors, tiny_config, vocab_file, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = BertTokenizer(str(vocab_file), do_lower_case=True)
    batch = inputs(tiny_config.vocab_size)
    ids, segments, mask = batch
    for model_class, auto, expected_class in (
        (BertModel, transformers.AutoModel, "BertModel"),
        (TinyBertForPreTraining, transformers.AutoModel, "BertModel"),
        (BertForMaskedLM, transformers.AutoModelForMaskedLM, "BertForMaskedLM"),
        (BertForPreTraining, transformers.AutoModelForPreTraining, "BertForPreTraining"),
        (
            TinyBertForSequenceClassification,
            transformers.AutoModelForSequenceClassification,
            "BertForSequenceClassification",
        ),
    ):
        directory = tmp_path / model_class.__name__
        model = model_class(replace(tiny_config, id2label=NLI)).eval()
        save_checkpoint(model, tokenizer, directory, safetensors=safetensors)
        theirs = auto.from_pretrained(directory).eval()
        assert type(theirs).__name__ == expected_class
        assert theirs.config.architectures == [expected_class]
        assert theirs.config.id2label == NLI
        with torch.no_grad():
            output = model(*batch)
            other = theirs(ids, token_type_ids=segments, attention_mask=mask)
        real = mask.bool()
        if expected_class == "BertModel":
            mine, other = output.hidden_states[-1][real], other.last_hidden_state[real]
        elif expected_class == "BertForPreTraining":
            torch.testing.assert_close(
                output.nsp_logits, other.seq_relationship_logits, atol=1e-5, rtol=1e-5
            )
            mine, other = output.logits[real], other.prediction_logits[real]
        else:
            is_mlm = expected_class == "BertForMaskedLM"
            mine = output.logits[real] if is_mlm else output.logits
            other = other.logits[real] if is_mlm else other.logits
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
        assert mine.std() > 0.05  # outputs that are all alike would compare equal to anything

    text = "The film was GREAT, not dull!"
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)


def test_a_finished_model_opens_in_hugging_face_without_a_warning(task_dir, tmp_path, caplog):
    transformers = pytest.importorskip("transformers")
    ours = Checkpoint(task_dir)
    model = ours.load(TinyBertForSequenceClassification)[0].eval()
    save_checkpoint(model, ours.tokenizer, tmp_path / "done", keep_projection=False)
    transformers.utils.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING), warnings.catch_warnings():
            warnings.simplefilter("error")
            pipeline = transformers.pipeline("text-classification", str(tmp_path / "done"))
            (answer,) = pipeline("the film was good")
            assert not caplog.records
            # The same class over the directory with its projection is what the check is for.
            transformers.AutoModelForSequenceClassification.from_pretrained(task_dir)
            assert "fit_dense" in caplog.text
    finally:
        transformers.utils.logging.disable_propagation()
    ids = [ours.tokenizer.cls_id, *ours.tokenizer.encode("the film was good")]
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, ours.tokenizer.sep_id]])).logits[0]
    assert answer["label"] == NLI[int(logits.argmax())]
    assert answer["score"] == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "BertForMaskedLM", "BertModel"])
def test_we_open_hugging_faces(name, tiny_config, tmp_path):
    transformers = pytest.importorskip("transformers")
    values = {**tiny_config.to_dict(), "id2label": NLI, "hidden_act": "gelu_new"}
    torch.manual_seed(3)
    theirs = getattr(transformers, name)(transformers.BertConfig(**values)).eval()
    theirs.save_pretrained(tmp_path)
    ours = {
        "BertForSequenceClassification": TinyBertForSequenceClassification,
        "BertForMaskedLM": BertForMaskedLM,
        "BertModel": BertModel,
    }[name]
    model, report = load_model(ours, tmp_path)
    assert not report.missing
    assert not report.unexpected
    model.eval()
    ids, segments, mask = inputs(tiny_config.vocab_size)
    with torch.no_grad():
        output = model(ids, segments, mask)
        other = theirs(ids, token_type_ids=segments, attention_mask=mask)
    if name == "BertModel":
        torch.testing.assert_close(output.pooled, other.pooler_output, atol=1e-5, rtol=1e-5)
        mine, other = output.hidden_states[-1], other.last_hidden_state
    else:
        mine, other = output.logits, other.logits
    if name != "BertForSequenceClassification":
        mine, other = mine[mask.bool()], other[mask.bool()]
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_relu_heads_are_told_once(tiny_config, tmp_path, caplog):
    model = TinyBertForSequenceClassification(replace(tiny_config, classifier_relu=True))
    with caplog.at_level(logging.INFO):
        save_checkpoint(model, None, tmp_path / "relu")
        save_checkpoint(model, None, tmp_path / "relu")
    (record,) = (record for record in caplog.records if "ReLU" in record.message)
    assert "Hugging Face's BertForSequenceClassification has no ReLU" in record.message


# TensorFlow --------------------------------------------------------------------------------------


def tensorflow_variables(model: BertForPreTraining) -> dict[str, np.ndarray]:
    """Spell the weights of `model` as Google's code does, name by name."""
    sources = {
        "bert/embeddings/word_embeddings": "bert.embeddings.word_embeddings.weight",
        "bert/embeddings/position_embeddings": "bert.embeddings.position_embeddings.weight",
        "bert/embeddings/token_type_embeddings": "bert.embeddings.token_type_embeddings.weight",
        "bert/embeddings/LayerNorm/gamma": "bert.embeddings.LayerNorm.weight",
        "bert/embeddings/LayerNorm/beta": "bert.embeddings.LayerNorm.bias",
        "bert/pooler/dense/kernel": "bert.pooler.dense.weight",
        "bert/pooler/dense/bias": "bert.pooler.dense.bias",
        "cls/predictions/transform/dense/kernel": "cls.predictions.transform.dense.weight",
        "cls/predictions/transform/dense/bias": "cls.predictions.transform.dense.bias",
        "cls/predictions/transform/LayerNorm/gamma": "cls.predictions.transform.LayerNorm.weight",
        "cls/predictions/transform/LayerNorm/beta": "cls.predictions.transform.LayerNorm.bias",
        "cls/predictions/output_bias": "cls.predictions.bias",
        "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
        "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
    }
    for layer in range(model.config.num_hidden_layers):
        theirs, ours = f"bert/encoder/layer_{layer}", f"bert.encoder.layer.{layer}"
        for part in ("attention/self/query", "attention/self/key", "attention/self/value"):
            sources[f"{theirs}/{part}/kernel"] = f"{ours}.{part.replace('/', '.')}.weight"
            sources[f"{theirs}/{part}/bias"] = f"{ours}.{part.replace('/', '.')}.bias"
        for part in ("attention/output", "intermediate", "output"):
            dotted = part.replace("/", ".")
            sources[f"{theirs}/{part}/dense/kernel"] = f"{ours}.{dotted}.dense.weight"
            sources[f"{theirs}/{part}/dense/bias"] = f"{ours}.{dotted}.dense.bias"
            if part != "intermediate":
                sources[f"{theirs}/{part}/LayerNorm/gamma"] = f"{ours}.{dotted}.LayerNorm.weight"
                sources[f"{theirs}/{part}/LayerNorm/beta"] = f"{ours}.{dotted}.LayerNorm.bias"
    state = model.state_dict()
    values = {
        theirs: state[ours].numpy().T.copy() if theirs.endswith("kernel") else state[ours].numpy()
        for theirs, ours in sources.items()
    }
    moments = {
        f"{name}/adam_{m}": np.zeros_like(value) for name, value in values.items() for m in "mv"
    }
    return {**values, **moments, "global_step": np.array(7)}


def test_a_tensorflow_checkpoint_is_read(tiny_config, tmp_path, monkeypatch):
    model = BertForPreTraining(tiny_config)
    reader = FakeReader(tensorflow_variables(model))
    values = tiny_config.to_dict()
    (tmp_path / "bert_config.json").write_text(json.dumps(values))
    (tmp_path / "bert_model.ckpt.index").write_bytes(b"index")
    monkeypatch.setattr("transformer.checkpoint.tensorflow._open_reader", lambda prefix: reader)
    loaded, report = load_model(BertForPreTraining, tmp_path, require=("mlm", "nsp", "pooler"))
    assert same_weights(loaded, model)
    assert not report.unexpected


def test_a_tensorflow_classifier_has_no_scope():
    variables = {"output_weights": np.ones((3, 4)), "output_bias": np.zeros(3)}
    reader = FakeReader({**variables, "dense/kernel": np.ones((5, 6))})
    weights = read_tf_weights(Path("model.ckpt-9"), reader)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    assert shapes == {
        "classifier.weight": (3, 4),
        "classifier.bias": (3,),
        "dense.weight": (6, 5),
    }
    assert read_tf_shapes(Path("model.ckpt-9"), reader) == shapes


def test_a_damaged_tensorflow_checkpoint_is_told(monkeypatch):
    reader = FakeReader({"global_step": np.array(1), "output_bias": np.zeros(3)})
    monkeypatch.setattr(reader, "get_tensor", lambda name: {}["Read less bytes than requested"])
    with pytest.raises(UserError, match=r"model.ckpt is cut short or damaged \(.*Read less bytes"):
        read_tf_weights(Path("model.ckpt"), reader)


def test_tensorflow_is_named_where_it_is_missing(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "bert_config.json").write_text(json.dumps(tiny_config.to_dict()))
    (tmp_path / "bert_model.ckpt.index").write_bytes(b"index")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match="needs the package tensorflow"):
        load_model(BertModel, tmp_path)
    (tmp_path / "model.ckpt-100.index").write_bytes(b"index")
    with pytest.raises(UserError, match="several TensorFlow checkpoints"):
        load_model(BertModel, tmp_path)


# Command -----------------------------------------------------------------------------------------


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "transformer.checkpoint", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_describe(task_dir, make_checkpoint):
    text = describe(task_dir)
    assert "4 layers, width 32, 4 heads, inner width 37" in text
    assert "0 contradiction, 1 entailment, 2 neutral" in text
    assert "fit_dense, shared, 32 -> 48" in text
    uses = dict(line.strip().split("  ", 1) for line in text.splitlines() if ".py" in line)
    answers = {use: answer.strip() for use, answer in uses.items()}
    assert answers["teacher, task_distill.py"] == "yes"
    assert answers["masked LM, data_augmentation.py"] == "no: it lacks mlm (5 tensors)"
    general = describe(make_checkpoint("general", TinyBertForPreTraining))
    assert "no: it lacks pooler (2 tensors), classifier (2 tensors)" in general
    assert "yes; newly initialised: pooler (2 tensors), classifier (2 tensors)" in general


def test_describe_a_student_configuration(tiny_config, vocab_file):
    (vocab_file.parent / "config.json").write_text(json.dumps(tiny_config.to_dict()))
    text = describe(vocab_file.parent)
    assert "no: it lacks encoder" in text


@pytest.mark.parametrize("to", ["safetensors", "bin"])
def test_convert(to, make_checkpoint, tmp_path):
    source = make_checkpoint("both", BertForPreTraining)
    edit_weights(source, old_names)
    report = convert(source, tmp_path / "converted", FORMATS[to])
    assert not report.missing
    written = {path.name for path in (tmp_path / "converted").iterdir()}
    assert {"model.safetensors", "pytorch_model.bin"} & written == {
        "model.safetensors" if to == "safetensors" else "pytorch_model.bin"
    }
    before, _ = load_model(BertForPreTraining, source)
    after, _ = load_model(BertForPreTraining, tmp_path / "converted")
    assert same_weights(before, after)
    if to == "safetensors":
        names = load_file(tmp_path / "converted" / "model.safetensors").keys()
        assert "bert.embeddings.LayerNorm.weight" in names


def test_the_command(task_dir, tmp_path, capsys):
    converted = run_command("convert", task_dir, tmp_path / "new", "--to", "safetensors")
    assert converted.returncode == 0, converted.stderr
    main([str(tmp_path / "new")])
    assert "model.safetensors: encoder (69 tensors)" in capsys.readouterr().out
    with pytest.raises(UserError, match="is not an empty directory"):
        main(["convert", str(task_dir), str(tmp_path / "new")])
    failed = run_command(tmp_path)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.startswith("transformer.checkpoint: error: ")
    assert "neither config.json" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_importing_the_package_is_light():
    code = (
        "import sys, transformer\n"
        "from transformer import BertTokenizer\n"
        "heavy = {'boto3', 'requests', 'matplotlib', 'tensorflow', 'torch'} & set(sys.modules)\n"
        "from transformer import BertForMaskedLM, BertConfig\n"
        "assert not heavy, heavy\n"
        "assert not {'boto3', 'requests', 'matplotlib', 'tensorflow'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not REAL_MLM.exists(), reason="needs the real model beside the checkout")
def test_a_real_masked_lm_gives_hugging_faces_logits():
    transformers = pytest.importorskip("transformers")
    model, report = load_model(BertForMaskedLM, REAL_MLM, require=("mlm",))
    assert not report.missing
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(REAL_MLM, dtype=torch.float32).eval()
    ids, segments, mask = inputs(30522)
    model.eval()
    with torch.no_grad():
        mine = model(ids, segments, mask).logits[mask.bool()]
        other = theirs(ids, token_type_ids=segments, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-5)
