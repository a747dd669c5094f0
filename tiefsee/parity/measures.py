"""How far apart two results are: of operators, of picks, of logits. Plain functions of tensors on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
# Rows far smaller than the others (padding, tokens that nothing attends to) are measured against this share of them.
SMALL_ROW = 0.01


def row_errors(found: Tensor, needed: Tensor) -> Tensor:
    """|a - b| / |b| of each row (the last dim), as lengths of vectors, [rows]; whatever is not finite is infinite."""
    found, needed = found.double().flatten(0, -2), needed.double().flatten(0, -2)
    size = needed.norm(dim=-1)
    floor = SMALL_ROW * size.median() if len(size) else size
    error = (found - needed).norm(dim=-1) / size.clamp(min=floor).clamp(min=1e-30)
    same_infinities = (found == needed).all(-1)
    return torch.where(same_infinities, torch.zeros_like(error), error.nan_to_num(torch.inf))


def channel_errors(found: Tensor, needed: Tensor) -> Tensor:
    """The same of each channel (all rows of one place in the last dim), [C]: one wrong channel of V3's 7,168 moves a
    row by 1 %, and itself wholly."""
    width = needed.shape[-1]
    found, needed = found.double().reshape(-1, width), needed.double().reshape(-1, width)
    size = needed.norm(dim=0)
    error = (found - needed).norm(dim=0) / size.clamp(min=size.median()).clamp(min=1e-30)
    return torch.where((found == needed).all(0), torch.zeros_like(error), error.nan_to_num(torch.inf))


def scale_error(found: Tensor, needed: Tensor) -> float:
    """By how much all is too large or too small: <a - b, b> / <b, b>. What rounding leaves in each row cancels here,
    a wrong scale does not."""
    found, needed = found.double().flatten(), needed.double().flatten()
    size = float(needed @ needed)
    error = abs(float((found - needed) @ needed)) / size if size else 0.0
    return error if error == error else float("inf")


@dataclass(frozen=True)
class PickErrors:
    """Of choices [T, K]: how many rows chose otherwise, and how many of these for no near tie."""

    num_rows: int
    num_different: int
    num_wrong: int


def pick_errors(found: Tensor, needed: Tensor, scores: Tensor, visible: Tensor | None, near: float) -> PickErrors:
    """Compare choices as sets. A row is wrong if what it took instead scores worse by more than `near` of the row's
    largest score, or if it took too few or the same twice.

    `scores` [T, S] decided; `visible` [T] is how many of them stood for choice (None: all).
    """
    rows = len(needed)
    if found.shape != needed.shape:
        return PickErrors(rows, rows, rows)
    stands = torch.ones_like(scores, dtype=torch.bool)
    if visible is not None:
        stands = torch.arange(scores.shape[1]) < visible.unsqueeze(1)
    inside = (found >= 0) & (found < scores.shape[1])
    a, b = (_mask(p.clamp(0, scores.shape[1] - 1), scores) & stands for p in (found, needed))
    different = (a != b).any(-1) | ~inside.all(-1)
    limits = scores.abs().masked_fill(~stands | scores.isinf(), 0).amax(-1) * near
    lost = scores.masked_fill(~(b & ~a), -torch.inf).amax(-1)
    taken = scores.masked_fill(~(a & ~b), torch.inf).amin(-1)
    wrong = different & ((lost - taken > limits) | (a.sum(-1) != b.sum(-1)) | ~inside.all(-1))
    if near == 0:
        wrong = different
    return PickErrors(rows, int(different.sum()), int(wrong.sum()))


def _mask(picks: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.bool).scatter(1, picks, True)


def overlap(found: Tensor, needed: Tensor) -> Tensor:
    """Share of the picks [T, K] that both made, per row."""
    return (found.unsqueeze(-1) == needed.unsqueeze(-2)).any(-1).double().mean(-1)


@dataclass(frozen=True)
class Logits:
    """Logits of some positions: values [T, N] of the tokens `ids` [T, N], and the log of the sum over all, [T].

    A small vocabulary is kept whole; of a large one the best N, which hold nearly all of the probability.
    """

    ids: Tensor = field(repr=False)
    values: Tensor = field(repr=False)
    log_sum: Tensor = field(repr=False)

    @classmethod
    def of(cls, logits_TW: Tensor, num_kept: int) -> Logits:
        values, ids = logits_TW.topk(min(num_kept, logits_TW.shape[-1]), dim=-1)
        return cls(ids, values, logits_TW.double().logsumexp(-1))

    def rows(self, first: int, count: int) -> Logits:
        return Logits(*(t[first : first + count] for t in (self.ids, self.values, self.log_sum)))

    @property
    def margin(self) -> Tensor:
        """By how much the best token leads, [T]."""
        return self.values[:, 0] - self.values[:, 1]


@dataclass(frozen=True)
class LogitErrors:
    """Per position [T]: relative error, KL(needed || found) in nats, whether the best token is the same, and by how
    much the reference's best token leads, as a share of its largest logit."""

    error: Tensor
    kl: Tensor
    same_best: Tensor
    margin: Tensor


def logit_errors(found_TW: Tensor, needed: Logits) -> LogitErrors:
    """Compare on the tokens that the reference has kept; all others count as one in the KL."""
    found_TW = found_TW.double()
    values = found_TW.gather(1, needed.ids)
    log_p = needed.values.double() - needed.log_sum.unsqueeze(-1)
    log_q = values - found_TW.logsumexp(-1, keepdim=True)
    p, q = log_p.exp(), log_q.exp()
    kl = (p * (log_p - log_q)).sum(-1)
    rest_p, rest_q = (1 - p.sum(-1)).clamp(min=0), (1 - q.sum(-1)).clamp(min=1e-30)
    kl = kl + torch.where(rest_p > 1e-12, rest_p * (rest_p / rest_q).clamp(min=1e-30).log(), torch.zeros_like(rest_p))
    error = row_errors(values, needed.values)
    margin = needed.margin / needed.values.abs().amax(-1).clamp(min=1e-30)
    bad = ~found_TW.isfinite().all(-1)
    return LogitErrors(
        error.masked_fill(bad, torch.inf), kl.nan_to_num(torch.inf).masked_fill(bad, torch.inf),
        (values[:, 0] == found_TW.amax(-1)) & ~bad, margin,  # or one of equals
    )  # fmt: skip


def joined(parts: Sequence[T]) -> T:
    """Logits or LogitErrors of one stretch of positions after the other."""
    kinds: Any = fields(parts[0])  # type: ignore[arg-type]
    return type(parts[0])(*(torch.cat([getattr(p, kind.name) for p in parts]) for kind in kinds))


def in_order(parts: Sequence[tuple[int, T]]) -> T | None:
    """The same of stretches that overlap, each with its first position: the later ones count."""
    last: dict[int, T] = {}
    for first, part in parts:
        kinds: Any = fields(part)  # type: ignore[arg-type]
        for row in range(len(getattr(part, kinds[0].name))):
            last[first + row] = type(part)(*(getattr(part, kind.name)[row : row + 1] for kind in kinds))
    return joined([last[position] for position in sorted(last)]) if last else None


def first_divergence(found: Sequence[int], needed: Sequence[int]) -> int | None:
    """The first place at which two continuations differ; None where they do not."""
    return next((i for i, (a, b) in enumerate(zip(found, needed, strict=True)) if a != b), None)
