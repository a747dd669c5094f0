"""Activations as INT8 or FP8 codes with their scales, the gated activation between two quantised products, and casts to
Ascend's own order of memory.

Written from op-plugin's pages torch_npu-npu_{dynamic_quant,dequant_swiglu_quant}.md (commit 517f2e7) and
torch_npu-npu_dynamic_mx_quant.md (1336983), and CANN's aclnnDynamicBlockQuantV2.md, aclnnDynamicMxQuantV3.md and
aclnnDequantSwigluQuantV2.md (ops-nn, e5c3fa9) and aclnnNpuFormatCast.md. Assumed: codes are rounded half to even; a
block of zeros has codes 0, and scale 0 (of MX: the least there is).
"""
# The annotations are kinds of arguments (calls.py), not types.
# ruff: noqa: F821
# mypy: ignore-errors

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import fractal
from .emulator import operator, require
from .matmul import BLOCK, FLOATS, HALF, MX, is_950

E4M3, E4M3_MAX, E8M0_BIAS = torch.float8_e4m3fn, 448.0, 127
ACL_INT8, ACL_E4M3 = 2, 36
ROUND_UP = 1  # scale_alg of MX: the least power of two that does not overflow
WIDEST_GATED = 7232
SPLIT_IN_HALVES, CLAMPED_HALVES = 0, 2


@operator("DynamicQuantV2")
def _(x: T, smooth: T, group_index: T, dtype: Int32, out: T, scale: T, offset: T):
    _per_token(x, smooth, group_index, out, scale)


@operator("DynamicQuantV3")
def _(
    x: T, smooth: T, group_index: T, dtype: Int32, symmetric: Bool, mode: Text, out: T, scale: T, offset: T,
):  # fmt: skip
    require(symmetric and mode == "pertoken", f"only symmetric codes per token are emulated, not {mode!r}")
    _per_token(x, smooth, group_index, out, scale)


@operator("DynamicQuantV4")
def _(
    x: T, smooth: T, group_index: T, dtype: Int32, symmetric: Bool, mode: Text, largest: Float, out: T, scale: T,
    offset: T,
):  # fmt: skip
    require(symmetric and mode == "pertoken", f"only symmetric codes per token are emulated, not {mode!r}")
    _per_token(x, smooth, group_index, out, scale)


def _per_token(x, smooth, group_index, out, scale) -> None:
    require(x.dtype in HALF, f"x is {x.dtype}; FP16 or BF16")
    require(x.dim() > 1 and out.dtype == torch.int8, "x has more than one dim, the codes are INT8")
    require(smooth is None and group_index is None, "smooth scales are not emulated")
    codes, step = int8_rows(x.float())
    out.copy_(codes)
    scale.copy_(step)


def int8_rows(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and the step of each row: its largest magnitude over 127."""
    step = wide.abs().amax(-1) / 127
    safe = torch.where(step == 0, torch.ones_like(step), step)
    return (wide / safe.unsqueeze(-1)).round().clamp(-128, 127), step


@operator("DynamicBlockQuantV2")
def _(
    x: T, min_scale: Double, rounding: Text, dtype: Int32, rows: Int, columns: Int, largest: Double, out: T, scale: T,
):  # fmt: skip
    require(x.dim() in (2, 3) and x.dtype in FLOATS and x.numel() > 0, f"x is {x.dtype} of {x.dim()} dims")
    require(is_950() or dtype == ACL_INT8, "this chip has INT8 codes only")
    require(dtype == ACL_E4M3 and out.dtype == E4M3, "E4M3 codes are emulated")
    require((rows, columns, rounding, largest) == (1, BLOCK, "rint", 0.0), "blocks of 1 x 128, 'rint' are emulated")
    require(min_scale == 0.0, "min_scale is not emulated")
    blocks = _cut(x.float(), BLOCK)
    step = blocks.abs().amax(-1) / E4M3_MAX
    safe = torch.where(step == 0, torch.ones_like(step), step)
    out.copy_((blocks / safe.unsqueeze(-1)).flatten(-2)[..., : x.shape[-1]])
    scale.copy_(step)


@operator("DynamicMxQuantV3")
def _(
    x: T, axis: Int, rounding: Text, dtype: Int32, size: Int, scale_alg: Int, largest: Double, low: Double, out: T,
    scale: T,
):  # fmt: skip
    require(is_950(), "this chip has no MX formats")
    require(x.dtype in FLOATS and axis in (-1, x.dim() - 1), f"x is {x.dtype}; the last axis is emulated")
    require(x.dtype in HALF or x.shape[-1] >= MX, "float32 rows are 32 wide or more")
    require(dtype == ACL_E4M3 and out.dtype == E4M3 and size == MX, "E4M3 codes in blocks of 32 are emulated")
    require(scale_alg == ROUND_UP and largest == 0.0 and low == 0.0, "scale_alg 1 is emulated")
    blocks = _cut(x.float(), MX)
    step = blocks.abs().amax(-1) / E4M3_MAX
    mantissa, exponent = torch.frexp(step)  # step = mantissa * 2 ** exponent, mantissa in [0.5, 1)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    code = torch.where(step == 0, torch.zeros_like(exponent), exponent + E8M0_BIAS).clamp(0, 254)
    out.copy_((blocks / torch.exp2(code.float() - E8M0_BIAS).unsqueeze(-1)).flatten(-2)[..., : x.shape[-1]])
    code = F.pad(code, (0, code.shape[-1] % 2)).unflatten(-1, (-1, 2))
    scale.view(torch.uint8).copy_(code)


def _cut(wide: Tensor, size: int) -> Tensor:
    """[.., K] -> [.., blocks, size], the last one filled up with zeros."""
    return F.pad(wide, (0, -wide.shape[-1] % size)).unflatten(-1, (-1, size))


@operator("DequantSwigluQuantV2")
def _(
    x: T, weight_scale: T, row_scale: T, bias: T, quant_scale: T, quant_offset: T, groups: T, left: Bool,
    quant_mode: Text, dtype: Int, rounding: Text, dim: Int, mode: Int, limit: Double, alpha: Double, glu_bias: Double,
    out: T, scale: T,
):  # fmt: skip
    require(x.dim() == 2 and x.dtype == torch.int32, f"x is {x.dtype}; INT32 [N, 2 H] is emulated")
    require(weight_scale is not None and row_scale is not None, "INT32 rows need both scales")
    require(weight_scale.dtype == row_scale.dtype == torch.float32, "both scales are float32")
    require(bias is None and quant_scale is None and quant_offset is None, "biases and smooth scales are not emulated")
    require(groups is not None and groups.dtype == torch.int64, "group_index is int64")
    require(tuple(weight_scale.shape) == (len(groups), x.shape[1]), f"weight_scale is {list(weight_scale.shape)}")
    require(row_scale.numel() == len(x), "one activation_scale per row")
    require(x.shape[1] % 64 == 0 and x.shape[1] <= WIDEST_GATED, f"2 H is {x.shape[1]}; in 64s, at most 7,232")
    require(int(groups.sum()) <= len(x), "group_index exceeds the rows")
    require(left and quant_mode == "dynamic" and rounding in ("", "rint"), "the left half, 'dynamic', 'rint'")
    require(mode in (SPLIT_IN_HALVES, CLAMPED_HALVES), f"swiglu_mode {mode} is not emulated")
    by_row = weight_scale.repeat_interleave(groups, 0)
    wide = x[: len(by_row)].float() * by_row * row_scale.view(-1, 1)[: len(by_row)]
    gate, up = wide.chunk(2, -1)
    if mode == CLAMPED_HALVES:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        gated = gate * torch.sigmoid(alpha * gate) * (up + glu_bias)
    else:
        gated = gate * torch.sigmoid(gate) * up
    codes, step = int8_rows(gated)
    out[: len(by_row)].copy_(codes)
    scale[: len(by_row)].copy_(step)


@operator("NpuFormatCast")
def _(source: T, out: T):
    """To FRACTAL_NZ and back; the logical matrix stays what it is."""
    require(source.shape == out.shape, "a cast keeps the shape")
    fp4 = source.handle.dtype == fractal.FP4_E2M1
    dtype = torch.uint8 if fp4 else source.dtype
    if source.handle.format in fractal.FRACTAL:
        require(not fp4, "FP4 is not cast back")
        out.copy_(source)
        return
    require(not fp4 or is_950(), "this chip has no FP4")
    logical = fractal.storage(source.handle, dtype).view(*source.shape[:-1], -1) if fp4 else source
    fractal.write(out.handle, dtype, logical)
