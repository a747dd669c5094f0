"""Gating, sorting tokens by expert, and putting their results back.

Written from op-plugin's pages torch_npu-npu_moe_*.md (commit 517f2e7) and ops-transformer's aclnnMoeGatingTopK(V2).md.
"""
# The annotations are kinds of arguments (calls.py), not types.
# ruff: noqa: F821
# mypy: ignore-errors

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from .emulator import operator, require
from .quantise import int8_rows

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
SOFTMAX, SIGMOID, SQRT_SOFTPLUS = 0, 1, 2
PLAIN, INT8_ROWS = -1, 1


@operator("MoeGatingTopK")
def _(
    x: T, bias: T, k: Int, k_group: Int, groups: Int, group_select: Int, renorm: Int, norm: Int, with_norm: Bool,
    scaling: Double, eps: Double, weights: T, experts: T, norm_out: T,
):  # fmt: skip
    scores = _gate_scores(x, bias, k, k_group, groups, group_select, renorm, norm)
    choice = scores if bias is None else scores + bias.float()
    if groups > 1:
        grouped = choice.unflatten(1, (groups, -1))
        rank = grouped.amax(-1) if group_select == 0 else grouped.topk(2, dim=-1).values.sum(-1)
        best = _largest(rank, k_group)
        kept = torch.zeros_like(rank, dtype=torch.bool).scatter(1, best, True)
        choice = grouped.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(1)
    picked = _largest(choice, k)
    _finish_gate(scores, picked, renorm, norm, scaling, eps, with_norm, weights, experts, norm_out)


@operator("MoeGatingTopKV2")
def _(
    x: T, bias: T, tokens: T, table: T, k: Int, k_group: Int, groups: Int, group_select: Int, renorm: Int, norm: Int,
    with_norm: Bool, scaling: Double, eps: Double, weights: T, experts: T, norm_out: T,
):  # fmt: skip
    scores = _gate_scores(x, bias, k, k_group, groups, group_select, renorm, norm)
    require(k <= 64, f"k is {k}; by hash it is at most 64")
    require(k_group == groups or groups == x.shape[1], "by hash no groups may be left out")
    require(table.shape[1] == k and len(tokens) == len(x), "tid2eid is [tokens, k], input_ids [T]")
    picked = table[tokens.long()].long()
    _finish_gate(scores, picked, renorm, norm, scaling, eps, with_norm, weights, experts, norm_out)


def _gate_scores(x, bias, k, k_group, groups, group_select, renorm, norm) -> Tensor:
    require(x.dim() == 2 and x.dtype in FLOATS, f"x is {x.dtype}[{x.dim()} dims]; FP16, BF16 or FP32 of 2 dims")
    require(bias is None or (bias.dtype == x.dtype and bias.shape == x.shape[1:]), "bias has x's dtype, one per expert")
    require(x.numel() > 0, "empty tensors are not supported")
    experts = x.shape[1]
    require(experts <= 2048, f"{experts} experts; at most 2,048")
    require(1 <= k_group <= groups and experts % groups == 0, f"{k_group} of {groups} groups of {experts} experts")
    require(experts // groups > 2, f"{experts // groups} experts in a group; more than 2 are needed")
    require(-(-(experts // groups) // 32) * 32 * groups <= 2048, "groups, each rounded up to 32, exceed 2,048")
    require(1 <= k <= experts // groups * k_group, f"k is {k}, but {k_group} groups hold {experts // groups * k_group}")
    require(group_select in (0, 1) and renorm == 0, "group_select_mode is 0 or 1, renorm is 0")
    newest = os.environ.get("FAKECANN_SOC", "").startswith("Ascend950")
    require(norm in (SOFTMAX, SIGMOID) or (norm == SQRT_SOFTPLUS and newest), f"norm_type {norm} is not on this chip")
    wide = x.float()
    if norm == SOFTMAX:
        return wide.softmax(-1)
    return wide.sigmoid() if norm == SIGMOID else F.softplus(wide).sqrt()


def _largest(values: Tensor, count: int) -> Tensor:
    """As the page's numpy code: a stable sort, so that of equal ones the first comes first."""
    return (-values).argsort(dim=-1, stable=True)[..., :count]


def _finish_gate(scores, picked, renorm, norm, scaling, eps, with_norm, weights, experts, norm_out) -> None:
    gathered = scores.gather(1, picked)
    if norm != SOFTMAX:
        gathered = gathered / (gathered.sum(-1, keepdim=True) + eps)
    weights.copy_(gathered * scaling)
    experts.copy_(picked)
    if with_norm:
        norm_out.copy_(scores)


@operator("MoeInitRoutingV3")
def _(
    x: T, experts: T, scale: T, offset: T, active: Int, capacity: Int, num_experts: Int, drop_pad: Int, count_type: Int,
    with_counts: Bool, quant_mode: Int, expert_range: Ints, row_type: Int, sorted_x: T, places: T, counts: T,
    out_scale: T,
):  # fmt: skip
    require(x.dtype in (*FLOATS, torch.int8), f"x is {x.dtype}")
    require(experts.dtype == torch.int32 and experts.shape[0] == len(x), "expert_idx is int32 [T, K]")
    require(drop_pad == 0 and quant_mode in (PLAIN, INT8_ROWS), "only dropless routing, plain or INT8, is emulated")
    require(active in (-1, 0, experts.numel()), f"active_num {active}; all {experts.numel()} rows")
    first, last = expert_range or (0, num_experts)
    require(0 <= first < last <= num_experts, f"experts {first} to {last - 1} of {num_experts}")
    require(int(experts.min()) >= 0 and int(experts.max()) < num_experts, "an expert is out of range")
    require(row_type == 0 and with_counts and count_type == 1, "gather indices and counts are emulated")
    require(scale is None and offset is None, "scales belong to quantisation")
    flat = experts.flatten().long()
    found = [torch.nonzero(flat == expert).flatten() for expert in range(first, last)]
    order = torch.cat(found)
    rows = x[order // experts.shape[1]]
    # What lies behind the rows of the experts asked for is not said: memory as it was.
    sorted_x.copy_(torch.full_like(sorted_x, torch.nan if sorted_x.is_floating_point() else 127))
    if quant_mode == INT8_ROWS:
        require(x.dtype in FLOATS, f"x is {x.dtype}; rows of codes are not quantised again")
        rows, step = int8_rows(rows.float())
        out_scale.fill_(torch.nan)
        out_scale[: len(order)] = step
    sorted_x[: len(order)] = rows.to(sorted_x.dtype)
    places.copy_(torch.full_like(places, -1))
    places[order] = torch.arange(len(order), dtype=places.dtype)
    counts.copy_(torch.tensor([len(rows) for rows in found]))


@operator("MoeFinalizeRoutingV4")
def _(
    rows: T, places: T, skip1: T, skip2: T, bias: T, scales: T, experts: T, unused1: T, unused2: T, unused3: T,
    unused4: T, drop_pad: Int, range1: Ints, range2: Ints, range3: Ints, k: Int, out: T,
):  # fmt: skip
    require(rows.dtype in FLOATS and rows.dim() == 2, f"rows are {rows.dtype} of {rows.dim()} dims")
    require(scales is not None and scales.dtype == rows.dtype, f"scales are {scales.dtype}; they have the rows' dtype")
    require(places.dtype == torch.int32 and places.dim() == 1, "expanded_src_to_dst_row is int32 [T * K]")
    require(drop_pad == 2, "only dropless rows in row order (2) are emulated")
    require(all(t is None for t in (skip1, skip2, bias)), "skips and biases are not emulated")
    picked = rows[places.long()].unflatten(0, scales.shape)
    out.copy_((picked.float() * scales.float().unsqueeze(-1)).sum(1))
