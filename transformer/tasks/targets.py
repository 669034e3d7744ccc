"""What is written of a finished model: where it goes, and which files it may take the place of."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from transformer.files import EnvironmentFault, UserError
from transformer.tasks.table import Source, Task
from transformer.tasks.token_cache import file_name


class FileKind(NamedTuple):
    """A kind of file that a run writes: what it is, and a pattern of how each of them begins."""

    what: str
    beginning: bytes
    ending: str = ""


# Of a test set, by what the task reads.
PREDICTIONS = {
    "rows": FileKind("predictions of this script", rb"index\tprediction\n", ".tsv"),
    "sentences": FileKind("predicted tags", rb"[^\t\n]*\t[^\t\n]+\n", ".tsv"),
    "questions": FileKind("predicted answers", rb'\{\n "[^"\n]*": "', ".json"),
}

# A field with the version, then one with the exporter's name.
ONNX_GRAPH = FileKind("an ONNX graph", rb"\x08.\x12.[ -~]+")


# What an export to a directory writes; further files of the directory are those of a tokenizer.
GRAPH_NAME, INT8_NAME = "model.onnx", "model_int8.onnx"

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

# Where the metadata of a graph of ours ends, which is the end of the file.
OUR_METADATA = b"max_position_embeddings"


def missing_onnx_packages() -> list[str]:
    """Return the packages that an export needs and that are not installed."""
    return [name for name in ONNX_PACKAGES if find_spec(name) is None]


def is_graph_file(target: Path) -> bool:
    """Say whether --export_onnx names a file; else it names a directory."""
    return not target.is_dir() and (target.suffix == ".onnx" or target.exists())


def check_export(target: Path, int8: bool, output_dir: Path | None = None) -> None:
    """Check that `target` may be written, as a file or a directory, and that the packages are here.

    Args:
        output_dir: of the run, which makes it before it exports.

    Raises:
        UserError: it is something that is not ours, or its parent directory does not exist.
        EnvironmentFault: a package is missing.
    """
    if output_dir is not None and target.resolve() == output_dir.resolve():
        raise UserError(
            f"--export_onnx {target} is the --output_dir; give a directory of its own, such as "
            f"{target / 'onnx'}"
        )
    parent = target.parent
    is_made = output_dir is not None and parent.resolve() == output_dir.resolve()
    if not target.exists() and not parent.is_dir() and not is_made:
        raise UserError(f"--export_onnx {target}: no such directory; create {parent} first")
    if is_graph_file(target):
        if int8:
            raise UserError(f"--int8: --export_onnx {target} is a file; give a directory")
        check_target("--export_onnx", target, ONNX_GRAPH)
    elif target.exists():
        _check_export_directory(target)
    place = target if target.is_dir() else parent
    if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--export_onnx {target}: {place} may not be written to")
    missing = missing_onnx_packages()
    if missing:
        raise EnvironmentFault(
            f"--export_onnx needs {', '.join(missing)}: pip install -r requirements-onnx.txt"
        )


def _check_export_directory(target: Path) -> None:
    """Refuse a directory that holds something and is no former export."""
    held = sorted(entry.name for entry in target.iterdir())
    if held and not _ends_as_ours(target / GRAPH_NAME):
        raise UserError(
            f"--export_onnx: {target} holds files ({held[0]}, ...) but no export of ours; "
            "give a new directory"
        )
    if INT8_NAME in held and not _ends_as_ours(target / INT8_NAME):
        raise UserError(
            f"--export_onnx would replace {target / INT8_NAME}, which is not ours; move it away"
        )


def _ends_as_ours(path: Path) -> bool:
    """Say whether `path` is a graph that `export_onnx` wrote."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 256))
        return OUR_METADATA in file.read()


def check_target(flag: str, path: Path, kind: FileKind) -> None:
    """Raise UserError where a file to write is there already and is something else."""
    if path.is_dir():
        raise UserError(f"{flag}: {path} is a directory; give a file")
    if not path.exists():
        return
    with open(path, "rb") as file:
        begins = file.read(64)
    if not re.match(kind.beginning, begins, re.DOTALL):
        raise UserError(f"{flag} would replace {path}, which is not {kind.what}; move it away")


def prediction_file(output_dir: Path, task: Task, source: Source) -> Path:
    """Return where the predictions of a test set go."""
    return output_dir / f"{file_name(source.name)}{PREDICTIONS[task.kind.reads].ending}"
