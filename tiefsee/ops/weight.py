"""A linear weight that stays packed in memory: codes and scales, dequantised where it is used.

Plain weights are ordinary parameters; only FP8, FP4 and INT8 ones are a `Weight`. It stands where the
parameter would stand (an nn.Module, so that `.to` moves it), and operators take either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tiefsee.ops import formats

PackedFormat = Literal["fp8", "fp4", "int8"]


@dataclass(frozen=True)
class Packing:
    """How codes are to be read. `block` is the scale's block of fp8; others have theirs by definition.

    `scales` is how the checkpoint stores them, tensor by tensor, for saving them as they came: V3.1's config
    says ue8m0, but its scales are stored in float32, and those of `o_proj` are no powers of two.
    """

    format: PackedFormat
    block: tuple[int, int] = (128, 128)
    scales: Literal["float32", "ue8m0"] = "float32"


class Weight(nn.Module):
    """Codes `data` and float32 `scale` of one weight [O, I], or of a stack of them [E, O, I].

    ue8m0 scales are kept as float32: 0.8 % more memory than bytes for fp8 and 9 % for fp4's experts, for
    one multiplication less per value in every step. A backend whose operators take the bytes keeps these (uint8).
    """

    def __init__(self, data: Tensor, scale: Tensor, packing: Packing) -> None:
        super().__init__()
        self.packing = packing
        self.data: Tensor
        self.scale: Tensor
        self.register_buffer("data", data)
        self.register_buffer("scale", scale)

    @property
    def shape(self) -> torch.Size:
        return logical_shape(self.data, self.packing)

    def unbind(self) -> tuple[PackedSlice, ...]:
        """The weights of a stack; nothing is copied."""
        return tuple(
            PackedSlice(d, s, self.packing) for d, s in zip(self.data.unbind(), self.scale.unbind(), strict=True)
        )

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The weight [O, I] in `dtype`. A stack is dequantised one by one, see `unbind`."""
        return PackedSlice(self.data, self.scale, self.packing).dequantise(dtype)


@dataclass(frozen=True)
class PackedSlice:
    """One weight of a stack."""

    data: Tensor
    scale: Tensor
    packing: Packing

    @property
    def shape(self) -> torch.Size:
        return logical_shape(self.data, self.packing)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        scale = formats.decode_ue8m0(self.scale) if self.scale.dtype == torch.uint8 else self.scale
        if self.packing.format == "fp8":
            return formats.unpack_fp8(self.data, scale, self.packing.block, dtype)
        if self.packing.format == "fp4":
            return formats.unpack_fp4(self.data, scale, dtype)
        return formats.unpack_int8(self.data, scale, dtype)


def logical_shape(data: Tensor, packing: Packing) -> torch.Size:
    """FP4 holds two columns a byte."""
    *lead, columns = data.shape
    return torch.Size((*lead, columns * 2 if packing.format == "fp4" else columns))


AnyWeight = Tensor | Weight | PackedSlice


def dense(weight: AnyWeight, dtype: torch.dtype) -> Tensor:
    """The weight as a plain tensor of `dtype`; a plain one of that dtype as it is."""
    return weight.to(dtype) if isinstance(weight, Tensor) else weight.dequantise(dtype)
