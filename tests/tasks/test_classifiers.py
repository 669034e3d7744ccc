"""Teachers and students matched by label and width: pytest tests/tasks/test_classifiers.py"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from transformer.checkpoint.directory import Checkpoint, read_config
from transformer.distillation.start import copy_layers, plan_start
from transformer.distillation.students import check_vocabularies, student_changes
from transformer.files import UserError
from transformer.modeling import BertForMaskedLM, BertModel, TinyBertForSequenceClassification
from transformer.tasks.classifiers import (
    check_classifier,
    check_task_fits,
    label_order,
    likely_label_order,
    load_classifier,
)
from transformer.tasks.table import TASKS
from transformer.tokenization import BertTokenizer

MNLI = TASKS["mnli"]  # contradiction, entailment, neutral


def named(*labels: str) -> dict[int, str]:
    return dict(enumerate(labels))


def test_labels_meet_by_name() -> None:
    assert label_order(["entailment", "neutral", "contradiction"], MNLI, "t") == [2, 0, 1]
    assert label_order(["NEUTRAL", "Contradiction", "entailment"], MNLI, "t") == [1, 2, 0]
    assert label_order(["not-entailment", "ENTAILMENT"], TASKS["rte"], "t") == [1, 0]
    assert label_order(["POSITIVE", "NEGATIVE"], TASKS["sst2"], "t") == [1, 0]
    assert label_order(["1", "0"], TASKS["sst2"], "t") == [1, 0]
    for labels in (("-1", "1"), ("C", "C_", "c#"), ("Yes", "yes"), ("1 star", "1-star")):
        own = replace(TASKS["sst2"], labels=labels, aliases=())
        assert label_order(labels[::-1], own, "t") == list(range(len(labels)))[::-1]
    own = replace(TASKS["sst2"], labels=("-1", "1"), aliases=())
    with pytest.raises(UserError, match="cannot be matched"):
        label_order(["- 1", "1 "], own, "t")  # alike once bare: which is which?


def test_labels_without_names_are_taken_in_order(
    make_checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    names = named("LABEL_0", "LABEL_1", "LABEL_2")
    assert label_order(list(names.values()), MNLI, "the teacher") == [0, 1, 2]
    path = make_checkpoint("t", TinyBertForSequenceClassification, id2label=names)
    checkpoint = Checkpoint(path)
    check_classifier(checkpoint, MNLI, "the teacher", need_classifier=True)
    assert not caplog.text  # it is said once, when the model is loaded
    load_classifier(checkpoint, MNLI, "the teacher", need_classifier=True)
    assert "taken to be contradiction, entailment, neutral" in caplog.text


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (["yes", "no", "maybe"], "mnli"),
        (["LABEL_0", "LABEL_1"], "mnli"),
        (["entailment", "not_entailment"], "sst2"),
        (["0", "1"], "stsb"),
    ],
)
def test_other_labels_are_an_error_that_shows_both_lists(labels: list[str], task: str) -> None:
    with pytest.raises(UserError) as error:
        label_order(labels, TASKS[task], "the teacher")
    assert ", ".join(labels) in str(error.value)
    assert ", ".join(TASKS[task].labels or ()) in str(error.value)


def test_the_outputs_of_a_teacher_are_put_in_order(make_checkpoint: Callable[..., Path]) -> None:
    kind = TinyBertForSequenceClassification
    path = make_checkpoint("t", kind, id2label=named("neutral", "contradiction", "entailment"))
    weights = load_file(path / "model.safetensors")
    weights["classifier.bias"] = torch.tensor([0.5, -1.0, 2.0])  # a new one is zero in any order
    save_file(weights, path / "model.safetensors")
    as_stored = kind.from_pretrained(path).eval()
    teacher = load_classifier(Checkpoint(path), MNLI, "the teacher", need_classifier=True).eval()
    ids = torch.randint(5, 60, (4, 9))
    with torch.no_grad():
        stored, ordered = as_stored(ids).logits, teacher(ids).logits
    torch.testing.assert_close(ordered, stored[:, [1, 2, 0]])
    assert list(teacher.config.id2label.values()) == list(MNLI.labels)


def test_a_teacher_without_classifier_is_refused(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint("mlm", BertForMaskedLM)
    with pytest.raises(UserError, match="lacks"):
        load_classifier(Checkpoint(path), MNLI, "the teacher", need_classifier=True)
    with pytest.raises(UserError, match="cannot be matched"):
        other = make_checkpoint("c", TinyBertForSequenceClassification, id2label=named("a", "b"))
        load_classifier(Checkpoint(other), MNLI, "the teacher", need_classifier=True)


def test_a_student_gets_the_classifier_that_it_needs(
    make_checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    for path in (
        make_checkpoint("encoder", BertModel),
        make_checkpoint("other", TinyBertForSequenceClassification, id2label=named("a", "b")),
    ):
        student = load_classifier(Checkpoint(path), MNLI, "the student", need_classifier=False)
        assert student.classifier.weight.shape == (3, 32)
        assert list(student.config.id2label.values()) == list(MNLI.labels)
    assert "the classifier begins anew" in caplog.text
    score = load_classifier(Checkpoint(path), TASKS["stsb"], "the student", need_classifier=False)
    assert (score.config.num_labels, score.config.problem_type) == (1, "regression")


def test_a_configuration_alone_makes_a_random_student(
    make_checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = make_checkpoint("s", BertModel)
    (path / "model.safetensors").unlink()
    student = load_classifier(
        Checkpoint(path), MNLI, "the student", need_classifier=False, fit_size=40
    )
    assert student.fit_dense.weight.shape == (40, 32)
    assert "random" in caplog.text
    with pytest.raises(UserError, match="no weights"):
        load_classifier(Checkpoint(path), MNLI, "the model", need_classifier=True)


def test_projections_are_made_for_the_teacher(make_checkpoint: Callable[..., Path]) -> None:
    plain = read_config(make_checkpoint("plain", BertModel))
    teacher = plain
    fitted = read_config(make_checkpoint("fit", TinyBertForSequenceClassification, fit_size=40))
    wide = replace(teacher, hidden_size=40)
    assert student_changes(plain, wide, copies_layers=False) == {"fit_size": 40}
    assert student_changes(fitted, wide, copies_layers=False) == {}
    assert student_changes(plain, teacher, copies_layers=False) == {"fit_size": 32}
    assert student_changes(plain, teacher, copies_layers=True) == {}


def test_layers_are_copied(make_checkpoint: Callable[..., Path], tiny_config) -> None:
    kind = TinyBertForSequenceClassification
    teacher = kind.from_pretrained(make_checkpoint("teacher", kind)).eval()
    student = kind(replace(tiny_config, num_hidden_layers=2, max_position_embeddings=20)).eval()
    copy_layers(student, teacher, plan_start("2,4", student.config, teacher.config))
    for m, g in ((0, 1), (1, 3)):
        ours, theirs = (x.bert.encoder.layer[n] for x, n in ((student, m), (teacher, g)))
        for (name, tensor), other in zip(
            ours.state_dict().items(), theirs.state_dict().values(), strict=True
        ):
            assert torch.equal(tensor, other), name
    assert torch.equal(student.bert.pooler.dense.weight, teacher.bert.pooler.dense.weight)
    positions = "bert.embeddings.position_embeddings.weight"
    assert torch.equal(student.state_dict()[positions], teacher.state_dict()[positions][:20])
    other_words = replace(tiny_config, vocab_size=500)
    with pytest.raises(UserError, match="vocab_size is 500 in the student and"):
        plan_start("uniform", other_words, teacher.config)


def test_vocabularies_are_compared(vocab_file: Path, tmp_path: Path) -> None:
    student = BertTokenizer(vocab_file)
    check_vocabularies(student, BertTokenizer(vocab_file), "student")
    other = tmp_path / "other.txt"
    other.write_text(vocab_file.read_text().replace("\nfilm\n", "\nfilms\n"))
    line = vocab_file.read_text().split("\n").index("film") + 1
    with pytest.raises(UserError, match=f"differ from line {line} on"):
        check_vocabularies(student, BertTokenizer(other), "student")


def test_text_that_is_cut_in_another_way_is_told(
    vocab_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = BertTokenizer(vocab_file)
    check_vocabularies(student, BertTokenizer(vocab_file, strip_accents=True), "student")
    assert not caplog.text  # what lower-cases strips anyway
    check_vocabularies(student, BertTokenizer(vocab_file, do_lower_case=False), "student")
    assert "do_lower_case is True for the student and False for the teacher" in caplog.text
    assert "both read text as the student does" in caplog.text


def test_what_a_model_cannot_read(tiny_config) -> None:
    check_task_fits(MNLI, 64, tiny_config, "the student")
    with pytest.raises(UserError, match="64 positions"):
        check_task_fits(MNLI, 65, tiny_config, "the student")
    with pytest.raises(UserError, match="needs 5 or more"):
        check_task_fits(MNLI, 4, tiny_config, "the student")
    with pytest.raises(UserError, match="one segment"):
        check_task_fits(MNLI, 64, replace(tiny_config, type_vocab_size=1), "the student")


def test_a_wrong_order_of_labels_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """A teacher whose outputs are entailment, neutral, contradiction, and which says nothing."""
    caplog.set_level(logging.WARNING)
    labels = np.array([0, 1, 2, 0, 1, 2, 1])
    outputs = {0: 2, 1: 0, 2: 1}  # label of ours -> output of its
    logits = np.eye(3)[[outputs[label] for label in labels]]
    order = likely_label_order(logits, labels, MNLI)
    assert order == ["entailment", "neutral", "contradiction"]
    assert likely_label_order(np.eye(3)[labels], labels, MNLI) is None
