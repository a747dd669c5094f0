"""May a fused operator take this? One function each: None, or why not, in words that end a sentence.

The limits are those of op-plugin's pages of the operators (docs/zh/custom_APIs/torch_npu, named in docs/ascend.md).
Adapters ask before every call, and a load asks once, to tell the user what will run how.
"""

from __future__ import annotations

import torch

from tiefsee.ops.ascend.chip import Generation
from tiefsee.spec.model import Router

HALF = (torch.float16, torch.bfloat16)
FLOATS = (*HALF, torch.float32)
LATENT, ROPE, HEAD, INDEX_HEAD = 512, 64, 128, 128
LATENT_HEADS = (1, 2, 4, 8, 16, 32, 64, 128)
MOST_INDEX_HEADS = 64
MOST_PICKS = 2048
LARGEST_INNER = 65535
# Queries of one request that absorbed attention takes in layout TND (vllm-ascend, attention/mla_v1.py).
MOST_ABSORBED_QUERIES = 16
HYPER_STREAMS = (4, 6, 8)

Why = str | None


def needs_half(dtype: torch.dtype) -> Why:
    return None if dtype in HALF else f"it takes FP16 and BF16, not {str(dtype).removeprefix('torch.')}"


def attention(chip: Generation, dtype: torch.dtype, heads: int, rank: int, rope: int) -> Why:
    """npu_fused_infer_attention_score_v2 over latents (query D = 512)."""
    if not chip.has_fused_attention:
        return "this chip has another one, which is not wired up"
    if (why := needs_half(dtype)) is not None:
        return why
    if (rank, rope) != (LATENT, ROPE):
        return f"it takes latents of {LATENT} and {ROPE}, not of {rank} and {rope}"
    return None if heads in LATENT_HEADS else f"it takes {', '.join(map(str, LATENT_HEADS))} heads, not {heads}"


def expanded_attention(nope: int, value: int) -> Why:
    """The same over keys and values built for each head (query D = 128)."""
    return None if nope == value == HEAD else f"it takes heads of {HEAD} and {HEAD}, not of {nope} and {value}"


def indexer(chip: Generation, dtype: torch.dtype, heads: int, width: int, top_k: int) -> Why:
    """npu_lightning_indexer."""
    if not chip.has_fused_attention:
        return "it is not wired up for this chip"
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


def grouped_matmul(dtype: torch.dtype, experts: int, is_int8: bool) -> Why:
    """npu_moe_init_routing_v2, npu_grouped_matmul, npu_moe_finalize_routing."""
    if is_int8 and (why := needs_half(dtype)) is not None:
        return f"with INT8 weights {why}"
    if dtype not in FLOATS:
        return f"it takes FP16, BF16 and FP32, not {dtype}"
    return None if 2 <= experts <= 1024 else f"it takes 2 to 1,024 experts, not {experts}"


def quant_matmul(dtype: torch.dtype, rows: int, columns: int) -> Why:
    """npu_dynamic_quant and npu_quant_matmul."""
    if (why := needs_half(dtype)) is not None:
        return why
    return None if max(rows, columns) <= LARGEST_INNER else f"it takes up to {LARGEST_INNER:,} rows and columns"


def hyper(chip: Generation, dtype: torch.dtype, streams: int, width: int) -> Why:
    """npu_mhc_pre, npu_mhc_sinkhorn, npu_mhc_post."""
    if not chip.has_hyper_connections:
        return "this chip has none"
    if (why := needs_half(dtype)) is not None:
        return why
    if streams not in HYPER_STREAMS or width % 16 or width > 16384:
        return f"it takes 4, 6 or 8 streams of up to 16,384 in 16s, not {streams} of {width}"
    return None
