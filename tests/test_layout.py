"""The order of imports: each drawer may import those above it, never those below."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The rooms of transformer/, from the ground up. Those that share a line may import each other only
# within a drawer.
ORDER = (
    ("files",),
    ("file_utils", "download", "hub", "s3", "archives"),
    ("characters", "vocabulary", "attention", "configuration"),
    ("tokenization", "modeling", "optimization"),
    ("packed_linear", "sentence_pieces", "costs"),
    ("architectures",),
    ("runtime",),
    ("checkpoint",),
    ("corpus",),
    ("training",),
    ("distillation",),
    ("tasks",),
    ("augmentation",),
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
# `from_pretrained` of a model opens a checkpoint, a head builds the encoder of any architecture,
# `from_pretrained` of a tokenizer finds SentencePiece: the imports that go up, made when called.
EXCEPTIONS = {
    ("modeling", "checkpoint"),
    ("modeling", "architectures"),
    ("tokenization", "sentence_pieces"),
}


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms of transformer/ that a file imports from, inside functions too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            if node.module == "transformer":
                rooms.update(alias.name for alias in node.names)
            elif node.module.startswith("transformer."):
                rooms.add(node.module.split(".")[1])
    return rooms


def test_imports_go_one_way() -> None:
    upward = []
    for path in sorted((ROOT / "transformer").rglob("*.py")):
        room = path.relative_to(ROOT / "transformer").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in FLOOR, f"{path}: give {room} a floor in this test"
        upward += [
            f"{path.relative_to(ROOT)} imports {other}"
            for other in imported_rooms(path) - {room}
            if FLOOR.get(other, 99) > FLOOR[room] and (room, other) not in EXCEPTIONS
        ]
    assert upward == []


def test_no_script_is_imported() -> None:
    scripts = {path.stem for path in ROOT.glob("*.py")}
    for path in [*ROOT.glob("*.py"), *(ROOT / "transformer").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not scripts & {alias.name for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in scripts, path


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("transformer.modeling", "BertModel BertForMaskedLM TinyBertForSequenceClassification"),
        ("transformer.tokenization", "BertTokenizer BasicTokenizer WordpieceTokenizer"),
        ("transformer.optimization", "BertAdam"),
        ("transformer.file_utils", "cached_path"),
        ("transformer.checkpoint", "load_model save_checkpoint"),
        ("transformer", "BertTokenizer BertForMaskedLM BertConfig BertAdam load_model UserError"),
    ],
)
def test_public_paths_stay(module: str, names: str) -> None:
    found = importlib.import_module(module)
    for name in names.split():
        assert getattr(found, name).__name__ == name


def test_scripts_written_for_the_original_find_their_constants() -> None:
    from transformer.file_utils import CONFIG_NAME, PYTORCH_PRETRAINED_BERT_CACHE, WEIGHTS_NAME

    assert (CONFIG_NAME, WEIGHTS_NAME) == ("config.json", "pytorch_model.bin")
    assert isinstance(PYTORCH_PRETRAINED_BERT_CACHE, Path)
