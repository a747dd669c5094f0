"""Products with packed weights by `packed`: of one matrix, and of the groups of V4's output projection."""

from __future__ import annotations

import torch
from torch import Tensor

from tiefsee.ops import reference
from tiefsee.ops.ascend import packed, rules
from tiefsee.ops.ascend.chip import Generation
from tiefsee.ops.weight import AnyWeight, PackedSlice


def linear(x: Tensor, weight: AnyWeight, bias: Tensor | None, chip: Generation) -> Tensor:
    """As the definition; packed weights are not unpacked but multiplied with rows quantised to match."""
    if isinstance(weight, Tensor) or x.numel() == 0:
        return reference.linear(x, weight, bias)
    if rules.packed_matmul(chip, x.dtype, weight.packing, weight.shape) is not None:
        return reference.linear(x, weight, bias)
    way = packed.way_of(weight.packing)
    out = packed.times(packed.quantise(x.reshape(-1, x.shape[-1]), way), weight, way, x.dtype)
    out = out.view(*x.shape[:-1], -1)
    return out if bias is None else out + bias


def grouped_linear(x_TGI: Tensor, weight: AnyWeight, chip: Generation) -> Tensor:
    """Group g of x [T, G, I] by rows g of the weight [G * O, I] -> [T, G * O]: experts that all have T rows."""
    tokens, groups, inner = x_TGI.shape
    if isinstance(weight, Tensor) or not 2 <= groups <= 1024 or x_TGI.numel() == 0:
        return reference.grouped_linear(x_TGI, weight)
    outputs = weight.shape[0] // groups
    block = weight.packing.block[0] if weight.packing.format == "fp8" else 1
    why = rules.packed_experts(chip, x_TGI.dtype, weight.packing, (groups, outputs, inner))
    if why is not None or weight.packing.format == "fp4" or outputs % block:
        return reference.grouped_linear(x_TGI, weight)
    way = packed.way_of(weight.packing)
    scale = weight.scale.unflatten(0, (groups, -1))
    stack = PackedSlice(weight.data.unflatten(0, (groups, -1)), scale, weight.packing)
    rows_GTI = x_TGI.transpose(0, 1).reshape(groups * tokens, inner)
    counts_G = torch.full((groups,), tokens, dtype=torch.int64, device=x_TGI.device)
    out = packed.grouped_times(packed.quantise(rows_GTI, way), stack, way, counts_G, x_TGI.dtype)
    return out.view(groups, tokens, -1).transpose(0, 1).flatten(1)
