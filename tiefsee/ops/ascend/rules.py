"""May a fused operator take this? One function each: None, or why not, in words that end a sentence.

The limits are those of op-plugin's pages of the operators (docs/zh/custom_APIs/torch_npu, named in docs/ascend.md).
Adapters ask before every call, and a load asks once, to tell the user what will run how.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tiefsee.ops.ascend.chip import Generation
from tiefsee.ops.weight import Packing
from tiefsee.spec.model import Router

HALF = (torch.float16, torch.bfloat16)
FLOATS = (*HALF, torch.float32)
LATENT, ROPE, HEAD, INDEX_HEAD = 512, 64, 128, 128
LATENT_HEADS = (1, 2, 4, 8, 16, 32, 64, 128)
MOST_INDEX_HEADS = 64
MOST_PICKS = 2048
LARGEST_INNER = 65535
FP8_BLOCK, MX_BLOCK = (128, 128), (32, 32)
FP4_MULTIPLE = 64  # of rows and columns of FP4 weights: 32 bytes each way
WIDEST_GATED = 7232  # gate and up together
# Queries of one request that absorbed attention takes in layout TND (vllm-ascend, attention/mla_v1.py).
MOST_ABSORBED_QUERIES = 16
HYPER_STREAMS = (4, 6, 8)

Why = str | None


def needs_half(dtype: torch.dtype) -> Why:
    return None if dtype in HALF else f"it takes FP16 and BF16, not {str(dtype).removeprefix('torch.')}"


def attention(dtype: torch.dtype, heads: int, rank: int, rope: int) -> Why:
    """npu_fused_infer_attention_score_v2 over latents (query D = 512)."""
    if (why := needs_half(dtype)) is not None:
        return why
    if (rank, rope) != (LATENT, ROPE):
        return f"it takes latents of {LATENT} and {ROPE}, not of {rank} and {rope}"
    return None if heads in LATENT_HEADS else f"it takes {', '.join(map(str, LATENT_HEADS))} heads, not {heads}"


def expanded_attention(nope: int, value: int) -> Why:
    """The same over keys and values built for each head (query D = 128)."""
    return None if nope == value == HEAD else f"it takes heads of {HEAD} and {HEAD}, not of {nope} and {value}"


def indexer(dtype: torch.dtype, heads: int, width: int, top_k: int) -> Why:
    """npu_lightning_indexer."""
    if (why := needs_half(dtype)) is not None:
        return why
    if width != INDEX_HEAD or heads > MOST_INDEX_HEADS:
        return f"it takes up to {MOST_INDEX_HEADS} heads of {INDEX_HEAD}, not {heads} of {width}"
    return None if 1 <= top_k <= MOST_PICKS else f"it picks 1 to {MOST_PICKS}, not {top_k}"


def gating(chip: Generation, router: Router, experts: int) -> Why:
    """npu_moe_gating_top_k, on float32 logits."""
    group = experts // router.n_group
    if router.scoring_func == "sqrtsoftplus" and not chip.has_sqrt_softplus:
        return "this chip does not score by the root of softplus"
    if (router.scoring_func == "softmax") == router.norm_topk_prob:
        return "it norms the weights of sigmoid, and not those of softmax"
    if group <= 2 or -(-group // 32) * 32 * router.n_group > 2048:
        return f"it takes groups of more than 2 experts and of 2,048 in all, not {router.n_group} of {group}"
    if router.selection == "hash" and router.num_experts_per_tok > 64:
        return "it picks at most 64 by hash"
    return None


def grouped_matmul(dtype: torch.dtype, experts: int) -> Why:
    """npu_moe_init_routing_v2, npu_grouped_matmul, npu_moe_finalize_routing."""
    if dtype not in FLOATS:
        return f"it takes FP16, BF16 and FP32, not {dtype}"
    return None if 2 <= experts <= 1024 else f"it takes 2 to 1,024 experts, not {experts}"


def packed_matmul(chip: Generation, dtype: torch.dtype, packing: Packing, shape: Sequence[int]) -> Why:
    """npu_quant_matmul with rows that are quantised as they come; `shape` of the weight is [O, I]."""
    if (why := needs_half(dtype)) is not None:
        return why
    if packing.format == "int8":
        return None if shape[-1] <= LARGEST_INNER else f"it takes up to {LARGEST_INNER:,} columns, not {shape[-1]:,}"
    if packing.format == "fp4":
        return "FP4 meets FP8 in products of experts only"
    return _fp8(chip, packing)


def packed_experts(chip: Generation, dtype: torch.dtype, packing: Packing, shape: Sequence[int]) -> Why:
    """npu_grouped_matmul with such rows; `shape` of the weights is [E, O, I]."""
    if (why := needs_half(dtype)) is not None:
        return why
    if packing.format != "fp4":
        return None if packing.format == "int8" else _fp8(chip, packing)
    if not chip.has_block_products:
        return "this chip multiplies no FP4"
    rows, columns = shape[-2:]
    odd = rows % FP4_MULTIPLE or columns % FP4_MULTIPLE
    return f"it takes FP4 weights in {FP4_MULTIPLE}s, not {rows} x {columns}" if odd else None


def _fp8(chip: Generation, packing: Packing) -> Why:
    if not chip.has_block_products:
        return "this chip multiplies no FP8"
    rows, columns = packing.block
    return None if packing.block in (FP8_BLOCK, MX_BLOCK) else f"it takes blocks of 128 or 32, not {rows} x {columns}"


def gated_quant(chip: Generation, hidden: int) -> Why:
    """npu_dequant_swiglu_quant over gate and up, 2 F wide."""
    if not chip.has_gated_quant:
        return "it is not wired up for this chip"
    if hidden % 32 or 2 * hidden > WIDEST_GATED:
        return f"it takes gate and up of up to {WIDEST_GATED:,} in 64s, not {2 * hidden}"
    return None


def hyper(chip: Generation, dtype: torch.dtype, streams: int, width: int) -> Why:
    """npu_mhc_pre, npu_mhc_sinkhorn, npu_mhc_post."""
    if not chip.has_hyper_connections:
        return "this chip has none"
    if (why := needs_half(dtype)) is not None:
        return why
    if streams not in HYPER_STREAMS or width % 16 or width > 16384:
        return f"it takes 4, 6 or 8 streams of up to 16,384 in 16s, not {streams} of {width}"
    return None
