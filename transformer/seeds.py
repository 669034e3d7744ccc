"""Several seeds of one experiment: where each lies, what they say together, which one is kept."""

from __future__ import annotations

import logging
import math
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer.evaluation import (
    Results,
    is_better,
    results_table,
    worst_score,
    write_results,
)
from transformer.file_utils import atomic_write

logger = logging.getLogger(__name__)

# What makes a model; the best seed's are copied to the output directory, config.json last.
MODEL_FILES = (
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "pytorch_model.bin",
    "model.safetensors",
    "config.json",
)


def seed_directory(output_dir: Path, seed: int) -> Path:
    """Return the output directory of one of several seeds."""
    return output_dir / f"seed_{seed}"


def summarise_seeds(results: Mapping[int, Results], metric: str) -> dict[str, Any]:
    """Return mean and (sample) deviation of every result over seeds, and the seed best in `metric`.

    The keys of the best seed's own results are plain ("acc"), the others "acc_mean", "acc_std".
    """
    best_seed, best = next(iter(results)), worst_score(metric)
    for seed, found in results.items():
        if is_better(found[metric], best, metric):
            best_seed, best = seed, found[metric]
    summary: dict[str, Any] = dict(results[best_seed])
    for key in results[best_seed]:
        values = [found[key] for found in results.values()]
        numbers = [value for value in values if not math.isnan(value)]
        summary[f"{key}_mean"] = statistics.fmean(numbers) if numbers else math.nan
        summary[f"{key}_std"] = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
    by_seed = {str(seed): dict(found) for seed, found in results.items()}
    return {**summary, "best_seed": best_seed, "seeds": by_seed}


def keep_best_seed(output_dir: Path, seed: int) -> None:
    """Copy the model of the best seed to the output directory itself."""
    source = seed_directory(output_dir, seed)
    for name in MODEL_FILES:
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
    rows = {f"seed {seed}": found for seed, found in results.items()}
    for kind in ("mean", "std"):
        rows[kind] = {key: summary[f"{key}_{kind}"] for key in next(iter(results.values()))}
    print(results_table(f"{facts['task']}, dev", rows), flush=True)
    logger.info("seed %d is the best; its model is kept in %s", summary["best_seed"], output_dir)
