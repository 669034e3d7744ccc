"""Measure a classifier: logits of a whole data set, metrics, result files, files to submit."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from transformer.data import PackedDataset, collate, evaluation_batches
from transformer.file_utils import atomic_write
from transformer.glue import Task
from transformer.reporting import Progress
from transformer.runtime import Runtime

logger = logging.getLogger(__name__)

Results = dict[str, float]
LOWER_IS_BETTER = ("mse", "eval_loss")


# ---------------------------------------------------------------------------------- the metrics


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of predictions that are right."""
    return float(np.mean(predictions == labels))


def f1_scores(predictions: np.ndarray, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Return the F1 of every class, (C,); NaN for a class that neither array holds."""
    right = np.bincount(labels[predictions == labels], minlength=num_labels)
    total = np.bincount(labels, minlength=num_labels) + np.bincount(
        predictions, minlength=num_labels
    )
    return np.divide(2 * right, total, out=np.full(num_labels, np.nan), where=total > 0)


def matthews(predictions: np.ndarray, labels: np.ndarray, num_labels: int) -> float:
    """Return the Matthews correlation (for C classes, R_K); 0 where either array is constant."""
    true = np.bincount(labels, minlength=num_labels).astype(float)
    guessed = np.bincount(predictions, minlength=num_labels).astype(float)
    count, right = float(len(labels)), float(np.sum(predictions == labels))
    spread = math.sqrt((count**2 - guessed @ guessed) * (count**2 - true @ true))
    return (right * count - true @ guessed) / spread if spread else 0.0


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Pearson's correlation; NaN where either array is constant."""
    x = predictions.astype(float) - predictions.mean(dtype=float)
    y = labels.astype(float) - labels.mean(dtype=float)
    spread = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / spread if spread else math.nan


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Spearman's rank correlation, ties sharing their mean rank."""
    return pearson(rankdata(predictions), rankdata(labels))


def _classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], float]]:
    num_labels = logits.shape[1]
    predictions, truth = logits.argmax(1), labels.astype(np.int64)

    def positive_f1() -> float:
        return float(np.nan_to_num(f1_scores(predictions, truth, num_labels)[1]))

    return {
        "acc": lambda: accuracy(predictions, truth),
        "f1": positive_f1,
        "acc_and_f1": lambda: (accuracy(predictions, truth) + positive_f1()) / 2,
        "macro_f1": lambda: float(np.nanmean(f1_scores(predictions, truth, num_labels))),
        "mcc": lambda: matthews(predictions, truth, num_labels),
    }


def _regression(logits: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], float]]:
    scores = logits[:, 0]
    return {
        "pearson": lambda: pearson(scores, labels),
        "spearmanr": lambda: spearman(scores, labels),
        "corr": lambda: (pearson(scores, labels) + spearman(scores, labels)) / 2,
        "mse": lambda: float(np.mean((scores.astype(float) - labels) ** 2)),
    }


def compute_metrics(task: Task, logits: np.ndarray, labels: np.ndarray) -> Results:
    """Return the task's metrics of logits (N, C) against labels (N,).

    F1 is that of the task's second label, `corr` the mean of Pearson and Spearman.
    """
    available = (_regression if task.regression else _classification)(logits, labels)
    return {name: available[name]() for name in task.metrics}


def gold_loss(task: Task, logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean loss against the gold labels: cross-entropy, or squared error."""
    if task.regression:
        return float(np.mean((logits[:, 0].astype(float) - labels) ** 2))
    shifted = logits.astype(float) - logits.max(1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-log_probs[np.arange(len(labels)), labels.astype(np.int64)].mean())


def is_better(score: float, best: float, metric: str) -> bool:
    """Say whether `score` beats `best`. NaN beats nothing, and losses are better when lower."""
    return score < best if metric in LOWER_IS_BETTER else score > best


def worst_score(metric: str) -> float:
    """Return the score that any number beats."""
    return math.inf if metric in LOWER_IS_BETTER else -math.inf


def chance_score(task: Task, labels: np.ndarray) -> float:
    """Return what a constant answer scores in the task's best metric, on these labels (N,)."""
    if task.regression:
        return float(np.var(labels)) if task.best_metric == "mse" else 0.0
    constant = np.zeros((len(labels), task.num_labels))
    scores = []
    for number in range(task.num_labels):
        constant[:] = 0
        constant[:, number] = 1
        scores.append(compute_metrics(task, constant, labels)[task.best_metric])
    return max(scores)


# --------------------------------------------------------------------- running over a data set


def predict_logits(
    model: nn.Module,
    dataset: PackedDataset,
    batch_size: int,
    runtime: Runtime,
    *,
    part: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return the logits of every row, (N, C) float32, in the rows' order and on every rank.

    Each rank computes its share of length-sorted batches; no row is computed twice.

    Args:
        part: the first row and the one after the last; None: all.
    """
    was_training = model.training
    model.eval()
    start, stop = part or (0, len(dataset))
    width = model.config.num_labels
    indices, parts = [np.zeros(0, np.int64)], [torch.zeros(0, width, device=runtime.device)]
    batches = evaluation_batches(
        dataset,
        batch_size,
        rank=runtime.rank,
        world_size=runtime.world_size,
        start=start,
        stop=stop,
    )
    with torch.inference_mode(), runtime.autocast():
        for chosen in batches:
            batch = collate(dataset, chosen, pad_token_id=model.config.pad_token_id)
            batch = batch.to(runtime.device)
            output = model(batch.input_ids, batch.token_type_ids, batch.attention_mask)
            indices.append(chosen)
            parts.append(output.logits.float())
            if progress is not None:
                progress.update(len(chosen) * runtime.world_size)
    model.train(was_training)
    own = np.concatenate(indices), torch.cat(parts).cpu().numpy()
    logits = np.empty((stop - start, width), np.float32)
    for places, values in runtime.gather_objects(own):
        logits[places - start] = values
    return logits


@dataclass(frozen=True)
class DevSet:
    """A dev set of the task; `suffix` is "" for the one that chooses, "-MM" for its sister."""

    suffix: str
    dataset: PackedDataset


def score(task: Task, logits: np.ndarray, labels: np.ndarray) -> Results:
    """Return the task's metrics and `eval_loss`, the loss against gold labels."""
    return compute_metrics(task, logits, labels) | {"eval_loss": gold_loss(task, logits, labels)}


def evaluate(
    model: nn.Module, task: Task, dev_sets: Sequence[DevSet], batch_size: int, runtime: Runtime
) -> Results:
    """Return the scores on every dev set; a sister's keys carry its suffix ("acc-mm")."""
    results: Results = {}
    for dev in dev_sets:
        logits = predict_logits(model, dev.dataset, batch_size, runtime)
        found = score(task, logits, np.asarray(dev.dataset.labels))
        results |= {key + dev.suffix.lower(): value for key, value in found.items()}
    return results


def warn_of_chance(task: Task, score: float, labels: np.ndarray, whose: str) -> bool:
    """Log a warning, and return True, if `score` is no better than a constant answer's."""
    chance = chance_score(task, labels)
    if is_better(score, chance, task.best_metric) or len(labels) < 2:
        return False
    logger.warning(
        "%s scores %.4f in %s, no better than one answer for all (%.4f): it knows nothing of %s. "
        "Is it fine-tuned (--finetune), and are its labels in the order that its config.json says?",
        whose,
        score,
        task.best_metric,
        chance,
        task.name,
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


def predicted_cells(task: Task, logits: np.ndarray) -> list[str]:
    """Return predictions as they are written: label names, or scores within the task's bounds."""
    if not task.regression:
        return [task.labels[number] for number in logits.argmax(1)]
    scores = logits[:, 0] if task.bounds is None else np.clip(logits[:, 0], *task.bounds)
    return [f"{score:.3f}" for score in scores]


def write_predictions(path: Path, indices: Sequence[str], cells: Sequence[str]) -> None:
    """Write a file for the leaderboard: the header "index prediction", then one row an example."""
    with atomic_write(path) as file:
        file.write("index\tprediction\n")
        file.writelines(f"{index}\t{cell}\n" for index, cell in zip(indices, cells, strict=True))


def results_table(title: str, rows: Mapping[str, Results]) -> str:
    """Return results as an aligned text table, one row a model."""
    keys = list(dict.fromkeys(key for results in rows.values() for key in results))
    lines = [[title, *keys]]
    for name, results in rows.items():
        cells = [f"{results[key]:.4f}" if key in results else "" for key in keys]
        lines.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip()
        for name, *cells in lines
    )
