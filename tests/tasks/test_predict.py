"""A finished model in use: texts in, labels and probabilities out.

Run: pytest tests/tasks/test_predict.py
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

import task_distill
from transformer import EntityTagger, QuestionAnswerer, TextClassifier
from transformer.files import UserError
from transformer.modeling import (
    TinyBertForQuestionAnswering,
    TinyBertForSequenceClassification,
    TinyBertForTokenClassification,
)
from transformer.tasks.metrics import entities

TEXTS = ["the good film", "a bad , dull plot that was too long", "city", "great story !"]


@pytest.fixture
def model_dir(make_checkpoint, tiny_config) -> Path:
    torch.manual_seed(5)
    tiny_config.id2label = {0: "bad", 1: "fine", 2: "good"}
    return make_checkpoint("model", TinyBertForSequenceClassification)


def expected(model_dir: Path, texts: list, pairs: list | None = None) -> list[tuple[str, float]]:
    """Return Hugging Face's labels and probabilities."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForSequenceClassification.from_pretrained(model_dir).eval()
    inputs = tokenizer(texts, pairs, padding=True, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits.softmax(1)
    values, best = probabilities.max(1)
    return [(model.config.id2label[int(b)], float(v)) for b, v in zip(best, values, strict=True)]


def predict(model_dir: Path, what: object, *flags: object) -> None:
    arguments = ("--student_model", model_dir, "--predict", what, "--no_cuda")
    arguments += ("--precision", "fp32", *flags)  # what is expected is computed in it
    task_distill.main([str(argument) for argument in arguments])


def check(rows: list[tuple[str, str]], wanted: list[tuple[str, float]]) -> None:
    assert [label for label, _ in rows] == [label for label, _ in wanted]
    for (_, found), (_, probability) in zip(rows, wanted, strict=True):
        assert float(found) == pytest.approx(probability, abs=2e-5)


def test_the_same_answers_as_hugging_face(model_dir: Path) -> None:
    classify = TextClassifier(model_dir, batch_size=3)
    check([answer[:2] for answer in classify(TEXTS)], expected(model_dir, TEXTS))
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    answers = [answer[:2] for answer in classify(pairs)]
    check(answers, expected(model_dir, TEXTS, TEXTS[::-1]))
    theirs = pipeline("text-classification", model=str(model_dir))(TEXTS)
    assert [answer.label for answer in classify(TEXTS)] == [each["label"] for each in theirs]


def test_text_files_keep_their_lines(model_dir: Path, tmp_path: Path) -> None:
    lines = [TEXTS[0], "", *TEXTS[1:], ""]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    predict(model_dir, tmp_path / "in.txt", "--output", tmp_path / "out.tsv")
    written = (tmp_path / "out.tsv").read_text(encoding="utf-8").split("\n")
    assert written[0] == "text\tlabel\tprobability"
    assert [line.split("\t")[0] for line in written[1:]] == [*lines, ""]
    check([line.split("\t")[1:] for line in written[1:] if line], expected(model_dir, TEXTS))


def test_tables_keep_their_columns(model_dir: Path, tmp_path: Path) -> None:
    rows = [(str(n), text, "x") for n, text in enumerate(TEXTS)]
    with open(tmp_path / "in.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=";").writerows([("id", "text", "label"), *rows])
    predict(model_dir, tmp_path / "in.csv", "--output", tmp_path / "out.csv")
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        header, *written = csv.reader(file, delimiter=";")
    assert header == ["id", "text", "label", "predicted_label", "probability"]
    assert [tuple(row[:3]) for row in written] == rows
    check([row[3:] for row in written], expected(model_dir, TEXTS))


def test_json_lines_and_pairs_by_flags(model_dir: Path, tmp_path: Path) -> None:
    rows = [{"a": text, "b": TEXTS[0], "n": 1} for text in TEXTS]
    lines = [json.dumps(row) for row in rows]
    lines.insert(1, "")
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    output = tmp_path / "out.jsonl"
    flags = ("--text_columns", "a", "b", "--output", output)
    predict(model_dir, tmp_path / "in.jsonl", *flags)
    written = output.read_text(encoding="utf-8").split("\n")
    assert written[1] == ""
    answers = [json.loads(line) for line in written if line]
    assert [{key: answer[key] for key in "abn"} for answer in answers] == rows
    found = [(answer["label"], answer["probability"]) for answer in answers]
    check(found, expected(model_dir, TEXTS, [TEXTS[0]] * 4))
    with pytest.raises(UserError, match="exists: --overwrite_output replaces it"):
        predict(model_dir, tmp_path / "in.jsonl", *flags)
    predict(model_dir, tmp_path / "in.jsonl", *flags, "--overwrite_output")


def test_a_text_and_standard_input(
    model_dir: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(model_dir, TEXTS[0])
    check([capsys.readouterr().out.splitlines()[1].split("\t")[1:]], expected(model_dir, TEXTS[:1]))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(TEXTS)))
    predict(model_dir, "-")
    lines = capsys.readouterr().out.splitlines()[1:]
    check([line.split("\t")[1:] for line in lines], expected(model_dir, TEXTS))


def test_a_regression_has_scores(
    make_checkpoint, tiny_config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tiny_config.id2label, tiny_config.problem_type = {0: "score"}, "regression"
    model_dir = make_checkpoint("regressor", TinyBertForSequenceClassification)
    (tmp_path / "in.tsv").write_text("sentence1\tsentence2\n" + f"{TEXTS[0]}\t{TEXTS[1]}\n")
    predict(model_dir, tmp_path / "in.tsv")
    header, row = capsys.readouterr().out.splitlines()
    assert header == "sentence1\tsentence2\tscore"
    score = TextClassifier(model_dir)([(TEXTS[0], TEXTS[1])])[0].score
    assert float(row.split("\t")[2]) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(
    ("what", "flags", "told"),
    [
        ("nowhere.csv", (), "--predict nowhere.csv: no such file"),
        ("dir/nowhere", (), "no such file"),
        (" ", (), "the text is empty"),
        ("a text", ("--output", "no/such/file"), "a directory that exists"),
    ],
)
def test_mistakes(model_dir: Path, what: str, flags: tuple, told: str) -> None:
    with pytest.raises(UserError, match=told):
        predict(model_dir, what, *flags)


def test_a_table_without_a_known_column_is_asked_about(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,words\n1,a\n")
    with pytest.raises(UserError, match="--text_columns; it has 'id', 'words'"):
        predict(model_dir, tmp_path / "in.csv", "--output", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_long_files_are_answered_chunk_by_chunk(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformer.tasks.predict.CHUNK_ROWS", 3)
    (tmp_path / "in.txt").write_text("\n".join(TEXTS * 5), encoding="utf-8")
    predict(model_dir, tmp_path / "in.txt", "--output", tmp_path / "out.tsv")
    lines = (tmp_path / "out.tsv").read_text().splitlines()[1:]
    check([line.split("\t")[1:] for line in lines], expected(model_dir, TEXTS) * 5)


def test_several_labels_a_text(make_checkpoint, tiny_config, tmp_path: Path) -> None:
    torch.manual_seed(5)
    tiny_config.id2label = {0: "bad", 1: "fine", 2: "good"}
    tiny_config.problem_type = "multi_label_classification"
    model_dir = make_checkpoint("several", TinyBertForSequenceClassification)
    with torch.no_grad():
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        model = AutoModelForSequenceClassification.from_pretrained(model_dir).eval()
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    wanted = [
        {model.config.id2label[n]: p for n, p in enumerate(row) if p > 0.5}
        for row in logits.sigmoid().tolist()
    ]
    assert sum(map(len, wanted))
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    predict(model_dir, tmp_path / "in.txt", "--output", tmp_path / "out.tsv")
    header, *lines = (tmp_path / "out.tsv").read_text().splitlines()
    assert header == "text\tlabels\tprobabilities"
    for line, row in zip(lines, wanted, strict=True):
        labels, probabilities = map(json.loads, line.split("\t")[1:])
        assert labels == list(row)
        assert probabilities == pytest.approx(list(row.values()), abs=2e-5)


def test_entities_of_a_text(make_checkpoint, tiny_config, tmp_path: Path) -> None:
    torch.manual_seed(11)
    tiny_config.id2label = dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))
    model_dir = make_checkpoint("tags", TinyBertForTokenClassification)
    text = "(the good film) was a dull plot, too; story!"
    tag = pipeline("token-classification", model=str(model_dir), ignore_labels=[])
    firsts = [each for each in tag(text) if not each["word"].startswith("##")]
    tags = [each["entity"] for each in firsts]
    (answer,) = EntityTagger(model_dir)([text])
    assert len(set(tags)) > 2
    ends = {match.start(): match.end() for match in re.finditer(r"\w+|[^\w\s]", text)}
    wanted = {
        (name, firsts[first]["start"], ends[firsts[last]["start"]])
        for name, first, last in entities(tags)
    }
    assert {(e["type"], e["start"], e["end"]) for e in answer.entities} == wanted
    for entity in answer.entities:
        assert entity["text"] == text[entity["start"] : entity["end"]]
        own = [each["score"] for each in firsts if entity["start"] <= each["start"] < entity["end"]]
        assert entity["probability"] == pytest.approx(sum(own) / len(own), abs=1e-4)
    # A text of any length: the windows of a long one say what those of short ones do not cut.
    assert len(EntityTagger(model_dir)([text * 50, ""])) == 2
    (tmp_path / "in.csv").write_text(f'id,text\n1,"{text}"\n')
    predict(model_dir, tmp_path / "in.csv", "--output", tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        header, row = csv.reader(file)
    assert header == ["id", "text", "entities"]
    assert {(e["type"], e["start"], e["end"]) for e in json.loads(row[2])} == wanted


def test_answers_to_questions(make_checkpoint, tiny_config, tmp_path: Path) -> None:
    torch.manual_seed(3)
    tiny_config.id2label = {0: "start", 1: "end"}
    model_dir = make_checkpoint("answerer", TinyBertForQuestionAnswering)
    pairs = [("the film ?", text) for text in (*TEXTS[:3], "the story , a good film .")]
    model = AutoModelForQuestionAnswering.from_pretrained(model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    answers = QuestionAnswerer(model_dir)(pairs)
    for (question, context), answer in zip(pairs, answers, strict=True):
        feed = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
        places = feed.pop("offset_mapping")[0].tolist()
        own = [n for n, kind in enumerate(feed["token_type_ids"][0]) if kind == 1][:-1]
        with torch.no_grad():
            output = model(**feed)
        start = output.start_logits[0][own].softmax(0)
        end = output.end_logits[0][own].softmax(0)
        pairs_of = [(a, b) for a in range(len(own)) for b in range(a, len(own))]
        first, last = max(pairs_of, key=lambda pair: float(start[pair[0]] * end[pair[1]]))
        assert answer.probability == pytest.approx(float(start[first] * end[last]), abs=1e-5)
        assert answer.start == places[own[first]][0]
        assert answer.answer == context[answer.start : places[own[last]][1]]
    rows = [{"id": str(n), "question": q, "context": c} for n, (q, c) in enumerate(pairs)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = {"context": pairs[0][1], "qas": [{"id": "0", "question": pairs[0][0]}]}
    (tmp_path / "in.json").write_text(json.dumps({"data": [{"paragraphs": [content]}]}))
    with open(tmp_path / "in.tsv", "w") as file:
        file.writelines("\t".join(row) + "\n" for row in [("question", "context"), *pairs])
    for name, count in (("in.jsonl", 4), ("in.json", 1), ("in.tsv", 4)):
        output = tmp_path / f"out_{name}"
        predict(model_dir, tmp_path / name, "--output", output)
        lines = output.read_text().splitlines()
        found = (
            [json.loads(line)["answer"] for line in lines]
            if "json" in name
            else [line.split("\t")[2] for line in lines[1:]]
        )
        assert found == [answer.answer for answer in answers[:count]]
    with pytest.raises(UserError, match="--text_columns question context"):
        predict(model_dir, "a text")
    sure = QuestionAnswerer(model_dir, null_threshold=-1e9)(pairs)
    assert {answer.answer for answer in sure} == {""}


def test_flags_of_questions_reach_predictions(make_checkpoint, tiny_config, tmp_path: Path) -> None:
    torch.manual_seed(3)
    tiny_config.id2label = {0: "start", 1: "end"}
    model_dir = make_checkpoint("answerer", TinyBertForQuestionAnswering)
    context = "a bad , dull plot that was too long"
    (tmp_path / "in.jsonl").write_text(json.dumps({"question": "film ?", "context": context}))

    def answer(*flags: str) -> str:
        output = tmp_path / "out.jsonl"
        where = ("--output", output, "--overwrite_output")
        predict(model_dir, tmp_path / "in.jsonl", *where, *flags)
        return json.loads(output.read_text())["answer"]

    assert len(answer().split()) > 1
    assert len(answer("--max_answer_length", "1").split()) == 1
    with pytest.raises(UserError, match="--doc_stride 0: give a number of tokens"):
        answer("--doc_stride", "0")


@pytest.mark.parametrize("limit", [5, 6, 20, 64])
def test_a_long_question_leaves_room_for_its_context(make_checkpoint, tiny_config, limit) -> None:
    tiny_config.id2label = {0: "start", 1: "end"}
    model_dir = make_checkpoint("answerer", TinyBertForQuestionAnswering)
    model = QuestionAnswerer(model_dir, max_seq_length=limit)
    context = "the good film"
    (answer,) = model([("what film " * 100, context)])
    assert answer.answer and answer.answer in context
    assert model.truncated == 1
