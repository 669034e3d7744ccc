"""Read TensorFlow checkpoints of Google's releases (`bert_model.ckpt.*`).

Needs the package tensorflow, for its reader only; nothing else of this toolkit does. Convert once:

    python -m transformer.checkpoint convert uncased_L-12_H-768_A-12 bert-base
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transformer.files import UserError

# State of the optimizer, not of the model.
SKIPPED = re.compile(r"(^global_step$|/adam_[mv]$|_power$|^good_steps$|^loss_scale$)")

# From TensorFlow's names to the published ones; applied in this order.
TF_RENAMES = (
    (r"/", "."),
    (r"\.layer_(\d+)\.", r".layer.\1."),
    (r"\.kernel$", ".weight"),
    (r"_embeddings$", "_embeddings.weight"),
    (r"^cls\.predictions\.output_bias$", "cls.predictions.bias"),
    (r"(^|\.)output_weights$", r"\1weight"),
    (r"(^|\.)output_bias$", r"\1bias"),
    (r"^(weight|bias)$", r"classifier.\1"),  # Google's fine-tuned classifiers have no scope
)


def torch_name(name: str) -> str:
    """Return the PyTorch name of the TensorFlow variable `name`.

    >>> torch_name("bert/encoder/layer_3/output/dense/kernel")
    'bert.encoder.layer.3.output.dense.weight'
    """
    for pattern, replacement in TF_RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def read_tf_weights(prefix: Path, reader: Any = None) -> dict[str, Tensor]:
    """Read the variables of the checkpoint `prefix` (without `.index`) under PyTorch names.

    Args:
        reader: an object with `get_variable_to_shape_map()` and `get_tensor(name)`;
            None opens `prefix` with tensorflow.

    Raises:
        UserError: tensorflow is not installed, or cannot read the files.
    """
    reader = reader or _open_reader(prefix)
    weights = {}
    for name in _variables(reader):
        try:
            tensor = torch.as_tensor(reader.get_tensor(name))
        except Exception as error:  # tensorflow's errors share no other base
            raise _unreadable(prefix, error) from None
        # subtle: TensorFlow keeps the matrix of a dense layer as (in, out), PyTorch as (out, in).
        weights[torch_name(name)] = tensor.t().contiguous() if name.endswith("/kernel") else tensor
    return weights


def read_tf_shapes(prefix: Path, reader: Any = None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what `read_tf_weights` reads."""
    reader = reader or _open_reader(prefix)
    shapes = reader.get_variable_to_shape_map()
    return {
        torch_name(name): tuple(
            reversed(shapes[name]) if name.endswith("/kernel") else shapes[name]
        )
        for name in _variables(reader)
    }


def _variables(reader: Any) -> list[str]:
    return sorted(name for name in reader.get_variable_to_shape_map() if not SKIPPED.search(name))


def _open_reader(prefix: Path) -> Any:
    try:
        import tensorflow
    except ImportError:
        raise UserError(
            f"{prefix} is a TensorFlow checkpoint; reading it needs the package tensorflow "
            "(pip install tensorflow)"
        ) from None
    try:
        return tensorflow.train.load_checkpoint(str(prefix))
    except Exception as error:  # tensorflow's errors share no other base
        raise _unreadable(prefix, error) from None


def _unreadable(prefix: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{prefix} is cut short or damaged ({reason}); copy it again")
