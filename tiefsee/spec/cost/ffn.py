"""FLOPs and bytes of feed-forwards, of residuals, of embedding and head."""

from __future__ import annotations

from collections.abc import Iterator

from tiefsee.spec.cost.attention import linear
from tiefsee.spec.cost.types import BYTES, Cost, Formats, Op, Shard, Work
from tiefsee.spec.model import DenseFFN, HyperConnections, MoE

# Passes over [T, D] that a layer makes element by element: norms, rotations, quantisation, residual adds.
PASSES = 12


def dense_ops(ffn: DenseFFN, hidden: int, work: Work, formats: Formats, shard: Shard) -> Iterator[Op]:
    """SwiGLU: three products. V3's dense layers: 2 * 3 * 7168 * 18432 = 793 MFLOP per token."""
    width = ffn.intermediate_size / shard.tp
    yield linear("dense.up", work.num_tokens, 2 * width, hidden, formats)
    yield linear("dense.down", work.num_tokens, hidden, width, formats)


def touched(num_experts: float, share: float, tokens: float) -> float:
    """Experts, of those on a rank, that at least one of `tokens` chooses with probability `share` each.

    V3, 256 experts, 8 of them a token: 32 tokens touch 256 (1 - (1 - 8/256)^32) = 163.
    """
    return num_experts * (1.0 - float((1.0 - share) ** tokens))


def moe_ops(moe: MoE, hidden: int, work: Work, formats: Formats, shard: Shard, imbalance: float) -> Iterator[Op]:
    """Router, routed experts of this rank, shared expert.

    `imbalance` is the fullest rank's load over the mean's: the step waits for it. V3, one token, all of it:
    8 * 2 * 3 * 7168 * 2048 = 705 MFLOP routed, 88 shared.
    """
    T, F, K, E = work.num_tokens, moe.moe_intermediate_size, moe.router.num_experts_per_tok, moe.n_routed_experts
    yield linear("router", T, E, hidden, Formats(linear="bf16"))
    everyone = work.num_tokens if work.expert_tokens is None else work.expert_tokens
    pairs = everyone * K / shard.ep * imbalance
    width = F / shard.moe_tp
    weight = 3 * hidden * width * BYTES[formats.experts] * touched(E / shard.ep, K / E, everyone)
    own = BYTES[formats.activations]
    cost = Cost(2 * pairs * 3 * hidden * width, weight, 0.0, pairs * (2 * hidden + 3 * width) * own)
    yield Op("experts.routed", "experts", formats.experts, 1, cost)
    if moe.n_shared_experts:
        width = moe.shared_intermediate_size / shard.tp
        shared = Formats(formats.linear, formats.experts, formats.activations)
        yield linear("experts.shared_up", T, 2 * width, hidden, shared)
        yield linear("experts.shared_down", T, hidden, width, shared)


def residual_ops(hyper: HyperConnections | None, hidden: int, work: Work, formats: Formats) -> Iterator[Op]:
    """Everything between the products: memory traffic. mHC keeps X streams, mixed before and after each half-layer.

    V4-Pro, mHC: 2 * 4 * 7168 * (16 + 8) * 2 = 2.8 MFLOP per token and layer, and 4 times a plain residual's bytes.
    """
    T, own = work.num_tokens, BYTES[formats.activations]
    streams = 1 if hyper is None else hyper.hc_mult
    flops = 0.0 if hyper is None else 2 * 2 * T * streams * hidden * (streams * streams + 2 * streams)
    traffic = T * hidden * own * (PASSES + (0 if hyper is None else 6 * streams))
    yield Op("residual", "vector", "fp32", 1, Cost(flops, 0.0, 0.0, traffic))


def head_ops(
    hyper: HyperConnections | None, vocabulary: int, hidden: int, rows: float, formats: Formats, shard: Shard
) -> Iterator[Op]:
    """Logits in BF16, as published checkpoints keep the head. V3, one row: 1.85 GFLOP, 1.85 GB."""
    if hyper is not None:
        yield linear("head.mhc", rows, hyper.hc_mult, hyper.hc_mult * hidden, Formats(linear="fp32"))
    yield linear("head", rows, vocabulary / shard.tp, hidden, Formats(activations=formats.activations))


def embedding_ops(hidden: int, tokens: float, formats: Formats) -> Iterator[Op]:
    yield Op("embedding", "vector", "bf16", 1, Cost(0.0, 0.0, 0.0, 2 * tokens * hidden * BYTES[formats.activations]))
