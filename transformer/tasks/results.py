"""Results of a task: dev sets evaluated, result files, tables, several seeds of one experiment."""

from __future__ import annotations

import json
import logging
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from transformer.checkpoint.model_card import write_model_card
from transformer.files import atomic_write
from transformer.runtime.output_dir import MODEL_FILES
from transformer.runtime.progress import table_lines
from transformer.runtime.ranks import Runtime
from transformer.tasks.class_report import FILES as REPORT_FILES
from transformer.tasks.metrics import Results, beats, is_better, score
from transformer.tasks.table import Task
from transformer.training.inference import predict_logits
from transformer.training.packed import PackedDataset

logger = logging.getLogger(__name__)


Answers = tuple[np.ndarray, np.ndarray]  # logits (N, C) and gold labels (N, ...)


@dataclass(frozen=True)
class DevSet:
    """A dev set of the task; `suffix` is "" for the one that chooses, "-MM" for its sister."""

    suffix: str
    dataset: PackedDataset


def evaluate(
    model: nn.Module, task: Task, dev_sets: Sequence[DevSet], batch_size: int, runtime: Runtime
) -> Results:
    """Return the scores on every dev set; a sister's keys carry its suffix ("acc-mm")."""
    return evaluate_with_answers(model, task, dev_sets, batch_size, runtime)[0]


def evaluate_with_answers(
    model: nn.Module, task: Task, dev_sets: Sequence[DevSet], batch_size: int, runtime: Runtime
) -> tuple[Results, np.ndarray, np.ndarray]:
    """Return the scores of `evaluate`, and the scored logits (N, C) and labels of the first set."""
    results: Results = {}
    answers = []
    for dev in dev_sets:
        logits = predict_logits(model, dev.dataset, batch_size, runtime)
        answers.append(task.kind.answers(dev.dataset, logits))
        found = score(task, *answers[-1])
        results |= {key + dev.suffix.lower(): value for key, value in found.items()}
    return results, *answers[0]


# What to do about a model that is no better than chance: one that teaches, one that may have been
# trained elsewhere, one that was trained just now.
TEACHER_AT_CHANCE = (
    "Is it fine-tuned (--finetune), and are its labels in the order that its config.json says?"
)
MODEL_AT_CHANCE = (
    "If you trained it, train it again with another --learning_rate first, a lower one if its loss "
    "jumped or never fell, a higher one if it still fell at the end. Else: was it fine-tuned for "
    "this task, and are its labels in the order that its config.json says?"
)
TRAINED_AT_CHANCE = (
    "Change --learning_rate first (it is {:g}): lower if the loss in training_curves.png jumps or "
    "never falls, higher if it still falls at the end; then --num_train_epochs"
)


def warn_of_chance(task: Task, score: float, chance: float, whose: str, advice: str) -> bool:
    """Log a warning, and return True, if `score` is no better than a constant answer's.

    Args:
        chance: from `chance_score`.
        advice: what to look at or to change first.
    """
    if math.isnan(chance) or is_better(score, chance, task.best_metric):
        return False
    logger.warning(
        "WARNING: %s scores %.4f in %s, no better than one answer for all (%.4f): it knows nothing "
        "of %s. %s",
        *(whose, score, task.best_metric, chance, task.name, advice),
    )
    return True


# ------------------------------------------------------------------------------- files for people


def write_results(output_dir: str | Path, results: Mapping[str, object]) -> None:
    """Write eval_results.txt (key = value lines) and eval_results.json; NaN becomes null there."""
    directory = Path(output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory / "eval_results.txt") as file:
        file.writelines(f"{key} = {results[key]}\n" for key in sorted(results))
    with atomic_write(directory / "eval_results.json") as file:
        json.dump({key: _or_null(value) for key, value in results.items()}, file, indent=2)
        file.write("\n")


def _or_null(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_dev_results(
    output_dir: Path, dev_sets: Sequence[DevSet], results: Results, facts: Mapping[str, object]
) -> None:
    """Write the results of all dev sets, and those of a sister alone to OUTPUT_DIR-MM too."""
    write_results(output_dir, {**facts, **results})
    for dev in dev_sets:
        ending = dev.suffix.lower()
        if ending:
            own = {
                key.removesuffix(ending): value
                for key, value in results.items()
                if key.endswith(ending)
            }
            # subtle: a Path has no trailing slash, so "out/" gives "out-MM" and not "out/-MM".
            write_results(output_dir.with_name(output_dir.name + dev.suffix), {**facts, **own})


def results_table(title: str, rows: Mapping[str, Results]) -> str:
    """Return results as an aligned text table, one row a model."""
    keys = list(dict.fromkeys(key for results in rows.values() for key in results))
    lines = [[title, *keys]]
    for name, results in rows.items():
        cells = [f"{results[key]:.4f}" if key in results else "" for key in keys]
        lines.append([name, *cells])
    return "\n".join(table_lines(lines))


def seed_directory(output_dir: Path, seed: int) -> Path:
    """Return the output directory of one of several seeds."""
    return output_dir / f"seed_{seed}"


def summarise_seeds(results: Mapping[int, Results], metric: str) -> dict[str, Any]:
    """Return mean and (sample) deviation of every result over seeds, and the seed best in `metric`.

    Of seeds that are equal there, the best is the one with the lower loss.
    The keys of the best seed's own results are plain ("acc"), the others "acc_mean", "acc_std".
    """
    best_seed = next(iter(results))
    for seed, found in results.items():
        if beats(found, results[best_seed], metric):
            best_seed = seed
    summary: dict[str, Any] = dict(results[best_seed])
    for key in results[best_seed]:
        values = [found[key] for found in results.values()]
        numbers = [value for value in values if not math.isnan(value)]
        summary[f"{key}_mean"] = statistics.fmean(numbers) if numbers else math.nan
        summary[f"{key}_std"] = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
    by_seed = {str(seed): dict(found) for seed, found in results.items()}
    return {**summary, "best_seed": best_seed, "seeds": by_seed}


def keep_best_seed(output_dir: Path, seed: int) -> None:
    """Copy the model of the best seed, and its report, to the output directory itself.

    config.json, the last of its files, makes it a model.
    """
    source = seed_directory(output_dir, seed)
    for name in (*REPORT_FILES, *MODEL_FILES):
        if not (source / name).is_file():
            (output_dir / name).unlink(missing_ok=True)
            continue
        with open(source / name, "rb") as model, atomic_write(output_dir / name, "wb") as copy:
            shutil.copyfileobj(model, copy)


def report_seeds(
    output_dir: Path, facts: Mapping[str, Any], results: Mapping[int, Results], metric: str
) -> None:
    """Keep the seed that is best in `metric`; write and print what all of them say together."""
    summary = summarise_seeds(results, metric)
    keep_best_seed(output_dir, summary["best_seed"])
    write_results(output_dir, {**facts, **summary})
    write_model_card(output_dir)
    rows = {f"seed {seed}": found for seed, found in results.items()}
    for kind in ("mean", "std"):
        rows[kind] = {key: summary[f"{key}_{kind}"] for key in next(iter(results.values()))}
    print(results_table(f"{facts['task']}, dev", rows), flush=True)
    logger.info("seed %d is the best; its model is kept in %s", summary["best_seed"], output_dir)
