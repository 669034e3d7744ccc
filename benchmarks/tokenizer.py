"""Measure the tokenizer against the compiled `tokenizers` library, one thread each, in one run.

    python benchmarks/tokenizer.py                          the 20 MB corpus beside the checkout
    python benchmarks/tokenizer.py --corpus FILE --vocab FILE --no-do_lower_case
    python benchmarks/tokenizer.py --megabytes 2 --rounds 1   a quick look

Text to ids: a list of lines goes in, a list of ids a line comes out. Every implementation is timed
in each round, the best round counts. "cold" starts with empty caches and so pays for filling them.
All ids are compared; a difference is shown and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Read when the compiled library starts its threads.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers  # noqa: E402

from transformer.runtime.script import RunError, ScriptParser, run_script  # noqa: E402
from transformer.tokenization import (
    BertTokenizer,  # noqa: E402
    ChunkCache,  # noqa: E402
)

DATA = ROOT.parent / "shared" / "data"
BATCH_LINES = 1000

Encoder = Callable[[list[str]], list[list[int]]]


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--corpus", type=Path, default=DATA / "corpus" / "enwiki.20mb.txt")
    parser.add_argument(
        "--vocab", type=Path, default=DATA / "models" / "bert-6l-384-mlm" / "vocab.txt"
    )
    parser.add_argument("--do_lower_case", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=None, help="read no more than this")
    return parser


def compiled_tokenizer(vocab_file: Path, lowercase: bool) -> Tokenizer:
    """Build what `BertWordPieceTokenizer` is, for plain text."""
    model = models.WordPiece.from_file(
        str(vocab_file), unk_token="[UNK]", max_input_chars_per_word=100
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def batches(lines: list[str]) -> Iterator[list[str]]:
    """Yield the lines in the batches that both sides are given."""
    for start in range(0, len(lines), BATCH_LINES):
        yield lines[start : start + BATCH_LINES]


def seconds(encode: Encoder, lines: list[str]) -> float:
    """Return the wall time of encoding all lines."""
    start = time.perf_counter()
    ids = [encode(batch) for batch in batches(lines)]
    elapsed = time.perf_counter() - start
    del ids
    return elapsed


def measure(lines: list[str], vocab_file: Path, lowercase: bool, rounds: int) -> dict[str, float]:
    """Return the best wall time of each way to turn the lines into ids."""
    compiled = compiled_tokenizer(vocab_file, lowercase)
    warm = BertTokenizer(vocab_file, lowercase)

    def compiled_ids(batch: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in compiled.encode_batch(batch, add_special_tokens=False)]

    def compiled_fast_ids(batch: list[str]) -> list[list[int]]:
        encodings = compiled.encode_batch_fast(batch, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def line_by_line(encode: Callable[[str], list[int]]) -> Encoder:
        return lambda batch: [encode(line) for line in batch]

    best: dict[str, float] = {}
    seconds(warm.encode_batch, lines)
    for _ in range(rounds):
        ways: dict[str, Encoder] = {
            "tokenizers, encode_batch": compiled_ids,
            "tokenizers, encode_batch_fast": compiled_fast_ids,
            "ours, encode_batch, cold": BertTokenizer(vocab_file, lowercase).encode_batch,
            "ours, encode_batch, warm": warm.encode_batch,
            "ours, encode, cold": line_by_line(BertTokenizer(vocab_file, lowercase).encode),
            "ours, encode, warm": line_by_line(warm.encode),
        }
        for name, encode in ways.items():
            best[name] = min(best.get(name, float("inf")), seconds(encode, lines))
    return best


def differences(lines: list[str], vocab_file: Path, lowercase: bool) -> tuple[int, int]:
    """Return how many ids there are and how many lines differ; show the first few that do."""
    compiled = compiled_tokenizer(vocab_file, lowercase)
    ours = BertTokenizer(vocab_file, lowercase)
    total = different = 0
    for batch in batches(lines):
        expected = compiled.encode_batch(batch, add_special_tokens=False)
        for line, encoding, ids in zip(batch, expected, ours.encode_batch(batch), strict=True):
            total += len(ids)
            if encoding.ids != ids:
                different += 1
                if different <= 3:
                    print(f"differs: {ascii(line)}\n  {encoding.tokens}\n  {ours.tokenize(line)}")
    return total, different


def cache_bytes(cache: ChunkCache) -> int:
    """Return the memory of a cache: table, strings and tuples; the ids belong to the vocabulary."""
    return sys.getsizeof(cache) + sum(
        sys.getsizeof(text) + sys.getsizeof(ids) for text, ids in cache.items()
    )


def main() -> int:
    """Print the table; return 1 if an id differs."""
    args = build_parser().parse_args()
    for path in (args.corpus, args.vocab):
        if not path.is_file():
            print(f"{path}: no such file; give --corpus and --vocab", file=sys.stderr)
            return 2
    with open(args.corpus, encoding="utf-8", newline="\n") as file:
        limit = -1 if args.megabytes is None else int(args.megabytes * 1e6)
        lines = file.read(limit).split("\n")
    megabytes = sum(len(line.encode()) + 1 for line in lines) / 1e6
    lowercase = BertTokenizer.from_pretrained(args.vocab, args.do_lower_case).do_lower_case

    different = 0
    for cased in (lowercase, not lowercase):
        total, wrong = differences(lines, args.vocab, cased)
        different += wrong
        case = "lower-cased" if cased else "cased"
        print(f"{case}: {len(lines):,} lines, {total:,} ids, {wrong:,} lines differ")

    best = measure(lines, args.vocab, lowercase, args.rounds)
    base = best["tokenizers, encode_batch"]
    print(f"\n{megabytes:.1f} MB, best of {args.rounds} rounds, one thread")
    print(f"{'text to ids':32}{'seconds':>9}{'MB/s':>9}{'ratio':>9}")
    for name, elapsed in best.items():
        print(f"{name:32}{elapsed:9.2f}{megabytes / elapsed:9.1f}{base / elapsed:8.1f}x")

    tokenizer = BertTokenizer(args.vocab, lowercase)
    seconds(tokenizer.encode_batch, lines)
    print(f"\ncache at the end: {cache_bytes(tokenizer._chunk_ids) / 1e6:.0f} MB")
    if different:
        raise RunError(f"{different:,} lines differ")


if __name__ == "__main__":
    sys.exit(run_script(main))
