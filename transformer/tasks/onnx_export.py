"""Export a model to ONNX, for runtimes without PyTorch, in fp32 and in int8.

Needs the packages of requirements-onnx.txt.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from transformer.checkpoint.config_file import config_text
from transformer.files import atomic_write
from transformer.tasks.targets import GRAPH_NAME, INT8_NAME, is_graph_file
from transformer.tokenization import BertTokenizer

logger = logging.getLogger(__name__)

OPSET = 18  # the first that torch's exporter writes; onnxruntime reads it since 1.14 (2023)

INPUTS = ("input_ids", "attention_mask", "token_type_ids")

OUTPUT = "logits"

TOLERANCE = 1e-4  # of the largest logit, or of 1 if that is larger


class _Positional(nn.Module):
    """Call a classifier with the inputs in the order of `INPUTS`, and return its logits only."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        inputs = input_ids, token_type_ids, attention_mask
        return self.model(*inputs, only_logits=True).logits


def export_onnx(
    graph: bytes,
    model: nn.Module,
    tokenizer: BertTokenizer,
    target: Path,
    *,
    int8: bool = False,
) -> None:
    """Write `graph`, which `make_graph` made of `model`, to a file or a directory called `target`.

    A directory gets model.onnx, the tokenizer's files and config.json; with `int8` also
    model_int8.onnx. `tasks.targets.check_export` has found the packages and the place to be fit.
    """
    if is_graph_file(target):
        _write(target, graph)
        return
    small = quantize(graph) if int8 else None
    target.mkdir(exist_ok=True)
    _write(target / GRAPH_NAME, graph)
    if small is None:  # that of a former export is another model's
        (target / INT8_NAME).unlink(missing_ok=True)
    else:
        _write(target / INT8_NAME, small)
    tokenizer.save_pretrained(target)
    config = model.config.changed(fit_size=0, fit_per_layer=False)  # only training has a projection
    with atomic_write(target / "config.json") as file:
        file.write(config_text(config, dict(model.named_parameters()), "float32"))


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path, "wb", encoding=None) as file:
        file.write(content)
    logger.info("%s: ONNX opset %d, %.1f MB", path, OPSET, len(content) / 1e6)


def make_graph(model: nn.Module, tokenizer: BertTokenizer) -> bytes:
    """Return the classifier `model` as an ONNX graph in fp32; batch size and length are free.

    Inputs, all (B, T) int64: input_ids, attention_mask (1 at real tokens), token_type_ids (not of
    DistilBERT, which knows no segments). Output: logits (B, C), of a tagger (B, T, C). The labels,
    whether the tokenizer lower-cases, and `max_position_embeddings` are in the file's metadata.

    Raises:
        RuntimeError: its logits differ from PyTorch's.
    """
    import onnx  # here and below: an extra that only this needs

    # A copy, so that neither device, precision nor mode of the caller's model changes.
    wrapped = _Positional(copy.deepcopy(model).float().cpu()).eval()
    # A forward pass replaced by torch.compile cannot be traced; the class still has the plain one.
    vars(wrapped.model).pop("forward", None)
    exported = onnx.load_model_from_string(_trace(wrapped))
    config = model.config
    facts = {
        "id2label": json.dumps(config.id2label or {}, ensure_ascii=False),
        "do_lower_case": json.dumps(tokenizer.do_lower_case),
        "max_position_embeddings": str(config.max_position_embeddings),
    }
    onnx.helper.set_model_props(exported, facts)
    onnx.checker.check_model(exported)
    content = exported.SerializeToString()
    difference = _difference(content, wrapped, config)
    logger.info("ONNX: logits differ from PyTorch's by at most %.1e", difference)
    return content


def quantize(graph: bytes) -> bytes:
    """Return `graph` with int8 weights; activations are quantized as they come (dynamically).

    Matrices have a scale for each output channel, embedding tables one. Products of activations
    with each other, such as attention scores, stay fp32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / INT8_NAME
        quantize_dynamic(
            onnx.load_model_from_string(graph),
            file,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            # subtle: 7 bits of the 8. Processors with AVX2 but without VNNI add pairs of products
            # in 16 bits, which 8 bits would overflow, so that the logits depended on the machine.
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
        return file.read_bytes()


class GraphModel(nn.Module):
    """A graph that is called like the model that it was made of, and answers on the CPU.

    It computes with as many threads as torch does.
    """

    def __init__(self, graph: bytes, model: nn.Module):
        import onnxruntime

        super().__init__()
        self.config, self.per_token = model.config, model.per_token
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        # Threads that go on spinning after an answer would slow down whoever computes next.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(graph, settings, providers=providers)
        self.inputs = [node.name for node in self.session.get_inputs()]

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        *,
        only_logits: bool = True,
    ) -> SimpleNamespace:
        """Return `logits`, float32, of int64 inputs; the mask may be bool."""
        columns = (input_ids, attention_mask.long(), token_type_ids)
        feed = {name: part.numpy() for name, part in zip(INPUTS, columns, strict=True)}
        (logits,) = self.session.run([OUTPUT], {name: feed[name] for name in self.inputs})
        return SimpleNamespace(logits=torch.from_numpy(logits))


def _inputs(config: Any, batch_size: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make random `INPUTS`, with padding in all rows but the first."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(config.vocab_size, (batch_size, length), generator=generator)
    lengths = torch.linspace(length, max(1, length // 2), batch_size).long()
    mask = (torch.arange(length) < lengths[:, None]).long()
    segments = (torch.arange(length) >= length // 2).long().expand_as(ids).contiguous()
    return ids, mask, segments % config.type_vocab_size


def _trace(wrapped: _Positional) -> bytes:
    config = wrapped.model.config
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", max=config.max_position_embeddings)
    with _quiet():
        program = torch.onnx.export(
            wrapped,
            _inputs(config, 2, 8),
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch, 1: length},) * len(INPUTS),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    return program.model_proto.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the libraries say about torchvision, their own future and axis names."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _difference(content: bytes, wrapped: _Positional, config: Any) -> float:
    """Compare at batch sizes and lengths other than the traced ones."""
    graph = GraphModel(content, wrapped.model)
    largest = 0.0
    for batch_size, length in ((1, 3), (5, min(21, config.max_position_embeddings))):
        ids, mask, segments = _inputs(config, batch_size, length)
        with torch.inference_mode():
            expected = wrapped(ids, mask, segments)
        difference = float((graph(ids, segments, mask).logits - expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise RuntimeError(f"the ONNX model's logits differ from PyTorch's by {difference:.1e}")
        largest = max(largest, difference)
    return largest
