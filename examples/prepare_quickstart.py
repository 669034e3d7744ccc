"""Turn the assets of the quickstart into the files that the four scripts read.

    python examples/prepare_quickstart.py --assets_dir ASSETS --output_dir WORK [--only_task]

WORK/corpus.txt          IMDB reviews: a paragraph a line, a blank line between reviews
WORK/glue/SST-2/*.tsv    Rotten Tomatoes sentences with their labels, in the columns of SST-2
WORK/glove.6B.50d.txt    GloVe as text: a word and its numbers a line
WORK/mlm/                the masked-LM BERT as a checkpoint directory
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from transformer.files import atomic_write

LINE_BREAK = re.compile(r"\s*<br\s*/?>\s*")


def read_reviews(path: Path, source: str) -> list[tuple[str, str]]:
    """Return (text, label) of the rows that come from `source`: imdb or rotten_tomatoes."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source]
    return [(row["text"], row["label"]) for row in rows]


def review_paragraphs(review: str) -> Iterator[str]:
    """Split a review at its HTML line breaks.

    Example: "Good.<br /><br />See it." gives "Good.", "See it."
    """
    for paragraph in LINE_BREAK.split(review):
        text = " ".join(paragraph.split())
        if text:
            yield text


def write_corpus(path: Path, reviews: list[tuple[str, str]], limit: int, seed: int) -> None:
    """Write `limit` of the reviews, drawn at random, as a corpus: one document each."""
    # The file lists all bad reviews before the good ones; a sample must hold both.
    chosen = random.Random(seed).sample(reviews, min(limit, len(reviews)))
    with atomic_write(path) as file:
        for text, _ in chosen:
            file.write("\n".join(review_paragraphs(text)) + "\n\n")


def without_duplicates(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Keep the first of the rows whose texts are equal but for case, blanks and punctuation."""
    first = {}
    for text, label in rows:
        first.setdefault("".join(filter(str.isalnum, text.casefold())), (text, label))
    return list(first.values())


def write_task(task_dir: Path, rows: list[tuple[str, str]], dev_size: int, seed: int) -> None:
    """Split labelled sentences into train.tsv and dev.tsv; no sentence is in both."""
    rows = without_duplicates(rows)
    random.Random(seed).shuffle(rows)
    task_dir.mkdir(parents=True, exist_ok=True)
    for name, part in (("dev.tsv", rows[:dev_size]), ("train.tsv", rows[dev_size:])):
        with atomic_write(task_dir / name) as file:
            file.write("sentence\tlabel\n")
            file.writelines(f"{' '.join(text.split())}\t{label}\n" for text, label in part)


def write_glove(path: Path, asset_dir: Path, limit: int) -> None:
    """Write the first `limit` words, which are the most frequent ones, with their vectors."""
    words = parquet.read_table(asset_dir / "words.parquet").column(0).to_pylist()[:limit]
    vectors = np.load(asset_dir / "vectors.npy", mmap_mode="r")
    with atomic_write(path) as file:
        for word, vector in zip(words, vectors, strict=False):
            file.write(word + " " + " ".join(f"{value:.5g}" for value in vector) + "\n")


def write_mlm(mlm_dir: Path, asset_dir: Path) -> None:
    """Make a checkpoint directory of the masked-LM BERT, with the vocab.txt that it lacks."""
    mlm_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = json.loads((asset_dir / "tokenizer.json").read_text(encoding="utf-8"))
    ids = tokenizer["model"]["vocab"]
    with atomic_write(mlm_dir / "vocab.txt") as file:
        file.writelines(token + "\n" for token in sorted(ids, key=ids.get))
    with atomic_write(mlm_dir / "tokenizer_config.json") as file:
        json.dump({"do_lower_case": tokenizer["normalizer"]["lowercase"]}, file)
    shutil.copy(asset_dir / "model.safetensors", mlm_dir / "model.safetensors")
    shutil.copy(asset_dir / "config.json", mlm_dir / "config.json")


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description="Turn the quickstart's assets into what the four scripts read.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--assets_dir", type=Path, required=True, help="what fetch_assets.py made")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the files go")
    parser.add_argument(
        "--corpus_reviews", type=int, default=25000, help="IMDB reviews to take, 25000 at most"
    )
    parser.add_argument("--only_task", action="store_true", help="write the task's files alone")
    parser.add_argument("--dev_size", type=int, default=1000, help="sentences held out in dev.tsv")
    parser.add_argument("--glove_words", type=int, default=100000, help="words to take of GloVe")
    parser.add_argument("--seed", type=int, default=42, help="of the sample and of the split")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write all files; return the exit code."""
    args = build_parser().parse_args(argv)
    reviews = args.assets_dir / "reviews" / "reviews.csv"
    args.output_dir.mkdir(parents=True, exist_ok=True)
    labelled = read_reviews(reviews, "rotten_tomatoes")
    write_task(args.output_dir / "glue" / "SST-2", labelled, args.dev_size, args.seed)
    if args.only_task:
        return 0
    imdb = read_reviews(reviews, "imdb")
    write_corpus(args.output_dir / "corpus.txt", imdb, args.corpus_reviews, args.seed)
    glove = args.output_dir / "glove.6B.50d.txt"
    write_glove(glove, args.assets_dir / "glove", args.glove_words)
    if (args.assets_dir / "mlm").is_dir():
        write_mlm(args.output_dir / "mlm", args.assets_dir / "mlm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
