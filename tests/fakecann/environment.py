"""The environment variables that make a process load the emulated CANN."""

from __future__ import annotations

import os
from pathlib import Path

from .build import build


def environment(
    soc: str = "Ascend910B3", *, devices: int = 1, device_bytes: int = 64_000_000_000, trace: Path | None = None
) -> dict[str, str]:
    """`os.environ` and what a child process needs on top; libraries are looked up when a process starts."""
    package = __name__.rpartition(".")[0]
    root = Path(__file__).parents[package.count(".") + 1]
    paths = [str(build()), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    modules = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    added = {
        "LD_LIBRARY_PATH": ":".join(paths),
        "PYTHONPATH": ":".join(modules),
        "FAKECANN_SOC": soc,
        "FAKECANN_COUNT": str(devices),
        "FAKECANN_BYTES": str(device_bytes),
        "FAKECANN_START": f"import {package}.emulator as e; e.install()",
        # Calls run where they are made: errors point at their line. Addresses are not reserved ahead.
        "TASK_QUEUE_ENABLE": "0",
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:False",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    }
    if trace is not None:
        added["FAKECANN_TRACE"] = str(trace)
    return {**os.environ, **added}
