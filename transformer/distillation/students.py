"""What teacher and student must share, how a student begins from its teacher, what is frozen."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from transformer.configuration import BertConfig
from transformer.distillation.layers import LayerPairs, layer_map
from transformer.distillation.objectives import Objective
from transformer.files import UserError
from transformer.modeling import BertPreTrainedModel
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


def plan_copies(mapping: str, student: BertConfig, teacher: BertConfig) -> LayerPairs:
    """Return which layer of the teacher each student layer is to be a copy of.

    Raises:
        UserError: layers of the teacher have other shapes, or the mapping does not fit.
    """
    for size in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"):
        own, other = getattr(student, size), getattr(teacher, size)
        if own != other:
            raise UserError(
                f"--init_from_teacher: {size} is {own} in the student and {other} in the teacher; "
                "only a student of the teacher's widths can take its layers"
            )
    return layer_map(student.num_hidden_layers, teacher.num_hidden_layers, mapping)


def copy_layers(student: BertPreTrainedModel, teacher: BertPreTrainedModel, mapping: str) -> None:
    """Copy embeddings, pooler and the teacher layers that `mapping` says.

    What the architectures do not share stays as it is, and is said: position embeddings that the
    teacher lacks, tables of another width, a pooler with another activation.

    Raises:
        UserError: as `plan_copies`.
    """
    pairs = plan_copies(mapping, student.config, teacher.config)
    for m, g in pairs:
        source = teacher.bert.encoder.layer[g - 1].state_dict()
        student.bert.encoder.layer[m - 1].load_state_dict(source)
    parts = ["embeddings"]
    if student.bert.pooler is not None and type(student.bert.pooler) is type(teacher.bert.pooler):
        parts.append("pooler")
    others = dict(teacher.bert.named_parameters())
    left = []
    with torch.no_grad():
        for name, target in student.bert.named_parameters():
            if not name.startswith(tuple(parts)):
                continue
            source = others.get(name)
            if source is None or _row_shape(name, source) != _row_shape(name, target):
                left.append(name)
                continue
            rows = min(len(target), len(source))  # of position embeddings, as many as both have
            target[:rows] = source[:rows]
    which = ", which the teacher lacks or has in another width"
    exceptions = f", but for {', '.join(left)}{which}" if left else ""
    logger.info(
        "student layers %s are copies of teacher layers %s; so are %s%s",
        ", ".join(str(m) for m, _ in pairs),
        ", ".join(str(g) for _, g in pairs),
        " and ".join(parts),
        exceptions,
    )


def _row_shape(name: str, tensor: Tensor) -> torch.Size:
    """Return what must be equal to copy a tensor: of position embeddings, not how many."""
    return tensor.shape[1:] if "position_embeddings" in name else tensor.shape


def student_changes(
    student: BertConfig, teacher: BertConfig, *, copies_layers: bool
) -> dict[str, Any]:
    """Return the changes that give a student a projection to the teacher's width, if it needs one.

    A student that takes over the teacher's layers is compared with it as it is.
    """
    if copies_layers and not student.fit_size and student.hidden_size == teacher.hidden_size:
        return {}
    return {} if student.fit_size == teacher.hidden_size else {"fit_size": teacher.hidden_size}
