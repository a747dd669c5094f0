"""Matrix products of quantised numbers, and products of groups of rows.

Written from op-plugin's pages torch_npu-npu_{quant_matmul,grouped_matmul}.md (commit 517f2e7) and CANN's pages
aclnnQuantMatmulV5.md (ops-nn, 060fbfd) and aclnnGroupedMatmul{V5,WeightNz}.md (ops-transformer, a093e95). Modes, by
what the scales of weights and activations are for:

    per token     INT8, one scale per output and one per row                                    all chips
    blocks        FP8, float32 scales of 128 x 128 of the weight and 1 x 128 of the rows        Ascend 950
    mx            FP8 or FP4, E8M0 scales of 32 along the inner dim, on both sides              Ascend 950

Assumed: products are summed in float32 (whole numbers exactly) and rounded once.
"""
# The annotations are kinds of arguments (calls.py), not types.
# ruff: noqa: F821
# mypy: ignore-errors

from __future__ import annotations

import os

import torch
from torch import Tensor

from .emulator import operator, require
from .fractal import FP4_E2M1, FRACTAL

LARGEST_INNER = 65535
BY_ROWS = 0
BLOCK, MX = 128, 32
HALF = (torch.float16, torch.bfloat16)
FLOATS = (*HALF, torch.float32)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
E8M0 = torch.float8_e8m0fnu
DECODED_FP4 = torch.float32  # as `fractal.read` hands it out
BY_BLOCKS, BY_MX, BY_MX_FP4 = (1, BLOCK, BLOCK), (1, 1, MX), (0, 0, MX)


def is_950() -> bool:
    return os.environ.get("FAKECANN_SOC", "").startswith("Ascend950")


@operator("QuantMatmulV5", "QuantMatmulWeightNz")
def _(
    x: T, weight: T, x_scale: T, weight_scale: T, y_scale: T, x_offset: T, weight_offset: T, y_offset: T, bias: T,
    transpose_x: Bool, transpose_weight: Bool, group_size: Int, out: T,
):  # fmt: skip
    require(x.numel() > 0 and weight.numel() > 0, "empty tensors are not supported")
    others = (y_scale, x_offset, weight_offset, y_offset, bias)
    require(all(t is None or t.numel() == 0 for t in others), "offsets and biases are not emulated")
    require(not transpose_x and not transpose_weight, "torch_npu tells a transposed weight by its strides")
    require(x.dim() == weight.dim() == 2 and x.shape[1] == weight.shape[0], "x is [M, K], weight [K, N]")
    require(x_scale is not None, "pertoken_scale is given")
    groups = group_size >> 32 & 0xFFFF, group_size >> 16 & 0xFFFF, group_size & 0xFFFF
    if x.dtype == torch.int8:
        require(groups == (0, 0, 0), f"group_sizes {groups} with INT8 are not emulated")
        require(weight.dtype == torch.int8, f"x is {x.dtype}, weight {weight.dtype}")
        require(max(x.shape[-1], weight.shape[-1]) <= LARGEST_INNER, "a last dim exceeds 65,535")
        require(weight_scale.dim() == 1, "scale has one dim")
        kinds = {torch.bfloat16: (torch.float32, torch.bfloat16), torch.float16: (torch.float32,)}.get(out.dtype, ())
        require(weight_scale.dtype in kinds, f"scale is {weight_scale.dtype} for {out.dtype} results")
        require(x_scale.dtype == torch.float32 and tuple(x_scale.shape) == x.shape[:1], "pertoken_scale is float32 [M]")
        out.copy_(_whole(x, weight) * weight_scale.float() * x_scale.unsqueeze(-1))
        return
    require(is_950(), f"x is {x.dtype}; INT8 on this chip")
    require(x.handle.format not in FRACTAL and out.dtype in FLOATS, "x is ND, the result FP16, BF16 or FP32")
    require(groups in (BY_BLOCKS, BY_MX), f"group_sizes are {groups}; {BY_BLOCKS} and {BY_MX} are emulated")
    out.copy_(_scaled(x, weight, x_scale, weight_scale, "blocks" if groups == BY_BLOCKS else "mx"))


@operator("GroupedMatmulV4")
def _(
    xs: Ts, weights: Ts, bias: Ts, scales: Ts, offset: Ts, antiquant_scale: Ts, antiquant_offset: Ts, token_scales: Ts,
    groups: T, activation: Ts, activation_scale: Ts, activation_offset: Ts, split_item: Int, group_type: Int,
    group_list_type: Int, act_type: Int, outs: Ts, act_out: Ts, dynamic_scale: Ts,
):  # fmt: skip
    _grouped(xs, weights, scales, antiquant_scale, token_scales, groups, split_item, group_type, group_list_type, outs)
    require(act_type == 0 and not bias and not offset and not antiquant_offset, "biases, offsets, activations: no")


@operator("GroupedMatmulV5")
def _(
    xs: Ts, weights: Ts, bias: Ts, scales: Ts, offset: Ts, antiquant_scale: Ts, antiquant_offset: Ts, token_scales: Ts,
    groups: T, activation: Ts, activation_scale: Ts, activation_offset: Ts, split_item: Int, group_type: Int,
    group_list_type: Int, act_type: Int, tuning: Ints, outs: Ts, act_out: Ts, dynamic_scale: Ts,
):  # fmt: skip
    _grouped(xs, weights, scales, antiquant_scale, token_scales, groups, split_item, group_type, group_list_type, outs)
    require(act_type == 0 and not bias and not offset and not antiquant_offset, "biases, offsets, activations: no")


@operator("GroupedMatmulWeightNz")
def _(
    xs: Ts, weights: Ts, bias: Ts, scales: Ts, offset: Ts, antiquant_scale: Ts, antiquant_offset: Ts, token_scales: Ts,
    groups: T, activation: Ts, activation_scale: Ts, activation_offset: Ts, split_item: Int, group_type: Int,
    group_list_type: Int, act_type: Int, tuning: Ints, group_size: Int, outs: Ts, act_out: Ts, dynamic_scale: Ts,
):  # fmt: skip
    require(weights[0].handle.format in FRACTAL, "weight is FRACTAL_NZ")
    _grouped(xs, weights, scales, antiquant_scale, token_scales, groups, split_item, group_type, group_list_type, outs)
    require(act_type == 0 and not bias and not offset and not antiquant_offset, "biases, offsets, activations: no")


def _grouped(
    xs, weights, scales, antiquant_scales, token_scales, groups, split_item, group_type, group_list_type, outs
):  # fmt: skip
    require(len(xs) == len(weights) == len(outs) == 1, "one tensor of rows, one of weights, one of results")
    (x,), (weight,), (out,) = xs, weights, outs
    require(
        x.dim() == 2 and weight.dim() == 3 and split_item in (2, 3), "x [N, K], weight [E, K, O], split_item 2 or 3"
    )
    require(x.shape[1] == weight.shape[1], f"K of x is {x.shape[1]}, of weight {weight.shape[1]}")
    require(group_type == BY_ROWS and group_list_type in (0, 1), "groups of rows; group_list_type 0 or 1")
    require(x.is_contiguous(), "x must not be transposed")
    require(weight.is_contiguous() or weight.transpose(1, 2).is_contiguous(), "weight is whole, or its transpose is")
    require(
        groups is not None and groups.dtype == torch.int64 and len(groups) == len(weight), "group_list is int64 [E]"
    )
    require(1 < len(groups) <= 1024, f"{len(groups)} groups; 2 to 1,024")
    counts = groups if group_list_type == 1 else groups.diff(prepend=groups.new_zeros(1))
    require(int(counts.sum()) <= len(x) and int(counts.min()) >= 0, "group_list has more rows than x")
    # Rows of no group are not written: they hold anything.
    out[int(counts.sum()) :] = torch.nan if out.is_floating_point() else torch.iinfo(out.dtype).max
    mode = _mode(x, weight, scales, antiquant_scales, token_scales, out)
    ends = counts.cumsum(0).tolist()
    for expert, (first, last) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        rows, matrix = x[first:last], weight[expert]
        if mode == "plain":
            out[first:last].copy_(rows.float() @ matrix.float())
        elif mode == "whole numbers":
            out[first:last].copy_(rows.double() @ matrix.double())
        elif mode == "per token":
            factors = scales[0][expert].float() * token_scales[0][first:last].unsqueeze(-1)
            out[first:last].copy_(_whole(rows, matrix) * factors)
        else:
            scale = (scales or antiquant_scales)[0][expert]
            out[first:last].copy_(_scaled(rows, matrix, token_scales[0][first:last], scale, mode))


def _mode(x: Tensor, weight: Tensor, scales, antiquant_scales, token_scales, out: Tensor) -> str:
    """Which row of the pages' tables of dtypes this is."""
    if x.dtype in FLOATS:
        require(x.dtype == weight.dtype == out.dtype, f"{x.dtype} x {weight.dtype} -> {out.dtype}")
        require(not scales and not token_scales and not antiquant_scales, "plain products have no scales")
        return "plain"
    if x.dtype == torch.int8:
        require(weight.dtype == torch.int8 and not antiquant_scales, f"x is INT8, weight {weight.dtype}")
        if out.dtype == torch.int32:
            require(not scales and not token_scales, "INT32 results have no scales")
            return "whole numbers"
        require(bool(scales) and bool(token_scales), "INT8 needs scales of both sides")
        needed = {torch.bfloat16: torch.bfloat16, torch.float16: torch.float32}.get(out.dtype)
        found = scales[0].dtype
        require(found == needed, f"scale is {found} for results in {out.dtype}; it must be {needed}")
        require(token_scales[0].dtype == torch.float32, "per_token_scale is float32")
        return "per token"
    require(is_950(), f"x is {x.dtype}; FP16, BF16, FP32 or INT8 on this chip")
    require(bool(token_scales), "per_token_scale is given")
    if weight.handle.dtype == FP4_E2M1:
        fits = x.dtype == torch.float8_e4m3fn and out.dtype in HALF
        require(fits, f"FP4 weights meet E4M3 rows and give FP16 or BF16, not {x.dtype} and {out.dtype}")
        require(weight.handle.format in FRACTAL, "FP4 weights beside FP8 rows are FRACTAL_NZ")
        require(not weight.is_contiguous(), "FP4 weights beside FP8 rows are transposed")
        require(bool(antiquant_scales) and not scales, "scales of FP4 weights beside FP8 rows are antiquant_scale")
        require(x.shape[1] % 64 == 0 and weight.shape[2] % 64 == 0, "K and N of FP4 weights are multiples of 64")
        return "mx"
    require(
        bool(scales) and not antiquant_scales and out.dtype in FLOATS, "FP8 has scale; results are FP16, BF16, FP32"
    )
    return "mx" if scales[0].dtype == E8M0 else "blocks"


def _whole(x: Tensor, weight: Tensor) -> Tensor:
    """Sums of products of INT8: below 2 ** 53 they are exact in float64."""
    return torch.matmul(x.double(), weight.double()).float()


def _scaled(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, mode: str) -> Tensor:
    """Each block's sum times the scales of both sides; x [M, K], weight [K, N]."""
    inner, columns = weight.shape
    require(x.dtype in FP8, f"x is {x.dtype}; FP8")
    require(weight.dtype in (*FP8, DECODED_FP4), f"weight is {weight.dtype}; FP8 or FP4")
    same = _order(weight) == _order(weight_scale) or 1 in weight_scale.shape[:2]
    require(same, "weight and its scale are both transposed, or both not")
    if mode == "blocks":
        across, down = -(-columns // BLOCK), -(-inner // BLOCK)
        require(x_scale.dtype == weight_scale.dtype == torch.float32, "scales of blocks are float32")
        require(tuple(x_scale.shape) == (len(x), down), f"the rows' scale is {list(x_scale.shape)}; [M, K / 128]")
        require(tuple(weight_scale.shape) == (down, across), f"scale is {list(weight_scale.shape)}; [K / 128, N / 128]")
        by_row = x_scale.repeat_interleave(BLOCK, 1)[:, :inner]
        by_value = weight_scale.repeat_interleave(BLOCK, 0)[:inner].repeat_interleave(BLOCK, 1)[:, :columns]
    else:
        pairs = -(-inner // 64)
        require(x_scale.dtype == weight_scale.dtype == E8M0, "scales of MX are E8M0")
        sizes = tuple(x_scale.shape), tuple(weight_scale.shape)
        needed = (len(x), pairs, 2), (pairs, columns, 2)
        require(sizes == needed, f"scales are {sizes}; [M, K / 64, 2] and [K / 64, N, 2] are {needed}")
        by_row = x_scale.float().flatten(1).repeat_interleave(MX, 1)[:, :inner]
        by_value = weight_scale.float().movedim(2, 1).flatten(0, 1).repeat_interleave(MX, 0)[:inner]
    return (x.float() * by_row) @ (weight.float() * by_value)


def _order(tensor: Tensor) -> bool:
    """Whether the first of two dims is the outer one in memory."""
    return tensor.stride(0) >= tensor.stride(1)
