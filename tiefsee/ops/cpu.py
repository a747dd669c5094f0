"""The CPU's own operators.

A decode step reads each weight once for a handful of rows, so it is bound by memory, and the order in which
a weight is read decides. Measured on two cores of an Intel Xeon, GB/s of BF16 weights (docs/log.md):

    rows            1     2     4     8    16    which
    F.linear       21 to 24 for all              many rows
    weight @ x.T   26    26    26    26    25    up to COLUMN_ROWS
    csrc/cpu       31    30    29    22    10    up to NATIVE_ROWS
    csrc/cpu with AMX tiles: experts of up to 96 rows each; as fast as the column order, without its first time
"""

from __future__ import annotations

import ctypes
import math
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from tiefsee.layouts import ROWS
from tiefsee.ops import native, reference
from tiefsee.ops.table import Operators, parse_device
from tiefsee.ops.view import CacheView, PagedHistory
from tiefsee.ops.weight import AnyWeight, Weight, dense

NATIVE_ROWS = 4
# From here on the usual order is as fast: there are enough rows to compute on.
COLUMN_ROWS = 256
# Tokens of a step up to which each is worth reading the cache for by itself: a decode step, drafts included.
NATIVE_QUERIES = 64
# Mean rows per expert of a step up to which experts go through csrc/cpu, with AVX512-BF16 and with AMX.
NATIVE_ROWS_PER_EXPERT = {1: 6, 2: 96}

NOT_BUILT = (
    "the CPU kernels are not there (no C++ compiler was found when tiefsee was installed); "
    "torch computes everything, more slowly; install a compiler and then tiefsee again"
)

NOT_FOR_THIS_PROCESSOR = (
    "this processor has no AVX512-BF16, which the CPU kernels need; torch computes everything, more slowly"
)


def open_device(name: str) -> torch.device:
    return parse_device(name)


def operators(device: torch.device) -> Operators:
    return CpuOperators()


class CpuOperators(Operators):
    name = "cpu"

    def __init__(self) -> None:
        keep_freed_memory()
        found = native.load()
        self._native = found if found is not None and found.way else None
        if self._native is None:
            self.notes = (NOT_BUILT if found is None else NOT_FOR_THIS_PROCESSOR,)

    @staticmethod
    def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeroed by the system, page by page as it is touched: a pool for a long context costs nothing
        until somebody's context is that long. (torch.zeros writes every byte at once.)"""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes == 0:
            return torch.zeros(shape, dtype=dtype)
        return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)

    @staticmethod
    def free_bytes(device: torch.device) -> float:
        """What the kernel calls available: free, or held by caches that it would give up."""
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return float(fields["MemAvailable"].split()[0]) * 1024

    def linear(self, x: Tensor, weight: AnyWeight, bias: Tensor | None = None) -> Tensor:
        """As the definition; few BF16 rows go another way."""
        rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
        if x.dtype != torch.bfloat16 or not 0 < rows <= COLUMN_ROWS or torch.is_grad_enabled():
            return reference.linear(x, weight, bias)
        matrix, x_RI = dense(weight, x.dtype), x.reshape(rows, -1)
        if self._native is not None and rows <= NATIVE_ROWS and matrix.is_contiguous():
            out = self._native.linear(x_RI.contiguous(), matrix)
        else:
            out = torch.mv(matrix, x_RI[0]).unsqueeze(0) if rows == 1 else (matrix @ x_RI.T).T
        out = out.unflatten(0, x.shape[:-1]) if x.dim() != 2 else out
        return out if bias is None else out + bias

    def latent_attention(
        self, query_nope_THN: Tensor, query_rope_THR: Tensor, wkv_b: AnyWeight, view: CacheView, layer: int,
        scale: float, value_dim: int, picks: list[Tensor | None] | None = None,
    ) -> Tensor:  # fmt: skip
        """As the definition; a decode step in BF16 reads the cache's pages in one call of csrc/cpu."""
        if (
            self._native is None
            or query_nope_THN.dtype != torch.bfloat16
            or len(query_nope_THN) > NATIVE_QUERIES
            or (picks is not None and any(p is not None for p in picks))
            or not isinstance(view, PagedHistory)
            or view.layout != ROWS
            or view.pool("latent", layer).dtype != torch.bfloat16
        ):
            return reference.latent_attention(
                query_nope_THN, query_rope_THR, wkv_b, view, layer, scale, value_dim, picks
            )
        weight_HOC = dense(wkv_b, query_nope_THN.dtype).unflatten(0, (query_nope_THN.shape[1], -1))
        key_HNC, value_HVC = weight_HOC.split((query_nope_THN.shape[2], value_dim), dim=1)
        query_THC = reference.absorb_query(query_nope_THN, query_rope_THR, key_HNC)
        latent_THC = self._native.attention(
            query_THC.contiguous(), view.pool("latent", layer), *view.token_pages(), weight_HOC.shape[-1], scale
        )
        return reference.per_head(value_HVC, latent_THC)

    def each_expert(
        self, sorted_ND: Tensor, counts_E: Tensor,
        w1: Tensor | Weight, w2: Tensor | Weight, w3: Tensor | Weight, limit: float | None,
    ) -> Tensor:  # fmt: skip
        """As the definition; BF16 experts with not too many rows go through one call of csrc/cpu."""
        kernels = self._native
        if kernels is None or sorted_ND.dtype != torch.bfloat16 or torch.is_grad_enabled():
            return super().each_expert(sorted_ND, counts_E, w1, w2, w3, limit)
        few = len(sorted_ND) <= NATIVE_ROWS_PER_EXPERT[kernels.way] * len(counts_E)
        if not few or not (_is_plain_bf16(w1) and _is_plain_bf16(w2) and _is_plain_bf16(w3)):
            return super().each_expert(sorted_ND, counts_E, w1, w2, w3, limit)
        return kernels.experts(sorted_ND, counts_E, w1, w2, w3, limit)


def _is_plain_bf16(weight: AnyWeight) -> TypeGuard[Tensor]:
    return isinstance(weight, Tensor) and weight.dtype == torch.bfloat16 and weight.is_contiguous()


# glibc's malloc.h; 32 MB is the largest block that it can be told to keep and still give larger ones back.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGEST_KEPT_BYTES = 32 << 20


def keep_freed_memory(*, any_size: bool = False) -> bool:
    """Let malloc keep blocks below 32 MB that torch frees, or all, for the whole process; False without glibc.

    Each step allocates the same activations. By default they are given back to the system and come as new
    pages, which cost about as much to fetch as to compute on: a quarter of a small model's training step,
    a third of a prefill of 512 tokens (docs/log.md, 2026-11-24).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(M_MMAP_MAX, 0) if any_size else mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
    return bool(kept) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
