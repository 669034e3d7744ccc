"""Measure what computing a student costs, beside a forward pass of its teacher over the same text.

    python benchmarks/closed_form.py                           BERT-base to 4 layers of 312
    python benchmarks/closed_form.py --student_model minilm_3l_96d --tokens 12000

The teacher has BERT-base's size and random weights, and the tokens are random: which they are does
not change the arithmetic. Memory is that beyond what the process held with both models made. A
forward pass gives the states of all layers, in the same precision; the computation takes two.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.training import CLS, SEP, best_pass, make_runtime, peak_memory, timed
from transformer.checkpoint.directory import Checkpoint
from transformer.configuration import BertConfig
from transformer.distillation.closed_form import compute_student
from transformer.distillation.start import BATCH_ROWS, plan_start
from transformer.modeling import TinyBertForSequenceClassification
from transformer.runtime.ranks import PRECISIONS
from transformer.runtime.script import ScriptParser, run_script, student_name
from transformer.training.batches import Batch, pad_rows


def build_parser() -> ScriptParser:
    """Describe the command line."""
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    best = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=["cpu", "cuda"], default=best, help=f"where ({best})")
    add("--precision", choices=["auto", *PRECISIONS], default="auto", help="of the teacher")
    add("--student_model", type=student_name, default="tinybert_4l_312d", help="configuration")
    add("--tokens", type=int, default=20_000, help="that the student is computed on")
    add("--length", type=int, default=64, help="tokens of a sentence")
    return parser


def random_text(tokens: int, length: int, vocab_size: int, device: torch.device) -> list[Batch]:
    """Return batches of sentences of one length."""
    rows = torch.randint(1000, vocab_size, (-(-tokens // length), length))
    rows[:, 0], rows[:, -1] = CLS, SEP
    return [
        pad_rows(part.tolist(), [length] * len(part), length, 0).to(device)
        for part in rows.split(BATCH_ROWS)
    ]


def main() -> None:
    """Compute a student once, and print what that took."""
    args = build_parser().parse_args()
    runtime = make_runtime(args)
    device = runtime.device
    torch.manual_seed(0)
    config = replace(Checkpoint(args.student_model).config, fit_size=BertConfig().hidden_size)
    models = [TinyBertForSequenceClassification(each) for each in (BertConfig(), config)]
    teacher, student = (model.to(device).eval() for model in models)
    text = random_text(args.tokens, args.length, config.vocab_size, device)
    pairs = plan_start("uniform", config, teacher.config)

    held = peak_memory(runtime)
    autocast = runtime.autocast
    compute = partial(compute_student, student, teacher, pairs, text, autocast=autocast)
    seconds = timed(compute, runtime)
    beyond = peak_memory(runtime) - held

    def forward() -> None:
        with torch.inference_mode(), runtime.autocast():
            for batch in text:
                teacher(batch.input_ids, batch.token_type_ids, batch.attention_mask)

    passes = best_pass(forward, runtime)
    layers, width = config.num_hidden_layers, config.hidden_size
    count = sum(int(batch.attention_mask.sum()) for batch in text)
    print(
        f"BERT-base to {layers} layers of {width}, {count} tokens, {device.type}, "
        f"{runtime.dtype}, {torch.get_num_threads()} thread(s): {seconds:.1f} s, "
        f"{seconds / passes:.1f} times a forward pass ({passes:.1f} s), "
        f"{beyond / 2**20:.0f} MiB beyond the models"
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
