"""Fused attention over paged rows, the lightning indexer, and attention over chosen rows.

Written from the public pages of op-plugin (docs/zh/custom_APIs/torch_npu/torch_npu-npu_*.md, commit 517f2e7) and of
CANN's ops-transformer (attention/*/docs/aclnn*.md, a093e95; that 1 in a mask hides is said by aclnnFusedInfer..V5.md).
Only the cases of MLA are here: others are refused, not guessed. Assumed, since no page says it (docs/ascend.md has the
list): sums are float32, probabilities are rounded to the values' type before they meet them, and the sum of the
probabilities stays in float32.
"""
# The annotations are kinds of arguments (calls.py), not types.
# ruff: noqa: F821
# mypy: ignore-errors

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .emulator import operator, require
from .matmul import is_950

HALF = (torch.float16, torch.bfloat16)
MASK_WIDTH = 2048
LATENT, ROPE, HEAD = 512, 64, 128
LATENT_HEADS = (1, 2, 4, 8, 16, 32, 64, 128)
MOST_ABSORBED_QUERIES = 16
RIGHT_DOWN_CAUSAL = 3


@operator("FusedInferAttentionScoreV4")
def _(
    query: T, keys: Ts, values: Ts, pse: T, mask: T, query_ends: Ints, key_ends: Ints, dequant1: T, quant1: T,
    dequant2: T, quant2: T, quant_offset2: T, antiquant_scale: T, antiquant_offset: T, block_table: T, query_pad: T,
    key_pad: T, key_scale: T, key_offset: T, value_scale: T, value_offset: T, key_prefix: T, value_prefix: T,
    prefix_length: Ints, query_rope: T, key_rope: T, rope_scale: T, query_scale: T, sink: T, num_heads: Int,
    scale: Double, pre_tokens: Int, next_tokens: Int, layout: Text, num_key_heads: Int, sparse_mode: Int,
    inner_precise: Int, block_size: Int, antiquant_mode: Int, with_lse: Bool, key_mode: Int, value_mode: Int,
    query_mode: Int, out: T, lse: T,
):  # fmt: skip
    require(not is_950(), "this form is not there on Ascend 950; V5 is")
    given = (pse, quant1, quant2, antiquant_scale, query_pad, key_pad, key_scale, key_prefix, sink)
    _attend_all(
        query, keys, values, query_rope, key_rope, mask, query_ends, key_ends, block_table, given, num_heads, scale,
        layout, num_key_heads, sparse_mode, inner_precise, block_size, with_lse, out,
    )  # fmt: skip


@operator("FusedInferAttentionScoreV5")
def _(
    query: T, keys: Ts, values: Ts, pse: T, mask: T, query_ends: Ints, key_ends: Ints, dequant1: T, quant1: T,
    dequant2: T, quant2: T, quant_offset2: T, antiquant_scale: T, antiquant_offset: T, block_table: T, query_pad: T,
    key_pad: T, key_scale: T, key_offset: T, value_scale: T, value_offset: T, key_prefix: T, value_prefix: T,
    prefix_length: Ints, query_rope: T, key_rope: T, rope_scale: T, query_scale: T, sink: T, query_start: Ints,
    key_start: Ints, num_heads: Int, scale: Double, pre_tokens: Int, next_tokens: Int, layout: Text,
    num_key_heads: Int, sparse_mode: Int, inner_precise: Int, block_size: Int, antiquant_mode: Int, with_lse: Bool,
    key_mode: Int, value_mode: Int, query_mode: Int, pse_type: Int, out: T, lse: T,
):  # fmt: skip
    """The form of Ascend 950; in these cases it does what V4 does."""
    require(is_950(), "this form is there on Ascend 950 only")
    require(not query_start and not key_start and pse_type == 0, "parts of a sequence and pse are not emulated")
    given = (pse, quant1, quant2, antiquant_scale, query_pad, key_pad, key_scale, key_prefix, sink)
    _attend_all(
        query, keys, values, query_rope, key_rope, mask, query_ends, key_ends, block_table, given, num_heads, scale,
        layout, num_key_heads, sparse_mode, inner_precise, block_size, with_lse, out,
    )  # fmt: skip


def _attend_all(
    query, keys, values, query_rope, key_rope, mask, query_ends, key_ends, block_table, given, num_heads, scale, layout,
    num_key_heads, sparse_mode, inner_precise, block_size, with_lse, out,
) -> None:  # fmt: skip
    (key,), (value,) = keys, values
    require(query.dtype in HALF, f"query is {query.dtype}; FP16, BF16 and INT8 are supported, and INT8 is not emulated")
    same = (key, value, query_rope, key_rope)
    require(all(t is not None for t in same), "only MLA is emulated: query_rope and key_rope are given together")
    require(all(t.dtype == query.dtype for t in same), "query, key, value and their rope parts differ in dtype")
    require(all(t.is_contiguous() for t in (query, *same)), "query, key, value and rope parts must be contiguous")
    require(all(t is None for t in given), "with rope parts there is no pse, padding, prefix or pseudo-quantisation")
    require(layout == "TND", f"layout {layout} is not emulated; TND is")
    require(bool(query_ends) and bool(key_ends), "TND needs actual_seq_qlen and actual_seq_kvlen")
    require(len(query_ends) == len(key_ends) <= 4096, "one query and one key length per request, at most 4,096")
    require(query_ends == sorted(query_ends) and query_ends[-1] == len(query), "actual_seq_qlen are running sums to T")
    require(num_heads == query.shape[1], f"num_query_heads is {num_heads}, query has {query.shape[1]}")
    require(query_rope.shape == (*query.shape[:2], ROPE), f"query_rope is {list(query_rope.shape)}; its D must be 64")
    require(sparse_mode in (0, 3), f"sparse_mode {sparse_mode} is not emulated")
    require((mask is not None) == (sparse_mode == 3), "sparse_mode 3 needs the 2048 x 2048 mask, mode 0 takes none")
    require(mask is None or _is_causal_mask(mask), "the mask must be [2048, 2048], bool or int8, 1 above the diagonal")
    require(not with_lse, "softmax_lse is not emulated")
    if query.shape[-1] == LATENT:
        rows = _latent_rows(key, value, key_rope, block_table, key_ends, block_size, num_heads, num_key_heads)
        longest = max(b - a for a, b in pairwise([0, *query_ends]))
        require(longest <= MOST_ABSORBED_QUERIES, f"{longest} queries of one request; with D = 512 at most 16 in TND")
    else:
        require(query.shape[-1] == HEAD, f"D of query is {query.shape[-1]}; with rope parts it is 512 or 128")
        require(key.shape == value.shape and key.shape[-1] == HEAD, "D of query, key and value must all be 128")
        require(key_rope.shape == (*key.shape[:2], ROPE), f"key_rope is {list(key_rope.shape)}; its D must be 64")
        require(block_table is None, "pages with D = 128 are not emulated")
        require(key_ends == sorted(key_ends) and key_ends[-1] == len(key), "actual_seq_kvlen are running sums to T")
        require(num_key_heads in (0, num_heads) and key.shape[1] == num_heads, "D = 128 is emulated for MHA only")
        require(query.dtype != torch.bfloat16 or inner_precise == 0, "inner_precise is 0 in BF16")
        rows = [(key[a:b], key_rope[a:b], value[a:b]) for a, b in pairwise([0, *key_ends])]
    for (first, last), (key_s, rope_s, value_s) in zip(pairwise([0, *query_ends]), rows, strict=True):
        hidden = _after_the_query(last - first, len(key_s)) if sparse_mode == RIGHT_DOWN_CAUSAL else None
        scores = torch.einsum("thd,shd->ths", query[first:last].float(), key_s.float())
        scores += torch.einsum("thd,shd->ths", query_rope[first:last].float(), rope_s.float())
        out[first:last].copy_(_attend(scores * scale, hidden, value_s))


def _latent_rows(key, value, key_rope, block_table, lengths, block_size, num_heads, num_key_heads):
    """Rows of each request for D = 512, one key head: paged [blocks, 1, block, D] or packed [T, 1, D]."""
    require(num_heads in LATENT_HEADS, f"{num_heads} heads; with D = 512 they are one of {LATENT_HEADS}")
    require(num_key_heads == 1, "with D = 512 there is one key head")
    require(key.data_ptr() == value.data_ptr(), "with D = 512 key and value are the same memory")
    if block_table is None:
        require(key.shape[1:] == (1, LATENT) and key_rope.shape[1:] == (1, ROPE), "key is [T, 1, 512], rope [T, 1, 64]")
        require(lengths == sorted(lengths) and lengths[-1] == len(key), "actual_seq_kvlen are running sums to T")
        return [(key[a:b], key_rope[a:b], key[a:b]) for a, b in pairwise([0, *lengths])]
    _require_pages(block_table, lengths, block_size)
    require(key.shape[1:] == (1, block_size, LATENT), f"key is {list(key.shape)}; pages are [blocks, 1, block, 512]")
    require(key_rope.shape == (key.shape[0], 1, block_size, ROPE), "key_rope has other pages than key")
    found = []
    for table, length in zip(block_table, lengths, strict=True):
        pages = table[: -(-length // block_size)].long()
        rows, rope = key[pages].flatten(0, 2)[:length], key_rope[pages].flatten(0, 2)[:length]
        found.append((rows.unsqueeze(1), rope.unsqueeze(1), rows.unsqueeze(1)))
    return found


def _require_pages(block_table, lengths, block_size):
    require(block_size % 16 == 0 and 0 < block_size <= 1024, f"block_size {block_size}; a multiple of 16 up to 1,024")
    require(block_table.dtype == torch.int32 and block_table.dim() == 2, "block_table is int32 [B, M]")
    require(len(block_table) == len(lengths), "one row of block_table per request")
    require(block_table.shape[1] * block_size >= max(lengths), "block_table is too narrow for the longest request")


def _attend(scores_THS: Tensor, hidden_TS: Tensor | None, value_SHD: Tensor) -> Tensor:
    if hidden_TS is not None:
        scores_THS = scores_THS.masked_fill(hidden_TS.unsqueeze(1), -torch.inf)
    powers = (scores_THS - scores_THS.amax(-1, keepdim=True)).exp()
    total = powers.sum(-1, keepdim=True)
    return torch.einsum("ths,shd->thd", powers.to(value_SHD.dtype).float(), value_SHD.float()) / total


def _after_the_query(num_queries: int, num_keys: int) -> Tensor:
    """rightDownCausal: query i of a request sees keys up to i + num_keys - num_queries."""
    query = torch.arange(num_queries).unsqueeze(1) + num_keys - num_queries
    return torch.arange(num_keys) > query


_CAUSAL = torch.ones(MASK_WIDTH, MASK_WIDTH, dtype=torch.bool).triu(1).to(torch.uint8)


def _is_causal_mask(mask: Tensor) -> bool:
    right = mask.shape == (MASK_WIDTH, MASK_WIDTH) and mask.dtype in (torch.bool, torch.int8, torch.uint8)
    return right and torch.equal(mask.view(torch.uint8), _CAUSAL)


@operator("LightningIndexer")
def _(
    query: T, key: T, weights: T, query_ends: T, key_lengths: T, block_table: T, query_layout: Text, key_layout: Text,
    count: Int, sparse_mode: Int, pre_tokens: Int, next_tokens: Int, with_values: Bool, indices: T, values: T,
):  # fmt: skip
    require(query.dtype in HALF and key.dtype == query.dtype, f"query is {query.dtype}, key {key.dtype}; one of {HALF}")
    require(weights.dtype in (query.dtype, torch.float32), f"weights are {weights.dtype}; float32 or as query")
    require(all(t.is_contiguous() for t in (query, key, weights)), "query, key and weights must be contiguous")
    require(query_layout == "TND" and key_layout == "PA_BSND", "only TND queries over PA_BSND keys are emulated")
    require(query.shape[-1] == key.shape[-1] == 128, f"D is {query.shape[-1]}; it must be 128")
    require(query.shape[1] <= 64 and key.shape[2] == 1, "at most 64 query heads, one key head")
    require(weights.shape == query.shape[:2], "one weight per query head")
    require(1 <= count <= 2048 or (count <= 8192 and count % 1024 == 0), f"sparse_count {count}; 1 to 2,048, 3,072 ..")
    require(sparse_mode in (0, 3) and not with_values, "sparse_mode 0 or 3; values are for training")
    for name, tensor in (("actual_seq_lengths_query", query_ends), ("actual_seq_lengths_key", key_lengths)):
        require(tensor is not None and tensor.dtype == torch.int32, f"{name} must be given, in int32")
    ends, lengths, size = query_ends.tolist(), key_lengths.tolist(), key.shape[1]
    require(ends[-1] == len(query), "actual_seq_lengths_query are running sums to T")
    _require_pages(block_table, lengths, size)
    for table, length, (first, last) in zip(block_table, lengths, pairwise([0, *ends]), strict=True):
        rows = key[table[: -(-length // size)].long()].flatten(0, 1)[:length, 0]
        products = torch.einsum("thd,sd->ths", query[first:last].float(), rows.float()).relu()
        scores = torch.einsum("ths,th->ts", products, weights[first:last].float())
        if sparse_mode == RIGHT_DOWN_CAUSAL:
            scores = scores.masked_fill(_after_the_query(last - first, length), -torch.inf)
        order = scores.sort(dim=-1, descending=True, stable=True)
        picked = order.indices.masked_fill(order.values == -torch.inf, -1)[:, :count]
        indices[first:last].fill_(-1)
        indices[first:last, 0, : picked.shape[1]].copy_(picked)


@operator("SparseFlashAttention")
def _(
    query: T, key: T, value: T, indices: T, block_table: T, query_ends: T, key_lengths: T, query_rope: T, key_rope: T,
    scale: Double, sparse_block: Int, query_layout: Text, key_layout: Text, sparse_mode: Int, pre_tokens: Int,
    next_tokens: Int, attention_mode: Int, with_lse: Bool, out: T, softmax_max: T, softmax_sum: T,
):  # fmt: skip
    tensors = (query, key, value, query_rope, key_rope)
    require(query.dtype in HALF, f"query is {query.dtype}; FP16 or BF16")
    require(all(t.dtype == query.dtype for t in tensors), "query, key, value and rope parts differ in dtype")
    require(all(t.is_contiguous() for t in tensors), "query, key, value and rope parts must be contiguous")
    require(attention_mode == 2, f"attention_mode {attention_mode}; only 2 (MLA, absorbed) is supported")
    require(query_layout == "TND" and key_layout == "PA_BSND", "only TND queries over PA_BSND keys are emulated")
    require(query.shape[-1] == key.shape[-1] == LATENT and query_rope.shape[-1] == ROPE, "D is 512, of the rope 64")
    require(query.shape[1] in LATENT_HEADS and key.shape[2] == 1, f"heads are one of {LATENT_HEADS}, one key head")
    require(indices.dtype == torch.int32 and indices.dim() == 3, "sparse_indices are int32 [T, 1, K]")
    require(sparse_block == 1 and sparse_mode in (0, 3), "sparse_block_size 1, sparse_mode 0 or 3 are emulated")
    ends, lengths, size = query_ends.tolist(), key_lengths.tolist(), key.shape[1]
    require(query_ends.dtype == key_lengths.dtype == torch.int32, "lengths are int32")
    _require_pages(block_table, lengths, size)
    for table, length, (first, last) in zip(block_table, lengths, pairwise([0, *ends]), strict=True):
        pages = table[: -(-length // size)].long()
        rows, rope = (pool[pages].flatten(0, 1)[:length] for pool in (key, key_rope))
        hidden = _after_the_query(last - first, length)
        for token in range(first, last):
            picked = indices[token, 0].long()
            picked = picked[picked >= 0]
            if sparse_mode == RIGHT_DOWN_CAUSAL:
                picked = picked[~hidden[token - first, picked]]
            scores = torch.einsum("hd,shd->hs", query[token].float(), rows[picked].float())
            scores += torch.einsum("hd,shd->hs", query_rope[token].float(), rope[picked].float())
            out[token].copy_(_attend((scores * scale).unsqueeze(0), None, rows[picked])[0])
