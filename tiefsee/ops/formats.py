"""Number formats of weights: FP8 and FP4 with block scales as DeepSeek publishes them, INT8 per row.

    fp8    e4m3, one scale per block of 128 x 128 (or 32 x 32) values; blocks at the edges are partial
    fp4    e2m1, two values per byte (the lower half first), one scale per row and 32 columns
    int8   symmetric, one scale per row

A value is its code times its scale. Scales are float32, or ue8m0: a byte e that means 2 ** (e - 127).
Sources: DeepSeek-V3 (arXiv 2412.19437), section 3.3; OCP Microscaling Formats (MX) 1.0, section 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tiefsee.errors import CheckpointError

E4M3_MAX = 448.0
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX = 6.0
FP4_COLUMNS = 32
UE8M0_BIAS = 127


def decode_ue8m0(codes: Tensor) -> Tensor:
    """Powers of two from their exponent bytes (uint8, or torch's float8_e8m0fnu), float32.

    255 is not a number; it does not occur in a sound file, so it is a CheckpointError.
    """
    exponents = codes.view(torch.uint8)
    if bool((exponents == 255).any()):
        raise CheckpointError("a ue8m0 scale is 255, which is no number; the file is damaged; download it again")
    # The code is float32's own exponent field; only 2 ** -127 (code 0) is subnormal there.
    bits = exponents.to(torch.int32) << 23
    return torch.where(bits == 0, torch.full_like(bits, 1 << 22), bits).view(torch.float32)


def encode_ue8m0(scales: Tensor) -> Tensor:
    """Exponent bytes of the smallest powers of two that are not below `scales` (positive, float32)."""
    mantissa, exponent = torch.frexp(scales)
    # frexp gives a mantissa in [0.5, 1): 0.5 itself is a power of two already.
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return (exponent + UE8M0_BIAS).clamp(0, 254).to(torch.uint8)


def expand_blocks(scale: Tensor, block: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """One scale per value [O, I] from one per block; edge blocks are cut to the shape."""
    rows, columns = shape
    return scale.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]


def num_blocks(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def unpack_fp8(data: Tensor, scale: Tensor, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """[O, I] from e4m3 codes and float32 block scales; the product is rounded once."""
    return (data.to(torch.float32) * expand_blocks(scale, block, (data.shape[0], data.shape[1]))).to(dtype)


def pack_fp8(values: Tensor, block: tuple[int, int], *, ue8m0: bool) -> tuple[Tensor, Tensor]:
    """e4m3 codes and float32 scales of [O, I]; with `ue8m0` the scales are powers of two.

    The largest value of a block lands on 448 (or, with powers of two, at most there).
    """
    scale = _scales(block_maxima(values, block), E4M3_MAX, ue8m0)
    codes = values.float() / expand_blocks(scale, block, (values.shape[0], values.shape[1]))
    return codes.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


def unpack_fp4(data: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """[O, I] from packed codes [O, I / 2] and float32 scales [O, I / 32]."""
    codes = data.view(torch.uint8)
    nibbles = torch.stack((codes & 0xF, codes >> 4), dim=-1).flatten(-2)
    magnitudes = torch.tensor(E2M1_VALUES, device=data.device)
    values = torch.cat((magnitudes, -magnitudes))[nibbles.long()]
    return (values * scale.repeat_interleave(FP4_COLUMNS, 1)[:, : values.shape[1]]).to(dtype)


def pack_fp4(values: Tensor) -> tuple[Tensor, Tensor]:
    """Packed codes [O, I / 2] (uint8) and power-of-two scales [O, I / 32] (float32); I is even.

    Rounds to the nearest code, ties to the even one. -0 keeps its sign.
    """
    scale = _scales(block_maxima(values, (1, FP4_COLUMNS)), E2M1_MAX, True)
    scaled = values.float() / scale.repeat_interleave(FP4_COLUMNS, 1)[:, : values.shape[1]]
    codes = torch.tensor(E2M1_VALUES, device=values.device)
    middles = (codes[1:] + codes[:-1]) / 2
    size = scaled.abs().contiguous()
    # Above a middle goes up; on a middle the even code wins: left of an odd code stays, right of it goes up.
    below, above = torch.bucketize(size, middles), torch.bucketize(size, middles, right=True)
    nibbles = torch.where(below % 2 == 0, below, above) | (torch.signbit(values).long() << 3)
    low, high = nibbles.unflatten(-1, (-1, 2)).unbind(-1)
    return (low | (high << 4)).to(torch.uint8), scale


def unpack_int8(data: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """[O, I] from int8 and one float32 scale per row [O]."""
    return (data.to(torch.float32) * scale.unsqueeze(-1)).to(dtype)


def pack_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """int8 in -127 .. 127 and one float32 scale per row.

    Scales are rounded up to a number that BF16 holds: Ascend's grouped products take no other for BF16 results, and
    codes are then the same on every device. A step is at most 0.8 % coarser for it.
    """
    wide = values.float()
    scale = _up_to_bfloat16(wide.abs().amax(-1) / 127)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (wide / scale.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8), scale


def block_maxima(values: Tensor, block: tuple[int, int]) -> Tensor:
    """The largest magnitude of each block, float32."""
    rows, columns = num_blocks((values.shape[0], values.shape[1]), block)
    padded = values.new_zeros(rows * block[0], columns * block[1], dtype=torch.float32)
    padded[: values.shape[0], : values.shape[1]] = values.abs()
    return padded.view(rows, block[0], columns, block[1]).amax((1, 3))


def _up_to_bfloat16(positive: Tensor) -> Tensor:
    """The next number not below that has BF16's 8 bits, as float32."""
    bits = positive.contiguous().view(torch.int32)
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32)


def _scales(maxima: Tensor, largest_code: float, power_of_two: bool) -> Tensor:
    """Scales that bring each maximum to the largest code; 1 for a block of zeros."""
    scale = torch.where(maxima == 0, torch.ones_like(maxima), maxima / largest_code)
    return decode_ue8m0(encode_ue8m0(scale)) if power_of_two else scale
