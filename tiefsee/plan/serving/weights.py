"""Bytes of the weights that one rank holds, by number format and by how a worker is laid out."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from tiefsee.spec import ModelSpec, checkpoint_tensors
from tiefsee.spec.cost import BYTES, Formats
from tiefsee.spec.model import MoE

# The tensors that tensor parallelism splits; all others lie on every rank. As spec/cost splits the work.
SPLIT_BY_TP = frozenset(
    (
        "embed.weight", "head.weight", "attn.wq.weight", "attn.wq_b.weight", "attn.wkv_b.weight", "attn.wo.weight",
        "attn.wo_a.weight", "attn.wo_b.weight", "attn.attn_sink", "ffn.w1.weight", "ffn.w2.weight", "ffn.w3.weight",
        "ffn.shared_experts.w1.weight", "ffn.shared_experts.w2.weight", "ffn.shared_experts.w3.weight",
    )
)  # fmt: skip


@dataclass(frozen=True)
class _Class:
    """Tensors that are stored and split alike."""

    stored: str  # linear, expert, or a format of its own
    split: str  # tp, experts or whole
    in_mtp: bool


def rank_weight_bytes(
    spec: ModelSpec, formats: Formats, tp: int, ep: int, moe_tp: int, *, with_mtp: bool = False,
    redundant_experts: int = 0,
) -> float:  # fmt: skip
    """Bytes of one rank's weights. V3 in FP8 on one rank: 673 GB, on each of 8 (TP8 EP8): 86 GB.

    Experts that `ep` does not divide, and redundant copies of hot ones, count in whole experts per rank.
    """
    num_experts = max((layer.ffn.n_routed_experts for layer in spec.layers if isinstance(layer.ffn, MoE)), default=1)
    here = math.ceil((num_experts + redundant_experts) / ep) / num_experts / moe_tp
    share = {"tp": 1.0 / tp, "experts": here, "whole": 1.0}
    width = {**BYTES, "int64": 8.0, "linear": BYTES[formats.linear], "expert": BYTES[formats.experts]}
    return sum(
        num_values * width[kind.stored] * share[kind.split]
        for kind, num_values in _weight_table(spec).items()
        if with_mtp or not kind.in_mtp
    )


@lru_cache(maxsize=32)
def _weight_table(spec: ModelSpec) -> Mapping[_Class, float]:
    """Values by class. Layers of a kind are listed once and counted, since listing V3's 46,181 tensors takes 0.2 s."""
    counts = Counter(spec.layers)
    kinds = tuple(counts)
    table: dict[_Class, float] = defaultdict(float)
    for tensor in checkpoint_tensors(replace(spec, layers=kinds)):
        prefix, _, rest = tensor.name.partition(".")
        index, _, leaf = rest.partition(".")
        times = counts[kinds[int(index)]] if prefix == "layers" else 1
        name = leaf if prefix in ("layers", "mtp") else tensor.name
        if tensor.kind == "linear":
            stored = "expert" if tensor.expert is not None else "linear"
        else:
            stored = {"fp32": "fp32", "table": "int64"}.get(tensor.kind, "bf16")
        split = "experts" if tensor.expert is not None else "tp" if name in SPLIT_BY_TP else "whole"
        table[_Class(stored, split, prefix == "mtp")] += times * tensor.num_values
    return table


__all__ = ["SPLIT_BY_TP", "rank_weight_bytes"]
