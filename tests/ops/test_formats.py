"""Packing and unpacking: exact on what a format can say, and no byte changes on the second trip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiefsee.errors import CheckpointError
from tiefsee.ops import formats

SIZES = st.integers(1, 300)


def random(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 10 ** float(
        torch.randint(-6, 6, (1,), generator=generator)
    )


@given(SIZES, SIZES, st.sampled_from([(128, 128), (32, 32), (1, 128)]), st.booleans(), st.integers(0, 99))
def test_fp8_second_trip_is_the_first(rows, columns, block, ue8m0, seed):
    codes, scale = formats.pack_fp8(random(rows, columns, seed), block, ue8m0=ue8m0)
    assert scale.shape == formats.num_blocks((rows, columns), block)
    values = formats.unpack_fp8(codes, scale, block, torch.float32)
    again, _ = formats.pack_fp8(values, block, ue8m0=ue8m0)
    back = formats.unpack_fp8(again, scale, block, torch.float32)
    assert (values - random(rows, columns, seed)).abs().max() <= values.abs().max() / 16
    if not ue8m0:
        torch.testing.assert_close(back, values, rtol=1e-6, atol=0)


@given(SIZES, st.integers(1, 150), st.integers(0, 99))
def test_fp4_second_trip_changes_no_byte(rows, half, seed):
    codes, scale = formats.pack_fp4(random(rows, 2 * half, seed))
    assert codes.shape == (rows, half)
    values = formats.unpack_fp4(codes, scale, torch.float32)
    again, again_scale = formats.pack_fp4(values)
    assert torch.equal(formats.unpack_fp4(again, again_scale, torch.float32), values)


def test_fp4_codes_and_order():
    values = torch.tensor([[0.5, -6.0, 0.0, 3.0]])
    codes, scale = formats.pack_fp4(values)
    assert scale.tolist() == [[1.0]]
    assert codes.tolist() == [[0x1 | 0xF << 4, 0x0 | 0x5 << 4]]  # the lower half is the even column
    assert torch.equal(formats.unpack_fp4(codes, scale, torch.float32), values)


def test_fp4_ties_go_to_the_even_code():
    values = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0]])
    assert formats.unpack_fp4(*formats.pack_fp4(values), torch.float32).tolist() == [
        [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]
    ]


def test_ue8m0():
    assert formats.decode_ue8m0(torch.tensor([127, 128, 120, 0], dtype=torch.uint8)).tolist() == [1, 2, 2**-7, 2**-127]
    assert formats.encode_ue8m0(torch.tensor([1.0, 2.0, 1.5, 0.75])).tolist() == [127, 128, 128, 127]
    with pytest.raises(CheckpointError, match="255"):
        formats.decode_ue8m0(torch.tensor([255], dtype=torch.uint8))


@given(SIZES, SIZES, st.integers(0, 99))
def test_int8_is_within_half_a_step(rows, columns, seed):
    values = random(rows, columns, seed)
    codes, scale = formats.pack_int8(values)
    error = (formats.unpack_int8(codes, scale, torch.float32) - values).abs()
    assert (error <= scale[:, None] * 0.5001).all()
