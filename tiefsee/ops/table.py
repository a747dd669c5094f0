"""The device seam: one table of semantic operators, one file per backend.

A backend is a subclass of `Operators` that replaces what it can do better; what it leaves alone is the
plain torch definition. The network calls `self.ops.<name>` and knows no device. Conformance tests run
each replaced operator against the definition (tests/ops).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tiefsee.errors import DeviceError
from tiefsee.layouts import ROWS, Layout
from tiefsee.ops import reference
from tiefsee.ops.weight import Weight


class Operators:
    """The definition of every operator, in plain torch, for any device that torch knows."""

    name = "reference"
    layout: Layout = ROWS  # how the operators of this backend want cached rows stored
    notes: tuple[str, ...] = ()  # what a user should know of this backend on this machine

    linear = staticmethod(reference.linear)
    grouped_linear = staticmethod(reference.grouped_linear)
    rms_norm = staticmethod(reference.rms_norm)
    layer_norm = staticmethod(reference.layer_norm)
    swiglu = staticmethod(reference.swiglu)
    rotate_pairs = staticmethod(reference.rotate_pairs)
    rotate_halves = staticmethod(reference.rotate_halves)
    router_scores = staticmethod(reference.router_scores)
    select_experts = staticmethod(reference.select_experts)
    expert_weights = staticmethod(reference.expert_weights)
    latent_attention = staticmethod(reference.latent_attention)
    index_scores = staticmethod(reference.index_scores)
    select_entries = staticmethod(reference.select_entries)
    compress = staticmethod(reference.compress)
    window_attention = staticmethod(reference.window_attention)
    hyper_mix = staticmethod(reference.hyper_mix)
    hyper_join = staticmethod(reference.hyper_join)
    hyper_head = staticmethod(reference.hyper_head)

    @staticmethod
    def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A zeroed tensor for a cache pool. Never uninitialised: what a mask multiplies must not be NaN."""
        return torch.zeros(shape, dtype=dtype, device=device)

    @staticmethod
    def free_bytes(device: torch.device) -> float:
        """Memory that an allocation on this device may still take."""
        if device.type == "cpu":  # the definition, asked for on the CPU: torch has no such figure there
            from tiefsee.ops.cpu import CpuOperators

            return CpuOperators.free_bytes(device)
        return float(torch.get_device_module(device).mem_get_info(device)[0])

    def run_experts(
        self, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor,
        w1: Tensor | Weight, w2: Tensor | Weight, w3: Tensor | Weight, limit: float | None,
    ) -> Tensor:  # fmt: skip
        return reference.run_experts(hidden_TD, experts_TK, weights_TK, w1, w2, w3, limit, self.each_expert)

    def each_expert(
        self, sorted_ND: Tensor, counts_E: Tensor,
        w1: Tensor | Weight, w2: Tensor | Weight, w3: Tensor | Weight, limit: float | None,
    ) -> Tensor:  # fmt: skip
        return reference.expert_loop(sorted_ND, counts_E, w1, w2, w3, limit, self.linear)


def open_device(name: str) -> torch.device:
    """The torch device of that name; DeviceError when this machine does not have it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r} is not a device name; try 'cpu' or 'cuda:0'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"device {name!r} was asked for, but torch {torch.__version__} sees no CUDA card; use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported yet; there are 'cpu' and 'cuda'")
    return device


def operators_for(device: torch.device) -> Operators:
    """The operator table of a device; CUDA runs the definition until it has kernels of its own."""
    if device.type == "cpu":
        from tiefsee.ops.cpu import CpuOperators

        return CpuOperators()
    return Operators()
