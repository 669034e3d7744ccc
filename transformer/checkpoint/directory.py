"""Directories of models: open and load them, write them.

Show what a directory holds, or rewrite any readable one as ours:

    python -m transformer.checkpoint DIR
    python -m transformer.checkpoint convert SRC DST [--to safetensors|bin]
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from transformer.architectures.table import ARCHITECTURES, their_name
from transformer.checkpoint import weight_files
from transformer.checkpoint.config_file import (
    CONFIG_NAMES,
    config_text,
    find_config,
    make_config,
    read_values,
)
from transformer.checkpoint.weight_files import (
    BIN,
    DECODER,
    GROUPS,
    INDEX_SUFFIX,
    SAFETENSORS,
    WeightFiles,
    find_weights,
    group_of,
    save_torch,
    write_file,
)
from transformer.configuration import BertConfig, unnamed_labels
from transformer.files import UserError, atomic_write, file_digest
from transformer.runtime.fingerprint import digest_of
from transformer.tokenization import BertTokenizer
from transformer.vocabulary import VOCABULARY_FILES

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

Shape = tuple[int, ...]

POOLER = "bert.pooler.dense.weight"

GROUP_NAMES = {
    "encoder": "the encoder (bert.embeddings, bert.encoder)",
    "pooler": "the pooler (bert.pooler)",
    "mlm": "the masked-LM head (cls.predictions)",
    "nsp": "the next-sentence head (cls.seq_relationship)",
    "classifier": "the classifier",
    "span": "the head that finds answers (qa_outputs)",
    "fit": "the projection (fit_dense)",
}


class Checkpoint:
    """A directory of a model, opened once and passed on.

    What it holds is read when it is first asked for, and kept; the weights themselves are read by
    `load` alone. So mistakes in a directory are found from its small files and the headers of the
    large ones, before anything expensive.

    Args:
        path: a directory with config.json; a student to begin from scratch may be its file alone.
        do_lower_case: the user's flag for the tokenizer; None follows the directory's files.
    """

    def __init__(self, path: str | Path, do_lower_case: bool | None = None):
        self.path = Path(path)
        self._do_lower_case = do_lower_case

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def files(self) -> WeightFiles | None:
        """Return the files of its weights, None if there are none."""
        return find_weights(self.path) if self.path.is_dir() else None

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Return the shape of each of its weights by published name; nothing if there are none."""
        if self.files is None:
            return {}
        return weight_files.read_shapes(self.files, self._values["model_type"])

    @cached_property
    def groups(self) -> frozenset[str]:
        """Return the keys of `weight_files.GROUPS` that it holds weights of."""
        return frozenset(map(group_of, self.shapes))

    @property
    def pipeline(self) -> str:
        """Return the task that Hugging Face's `pipeline` has for the model, by its head."""
        if "span" in self.groups:
            return "question-answering"
        is_tagger = "classifier" in self.groups and "pooler" not in self.groups
        return "token-classification" if is_tagger else "text-classification"

    @cached_property
    def _values(self) -> dict[str, Any]:
        return read_values(find_config(self.path))

    @cached_property
    def _config_and_notes(self) -> tuple[BertConfig, list[str]]:
        return make_config(find_config(self.path), self._values, self.shapes)

    @property
    def config(self) -> BertConfig:
        """Return its configuration, as `read_config` describes it."""
        return self._config_and_notes[0]

    @property
    def notes(self) -> list[str]:
        """Return what was inferred about its classifier, in words."""
        return self._config_and_notes[1]

    @property
    def has_vocabulary(self) -> bool:
        """Say whether it has a vocabulary; a student that begins anew may have none."""
        return any((self.path / name).is_file() for name in VOCABULARY_FILES)

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of what it holds: configuration, weights, vocabulary and its settings.

        Not of where it lies: a copy has the same. Of a TensorFlow checkpoint the index is read,
        which has a checksum of every tensor.
        """
        weights = [] if self.files is None else map(file_digest, self.files.files)
        tokenizer = self.tokenizer.fingerprint if self.has_vocabulary else ""
        return digest_of(self.config.to_dict(), list(weights), tokenizer)

    @cached_property
    def tokenizer(self) -> BertTokenizer:
        """Return its tokenizer.

        Raises:
            UserError: there is no vocabulary, it or its settings are damaged, or it holds more
                entries than the model knows.
        """
        tokenizer = BertTokenizer.from_pretrained(self.path, do_lower_case=self._do_lower_case)
        if len(tokenizer.vocab) > self.config.vocab_size:
            raise UserError(
                f"{self}: the vocabulary holds {len(tokenizer.vocab)} entries, but vocab_size is "
                f"{self.config.vocab_size}; both must come from the same model"
            )
        return tokenizer

    def read_weights(self) -> dict[str, Tensor]:
        """Read its weights as fp32 tensors under the published names.

        Raises:
            UserError: no weights, a damaged file, a value that is not finite.
        """
        files = self._needed_files()
        return weight_files.read_weights(files, self._values["model_type"])

    def _needed_files(self) -> WeightFiles:
        if self.files is None:
            raise UserError(
                f"{self} holds no weights; expected {SAFETENSORS}, {BIN}, one of them in shards "
                "with an index, or bert_model.ckpt.*"
            )
        return self.files

    def compare(self, model_class: type[nn.Module], **config_changes: Any) -> LoadReport:
        """Compare its weights with what a `model_class` reads, from headers alone."""
        with torch.device("meta"):  # shapes without values
            model = model_class.from_config(self.config.changed(**config_changes))
        return _compare(self, model)

    def check(
        self,
        model_class: type[nn.Module],
        *,
        require: Iterable[str] = ("encoder",),
        config_changes: dict[str, Any] | None = None,
    ) -> None:
        """Find what `load` would refuse, as far as headers tell it.

        Raises:
            UserError: as `load`, but for damaged files and values.
        """
        changes = config_changes or {}
        config = self.config.changed(**changes)
        self._needed_files()
        _check_labels(self, config)
        _check_report(self.compare(model_class, **changes), require, changes)

    def load(
        self,
        model_class: type[Model],
        *,
        require: Iterable[str] = ("encoder",),
        config_changes: dict[str, Any] | None = None,
    ) -> tuple[Model, LoadReport]:
        """Build a `model_class` and load the weights in fp32; see `load_model`."""
        changes = config_changes or {}
        config = self.config.changed(**changes)
        self._needed_files()
        _check_labels(self, config)
        model = model_class.from_config(config)
        report = _compare(self, model)
        _check_report(report, require, changes)
        weights = self.read_weights()
        if hasattr(model, "cls") and DECODER in weights:
            raise UserError(
                f"{self}: {DECODER} differs from the word embeddings; a masked-LM head with "
                "a decoder of its own is not supported"
            )
        prefix = _prefix(model)
        state = {name.removeprefix(prefix): weights[report.sources[name]] for name in report.loaded}
        model.load_state_dict(state, strict=False)
        return model, report


def _prefix(model: nn.Module) -> str:
    """Return what the published names have before the model's own: a bare encoder has none."""
    return "" if hasattr(model, "bert") else "bert."


@dataclass
class LoadReport:
    """Hold the names of the tensors that are loaded, newly initialised, and left over.

    sources: for each loaded tensor of the model, the published name that it has in the file.
    differing: the shapes in the file and in the model of those tensors that do not fit.
    """

    source: Path
    sources: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    differing: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def loaded(self) -> list[str]:
        """Return the names in the model of what is loaded."""
        return list(self.sources)

    def log(self) -> None:
        """Log the report in groups, as one message: a warning if something is newly initialised."""
        parts = [f"loaded {grouped(self.loaded)}"]
        if self.missing:
            parts.append(f"not in the file, newly initialised: {grouped(self.missing)}")
        if self.unexpected:
            parts.append(f"in the file, not used: {grouped(self.unexpected)}")
        level = logging.WARNING if self.missing else logging.INFO
        logger.log(level, "%s: %s", self.source, "; ".join(parts + self.notes))


def grouped(names: Iterable[str]) -> str:
    """Return e.g. "encoder (69 tensors), mlm (5 tensors)"; unknown names are spelled out."""
    names = list(names)
    counts = Counter(group_of(name) for name in names)
    parts = [f"{key} ({counts[key]} tensors)" for key in GROUPS if counts[key]]
    return ", ".join(parts + [name for name in names if group_of(name) == "other"])


def read_config(path: str | Path) -> BertConfig:
    """Read the configuration in directory `path` (or the file `path`) and check what goes with it.

    What the file does not say is taken from the weights, if there are any: the projection
    (`fit_size`, `fit_per_layer`), the number of labels, and `classifier_relu`: a projection is by
    TinyBERT's authors, whose classifier reads ReLU(pooled).

    Raises:
        UserError: no or bad configuration, not a BERT, a vocabulary of more entries.
    """
    return Checkpoint(path).config


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in directory `path` as fp32 tensors under the published names.

    Raises:
        UserError: no weights, a damaged file, a value that is not finite.
    """
    return Checkpoint(path).read_weights()


def load_model(
    model_class: type[Model],
    path: str | Path,
    *,
    require: Iterable[str] = ("encoder",),
    config_changes: dict[str, Any] | None = None,
) -> tuple[Model, LoadReport]:
    """Build a `model_class` from the directory `path` and load its weights in fp32.

    What `require` does not name may be missing; it is then initialised at random and reported.
    The encoder must always be there. A shared projection fills a model that has one for each layer;
    a projection to another width than `config_changes` asks for is left out.

    Args:
        require: keys of `weight_files.GROUPS`.
        config_changes: values that replace those of the stored configuration.

    Raises:
        UserError: as `read_config` and `read_weights`; a required group is missing; shapes differ.
    """
    return Checkpoint(path).load(model_class, require=require, config_changes=config_changes)


def _compare(checkpoint: Checkpoint, model: nn.Module) -> LoadReport:
    """Compare what the headers of `checkpoint` say with the tensors of `model`."""
    shapes = checkpoint.shapes
    # subtle: a bare encoder has no prefix in its own names, but all names here have one.
    prefix = _prefix(model)
    wanted = {prefix + name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wanted.pop(DECODER, None)
    sources = _sources(shapes, wanted)
    used = {*sources.values(), DECODER}
    return LoadReport(
        checkpoint.path,
        sources=sources,
        missing=[name for name in wanted if name not in sources],
        unexpected=[name for name in shapes if name not in used],
        differing={
            name: (shapes[source], wanted[name])
            for name, source in sources.items()
            if shapes[source] != wanted[name]
        },
        notes=checkpoint.notes if {"classifier.weight", POOLER} <= wanted.keys() else [],
    )


def _sources(shapes: dict[str, Shape], wanted: dict[str, Shape]) -> dict[str, str]:
    """Return, for each tensor of a model that a file can fill, its published name there."""
    sources = {name: name for name in wanted if name in shapes}
    for name in wanted:  # a shared projection is spread over the layers if asked for
        shared = f"fit_dense.{name.rpartition('.')[2]}"
        if name.startswith("fit_denses.") and name not in shapes and shared in shapes:
            sources[name] = shared
    fit = [name for name in sources if group_of(name) == "fit"]
    if any(shapes[sources[name]][:1] != wanted[name][:1] for name in fit):  # to another width
        for name in fit:
            del sources[name]
    return sources


def _check_labels(checkpoint: Checkpoint, config: BertConfig) -> None:
    if not checkpoint.shapes.get("classifier.weight"):
        return
    rows, stored = checkpoint.shapes["classifier.weight"][0], checkpoint.config
    stored_labels = list((stored.id2label or unnamed_labels(stored.num_labels)).values())
    labels = list((config.id2label or unnamed_labels(config.num_labels)).values())
    if rows != len(stored_labels):
        raise UserError(
            f"{checkpoint}: the classifier has {rows} outputs, but the configuration names "
            f"{len(stored_labels)} labels ({', '.join(stored_labels)})"
        )
    if rows != len(labels):
        raise UserError(
            f"{checkpoint}: the classifier was trained for {rows} labels "
            f"({', '.join(stored_labels)}), but {len(labels)} are asked for "
            f"({', '.join(labels)}); give a model of this task"
        )


def _check_report(report: LoadReport, require: Iterable[str], changes: dict[str, Any]) -> None:
    _check_required(report, {"encoder", *require})
    if report.differing:
        name, (there, here) = next(iter(report.differing.items()))
        others = len(report.differing) - 1
        more = f" (and {others} more tensors)" if others else ""
        raise UserError(
            f"{report.source}: {name} is {there} in the file, but the configuration makes it "
            f"{here}{more}; they belong to different models"
        )
    encoder = [name for name in report.unexpected if group_of(name) == "encoder"]
    if encoder and "num_hidden_layers" not in changes:
        raise UserError(
            f"{report.source}: the file holds {len(encoder)} tensors of the encoder that the "
            f"configuration has no place for ({encoder[0]} first); they belong to different models"
        )


def _check_required(report: LoadReport, require: set[str]) -> None:
    held = set(map(group_of, [*report.sources.values(), *report.unexpected]))
    for group in GROUPS:
        if group not in require:
            continue
        missing = [name for name in report.missing if group_of(name) == group]
        if missing or group not in held:
            detail = f" ({len(missing)} tensors missing, {missing[0]} first)" if missing else ""
            strange = [name for name in report.unexpected if group_of(name) == "other"]
            if missing and strange:
                detail = f"{detail[:-1]}; what is there is called {strange[0]}, ...)"
            raise UserError(
                f"{report.source} lacks {GROUP_NAMES[group]}{detail}; "
                "give a checkpoint that was trained with it"
            )


def save_checkpoint(
    model: nn.Module,
    tokenizer: Any,
    output_dir: str | Path,
    *,
    safetensors: bool = True,
    save_bin: bool = False,
    keep_projection: bool = True,
) -> None:
    """Write `model` (bare, with a `config`) and `tokenizer` as a checkpoint directory.

    Writes model.safetensors. Each file appears whole or not at all; config.json comes last, so that
    a directory with one is complete.

    Args:
        safetensors: False writes pytorch_model.bin alone, for tools of 2019.
        save_bin: write pytorch_model.bin as well.
        keep_projection: False leaves out what only training uses, the map to the teacher's width.

    Raises:
        OSError: no space, no permission.
    """
    prefix = _prefix(model)
    config = model.config
    weights = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    weights.pop(DECODER, None)  # readers tie it to the word embeddings
    if not keep_projection:
        weights = {name: value for name, value in weights.items() if group_of(name) != "fit"}
        config = config.changed(fit_size=0, fit_per_layer=False)
    formats = [SAFETENSORS] if safetensors else []
    if save_bin or not safetensors:
        formats.append(BIN)
    write_checkpoint(weights, config, tokenizer, Path(output_dir), tuple(formats))


def write_checkpoint(
    weights: dict[str, Tensor],
    config: BertConfig,
    tokenizer: Any,
    output_dir: Path,
    formats: tuple[str, ...],
) -> None:
    """Write published `weights` to the files `formats`, and what goes with them.

    Killed at any instant, this leaves the old checkpoint, the new one, or a directory that is
    refused because it has no config.json; never new weights under an old configuration.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    dtype = str(weights[weight_files.WORD_EMBEDDINGS].dtype).removeprefix("torch.")
    text = config_text(config, weights, dtype)
    tensors = {
        their_name(config.model_type, name): tensor.detach().cpu().clone()
        for name, tensor in weights.items()
    }
    config_file = output_dir / "config.json"
    if not config_file.is_file() or config_file.read_bytes() != text.encode():
        for name in CONFIG_NAMES:
            (output_dir / name).unlink(missing_ok=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(output_dir)
    stale = _weight_files_in(output_dir) - {output_dir / name for name in formats}
    # subtle: readers prefer safetensors. Written bin first, a kill before the old safetensors file
    # is replaced or removed leaves the old weights whole.
    for name in sorted(formats, key=(BIN, SAFETENSORS).index):
        _write_tensors(output_dir / name, tensors)
    # An index goes before its shards, lest it point at nothing.
    for path in sorted(stale, key=lambda path: not path.name.endswith(INDEX_SUFFIX)):
        path.unlink(missing_ok=True)
    with atomic_write(config_file) as file:
        file.write(text)
    if config.classifier_relu and "classifier.weight" in weights:
        _tell_about_relu(output_dir, ARCHITECTURES[config.model_type].class_prefix)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    if path.name == SAFETENSORS:
        write_file(safetensors_bytes(tensors, metadata={"format": "pt"}), path)
    else:
        save_torch(tensors, path)


def _weight_files_in(directory: Path) -> set[Path]:
    """Return all PyTorch weight files of `directory`, shards and indexes too."""
    stems = (SAFETENSORS, BIN)
    found = {directory / (stem + suffix) for stem in stems for suffix in ("", INDEX_SUFFIX)}
    for stem in stems:
        base, suffix = stem.rsplit(".", 1)
        found |= set(directory.glob(f"{base}-*-of-*.{suffix}"))
    return found


@cache
def _tell_about_relu(output_dir: Path, class_prefix: str) -> None:
    """Say, once for each directory, where other readers will get other numbers."""
    logger.info(
        "%s: its classifier reads ReLU(pooled); Hugging Face's %sForSequenceClassification has "
        "no ReLU there and gives other logits for it",
        output_dir,
        class_prefix,
    )
