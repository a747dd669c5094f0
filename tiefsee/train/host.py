"""How fast the machine multiplies: what a training run's MFU is a share of."""

from __future__ import annotations

import time

import torch


def matmul_flops_per_s(device: torch.device) -> float:
    """Measured peak of float32 matrix products (1,024 cubed, best of 5): what MFU is a share of."""
    a = torch.randn(1024, 1024, device=device)
    best = float("inf")
    for _ in range(6):  # the first warms up
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best
