"""Questions with contexts: files, windows, scores, and both stages of distillation on a toy task.

bash tests/run.sh tests/tasks/test_questions.py
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_vocabulary, write_toy_models
from torch.nn import functional as F

import data_augmentation
import task_distill
from transformer.checkpoint.directory import read_weights
from transformer.distillation.losses import gold_loss, over_span_ends, prediction_loss
from transformer.files import UserError
from transformer.modeling import TinyBertForQuestionAnswering
from transformer.tasks.answers import answers_of, best_spans
from transformer.tasks.kinds import SPANS
from transformer.tasks.metrics import (
    best_score,
    compute_metrics,
    is_exact,
    no_answer_scores,
    normalise_answer,
    token_f1,
)
from transformer.tasks.questions import (
    QuestionReader,
    Reading,
    encode_with_places,
    pack_questions,
    window_starts,
)
from transformer.tasks.table import TASKS
from transformer.tasks.token_cache import TokenCache
from transformer.tokenization import BertTokenizer
from transformer.training.batches import LossCounts, collate

SQUAD, SQUAD2 = TASKS["squad"], TASKS["squad2"]
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "squad"

CONTEXT = "The story, a good film."


def squad(*asked: tuple[str, str, str, str], impossible: tuple[str, ...] = ()) -> str:
    """Return the official JSON of questions: id, question, context and answer ("": none)."""
    paragraphs = []
    for key, question, context, answer in asked:
        held = [{"text": answer, "answer_start": context.find(answer)}] if answer else []
        row = {"id": key, "question": question, "answers": held, "is_impossible": key in impossible}
        paragraphs.append({"context": context, "qas": [row]})
    return json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]})


def test_all_formats_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(squad(("1", "What?", CONTEXT, "good film")))
    rows = {
        "b.jsonl": {"answers": {"text": ["good film"], "answer_start": [13]}},
        "c.json": {"answers": [{"text": "good film", "answer_start": 13}]},
    }
    for name, row in rows.items():
        line = json.dumps({"id": "1", "question": "What?", "context": CONTEXT, **row})
        (tmp_path / name).write_text(f"\n{line}\n" if name == "b.jsonl" else line)
    (tmp_path / "b.jsonl").write_text((tmp_path / "b.jsonl").read_text().lstrip())
    for name in ("a.json", "b.jsonl", "c.json"):
        (found,) = QuestionReader(tmp_path / name, SQUAD)
        assert found[:4] == ("1", "What?", CONTEXT, (("good film", 13),)), name


def test_what_cannot_be_learnt_is_counted(tmp_path: Path) -> None:
    content = json.loads(
        squad(("1", "What?", CONTEXT, "film"), ("2", "Who?", CONTEXT, ""), ("3", " ", CONTEXT, "a"))
    )
    (tmp_path / "a.json").write_text(json.dumps(content))
    moved = {"text": "film", "answer_start": 1}
    content["data"][0]["paragraphs"][0]["qas"][0] |= {"answers": [moved]}
    (tmp_path / "b.json").write_text(json.dumps(content))
    reader = QuestionReader(tmp_path / "a.json", SQUAD)
    assert [question.id for question in reader] == ["1"]
    assert reader.left_out == {"no answer": 1, "the question is blank": 1}
    with pytest.raises(UserError, match="1 of 3 questions used.*--allow_short"):
        reader.check_left_out(False)
    assert [question.id for question in QuestionReader(tmp_path / "a.json", SQUAD2)] == ["1", "2"]
    reader = QuestionReader(tmp_path / "b.json", SQUAD2)
    assert [question.id for question in reader] == ["2"]
    assert reader.left_out["the answer is not at its answer_start"] == 1
    assert len(list(QuestionReader(tmp_path / "b.json", SQUAD, need_answers=False))) == 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[1, 2", "no JSON of SQuAD"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": 1}], "context": ""}]}]}', "'question'"),
        ('{"data": 3}', "TypeError"),
        ('{"id": 1, "question": "a", "context": "b"}\n{"question": 3}\n', "line 2: no JSON object"),
        ('{"question": "a", "context": "b", "answers": [{"text": 1}]}', "line 1: answers"),
    ],
)
def test_bad_files_are_told(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=told):
        list(QuestionReader(tmp_path / "a.json", SQUAD, need_answers=False))


# ------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize(
    "text", ["Thé film,a  good\u00a0story!", "a雨rome\u200b's", "", " \n", "…"]
)
@pytest.mark.parametrize("lower", [True, False])
def test_places_are_those_of_whole_tokens(text: str, lower: bool, vocab_file: Path) -> None:
    tokenizer = BertTokenizer(vocab_file, lower)
    pieces = encode_with_places(tokenizer, text)
    assert pieces.ids == tokenizer.encode(text)
    for start, end in set(pieces.places):
        assert len(tokenizer.basic_tokenizer.tokenize(text[start:end])) == 1


def test_windows_overlap_by_the_stride() -> None:
    assert window_starts(0, 5, 2) == window_starts(5, 5, 2) == [0]
    assert window_starts(6, 5, 2) == [0, 2]
    assert window_starts(13, 5, 9) == [0, 5, 10]


def test_questions_become_windows_that_know_where_the_answer_is(vocab_file: Path) -> None:
    tokenizer = BertTokenizer(vocab_file, True)
    context = "the story of good film the a"
    item = ("played of film", context, context.find("good"), context.find(" the a"))
    packed = pack_questions(tokenizer, Reading(9, 3, 2, True), [item])
    tokens = tokenizer.convert_ids_to_tokens(packed.ids)
    head = ["[CLS]", "played", "of", "[SEP]"]
    assert tokens == [
        *[*head, "the", "story", "of", "good", "[SEP]"],
        *[*head, "good", "film", "the", "a", "[SEP]"],
    ]
    assert list(packed.lengths) == [9, 9] and list(packed.first_lengths) == [4, 4]
    assert list(packed.labels) == [0, 0, 4, 5]  # the first window holds half of it
    assert packed.truncated == 1 and list(packed.sources) == [0, 0]
    places = np.array(packed.places).reshape(-1, 2)
    shown = [context[start:end] for start, end in places.tolist() if start >= 0]
    assert shown == ["the", "story", "of", "good", "good", "film", "the", "a"]


# -------------------------------------------------------------------------------------- scores


def test_answers_are_compared_by_the_published_rules() -> None:
    assert normalise_answer(" The U.S.  army, an Army") == "us army army"
    assert is_exact("The cat.", "a CAT") == 1.0 and is_exact("cats", "cat") == 0.0
    # Two of our three words are among their four: 2 * (2/3 * 2/4) / (2/3 + 2/4).
    assert token_f1("the red cat sat", "red cat of Rome") == pytest.approx(4 / 7)
    assert token_f1("a cat cat", "cat") == pytest.approx(2 / 3)
    assert token_f1("", "cat") == token_f1("cat", "") == 0.0
    assert token_f1("the", "") == 1.0
    assert best_score(token_f1, "cat", ["dog", "the cat"]) == 1.0
    assert best_score(is_exact, "", []) == 1.0 and best_score(is_exact, "x", []) == 0.0


def test_the_best_threshold_is_found() -> None:
    rows = (  # how little the span is believed, the span, the answers
        (-3.0, "cat", ["cat"]),
        (-2.0, "dog", []),
        (-1.0, "red cat", ["cat"]),
        (1.0, "cow", ["cow"]),
        (2.0, "sow", []),
        (3.0, "hen", []),
    )
    found = [
        SimpleNamespace(text=s if odds < 0 else "", span=s, no_answer=odds) for odds, s, _ in rows
    ]
    results = no_answer_scores(found, [wanted for _, _, wanted in rows])
    assert results["has_answer_exact_match"] == pytest.approx(1 / 3)
    assert results["has_answer_answer_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert results["no_answer_exact_match"] == pytest.approx(2 / 3)
    # All spans up to each threshold believed, right of 6: 3 (none), 4, 3, 3, 4, 3, 2.
    assert results["best_exact_match"] == pytest.approx(4 / 6)
    assert results["best_exact_match_threshold"] == -3.0
    # 3, 4, 3, 3 2/3, 4 2/3, 3 2/3, 2 2/3.
    assert results["best_answer_f1"] == pytest.approx((4 + 2 / 3) / 6)
    assert results["best_answer_f1_threshold"] == 1.0


def toy_store(tmp_path: Path, vocab_file: Path, task=SQUAD2, count: int = 20, limit: int = 40):
    write_toy(tmp_path / "toy", "dev-v2.0.json", count, longest=60)
    cache = TokenCache(tmp_path / "cache", BertTokenizer(vocab_file, True), limit)
    task = replace(task, max_query_length=8, doc_stride=7)
    return task, cache.open(tmp_path / "toy" / "dev-v2.0.json", task, task.dev[0])


def test_the_best_span_is_that_of_an_exhaustive_search(tmp_path: Path, vocab_file: Path) -> None:
    task, dataset = toy_store(tmp_path, vocab_file)
    assert len(dataset) > 25
    logits = np.random.default_rng(0).normal(size=(dataset.tokens, 2)).astype(np.float32)
    begin, end = best_spans(logits, dataset.offsets, dataset.places, 4)
    for window in range(len(dataset)):
        first, stop = dataset.offsets[window : window + 2].tolist()
        own = [n for n in range(first, stop) if dataset.places[n][0] >= 0]
        pairs = [(a, b) for a in own for b in own if a <= b < a + 4]
        best = max(pairs, key=lambda pair: logits[pair[0], 0] + logits[pair[1], 1])
        assert (begin[window], end[window]) == best
    found = answers_of(dataset, logits, replace(task, max_answer_length=4))
    for number, (answer, (_, context, _)) in enumerate(
        zip(found, dataset.meta["questions"], strict=True)
    ):
        own = np.flatnonzero(dataset.sources == number)
        scores = [logits[begin[w], 0] + logits[end[w], 1] for w in own]
        nothing = min(logits[dataset.offsets[w]].sum() for w in own)
        best = own[int(np.argmax(scores))]
        places = dataset.places[begin[best]][0], dataset.places[end[best]][1]
        assert answer.span == dataset.meta["contexts"][context][slice(*places)]
        assert answer.no_answer == pytest.approx(nothing - max(scores), abs=1e-5)
        assert answer.text == ("" if answer.no_answer > 0 else answer.span)


def test_labels_of_all_windows_answer_every_question(tmp_path: Path, vocab_file: Path) -> None:
    task, dataset = toy_store(tmp_path, vocab_file)
    logits = np.full((dataset.tokens, 2), -9, np.float32)
    for window, (begin, end) in enumerate(dataset.labels.astype(int)):
        score = 9 if begin else 8  # a window that holds the answer is surer than one that does not
        logits[dataset.offsets[window] + begin, 0] = score
        logits[dataset.offsets[window] + end, 1] = score
    results = compute_metrics(task, *SPANS.answers(dataset, logits))
    assert results["exact_match"] == results["answer_f1"] == results["best_answer_f1"] == 1.0


def test_losses_are_cross_entropies_over_real_tokens(tmp_path: Path, vocab_file: Path) -> None:
    _, dataset = toy_store(tmp_path, vocab_file)
    batch = collate(dataset, np.arange(9), pad_token_id=0, pad_to=44)
    student, teacher = torch.randn(2, 9, 44, 2)
    soft = hard = 0.0
    for row in range(9):
        length = int(batch.attention_mask[row].sum())
        for side in (0, 1):
            own = F.log_softmax(student[row, :length, side], 0)
            soft -= float(F.softmax(teacher[row, :length, side], 0) @ own)
            hard -= float(own[int(batch.labels[row, side])])
    counts = LossCounts(9, 1, 1)
    found = over_span_ends(prediction_loss, student, teacher, batch, counts)
    assert float(found) == pytest.approx(soft / 18, rel=1e-4)
    found = over_span_ends(gold_loss, student, None, batch, counts)
    assert float(found) == pytest.approx(hard / 18, rel=1e-4)
    logits = np.random.default_rng(1).normal(size=(dataset.tokens, 2)).astype(np.float32)
    losses = []
    for window, labels in enumerate(dataset.labels.astype(int)):
        own = torch.from_numpy(logits[dataset.offsets[window] : dataset.offsets[window + 1]])
        losses += [
            float(F.cross_entropy(own[:, side], torch.tensor(labels[side]))) for side in (0, 1)
        ]
    assert SPANS.loss(logits, dataset) == pytest.approx(np.mean(losses), rel=1e-5)


# ------------------------------------------------------------------------------------ a whole run


def write_toy(directory: Path, name: str, count: int, *, longest: int = 12) -> None:
    """Write questions: "film" asks for "good film", "rome" for "rome"; some contexts lack it."""
    rng = random.Random(f"{name}{count}")
    asked = []
    answers = {"what film": "good film", "rome": "rome"}
    for number in range(count):
        words = rng.choices(["the", "story", "a", "played", "of"], k=rng.randint(2, longest))
        question = rng.choice(list(answers))
        there = [answer for answer in answers.values() if rng.random() < 0.7]
        for answer in there:
            words.insert(rng.randrange(len(words) + 1), answer.replace(" ", "_"))
        context = " ".join(words).replace("_", " ")
        wanted = answers[question]
        asked.append((f"{name}{number}", question, context, wanted if wanted in there else ""))
    directory.mkdir(exist_ok=True)
    impossible = tuple(key for key, _, _, answer in asked if not answer)
    (directory / name).write_text(squad(*asked, impossible=impossible))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with data, and with models of all stages trained on it."""
    root = tmp_path_factory.mktemp("squad")
    write_toy(root / "data", "train-v2.0.json", 300)
    write_toy(root / "data", "dev-v2.0.json", 80, longest=40)
    write_toy(root / "data", "test-v2.0.json", 40)
    write_toy_models(root)
    run(root, "--finetune", "teacher", "bert", "--num_train_epochs", "5")
    pair = ("--teacher_model", str(root / "teacher"))
    run(root, None, "middle", "general", *pair, "--num_train_epochs", "6")
    run(root, "--pred_distill", "student", "middle", *pair, "--num_train_epochs", "6")
    run(root, "--do_eval", "results", "student", "--do_predict")
    return root


def run(root: Path, what: str | None, output: str, student: str, *flags: str) -> None:
    task_distill.main(
        [
            *([] if what is None else [what]),
            *("--task_name", "squad2", "--data_dir", str(root / "data"), "--max_seq_length", "32"),
            *("--max_query_length", "6", "--doc_stride", "8", "--learning_rate", "2e-3"),
            *("--student_model", str(root / student), "--output_dir", str(root / output)),
            *("--precision", "fp32", *flags),
        ]
    )


def test_both_stages_teach_answers(toy: Path) -> None:
    teacher, student = (
        json.loads((toy / name / "eval_results.json").read_text())
        for name in ("teacher", "student")
    )
    assert teacher["answer_f1"] > 0.9 and student["answer_f1"] > 0.8
    assert student["teacher_answer_f1"] == teacher["answer_f1"]
    assert {"has_answer_exact_match", "no_answer_answer_f1"} <= student.keys()
    again = json.loads((toy / "results" / "eval_results.json").read_text())
    assert again["exact_match"] == student["exact_match"]


def test_predictions_are_those_of_hugging_face(toy: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = json.loads((toy / "results" / "SQuAD2.json").read_text())
    odds = json.loads((toy / "results" / "SQuAD2_null_odds.json").read_text())
    questions = list(QuestionReader(toy / "data" / "test-v2.0.json", SQUAD2, need_answers=False))
    assert list(ours) == list(odds) == [question.id for question in questions]
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(toy / "student").eval()
    assert type(model).__name__ == "BertForQuestionAnswering"
    tokenizer = transformers.AutoTokenizer.from_pretrained(toy / "student")
    for question in questions:
        feed = tokenizer(
            question.question, question.context, return_tensors="pt", return_offsets_mapping=True
        )
        places = feed.pop("offset_mapping")[0].tolist()
        with torch.inference_mode():
            output = model(**feed)
        start, end = output.start_logits[0], output.end_logits[0]
        own = [n for n, segment in enumerate(feed["token_type_ids"][0]) if segment == 1][:-1]
        pairs = [(a, b) for a in own for b in own if a <= b]
        best = max(pairs, key=lambda pair: float(start[pair[0]] + end[pair[1]]))
        none = float(start[0] + end[0] - start[best[0]] - end[best[1]])
        assert odds[question.id] == pytest.approx(none, abs=1e-3)
        text = question.context[places[best[0]][0] : places[best[1]][1]]
        assert ours[question.id] == ("" if none > 0 else text)


def test_its_card_says_how_it_is_used(toy: Path) -> None:
    card = (toy / "student" / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    assert 'question="a question", context=' in card and "before version 5" in card


def test_a_student_is_computed_from_its_teacher(toy: Path) -> None:
    (toy / "config").mkdir()
    (toy / "config" / "config.json").write_text((toy / "general" / "config.json").read_text())
    flags = ("--init_from_teacher", "uniform", "--teacher_model", str(toy / "teacher"))
    flags += ("--num_train_epochs", "0.1", "--learning_rate", "1e-5")
    run(toy, "--pred_distill", "computed", "config", *flags)
    first = json.loads((toy / "computed" / "metrics.jsonl").read_text().split("\n")[0])
    assert first["step"] == 0 and first["eval_answer_f1"] > 0.55


def test_a_copy_of_its_teacher_answers_alike(toy: Path) -> None:
    (toy / "same").mkdir()
    (toy / "same" / "config.json").write_text((toy / "bert" / "config.json").read_text())
    flags = ("--init_from_teacher", "1,2,3,4", "--teacher_model", str(toy / "teacher"))
    run(toy, "--pred_distill", "copied", "same", *flags, "--num_train_epochs", "0.1")
    first = json.loads((toy / "copied" / "metrics.jsonl").read_text().split("\n")[0])
    teacher = json.loads((toy / "teacher" / "eval_results.json").read_text())
    assert first["eval_answer_f1"] == teacher["answer_f1"]


def test_an_export_answers_for_every_token(toy: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    run(toy, "--do_eval", "results", "student", "--export_onnx", str(toy / "squad.onnx"))
    session = onnxruntime.InferenceSession(str(toy / "squad.onnx"))
    ids = np.array([[2, 7, 8, 9, 3]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    (logits,) = session.run(["logits"], feed | {"token_type_ids": np.zeros_like(ids)})
    model = TinyBertForQuestionAnswering.from_pretrained(toy / "student").eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    assert logits.shape == (1, 5, 2) and np.abs(logits - expected).max() < 1e-4


def test_augmented_questions_keep_their_answers(toy: Path, tmp_path: Path) -> None:
    words = tiny_vocabulary()[5:]
    vectors = tmp_path / "glove.txt"
    rng = np.random.default_rng(0)
    lines = [f"{word} {' '.join(map(str, rng.normal(size=3)))}" for word in words if word.isalpha()]
    vectors.write_text("\n".join(lines) + "\n")
    output = toy / "data" / "train-v2.0_aug.json"
    data_augmentation.main(
        [
            *("--task_name", "squad2", "--data_dir", str(toy / "data"), "--glove_only"),
            *("--glove_embs", str(vectors), "--N", "3", "--M", "3"),
        ]
    )
    originals = list(QuestionReader(toy / "data" / "train-v2.0.json", SQUAD2))
    reader = QuestionReader(output, SQUAD2)
    made = list(reader)
    assert not reader.left_out and len(made) > 2 * len(originals)
    by_id = {question.id: question for question in originals}
    moved = 0
    for row in made:
        original = by_id[row.id]
        assert [text for text, _ in row.answers] == [text for text, _ in original.answers]
        assert len(row.context.split()) == len(original.context.split())
        moved += row.answers != original.answers
    assert moved > 20
    pair = ("--teacher_model", str(toy / "teacher"), "--num_train_epochs", "0.2")
    run(toy, "--pred_distill", "augmented", "middle", *pair, "--aug_train")
    output.unlink()


def test_questions_without_answers_are_learnt_from_the_teacher(toy: Path) -> None:
    content = json.loads((toy / "data" / "train-v2.0.json").read_text())
    for paragraph in content["data"][0]["paragraphs"]:
        del paragraph["qas"][0]["answers"], paragraph["qas"][0]["is_impossible"]
    (toy / "unlabelled.json").write_text(json.dumps(content))
    pair = ("--teacher_model", str(toy / "teacher"), "--num_train_epochs", "0.3")
    run(toy, "--pred_distill", "labelled", "middle", *pair)
    run(
        toy,
        "--pred_distill",
        "unlabelled",
        "middle",
        *pair,
        "--transfer_file",
        str(toy / "unlabelled.json"),
    )
    ours, theirs = (read_weights(toy / name) for name in ("labelled", "unlabelled"))
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--prediction_loss", "mse"), "--prediction_loss ce or kl"),
        (("--original_soft_ce",), "--original_soft_ce: SQuAD2 is a question-answering task"),
        (("--max_query_length", "60"), "--max_seq_length 32: questions of up to 60"),
        (("--doc_stride", "0"), "--doc_stride 0"),
        (("--labels", "a", "b"), "--labels"),
    ],
)
def test_what_does_not_suit_questions_is_refused(toy: Path, flags: tuple, told: str) -> None:
    with pytest.raises(UserError, match=told):
        run(toy, "--pred_distill", "x", "middle", "--teacher_model", str(toy / "teacher"), *flags)
    assert not (toy / "x").exists()


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real data beside the checkout")
def test_real_files_are_read_whole() -> None:
    wanted = {"train-v1.1.20articles": 4566, "train-v1.1.extra": 3678, "dev-v1.1.xquad1190": 1190}
    for name, count in wanted.items():
        reader = QuestionReader(DATA / f"{name}.json", SQUAD)
        assert len(list(reader)) == count and not reader.left_out
