"""Changes of numerics that are right: other orders of summation, other splits, other formats, other batches.

`CHANGES` maps a name to a table (or options of an engine) and the dtype of both sides; a gate must pass them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from tiefsee.ops import Operators, reference
from tiefsee.ops.cpu import CpuOperators
from tiefsee.ops.weight import dense


@dataclass(frozen=True)
class Change:
    """`dtype` is that of the reference, `other` of the device (None: the same); `weights` packs its weights."""

    table: Callable[[], Operators] = Operators
    dtype: str = "float32"
    other: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None


class DoubleSums(Operators):
    """Everything that is summed, in float64."""

    @staticmethod
    def linear(x, weight, bias=None):
        out = F.linear(x.double(), dense(weight, x.dtype).double())
        return (out if bias is None else out + bias.double()).to(x.dtype)

    @staticmethod
    def rms_norm(x, weight, eps):
        wide = x.double()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide if weight is None else wide * weight.double()).to(x.dtype)

    @staticmethod
    def compress(rows, ape, ratio, overlap, has_previous):
        with patch.object(torch.Tensor, "float", torch.Tensor.double):
            return reference.compress(rows, ape, ratio, overlap, has_previous).to(torch.float32)

    @staticmethod
    def index_scores(query, weights, keys):
        products = torch.einsum("tij,sj->tis", query.double(), keys.double()).relu()
        return torch.einsum("ti,tis->ts", weights.double(), products).float()


class Backwards(Operators):
    """Sums from the other end."""

    @staticmethod
    def linear(x, weight, bias=None):
        return reference.linear(x.flip(-1), dense(weight, x.dtype).flip(-1), bias)

    @staticmethod
    def grouped_linear(x, weight):
        return reference.grouped_linear(x.flip(-1), dense(weight, x.dtype).flip(-1))

    @staticmethod
    def rms_norm(x, weight, eps):
        return reference.rms_norm(x.flip(-1), None if weight is None else weight.flip(-1), eps).flip(-1)

    @staticmethod
    def router_scores(hidden, weight, function):
        return reference.router_scores(hidden.flip(-1), weight.flip(-1), function)

    @staticmethod
    def index_scores(query, weights, keys):
        return reference.index_scores(query.flip(1).flip(2), weights.flip(1), keys.flip(1))


class SplitProducts(Operators):
    """Products in slices of the inner dim, added up; as split-K kernels and tensor-parallel ranks do."""

    SLICES = 5

    @classmethod
    def linear(cls, x, weight, bias=None):
        parts = zip(x.chunk(cls.SLICES, -1), dense(weight, x.dtype).chunk(cls.SLICES, -1), strict=True)
        out = cls.add([F.linear(a, b) for a, b in parts])
        return out if bias is None else out + bias

    @staticmethod
    def add(parts):
        out = parts[0]
        for part in parts[1:]:
            out = out + part
        return out


class NarrowSums(SplitProducts):
    """Partial sums rounded to BF16 after every 8 products: what accumulating in BF16 costs."""

    @classmethod
    def linear(cls, x, weight, bias=None):
        parts = zip(x.split(8, -1), dense(weight, x.dtype).split(8, -1), strict=True)
        out = cls.add([F.linear(a, b) for a, b in parts])
        return out if bias is None else out + bias


class NarrowNorm(Operators):
    """RMSNorm that squares and averages in the activations' dtype."""

    @staticmethod
    def rms_norm(x, weight, eps):
        out = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        return out if weight is None else out * weight.to(x.dtype)


class OtherExpertOrder(Operators):
    """Experts from the last to the first, and a token's sum in the order of the experts."""

    def run_experts(self, hidden, experts, weights, *rest):
        order = experts.argsort(-1, descending=True)
        return super().run_experts(hidden, experts.gather(1, order), weights.gather(1, order), *rest)


class InOnePiece(Operators):
    """Routing and picking as fused operators have them: nothing of their inside is to be seen, sums in float64."""

    def route(self, hidden, weight, bias, router, tokens, experts_of_token):
        table = DoubleSums()
        table.router_scores = lambda h, w, f: reference.router_scores(h.flip(-1), w.flip(-1), f)
        return table.route(hidden, weight, bias, router, tokens, experts_of_token)

    def pick_keys(self, *arguments):
        return DoubleSums().pick_keys(*arguments)


class SplitKeys(Operators):
    """Attention over slices of the keys, joined by their sums of exponentials (flash decoding)."""

    SLICE = 37

    def latent_attention(self, *arguments):
        with patch.object(torch.Tensor, "softmax", _sliced_softmax):
            return reference.latent_attention(*arguments)

    def window_attention(self, *arguments):
        with patch.object(torch.Tensor, "softmax", _sliced_softmax):
            return reference.window_attention(*arguments)


def _sliced_softmax(scores, dim):
    """The softmax over the last dim from partial sums of slices, each with a maximum of its own."""
    best, total = torch.full_like(scores[..., :1], -torch.inf), torch.zeros_like(scores[..., :1])
    for part in scores.split(SplitKeys.SLICE, -1):
        new = torch.maximum(best, part.amax(-1, keepdim=True))
        safe = new.masked_fill(new == -torch.inf, 0.0)
        total = total * (best - safe).exp() + (part - safe).exp().sum(-1, keepdim=True)
        best = new
    return (scores - best).exp() / total


class OtherForm(Operators):
    """Latent attention always absorbed, or always expanded: two equal forms (DeepSeek-V2, section 2.1.2)."""

    LIMIT = 1e9

    def latent_attention(self, *arguments):
        with patch.object(reference, "break_even", lambda *_: self.LIMIT):
            return reference.latent_attention(*arguments)


class Expanded(OtherForm):
    LIMIT = 0


class NarrowProbabilities(Operators):
    """Attention weights by exp2 of scores that were scaled in BF16, as fused kernels have them."""

    def latent_attention(self, *arguments):
        with patch.object(torch.Tensor, "softmax", _narrow_softmax):
            return reference.latent_attention(*arguments)

    def window_attention(self, *arguments):
        with patch.object(torch.Tensor, "softmax", _narrow_softmax):
            return reference.window_attention(*arguments)


def _narrow_softmax(scores, dim):
    powers = ((scores - scores.amax(-1, keepdim=True)) * 1.4426950408889634).exp2().bfloat16().float()
    return powers / powers.sum(-1, keepdim=True)


CHANGES: dict[str, Change] = {
    "sums in float64": Change(DoubleSums),
    "sums from the other end": Change(Backwards),
    "products split in five": Change(SplitProducts),
    "attention split over keys": Change(SplitKeys),
    "latents always absorbed": Change(OtherForm),
    "latents always expanded": Change(Expanded),
    "experts in another order": Change(OtherExpertOrder),
    "routing and picking in one piece": Change(InOnePiece),
    "routing and picking in one piece, BF16": Change(InOnePiece, dtype="bfloat16"),
    "one prompt at a time": Change(options={"max_running": 1}),
    "chunks of 32 tokens": Change(options={"max_step_tokens": 32}),
    "512 and 64 apart, pages of 128": Change(options={"cache_layout": "apart"}),
    "compiled kernels": Change(CpuOperators, dtype="bfloat16"),
    "sums in float64, BF16": Change(DoubleSums, dtype="bfloat16"),
    "sums in BF16": Change(NarrowSums, dtype="bfloat16"),
    "RMSNorm in BF16": Change(NarrowNorm, dtype="bfloat16"),
    "attention weights in BF16": Change(NarrowProbabilities, dtype="bfloat16"),
    "attention split over keys, BF16": Change(SplitKeys, dtype="bfloat16"),
    "experts in another order, BF16": Change(OtherExpertOrder, dtype="bfloat16"),
    "BF16 against float32": Change(other="bfloat16"),
    "float16 against float32": Change(other="float16"),
    "cache in BF16": Change(options={"cache_dtype": "bfloat16"}),
    "cache in FP8": Change(options={"cache_layout": "packed"}),
    "cache in FP8, BF16": Change(dtype="bfloat16", options={"cache_layout": "packed"}),
    "weights in FP8": Change(weights="fp8"),
    "weights in FP4": Change(weights="fp4"),
    "weights in INT8": Change(weights="int8"),
    "weights in INT8, BF16": Change(dtype="bfloat16", weights="int8"),
}
