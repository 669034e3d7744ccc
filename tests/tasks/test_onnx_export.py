"""The export to ONNX: the same logits, int8, what may be replaced, the README's snippet."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from transformer.files import EnvironmentFault, UserError
from transformer.modeling import TinyBertForSequenceClassification
from transformer.tasks import onnx_export, targets
from transformer.tasks.onnx_export import INPUTS, GraphModel, export_onnx, make_graph
from transformer.tasks.targets import check_export
from transformer.tokenization import BertTokenizer

needs_packages = pytest.mark.skipif(
    not all(map(find_spec, targets.ONNX_PACKAGES)), reason="needs requirements-onnx.txt"
)
README = Path(__file__).resolve().parents[2] / "README.md"


def student(tiny_config, **changes: object) -> TinyBertForSequenceClassification:
    torch.manual_seed(0)
    names = {0: "no", 1: "yes"}
    config = replace(tiny_config, **{"num_hidden_layers": 2, "id2label": names, **changes})
    return TinyBertForSequenceClassification(config)


def answers(graph: Path, feed: dict[str, torch.Tensor]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {name: value.numpy() for name, value in feed.items()})[0]


@needs_packages
def test_a_directory_is_exported_and_answers_as_pytorch_and_as_the_readme_says(
    tiny_config, vocab_file, tmp_path, monkeypatch, capsys
):
    import onnx

    model = student(tiny_config, classifier_relu=True, fit_size=48).train()
    target = tmp_path / "runs" / "sst2_onnx"
    target.parent.mkdir()
    check_export(target, int8=True)
    tokenizer = BertTokenizer(vocab_file, do_lower_case=False)
    content = make_graph(model, tokenizer)
    export_onnx(content, model, tokenizer, target, int8=True)
    assert model.training
    graph = onnx.load(target / "model.onnx")
    facts = {prop.key: json.loads(prop.value) for prop in graph.metadata_props}
    assert facts["id2label"] == {"0": "no", "1": "yes"}
    assert facts["do_lower_case"] is False
    shapes = [[dim.dim_param for dim in i.type.tensor_type.shape.dim] for i in graph.graph.input]
    assert [value.name for value in graph.graph.input] == list(INPUTS)
    assert shapes == [["batch", "length"]] * 3

    model.eval()
    called = GraphModel(content, model)
    assert (called.config, called.per_token) == (model.config, False)
    for batch_size, length in ((1, 1), (7, 64), (3, 12)):
        ids = torch.randint(tiny_config.vocab_size, (batch_size, length))
        segments = torch.randint(2, (batch_size, length))
        mask = (torch.arange(length) <= length // 2).long().expand(batch_size, length)
        feed = dict(zip(INPUTS, (ids, mask, segments), strict=True))
        with torch.no_grad():
            expected = model(ids, segments, mask).logits.numpy()
        assert np.abs(answers(target / "model.onnx", feed) - expected).max() < 1e-5
        found = called(ids, segments, mask, only_logits=True).logits
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, rtol=1e-5)
        # Weights of 7 bits: a step is 1/64 of the largest.
        assert np.abs(answers(target / "model_int8.onnx", feed) - expected).max() < 0.1

    small = onnx.load(target / "model_int8.onnx")
    kinds = {value.name: value.data_type for value in small.graph.initializer}
    words = [kind for name, kind in kinds.items() if "word_embeddings.weight_quantized" in name]
    assert words == [onnx.TensorProto.UINT8]
    matrices = [value for value in small.graph.initializer if len(value.dims) == 2]
    assert sum(value.data_type == onnx.TensorProto.INT8 for value in matrices) == 2 * 6 + 2
    assert list(small.metadata_props)[-3:] == list(graph.metadata_props)
    config = json.loads((target / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert BertTokenizer.from_pretrained(target).do_lower_case is False

    # The snippet of the README, as it stands there, in a directory where its paths lead somewhere.
    snippet = next(
        code
        for code in re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
        if "onnxruntime" in code
    )
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(snippet.replace("truncation(128)", "truncation(64)"), {})
    assert re.fullmatch(r"\['(no|yes)', '(no|yes)'\]\n", capsys.readouterr().out)

    check_export(target, int8=False)  # a former export is replaced ...
    (target / "model.onnx").write_bytes(b"another program's")
    with pytest.raises(UserError, match="but no export of ours"):
        check_export(target, int8=False)


@needs_packages
def test_a_compiled_model_held_in_bf16_is_exported_and_a_wrong_graph_is_not_written(
    tiny_config, vocab_file, tmp_path, monkeypatch
):
    def compiled(*inputs, **options):
        raise RuntimeError("cannot be traced")

    model = student(tiny_config, num_hidden_layers=1).to(torch.bfloat16)
    tokenizer = BertTokenizer(vocab_file)
    model.forward = compiled
    graph = make_graph(model, tokenizer)
    assert model.forward is compiled
    assert model.classifier.weight.dtype == torch.bfloat16

    del model.forward
    with torch.no_grad():
        model.classifier.bias += 1
    monkeypatch.setattr(onnx_export, "_trace", lambda wrapped: graph)
    with pytest.raises(RuntimeError, match="differ from PyTorch's by 1"):
        make_graph(model, tokenizer)


def test_mistakes_are_found_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(EnvironmentFault, match="onnxscript: pip install -r requirements-onnx.txt"):
        check_export(tmp_path / "new", int8=False)
    monkeypatch.setattr(targets, "find_spec", lambda name: name)
    check_export(tmp_path / "new", int8=True)
    check_export(tmp_path / "new.onnx", int8=False)
    (tmp_path / "empty").mkdir()
    check_export(tmp_path / "empty", int8=True)
    for target in ("nowhere/new", "nowhere/new.onnx"):
        with pytest.raises(UserError, match="no such directory; create .*nowhere first"):
            check_export(tmp_path / target, int8=False)
    with pytest.raises(UserError, match="is a file; give a directory"):
        check_export(tmp_path / "new.onnx", int8=True)
    check_export(tmp_path / "run" / "onnx", int8=True, output_dir=tmp_path / "run")
    with pytest.raises(UserError, match="is the --output_dir; give a directory of its own"):
        check_export(tmp_path / "run", int8=True, output_dir=tmp_path / "x" / ".." / "run")
    with pytest.raises(UserError, match="no such directory; create .*run/a first"):
        check_export(tmp_path / "run" / "a" / "onnx", int8=True, output_dir=tmp_path / "run")
    monkeypatch.setattr(targets.os, "access", lambda place, mode: place != tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} may not be written to"):
        check_export(tmp_path / "new", int8=True)
    check_export(tmp_path / "empty", int8=True)
    monkeypatch.undo()
    (tmp_path / "data.tsv").write_text("sentence\tlabel\n")
    with pytest.raises(UserError, match="would replace .*data.tsv, which is not an ONNX graph"):
        check_export(tmp_path / "data.tsv", int8=False)
    shutil.copytree(tmp_path / "empty", tmp_path / "foreign")
    (tmp_path / "foreign" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="foreign holds files .config.json, .* no export of ours"):
        check_export(tmp_path / "foreign", int8=False)
