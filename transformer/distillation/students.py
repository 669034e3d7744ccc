"""What teacher and student must share, and what is frozen."""

from __future__ import annotations

import argparse
import logging
from typing import Any

import torch
from torch import nn

from transformer.attention import Dropout
from transformer.configuration import BertConfig
from transformer.distillation.objectives import Objective
from transformer.files import UserError
from transformer.modeling import BertSelfAttention
from transformer.packed_linear import pack_linears
from transformer.runtime.ranks import Runtime
from transformer.tokenization import BertTokenizer
from transformer.training.loop import compile_forward

logger = logging.getLogger(__name__)


def freeze_teacher(teacher: nn.Module, runtime: Runtime) -> nn.Module:
    """Make a model a teacher: no dropout, no gradient, weights held in the compute precision."""
    return teacher.eval().requires_grad_(False).to(runtime.device, runtime.dtype)


def prepare_teacher(teacher: nn.Module, runtime: Runtime, *, compiled: bool) -> nn.Module:
    """Freeze a teacher and make it fast: compiled, or its weights in the processor's layout."""
    freeze_teacher(teacher, runtime)
    if compiled:
        compile_forward(teacher)
    else:
        pack_linears(teacher)
    return teacher


def freeze_unread(student: nn.Module, objective: Objective) -> list[str]:
    """Freeze the student's parameters that no term depends on; return their names.

    Without hidden terms, for instance, nothing reads the values and the feed-forward half of the
    last layer; DistributedDataParallel waits for a gradient from every parameter it gets.
    """
    names, parameters = zip(
        *((n, p) for n, p in student.named_parameters() if p.requires_grad), strict=True
    )
    ids = torch.zeros(1, 2, dtype=torch.long, device=parameters[0].device)
    read = objective.read_tensors(student, ids)
    gradients = torch.autograd.grad(
        sum(x.float().sum() for x in read), parameters, allow_unused=True
    )
    unread = [n for n, gradient in zip(names, gradients, strict=True) if gradient is None]
    for name in unread:
        student.get_parameter(name).requires_grad_(False)
    if unread:
        logger.info("not trained, because no loss term reads them: %d tensors", len(unread))
    return unread


def freeze_padding(student: nn.Module, objective: Objective) -> None:
    """Let the embedding of padding learn nothing, if padding counts, as in the authors' code.

    Where padding does not count, nothing reaches it anyway. It decays either way.
    """
    if objective.pad_to is not None:
        student.bert.embeddings.word_embeddings.padding_idx = student.config.pad_token_id


def set_dropout(student: nn.Module, probability: float) -> None:
    """Drop out with this probability everywhere; the configuration, which is saved, stays."""
    for module in student.modules():
        if isinstance(module, Dropout):
            module.probability = probability
        elif isinstance(module, BertSelfAttention):
            module.dropout_prob = probability


def ready_to_train(
    student: nn.Module,
    objective: Objective,
    args: argparse.Namespace,
    runtime: Runtime,
    *,
    dropout: float | None,
) -> nn.Module:
    """Return the student as the loop takes it: on its device, what no term reads frozen.

    Args:
        dropout: during this training; None: what its configuration says.
    """
    if dropout is not None:
        set_dropout(student, dropout)
    freeze_padding(student, objective)
    freeze_unread(student, objective)
    if args.compile:
        compile_forward(student)
    return student.to(runtime.device).train()


def check_words(tokenizer: BertTokenizer, config: BertConfig, whose: str) -> None:
    """Raise UserError where a model has no embedding for a token of the vocabulary."""
    entries = len(tokenizer.vocab)
    if config.vocab_size < entries:
        raise UserError(
            f"{whose}'s vocab_size is {config.vocab_size}, but the vocabulary has {entries} "
            f"entries; set it to that in {whose}'s config.json"
        )


def words_of_teacher(student: BertConfig, teacher: BertConfig) -> dict[str, int]:
    """Return the change that gives a new student as many words as its teacher, not more."""
    if student.vocab_size <= teacher.vocab_size:
        return {}
    logger.info(
        "the student's config.json says vocab_size %d; it gets %d, as the teacher has",
        *(student.vocab_size, teacher.vocab_size),
    )
    return {"vocab_size": teacher.vocab_size}


def check_vocabularies(student: BertTokenizer, teacher: BertTokenizer, read_by: str) -> None:
    """Raise UserError unless student and teacher number the same tokens alike.

    Args:
        read_by: whose settings decide how text is cut, where they differ.
    """
    if student.vocab == teacher.vocab:
        _compare_settings(student.settings, teacher.settings, read_by)
        return
    ours, theirs = list(student.vocab), list(teacher.vocab)
    place = next(
        (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    raise UserError(
        f"student and teacher have different vocabularies ({len(ours)} and {len(theirs)} entries; "
        f"they differ from line {place + 1} on): use a student that was made for this teacher"
    )


def _compare_settings(student: dict[str, Any], teacher: dict[str, Any], read_by: str) -> None:
    """Warn where one of two models was trained on text that was cut in another way."""

    def effective(settings: dict[str, Any]) -> dict[str, Any]:
        strips = settings.get("strip_accents")  # None: whatever lower-cases also strips
        return {
            **settings,
            "strip_accents": settings["do_lower_case"] if strips is None else strips,
        }

    ours, theirs = effective(student), effective(teacher)
    differing = [
        f"{name} is {ours.get(name)} for the student and {theirs.get(name)} for the teacher"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if differing:
        logger.warning(
            "WARNING: %s; both read text as the %s does. If that is wrong, correct the other's "
            "tokenizer_config.json, or give --do_lower_case or --no-do_lower_case",
            *("; ".join(differing), read_by),
        )


def student_changes(
    student: BertConfig, teacher: BertConfig, *, copies_layers: bool
) -> dict[str, Any]:
    """Return the changes that give a student a projection to the teacher's width, if it needs one.

    A student that takes over the teacher's layers as they are is compared with it as it is.
    """
    if copies_layers and not student.fit_size and student.hidden_size == teacher.hidden_size:
        return {}
    return {} if student.fit_size == teacher.hidden_size else {"fit_size": teacher.hidden_size}
