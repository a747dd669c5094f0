"""Norm, rotation, gated activation, and writing rows into a pool.

Written from op-plugin's pages torch_npu-npu_{rms_norm,rotary_mul,swiglu,clipped_swiglu,scatter_nd_update_}.md.
"""
# The annotations are kinds of arguments (calls.py), not types.
# ruff: noqa: F821
# mypy: ignore-errors

from __future__ import annotations

import torch

from .emulator import operator, require

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
HALVES, INTERLEAVED = 0, 1


@operator("RmsNorm")
def _(x: T, gamma: T, eps: Double, out: T, rstd: T):
    require(x.dtype in FLOATS and gamma.dtype in (x.dtype, torch.float32), f"x {x.dtype} with gamma {gamma.dtype}")
    require(tuple(x.shape[x.dim() - gamma.dim() :]) == tuple(gamma.shape), "gamma has x's last dims")
    dims = list(range(x.dim() - gamma.dim(), x.dim()))
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(dims, keepdim=True) + eps)
    rstd.copy_(inverse)
    out.copy_(wide * inverse * gamma.float())


@operator("RotaryPositionEmbeddingV2")
def _(x: T, cos: T, sin: T, mode: Int, rotate: T, out: T):
    require(x.dtype in FLOATS and cos.dtype == sin.dtype == x.dtype, f"x {x.dtype}, cos {cos.dtype}, sin {sin.dtype}")
    require(x.dim() == 4 and cos.dim() == sin.dim() == 4, "BSND with cos and sin 1S1D is emulated")
    require(rotate is None, "a matrix of one's own is not emulated")
    batch, length, heads, width = x.shape
    require(tuple(cos.shape) == tuple(sin.shape) == (1, length, 1, width), f"cos is {list(cos.shape)}; 1S1D")
    require(width % 2 == 0 and width < 896, f"D is {width}; even and below 896")
    require(batch * heads < 1000 if mode == INTERLEAVED else max(batch, heads) < 1000, f"{batch} x {heads} heads")
    wide = x.float()
    if mode == HALVES:
        low, high = wide.chunk(2, -1)
        turned = torch.cat((-high, low), -1)
    else:
        require(mode == INTERLEAVED, f"mode {mode}; 0 (half) or 1 (interleave)")
        turned = torch.stack((-wide[..., 1::2], wide[..., ::2]), -1).flatten(-2)
    out.copy_(wide * cos.float() + turned * sin.float())


@operator("SwiGlu")
def _(x: T, dim: Int, out: T):
    require(x.dtype in FLOATS and x.is_contiguous() and x.numel() > 0, "FP16, BF16 or FP32, contiguous, not empty")
    require(x.shape[dim] % 2 == 0, "the dim is cut in two")
    gate, up = x.float().chunk(2, dim)
    out.copy_(gate * torch.sigmoid(gate) * up)


@operator("ClippedSwiglu")
def _(
    x: T, group_index: T, dim: Int, alpha: Double, limit: Double, bias: Double, interleaved: Bool, out: T,
):  # fmt: skip
    require(x.dtype in FLOATS and x.is_contiguous(), "FP16, BF16 or FP32, contiguous")
    require(x.dim() > 1 and x.shape[dim] % 2 == 0, "more than one dim, and an even one to cut")
    require(group_index is None and not interleaved, "groups and even-odd halves are not emulated")
    gate, up = x.float().chunk(2, dim)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    out.copy_(gate * torch.sigmoid(alpha * gate) * (up + bias))


@operator("ScatterNdUpdate")
def _(x: T, indices: T, updates: T):
    require(x.dtype == updates.dtype, f"input is {x.dtype}, updates {updates.dtype}")
    require(x.dtype in (*FLOATS, torch.bool, torch.int64, torch.int8), f"{x.dtype} is not supported")
    require(indices.dtype in (torch.int32, torch.int64) and indices.dim() >= 2, "indices are whole numbers of 2 dims")
    depth = indices.shape[-1]
    shape = (*indices.shape[:-1], *x.shape[depth:])
    require(depth <= x.dim() and tuple(updates.shape) == shape, f"updates are {list(updates.shape)}, not {list(shape)}")
    for axis in range(depth):
        inside = (indices[..., axis] >= 0) & (indices[..., axis] < x.shape[axis])
        require(bool(inside.all()), "an index is out of range")
    x[tuple(indices.long().unbind(-1))] = updates
