"""Named entities: files, windows, scores, and both stages of distillation on a toy task.

bash tests/run.sh tests/tasks/test_sentences.py
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_toy_models
from seqeval import metrics as seqeval
from seqeval.metrics.sequence_labeling import get_entities
from torch.nn import functional as F

import task_distill
from transformer.distillation.losses import gold_loss, over_tagged_tokens, prediction_loss
from transformer.files import UserError
from transformer.modeling import TinyBertForTokenClassification
from transformer.tasks.kinds import TOKEN_LABELS
from transformer.tasks.metrics import METRICS, entities, entity_scores
from transformer.tasks.sentences import (
    NO_TAG,
    SentenceReader,
    cut_windows,
    pack_sentences,
    with_tags,
    write_tags,
)
from transformer.tasks.table import TASKS, Task
from transformer.tasks.token_cache import TokenCache
from transformer.tokenization import BertTokenizer
from transformer.training.batches import LossCounts, collate

NER = TASKS["ner"]
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "ner"


def read(path: Path, content: str, task: Task = NER) -> list[tuple[list[str], list[str]]]:
    """Write a file and return words and tags of its sentences."""
    path.write_text(content, encoding="utf-8", newline="\n")
    return [(sentence.words, sentence.tags) for sentence in SentenceReader(path, task)]


WANTED = [(["Ada", "Byron", "wrote"], ["B-PER", "I-PER", "O"]), (["Rome"], ["B-LOC"])]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "Ada\tB-PER\nByron\tI-PER\nwrote\tO\n\nRome\tB-LOC\n"),
        ("a.txt", "-DOCSTART-\tO\n\nAda\tB-PER\nByron\tI-PER\nwrote\tO\n\n\n\nRome\tB-LOC"),
        (
            "a.conll",
            "Ada NNP B-NP B-PER\r\nByron NNP  I-NP I-PER\r\nwrote V O O\r\n\r\nRome N O B-LOC",
        ),
        (
            "a.bio",
            "# id 7\ndomain\nAda B-PER\n".replace("domain\n", "")
            + "Byron I-PER\nwrote O\n\ufeff\nRome B-LOC\n",
        ),
        (
            "a.jsonl",
            '{"tokens": ["Ada", "Byron", "wrote"], "tags": ["B-PER", "I-PER", "O"]}\n\n'
            '{"words": ["Rome"], "ner_tags": ["B-LOC"], "id": 3}\n',
        ),
    ],
)
def test_files_in_all_their_forms(name: str, content: str, tmp_path: Path) -> None:
    assert read(tmp_path / name, content) == WANTED


def test_columns_by_number_and_tags_by_number(tmp_path: Path) -> None:
    task = replace(NER, text=("1",), label="0")
    assert read(tmp_path / "a.tsv", "O\tthe #\nB-PER\t#\n", task) == [
        (["the #", "#"], ["O", "B-PER"])
    ]
    task = replace(NER, labels=("O", "B-PER"))
    assert read(tmp_path / "a.json", '{"tokens": ["a", "b"], "tags": [1, 0]}', task) == [
        (["a", "b"], ["B-PER", "O"])
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", "Ada B-PER\nByron\n", "line 2: 1 column; .*--text_columns"),
        ("a.txt", "Ada\tO\nByron\t\n", "line 2: no tag"),
        ("a.jsonl", '{"tokens": ["a"], "tags": []}', "line 1: 1 words and 0 tags"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [3]}', "--labels"),
        ("a.jsonl", '{"text": "a"}', "no list of words"),
    ],
)
def test_bad_files_are_told_with_their_line(
    name: str, content: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        read(tmp_path / name, content)


def test_both_beginnings_of_every_type_are_learnt(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a B-PER\nb O\n")
    (tmp_path / "dev.txt").write_text("a I-LOC\n")
    task = with_tags(NER, [tmp_path / "train.txt", tmp_path / "dev.txt"])
    assert task.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    (tmp_path / "pos.txt").write_text("a NOUN\nb VERB\n")
    assert with_tags(NER, [tmp_path / "pos.txt"]).best_metric == "word_acc"


# ------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("seed", range(20))
def test_windows_answer_for_every_word_once_and_overlap(seed: int) -> None:
    rng = random.Random(seed)
    limit = rng.randint(2, 30)
    lengths = [rng.randint(1, max(limit // 2, 1)) for _ in range(rng.randint(1, 60))]
    windows = cut_windows(lengths, limit)
    own = [place for w in windows for place in range(w.core_first, w.core_stop)]
    assert own == list(range(len(lengths)))
    for window in windows:
        assert window.first <= window.core_first < window.core_stop <= window.stop
        assert sum(lengths[window.first : window.stop]) <= limit
    if len(windows) > 2 and limit >= 16 and max(lengths) <= 2:
        assert all(w.first < w.core_first and w.core_stop < w.stop for w in windows[1:-1])


def test_the_first_piece_of_a_word_has_its_tag(vocab_file: Path) -> None:
    tokenizer = BertTokenizer(vocab_file, True)
    packed = pack_sentences(tokenizer, 16, [(["played", "\u200b", "rome", "the"], [1, 2, 3, 0])])
    tokens = tokenizer.convert_ids_to_tokens(packed.ids)
    assert tokens == ["[CLS]", "played", "[UNK]", "r", "##o", "##m", "##e", "the", "[SEP]"]
    none = NO_TAG
    assert list(packed.tags) == [none, 1, 2, 3, none, none, none, 0, none]


# ------------------------------------------------------------------------------------- scores

SCHEMES = {"BIO": "BI", "IOB1": "I", "IOBES": "BIES", "mixed": "BIES"}


def random_tags(rng: random.Random, letters: str) -> list[str]:
    names = ["PER", "LOC", "creative-work"]
    tags = ["O", "O", *(f"{letter}-{name}" for letter in letters for name in names)]
    return rng.choices(tags, k=rng.randint(1, 12))


@pytest.mark.parametrize("letters", SCHEMES.values(), ids=SCHEMES)
def test_entity_scores_equal_seqevals(letters: str) -> None:
    rng = random.Random(letters)
    for _ in range(100):
        truth = [random_tags(rng, letters) for _ in range(6)]
        # About half of the tags are right, so that some entities are.
        guess = [[t if rng.random() < 0.7 else rng.choice(s) for t in s] for s in truth]
        expected = seqeval.classification_report(truth, guess, output_dict=True, zero_division=0)
        found = entity_scores(guess, truth)
        rows = {name: expected[name] for name in expected if "avg" not in name}
        rows[""] = expected["micro avg"]
        for name, row in rows.items():
            wanted = (row["precision"], row["recall"], row["f1-score"])
            assert found[name] == pytest.approx(wanted), name
        assert METRICS["entity_f1"][0](guess, truth) == pytest.approx(
            seqeval.f1_score(truth, guess)
        )
        accuracy = seqeval.accuracy_score(truth, guess)
        assert METRICS["word_acc"][0](guess, truth) == pytest.approx(accuracy)


def write_toy(directory: Path, count: int, name: str, *, longest: int = 12) -> None:
    """Write sentences in which "good film" is a THING and "rome" a LOC."""
    rng = random.Random(f"{name}{count}")
    lines = []
    for _ in range(count):
        for _ in range(rng.randint(1, longest)):
            kind = rng.random()
            if kind < 0.2:
                lines += ["good\tB-THING", "film\tI-THING"]
            elif kind < 0.3:
                lines += ["rome\tB-LOC"]
            else:
                lines += [rng.choice(["the", "story", "a", "played", "of"]) + "\tO"]
        lines.append("")
    directory.mkdir(exist_ok=True)
    (directory / name).write_text("\n".join(lines) + "\n")


def toy_cache(tmp_path: Path, vocab_file: Path, limit: int = 64) -> TokenCache:
    return TokenCache(tmp_path / "cache", BertTokenizer(vocab_file, True), limit)


def test_answers_of_windows_are_joined(tmp_path: Path, vocab_file: Path) -> None:
    write_toy(tmp_path / "toy", 40, "train.txt")
    task = with_tags(NER, [tmp_path / "toy" / "train.txt"])
    truth = [s.tags for s in SentenceReader(tmp_path / "toy" / "train.txt", task)]
    for limit in (12, 64):
        dataset = toy_cache(tmp_path, vocab_file, limit).open(
            tmp_path / "toy" / "train.txt", task, task.train
        )
        logits = np.full((dataset.tokens, task.num_labels), -9, np.float32)
        tagged = np.flatnonzero(dataset.tags >= 0)
        logits[tagged, dataset.tags[tagged]] = 9
        logits, labels = TOKEN_LABELS.answers(dataset, logits)
        assert TOKEN_LABELS.compare(task, logits, labels) == (truth, truth)
        assert (len(dataset) > 40) == (limit == 12)


def test_losses_are_means_over_words(tmp_path: Path, vocab_file: Path) -> None:
    write_toy(tmp_path / "toy", 5, "train.txt")
    task = with_tags(NER, [tmp_path / "toy" / "train.txt"])
    path = tmp_path / "toy" / "train.txt"
    dataset = toy_cache(tmp_path, vocab_file).open(path, task, task.train)
    batch = collate(dataset, np.arange(5), pad_token_id=0)
    student, teacher = torch.randn(2, *batch.input_ids.shape, task.num_labels)
    counts = LossCounts(5, 1, 1, dataset.tagged)
    soft, hard, words = 0.0, 0.0, 0
    for row in range(5):
        for place, tag in enumerate(batch.labels[row].tolist()):
            if tag != NO_TAG:
                log_probs = F.log_softmax(student[row, place], 0)
                soft -= float(F.softmax(teacher[row, place], 0) @ log_probs)
                hard -= float(log_probs[tag])
                words += 1
    assert words == sum(len(s.words) for s in SentenceReader(path, task))
    found = over_tagged_tokens(prediction_loss, student, teacher, batch, counts)
    assert float(found) == pytest.approx(soft / words)
    found = over_tagged_tokens(gold_loss, student, None, batch, counts)
    assert float(found) == pytest.approx(hard / words)


# ------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with data, and with models of all stages trained on it."""
    root = tmp_path_factory.mktemp("ner")
    write_toy(root / "data", 300, "train.txt")
    write_toy(root / "data", 60, "dev.txt", longest=60)
    write_toy(root / "data", 40, "test.txt", longest=20)
    write_toy_models(root)
    shared = ["--task_name", "ner", "--data_dir", str(root / "data"), "--max_seq_length", "32"]
    shared += ["--learning_rate", "2e-3", "--precision", "fp32"]

    def run(*flags: str) -> None:
        task_distill.main([*shared, *flags])

    teacher, middle, student = (str(root / name) for name in ("teacher", "middle", "student"))
    bert = ["--student_model", str(root / "bert"), "--num_train_epochs", "12"]
    run("--finetune", *bert, "--output_dir", teacher)
    pair = ["--teacher_model", teacher, "--num_train_epochs", "10"]
    run(*pair, "--student_model", str(root / "general"), "--output_dir", middle)
    run(*pair, "--pred_distill", "--student_model", middle, "--output_dir", student)
    results = str(root / "results")
    run("--do_eval", "--do_predict", "--student_model", student, "--output_dir", results)
    return root


def test_both_stages_teach_entities(toy: Path) -> None:
    teacher, student = (
        json.loads((toy / name / "eval_results.json").read_text())
        for name in ("teacher", "student")
    )
    assert teacher["entity_f1"] > 0.95 and student["entity_f1"] > 0.8
    assert student["teacher_entity_f1"] == teacher["entity_f1"]
    assert 0 < student["entity_f1_LOC"] <= 1
    again = json.loads((toy / "results" / "eval_results.json").read_text())
    assert again["entity_f1"] == student["entity_f1"]


def test_a_student_of_tags_is_computed_from_its_teacher(toy: Path) -> None:
    config = json.loads((toy / "general" / "config.json").read_text())
    (toy / "config").mkdir()
    (toy / "config" / "config.json").write_text(json.dumps(config))
    flags = ["--task_name", "ner", "--data_dir", str(toy / "data"), "--max_seq_length", "32"]
    flags += ["--pred_distill", "--init_from_teacher", "uniform", "--learning_rate", "1e-4"]
    flags += ["--teacher_model", str(toy / "teacher"), "--student_model", str(toy / "config")]
    flags += ["--num_train_epochs", "0.2", "--output_dir", str(toy / "computed")]
    task_distill.main([*flags, "--precision", "fp32"])
    first = json.loads((toy / "computed" / "metrics.jsonl").read_text().split("\n")[0])
    assert first["step"] == 0 and first["eval_entity_f1"] > 0.5
    assert {"explained/0", "explained/1", "explained/2"} <= first.keys()


def test_predictions_are_those_of_hugging_face(toy: Path) -> None:
    transformers = pytest.importorskip("transformers")
    lines = (toy / "results" / "NER.tsv").read_text().split("\n\n")[:-1]
    ours = [[line.split("\t") for line in block.split("\n")] for block in lines]
    truth = [s.words for s in SentenceReader(toy / "data" / "test.txt", NER, need_tags=False)]
    assert [[word for word, _ in sentence] for sentence in ours] == truth
    answer = transformers.pipeline("token-classification", str(toy / "student"), ignore_labels=[])
    assert type(answer.model).__name__ == "BertForTokenClassification"
    short = [sentence for sentence in ours if len(sentence) < 12]
    assert short
    for sentence in short:
        found = answer(" ".join(word for word, _ in sentence))
        firsts = [each["entity"] for each in found if not each["word"].startswith("##")]
        assert firsts == [tag for _, tag in sentence]


def test_a_teacher_of_another_kind_is_refused(toy: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["--task_name", "ner", "--data_dir", str(toy / "data"), "--max_seq_length", "32"]
    flags += ["--teacher_model", str(toy / "bert"), "--student_model", str(toy / "general")]
    with pytest.raises(UserError, match="no classifier: it was not fine-tuned on a token-label"):
        task_distill.main([*flags, "--output_dir", str(toy / "x")])


def test_an_export_answers_for_every_token(toy: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    flags = ["--task_name", "ner", "--data_dir", str(toy / "data"), "--max_seq_length", "32"]
    flags += ["--student_model", str(toy / "student"), "--output_dir", str(toy / "results")]
    task_distill.main([*flags, "--export_onnx", str(toy / "ner.onnx")])
    session = onnxruntime.InferenceSession(str(toy / "ner.onnx"))
    ids = np.array([[2, 7, 8, 9, 3]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    (logits,) = session.run(["logits"], feed | {"token_type_ids": np.zeros_like(ids)})
    model = TinyBertForTokenClassification.from_pretrained(toy / "student").eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    assert logits.shape == (1, 5, 5)
    assert np.abs(logits - expected).max() < 1e-4


def test_tags_are_written_as_columns(tmp_path: Path) -> None:
    read(tmp_path / "a.txt", "Ada B-PER\nran O\n\nRome B-LOC\n")
    sentences = SentenceReader(tmp_path / "a.txt", NER, need_tags=False)
    write_tags(tmp_path / "b.tsv", sentences, [["B-PER", "O"], ["O"]])
    assert (tmp_path / "b.tsv").read_text() == "Ada\tB-PER\nran\tO\n\nRome\tO\n\n"


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real data beside the checkout")
def test_real_files_are_read_whole() -> None:
    wanted = {"wikiann_en": (20000, 27931), "wnut17": (3394, 1975)}
    for name, (sentences, found) in wanted.items():
        reader = SentenceReader(DATA / name / "train.txt", NER)
        tags = [sentence.tags for sentence in reader]
        assert reader.sentences == sentences
        assert len(get_entities(tags)) == found == sum(map(len, map(entities, tags)))
