"""What teacher and student must share, and how a student begins from its teacher."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from transformer.configuration import BertConfig
from transformer.distillation.layers import LayerPairs
from transformer.files import UserError
from transformer.modeling import BertPreTrainedModel
from transformer.runtime.ranks import Runtime
from transformer.tokenization import BertTokenizer

logger = logging.getLogger(__name__)


def freeze_teacher(teacher: nn.Module, runtime: Runtime) -> nn.Module:
    """Make a model a teacher: no dropout, no gradient, weights held in the compute precision."""
    return teacher.eval().requires_grad_(False).to(runtime.device, runtime.dtype)


def check_vocabularies(student: BertTokenizer, teacher: BertTokenizer) -> None:
    """Raise UserError unless student and teacher number the same tokens alike."""
    if student.vocab == teacher.vocab:
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


def check_layers_can_be_copied(student: BertConfig, teacher: BertConfig) -> None:
    """Raise UserError unless layers of the teacher have the shapes of the student's."""
    for size in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"):
        own, other = getattr(student, size), getattr(teacher, size)
        if own != other:
            raise UserError(
                f"--init_from_teacher: {size} is {own} in the student and {other} in the teacher; "
                "only a student of the teacher's widths can take its layers"
            )


def copy_layers(
    student: BertPreTrainedModel, teacher: BertPreTrainedModel, pairs: LayerPairs
) -> None:
    """Copy embeddings, pooler and, for each pair (m, g), teacher layer g to student layer m.

    Raises:
        UserError: the widths differ.
    """
    check_layers_can_be_copied(student.config, teacher.config)
    for m, g in pairs:
        source = teacher.bert.encoder.layer[g - 1].state_dict()
        student.bert.encoder.layer[m - 1].load_state_dict(source)
    others = dict(teacher.bert.embeddings.named_parameters(prefix="embeddings"))
    if teacher.bert.pooler is not None:
        others |= dict(teacher.bert.pooler.named_parameters(prefix="pooler"))
    with torch.no_grad():
        for name, target in student.bert.named_parameters():
            if name in others:  # of position embeddings, as many as both have
                rows = min(len(target), len(others[name]))
                target[:rows] = others[name][:rows]
    logger.info(
        "student layers %s are copies of teacher layers %s; so are embeddings and pooler",
        ", ".join(str(m) for m, _ in pairs),
        ", ".join(str(g) for _, g in pairs),
    )


def student_changes(
    student: BertConfig, teacher: BertConfig, *, copies_layers: bool
) -> dict[str, Any]:
    """Return the changes that give a student a projection to the teacher's width, if it needs one.

    A student that takes over the teacher's layers is compared with it as it is.
    """
    if copies_layers and not student.fit_size and student.hidden_size == teacher.hidden_size:
        return {}
    return {} if student.fit_size == teacher.hidden_size else {"fit_size": teacher.hidden_size}
