"""The configuration of a BERT: what config.json says, checked."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from transformer.files import UserError, atomic_write


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


# "gelu" is the exact form (erf), as in the published PyTorch checkpoints; Google's later code
# approximates it with tanh, which Hugging Face configs call gelu_new or gelu_pytorch_tanh.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
    "swish": F.silu,
    "silu": F.silu,
}

POSITIVE_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)


# The largest BERT that was published (Megatron's) has 3.9e9 parameters in 48 layers.
MAX_PARAMETERS = 20_000_000_000

MAX_LAYERS = 1000

# What the annotation of a field allows, and how it is called.
VALUE_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "float | None": ((int, float, type(None)), "a number or null"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text"),
    "str | None": ((str, type(None)), "text or null"),
}


@dataclass
class BertConfig:
    """Hold the sizes of a BERT and what its head needs; the keys are those of config.json.

    Other architectures are subclasses with defaults and keys of their own (`architectures/`).

    Raises:
        UserError: a value that no BERT can have, with the key and what is allowed.
    """

    model_type: ClassVar[str] = "bert"
    # What this architecture's config.json calls a key of ours.
    key_names: ClassVar[dict[str, str]] = {}

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    classifier_dropout: float | None = None  # before the classifier; None: hidden_dropout_prob
    classifier_relu: bool = False  # the classifier reads ReLU(pooled), as TinyBERT's authors had it
    fit_size: int = 0  # width of the teacher that hidden states are projected to; 0: no projection
    fit_per_layer: bool = False  # fit_denses.N (second release) instead of one fit_dense (first)
    id2label: dict[int, str] | None = None
    problem_type: str | None = None  # "regression" goes with a single label
    extra: dict[str, Any] = field(default_factory=dict)  # other keys of a config.json, kept as read

    def __post_init__(self) -> None:
        self._check_types()
        for key in POSITIVE_SIZES:
            value = getattr(self, key)
            if value < 1:
                raise UserError(f"config: {key} {value!r} must be a whole number of at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"config: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"config: hidden_act {self.hidden_act!r} is unknown; "
                f"choose from {', '.join(ACTIVATIONS)}"
            )
        for key, limit in (
            ("hidden_dropout_prob", 1),
            ("attention_probs_dropout_prob", 1),
            ("initializer_range", math.inf),
            ("layer_norm_eps", math.inf),
            ("pad_token_id", self.vocab_size),
            ("fit_size", math.inf),
            *([] if self.classifier_dropout is None else [("classifier_dropout", 1)]),
        ):
            value = getattr(self, key)
            if not 0 <= value < limit:
                raise UserError(
                    f"config: {key} {value!r} must be a number of at least 0 and below {limit}"
                )
        if self.id2label is not None:
            names = self.id2label.values()
            if not all(isinstance(name, str | int) for name in names):
                raise UserError(f"config: the values of id2label, {list(names)}, must be names")
            self.id2label = {int(key): str(name) for key, name in self.id2label.items()}
            if sorted(self.id2label) != list(range(len(self.id2label))):
                raise UserError(
                    f"config: the keys of id2label, {list(self.id2label)}, must be 0, 1..."
                )
        self._check_size()

    def _check_types(self) -> None:
        """Refuse values of another type: true as a number, "false" as a yes."""
        for each in fields(self):
            kinds, wanted = VALUE_TYPES.get(each.type, ((object,), ""))
            value = getattr(self, each.name)
            is_number_too = isinstance(value, bool) and bool not in kinds and object not in kinds
            if not isinstance(value, kinds) or is_number_too:
                shown = reprlib.repr(value)
                least = " of at least 1" if each.name in POSITIVE_SIZES else ""
                raise UserError(f"config: {each.name} {shown} must be {wanted}{least}")

    def _check_size(self) -> None:
        """Refuse what no machine could build, before anything is allocated."""
        if self.num_hidden_layers > MAX_LAYERS:
            raise UserError(
                f"config: num_hidden_layers {self.num_hidden_layers:,} is beyond reason; "
                f"at most {MAX_LAYERS:,} are built"
            )
        width = self.hidden_size
        rows = self.vocab_size + self.max_position_embeddings + self.type_vocab_size + self.fit_size
        parameters = width * (
            rows + self.num_hidden_layers * (4 * width + 2 * self.intermediate_size)
        )
        if parameters > MAX_PARAMETERS:
            sizes = ", ".join(f"{key} {getattr(self, key):,}" for key in POSITIVE_SIZES)
            raise UserError(
                f"config: a model of {parameters:,} parameters is beyond reason ({sizes}); "
                f"at most {MAX_PARAMETERS:,} are built"
            )

    @property
    def embedding_width(self) -> int:
        """Return the width of the embedding tables."""
        return self.hidden_size

    @property
    def relative_positions(self) -> int:
        """Return how many relative positions each query is compared with, beside the keys."""
        return 0

    @property
    def num_labels(self) -> int:
        """Return the number of outputs of the classifier: 2 where no labels are named."""
        if self.id2label is not None:
            return len(self.id2label)
        return 1 if self.problem_type == "regression" else 2

    @classmethod
    def with_our_keys(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the object in a config.json with our names for its keys."""
        ours = {theirs: key for key, theirs in cls.key_names.items()}
        return {ours.get(key, key): value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BertConfig:
        """Build a configuration from the object in a config.json; unknown keys go to `extra`."""
        known = {f.name for f in fields(cls)} - {"extra"}
        values = cls.with_our_keys(values)
        label2id = values.pop("label2id", None)
        if values.get("id2label") is None and label2id:
            values["id2label"] = {label_id: name for name, label_id in label2id.items()}
        if values.get("pad_token_id") is None:  # Hugging Face writes null where there is none
            values.pop("pad_token_id", None)
        extra = {key: value for key, value in values.items() if key not in known}
        return cls(**{key: values[key] for key in known & values.keys()}, extra=extra)

    @classmethod
    def from_json_file(cls, path: str | Path) -> BertConfig:
        """Read a config.json."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def changed(self, *, num_labels: int | None = None, **changes: Any) -> BertConfig:
        """Return a configuration with other values.

        Args:
            num_labels: of the classifier; they keep their names if there are as many of them, and
                are called LABEL_0, LABEL_1... otherwise.
        """
        if num_labels is not None and num_labels != self.num_labels:
            single = "regression" if num_labels == 1 else None
            changes = {"id2label": unnamed_labels(num_labels), "problem_type": single, **changes}
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the object for a config.json: `extra` merged in, unset keys left out."""
        values = asdict(self)
        merged = {**values.pop("extra"), **values}
        if self.id2label is not None:
            merged["label2id"] = {name: label_id for label_id, name in self.id2label.items()}
        names = self.key_names
        return {names.get(key, key): value for key, value in merged.items() if value is not None}

    def to_json_string(self) -> str:
        """Return the text of a config.json."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def to_json_file(self, path: str | Path) -> None:
        """Write a config.json."""
        with atomic_write(path) as file:
            file.write(self.to_json_string())


def unnamed_labels(count: int) -> dict[int, str]:
    """Name labels as Hugging Face does where nobody has."""
    return {label_id: f"LABEL_{label_id}" for label_id in range(count)}
