"""Measure augmentation against the original's way of doing it, on the same rows and machine.

    python benchmarks/augmentation.py --data SST-2/dev.tsv --vocab BERT_DIR --glove_embs glove.txt

The original's way: for each word one forward pass of the unmasked sentence beside the masked one,
batch 1, fp32, the vocabulary layer at all positions, all entries sorted; for each word of several
pieces a product of the whole table with its vector, all words sorted. Reading the model and the
word vectors is not measured on either side. The model is a BERT-base of random weights, which costs
what a trained one costs, unless --pretrained_bert_model names another.
"""

from __future__ import annotations

import argparse
import copy
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformer.augmentation.algorithm import AugmentationConfig, Augmenter
from transformer.augmentation.glove import WordVectors, load_word_vectors, nearest_words
from transformer.augmentation.masked_lm import MaskedLM
from transformer.augmentation.rows import augment_block, read_blocks, survey_rows
from transformer.augmentation.words import STOP_WORDS
from transformer.configuration import BertConfig
from transformer.modeling import BertForMaskedLM
from transformer.packed_linear import pack_linears
from transformer.runtime.ranks import native_bf16
from transformer.runtime.script import ScriptParser, run_script
from transformer.tasks.files import RowReader
from transformer.tasks.table import TASKS, Task, task_key
from transformer.tokenization import BertTokenizer

CANDIDATES, PROBABILITY = 15, 0.4
RATE_SIZE = 2048  # of the square matrices that the machine's rate is measured with


@dataclass
class PlainAugmenter:
    """One word at a time, as in 2019."""

    model: BertForMaskedLM
    tokenizer: BertTokenizer
    table: WordVectors
    variants: int

    def __post_init__(self) -> None:
        self.words, self.index = self.table.words, self.table.index
        self.vectors = np.array(self.table.vectors, np.float64)
        self.norms = np.linalg.norm(self.vectors, axis=1)
        self.device = next(self.model.parameters()).device
        self.asked = {"masked LM": 0, "word vectors": 0}

    def augment(self, sentence: str, rng: random.Random) -> list[str]:
        """Return the variants of a sentence."""
        tokens = self.tokenizer.basic_tokenizer.tokenize(sentence)
        candidates = {}
        for number, word in enumerate(tokens):
            if re.fullmatch("[a-z]+", word) and word not in STOP_WORDS:
                candidates[number] = self._candidates(sentence, tokens, number)
        made: list[str] = []
        for _ in range(self.variants):
            new = list(tokens)
            for number, options in candidates.items():
                option = rng.choice(options)
                if rng.random() < PROBABILITY:
                    new[number] = option
            text = " ".join(new)
            if text not in made:
                made.append(text)
        return made

    def _candidates(self, sentence: str, tokens: list[str], number: int) -> list[str]:
        pieces = self.tokenizer.tokenize(tokens[number])
        if len(pieces) > 1:
            self.asked["word vectors"] += 1
            return self._nearest(tokens[number]) or [tokens[number]]
        self.asked["masked LM"] += 1
        before = [piece for word in tokens[:number] for piece in self.tokenizer.tokenize(word)]
        whole = self.tokenizer.tokenize(sentence)
        masked = ["[CLS]", *whole, "[SEP]"]
        masked[len(before) + 1] = "[MASK]"
        both = [*masked, *whole, "[SEP]"][:512]
        segments = ([0] * len(masked) + [1] * (len(whole) + 1))[:512]
        ids = torch.tensor([self.tokenizer.convert_tokens_to_ids(both)], device=self.device)
        with torch.no_grad():
            logits = self.model(ids, torch.tensor([segments], device=self.device)).logits
        order = logits[0, len(before) + 1].argsort(descending=True)[: CANDIDATES + 2]
        return self.tokenizer.convert_ids_to_tokens(order.tolist())[:CANDIDATES]

    def _nearest(self, word: str) -> list[str]:
        if word not in self.index:
            return []
        row = self.index[word]
        cosine = self.vectors @ self.vectors[row] / self.norms / self.norms[row]
        order = np.argsort(-cosine)[: CANDIDATES + 1]
        return [self.words[i] for i in order if i != row][:CANDIDATES]


def our_seconds(
    reader: RowReader, augmenter: Augmenter, vectors: WordVectors, directory: Path
) -> tuple[float, int]:
    """Return the time for all rows, from the file to finished lines, and the lines made."""
    start = time.perf_counter()
    survey = survey_rows(reader, augmenter, vectors, directory / "report")
    device = augmenter.masked_lm.device
    augmenter.neighbours = nearest_words(vectors, sorted(survey.words), CANDIDATES, device)
    lines = 0
    for block in read_blocks(reader):
        lines += len(augment_block(block, reader, augmenter, seed=1).lines)
    return time.perf_counter() - start, lines


def plain_seconds(
    augmenter: PlainAugmenter, sentences: list[str], sample: list[str], work: Callable[[str], float]
) -> float:
    """Return the time for `sentences`, from that for a sample of them and the work in both."""
    rng = random.Random(1)
    augmenter.augment(sample[0], rng)  # warm up
    start = time.perf_counter()
    for sentence in sample:
        augmenter.augment(sentence, rng)
    seconds = time.perf_counter() - start
    return seconds * sum(map(work, sentences)) / sum(map(work, sample))


def needed_operations(augmenter: Augmenter, sentences: list[str]) -> float:
    """Return the multiplications and additions that masked copies need, without padding."""
    config, total = augmenter.masked_lm.model.config, 0.0
    width, inner = config.hidden_size, config.intermediate_size
    for sentence in sentences:
        copies = sum(map(augmenter.is_one_piece, augmenter.find_words(sentence).words))
        length = len(augmenter.masked_lm.tokenizer.encode(sentence)) + 2
        layer = length * (8 * width * width + 4 * width * inner + 4 * length * width)
        head = 2 * width * (width + config.vocab_size)
        total += copies * (config.num_hidden_layers * layer + head)
    return total


def machine_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of a large matrix product."""
    left, right = torch.randn(2, RATE_SIZE, RATE_SIZE, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * RATE_SIZE**3 / best


def load(args: argparse.Namespace) -> tuple[BertForMaskedLM, BertTokenizer]:
    """Return the model in fp32 and its tokenizer."""
    if args.pretrained_bert_model:
        tokenizer = BertTokenizer.from_pretrained(args.pretrained_bert_model)
        return BertForMaskedLM.from_pretrained(args.pretrained_bert_model), tokenizer
    tokenizer = BertTokenizer.from_pretrained(args.vocab)
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(vocab_size=len(tokenizer.vocab))), tokenizer


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="TSV in the columns of --task_name")
    add("--task_name", default="SST-2", choices=[task.name for task in TASKS.values()])
    add("--vocab", help="vocab.txt or a directory with one, for the random BERT-base")
    add("--pretrained_bert_model", help="a real model instead")
    add("--glove_embs", type=Path, required=True)
    add("--glove_words", type=int, default=100_000)
    add("--cache_dir", help="for the parsed word vectors")
    add("--sentences", type=int, default=200, help="rows to augment")
    add("--plain_sentences", type=int, help="of them in the original's way (default: all)")
    add("--rounds", type=int, default=3, help="runs of ours; the median counts")
    add("--N", type=int, default=20)
    add("--batch_size", type=int, default=128)
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    add("--no_cuda", action="store_true")
    return parser


def copy_rows(source: Path, target: Path, task: Task, count: int) -> RowReader:
    """Copy the first rows of a file and return their reader."""
    with open(source, encoding="utf-8", newline="\n") as file:
        lines = list(islice(file, count + task.train.header))
    target.write_text("".join(lines), encoding="utf-8", newline="\n")
    return RowReader(target, task, task.train)


def main() -> None:
    """Measure both ways and print one table."""
    args = build_parser().parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() and not args.no_cuda else "cpu")
    half = args.precision == "bf16" or (args.precision == "auto" and native_bf16(device))
    dtype = torch.bfloat16 if half else torch.float32
    model, tokenizer = load(args)
    model.eval().to(device)
    vectors = load_word_vectors(args.glove_embs, args.glove_words, args.cache_dir)
    task = TASKS[task_key(args.task_name)]
    with tempfile.TemporaryDirectory() as directory:
        reader = copy_rows(args.data, Path(directory) / "rows.tsv", task, args.sentences)
        sentences = [text for row in reader for text in reader.texts(row.cells)]
        # The model is held in the precision that the script would choose; plain runs in fp32.
        held = pack_linears(copy.deepcopy(model).to(dtype))
        masked_lm = MaskedLM(held, tokenizer, candidates=CANDIDATES, batch_size=args.batch_size)
        config = AugmentationConfig(args.N, CANDIDATES, PROBABILITY)
        augmenter = Augmenter(config, tokenizer.basic_tokenizer, masked_lm)
        sample = sentences[:: max(1, len(sentences) // (args.plain_sentences or len(sentences)))]
        plain = PlainAugmenter(model, tokenizer, vectors, args.N)
        plain_rate = len(sentences) / plain_seconds(
            plain, sentences, sample, lambda sentence: needed_operations(augmenter, [sentence])
        )
        runs = [
            our_seconds(reader, augmenter, vectors, Path(directory)) for _ in range(args.rounds)
        ]
    seconds, lines = sorted(runs)[len(runs) // 2]
    operations = needed_operations(augmenter, sentences) / seconds
    peak = machine_rate(device, dtype)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{len(sentences)} sentences became {lines} lines; the original's way saw {len(sample)}")
    asked = ", ".join(f"{count} of the {what}" for what, count in plain.asked.items())
    print(f"words asked in the original's way: {asked}")
    print("| way | precision | sentences/s | ratio | utilisation |")
    print("|---|---|---|---|---|")
    print(f"| original's | float32 | {plain_rate:.2f} | 1.0 | |")
    rate = len(sentences) / seconds
    dtype_name = str(dtype).removeprefix("torch.")
    share = f"{100 * operations / peak:.0f}% of {peak / 1e9:.0f} GFLOP/s"
    print(f"| ours | {dtype_name} | {rate:.2f} | {rate / plain_rate:.1f} | {share} |")


if __name__ == "__main__":
    sys.exit(run_script(main))
