"""What a training process asks of the machine: that malloc keeps memory, and how fast it multiplies."""

from __future__ import annotations

import ctypes
import time

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let malloc keep what torch frees instead of giving it back; False where there is no glibc.

    Each step allocates the same large tensors; fetching their pages anew costs about a quarter of a small
    model's step on the CPU (docs/log.md, 2026-11-24).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))


def matmul_flops_per_s(device: torch.device) -> float:
    """Measured peak of float32 matrix products (1,024 cubed, best of 5): what MFU is a share of."""
    a = torch.randn(1024, 1024, device=device)
    best = float("inf")
    for _ in range(6):  # the first warms up
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best
