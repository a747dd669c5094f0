"""The device seam: one table of semantic operators, one file per backend.

A backend is a subclass of `Operators` that replaces what it can do better; what it leaves alone is the
plain torch definition. The network calls `self.ops.<name>` and knows no device. Conformance tests run
each replaced operator against the definition (tests/ops).
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from tiefsee.errors import ConfigError, DeviceError
from tiefsee.layouts import ROWS, Layout
from tiefsee.ops import reference
from tiefsee.ops.view import CacheView
from tiefsee.ops.weight import Weight
from tiefsee.spec.model import ModelSpec, Router
from tiefsee.spec.size import FORMATS


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
        ask = getattr(getattr(torch, device.type, None), "mem_get_info", None)
        if ask is None:
            raise DeviceError(
                f"torch does not say how much memory {str(device)!r} has free (there is no torch.{device.type}."
                "mem_get_info); its backend must, by `free_bytes`: docs/add_a_device.md"
            )
        return float(ask(device)[0])

    @staticmethod
    def write_rows(rows_SC: Tensor, slots_T: Tensor, new_TC: Tensor) -> None:
        """Rows of a cache pool, in place."""
        rows_SC.index_copy_(0, slots_T, new_TC)

    def activation_format(self, weight_format: str, dtype: torch.dtype) -> str:
        """The numbers in which activations of `dtype` meet packed weights ("int8", "fp8", "fp4"): their own, unless
        a backend's products quantise them. The parity gate asks, to know how far apart two devices may be."""
        return str(dtype).removeprefix("torch.")

    def settle(self, network: nn.Module, dtype: torch.dtype) -> None:
        """Weights as this backend's operators want them, in place, once after a load for `dtype`."""

    def remarks(self, spec: ModelSpec, dtype: torch.dtype) -> tuple[str, ...]:
        """What a user should know of this model in this dtype on this backend, a sentence each."""
        return self.notes

    def resolve_format(self, format: str, spec: ModelSpec) -> tuple[str, str | None]:
        """The format that weights are held in ("auto": as published, if the device can), and a sentence if they
        are converted without having been told to. Raises ConfigError for a format that nobody has, and DeviceError
        for one that the device lacks."""
        if format not in ("auto", *FORMATS):
            others = [f for f in FORMATS if f != "keep"]
            raise ConfigError(
                f"format is {format!r}; needed auto, keep (as published, {published_format(spec)}), "
                f"{', '.join(others[:-1])} or {others[-1]}"
            )
        return ("keep" if format == "auto" else format), None

    def route(
        self, hidden_TD: Tensor, weight_ED: Tensor | Weight, bias_E: Tensor | None, router: Router,
        tokens_T: Tensor, experts_of_token: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The experts of each token [T, K] and their weights; by hash, `experts_of_token` [W, K] chooses."""
        scores_TE = self.router_scores(hidden_TD, weight_ED, router.scoring_func)
        if experts_of_token is not None:
            experts_TK = experts_of_token[tokens_T]
        else:
            experts_TK = self.select_experts(scores_TE, bias_E, router)
        return experts_TK, self.expert_weights(scores_TE, experts_TK, router)

    def pick_keys(
        self, query_TIJ: Tensor, weights_TI: Tensor, view: CacheView, layer: int, top_k: int
    ) -> list[Tensor | None]:
        return reference.pick_keys(query_TIJ, weights_TI, view, layer, top_k, self.index_scores, self.select_entries)

    def run_experts(
        self, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor,
        w1: Tensor | Weight, w2: Tensor | Weight, w3: Tensor | Weight, limit: float | None,
        share: tuple[int, int] | None = None,
    ) -> Tensor:  # fmt: skip
        return reference.run_experts(hidden_TD, experts_TK, weights_TK, w1, w2, w3, limit, share, self.each_expert)

    def each_expert(
        self, sorted_ND: Tensor, counts_E: Tensor,
        w1: Tensor | Weight, w2: Tensor | Weight, w3: Tensor | Weight, limit: float | None,
    ) -> Tensor:  # fmt: skip
        return reference.expert_loop(sorted_ND, counts_E, w1, w2, w3, limit, self.linear)


def published_format(spec: ModelSpec) -> str:
    """In words: "bfloat16", "FP8", "FP8 with FP4 experts"."""
    if spec.quantisation is None:
        return spec.dtype
    return "FP8 with FP4 experts" if spec.quantisation.expert_format == "fp4" else "FP8"


class Backend(Protocol):
    """What the module of a backend offers."""

    def open_device(self, name: str) -> torch.device:
        """The torch device of that name; DeviceError when this machine does not have it."""
        ...

    def operators(self, device: torch.device) -> Operators: ...


# One line for each kind of device; a module is imported when such a device is asked for.
BACKENDS = {"cpu": "tiefsee.ops.cpu", "cuda": "tiefsee.ops.cuda", "npu": "tiefsee.ops.ascend"}


def open_device(name: str) -> torch.device:
    """The torch device of that name; DeviceError when this machine does not have it."""
    return _backend(name).open_device(name)


def operators_for(device: torch.device) -> Operators:
    """The operator table of a device."""
    return _backend(device.type).operators(device)


def rank_devices(name: str, size: int) -> tuple[str, ...]:
    """The devices of so many ranks, by name: "npu:4" and those that follow; ranks on the CPU share it."""
    kind, _, index = name.partition(":")
    _backend(kind)
    if size == 1 or kind == "cpu":
        return (name,) * size
    if index and not index.isdecimal():
        raise DeviceError(f"device {name!r} is not a device name; try '{kind}' or '{kind}:0'")
    return tuple(f"{kind}:{int(index or 0) + rank}" for rank in range(size))


def parse_device(name: str) -> torch.device:
    """The name as a torch device; DeviceError for `cpu:x` and the like."""
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r} is not a device name; try {', '.join(map(repr, BACKENDS))}") from error


def _backend(name: str) -> Backend:
    kind = name.partition(":")[0]
    if kind not in BACKENDS:
        raise DeviceError(f"device {name!r} is not supported; there are {', '.join(map(repr, BACKENDS))}")
    return cast(Backend, import_module(BACKENDS[kind]))
