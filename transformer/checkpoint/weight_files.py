"""Read the weights of a checkpoint directory, whoever wrote them, under the published names.

Published names are those of the first PyTorch releases: `bert.encoder.layer.0.output.dense.weight`.
What other writers call a tensor is a row of `RENAMES`; `tensorflow.py` has those of TensorFlow,
`architectures/` those of other architectures, which go by the published names here as well.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transformer.architectures.table import ARCHITECTURES, our_name
from transformer.files import UserError, atomic_write, read_json

# Applied to every name, in this order.
RENAMES = (
    (r"^(module\.|_orig_mod\.)+", ""),  # written from inside DataParallel or torch.compile
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)

# Applied last: the bias of the decoder is that of the predictions.
DECODER_BIAS = (r"^cls\.predictions\.decoder\.bias$", "cls.predictions.bias")

# How names begin in the file of a bare encoder.
BARE = re.compile(r"^(embeddings|embeddings_project|encoder|transformer|pooler)\.")

# Buffers that some versions of other libraries wrote; they hold no weight.
IGNORED = re.compile(r"\.(position_ids|token_type_ids|positions_encoding)$")

WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"

DECODER = "cls.predictions.decoder.weight"  # the word embeddings once more

# What a checkpoint can hold, by the beginning of the names.
GROUPS = {
    "encoder": ("bert.embeddings.", "bert.encoder."),
    "pooler": ("bert.pooler.",),
    "mlm": ("cls.predictions.",),
    "nsp": ("cls.seq_relationship.",),
    "classifier": ("classifier.",),
    "span": ("qa_outputs.",),
    "fit": ("fit_dense.", "fit_denses."),
}

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"

INDEX_SUFFIX = ".index.json"

WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class WeightFiles:
    """Hold the files that make up the weights of one directory: one file, or shards."""

    name: str  # the file, or the index of the shards, as messages name it
    files: tuple[Path, ...]


def group_of(name: str) -> str:
    """Return the key of `GROUPS` that the published name `name` belongs to, or "other"."""
    for group, beginnings in GROUPS.items():
        if name.startswith(beginnings):
            return group
    return "other"


def published_name(name: str, model_type: str = "bert") -> str:
    """Return what the published checkpoints call the tensor `name`.

    >>> published_name("module.embeddings.LayerNorm.gamma")
    'bert.embeddings.LayerNorm.weight'
    """
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    if BARE.match(name):
        name = f"{model_type}.{name}"
    return re.sub(*DECODER_BIAS, our_name(model_type, name))


def find_weights(directory: Path) -> WeightFiles | None:
    """Return the weight files that are read from `directory`, or None if it has none.

    Safetensors win over pickles, a whole file over shards, and PyTorch over TensorFlow.
    """
    for name in (SAFETENSORS, BIN):
        if (directory / name).is_file():
            return WeightFiles(name, (directory / name,))
        if (directory / (name + INDEX_SUFFIX)).is_file():
            return WeightFiles(name + INDEX_SUFFIX, _shards(directory / (name + INDEX_SUFFIX)))
    indexes = sorted(directory.glob("*.ckpt*.index"))
    if len(indexes) > 1:
        found = ", ".join(path.name for path in indexes)
        raise UserError(f"{directory} holds several TensorFlow checkpoints ({found}); keep one")
    return WeightFiles(indexes[0].name, (indexes[0],)) if indexes else None


def _shards(index: Path) -> tuple[Path, ...]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"{index}: not a valid index; it must hold an object weight_map")
    names = sorted(set(files.values()))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index}: shard {name!r} lies outside of the directory")
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: shard {name} is missing; download the directory again")
    return tuple(index.parent / name for name in names)


def read_weights(found: WeightFiles, model_type: str = "bert") -> dict[str, Tensor]:
    """Read all weights as fp32 tensors under their published names.

    Args:
        model_type: of the model in the files, a key of `ARCHITECTURES`.

    The decoder of a masked LM is left out where it equals the word embeddings, and what is no
    weight of ours where it is no number in floating point, such as the counters of a metric.

    Raises:
        UserError: a damaged file, a value that is not finite, an unusable type.
    """
    weights: dict[str, Tensor] = {}
    contents = [_read_file(file) for file in found.files]
    for file, content in zip(found.files, _renamed(contents, model_type), strict=True):
        for name, tensor in content:
            is_ours = group_of(name) != "other"
            if not is_ours and tensor.dtype not in WEIGHT_TYPES:
                continue
            value = _checked(file, name, tensor) if is_ours else tensor.float()
            if name in weights and not torch.equal(weights[name], value):
                raise UserError(f"{file}: two different tensors for {name}")
            weights[name] = value
    decoder = weights.get(DECODER)
    if decoder is not None and torch.equal(decoder, weights.get(WORD_EMBEDDINGS, decoder)):
        del weights[DECODER]
    return ARCHITECTURES[model_type].adapt(weights)


def read_shapes(found: WeightFiles, model_type: str = "bert") -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights under their published names. Reads headers only.

    Raises:
        UserError: a damaged file.
    """
    contents = [_read_shapes(file) for file in found.files]
    weights = {
        name: torch.empty(shape, device="meta")
        for content in _renamed(contents, model_type)
        for name, shape in content
    }
    adapted = ARCHITECTURES[model_type].adapt(weights)
    return {name: tuple(tensor.shape) for name, tensor in adapted.items()}


def _renamed(contents: list[dict[str, Any]], model_type: str) -> Iterable[list[tuple[str, Any]]]:
    """Yield, for the content of each file, its weights with their published names."""
    wrapper = _wrapper_of([name for content in contents for name in content], model_type)
    for content in contents:
        kept = [(name, value) for name, value in content.items() if not IGNORED.search(name)]
        yield [(published_name(name.removeprefix(wrapper), model_type), v) for name, v in kept]


def _wrapper_of(names: list[str], model_type: str) -> str:
    """Return what stands before the names of the one model in a file, whatever it was wrapped in.

    >>> _wrapper_of(["net.bert.embeddings.word_embeddings.weight", "net.classifier.bias"], "bert")
    'net.'
    """
    # "bert." is no wrapper in the files of other architectures either: some call their parts so.
    pattern = re.compile(rf"(.*?)((?:bert|{model_type})\.)?embeddings\.word_embeddings\.weight")
    found = {match[1] for match in map(pattern.fullmatch, names) if match}
    return found.pop() if len(found) == 1 else ""


def _checked(file: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in WEIGHT_TYPES:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{file}: {name} is {kind}; quantised weights are not supported")
    tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise UserError(f"{file}: {name} holds values that are NaN or infinite")
    return tensor


def _read_file(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".index":
        from transformer.checkpoint.tensorflow import read_tf_weights  # only few have tensorflow

        return read_tf_weights(file.with_suffix(""))
    _check_readable(file)
    if file.suffix != ".safetensors":
        return _read_bin(file, in_memory=True)
    with _open_safetensors(file) as tensors:
        names = [name for name in tensors.keys() if not IGNORED.search(name)]  # noqa: SIM118
        return {name: tensors.get_tensor(name) for name in names}


def _read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if file.suffix == ".index":
        from transformer.checkpoint.tensorflow import read_tf_shapes  # only few have tensorflow

        return read_tf_shapes(file.with_suffix(""))
    _check_readable(file)
    if file.suffix != ".safetensors":
        return {name: tuple(t.shape) for name, t in _read_bin(file, in_memory=False).items()}
    with _open_safetensors(file) as tensors:
        names = tensors.keys()
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}


def write_file(content: bytes | memoryview, path: Path) -> None:
    """Replace a file in one instant.

    Raises:
        OSError: no permission or no space; with the file's name.
    """
    try:
        with atomic_write(path, "wb") as file:
            file.write(content)
    except OSError as error:  # a failed write does not know its file
        raise OSError(error.errno, error.strerror, str(path)) from None


def save_torch(content: Any, path: Path) -> None:
    """Replace a file by what `torch.save` makes of `content`. Raises: as `write_file`."""
    # subtle: into memory first. On a full disk torch.save hides the OSError behind another.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(buffer.getbuffer(), path)


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{file} is cut short or damaged ({error}); copy it again") from None


def _read_bin(file: Path, *, in_memory: bool) -> dict[str, Tensor]:
    # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
    mmap = not in_memory and zipfile.is_zipfile(file)
    try:
        values = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            raise UserError(
                f"{file} holds Python objects besides tensors; it is not read, because doing so "
                "could run any code. Ask for a safetensors file, or one that holds tensors only"
            ) from None
        raise UserError(f"{file} is cut short or damaged; copy it again") from None
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise UserError(f"{file} is not a dictionary of tensors; save model.state_dict() only")
    return values


def _check_readable(file: Path) -> None:
    """Raise UserError where `file` cannot be opened, is empty, or only points at the real file."""
    try:
        with open(file, "rb") as stream:
            beginning = stream.read(40)
    except PermissionError:
        raise UserError(f"{file}: no permission to read it") from None
    if not beginning:
        raise UserError(f"{file} is empty; copy it again")
    if beginning.startswith(b"version https://git-lfs"):
        raise UserError(f"{file} is only a pointer of Git LFS; run 'git lfs pull' there")
