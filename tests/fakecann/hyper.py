"""Hyper-connections (mHC), which only Ascend 950 has fused.

Written from op-plugin's pages torch_npu-npu_mhc_{pre,sinkhorn,post}.md; that `mhc_post` sums over the first index of
h_res is told by op-plugin's own test of it (test/test_custom_ops/test_npu_mhc_post.py), not by the page's formula.
"""
# The annotations are kinds of arguments (calls.py), not types.
# ruff: noqa: F821
# mypy: ignore-errors

from __future__ import annotations

import os

import torch

from .emulator import operator, require

STREAMS = (4, 6, 8)
HALF = (torch.float16, torch.bfloat16)


def _require_chip() -> None:
    soc = os.environ.get("FAKECANN_SOC", "")
    require(soc.startswith("Ascend950"), f"{soc} has no fused hyper-connections; Ascend 950 has")


@operator("MhcPre")
def _(
    x: T, phi: T, alpha: T, bias: T, gamma: T, norm_eps: Float, hc_eps: Float, h_in: T, h_post: T, h_res: T,
    inverse_rms: T, h_mix: T, h_pre: T,
):  # fmt: skip
    _pre(x, phi, alpha, bias, gamma, norm_eps, hc_eps, h_in, h_post, h_res)


@operator("MhcPreV2")
def _(
    x: T, phi: T, alpha: T, bias: T, gamma: T, norm_eps: Float, hc_eps: Float, inner_precise: Int32, h_in: T, h_post: T,
    h_res: T, inverse_rms: T, h_mix: T, h_pre: T,
):  # fmt: skip
    require(inner_precise == 0, "products in HF32 are not emulated")
    _pre(x, phi, alpha, bias, gamma, norm_eps, hc_eps, h_in, h_post, h_res)


def _pre(x, phi, alpha, bias, gamma, norm_eps, hc_eps, h_in, h_post, h_res) -> None:
    _require_chip()
    require(x.dtype in HALF and x.dim() == 3, f"x is {x.dtype} of {x.dim()} dims; FP16 or BF16 [T, n, D] is emulated")
    tokens, n, width = x.shape
    require(n in STREAMS and width % 16 == 0 and width <= 16384, f"n is {n}, D is {width}; n 4, 6 or 8, D in 16s")
    require(phi.dtype == alpha.dtype == bias.dtype == torch.float32, "phi, alpha and bias are float32")
    require(tuple(phi.shape) == (n * n + 2 * n, n * width) and len(alpha) == 3, "phi is [n * n + 2 n, n D], alpha [3]")
    flat = x.float().flatten(1)
    inverse = torch.rsqrt(flat.square().mean(-1, keepdim=True) + norm_eps)
    normed = flat if gamma is None else flat * gamma.float().flatten()
    pre, post, res = ((normed @ phi.T) * inverse).split((n, n, n * n), -1)
    bias_pre, bias_post, bias_res = bias.split((n, n, n * n))
    pre = torch.sigmoid(alpha[0] * pre + bias_pre) + hc_eps
    h_in.copy_((pre.unsqueeze(-1) * x.float()).sum(1))
    h_post.copy_(2 * torch.sigmoid(alpha[1] * post + bias_post))
    h_res.copy_((alpha[2] * res + bias_res).view(tokens, n, n))


@operator("MhcSinkhorn")
def _(x: T, eps: Float, iterations: Int, out: T, norm_out: T, sum_out: T):
    _require_chip()
    require(x.dtype == torch.float32 and x.shape[-1] == x.shape[-2] in STREAMS, f"x is {x.dtype}{list(x.shape)}")
    require(1 <= iterations <= 100, f"{iterations} iterations; 1 to 100")
    matrix = x.softmax(-1) + eps
    matrix = matrix / (matrix.sum(-2, keepdim=True) + eps)
    for _step in range(iterations - 1):
        matrix = matrix / (matrix.sum(-1, keepdim=True) + eps)
        matrix = matrix / (matrix.sum(-2, keepdim=True) + eps)
    out.copy_(matrix)


@operator("MhcPost")
def _(x: T, h_res: T, h_out: T, h_post: T, out: T):
    _require_chip()
    require(x.dtype in HALF and h_out.dtype == x.dtype, f"x is {x.dtype}, h_out {h_out.dtype}; FP16 or BF16")
    require(h_res.dtype == h_post.dtype == torch.float32, "h_res and h_post are float32")
    mixed = (h_res.unsqueeze(-1) * x.float().unsqueeze(-2)).sum(-3)
    out.copy_(mixed + h_post.unsqueeze(-1) * h_out.float().unsqueeze(-2))
