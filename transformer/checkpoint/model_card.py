"""The model card: a README.md that says what a model is, how good it is and how it was made.

It is composed from what lies in the directory of the run: config.json and the headers of the
weights, args.json, eval_results.json and, where the speed was measured, benchmark.json.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Any

from transformer.checkpoint.directory import Checkpoint
from transformer.files import atomic_write, without_secrets

logger = logging.getLogger(__name__)

NAME = "README.md"

# What tells our cards from those of a user, which are never replaced.
MARK = (
    "<!-- Written by TinyBERT's scripts, and again whenever the model is saved. Remove this line "
    "to keep what you change. -->"
)

# The names that Hugging Face's hub has for metrics; others keep their own.
HUB_METRICS = {"acc": "accuracy", "mcc": "matthews_correlation", "pearson": "pearsonr"}

# What eval_results.json says beside metrics.
FACTS = ("task", "stage", "model", "seed", "seeds", "best_seed", "global_step")

STAGES = {
    "fine-tuning": "fine-tuned on the labels of {task}",
    "prediction distillation": "distilled for {task}: it has learned the answers of its teacher",
    "intermediate distillation": (
        "half-way to {task}: it has learned the layers of its teacher, and goes on with "
        "`task_distill.py --pred_distill`"
    ),
    "general distillation": (
        "distilled on general text: it has learned the layers of its teacher, and is made ready "
        "for a task by `task_distill.py`"
    ),
}

# What the example of a use gives to a pipeline.
EXAMPLES = {
    "text-classification": '"a text"',
    "token-classification": '"a text"',
    "question-answering": 'question="a question", context="a text that holds the answer"',
}

FINISHED = ("fine-tuning", "prediction distillation")


@dataclass(frozen=True)
class _Run:
    """What the files of a run say about the model in `checkpoint`."""

    checkpoint: Checkpoint
    args: dict[str, Any]
    results: dict[str, Any]
    benchmark: dict[str, Any]

    @property
    def name(self) -> str:
        return self.checkpoint.path.resolve().name

    @property
    def stage(self) -> str:
        return self.results.get("stage", "general distillation")

    @property
    def task(self) -> str:
        return str(self.results.get("task", ""))

    @property
    def is_finished(self) -> bool:
        """Whether the model answers for a task, and not only its layers have learned."""
        return self.stage in FINISHED

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Return the scores on the dev set; of layers, their loss."""
        other = (*FACTS, *(key for key in self.results if key.endswith(("_mean", "_std"))))
        return {
            key: value
            for key, value in self.results.items()
            if key not in other
            and not key.startswith("teacher_")
            and isinstance(value, int | float)
            and (self.is_finished or key == "eval_loss")
        }


def write_model_card(directory: Path, run_dir: Path | None = None) -> None:
    """Write the card of the model in `directory`, unless the one there is a user's own.

    Args:
        run_dir: where args.json and results are, if not in the same directory.

    Raises:
        OSError: no space, no permission.
    """
    target = directory / NAME
    if target.exists() and MARK not in target.read_text(encoding="utf-8", errors="replace"):
        _tell_about_foreign_card(target)
        return
    place = directory if run_dir is None else run_dir
    run = _Run(
        Checkpoint(directory),
        args=_read(place / "args.json"),
        results=_read(place / "eval_results.json"),
        benchmark=_read(place / "benchmark.json"),
    )
    sections = (_metadata(run), MARK, _introduction(run), _results(run), _use(run), _origin(run))
    with atomic_write(target) as file:
        file.write("\n\n".join(section for section in sections if section) + "\n")


@cache
def _tell_about_foreign_card(path: Path) -> None:
    logger.info("%s is not one of ours, and stays as it is", path)


def _read(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where it says nothing."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# ---------------------------------------------------------------------------------- the sections


def _metadata(run: _Run) -> str:
    """Return the YAML block that hubs read; the licence is left to the user."""
    from huggingface_hub import EvalResult, ModelCardData  # takes a while to import

    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=run.task.lower(),
            dataset_name=run.task,
            dataset_split="dev",
            metric_type=HUB_METRICS.get(key, key),
            metric_name=key,
            metric_value=value,
        )
        for key, value in run.metrics.items()
        if run.is_finished
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=run.checkpoint.pipeline if run.is_finished else "feature-extraction",
        tags=["tinybert", *([] if run.stage == "fine-tuning" else ["knowledge-distillation"])],
        model_name=run.name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def _introduction(run: _Run) -> str:
    config = run.checkpoint.config
    parameters = sum(map(prod, run.checkpoint.shapes.values()))
    files = run.checkpoint.files
    size = sum(file.stat().st_size for file in files.files) if files else 0
    stage = STAGES.get(run.stage, run.stage).format(task=run.task)
    return (
        f"# {run.name}\n\n"
        f"A {config.num_hidden_layers}-layer {config.model_type} model of width "
        f"{config.hidden_size} ({parameters / 1e6:.2f} M parameters, {size / 1e6:.1f} MB), "
        f"{stage}. "
        "Made with TinyBERT ([arXiv 1909.10351](https://arxiv.org/abs/1909.10351))."
    )


def _results(run: _Run) -> str:
    teacher = {key: run.results.get(f"teacher_{key}") for key in run.metrics}
    headings = ["", "this model"]
    has_teacher = any(isinstance(value, int | float) for value in teacher.values())
    rows = [[f"{key}, dev set", _number(value)] for key, value in run.metrics.items()]
    speeds = {whose: _speeds(run.benchmark.get(whose)) for whose in ("student", "teacher")}
    rows += [[f"sentences/s, {kind}", _number(value)] for kind, value in speeds["student"].items()]
    if not rows:
        return ""
    if has_teacher or speeds["teacher"]:
        headings.append("its teacher")
        theirs = [*teacher.values(), *(speeds["teacher"].get(kind) for kind in speeds["student"])]
        rows = [[*row, _number(value)] for row, value in zip(rows, theirs, strict=True)]
    text = "## Results\n\n" + _table(headings, rows)
    student = run.benchmark.get("student")
    if speeds["student"] and isinstance(student, dict):
        where = f"{student.get('threads')} thread(s), {student.get('weight_type')} weights"
        text += f"\n\nSpeed on {student.get('device')}, {where}; tokenising is not timed."
    return text


def _speeds(figures: Any) -> dict[str, float]:
    """Return the sentences a second by kind of batch, of one model in benchmark.json."""
    try:
        speeds = figures["at_real_lengths"]["speeds"]
        return {f"batch {s['batch_size']}": float(s["sentences_per_second"]) for s in speeds}
    except (LookupError, TypeError, ValueError):
        return {}


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return ""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def _use(run: _Run) -> str:
    if not run.is_finished:
        return ""
    config = run.checkpoint.config
    text = (
        "## Use\n\n```python\nfrom transformers import pipeline\n\n"
        f'answer = pipeline("{run.checkpoint.pipeline}", model="{run.name}")\n'
        f"print(answer({EXAMPLES[run.checkpoint.pipeline]}))\n```"
    )
    if run.checkpoint.pipeline == "question-answering":
        return text + (
            "\n\nThat is for transformers before version 5. Later ones have no such pipeline: "
            "AutoModelForQuestionAnswering loads the model there."
        )
    if config.problem_type == "regression":
        text += "\n\nIt answers with one number, a score."
    elif config.id2label:
        text += f"\n\nLabels: {', '.join(config.id2label.values())}."
    if config.classifier_relu:
        text += (
            "\n\nIts classifier reads ReLU(pooled) (`classifier_relu` in config.json), which "
            "Hugging Face's classes do not apply: the numbers above are those of TinyBERT's "
            "scripts."
        )
    return text


def _origin(run: _Run) -> str:
    """Return how the model was made: the command and what went into it."""
    made = run.args.get("made_with")
    made = made if isinstance(made, dict) else {}
    versions = made.get("versions")
    rows = [
        ("begun", made.get("date")),
        ("seed", run.results.get("best_seed", run.results.get("seed", run.args.get("seed")))),
        ("step", run.results.get("global_step")),
        ("teacher", run.args.get("teacher_model")),
        ("student at the start", run.args.get("student_model")),
        ("data", run.args.get("data_dir") or run.args.get("pregenerated_data")),
        ("versions", _listed(versions.items()) if isinstance(versions, dict) else None),
    ]
    shown = [[name, without_secrets(str(value))] for name, value in rows if value is not None]
    command = f"```bash\n{made['command']}\n```\n\n" if "command" in made else ""
    return (
        f"## How it was made\n\n{command}{_table(['', ''], shown)}\n\n"
        "No licence is stated here: choose one that its teacher and its data allow, and name it as "
        "`license` at the top of this file."
    )


def _listed(pairs: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in pairs)


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    cells = [[cell.replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
