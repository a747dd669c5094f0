"""Bytes that ranks exchange in a forward step, and over which link.

tensor parallel   two all-reduces a layer of [T, D]: each rank sends 2 (n - 1) / n of it (ring, or the same by switch)
experts, DP       dispatch and combine: each token to the ranks of its K experts, in FP8 there and BF16 back (DeepEP)
DP in TP experts  all-gather before, reduce-scatter after

Within a node dispatch sends a token once per rank that it needs; across nodes once per node (DeepSeek-V3, section
3.2.2: at most 4 nodes by the router's groups), and from there over the near link.
"""

from __future__ import annotations

from collections.abc import Iterator

from tiefsee.hardware import Chip, link_for
from tiefsee.plan.times.terms import Transfer, transfer
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import Shard
from tiefsee.spec.model import MoE

DISPATCH_BYTES, COMBINE_BYTES, REDUCE_BYTES = 1.0, 2.0, 2.0


def forward_transfers(spec: ModelSpec, chip: Chip, shard: Shard, dp: int, tokens: float) -> Iterator[Transfer]:
    """Collectives of one step; `tokens` are those of one attention rank, `dp` the attention groups of the worker."""
    moe = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoE)]
    num_dense = len(spec.layers) - len(moe)
    row = tokens * spec.hidden_size
    if shard.tp > 1:
        link = link_for(chip, shard.tp)
        ring = 2 * (shard.tp - 1) / shard.tp * row * REDUCE_BYTES
        # With data-parallel groups the experts' exchange takes the place of the second all-reduce.
        count = 2 * len(spec.layers) if dp == 1 else len(spec.layers) + num_dense
        yield transfer("tp.all_reduce", count, ring, link)
    ranks = shard.ep * shard.moe_tp
    if dp > 1 and ranks > 1 and moe:
        yield from _exchange(spec, chip, moe[0], shard, dp, row, len(moe))


def _exchange(
    spec: ModelSpec, chip: Chip, moe: MoE, shard: Shard, dp: int, row: float, count: int
) -> Iterator[Transfer]:
    ranks = shard.ep * shard.moe_tp
    link = link_for(chip, ranks)
    row = row / shard.tp  # each rank of a TP group sends its part
    if shard.ep == 1:
        gathered = (dp - 1) * row
        yield transfer("dp.gather", count, gathered * DISPATCH_BYTES, link)
        yield transfer("dp.scatter", count, gathered * COMBINE_BYTES, link)
        return
    copies = distinct(shard.ep, moe.router.num_experts_per_tok)
    yield transfer("ep.dispatch", count, row * copies * DISPATCH_BYTES, link, experts=True)
    yield transfer("ep.combine", count, row * copies * COMBINE_BYTES, link, experts=True)


def distinct(ranks: int, choices: int) -> float:
    """Ranks, other than its own, that a token's experts lie on, in the mean: 256 of 8 choices: 7.8, 8 of 8: 4.6."""
    return (ranks - 1) * (1.0 - (1.0 - 1.0 / ranks) ** choices)
