"""Memory that is not plain: FRACTAL_NZ, Ascend's own order of a matrix, and FP4, two values a byte.

FRACTAL_NZ keeps a matrix as [columns / c0, rows / 16, 16, c0]: tiles of 16 rows and c0 columns, those below each other
first. Source: CANN's page of data formats (docs/zh/context/data_format.md of its operator repositories).
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

FP4_E2M1 = 40  # aclDataType
FRACTAL = {29, 50, 51, 52, 53, 54}  # FRACTAL_NZ, and with a c0 other than 32 bytes
ROWS = 16
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def is_plain(handle) -> bool:
    return handle.format not in FRACTAL and handle.dtype != FP4_E2M1


@torch.inference_mode(False)  # tensors that count what is written to them
def read(handle, dtype: torch.dtype) -> Tensor:
    """What the operator sees: the logical matrix as a copy, FP4 as float32."""
    stored = storage(handle, dtype)
    sizes, transposed = list(handle.dims[: handle.count]), is_transposed(handle)
    if handle.format in FRACTAL:
        rows, columns = sizes[-1:-3:-1] if transposed else sizes[-2:]
        if dtype == torch.uint8:
            columns //= 2
        stored = unfold(stored)[..., :rows, :columns]
    else:
        base = [*sizes[:-2], sizes[-1], sizes[-2]] if transposed else sizes
        stored = stored.view(*base[:-1], -1)
    if handle.dtype == FP4_E2M1:
        stored = decode(stored)
    stored = stored.clone(memory_format=torch.contiguous_format)
    return stored.transpose(-1, -2) if transposed else stored


def write(handle, dtype: torch.dtype, logical: Tensor) -> None:
    """A logical matrix (FP4: its bytes) into the storage of the handle."""
    stored = storage(handle, dtype)
    stored.copy_(fold(logical, stored) if handle.format in FRACTAL else logical.reshape(stored.shape))


def storage(handle, dtype: torch.dtype) -> Tensor:
    """The memory behind a handle, in its own shape; the bytes of FP4."""
    dims = list(handle.storage_dims[: handle.num_storage_dims])
    if handle.dtype == FP4_E2M1:
        dims[-1] //= 2
    count = 1
    for dim in dims:
        count *= dim
    raw = (ctypes.c_char * (count * dtype.itemsize)).from_address(handle.data)
    return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).view(dims)


def is_transposed(handle) -> bool:
    """A view whose last two dims are swapped: all that operators take of views of such memory."""
    if handle.count < 2:
        return False
    rows, columns = handle.strides[handle.count - 2], handle.strides[handle.count - 1]
    return rows == 1 and columns != 1


def unfold(stored: Tensor) -> Tensor:
    """[.., N1, K1, 16, c0] -> [.., K1 * 16, N1 * c0]."""
    return stored.movedim(-4, -2).flatten(-2).flatten(-3, -2)


def fold(logical: Tensor, stored: Tensor) -> Tensor:
    """The other way, padded with zeros."""
    *lead, across, down, rows, c0 = stored.shape
    padded = logical.new_zeros(*lead, down * rows, across * c0)
    padded[..., : logical.shape[-2], : logical.shape[-1]] = logical
    return padded.view(*lead, down, rows, across, c0).movedim(-2, -4)


def decode(data: Tensor) -> Tensor:
    """E2M1 values of bytes, the lower half first."""
    nibbles = torch.stack((data & 0xF, data >> 4), -1).flatten(-2).long()
    return torch.cat((E2M1, -E2M1))[nibbles]
