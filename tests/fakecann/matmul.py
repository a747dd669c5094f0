"""Matrix products in INT8, products of groups of rows, and quantisation of activations.

Written from op-plugin's pages torch_npu-npu_{quant_matmul,grouped_matmul,dynamic_quant}.md (commit 517f2e7).
Assumed: products of BF16 are summed in float32 and rounded once; codes are rounded half to even.
"""
# The annotations are kinds of arguments (calls.py), not types.
# ruff: noqa: F821
# mypy: ignore-errors

from __future__ import annotations

import torch
from torch import Tensor

from .emulator import operator, require

LARGEST_INNER = 65535
BY_ROWS = 0


@operator("DynamicQuantV2")
def _(x: T, smooth: T, group_index: T, dtype: Int32, out: T, scale: T, offset: T):
    _quantise(x, smooth, group_index, out, scale)


@operator("DynamicQuantV3")
def _(
    x: T, smooth: T, group_index: T, dtype: Int32, symmetric: Bool, mode: Text, out: T, scale: T, offset: T,
):  # fmt: skip
    require(symmetric and mode == "pertoken", f"only symmetric codes per token are emulated, not {mode!r}")
    _quantise(x, smooth, group_index, out, scale)


@operator("DynamicQuantV4")
def _(
    x: T, smooth: T, group_index: T, dtype: Int32, symmetric: Bool, mode: Text, largest: Float, out: T, scale: T,
    offset: T,
):  # fmt: skip
    require(symmetric and mode == "pertoken", f"only symmetric codes per token are emulated, not {mode!r}")
    _quantise(x, smooth, group_index, out, scale)


def _quantise(x, smooth, group_index, out, scale) -> None:
    require(x.dtype in (torch.float16, torch.bfloat16), f"x is {x.dtype}; FP16 or BF16")
    require(x.dim() > 1 and out.dtype == torch.int8, "x has more than one dim, the codes are INT8")
    require(smooth is None and group_index is None, "smooth scales are not emulated")
    wide = x.float()
    step = wide.abs().amax(-1) / 127
    scale.copy_(step)
    safe = torch.where(step == 0, torch.ones_like(step), step)
    out.copy_((wide / safe.unsqueeze(-1)).round().clamp(-128, 127))


@operator("QuantMatmulV5")
def _(
    x: T, weight: T, x_scale: T, weight_scale: T, y_scale: T, x_offset: T, weight_offset: T, y_offset: T, bias: T,
    transpose_x: Bool, transpose_weight: Bool, group_size: Int, out: T,
):  # fmt: skip
    require(x.dtype == weight.dtype == torch.int8, f"x is {x.dtype}, weight {weight.dtype}; INT8 is emulated")
    require(max(x.shape[-1], weight.shape[-1]) <= LARGEST_INNER, "a last dim exceeds 65,535")
    require(x.numel() > 0 and weight.numel() > 0, "empty tensors are not supported")
    others = (y_scale, x_offset, weight_offset, y_offset, bias)
    require(all(t is None or t.numel() == 0 for t in others), "offsets and biases are not emulated")
    require(weight_scale.dim() == 1, "scale has one dim")
    if out.dtype == torch.bfloat16:
        require(
            weight_scale.dtype in (torch.float32, torch.bfloat16), f"scale is {weight_scale.dtype} for BF16 results"
        )
    else:
        require(out.dtype == torch.float16 and weight_scale.dtype == torch.float32, "FP16 results need a float32 scale")
    require(x_scale is not None and x_scale.dtype == torch.float32, "pertoken_scale is float32")
    matrix = weight.transpose(-1, -2) if transpose_weight else weight
    sums = torch.matmul(x.to(torch.float64), matrix.to(torch.float64))  # whole numbers below 2 ** 53 are exact
    out.copy_(sums.float() * weight_scale.float() * x_scale.unsqueeze(-1))


@operator("GroupedMatmulV5")
def _(
    xs: Ts, weights: Ts, bias: Ts, scales: Ts, offset: Ts, antiquant_scale: Ts, antiquant_offset: Ts, token_scales: Ts,
    groups: T, activation: Ts, activation_scale: Ts, activation_offset: Ts, split_item: Int, group_type: Int,
    group_list_type: Int, act_type: Int, tuning: Ints, outs: Ts, act_out: Ts, dynamic_scale: Ts,
):  # fmt: skip
    require(len(xs) == len(weights) == len(outs) == 1, "one tensor of rows, one of weights, one of results")
    (x,), (weight,), (out,) = xs, weights, outs
    require(
        x.dim() == 2 and weight.dim() == 3 and split_item in (2, 3), "x [N, K], weight [E, K, O], split_item 2 or 3"
    )
    require(group_type == BY_ROWS and group_list_type in (0, 1), "groups of rows; group_list_type 0 or 1")
    require(x.is_contiguous(), "x must not be transposed")
    require(weight.is_contiguous() or weight.transpose(1, 2).is_contiguous(), "weight is whole, or its transpose is")
    require(
        groups is not None and groups.dtype == torch.int64 and len(groups) == len(weight), "group_list is int64 [E]"
    )
    require(1 < len(groups) <= 1024, f"{len(groups)} groups; 2 to 1,024")
    require(act_type == 0 and not bias and not antiquant_scale, "activation, bias, pseudo-quantisation: not emulated")
    counts = groups if group_list_type == 1 else groups.diff(prepend=groups.new_zeros(1))
    require(int(counts.sum()) <= len(x) and int(counts.min()) >= 0, "group_list has more rows than x")
    out[int(counts.sum()) :] = torch.nan  # rows of no group are not written: they hold anything
    ends = counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    _require_types(x, weight, scales, token_scales, out)
    for expert, (first, last) in enumerate(zip(starts, ends, strict=True)):
        if x.dtype == torch.int8:
            sums = (x[first:last].to(torch.float64) @ weight[expert].to(torch.float64)).float()
            out[first:last].copy_(sums * scales[0][expert].float() * token_scales[0][first:last].unsqueeze(-1))
        else:
            out[first:last].copy_(x[first:last].float() @ weight[expert].float())


def _require_types(x: Tensor, weight: Tensor, scales, token_scales, out: Tensor) -> None:
    """Table 2 of the page: which dtypes go together when group_list is a tensor."""
    if x.dtype != torch.int8:
        plain = x.dtype in (torch.float16, torch.bfloat16, torch.float32)
        require(plain and x.dtype == weight.dtype == out.dtype, f"{x.dtype} x {weight.dtype} -> {out.dtype}")
        require(not scales and not token_scales, "plain products have no scales")
        return
    require(weight.dtype == torch.int8 and bool(scales) and bool(token_scales), "INT8 needs scales of both sides")
    needed = {torch.bfloat16: torch.bfloat16, torch.float16: torch.float32}.get(out.dtype)
    require(scales[0].dtype == needed, f"scale is {scales[0].dtype} for results in {out.dtype}; it must be {needed}")
    require(token_scales[0].dtype == torch.float32, "per_token_scale is float32")
