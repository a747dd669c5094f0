"""Bugs that engines have had, or could have: each an operator table that is wrong in one place.

`FAULTS` maps a name to the families that it concerns, the operator that must be named, and a table. Each is the
definition but for one operator, which gets other arguments or gives something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch

from tiefsee.model import Network
from tiefsee.ops import Operators, reference
from tiefsee.ops.weight import Packing, Weight

LATENT = ("v2", "v3", "v3.2")
ALL = (*LATENT, "v4")


@dataclass(frozen=True)
class Fault:
    """`change(ops, definition, *arguments)` stands for the operator; `packed`: on FP8 weights only."""

    operator: str
    families: tuple[str, ...]
    change: Callable[..., Any]
    packed: bool = False
    also: tuple[str, ...] = ()  # operators that call it

    def table(self) -> Operators:
        ops = Operators()
        definition = getattr(ops, self.operator)
        setattr(ops, self.operator, lambda *a, **k: self.change(ops, definition, *a, **k))
        return ops


FAULTS: dict[str, Fault] = {}


def fault(name: str, operator: str, *families: str, packed: bool = False, also: tuple[str, ...] = ()):
    def enter(change):
        FAULTS[name] = Fault(operator, families, change, packed, also)
        return change

    return enter


# -------------------------------------------------------------------------------------------- RoPE


@fault("RoPE in the other layout", "rotate_pairs", *ALL)
def _(ops, rotate, x, cos, sin):
    return reference.rotate_halves(x, cos, sin)


@fault("indexer's RoPE in the other layout", "rotate_halves", "v3.2")
def _(ops, rotate, x, cos, sin):
    return reference.rotate_pairs(x, cos, sin)


@fault("RoPE turns the other way", "rotate_pairs", *ALL)
def _(ops, rotate, x, cos, sin):
    return rotate(x, cos, -sin)


@fault("positions off by one", "rotate_pairs", *ALL)
def _(ops, rotate, x, cos, sin):
    return rotate(x, cos.roll(1, 0), sin.roll(1, 0))


@fault("one channel pair is not turned", "rotate_pairs", *ALL)
def _(ops, rotate, x, cos, sin):
    out = rotate(x, cos, sin).clone()
    out[..., -2:] = x[..., -2:]
    return out


# ------------------------------------------------------------------------------ norms and products


@fault("eps of 1e-5 instead of 1e-6", "rms_norm", *ALL)
def _(ops, norm, x, weight, eps):
    return norm(x, weight, 1e-5)


@fault("norm weight left out", "rms_norm", *ALL)
def _(ops, norm, x, weight, eps):
    return norm(x, None, eps)


@fault("norm weight is 1 + w", "rms_norm", *ALL)
def _(ops, norm, x, weight, eps):
    return norm(x, None if weight is None else 1 + weight, eps)


@fault("layer norm without its bias", "layer_norm", "v3.2")
def _(ops, norm, x, weight, bias, eps):
    return norm(x, weight, torch.zeros_like(bias), eps)


@fault("scales transposed", "linear", *ALL, packed=True)
def _(ops, linear, x, weight, bias=None):
    rows, columns = weight.scale.shape if isinstance(weight, Weight) else (0, 0)
    if rows and columns > 1:
        size = max(rows, columns)
        square = weight.scale.new_ones(size, size)
        square[:rows, :columns] = weight.scale
        weight = Weight(weight.data, square.T[:rows, :columns], weight.packing)
    return linear(x, weight, bias)


@fault("scales of other blocks", "linear", *ALL, packed=True)
def _(ops, linear, x, weight, bias=None):
    if isinstance(weight, Weight):
        block = weight.packing.block
        wide = weight.scale.repeat(1, 2)
        weight = Weight(weight.data, wide, Packing("fp8", (block[0], block[1] // 2)))
    return linear(x, weight, bias)


@fault("one scale for the whole matrix", "linear", *ALL, packed=True)
def _(ops, linear, x, weight, bias=None):
    if isinstance(weight, Weight):
        weight = Weight(weight.data, weight.scale.mean().expand_as(weight.scale), weight.packing)
    return linear(x, weight, bias)


@fault("last input channel lost", "linear", *ALL, also=("run_experts",))
def _(ops, linear, x, weight, bias=None):
    return linear(torch.cat((x[..., :-1], torch.zeros_like(x[..., -1:])), -1), weight, bias)


@fault("gate and up swapped", "swiglu", *ALL)
def _(ops, swiglu, gate, up, limit):
    return swiglu(up, gate, limit)


@fault("SwiGLU is not clamped", "swiglu", "v4")
def _(ops, swiglu, gate, up, limit):
    return swiglu(gate, up, None)


@fault("groups of the output projection shuffled", "grouped_linear", "v4")
def _(ops, linear, x, weight):
    return linear(x.roll(1, 1), weight)


# ----------------------------------------------------------------------------------------- experts


@fault("softmax instead of sigmoid", "router_scores", "v3", "v3.2")
def _(ops, scores, hidden, weight, function):
    return scores(hidden, weight, "softmax")


@fault("softplus without its root", "router_scores", "v4")
def _(ops, scores, hidden, weight, function):
    return scores(hidden, weight, function).square()


@fault("expert bias of the neighbour", "select_experts", "v3", "v3.2", "v4")
def _(ops, select, scores, bias, router):
    return select(scores, None if bias is None else bias.roll(1), router)


@fault("expert bias left out", "select_experts", "v3", "v3.2", "v4")
def _(ops, select, scores, bias, router):
    return select(scores, None, router)


@fault("groups count by their best expert", "select_experts", "v3", "v3.2")
def _(ops, select, scores, bias, router):
    return select(scores, bias, replace(router, selection="group_limited_greedy"))


@fault("of equal experts the last", "select_experts", *ALL)
def _(ops, select, scores, bias, router):
    last = scores.shape[1] - 1
    return last - select(scores.flip(1), None if bias is None else bias.flip(0), router)


@fault("bias added to the weights", "expert_weights", "v3", "v3.2", "v4")
def _(ops, weights, scores, experts, router):
    return weights(scores + 0.1 * torch.arange(scores.shape[1]).cos(), experts, router)


@fault("routed scaling factor left out", "expert_weights", "v3", "v3.2", "v4")
def _(ops, weights, scores, experts, router):
    return weights(scores, experts, replace(router, routed_scaling_factor=1.0))


@fault("weights normed, or not, the other way", "expert_weights", *ALL)
def _(ops, weights, scores, experts, router):
    return weights(scores, experts, replace(router, norm_topk_prob=not router.norm_topk_prob))


@fault("gate and up of the experts swapped", "run_experts", *ALL)
def _(ops, run, hidden, experts, weights, w1, w2, w3, *rest):
    return run(hidden, experts, weights, w3, w2, w1, *rest)


@fault("experts off by one", "run_experts", *ALL)
def _(ops, run, hidden, experts, weights, w1, *rest):
    return run(hidden, (experts + 1) % len(w1), weights, w1, *rest)


@fault("the last pick of each token is lost", "run_experts", *ALL)
def _(ops, run, hidden, experts, weights, *rest):
    return run(hidden, experts, torch.cat((weights[:, :-1], torch.zeros_like(weights[:, -1:])), 1), *rest)


@fault("routing in one piece, without the bias", "route", "v3", "v3.2", "v4")
def _(ops, route, hidden, weight, bias, router, tokens, experts_of_token):
    return Operators().route(hidden, weight, None, router, tokens, experts_of_token)


@fault("routing in one piece, weights of other experts", "route", *ALL)
def _(ops, route, *arguments):
    experts, weights = Operators().route(*arguments)
    return experts, weights.roll(1, 1)


# ------------------------------------------------------------------------------------- attention


class Altered:
    """A cache view whose rows are not all what was written."""

    def __init__(self, view, change):
        self._view, self._change = view, change

    def __getattr__(self, name):
        return getattr(self._view, name)

    def history(self, stream, layer, segment, num_entries):
        rows = self._view.history(stream, layer, segment, num_entries)
        return self._change(rows.clone()) if len(rows) else rows

    def recent(self, stream, layer, segment, num_rows):
        rows = self._view.recent(stream, layer, segment, num_rows)
        return None if rows is None else self._change(rows.clone())


def stale(rows):
    rows[len(rows) // 2] = rows[len(rows) // 2 - 1]
    return rows


def swapped(rows):
    """Two pages in the wrong order: of 128 rows, as Ascend has them."""
    half = min(128, len(rows) // 2)
    return torch.cat((rows[half : 2 * half], rows[:half], rows[2 * half :]))


def latent(name, *families):
    return fault(name, "latent_attention", *(families or LATENT))


@latent("rope part of the latent dropped")
def _(ops, attend, q, rope, wkv, view, layer, scale, value, picks=None):
    return attend(q, torch.zeros_like(rope), wkv, view, layer, scale, value, picks)


@latent("softmax scale without the rope part")
def _(ops, attend, q, rope, wkv, view, layer, scale, value, picks=None):
    return attend(q, rope, wkv, view, layer, scale * (1 + rope.shape[-1] / q.shape[-1]) ** 0.5, value, picks)


@latent("mask lets the next key through")
def _(ops, attend, *arguments):
    hidden = reference._hidden
    with patch.object(reference, "_hidden", lambda tile, first, *rest: hidden(tile, first + 1, *rest)):
        return attend(*arguments)


@latent("mask hides the token itself")
def _(ops, attend, *arguments):
    hidden = reference._hidden

    def narrow(tile, first, num_keys, pick, like):
        out = hidden(tile, first, num_keys, pick, like)
        rows = torch.arange(tile.start, tile.stop).unsqueeze(1) + first
        return out | ((torch.arange(num_keys) == rows) & (rows > 0))

    with patch.object(reference, "_hidden", narrow):
        return attend(*arguments)


@latent("heads shuffled")
def _(ops, attend, *arguments):
    return attend(*arguments).roll(1, 1)


@latent("one stale row in the cache")
def _(ops, attend, q, rope, wkv, view, *rest):
    return attend(q, rope, wkv, Altered(view, stale), *rest)


@latent("two entries of the block table swapped")
def _(ops, attend, q, rope, wkv, view, *rest):
    return attend(q, rope, wkv, Altered(view, swapped), *rest)


@latent("picks of the indexer ignored", "v3.2")
def _(ops, attend, q, rope, wkv, view, layer, scale, value, picks=None):
    return attend(q, rope, wkv, view, layer, scale, value, None)


def window(name):
    return fault(name, "window_attention", "v4")


@window("sink left out")
def _(ops, attend, q, rows, view, layer, width, sink, *rest):
    return attend(q, rows, view, layer, width, torch.full_like(sink, -torch.inf), *rest)


@window("window one row too short")
def _(ops, attend, q, rows, view, layer, width, *rest):
    return attend(q, rows, view, layer, width - 1, *rest)


@window("entries visible one token too early")
def _(ops, attend, q, rows, view, layer, width, sink, scale, entries=None, ratio=0, picks=None):
    plain = reference._window_segment

    def early(query, keys, start, *others):
        return plain(query, keys, start + 1, *others)

    with patch.object(reference, "_window_segment", early):
        return attend(q, rows, view, layer, width, sink, scale, entries, ratio, picks)


@window("one stale row in the ring")
def _(ops, attend, q, rows, view, *rest):
    return attend(q, rows, Altered(view, stale), *rest)


@window("heads of the window attention shuffled")
def _(ops, attend, *arguments):
    return attend(*arguments).roll(1, 1)


# -------------------------------------------------------------------- indexer, compressor, mHC


@fault("indexer without ReLU", "index_scores", "v3.2", "v4")
def _(ops, scores, query, weights, keys):
    return torch.einsum("ti,tij,sj->ts", weights.float(), query.float(), keys.float())


@fault("indexer's heads not weighted", "index_scores", "v3.2", "v4")
def _(ops, scores, query, weights, keys):
    return scores(query, weights.mean(1, keepdim=True).expand_as(weights), keys)


@fault("one entry too few", "select_entries", "v3.2", "v4")
def _(ops, select, scores, visible, k):
    picks = select(scores, visible, k)
    return None if picks is None else torch.cat((picks[:, :-1], picks[:, :1]), 1)


@fault("of equal entries the last", "select_entries", "v3.2", "v4")
def _(ops, select, scores, visible, k):
    if scores.shape[1] <= k:
        return None
    last = scores.shape[1] - 1
    hidden = scores.masked_fill(torch.arange(last + 1) >= visible.unsqueeze(1), -torch.inf)
    return last - reference.top_k_stable(hidden.flip(1), k)


@fault("keys picked in one piece, one too early", "pick_keys", "v3.2")
def _(ops, pick, *arguments):
    return [None if p is None else (p - 1).clamp(min=0) for p in Operators().pick_keys(*arguments)]


@fault("position bias of the compressor left out", "compress", "v4")
def _(ops, compress, rows, ape, ratio, overlap, has_previous):
    return compress(rows, torch.zeros_like(ape), ratio, overlap, has_previous)


@fault("compressor's two series swapped", "compress", "v4")
def _(ops, compress, rows, ape, ratio, overlap, has_previous):
    if overlap:
        rows, ape = rows.roll(rows.shape[-1] // 2, -1), ape.roll(ape.shape[-1] // 2, -1)
    return compress(rows, ape, ratio, overlap, has_previous)


@fault("Sinkhorn ends early", "hyper_mix", "v4")
def _(ops, mix, streams, fn, base, scale, iterations, eps, norm_eps):
    return mix(streams, fn, base, scale, 3, eps, norm_eps)


@fault("Sinkhorn over the wrong dim last", "hyper_mix", "v4")
def _(ops, mix, *arguments):
    collapsed, post, comb = mix(*arguments)
    return collapsed, post, comb / comb.sum(-1, keepdim=True) * 1.0001


@fault("mixing matrix transposed", "hyper_join", "v4")
def _(ops, join, streams, output, post, comb):
    return join(streams, output, post, comb.transpose(1, 2))


@fault("residual weights of the head without eps and bias", "hyper_head", "v4")
def _(ops, head, streams, fn, base, *rest):
    return head(streams, fn, torch.zeros_like(base), *rest)


def shared_expert_dropped(network: Network) -> None:
    """A linear that gives nothing for the last matrix of shared experts: it needs to know the network's weights."""
    lost = {id(m.shared_experts.w2.weight) for m in network.modules() if hasattr(m, "shared_experts")}

    def linear(x, weight, bias=None):
        out = reference.linear(x, weight, bias)
        return torch.zeros_like(out) if id(weight) in lost else out

    network.ops.linear = linear
