"""The CPU's products with packed weights (csrc/cpu/packed.cpp), called through ctypes."""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor

from tiefsee.ops.formats import FP4_COLUMNS, num_blocks
from tiefsee.ops.weight import AnyWeight

_POINTER, _INT64, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float

# What csrc/cpu/packed.cpp calls the formats: (format, columns to a scale; of INT8 a whole row) -> number.
NUMBERS = {("fp8", 128): 0, ("fp8", 32): 1, ("fp4", FP4_COLUMNS): 2, ("int8", 0): 3}


class Operand(NamedTuple):
    """A packed weight [outs, ins], or a stack of them, as the kernels take it; its tensors are the caller's to keep.

    Activations are BF16, with their last dim contiguous; nothing is empty.
    """

    kernels: PackedProducts
    number: int
    codes: int
    scales: int
    row_block: int
    outs: int
    ins: int

    @property
    def arguments(self) -> tuple[int, ...]:
        return torch.get_num_threads(), self.number, self.codes, self.scales, self.row_block

    def linear(self, x_RGI: Tensor, *, first: int = 0, stride: int = 0, outs: int = 0) -> Tensor:
        """Group g of x times `outs` rows of the weight from first + g * stride on, [R, G, outs].

        Without them the weight's rows are shared out evenly.
        """
        rows, groups, width = x_RGI.shape
        outs = outs or self.outs // groups
        out_RGO = x_RGI.new_empty(rows, groups, outs)
        self.kernels.raw_linear(
            *self.arguments, x_RGI.data_ptr(), rows, x_RGI.stride(0), groups, x_RGI.stride(1), width, first,
            stride or outs, out_RGO.data_ptr(), outs,
        )  # fmt: skip
        return out_RGO

    def unpack(self, first: int = 0, last: int | None = None) -> Tensor:
        """Rows `first` to `last` - 1 of the weight in BF16: bit by bit what `dense` gives."""
        count = (self.outs if last is None else last) - first
        out_OI = torch.empty(count, self.ins, dtype=torch.bfloat16)
        self.kernels.raw_unpack(*self.arguments, first, count, self.ins, out_OI.data_ptr())
        return out_OI

    def absorb(self, query_THN: Tensor, out_THK: Tensor) -> None:
        """Queries into latent space, written to the first C of K columns: head h by the first N of its rows of this
        weight [H * (N + V), C]."""
        tokens, heads, nope = query_THN.shape
        self.kernels.raw_absorb(
            *self.arguments, query_THN.data_ptr(), tokens, query_THN.stride(0), heads, query_THN.stride(1), nope,
            self.outs // heads, out_THK.data_ptr(), out_THK.shape[-1], self.ins,
        )  # fmt: skip


class PackedProducts:
    """Products of BF16 rows with FP8, FP4 and INT8 weights, and the weights as BF16.

    Codes become BF16 exactly and scales are applied to float32 sums, so a result is rounded once, where the
    definition rounds the weight first. `usable` is false on a processor without AVX512-BF16 and AVX512-VBMI, and if
    the library was built before they were written (not `built`); then there is nothing to call.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.built = hasattr(library, "tiefsee_packed_best")
        self.usable = self.built and bool(library.tiefsee_packed_best())
        if not self.usable:
            return
        weight = (_INT, _INT, _POINTER, _POINTER, _INT64)  # threads, format, codes, scales, rows to a scale
        self.raw_linear, self.raw_absorb = library.tiefsee_packed_linear, library.tiefsee_packed_absorb
        self.raw_unpack, self.raw_experts = library.tiefsee_unpack, library.tiefsee_packed_experts
        self.raw_linear.argtypes = (*weight, _POINTER, *[_INT64] * 7, _POINTER, _INT64)
        self.raw_unpack.argtypes = (*weight, *[_INT64] * 3, _POINTER)
        self.raw_absorb.argtypes = (*weight, _POINTER, *[_INT64] * 6, _POINTER, *[_INT64] * 2)
        self.raw_experts.argtypes = (
            *weight, *[_POINTER] * 6, _INT64, *[_POINTER] * 2, *[_INT64] * 2, _FLOAT
        )  # fmt: skip
        self.raw_linear.restype = self.raw_unpack.restype = self.raw_absorb.restype = self.raw_experts.restype = None

    def operand(self, weight: AnyWeight, columns: int) -> Operand | None:
        """A weight of so many columns for the kernels; None if they do not know its format and block, or if it does
        not fit (the definition then says how)."""
        if isinstance(weight, Tensor) or not self.usable:
            return None
        data, scale, packing = weight.data, weight.scale, weight.packing
        *lead, outs, ins = data.shape
        block = packing.block
        if packing.format == "fp4":
            block, ins = (1, FP4_COLUMNS), 2 * ins
        elif packing.format == "int8":
            block = (1, 0)
        grid = (outs,) if packing.format == "int8" else num_blocks((outs, ins), block)
        number = NUMBERS.get((packing.format, block[1]))
        fits = ins == columns and scale.shape == (*lead, *grid) and scale.dtype == torch.float32
        if number is None or not fits or not data.is_contiguous() or not scale.is_contiguous() or not data.numel():
            return None
        return Operand(self, number, data.data_ptr(), scale.data_ptr(), block[0], outs, ins)

    def stacks(
        self, w1: AnyWeight, w2: AnyWeight, w3: AnyWeight, width: int
    ) -> tuple[Operand, Operand, Operand] | None:
        """The weights of experts [E, F, D], [E, D, F], [E, F, D] for `experts`; None where one is not for the kernels,
        or not packed as the others."""
        gate, down, up = self.operand(w1, width), self.operand(w2, w1.shape[1]), self.operand(w3, width)
        if gate is None or down is None or up is None or (gate.outs, down.outs) != (up.outs, width):
            return None
        same = {(w.number, w.row_block) for w in (gate, down, up)}
        return (gate, down, up) if len(same) == 1 else None

    def experts(
        self, sorted_ND: Tensor, counts_E: Tensor, w1: Operand, w2: Operand, w3: Operand, limit: float | None
    ) -> Tensor:
        """As `native.Products.experts`; the three stacks have one format and one block."""
        hidden_NF, out_ND = sorted_ND.new_empty(len(sorted_ND), w1.outs), torch.empty_like(sorted_ND)
        self.raw_experts(
            *w1.arguments, w2.codes, w2.scales, w3.codes, w3.scales, sorted_ND.data_ptr(), counts_E.data_ptr(),
            len(counts_E), hidden_NF.data_ptr(), out_ND.data_ptr(), w1.ins, w1.outs,
            math.inf if limit is None else limit,
        )  # fmt: skip
        return out_ND
