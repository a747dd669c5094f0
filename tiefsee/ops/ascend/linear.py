"""Products with INT8 weights: one scale per row of the weight, and one per token, measured as it comes."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from tiefsee.ops import reference
from tiefsee.ops.ascend import rules
from tiefsee.ops.weight import AnyWeight, PackedSlice, Weight

Int8Weight = Weight | PackedSlice


def is_int8(weight: AnyWeight) -> TypeGuard[Int8Weight]:
    return not isinstance(weight, Tensor) and weight.packing.format == "int8"


def linear(x: Tensor, weight: AnyWeight, bias: Tensor | None) -> Tensor:
    """As the definition; INT8 weights are not unpacked but multiplied with INT8 activations (W8A8)."""
    if not is_int8(weight) or x.numel() == 0 or rules.quant_matmul(x.dtype, *weight.data.shape) is not None:
        return reference.linear(x, weight, bias)
    codes, scale = torch.ops.npu.npu_dynamic_quant(x.reshape(-1, x.shape[-1]))
    out: Tensor = torch.ops.npu.npu_quant_matmul(
        codes, weight.data.t(), weight.scale, pertoken_scale=scale, output_dtype=x.dtype
    )
    out = out.view(*x.shape[:-1], -1)
    return out if bias is None else out + bias
