"""How weak a fault may be and still be found: the table of docs/parity.md.

python -m tests.parity.limits      V3.2 with 128 heads and 64 experts, V4; both sides float32, then both BF16

Each fault has a strength; from strong to weak it is planted until the gate passes it. `named`: its operator is
blamed, and nothing else; `seen`: end to end only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch

from tests.parity.matrix import SIZES, Model, engine, on, reference_network
from tests.tiny import prompt
from tiefsee.engine.cache import PagedView
from tiefsee.model import Network
from tiefsee.model import rope as rope_module
from tiefsee.ops import Operators
from tiefsee.parity.gate import compare, record
from tiefsee.parity.recording import Recording
from tiefsee.parity.report import Report

SIZES["heads"] = {
    "routed_scaling_factor": 2.5, "hidden_size": 256, "num_attention_heads": 128, "n_routed_experts": 64,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "moe_intermediate_size": 64, "intermediate_size": 128,
    "kv_lora_rank": 64, "index_topk": 64, "num_hidden_layers": 6,
}  # fmt: skip
# From all to what float32's own rounding hides.
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-5, 3e-6, 1e-6)
WHOLE = (1.0,)  # it is there, or not
PROMPTS = {"short": prompt(24), "long": prompt(300)}


@dataclass(frozen=True)
class Weak:
    """`plant(network, strength)` is a context in which the network of the judged side is wrong."""

    operator: str | None
    family: str
    strengths: tuple[float, ...]
    plant: Callable[[Network, float], Any]


WEAK: dict[str, Weak] = {}


def weak(name: str, operator: str | None, family: str = "v3.2", strengths: tuple[float, ...] = SHARES):
    def enter(plant):
        WEAK[name] = Weak(operator, family, strengths, contextmanager(plant))
        return plant

    return enter


def stand_for(network: Network, operator: str, function: Callable[..., Any]) -> None:
    """Another function for an operator; it is given the definition first."""
    definition = getattr(network.ops, operator)
    setattr(network.ops, operator, lambda *arguments: function(definition, *arguments))


@contextmanager
def rows_changed(network: Network, change: Callable[[torch.Tensor, int], torch.Tensor]) -> Iterator[None]:
    """What the judged engine's attention reads of the latents, but not what its operators are given by themselves."""
    history = PagedView.history

    def changed(self, stream, layer, segment, num_entries):
        rows = history(self, stream, layer, segment, num_entries)
        # An engine's own cache has room for more than one request; the small one of a single call has none to spare.
        whole = len(self.cache.plan.streams) > 1 and self.cache._ops is network.ops
        return change(rows.clone(), self.segments[segment].origin) if whole and stream == "latent" else rows

    with patch.object(PagedView, "history", changed):
        yield


# -------------------------------------------------------------------------------- something is too large


@weak("every linear too large by this share", "linear")
def _(network, strength):
    stand_for(network, "linear", lambda linear, x, w, b=None: linear(x, w, b) * (1 + strength))
    yield


@weak("one linear of a layer that is not looked at too large", None)
def _(network, strength):
    network.layers[3].attn.wo.weight.data *= 1 + strength
    yield


@weak("softmax scale too large", "latent_attention")
def _(network, strength):
    stand_for(
        network, "latent_attention",
        lambda attend, q, r, w, view, layer, scale, *rest: attend(q, r, w, view, layer, scale * (1 + strength), *rest),
    )  # fmt: skip
    yield


@weak("experts' weights too large", "expert_weights")
def _(network, strength):
    stand_for(network, "expert_weights", lambda weights, *a: weights(*a) * (1 + strength))
    yield


@weak("RMSNorm too large", "rms_norm")
def _(network, strength):
    stand_for(network, "rms_norm", lambda norm, *a: norm(*a) * (1 + strength))
    yield


@weak("RoPE's theta too large", "rope_table")
def _(network, strength):
    frequencies = rope_module.inverse_frequencies
    with patch.object(
        rope_module, "inverse_frequencies", lambda rope: frequencies(replace(rope, theta=rope.theta * (1 + strength)))
    ):
        yield


# ------------------------------------------------------------------------------------ one of many is off


@weak("one head of 128 too large", "latent_attention")
def _(network, strength):
    def one(attend, *arguments):
        out = attend(*arguments).clone()
        out[:, 77] *= 1 + strength
        return out

    stand_for(network, "latent_attention", one)
    yield


@weak("two heads of 128 exchanged", "latent_attention", strengths=WHOLE)
def _(network, strength):
    order = torch.arange(128)
    order[[40, 41]] = order[[41, 40]]
    stand_for(network, "latent_attention", lambda attend, *a: attend(*a)[:, order])
    yield


@weak("one expert bias of 64 off, as a share of the largest", "select_experts")
def _(network, strength):
    for layer in network.layers:
        if not layer.is_dense:
            layer.ffn.gate.bias.data[13] += strength * layer.ffn.gate.bias.data.abs().max()
    yield


@weak("one expert of 64 too large", "run_experts")
def _(network, strength):
    for layer in network.layers:
        if not layer.is_dense:
            layer.ffn.experts.w2.data[13] *= 1 + strength
    yield


@weak("one output channel of every linear too large", "linear")
def _(network, strength):
    def one(linear, x, w, b=None):
        out = linear(x, w, b).clone()
        out[..., 5] *= 1 + strength
        return out

    stand_for(network, "linear", one)
    yield


@weak("the last row of a tile of 64 too large", "linear")
def _(network, strength):
    def one(linear, x, w, b=None):
        out = linear(x, w, b).clone()
        out[63::64] *= 1 + strength
        return out

    stand_for(network, "linear", one)
    yield


# ----------------------------------------------------------------------------------------- coarse numbers


@weak("noise on every linear, as a share of its rows", "linear")
def _(network, strength):
    generator = torch.Generator().manual_seed(0)

    def noisy(linear, x, w, b=None):
        out = linear(x, w, b)
        return out + strength * out.norm(dim=-1, keepdim=True) / out.shape[-1] ** 0.5 * torch.randn(
            out.shape, generator=generator, dtype=out.dtype
        )

    stand_for(network, "linear", noisy)
    yield


@weak("router's scores in BF16", "router_scores", strengths=WHOLE)
def _(network, strength):
    stand_for(network, "router_scores", lambda scores, *a: scores(*a).bfloat16().float())
    yield


@weak("indexer's scores in BF16", "index_scores", strengths=WHOLE)
def _(network, strength):
    stand_for(network, "index_scores", lambda scores, *a: scores(*a).bfloat16().float())
    yield


# ------------------------------------------------------------------------------------- there, or not


@weak("YaRN's factor of the tables left out", "rope_table", strengths=WHOLE)
def _(network, strength):
    at = rope_module.Rotary.at

    def bare(self, rope, positions):
        factor = 1.0 if rope.yarn is None else rope.yarn.attention_factor
        return tuple(table / factor for table in at(self, rope, positions))

    with patch.object(rope_module.Rotary, "at", bare):
        yield


@weak("one pick too few of the indexer", "select_entries", strengths=WHOLE)
def _(network, strength):
    def short(select, scores, visible, k):
        picks = select(scores, visible, k)
        return None if picks is None else torch.cat((picks[:, :-1], picks[:, :1]), 1)

    stand_for(network, "select_entries", short)
    yield


@weak("cache: the first row of every block but the first is the one before", None, strengths=WHOLE)
def _(network, strength):
    def change(rows, origin):
        for first in range(256 - origin, len(rows), 256):
            rows[first] = rows[first - 1]
        return rows

    with rows_changed(network, change):
        yield


@weak("cache: two rows of one block exchanged", None, strengths=WHOLE)
def _(network, strength):
    def change(rows, origin):
        if len(rows) > 40:
            rows[[20, 30]] = rows[[30, 20]]
        return rows

    with rows_changed(network, change):
        yield


@weak("cache: one row of a block zero", None, strengths=WHOLE)
def _(network, strength):
    def change(rows, origin):
        if len(rows) > 40:
            rows[30] = 0
        return rows

    with rows_changed(network, change):
        yield


# ----------------------------------------------------------------------------------------------- judging


@lru_cache(maxsize=4)
def recording(model: Model, dtype: str) -> Recording:
    return record(engine(reference_network(model, dtype, None)), PROMPTS)


def judge(name: str, strength: float, dtype: str) -> Report:
    fault = WEAK[name]
    model = Model(fault.family, 0, "heads" if fault.family == "v3.2" else "wide")
    needed = recording(model, dtype)
    network = on(reference_network(model, dtype, None), Operators())
    network._rotary = None
    with fault.plant(network, strength):
        return compare(needed, engine(network))


def verdict(name: str, report: Report) -> str:
    if report.passed:
        return "-"
    if report.failure is not None:
        return "raises"
    blamed = {o.operator for o in report.blamed} - ({"run_experts"} if WEAK[name].operator == "linear" else set())
    if not blamed:
        return "seen"
    return "named" if blamed == {WEAK[name].operator} else f"other: {sorted(blamed)}"


def weakest(name: str, dtype: str) -> tuple[float | None, str]:
    """The least strength that was found, and how; (None, "-") where none was. By halving: whatever is found is found
    as well where it is stronger."""
    strengths, found = WEAK[name].strengths, (None, "-")
    low, high = 0, len(strengths)  # all before `low` are found, none from `high` on
    while low < high:
        middle = (low + high) // 2
        how = verdict(name, judge(name, strengths[middle], dtype))
        if how == "-":
            high = middle
        else:
            low, found = middle + 1, (strengths[middle], how)
    return found


def cell(found: tuple[float | None, str]) -> str:
    strength, how = found
    return "not found" if strength is None else f"{strength:g}, {how}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| fault | operator | float32 | BF16 |\n|---|---|---|---|")
    for name in [n for n in WEAK if not sys.argv[1:] or sys.argv[1] in n]:
        cells = [cell(weakest(name, dtype)) for dtype in ("float32", "bfloat16")]
        print(f"| {name} | {WEAK[name].operator or ''} | {' | '.join(cells)} |", flush=True)
