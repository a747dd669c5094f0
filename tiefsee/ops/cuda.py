"""NVIDIA's cards: the definition, until there are kernels of their own."""

from __future__ import annotations

import torch

from tiefsee.errors import DeviceError
from tiefsee.ops.table import Operators, parse_device


def open_device(name: str) -> torch.device:
    if not torch.cuda.is_available():
        raise DeviceError(
            f"device {name!r} was asked for, but torch {torch.__version__} sees no CUDA card; use --device cpu"
        )
    return parse_device(name)


def operators(device: torch.device) -> Operators:
    return Operators()
