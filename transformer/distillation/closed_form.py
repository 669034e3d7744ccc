"""A student computed from its teacher in closed form: layer by layer, by least squares.

Letters: teacher width D and H heads of width K, student width d and heads of width k; student layer
m learns from teacher layer g(m); X has one row for each token of a little text.

1. One basis for all layers: P, the d - 1 leading directions of the teacher's states, whose
   covariances are added up, each divided by its trace. A student state is (h - mu) E with E = P Q',
   where the columns of Q are orthogonal to (1, ..., 1): LayerNorm takes that direction away.
2. Embeddings: tables times E; gamma and beta by a regression for each coordinate. Rows that the
   teacher lacks begin at the mean of those that it has.
3. Queries and keys: R reads the teacher's input back from the student's state. With S the root of
   the second moment of [state, 1], the leading part of the SVD of S Q_h K_h' S gives the scores
   that are nearest to the teacher's on this text, among those of width k.
4. Values: the same of S V_h W_h E, the part of the head that reaches the student's states.
5. Attention output: the student's own attention runs, and least squares takes its contexts to what
   the target still lacks before LayerNorm: ((h - mu) E) sigma / mean(gamma) - residual.
6. Feed-forward: of the neurons of all teacher layers up to g(m), those that move the student's
   states most, read through R; their output as in 5. What is fitted always stands on the student's
   own states, so that no error adds up unseen.
   Where several student layers learn from one teacher layer, each but the first starts from where
   the one below came and goes on to the same end, with neurons that are not taken yet.
7. Projection to the teacher's width: least squares, layers weighted to equal variance.
8. Head of a fine-tuned teacher: pooled units by their weight in the classifier, then least squares
   to the logits; of token heads, least squares at every token.

What a NEZHA knows of positions is not computed: it stands in the scores of its layers, in none of
its states, and a BERT has no other place for it than its position embeddings. They begin at zero,
queries and keys at what the words say, and training finds the rest.

The teacher runs in the precision of the run, the student in fp32. Whatever is summed over tokens is
summed in fp64, batch by batch; the states of a few layers are held at a time. Nothing is drawn at
random: the same text gives the same student.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.attention import MASKED_SCORE
from transformer.configuration import BertConfig
from transformer.distillation.layers import LayerPairs
from transformer.files import UserError
from transformer.modeling import (
    BertLayer,
    BertModel,
    BertPooler,
    BertPreTrainedModel,
    BertResidual,
    BertSelfAttention,
)
from transformer.training.batches import Batch

RIDGE = 1e-3  # of the mean variance of what is regressed on
HEAD_RIDGE = 1e-2
# In the last layer of a model that reads the first token, each of these counts as so many tokens.
FIRST_TOKEN_WEIGHT = 8.0

ROWS_AT_ONCE = 1024  # tokens that are held in fp64, to be added up

States = list[Tensor]  # (B, T, width) of each batch
Autocast = Callable[[], AbstractContextManager[Any]]


# ------------------------------------------------------------------------------- least squares


class Moments:
    """Second moments of rows [x, 1] and y in fp64, added up batch by batch.

    xx: (n + 1, n + 1); xy: (n + 1, p); yy: (p,), sums of squares.
    """

    def __init__(self, width_in: int, width_out: int, device: torch.device):
        options = {"dtype": torch.float64, "device": device}
        self.xx = torch.zeros(width_in + 1, width_in + 1, **options)
        self.xy = torch.zeros(width_in + 1, width_out, **options)
        self.yy = torch.zeros(width_out, **options)

    def add(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Add rows x (r, n) and y (r, p), counted `weights` (r,) times."""
        if weights is None:
            weights = torch.ones(len(x), device=x.device)
        for parts in zip(*(rows.split(ROWS_AT_ONCE) for rows in (x, y, weights)), strict=True):
            x, y, weights = (part.double() for part in parts)
            x = _with_one(x)
            weighted = x * weights[:, None]
            self.xx += weighted.T @ x
            self.xy += weighted.T @ y
            self.yy += weights @ y.square()

    def add_scaled(self, other: Moments, scale: float) -> None:
        """Add all of `other`, counted `scale` times."""
        self.xx += scale * other.xx
        self.xy += scale * other.xy
        self.yy += scale * other.yy

    @property
    def count(self) -> Tensor:
        """Return the (weighted) number of rows."""
        return self.xx[-1, -1]

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the means of x and y, the covariance of x (n, n) and that of x and y (n, p)."""
        mean_x, mean_y = self.xx[-1, :-1] / self.count, self.xy[-1] / self.count
        covariance = self.xx[:-1, :-1] / self.count - torch.outer(mean_x, mean_x)
        cross = self.xy[:-1] / self.count - torch.outer(mean_x, mean_y)
        return mean_x, mean_y, covariance, cross

    def variance_out(self) -> float:
        """Return the variance of y, summed over coordinates."""
        return float((self.yy / self.count - (self.xy[-1] / self.count).square()).sum())

    def explained(self, weights: Tensor) -> float:
        """Return what share of the variance of y the affine map `weights` (n + 1, p) explains."""
        errors = self.yy.sum() - 2 * (weights * self.xy).sum()
        errors = errors + (weights * (self.xx @ weights)).sum()
        return 1 - float(errors / self.count) / max(self.variance_out(), 1e-300)


def _with_one(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1), value=1.0)


def ridge(moments: Moments, strength: float = RIDGE) -> Tensor:
    """Return (n + 1, p), the affine map from x to y of least squares; its last row is added.

    W = (Xc'Xc + strength * mean diagonal * I)^-1 Xc'Yc with centred X and Y, and
    b = mean(Y) - mean(X) W.
    """
    mean_x, mean_y, covariance, cross = moments.centred()
    penalty = strength * covariance.diagonal().mean() + 1e-12
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    weights = torch.linalg.solve(covariance + penalty * eye, cross)
    return torch.cat([weights, (mean_y - mean_x @ weights)[None]])


def low_rank(
    left: Tensor, right: Tensor, left_moment: Tensor, right_moment: Tensor, rank: int
) -> tuple[Tensor, Tensor, float]:
    """Return A and B of `rank` columns with S A B' T nearest to S left right' T, and what is kept.

    Args:
        left, right: (n, K) and (p, K).
        left_moment, right_moment: S S (n, n) and T T (p, p), the second moments of the rows that
            left and right are applied to.

    Returns:
        A (n, rank), B (p, rank), the singular values split evenly between them, and their share of
        the energy.
    """
    left_root, left_inverse = _root(left.T @ left_moment @ left)
    right_root, right_inverse = _root(right.T @ right_moment @ right)
    u, values, vt = torch.linalg.svd(left_root @ right_root)
    kept = min(rank, len(values))
    split = values[:kept].sqrt()
    a = left @ (left_inverse @ u[:, :kept] * split)
    b = right @ (right_inverse @ vt[:kept].T * split)
    energy = float(values[:kept].square().sum() / values.square().sum().clamp_min(1e-300))
    return F.pad(a, (0, rank - kept)), F.pad(b, (0, rank - kept)), energy


def _root(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric root of a moment matrix, and the root's pseudo-inverse."""
    values, vectors = torch.linalg.eigh(moment)
    roots = values.clamp_min(0).sqrt()
    inverse = torch.where(values > 1e-12 * values[-1], 1 / roots.clamp_min(1e-300), 0.0)
    return vectors * roots @ vectors.T, vectors * inverse @ vectors.T


# ------------------------------------------------------------------------------- the one basis


@torch.no_grad()
def state_moments(
    teacher: BertModel,
    batches: Sequence[Batch],
    layers: Iterable[int],
    autocast: Autocast = nullcontext,
) -> dict[int, Moments]:
    """Return the moments of the teacher's states (tokens, D), by layer; 0 is the embeddings.

    Args:
        teacher: in eval mode, in fp32, on the device of the batches.
        layers: whose states are wanted.
        autocast: gives the context that the layers run in, such as `runtime.autocast`.
    """
    wanted, found = set(layers), {}
    h = [teacher.embeddings(b.input_ids, b.token_type_ids) for b in batches]
    masks = [_additive(b.attention_mask) for b in batches]
    for g in range(max(wanted) + 1):
        if g:
            layer = teacher.encoder.layer[g - 1]
            with autocast():
                h = [layer(state, mask, False)[0] for state, mask in zip(h, masks, strict=True)]
        if g in wanted:
            found[g] = Moments(h[0].shape[-1], 0, h[0].device)
            for state, batch in zip(h, batches, strict=True):
                rows = state[batch.attention_mask]
                found[g].add(rows, rows[:, :0])
    return found


def joint_covariance(layers: Iterable[Moments]) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and covariance (D, D) of several layers, each divided by its trace."""
    covariance, mean, total = 0.0, 0.0, 0.0
    for moments in layers:
        mean_g, _, covariance_g, _ = moments.centred()
        weight = 1 / covariance_g.trace()
        covariance = covariance + weight * covariance_g
        mean, total = mean + weight * mean_g, total + weight
    return mean / total, covariance


def leading_directions(covariance: Tensor, count: int) -> Tensor:
    """Return the directions of most variance as columns (D, count), the first of them last."""
    return torch.linalg.eigh(covariance)[1][:, -count:]


def variance_kept(moments: Moments, directions: Tensor) -> float:
    """Return what share of a layer's variance lies in directions (D, n): tr(P'CP) / tr(C)."""
    covariance = moments.centred()[2]
    return float((directions * (covariance @ directions)).sum() / covariance.trace())


def _additive(mask: Tensor) -> Tensor:
    """Return what is added to the scores (B, 1, 1, T), so that no real token sees padding."""
    return (~mask)[:, None, None, :].float() * MASKED_SCORE


# ------------------------------------------------------------------------------- linear layers


def _then(weights: Tensor, linear: nn.Linear) -> Tensor:
    """Return the affine map `weights` followed by a linear layer, (n + 1, p)."""
    composed = weights @ linear.weight.double().T
    composed[-1] += linear.bias.double()
    return composed


def _set(linear: nn.Linear, weights: Tensor, rows: slice = slice(None)) -> None:
    """Give some outputs of a linear layer the affine map `weights` (n + 1, p)."""
    linear.weight[rows] = weights[:-1].T.to(linear.weight)
    linear.bias[rows] = weights[-1].to(linear.bias)


# ----------------------------------------------------------------------------- what is possible


@dataclass
class ClosedFormReport:
    """What a computed student keeps of its teacher.

    explained: share of the variance of the teacher's states that the student's states explain, by
        student layer (0: the embeddings).
    scores: share of the energy of the teacher's attention scores, by student layer.
    logits: share of the variance of the teacher's logits; None without a head.
    """

    explained: dict[int, float] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    logits: float | None = None

    @property
    def fields(self) -> dict[str, float]:
        """Return what metrics.jsonl holds of it."""
        return {f"explained/{m}": share for m, share in self.explained.items()}


def check_closed_form(student: BertConfig, teacher: BertConfig, pairs: LayerPairs) -> None:
    """Check that a student of these sizes can be computed from this teacher.

    Raises:
        UserError: what does not fit, and what would.
    """
    own, theirs = student.num_attention_heads, teacher.num_attention_heads
    if own % theirs and theirs % own:
        fits = [str(n) for n in range(1, 4 * theirs + 1) if n % theirs == 0 or theirs % n == 0]
        raise UserError(
            f"--init_from_teacher: {own} heads cannot be made of the teacher's {theirs}: heads are "
            f"merged or split as wholes; give a student of {', '.join(fits)} heads"
        )
    mapped = [g for _, g in pairs]
    if mapped != sorted(mapped):
        raise UserError(
            f"--init_from_teacher {','.join(map(str, mapped))}: a student is computed upwards, "
            "each layer from the states of the one below, so list the teacher's layers in rising "
            "order; one may stand there several times"
        )
    if type(student) is not BertConfig:
        raise UserError(
            "--init_from_teacher computes BERT students; this student is of another architecture"
        )


# ------------------------------------------------------------------------------------ the steps


@torch.no_grad()
def compute_student(
    student: BertPreTrainedModel,
    teacher: BertPreTrainedModel,
    pairs: LayerPairs,
    batches: Sequence[Batch],
    strength: float = RIDGE,
    autocast: Autocast = nullcontext,
) -> ClosedFormReport:
    """Give a student the weights that follow from its teacher; see the head of this file.

    Args:
        student, teacher: in fp32, on the device of the batches. Both may have a head.
        pairs: (m, g(m)), g not falling; student layers that are not listed pass their input on.
        batches: some thousands of tokens of the text that the student will meet.
        strength: of the ridge in steps 3 to 7.
        autocast: gives the context that the teacher's layers run in, such as `runtime.autocast`.
    """
    was_training = student.training
    student.eval(), teacher.eval()
    report = _ClosedForm(student, teacher, pairs, batches, strength, autocast).run()
    student.train(was_training)
    return report


class _ClosedForm:
    """The computation of one student, with the states that it stands at."""

    def __init__(
        self,
        student: BertPreTrainedModel,
        teacher: BertPreTrainedModel,
        pairs: LayerPairs,
        batches: Sequence[Batch],
        strength: float,
        autocast: Autocast = nullcontext,
    ) -> None:
        self.strength, self.autocast = strength, autocast
        self.student, self.teacher = student, teacher
        self.teacher_of = dict(pairs)
        self.batches = batches
        self.masks = [b.attention_mask for b in batches]
        self.additive = [_additive(mask) for mask in self.masks]
        self.width, self.teacher_width = student.config.hidden_size, teacher.config.hidden_size
        self.device = batches[0].input_ids.device
        self.reads_first_token = hasattr(student, "classifier") and student.bert.pooler is not None
        self.weigh_first_token = False  # while the last layer is fitted
        self.report = ClosedFormReport()

    def run(self) -> ClosedFormReport:
        """Take the steps in their order."""
        self.find_basis()
        h = self.embed(self.teacher.bert)
        x = self.embeddings(h)
        fits = {0: self.moments(x, h)}
        reached = 0  # the teacher layer that h is the output of
        teacher_layers: list[TeacherStates] = []
        layers = self.student.bert.encoder.layer
        for m, layer in enumerate(layers, start=1):
            self.weigh_first_token = self.reads_first_token and m == len(layers)
            if m not in self.teacher_of:
                x = self.pass_on(layer, x)
                continue
            is_next = reached < self.teacher_of[m]
            if is_next:
                teacher_layers = []
            while reached < self.teacher_of[m]:
                reached += 1
                before = h  # first, so that the layer below gives its states free
                teacher_layers.append(self.run_teacher_layer(reached, before))
                h = teacher_layers[-1].outputs
                for inner in teacher_layers[:-1]:
                    inner.outputs = []  # nothing reads them: of inner layers, neurons are taken
            x = self.layer(layer, m, x, before, teacher_layers, is_again=not is_next)
            fits[m] = self.moments(x, h)
        self.weigh_first_token = False
        self.projection(fits)
        if self.reads_first_token:
            self.pooled_head(x, h)
        elif hasattr(self.student, "classifier"):
            self.token_head(x, h)
        return self.report

    # 1 -----------------------------------------------------------------------------------------

    def find_basis(self) -> None:
        """Find mu (D,) and E (D, d) from the states of the mapped layers and the embeddings."""
        layers = (0, *self.teacher_of.values())
        moments = state_moments(self.teacher.bert, self.batches, layers, self.autocast)
        self.mean, covariance = joint_covariance(moments.values())
        rank = min(self.width - 1, self.teacher_width)
        leading = leading_directions(covariance, rank)
        eye = torch.eye(self.width, dtype=torch.float64, device=self.device)
        # The first column of the orthogonal factor is the direction of ones.
        orthogonal = torch.linalg.qr(torch.cat([torch.ones_like(eye[:, :1]), eye[:, :-1]], 1))[0]
        self.basis = leading @ orthogonal[:, 1 : 1 + rank].T

    def reduce(self, h: Tensor) -> Tensor:
        """Return the student's states (..., d) for teacher states (..., D)."""
        return (h - self.mean.to(h)) @ self.basis.to(h)

    # 2 -----------------------------------------------------------------------------------------

    def embeddings(self, h: States) -> States:
        """Set the embeddings; return the student's embedding output."""
        own = self.student.bert.embeddings
        for name, table in _tables(self.teacher.bert).items():
            target = getattr(own, name).weight
            rows = min(len(table), len(target))
            target[:] = (table.mean(0) @ self.basis).to(target) if len(table) else 0.0
            target[:rows] = (table[:rows] @ self.basis).to(target)
        sums = [
            own.word_embeddings(b.input_ids)
            + own.positions(b.input_ids)
            + own.segments(b.token_type_ids)
            for b in self.batches
        ]
        self.fit_norm(own.LayerNorm, sums, [self.reduce(state) for state in h])
        return [own.LayerNorm(x) for x in sums]

    def embed(self, model: BertModel) -> States:
        """Return a model's embedding output."""
        return [model.embeddings(b.input_ids, b.token_type_ids) for b in self.batches]

    # 3 to 6 ------------------------------------------------------------------------------------

    def layer(
        self,
        layer: BertLayer,
        m: int,
        x: States,
        before: States,
        teacher_layers: list[TeacherStates],
        is_again: bool,
    ) -> States:
        """Set student layer m; return its output.

        Args:
            x: its input.
            before: the input of teacher layer g(m).
            teacher_layers: the states of the teacher layers up to g(m), from the one after the last
                that an earlier student layer was computed from; where that is g(m) itself, the
                same states as for that student layer.
            is_again: x stands for the output of teacher layer g(m) already, and is not taken back
                to the middle of it.
        """
        target = teacher_layers[-1]
        norm = target.layer.output.LayerNorm
        end = target.outputs, target.output_deviations, norm
        if is_again:  # the state has the scale of the target, not that of a sum before LayerNorm
            gamma = norm.weight.mean()
            end = target.outputs, [gamma.expand_as(d) for d in target.output_deviations], norm
        middle = target.middles, target.middle_deviations, target.layer.attention.output.LayerNorm
        moments = self.moments(x, before)
        read_back = ridge(moments, self.strength)
        self.queries_keys(layer.attention.self, target.layer, read_back, moments, m)
        self.values(layer.attention.self, target.layer, read_back, moments)
        contexts = [
            layer.attention.self(state, mask, False)[0]
            for state, mask in zip(x, self.additive, strict=True)
        ]
        x = self.output(layer.attention.output, contexts, x, *(end if is_again else middle))
        del contexts
        self.neurons(layer, x, teacher_layers)
        activations = [layer.intermediate(state) for state in x]
        return self.output(layer.output, activations, x, *end)

    def queries_keys(
        self,
        own: BertSelfAttention,
        teacher_layer: BertLayer,
        read_back: Tensor,
        moments: Moments,
        m: int,
    ) -> None:
        """Set queries and keys so that the raw scores are nearest to the teacher's.

        A student head that stands for several of the teacher's takes the mean of their scores; one
        of several that stand for one of the teacher's takes its scores.

        Args:
            read_back: (d + 1, D), from the student's state to the teacher layer's input.
            moments: of the student's states.
        """
        theirs = teacher_layer.attention.self
        second = moments.xx / moments.count
        query, key = _then(read_back, theirs.query), _then(read_back, theirs.key)
        width, width_of_theirs = self.width // own.num_heads, query.shape[1] // theirs.num_heads
        scale = (width / width_of_theirs) ** 0.25  # on each side, for QK'/sqrt(k)
        energies = []
        for head in range(own.num_heads):
            columns = _teacher_columns(head, own.num_heads, theirs.num_heads, width_of_theirs)
            merged = (columns.stop - columns.start) // width_of_theirs
            left, right = query[:, columns], key[:, columns] / merged
            a, b, energy = low_rank(left, right, second, second, width)
            energies.append(energy)
            rows = slice(head * width, (head + 1) * width)
            _set(own.query, a * scale, rows)
            _set(own.key, b * scale, rows)
        self.report.scores[m] = sum(energies) / len(energies)

    def values(
        self, own: BertSelfAttention, teacher_layer: BertLayer, read_back: Tensor, moments: Moments
    ) -> None:
        """Set values to what of each head reaches the student's states; as `queries_keys`."""
        theirs = teacher_layer.attention.self
        second = moments.xx / moments.count
        value = _then(read_back, theirs.value)
        reaches = self.basis.T @ teacher_layer.attention.output.dense.weight.double()  # (d, D)
        width, width_of_theirs = self.width // own.num_heads, value.shape[1] // theirs.num_heads
        shares = max(own.num_heads // theirs.num_heads, 1)  # student heads for one of the teacher's
        eye = torch.eye(self.width, dtype=torch.float64, device=self.device)
        for head in range(0, own.num_heads, shares):
            columns = _teacher_columns(head, own.num_heads, theirs.num_heads, width_of_theirs)
            # Of the product V_h W_h E only the left side meets the text.
            a, _, _ = low_rank(value[:, columns], reaches[:, columns], second, eye, width * shares)
            _set(own.value, a, slice(head * width, (head + shares) * width))

    def output(
        self,
        block: BertResidual,
        inputs: States,
        residuals: States,
        targets: States,
        deviations: States,
        teacher_norm: nn.LayerNorm,
    ) -> States:
        """Set a dense layer and the LayerNorm after it; return the new states.

        Args:
            targets: the teacher's states after its LayerNorm.
            deviations: (B, T, 1), standard deviations of what that LayerNorm reads.
        """
        gamma = float(teacher_norm.weight.double().mean())
        wanted = [self.reduce(state) for state in targets]
        lacking = [
            w * deviation / gamma - r
            for w, deviation, r in zip(wanted, deviations, residuals, strict=True)
        ]
        _set(block.dense, ridge(self.moments(inputs, lacking), self.strength))
        sums = [block.dense(i) + r for i, r in zip(inputs, residuals, strict=True)]
        self.fit_norm(block.LayerNorm, sums, wanted)
        return [block.LayerNorm(z) for z in sums]

    def neurons(self, layer: BertLayer, x: States, teacher_layers: list[TeacherStates]) -> None:
        """Take over the teacher's neurons that move the student's states most."""
        maps, importances, taken = [], [], torch.cat([states.taken for states in teacher_layers])
        for states in teacher_layers:
            read_back = ridge(self.moments(x, states.middles), self.strength)
            maps.append(_then(read_back, states.layer.intermediate.dense))
            reaches = states.layer.output.dense.weight.double().T @ self.basis
            importances.append(states.activation_deviation * reaches.norm(dim=1))
        importance = torch.cat(importances)
        importance = torch.where(taken, importance - importance.max(), importance)  # come last
        count = min(layer.intermediate.dense.out_features, len(importance))
        chosen = importance.topk(count).indices.sort().values
        taken[chosen] = True
        for states, part in zip(
            teacher_layers, taken.split(list(map(len, importances))), strict=True
        ):
            states.taken = part
        _set(layer.intermediate.dense, torch.cat(maps, 1)[:, chosen], slice(0, count))

    def pass_on(self, layer: BertLayer, x: States) -> States:
        """Let a layer without a teacher change nothing; training may find it something to do."""
        for block in (layer.attention.output, layer.output):
            block.dense.weight.zero_()
            block.dense.bias.zero_()
            self.fit_norm(block.LayerNorm, x, x)
            x = [block.LayerNorm(state) for state in x]
        return x

    def fit_norm(self, norm: nn.LayerNorm, sums: States, targets: States) -> None:
        """Set gamma and beta, coordinate by coordinate, by regression on the normalised sums."""
        total: Tensor | float = 0.0
        for number, (z, target) in enumerate(zip(sums, targets, strict=True)):
            u = F.layer_norm(z, z.shape[-1:], eps=norm.eps)
            u, y = (state.double() for state in self.rows(number, u, target))
            weight = self.row_weights(number).double()[:, None]
            parts = (u, y, u * u, u * y, torch.ones_like(u))
            total = total + torch.stack([(weight * part).sum(0) for part in parts])
        mean_u, mean_y, uu, uy = total[:4] / total[4]
        gamma = (uy - mean_u * mean_y) / (uu - mean_u.square()).clamp_min(1e-12)
        norm.weight.copy_(gamma)
        norm.bias.copy_(mean_y - gamma * mean_u)

    # 7 -----------------------------------------------------------------------------------------

    def projection(self, fits: dict[int, Moments]) -> None:
        """Set the projection to the teacher's width, if there is one, and say what is explained."""
        config = self.student.config
        shared = Moments(self.width, self.teacher_width, self.device)
        for moments in fits.values():
            shared.add_scaled(moments, 1 / max(moments.variance_out(), 1e-300))
        one_map = ridge(shared, self.strength)
        if config.fit_size == self.teacher_width and not config.fit_per_layer:
            _set(self.student.fit_dense, one_map)
        for m, moments in fits.items():
            own_map = ridge(moments, self.strength)
            if config.fit_size == self.teacher_width and config.fit_per_layer:
                _set(self.student.fit_denses[m], own_map)
            self.report.explained[m] = moments.explained(own_map)

    # 8 -----------------------------------------------------------------------------------------

    def pooled_head(self, x: States, h: States) -> None:
        """Set pooler and classifier, which read the first token."""
        first, teacher_first = (torch.cat([state[:, 0] for state in states]) for states in (x, h))
        inner, pooled = _pooled(self.teacher.bert.pooler, teacher_first)
        head = self.teacher.classifier
        relu = self.teacher.config.classifier_relu
        logits = head(F.relu(pooled) if relu else pooled)
        importance = head.weight.norm(dim=0) * pooled.std(0)
        chosen = importance.topk(min(self.width, pooled.shape[1])).indices.sort().values
        pooler = self.student.bert.pooler.dense
        _set(
            pooler,
            ridge(self.plain_moments(first, inner[:, chosen]), self.strength),
            slice(0, len(chosen)),
        )
        units = torch.tanh(pooler(first))
        if self.student.config.classifier_relu:
            units = F.relu(units)
        moments = self.plain_moments(units, logits)
        weights = ridge(moments, HEAD_RIDGE)
        _set(self.student.classifier, weights)
        self.report.logits = moments.explained(weights)

    def token_head(self, x: States, h: States) -> None:
        """Set a head that reads every token."""
        moments = self.moments(x, [self.teacher.classifier(state) for state in h])
        weights = ridge(moments, HEAD_RIDGE)
        _set(self.student.classifier, weights)
        self.report.logits = moments.explained(weights)

    # -------------------------------------------------------------------------------- the teacher

    def run_teacher_layer(self, number: int, h: States) -> TeacherStates:
        """Run a teacher layer half by half."""
        layer = self.teacher.bert.encoder.layer[number - 1]
        found = TeacherStates(layer)
        sums: Tensor | float = 0.0
        for place, (state, additive) in enumerate(zip(h, self.additive, strict=True)):
            with self.autocast():
                context = layer.attention.self(state, additive, False)[0]
                z = layer.attention.output.dense(context) + state
                middle = layer.attention.output.LayerNorm(z)
                activation = layer.intermediate(middle)
                z_out = layer.output.dense(activation) + middle
            found.middles.append(middle)
            found.middle_deviations.append(z.std(-1, keepdim=True, correction=0))
            found.outputs.append(layer.output.LayerNorm(z_out))
            found.output_deviations.append(z_out.std(-1, keepdim=True, correction=0))
            (rows,) = self.rows(place, activation)
            for part in map(Tensor.double, rows.split(ROWS_AT_ONCE)):
                sums = sums + torch.stack([part.sum(0), part.square().sum(0)])
        mean, square = sums / sum(int(mask.sum()) for mask in self.masks)
        found.activation_deviation = (square - mean.square()).clamp_min(0).sqrt()
        found.taken = torch.zeros_like(mean, dtype=torch.bool)
        return found

    # -------------------------------------------------------------------------------------- rows

    def rows(self, number: int, *states: Tensor) -> tuple[Tensor, ...]:
        """Return states (B, T, n) of a batch at its real tokens, as rows (r, n)."""
        return tuple(state[self.masks[number]] for state in states)

    def row_weights(self, number: int) -> Tensor:
        """Return how often each row of a batch counts, (r,)."""
        weights = torch.ones(self.masks[number].shape, device=self.device)
        if self.weigh_first_token:
            weights[:, 0] = FIRST_TOKEN_WEIGHT
        return weights[self.masks[number]]

    def moments(self, xs: States, ys: States) -> Moments:
        """Return the second moments of states at real tokens."""
        moments = Moments(xs[0].shape[-1], ys[0].shape[-1], self.device)
        for number, (x, y) in enumerate(zip(xs, ys, strict=True)):
            moments.add(*self.rows(number, x, y), self.row_weights(number))
        return moments

    def plain_moments(self, x: Tensor, y: Tensor) -> Moments:
        """Return the second moments of rows x (r, n) and y (r, p)."""
        moments = Moments(x.shape[1], y.shape[1], self.device)
        moments.add(x, y)
        return moments


@dataclass
class TeacherStates:
    """What a teacher layer computes: its states in the middle and at the end.

    deviations: (B, T, 1), standard deviations of what the LayerNorm of each half reads.
    activation_deviation: (I,) of each neuron over all tokens.
    taken: (I,), neurons that a student layer has taken over.
    """

    layer: BertLayer
    middles: States = field(default_factory=list)
    middle_deviations: States = field(default_factory=list)
    outputs: States = field(default_factory=list)
    output_deviations: States = field(default_factory=list)
    activation_deviation: Tensor | None = None
    taken: Tensor | None = None


def _teacher_columns(head: int, heads: int, teacher_heads: int, width: int) -> slice:
    """Return the columns of the teacher's heads that a student head stands for."""
    first = head * teacher_heads // heads
    last = max((head + 1) * teacher_heads // heads, first + 1)
    return slice(first * width, last * width)


def _tables(teacher: BertModel) -> dict[str, Tensor]:
    """Return the teacher's embedding tables (rows, D) as its states see them, in fp64.

    A row is centred, weighted by LayerNorm's gamma and, where the tables are narrower than the
    model, mapped to its width. A table that an architecture lacks has no rows.
    """
    embeddings = teacher.embeddings
    gamma = embeddings.LayerNorm.weight.double()
    mapping = getattr(embeddings, "projection", None)
    tables = {}
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        table = getattr(embeddings, name, None)
        if table is None:
            tables[name] = gamma.new_zeros(0, teacher.config.hidden_size)
            continue
        rows = table.weight.to(torch.float64, copy=True)  # the largest table: changed in place
        rows -= rows.mean(1, keepdim=True)
        rows *= gamma
        tables[name] = rows if mapping is None else rows @ mapping.weight.double().T
    return tables


def _pooled(pooler: nn.Module, first: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the student's tanh is to be fed with, and the teacher's pooled vectors (B, D)."""
    if type(pooler) is BertPooler:
        inner = pooler.dense(first)
        return inner, torch.tanh(inner)
    pooled = pooler(first[:, None])
    # Of another activation: small enough that tanh is nearly linear.
    return pooled / (3 * pooled.std(0)).clamp_min(1e-6), pooled
