"""What a training process asks of the host's C library."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let malloc keep what torch frees instead of giving it back; False where there is no glibc.

    Each step allocates the same large tensors; fetching their pages anew costs about a quarter of a small
    model's step on the CPU (docs/log.md, 2026-11-24).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))
