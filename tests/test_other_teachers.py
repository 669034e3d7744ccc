"""NEZHA, ALBERT, ELECTRA and DistilBERT through the scripts: each is fine-tuned, teaches a BERT
student in both stages, proposes words, is measured and exported.

Run: pytest tests/test_other_teachers.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from conftest import tiny_vocabulary
from toy_runs import write_epochs

import data_augmentation
import general_distill
import task_distill
from transformer.architectures.table import ARCHITECTURES
from transformer.checkpoint import load_model, save_checkpoint
from transformer.modeling import (
    BertForMaskedLM,
    BertModel,
    TinyBertForPreTraining,
    TinyBertForSequenceClassification,
)
from transformer.tasks.benchmark import Effort
from transformer.tokenization import BertTokenizer

SIZES = {
    "vocab_size": len(tiny_vocabulary()),
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
}
WORDS = ["the", "a", "of", "and", "film", "movie", "story", "actor", "plot", "city", "music"]


class Chain:
    """A teacher of one architecture and all that is made from it, each once."""

    def __init__(self, root: Path, model_type: str):
        self.root, self.model_type = root, model_type
        vocab_file = root / "vocab.txt"
        vocab_file.write_text("\n".join(tiny_vocabulary()) + "\n", encoding="utf-8")
        tokenizer = BertTokenizer(vocab_file, True)
        torch.manual_seed(4)
        config = ARCHITECTURES[model_type].config(
            hidden_size=32, num_hidden_layers=4, intermediate_size=37, **SIZES
        )
        save_checkpoint(BertForMaskedLM(config), tokenizer, root / "base")
        student = ARCHITECTURES["bert"].config(
            hidden_size=24, num_hidden_layers=2, intermediate_size=29, **SIZES
        )
        (root / "config").mkdir()
        (root / "config" / "config.json").write_text(json.dumps(student.to_dict()))
        self._write_task(root / "data" / "SST-2")
        write_epochs(root / "epochs", tiny_vocabulary(), epochs=1, examples=96)

    @staticmethod
    def _write_task(directory: Path) -> None:
        rng = random.Random(5)
        directory.mkdir(parents=True)
        for name, count in (("train.tsv", 320), ("dev.tsv", 80)):
            lines = ["sentence\tlabel"]
            for row in range(count):
                words = rng.choices(WORDS, k=rng.randint(3, 8))
                words.insert(rng.randint(0, len(words)), ("bad", "good")[row % 2])
                lines.append(f"{' '.join(words)}\t{row % 2}")
            (directory / name).write_text("\n".join(lines) + "\n")

    def task(self, *flags: object, epochs: int = 4) -> None:
        shared = ["--data_dir", self.root / "data" / "SST-2", "--task_name", "SST-2"]
        shared += ["--precision", "fp32", "--max_seq_length", 32, "--learning_rate", 1e-3]
        shared += ["--num_train_epochs", epochs, "--eval_step", 80, "--train_batch_size", 16]
        task_distill.main([str(word) for word in (*shared, *flags)])

    def losses(self, name: str) -> list[float]:
        lines = (self.root / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines if '"loss"' in line]

    def accuracy(self, name: str) -> float:
        return json.loads((self.root / name / "eval_results.json").read_text())["acc"]


@pytest.fixture(scope="module", params=[name for name in ARCHITECTURES if name != "bert"])
def chain(request, tmp_path_factory) -> Chain:
    """Fine-tune a teacher, teach a general student, then a task student in both stages."""
    chain = Chain(tmp_path_factory.mktemp(request.param), request.param)
    root = chain.root
    chain.task("--finetune", "--student_model", root / "base", "--output_dir", root / "teacher")
    flags = {
        "pregenerated_data": root / "epochs",
        "teacher_model": root / "base",
        "student_model": root / "config",
        "output_dir": root / "general",
        "max_seq_length": 40,
        "train_batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "log_steps": 2,
    }
    general_distill.main(
        [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    )
    teacher = "--teacher_model", root / "teacher"
    general = "--student_model", root / "general"
    chain.task(*teacher, *general, "--output_dir", root / "layers", "--log_steps", 8)
    layers = "--student_model", root / "layers"
    chain.task("--pred_distill", *teacher, *layers, "--output_dir", root / "student", epochs=8)
    return chain


def test_the_teacher_learns_and_stays_what_it_is(chain: Chain) -> None:
    assert chain.accuracy("teacher") > 0.95
    model, report = load_model(TinyBertForSequenceClassification, chain.root / "teacher")
    assert report.missing == report.unexpected == []
    assert type(model.bert) is ARCHITECTURES[chain.model_type].encoder
    before = load_model(BertModel, chain.root / "base")[0].state_dict()
    after = model.bert.state_dict()
    same = [n for n in after if "pooler" not in n and torch.equal(before[n], after[n])]
    # A bias of the keys changes nothing, so that only rounding moves it.
    assert [name for name in same if not name.endswith("key.bias")] == []


@pytest.mark.parametrize("stage", ["general", "layers"])
def test_a_bert_student_learns_its_layers(chain: Chain, stage: str) -> None:
    losses = chain.losses(stage)
    assert losses[-1] < 0.8 * losses[0]
    model = load_model(TinyBertForPreTraining, chain.root / stage)[0]
    assert type(model.bert) is BertModel
    assert (model.config.num_hidden_layers, model.config.fit_size) == (2, 32)


def test_a_bert_student_learns_its_task(chain: Chain) -> None:
    assert chain.accuracy("student") > 0.95


def test_it_proposes_words(chain: Chain) -> None:
    output = chain.root / "augmented.tsv"
    flags = ["--pretrained_bert_model", chain.root / "base", "--mlm_only", "--N", 2, "--M", 3]
    flags += ["--glue_dir", chain.root / "data", "--task_name", "SST-2", "--output", output]
    data_augmentation.main([str(word) for word in (*flags, "--precision", "fp32")])
    originals = (chain.root / "data" / "SST-2" / "train.tsv").read_text().splitlines()
    lines = output.read_text().splitlines()
    assert len(lines) > 1.5 * len(originals)
    assert set(originals) <= set(lines)


def test_it_is_measured_and_exported(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    quick = Effort(sentences=2, turns=1, seconds=0.0, turn_seconds=0.0)
    monkeypatch.setattr("transformer.tasks.benchmark.Effort", lambda: quick)
    root = chain.root
    # The export compares its logits with ours where onnxruntime is installed.
    flags = ["--student_model", root / "teacher", "--output_dir", root / "deployed"]
    chain.task("--do_eval", "--benchmark", *flags, "--export_onnx", root / "teacher.onnx")
    assert (root / "teacher.onnx").stat().st_size > 1000
    figures = json.loads((root / "deployed" / "benchmark.json").read_text())
    model = load_model(TinyBertForSequenceClassification, root / "teacher")[0]
    count = sum(parameter.numel() for parameter in model.parameters())
    assert figures["student"]["parameters"] == count
    assert chain.accuracy("deployed") == chain.accuracy("teacher")


def test_students_are_of_its_kind_or_begin_from_its_layers(chain: Chain, caplog) -> None:
    root = chain.root
    config = ARCHITECTURES[chain.model_type].config(
        hidden_size=32, num_hidden_layers=2, intermediate_size=37, **SIZES
    )
    (root / "alike").mkdir()
    values = {**config.to_dict(), "model_type": chain.model_type}
    (root / "alike" / "config.json").write_text(json.dumps(values))
    teacher = "--teacher_model", root / "teacher", "--init_from_teacher", "uniform"
    for name in ("alike", "bert_of_its_width"):
        if name != "alike":
            (root / name).mkdir()
            values = ARCHITECTURES["bert"].config(
                hidden_size=32, num_hidden_layers=2, intermediate_size=37, **SIZES
            )
            (root / name / "config.json").write_text(json.dumps(values.to_dict()))
        output = root / f"from_{name}"
        caplog.clear()
        chain.task(*teacher, "--student_model", root / name, "--output_dir", output, epochs=1)
        assert "student layers 1, 2 are copies of teacher layers 2, 4" in caplog.text
    kind = type(load_model(TinyBertForPreTraining, root / "from_alike")[0].bert)
    assert kind is ARCHITECTURES[chain.model_type].encoder
