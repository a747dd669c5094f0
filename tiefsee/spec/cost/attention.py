"""FLOPs and bytes of one layer's attention, by its kind. T tokens, H heads on this rank, S tokens seen.

Sources: DeepSeek-V2 (arXiv 2405.04434) section 2.1 for MLA and its absorbed form; DeepSeek-V3.2-Exp's report
for the indexer; DeepSeek-V4's report, section 2, for compressed attention. Worked numbers are of V3 and V4-Pro.
"""

from __future__ import annotations

from collections.abc import Iterator

from tiefsee.spec.cost.types import BYTES, Cost, Formats, Kind, Op, Shard, Work
from tiefsee.spec.model import CompressedAttention, Indexer, LatentAttention


def linear(name: str, tokens: float, rows: float, columns: float, formats: Formats, *, kind: Kind = "matmul") -> Op:
    """[T, columns] x [columns, rows]: 2 T rows columns FLOPs; the weight once; both activations.

    V3's output projection, one token: 2 * 16384 * 7168 = 234.9 MFLOP and 117 MB in FP8.
    """
    size, own = BYTES[formats.linear], BYTES[formats.activations]
    cost = Cost(2 * tokens * rows * columns, rows * columns * size, 0.0, tokens * (rows + columns) * own)
    return Op(name, kind, formats.linear, 1, cost)


def latent_ops(a: LatentAttention, hidden: int, work: Work, formats: Formats, shard: Shard) -> Iterator[Op]:
    """MLA. The projections to the latents are on every rank; heads are split over TP."""
    T, H = work.num_tokens, a.num_attention_heads / shard.tp
    C, R, N, V = a.kv_lora_rank, a.qk_rope_head_dim, a.qk_nope_head_dim, a.v_head_dim
    if a.q_lora_rank is not None:
        yield linear("mla.query_latent", T, a.q_lora_rank, hidden, formats)
        yield linear("mla.query", T, H * (N + R), a.q_lora_rank, formats)
    else:
        yield linear("mla.query", T, H * (N + R), hidden, formats)
    yield linear("mla.latent", T, C + R, hidden, formats)
    seen = work.seen
    if a.indexer is not None:
        yield from indexer_ops(a.indexer, hidden, a.q_lora_rank or hidden, work, formats, seen, work.total_context)
        seen = min(seen, a.indexer.index_topk)
    yield from (_absorbed if work.decode or a.indexer is not None else _expanded)(a, H, seen, work, formats)
    yield linear("mla.output", T, hidden, H * V, formats)


def _absorbed(a: LatentAttention, H: float, seen: float, work: Work, formats: Formats) -> Iterator[Op]:
    """Scores and values against the latents themselves: every head reads the same C + R numbers of a token.

    V3, one token, 4,096 seen, 128 heads: (512 + 64 + 512) * 2 * 128 * 4096 = 1.14 GFLOP, 4.7 MB of cache in BF16.
    """
    T, C, R, N, V = work.num_tokens, a.kv_lora_rank, a.qk_rope_head_dim, a.qk_nope_head_dim, a.v_head_dim
    own = BYTES[formats.activations]
    up = Cost(2 * T * H * N * C, H * N * C * BYTES[formats.linear], 0.0, T * H * (N + C) * own)
    down = Cost(2 * T * H * C * V, H * C * V * BYTES[formats.linear], 0.0, T * H * (C + V) * own)
    yield Op("mla.absorb", "matmul", formats.linear, 1, up + down)
    # With an indexer each query reads rows of its own; otherwise a request's queries share one pass over its cache.
    rows = T * seen if a.indexer is not None else work.total_context
    cost = Cost(2 * T * H * (2 * C + R) * seen, 0.0, rows * (C + R) * BYTES[formats.cache], T * H * (2 * C + R) * own)
    yield Op("mla.attention", "attention", formats.attention, 1, cost)


def _expanded(a: LatentAttention, H: float, seen: float, work: Work, formats: Formats) -> Iterator[Op]:
    """Keys and values of every head are made from the latents, then attended as in multi-head attention.

    V3, 4,096 causal tokens, 128 heads: (192 + 128) * 2 * 128 * 4096 * 2048.5 = 687 GFLOP.
    """
    T, C, R, N, V = work.num_tokens, a.kv_lora_rank, a.qk_rope_head_dim, a.qk_nope_head_dim, a.v_head_dim
    own, rows = BYTES[formats.activations], work.total_context
    yield linear("mla.expand", rows, H * (N + V), C, formats)
    cost = Cost(
        2 * T * H * (N + R + V) * seen, 0.0, rows * (C + R) * BYTES[formats.cache],
        (T * H * (N + R + V) + rows * H * (N + R + V)) * own,
    )  # fmt: skip
    yield Op("mla.attention", "attention", formats.attention, 1, cost)


def indexer_ops(
    i: Indexer, hidden: int, query_rank: int, work: Work, formats: Formats, seen: float, rows: float, ratio: int = 1
) -> Iterator[Op]:
    """The lightning indexer, whole on every rank: I small heads score each cached key of J numbers, and are
    weighed. At a ratio above 1 the keys are the compressor's own entries.

    V3.2, one token, 65,536 seen: 2 * 64 * (128 + 1) * 65536 = 1.08 GFLOP and 8.4 MB of keys in FP8.
    """
    T, heads, dim = work.num_tokens, i.index_n_heads, i.index_head_dim
    yield linear("indexer.query", T, heads * dim, query_rank, formats)
    yield linear("indexer.key", T, (dim if ratio == 1 else 0) + heads, hidden, formats)
    cost = Cost(
        2 * T * heads * (dim + 1) * seen / ratio,
        0.0,
        rows / ratio * dim * BYTES["fp8"],
        T * seen / ratio * BYTES["fp32"],
    )
    yield Op("indexer.scores", "indexer", "fp8" if formats.linear in ("fp8", "fp4") else formats.linear, 1, cost)


def compressed_ops(a: CompressedAttention, hidden: int, work: Work, formats: Formats, shard: Shard) -> Iterator[Op]:
    """V4: window and compressed entries, one key/value of `head_dim` numbers for all heads.

    V4-Pro, one token, a ratio-4 layer at 1M: 128 + 1,024 entries: 4 * 128 * 512 * 1152 = 302 MFLOP.
    """
    T, H, dim = work.num_tokens, a.num_attention_heads / shard.tp, a.head_dim
    own = BYTES[formats.activations]
    yield linear("compressed.query_latent", T, a.q_lora_rank, hidden, formats)
    yield linear("compressed.query", T, H * dim, a.q_lora_rank, formats)
    yield linear("compressed.key_value", T, dim, hidden, formats)
    seen = min(work.seen, a.sliding_window)
    read = min(work.total_context, work.num_requests * a.sliding_window + T)
    if a.ratio:
        series = 2 if a.overlap else 1
        yield linear("compressor", T, 2 * series * dim, hidden, formats)
        entries, rows = work.seen / a.ratio, work.total_context / a.ratio
        if a.indexer is not None:
            yield linear("indexer.compressor", T, 2 * series * a.indexer.index_head_dim, hidden, formats)
            yield from indexer_ops(
                a.indexer, hidden, a.q_lora_rank, work, formats, work.seen, work.total_context, a.ratio
            )
            entries = min(entries, a.indexer.index_topk)
            rows = min(T * entries, rows) if not work.decode else T * entries
        seen, read = seen + entries, read + rows
    cost = Cost(4 * T * H * dim * seen, 0.0, read * dim * BYTES[formats.cache], 2 * T * H * dim * own)
    yield Op("compressed.attention", "attention", formats.attention, 1, cost)
    groups = a.o_groups / shard.tp
    down = Cost(
        2 * T * H * dim * a.o_lora_rank, H * dim * a.o_lora_rank * BYTES[formats.linear], 0.0,
        T * (H * dim + groups * a.o_lora_rank) * own,
    )  # fmt: skip
    yield Op("compressed.output_latent", "matmul", formats.linear, 1, down)
    yield linear("compressed.output", T, hidden, groups * a.o_lora_rank, formats)
