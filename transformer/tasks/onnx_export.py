"""Export a classifier to ONNX, for runtimes without PyTorch.

Needs the package onnx; the result is compared with PyTorch where onnxruntime is installed.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transformer.files import UserError, atomic_write

logger = logging.getLogger(__name__)

OPSET = 17  # the first with LayerNormalization; onnxruntime reads it since 1.12 (2022)

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


def export_onnx(model: nn.Module, path: str | Path) -> float | None:
    """Write the classifier `model` to the ONNX file `path`; batch size and length are free.

    Inputs, all (B, T) int64: input_ids, attention_mask (1 at real tokens), token_type_ids (not of
    DistilBERT, which knows no segments). Output:
    logits (B, C). The labels and `max_position_embeddings` are in the file's metadata.

    Returns:
        The largest difference from PyTorch's logits that was found, or None without onnxruntime.

    Raises:
        UserError: the package onnx is not installed, or `path` cannot be written.
        RuntimeError: the exported model gives other logits; nothing is written.
    """
    path = Path(path)
    onnx = _import_onnx()
    if not path.parent.is_dir():
        raise UserError(f"{path}: its directory does not exist; create {path.parent} first")
    # A copy, so that neither device, precision nor mode of the caller's model changes.
    wrapped = _Positional(copy.deepcopy(model).float().cpu()).eval()
    # A forward pass replaced by torch.compile cannot be traced; the class still has the plain one.
    vars(wrapped.model).pop("forward", None)
    exported = onnx.load_model_from_string(_trace(wrapped))
    config = model.config
    onnx.helper.set_model_props(
        exported,
        {
            "id2label": json.dumps(config.id2label or {}, ensure_ascii=False),
            "max_position_embeddings": str(config.max_position_embeddings),
        },
    )
    onnx.checker.check_model(exported)
    content = exported.SerializeToString()
    difference = _difference(content, wrapped, config)
    with atomic_write(path, "wb", encoding=None) as file:
        file.write(content)
    checked = (
        "not compared (onnxruntime is not installed)"
        if difference is None
        else (f"logits differ from PyTorch's by at most {difference:.1e}")
    )
    logger.info("%s: ONNX opset %d, %s", path, OPSET, checked)
    return difference


def _import_onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise UserError("--export_onnx needs the package onnx (pip install onnx)") from None


def _inputs(config: Any, batch_size: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make random `INPUTS`, with padding in all rows but the first."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(config.vocab_size, (batch_size, length), generator=generator)
    lengths = torch.linspace(length, max(1, length // 2), batch_size).long()
    mask = (torch.arange(length) < lengths[:, None]).long()
    segments = (torch.arange(length) >= length // 2).long().expand_as(ids).contiguous()
    return ids, mask, segments % config.type_vocab_size


def _trace(wrapped: _Positional) -> bytes:
    axes = {name: {0: "batch", 1: "length"} for name in INPUTS} | {OUTPUT: {0: "batch"}}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The tracer warns about the check of the length, which indeed is not exported, and about
        # its own age: its successor needs one more package and gains nothing for this model.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            wrapped,
            _inputs(wrapped.model.config, 2, 8),
            buffer,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    return buffer.getvalue()


def _difference(content: bytes, wrapped: _Positional, config: Any) -> float | None:
    """Compare at batch sizes and lengths other than the traced ones."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch_size, length in ((1, 3), (5, min(21, config.max_position_embeddings))):
        inputs = _inputs(config, batch_size, length)
        with torch.inference_mode():
            expected = wrapped(*inputs).numpy()
        feed = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True)}
        feed = {node.name: feed[node.name] for node in session.get_inputs()}
        (logits,) = session.run([OUTPUT], feed)
        difference = float(np.abs(logits - expected).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise RuntimeError(f"the ONNX model's logits differ from PyTorch's by {difference:.1e}")
        largest = max(largest, difference)
    return largest
