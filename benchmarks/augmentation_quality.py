"""Measure what augmentation makes of a task, with the masked LM shown the unmasked text or not.

    python benchmarks/augmentation_quality.py --glue_dir GLUE_DIR --tasks SST-2 RTE \
        --teachers SST-2_TEACHER RTE_TEACHER --pretrained_bert_model BERT_DIR --glove_embs glove.txt

For each task and each --mlm_context, over the first rows of train.tsv: candidates for a word, words
replaced, distinct variants of a text, and how often the fine-tuned teacher predicts for a variant
what it predicts for the row itself, which is right for a label that does not depend on the words
replaced. "right" counts only rows whose label the teacher knows, and asks for that label.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformer.augmentation.algorithm import AugmentationConfig, Augmenter
from transformer.augmentation.glove import WordVectors, load_word_vectors, nearest_words
from transformer.augmentation.masked_lm import MaskedLM
from transformer.augmentation.words import Text
from transformer.checkpoint.directory import Checkpoint
from transformer.modeling import BertForMaskedLM, TinyBertForSequenceClassification
from transformer.packed_linear import pack_linears
from transformer.runtime.ranks import native_bf16
from transformer.runtime.script import ScriptParser, run_script
from transformer.tasks.classifiers import load_classifier
from transformer.tasks.files import RowReader
from transformer.tasks.kinds import CLASSIFICATION
from transformer.tasks.table import TASKS, Task, task_key
from transformer.tasks.token_cache import build_input
from transformer.tokenization import BertTokenizer

TEACHER_BATCH = 64
ROWS_AT_ONCE = 100
Texts = tuple[str, ...]


class Teacher:
    """A fine-tuned classifier and what it predicts."""

    def __init__(self, path: Path, task: Task, device: torch.device, dtype: torch.dtype):
        checkpoint = Checkpoint(path)
        self.tokenizer = checkpoint.tokenizer
        model: TinyBertForSequenceClassification = load_classifier(
            checkpoint, task, "teacher", need_classifier=True
        )
        self.model = model.eval().to(device, dtype)
        self.device, self.limit = device, task.max_seq_length

    def predict(self, rows: Sequence[Texts]) -> list[int]:
        """Return the number of the likeliest label of each row."""
        inputs = []
        for texts in rows:
            pieces = [self.tokenizer.encode(text) for text in texts]
            inputs.append(build_input(self.tokenizer, pieces, self.limit))
        order = sorted(range(len(rows)), key=lambda number: len(inputs[number][0]))
        predicted = [0] * len(rows)
        for start in range(0, len(order), TEACHER_BATCH):
            chosen = order[start : start + TEACHER_BATCH]
            for number, label in zip(
                chosen, self._labels([inputs[i] for i in chosen]), strict=True
            ):
                predicted[number] = label
        return predicted

    @torch.inference_mode()
    def _labels(self, batch: list[tuple[list[int], int]]) -> list[int]:
        longest = max(len(ids) for ids, _ in batch)
        padded = [ids + [self.tokenizer.pad_id] * (longest - len(ids)) for ids, _ in batch]
        places = torch.arange(longest)
        lengths = torch.tensor([[len(ids)] for ids, _ in batch])
        first = torch.tensor([[first] for _, first in batch])
        mask = places < lengths
        logits = self.model(
            torch.tensor(padded).to(self.device),
            ((places >= first) & mask).long().to(self.device),
            mask.to(self.device),
        ).logits
        return logits.argmax(1).tolist()


def count_replaced(augmenter: Augmenter, text: Text, variants: list[str]) -> Counter[str]:
    """Count the words of `text` in its variants, and those that were replaced."""
    counts: Counter[str] = Counter()
    old = [text.text[start:end] for start, end in text.spans]
    for variant in variants:
        new = [variant[start:end] for start, end in augmenter.find_words(variant).spans]
        if len(new) == len(old):  # a few neighbours hold punctuation, and cannot be compared so
            counts.update(seen=len(text.words), replaced=sum(map(str.__ne__, new, old)))
    return counts


def measure(
    rows: list[tuple[Texts, int]], augmenter: Augmenter, teacher: Teacher, scored: int
) -> Counter[str]:
    """Augment rows, each of texts and a label; return what there is to count."""
    counts: Counter[str] = Counter()
    found = [[augmenter.find_words(text) for text in row] for row, _ in rows]
    candidates = iter(augmenter.candidates([text for row in found for text in row], counts))
    originals = teacher.predict([row for row, _ in rows])
    variants, expected = [], []
    for (row, label), texts, original in zip(rows, found, originals, strict=True):
        for column, text in enumerate(texts):
            made = augmenter.variants(text, next(candidates), random.Random(f"{row}:{column}"))
            counts.update(count_replaced(augmenter, text, made))
            counts.update(texts=1, variants=len(made))
            variants += [(*row[:column], each, *row[column + 1 :]) for each in made[:scored]]
            expected += [(original, label)] * len(made[:scored])
    for predicted, (original, label) in zip(teacher.predict(variants), expected, strict=True):
        known = original == label
        counts.update(scored=1, kept=predicted == original)
        counts.update(known=known, right=known and predicted == label)
    return counts


def load_rows(path: Path, task: Task, count: int) -> list[tuple[Texts, int]]:
    """Return the texts and the label's number of the first rows of a training file."""
    reader = RowReader(path, task, task.train)
    labels = task.labels or ()
    rows = ((reader.texts(row.cells), labels.index(reader.label(row.cells))) for row in reader)
    return list(islice(rows, count))


def neighbours_for(
    augmenter: Augmenter, rows: list[tuple[Texts, int]], vectors: WordVectors
) -> dict[str, list[str]]:
    """Return the nearest words of all words that the masked LM is not asked about."""
    texts = (augmenter.find_words(text) for row, _ in rows for text in row)
    entries = set(map(vectors.find, augmenter.words_for_vectors(texts))) - {None}
    return nearest_words(vectors, sorted(entries), augmenter.config.candidates)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    names = [task.name for task in TASKS.values() if task.kind is CLASSIFICATION]
    add("--glue_dir", type=Path, required=True)
    add("--tasks", nargs="+", choices=names, required=True)
    add("--teachers", nargs="+", type=Path, required=True, help="fine-tuned, one for each task")
    add("--pretrained_bert_model", required=True)
    add("--glove_embs", type=Path, required=True)
    add("--glove_words", type=int, default=100_000)
    add("--cache_dir", help="for the parsed word vectors")
    add("--sentences", type=int, default=1000, help="rows of each task")
    add("--scored", type=int, default=5, help="variants of each text that the teacher labels")
    add("--N", type=int, default=20)
    add("--M", type=int, default=15)
    add("--p", type=float, default=0.4)
    add("--no_cuda", action="store_true")
    return parser


def show(task: Task, context: str, counts: Counter[str], seconds: float) -> None:
    """Print one row of the table."""

    def percent(part: str, whole: str) -> str:
        return f"{100 * counts[part] / max(counts[whole], 1):.1f}%"

    counts["words/any"] = counts["words/masked"] + counts["words/vectors"]
    cells = (
        *(task.name, context, f"{counts['candidates'] / max(counts['words'], 1):.1f}"),
        *(percent("words/any", "words"), percent("replaced", "seen")),
        f"{counts['variants'] / max(counts['texts'], 1):.1f}",
        *(percent("kept", "scored"), percent("right", "known"), f"{seconds:.0f}"),
    )
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Measure each task and context, and print one table."""
    args = build_parser().parse_args()
    logging.basicConfig(level=logging.WARNING)
    device = torch.device("cuda" if torch.cuda.is_available() and not args.no_cuda else "cpu")
    dtype = torch.bfloat16 if native_bf16(device) else torch.float32
    tokenizer = BertTokenizer.from_pretrained(args.pretrained_bert_model)
    model = BertForMaskedLM.from_pretrained(args.pretrained_bert_model).eval().to(device, dtype)
    pack_linears(model)
    vectors = load_word_vectors(args.glove_embs, args.glove_words, args.cache_dir)
    print(
        "| task | --mlm_context | candidates a word | words with any | words replaced | "
        f"variants of {args.N} | prediction kept | right | seconds |\n|" + "---|" * 9
    )
    for name, path in zip(args.tasks, args.teachers, strict=True):
        task = TASKS[task_key(name)]
        rows = load_rows(args.glue_dir / task.directory / "train.tsv", task, args.sentences)
        teacher = Teacher(path, task, device, dtype)
        for context in ("masked", "original"):
            started, counts = time.monotonic(), Counter()
            masked_lm = MaskedLM(
                model, tokenizer, candidates=args.M, original_context=context == "original"
            )
            config = AugmentationConfig(args.N, args.M, args.p)
            augmenter = Augmenter(config, tokenizer.basic_tokenizer, masked_lm)
            augmenter.neighbours = neighbours_for(augmenter, rows, vectors)
            for start in range(0, len(rows), ROWS_AT_ONCE):
                part = rows[start : start + ROWS_AT_ONCE]
                counts.update(measure(part, augmenter, teacher, args.scored))
            show(task, context, counts, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(run_script(main))
