"""Products of packed weights: rows become codes with scales of their own, and both meet in one fused operator.

    way       weights                                  rows, as they come             chips
    int8      INT8, a scale per output                 INT8, a scale per token        all
    blocks    FP8, float32 scales of 128 x 128         FP8, scales of 1 x 128         950: as DeepSeek-V3 was trained
    mx        FP8, ue8m0 scales of 32 x 32             FP8, ue8m0 scales of 1 x 32    950
    mx4       FP4, ue8m0 scales of 1 x 32: experts     the same                       950

Whether a way may be gone is asked of `rules`; weights are made ready once, by `settle`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tiefsee.ops import formats
from tiefsee.ops.ascend.rules import LARGEST_INNER, MX_BLOCK
from tiefsee.ops.weight import PackedSlice, Packing, Weight

Packed = Weight | PackedSlice
E4M3 = torch.float8_e4m3fn
# torch_npu's own numbers of dtypes that torch has no arithmetic for.
E8M0, E2M1_PAIRS = 293, 296
# scale_alg of npu_dynamic_mx_quant: the least power of two under which nothing overflows, as DeepSeek rounds scales.
ROUND_SCALES_UP = 1
BY_BLOCKS, BY_MX = [1, 128, 128], [1, 1, 32]


@dataclass(frozen=True)
class Rows:
    """Rows [N, I] as codes, and their scales: one per row, or per 128 or 32 columns."""

    codes: Tensor
    scale: Tensor


def way_of(packing: Packing) -> str:
    if packing.format == "fp8":
        return "mx" if packing.block == MX_BLOCK else "blocks"
    return "mx4" if packing.format == "fp4" else "int8"


def quantise(x_NI: Tensor, way: str) -> Rows:
    npu = torch.ops.npu
    if way == "int8":
        return Rows(*npu.npu_dynamic_quant(x_NI))
    if way == "blocks":
        return Rows(*npu.npu_dynamic_block_quant(x_NI, dst_type=E4M3, row_block_size=1, col_block_size=128))
    return Rows(*npu.npu_dynamic_mx_quant(x_NI, axis=-1, dst_type=E4M3, block_size=32, scale_alg=ROUND_SCALES_UP))


def times(rows: Rows, weight: Packed, way: str, dtype: torch.dtype) -> Tensor:
    """[N, O] by npu_quant_matmul; the weight [O, I] is transposed by its strides. More rows than it takes (65,536 of
    V4-Pro's queries) come in pieces."""
    if way == "int8" and weight.shape[0] > LARGEST_INNER:
        halves = (t.tensor_split(2) for t in (weight.data, weight.scale))
        pieces = [PackedSlice(data, scale, weight.packing) for data, scale in zip(*halves, strict=True)]
        return torch.cat([times(rows, piece, way, dtype) for piece in pieces], -1)
    options: dict[str, Any] = {"scale": weight.scale}
    if way == "blocks":
        options = {"scale": weight.scale.t(), "group_sizes": BY_BLOCKS}
    elif way == "mx":
        options = {
            "scale": factors(weight).transpose(0, 1), "scale_dtype": E8M0, "pertoken_scale_dtype": E8M0,
            "group_sizes": BY_MX,
        }  # fmt: skip
    out: Tensor = torch.ops.npu.npu_quant_matmul(
        rows.codes, weight.data.t(), pertoken_scale=rows.scale, output_dtype=dtype, **options
    )
    return out


def grouped_times(rows: Rows, weight: Packed, way: str, counts_E: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, O] by npu_grouped_matmul: rows sorted by expert with the weights [E, O, I], `counts_E` rows each."""
    options: dict[str, Any]
    if way == "int8":
        # BF16 results want BF16 scales, FP16 ones float32. BF16 holds the scales that `formats.pack_int8` makes.
        options = {"scale": [factors(weight) if dtype == torch.bfloat16 else weight.scale]}
    elif way == "blocks":
        options = {"scale": [weight.scale.transpose(1, 2)]}
    elif way == "mx":
        options = {"scale": [factors(weight).transpose(1, 2)], "scale_dtype": E8M0, "per_token_scale_dtype": E8M0}
    else:
        options = {
            "antiquant_scale": [factors(weight).transpose(1, 2)], "weight_dtype": E2M1_PAIRS,
            "per_token_scale_dtype": E8M0,
        }  # fmt: skip
    return grouped_matmul(rows.codes, weight.data, counts_E, dtype, per_token_scale=[rows.scale], **options)


def grouped_matmul(rows_NI: Tensor, data_EOI: Tensor, counts_E: Tensor, dtype: torch.dtype, **options: Any) -> Tensor:
    out: Tensor = torch.ops.npu.npu_grouped_matmul(
        [rows_NI], [data_EOI.transpose(1, 2)], group_list=counts_E, split_item=3, group_type=0, group_list_type=1,
        output_dtype=dtype, **options,
    )[0]  # fmt: skip
    return out


def factors(weight: Packed) -> Tensor:
    """The scales as products take them, where these are not `scale` itself: what `settle` has made, or made now."""
    made = getattr(weight, "factors", None)
    return make_factors(weight) if made is None else made


def make_factors(weight: Packed) -> Tensor:
    way = way_of(weight.packing)
    if way == "int8":
        return weight.scale.to(torch.bfloat16)
    codes = weight.scale if weight.scale.dtype == torch.uint8 else formats.encode_ue8m0(weight.scale)
    if way == "mx":
        codes = codes.repeat_interleave(MX_BLOCK[0], -2)[..., : weight.shape[-2], :]
    return in_pairs(codes)


def in_pairs(codes: Tensor) -> Tensor:
    """ue8m0 bytes [.., O, I / 32] two by two, [.., O, I / 64, 2], as MX operators have them."""
    return F.pad(codes, (0, codes.shape[-1] % 2)).unflatten(-1, (-1, 2))
