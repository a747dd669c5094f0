"""The CPU's own operators. Native kernels are to come; this much is torch, called the way its CPU build likes.

A decode step reads each weight once for a handful of rows, so it is bound by memory. On the machine of
docs/log.md (two cores of an Intel Xeon) `F.linear` reads BF16 weights at 21 GB/s there, the same product with the
weight on the left at 27 GB/s, and a matrix times one vector at 26 GB/s, near the 24 to 30 of the memory.
"""

from __future__ import annotations

import ctypes
import math

import numpy as np
import torch
from torch import Tensor

from tiefsee.ops import reference
from tiefsee.ops.table import Operators
from tiefsee.ops.weight import AnyWeight, dense

# From here on the usual order is as fast: there are enough rows to compute on.
FEW_ROWS = 256


class CpuOperators(Operators):
    name = "cpu"

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

    @staticmethod
    def linear(x: Tensor, weight: AnyWeight, bias: Tensor | None = None) -> Tensor:
        """As the definition; few BF16 rows go as columns, with the weight on the left."""
        rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
        if x.dtype != torch.bfloat16 or not 0 < rows <= FEW_ROWS or torch.is_grad_enabled():
            return reference.linear(x, weight, bias)
        matrix = dense(weight, x.dtype)
        columns = x.reshape(rows, -1)
        out = torch.mv(matrix, columns[0]).unsqueeze(0) if rows == 1 else (matrix @ columns.T).T
        out = out.unflatten(0, x.shape[:-1]) if x.dim() != 2 else out
        return out if bias is None else out + bias


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_MMAP_THRESHOLD = 32 << 20  # the most that glibc takes on 64 bits


def keep_freed_memory() -> bool:
    """Let malloc keep blocks below 32 MB that torch frees, for the whole process; False without glibc.

    Each step allocates the same activations; by default they are given back to the system and come as
    new pages, which cost as much to fetch as they cost to compute on (docs/log.md, 2026-11-24).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
