"""The CPU's own operators.

A decode step reads each weight once for a handful of rows, so it is bound by memory, and the order in which
a weight is read decides. Measured on two cores of an Intel Xeon, GB/s of BF16 weights (docs/log.md):

    rows            1     2     4     8    16    which
    F.linear       21 to 24 for all              many rows
    weight @ x.T   26    26    26    26    25    up to COLUMN_ROWS
    csrc/cpu       31    30    29    22    10    up to NATIVE_ROWS
    csrc/cpu with AMX tiles: experts of up to 96 rows each; as fast as the column order, without its first time

FP8, FP4 and INT8 weights are unpacked in registers for up to PACKED_ROWS rows, and a few megabytes at a time for torch
beyond.
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
from tiefsee.ops.packed import Operand, PackedProducts
from tiefsee.ops.table import Operators, parse_device
from tiefsee.ops.view import CacheView, PagedHistory
from tiefsee.ops.weight import AnyWeight, Weight, dense

NATIVE_ROWS = 4
# From here on the usual order is as fast: there are enough rows to compute on.
COLUMN_ROWS = 256
# Tokens of a step up to which each is worth reading the cache for by itself: a decode step, drafts included.
NATIVE_QUERIES = 64
# Mean rows per expert of a step up to which experts go through csrc/cpu, with AVX512-BF16 and with AMX.
NATIVE_ROWS_PER_EXPERT = {1: 24, 2: 96}

# The same with packed weights: torch is faster from here on, though it waits for them to be unpacked.
PACKED_ROWS = 32
PACKED_ROWS_PER_EXPERT = 32
# Values unpacked at a time: 4 MB of BF16, which stay in a cache until torch has multiplied them.
UNPACKED_VALUES = 1 << 21

NOT_BUILT = (
    "the CPU kernels are not there (no C++ compiler was found when tiefsee was installed); "
    "torch computes everything, more slowly; install a compiler and then tiefsee again"
)

NOT_FOR_THIS_PROCESSOR = (
    "this processor has no AVX512-BF16, which the CPU kernels need; torch computes everything, more slowly"
)

NO_VBMI = (
    "this processor has no AVX512-VBMI, which the CPU kernels of FP8, FP4 and INT8 weights need; "
    "torch unpacks them at each use, much more slowly; try --format bf16 if the memory allows"
)

OLDER_BUILD = (
    "the CPU kernels were built from an older tiefsee, which had none for FP8, FP4 and INT8 weights; "
    "torch unpacks them at each use, much more slowly; install tiefsee again"
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
        self._packed = None if self._native is None else PackedProducts(self._native.library)
        if self._native is None:
            self.notes = (NOT_BUILT if found is None else NOT_FOR_THIS_PROCESSOR,)
        elif self._packed is not None and not self._packed.usable:
            self.notes = (NO_VBMI if self._packed.built else OLDER_BUILD,)

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
        """As the definition; few BF16 rows go another way, and all of them if the weight is packed."""
        rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
        if x.dtype != torch.bfloat16 or rows == 0 or torch.is_grad_enabled():
            return reference.linear(x, weight, bias)
        x_RI, packed = x.reshape(rows, -1), self._operand(weight, x, x.shape[-1])
        if packed is not None:
            out = _packed_linear(x_RI, packed)
        elif rows <= COLUMN_ROWS:
            out = self._plain_linear(x_RI, dense(weight, x.dtype))
        else:
            return reference.linear(x, weight, bias)
        out = out.reshape(*x.shape[:-1], -1) if x.dim() != 2 else out
        return out if bias is None else out + bias

    def _plain_linear(self, x_RI: Tensor, weight_OI: Tensor) -> Tensor:
        fits = x_RI.shape[1] == weight_OI.shape[-1]  # if not, torch says how
        if self._native is not None and len(x_RI) <= NATIVE_ROWS and weight_OI.is_contiguous() and fits:
            return self._native.linear(x_RI.contiguous(), weight_OI)
        return torch.mv(weight_OI, x_RI[0]).unsqueeze(0) if len(x_RI) == 1 else (weight_OI @ x_RI.T).T

    def grouped_linear(self, x_TGI: Tensor, weight: AnyWeight) -> Tensor:
        """As the definition; packed weights are unpacked by csrc/cpu."""
        tokens, groups, width = x_TGI.shape
        packed = self._operand(weight, x_TGI, width)
        if packed is None or packed.outs % groups:
            return reference.grouped_linear(x_TGI, weight)
        if 0 < tokens <= PACKED_ROWS:
            return packed.linear(_dense_rows(x_TGI)).flatten(1)
        return reference.grouped_linear(x_TGI, packed.unpack())

    def _operand(self, weight: AnyWeight, x: Tensor, columns: int) -> Operand | None:
        """A packed weight for the kernels that multiply BF16 rows such as `x`; None where they do not."""
        if self._packed is None or isinstance(weight, Tensor) or x.dtype != torch.bfloat16 or torch.is_grad_enabled():
            return None
        return self._packed.operand(weight, columns)

    def latent_attention(
        self, query_nope_THN: Tensor, query_rope_THR: Tensor, wkv_b: AnyWeight, view: CacheView, layer: int,
        scale: float, value_dim: int, picks: list[Tensor | None] | None = None,
    ) -> Tensor:  # fmt: skip
        """As the definition. A decode step in BF16 reads the cache's pages in one call of csrc/cpu; with a packed
        `wkv_b` its two products are made there too."""
        heads, nope = query_nope_THN.shape[1:]
        both, rank = nope + value_dim, wkv_b.shape[-1]
        packed = self._operand(wkv_b, query_nope_THN, rank) if wkv_b.shape[0] == heads * both else None
        pages = self._pages(query_nope_THN, view, layer, picks)
        few = len(query_nope_THN) <= NATIVE_QUERIES
        absorbs = few and all(s.num_tokens < reference.break_even(both, rank) for s in view.segments)
        if pages is None and (packed is None or not absorbs):
            plain = wkv_b if packed is None else packed.unpack()
            return reference.latent_attention(
                query_nope_THN, query_rope_THR, plain, view, layer, scale, value_dim, picks
            )

        def attend(query_THC: Tensor) -> Tensor:
            if pages is None or self._native is None:
                return reference.attend_segments(query_THC, view, layer, scale, rank, picks)
            return self._native.attention(query_THC.contiguous(), *pages, rank, scale)

        if packed is not None:
            query_THC = torch.cat((query_nope_THN.new_empty(len(query_nope_THN), heads, rank), query_rope_THR), dim=-1)
            packed.absorb(_dense_rows(query_nope_THN), query_THC)
            return packed.linear(attend(query_THC), first=nope, stride=both, outs=value_dim)
        key_HNC, value_HVC = dense(wkv_b, query_nope_THN.dtype).unflatten(0, (heads, -1)).split((nope, value_dim), 1)
        return reference.per_head(value_HVC, attend(reference.absorb_query(query_nope_THN, query_rope_THR, key_HNC)))

    def _pages(
        self, query_THN: Tensor, view: CacheView, layer: int, picks: list[Tensor | None] | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """The pool of a layer and where each query's rows lie in it, for csrc/cpu; None where it does not read them."""
        if (
            self._native is None
            or query_THN.dtype != torch.bfloat16
            or len(query_THN) > NATIVE_QUERIES
            or (picks is not None and any(p is not None for p in picks))
            or not isinstance(view, PagedHistory)
            or view.layout != ROWS
            or view.pool("latent", layer).dtype != torch.bfloat16
        ):
            return None
        return view.pool("latent", layer), *view.token_pages()

    def each_expert(
        self, sorted_ND: Tensor, counts_E: Tensor,
        w1: Tensor | Weight, w2: Tensor | Weight, w3: Tensor | Weight, limit: float | None,
    ) -> Tensor:  # fmt: skip
        """As the definition; experts with not too many BF16 rows go through one call of csrc/cpu."""
        kernels = self._native
        if kernels is None or sorted_ND.dtype != torch.bfloat16 or torch.is_grad_enabled():
            return super().each_expert(sorted_ND, counts_E, w1, w2, w3, limit)
        rows_per_expert = len(sorted_ND) / len(counts_E)
        few = rows_per_expert <= NATIVE_ROWS_PER_EXPERT[kernels.way]
        if few and _is_plain_bf16(w1) and _is_plain_bf16(w2) and _is_plain_bf16(w3):
            return kernels.experts(sorted_ND, counts_E, w1, w2, w3, limit)
        if self._packed is not None and rows_per_expert <= PACKED_ROWS_PER_EXPERT:
            stacks = self._packed.stacks(w1, w2, w3, sorted_ND.shape[1])
            if stacks is not None:
                return self._packed.experts(sorted_ND, counts_E, *stacks, limit)
        return super().each_expert(sorted_ND, counts_E, w1, w2, w3, limit)


def _packed_linear(x_RI: Tensor, weight: Operand) -> Tensor:
    if len(x_RI) <= PACKED_ROWS:
        return weight.linear(_dense_rows(x_RI).unsqueeze(1)).squeeze(1)
    out_OR, some = x_RI.new_empty(weight.outs, len(x_RI)), max(1, UNPACKED_VALUES // weight.ins)
    for first in range(0, weight.outs, some):
        last = min(first + some, weight.outs)
        torch.mm(weight.unpack(first, last), x_RI.T, out=out_OR[first:last])
    return out_OR.T


def _dense_rows(x: Tensor) -> Tensor:
    """The last dim contiguous; the others as they are."""
    return x if x.stride(-1) == 1 else x.contiguous()


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
