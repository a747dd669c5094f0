"""Hyper-connections (mHC) of V4 by npu_mhc_pre, npu_mhc_sinkhorn and npu_mhc_post: Ascend 950 only."""

from __future__ import annotations

import torch
from torch import Tensor


def mix(
    streams_TXD: Tensor, fn: Tensor, base: Tensor, scale: Tensor, iterations: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The block's input [T, D], `post` [T, X] and `comb` [T, X, X], as `reference.hyper_mix`."""
    npu = torch.ops.npu
    hidden_TD, post_TX, logits_TXY, *_ = npu.npu_mhc_pre(
        streams_TXD, fn.float(), scale.float(), base.float(), norm_eps=norm_eps, hc_eps=eps
    )
    comb_TXY, *_ = npu.npu_mhc_sinkhorn(logits_TXY, eps=eps, num_iters=iterations)
    return hidden_TD, post_TX, comb_TXY


def join(streams_TXD: Tensor, output_TD: Tensor, post_TX: Tensor, comb_TXY: Tensor) -> Tensor:
    """Sums over the first stream index of `comb`, as the definition does (op-plugin's own test tells which)."""
    joined: Tensor = torch.ops.npu.npu_mhc_post(streams_TXD, comb_TXY, output_TD, post_TX)
    return joined
