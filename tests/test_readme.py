"""README.md against the scripts: commands paste and parse, flags exist, links lead somewhere.

bash tests/run.sh tests/test_readme.py
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch

from transformer.configuration import BertConfig
from transformer.costs import count_parameters, sentence_flops
from transformer.modeling import TinyBertForSequenceClassification

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = (
    "pregenerate_training_data",
    "general_distill",
    "data_augmentation",
    "task_distill",
)
COMMANDS = (*SCRIPTS, "transformer.distillation.suggest")
BASH_BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
# Flags of other programs that the text names.
FOREIGN_FLAGS = {
    *("--nproc_per_node", "--nnodes", "--max-restarts", "--rdzv_backend", "--rdzv_endpoint"),
    *("--assets", "--chain", "--work_dir", "--to"),
}
FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")


def parser_of(script: str) -> ArgumentParser:
    return importlib.import_module(script).build_parser()


def flags_of(parser: ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


def readme_commands() -> list[list[str]]:
    """Split the bash blocks into commands, as a shell does that is given them in their order."""
    variables: dict[str, str] = {}
    commands = []
    for block in BASH_BLOCKS:
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


def script_calls() -> list[tuple[str, list[str]]]:
    """List (script, arguments) for every call of one of `COMMANDS`."""
    calls = []
    for command in readme_commands():
        for index, word in enumerate(command):
            if word.removesuffix(".py") in COMMANDS and command[0] in ("python", "torchrun"):
                arguments = command[index + 1 :]
                calls.append((word.removesuffix(".py"), arguments))
                break
    return calls


def test_readme_shows_every_script() -> None:
    assert {script for script, _ in script_calls()} == set(COMMANDS)


@pytest.mark.parametrize(("script", "arguments"), script_calls(), ids=lambda value: str(value)[:60])
def test_command_parses(script: str, arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    try:
        parser_of(script).parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{script}.py {shlex.join(arguments)}\n{capsys.readouterr().err}")


def test_continued_lines_paste() -> None:
    for block in BASH_BLOCKS:
        assert not re.search(r"\\[ \t]+$", block, re.MULTILINE), "a blank behind a backslash"
        assert not block.rstrip().endswith("\\"), "a backslash behind the last line"


def test_flags_in_the_text_exist() -> None:
    known = FOREIGN_FLAGS | {flag for script in COMMANDS for flag in flags_of(parser_of(script))}
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    named = {flag for code in re.findall(r"`([^`]+)`", prose) for flag in re.findall(FLAG, code)}
    assert named, "no flag found in the text"
    assert named - known == set()


@pytest.mark.parametrize("script", COMMANDS)
def test_every_flag_has_help(script: str) -> None:
    silent = [action.dest for action in parser_of(script)._actions if not action.help]
    assert silent == []


@pytest.mark.parametrize("script", COMMANDS)
def test_help_can_be_printed(script: str) -> None:
    assert script in parser_of(script).format_help() or "usage:" in parser_of(script).format_help()


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
    for target in re.findall(r"\]\(([^)\s]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http"):
            assert (ROOT / target.split("#")[0]).exists(), target


def test_the_tree_is_the_tree() -> None:
    lines = README.partition("## Files, in reading order")[2].partition("\n## ")[0].splitlines()
    listed, folders = [], {4: ROOT}  # the folder whose files stand at an indentation
    for line in lines:
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


def test_the_sizes_of_the_student_configurations() -> None:
    """Each directory has a row, with its sizes, its parameters and its arithmetic."""
    teachers = {"MiniLM-L6": BertConfig(hidden_size=384, num_hidden_layers=6)}
    teachers["MiniLM-L6"].intermediate_size = 1536
    teachers["BERT-base"] = BertConfig()
    listed = set()
    for row in re.findall(r"^\| \[`.*student_configs.*$", README, re.MULTILINE):
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
    optional = {"tensorboard", "tensorflow", "onnx", "onnxruntime", "nanotoken"}
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
