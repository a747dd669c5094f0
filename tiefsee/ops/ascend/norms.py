"""Norm, rotation and gated activation."""

from __future__ import annotations

import torch
from torch import Tensor

from tiefsee.ops import reference
from tiefsee.ops.ascend import rules


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """npu_rms_norm computes in float32 and rounds once, as the definition does. It takes no norm without weight."""
    if weight is None or x.dtype not in rules.FLOATS or weight.dtype not in (x.dtype, torch.float32):
        return reference.rms_norm(x, weight, eps)
    normed: Tensor = torch.ops.npu.npu_rms_norm(x, weight, eps)[0]
    return normed


def rotate(x: Tensor, cos: Tensor, sin: Tensor, mode: str) -> Tensor:
    """npu_rotary_mul in float32: cos and sin are not rounded, and the result is once.

    x [T, H, R] or [T, R] becomes BSND with B = 1; cos and sin [T, 1, R / 2] or [T, R / 2] become 1S1D.
    (npu_interleave_rope is faster still, but hands back halves: rows of the cache would differ from other devices'.)
    """
    shape = (1, len(x), -1, x.shape[-1])
    if mode == "interleave":
        cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
    else:
        cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    tables = (t.reshape(1, len(x), 1, x.shape[-1]) for t in (cos, sin))
    turned: Tensor = torch.ops.npu.npu_rotary_mul(x.float().reshape(shape), *tables, mode)
    return turned.view(x.shape).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor, limit: float | None) -> Tensor:
    """npu_swiglu, or npu_clipped_swiglu with its alpha 1 and bias 0: V4's clamp. Both round once, at the end."""
    if gate.dtype not in rules.FLOATS or gate.numel() == 0:
        return reference.swiglu(gate, up, limit)
    return swiglu_of(torch.cat((gate, up), -1), limit)


def swiglu_of(both: Tensor, limit: float | None) -> Tensor:
    """The same of gate and up side by side, [.., 2 F]."""
    if limit is None:
        plain: Tensor = torch.ops.npu.npu_swiglu(both, -1)
        return plain
    clipped: Tensor = torch.ops.npu.npu_clipped_swiglu(
        both, dim=-1, alpha=1.0, limit=limit, bias=0.0, interleaved=False
    )
    return clipped
