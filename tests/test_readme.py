"""The documents against the scripts and each other.

Commands paste and parse, flags exist, links lead somewhere, the tree is the tree; README.md and
README.zh.md are one document in two languages.

bash tests/run.sh tests/test_readme.py
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch

from transformer.configuration import BertConfig
from transformer.costs import count_parameters, sentence_flops
from transformer.modeling import TinyBertForSequenceClassification

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = (
    "pregenerate_training_data",
    "general_distill",
    "data_augmentation",
    "task_distill",
)
COMMANDS = (*SCRIPTS, "transformer.distillation.suggest")
READMES = ("README.md", "README.zh.md")
DOCUMENTS = (*READMES, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
# Flags of other programs that the text names.
FOREIGN_FLAGS = {
    *("--nproc_per_node", "--nnodes", "--max-restarts", "--rdzv_backend", "--rdzv_endpoint"),
    *("--assets", "--chain", "--work_dir", "--to", "--ways"),
}
FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def code_blocks(document: str, language: str = "bash") -> list[str]:
    return re.findall(rf"^```(?:{language})\n(.*?)^```", read(document), re.MULTILINE | re.DOTALL)


def prose(document: str) -> str:
    """Return a document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", read(document), flags=re.MULTILINE | re.DOTALL)


def parser_of(script: str) -> ArgumentParser:
    return importlib.import_module(script).build_parser()


def flags_of(parser: ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


def commands_of(document: str) -> list[list[str]]:
    """Split the bash blocks into commands, as a shell does that is given them in their order.

    The pages of docs/ go on with the variables that README.md sets.
    """
    before = [] if document in READMES else code_blocks("README.md")
    variables: dict[str, str] = {}
    for block in before:
        split_commands(block, variables)
    return [
        command for block in code_blocks(document) for command in split_commands(block, variables)
    ]


def split_commands(block: str, variables: dict[str, str]) -> list[list[str]]:
    commands = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, value = words.pop(0).split("=", 1)
            variables[name] = value
        if words:
            commands.append([expand(word, variables) for word in words])
    return commands


def expand(word: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: variables[match[1]], word)


def script_calls(document: str) -> list[tuple[str, list[str]]]:
    """List (script, arguments) for every call of one of `COMMANDS`."""
    calls = []
    for command in commands_of(document):
        for index, word in enumerate(command):
            if word.removesuffix(".py") in COMMANDS and command[0] in ("python", "torchrun"):
                arguments = command[index + 1 :]
                calls.append((word.removesuffix(".py"), arguments))
                break
    return calls


@pytest.mark.parametrize("document", READMES)
def test_readme_shows_every_script(document: str) -> None:
    assert {script for script, _ in script_calls(document)} == set(COMMANDS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_parse(document: str, capsys: pytest.CaptureFixture) -> None:
    for script, arguments in script_calls(document):
        try:
            parser_of(script).parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{script}.py {shlex.join(arguments)}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_continued_lines_paste(document: str) -> None:
    for block in code_blocks(document):
        assert not re.search(r"\\[ \t]+$", block, re.MULTILINE), "a blank behind a backslash"
        assert not block.rstrip().endswith("\\"), "a backslash behind the last line"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_flags_in_the_text_exist(document: str) -> None:
    known = FOREIGN_FLAGS | {flag for script in COMMANDS for flag in flags_of(parser_of(script))}
    named = {
        flag
        for code in re.findall(r"`([^`]+)`", prose(document))
        for flag in re.findall(FLAG, code)
    }
    assert named or document == "docs/results.md", "no flag found in the text"
    assert named - known == set()


@pytest.mark.parametrize("script", COMMANDS)
def test_every_flag_has_help(script: str) -> None:
    silent = [action.dest for action in parser_of(script)._actions if not action.help]
    assert silent == []


@pytest.mark.parametrize("script", COMMANDS)
def test_help_can_be_printed(script: str) -> None:
    assert script in parser_of(script).format_help() or "usage:" in parser_of(script).format_help()


def anchors_of(document: str) -> set[str]:
    """Name the anchors of the headings as GitHub does: lower case, hyphens for blanks."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def links_of(document: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(document))


@pytest.mark.parametrize("document", [*DOCUMENTS, "benchmarks/README.md"])
def test_links_lead_somewhere(document: str) -> None:
    for target in links_of(document):
        if target.startswith("http"):
            continue
        place, _, anchor = target.partition("#")
        path = (ROOT / document).parent / place if place else ROOT / document
        assert path.resolve().is_relative_to(ROOT), target
        assert path.exists(), target
        if anchor:
            assert anchor in anchors_of(str(path.resolve().relative_to(ROOT))), target


def test_every_page_is_linked() -> None:
    for document in READMES:
        linked = {target.partition("#")[0] for target in links_of(document)}
        assert {*DOCUMENTS} - {document} <= linked, document


@pytest.mark.parametrize("document", READMES)
def test_the_tree_is_the_tree(document: str) -> None:
    sections = read(document).split("\n## ")
    (section,) = (text for text in sections if "\n    transformer/\n" in text)
    listed, folders = [], {4: ROOT}  # the folder whose files stand at an indentation
    for line in section.splitlines():
        match = re.match(r"^( {4,})([\w.]+)(/?)(?= |$)", line)
        if match is None:
            continue
        place = folders[len(match[1])] / match[2]
        if match[3]:
            folders[len(match[1]) + 2] = place
        else:
            listed.append(place)
        assert line.split(maxsplit=1)[1:] or match[3], f"say what {match[2]} is for"
    there = [*ROOT.glob("*.py"), *(ROOT / "transformer").rglob("*.py")]
    assert sorted(listed) == sorted(path for path in there if path.name != "__init__.py")


def without_comments(code: str) -> str:
    return re.sub(r"\s+# .*$", "", code, flags=re.MULTILINE)


def test_both_readmes_have_the_same_code() -> None:
    english, chinese = (
        [without_comments(code) for code in code_blocks(name, "bash|python|bibtex")]
        for name in READMES
    )
    assert chinese == english


def test_both_readmes_have_the_same_headings() -> None:
    english, chinese = (re.findall(r"^(#+) ", prose(name), re.MULTILINE) for name in READMES)
    assert chinese == english


def numbers_of(text: str) -> list[str]:
    """List the numbers that are not part of a name: 7,528 and 16.1, but not the 2 of SST-2."""
    return re.findall(r"(?<![A-Za-z\d_.-])\d+(?:[,.]\d+)*", text)


def test_both_readmes_have_the_same_figures() -> None:
    """In tables row by row and in order; in the text of a section in any order."""
    english, chinese = (re.split(r"^#+ ", prose(name), flags=re.MULTILINE) for name in READMES)
    for ours, theirs in zip(english, chinese, strict=True):
        rows, their_rows = (
            [numbers_of(line) for line in text.splitlines() if line.startswith("|")]
            for text in (ours, theirs)
        )
        assert their_rows == rows
        assert sorted(numbers_of(theirs)) == sorted(numbers_of(ours)), ours.partition("\n")[0]


def test_both_readmes_lead_to_the_same_places() -> None:
    english, chinese = (
        sorted(
            target.replace(".zh.", ".")
            for target in links_of(name)
            if not target.startswith("#") and target not in READMES
        )
        for name in READMES
    )
    assert chinese == english


def test_both_drawings_have_the_same_shapes() -> None:
    english, chinese = (
        [
            sorted(shape.items())
            for shape in ElementTree.parse(ROOT / "docs" / name).iter()
            if not shape.tag.endswith(("title", "desc", "svg"))
        ]
        for name in ("ways.svg", "ways.zh.svg")
    )
    assert chinese == english


def test_the_results_are_those_of_their_page() -> None:
    section = read("README.md").partition("\n## Results\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert rows
    assert set(rows) <= set(read("docs/results.md").splitlines())


def test_the_sizes_of_the_student_configurations() -> None:
    """Each directory has a row, with its sizes, its parameters and its arithmetic."""
    teachers = {"MiniLM-L6": BertConfig(hidden_size=384, num_hidden_layers=6)}
    teachers["MiniLM-L6"].intermediate_size = 1536
    teachers["BERT-base"] = BertConfig()
    listed = set()
    for row in re.findall(r"^\| \[`.*student_configs.*$", read("docs/options.md"), re.MULTILINE):
        name, teacher, *told = [cell.strip(" `") for cell in row.strip("|").split("|")]
        name = name.partition("]")[0].strip("[`")
        listed.add(name)
        config = BertConfig.from_json_file(
            ROOT / "examples" / "student_configs" / name / "config.json"
        )
        with torch.device("meta"):
            count, _ = count_parameters(TinyBertForSequenceClassification(config))
        fewer = sentence_flops(teachers[teacher], 128) / sentence_flops(config, 128)
        sizes = f"{config.num_hidden_layers} layers of {config.hidden_size}"
        assert told == [sizes, f"{count / 1e6:.1f} M", f"{fewer:.1f}x"], name
    directories = (ROOT / "examples" / "student_configs").iterdir()
    assert listed == {path.name for path in directories if not path.name.endswith("_zh")}


OTHER_NAMES = {"sklearn": "scikit-learn"}  # packages that are imported by another name


def test_requirements_are_what_is_imported() -> None:
    places = (ROOT / "requirements.txt", ROOT / "examples" / "requirements.txt")
    lines = [line for place in places for line in place.read_text(encoding="utf-8").splitlines()]
    required = {re.match(r"[\w-]+", line)[0] for line in lines if re.match(r"\w", line)}
    assert all(re.search(r"\S\s+# \S", line) for line in lines if re.match(r"\w", line)), "a reason"
    files = [ROOT / f"{script}.py" for script in SCRIPTS] + list((ROOT / "transformer").rglob("*"))
    files += (ROOT / "examples").glob("*.py")
    imported = {name for file in files if file.suffix == ".py" for name in imports_of(file)}
    # Imported only when asked for, or where installed.
    optional = {"tensorboard", "tensorflow", "onnx", "onnxruntime"}
    own = {"transformer"}
    comes_along = {"botocore"}  # with boto3
    imported -= sys.stdlib_module_names | own | optional | comes_along
    assert {OTHER_NAMES.get(name, name) for name in imported} == required


def imports_of(file: Path) -> set[str]:
    """Return the top-level names of all absolute imports in a file."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names
