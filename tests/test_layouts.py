"""How rows are stored: bytes of the published forms, pages, and conversion between any two layouts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import FAMILIES, tiny_spec
from tiefsee.errors import ConfigError, LayoutError
from tiefsee.layouts import LAYOUTS, ROWS, Layout, find_layout
from tiefsee.ops.storage import checksum, convert, decode, encode, error_bound, is_lossless
from tiefsee.spec import cache_streams, preset
from tiefsee.streams import block_tokens

DTYPES = ("float32", "bfloat16", "float16")
PUBLISHED = [
    ("v3", "latent", 1152, 656), ("v3.2", "index", 256, 132), ("v4-flash", "window", 1024, 584),
    ("v4-flash", "compressed_4", 1024, 584), ("v4-flash", "index_4", 256, 132), ("v4-flash", "rows_4", 8192, 8192),
    ("v4-pro", "compressed_128", 1024, 584), ("v4-pro", "rows_128", 4096, 4096),
]  # fmt: skip


def streams_of_all_families():
    tiny = [s for f in FAMILIES for s in cache_streams(tiny_spec(f), speculate=True)]
    return tiny + [s for name in ("v3.2", "v4-flash") for s in cache_streams(preset(name), speculate=True)]


STREAMS = st.sampled_from(streams_of_all_families())
STORED_AS = st.tuples(st.sampled_from(DTYPES), st.sampled_from(sorted(LAYOUTS)))


def values(stream, num_rows, seed, spread=3.0):
    """Rows of all magnitudes, zeros and whole blocks of zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rows, *stream.shape)
    rows = torch.randn(shape, generator=generator) * 10 ** (torch.randn(shape, generator=generator) * spread / 3)
    rows[torch.rand(shape, generator=generator) < 0.05] = 0.0
    if num_rows > 1:
        rows[1] = 0.0
    return rows


@pytest.mark.parametrize(("model", "name", "plain", "packed"), PUBLISHED)
def test_bytes_of_the_published_forms(model, name, plain, packed):
    stream = next(s for s in cache_streams(preset(model), speculate=False) if s.name == name)
    assert stream.row_bytes("bfloat16") == stream.row_bytes("bfloat16", LAYOUTS["apart"]) == plain
    assert stream.row_bytes("bfloat16", LAYOUTS["packed"]) == packed


def test_planes_of_the_latent():
    latent = cache_streams(preset("v3"), speculate=False)[0]
    assert [(p.fields[0].first, p.fields[0].last) for p in latent.planes("bfloat16", LAYOUTS["apart"])] == [
        (0, 512), (512, 576),
    ]  # fmt: skip
    (plane,) = latent.planes("bfloat16", LAYOUTS["packed"])
    assert [f.num_bytes for f in plane.fields] == [512, 16, 128]


@pytest.mark.parametrize("model", ["v2", "v3", "v3.2", "v4-flash", "v4-pro"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_pages_divide_blocks(model, layout):
    streams = cache_streams(preset(model), speculate=True)
    size = block_tokens(streams)
    for stream in (s for s in streams if s.family == "history"):
        rows = layout.rows_per_page(size // stream.ratio)
        assert (size // stream.ratio) % rows == 0
        assert rows <= (layout.page_rows or size)
    if layout.name == "apart":
        assert layout.rows_per_page(size) == 128  # what Ascend's paged attention takes


@given(STREAMS, STORED_AS, STORED_AS, st.integers(0, 4), st.integers(0, 1 << 20))
def test_there_and_back(stream, one, other, num_rows, seed):
    """Identity, bit for bit, between layouts that lose nothing; within the named bound between the others."""
    a, b = (stream.planes(dtype, LAYOUTS[layout]) for dtype, layout in (one, other))
    stored = encode(values(stream, num_rows, seed), a)
    moved = convert(stored, a, b)
    assert [t.shape[0] for t in moved] == [num_rows] * len(b)
    if is_lossless(a, b):
        back = convert(moved, b, a)
        assert checksum(back) == checksum(stored)
        assert all(x.dtype == y.dtype and x.shape == y.shape for x, y in zip(back, stored, strict=True))
        return
    before = decode(stored, a, stream.shape, torch.float32).flatten(1)
    after = decode(moved, b, stream.shape, torch.float32).flatten(1)
    assert ((after - before).abs() <= error_bound(before, b)).all()


@given(STREAMS, st.sampled_from(DTYPES), st.sampled_from(sorted(LAYOUTS)), st.integers(0, 1 << 20))
def test_a_plain_layout_of_the_same_dtype_loses_nothing(stream, dtype, layout, seed):
    planes, rows = stream.planes(dtype, LAYOUTS[layout]), values(stream, 3, seed)
    back = decode(encode(rows, planes), planes, stream.shape, torch.float32)
    kept = rows.to(getattr(torch, dtype if stream.dtype == "cache" else stream.dtype)).float()
    if LAYOUTS[layout].packed and stream.scales is not None:
        border = stream.num_values - stream.num_rotated
        back, kept = back.flatten(1)[:, border:], kept.flatten(1)[:, border:]
    assert torch.equal(back, kept)


def test_codes_are_not_quantised_a_second_time():
    stream = cache_streams(preset("v3"), speculate=False)[0]
    packed, split = LAYOUTS["packed"], Layout("both", apart=True, packed=True)
    one, other = stream.planes("bfloat16", packed), stream.planes("bfloat16", split)
    stored = encode(values(stream, 5, 0), one)
    assert is_lossless(one, other)
    assert checksum(convert(convert(stored, one, other), other, one)) == checksum(stored)


def test_what_the_other_numbers_cannot_hold_is_refused():
    stream = cache_streams(preset("v3"), speculate=False)[0]
    wide, narrow = stream.planes("bfloat16"), stream.planes("float16")
    stored = encode(torch.full((1, 576), 1e6), wide)
    with pytest.raises(LayoutError, match="float16 cannot hold"):
        convert(stored, wide, narrow)
    infinite = encode(torch.full((1, 576), torch.inf), wide)  # was so before: not for a conversion to judge
    assert convert(infinite, wide, narrow)[0].isinf().all()


def test_a_checksum_sees_every_byte():
    stream = cache_streams(preset("v3"), speculate=False)[0]
    stored = encode(values(stream, 4, 0), stream.planes("bfloat16", LAYOUTS["apart"]))
    before = checksum(stored)
    for tensor in stored:
        for place in (0, tensor.numel() - 1):
            raw = tensor.view(torch.uint8).flatten()
            raw[place] ^= 1
            assert checksum(stored) != before
            raw[place] ^= 1
    assert checksum(stored) == before


def test_bad_layouts():
    with pytest.raises(ConfigError, match="no cache layout 'row'; needed one of rows, apart"):
        find_layout("row")
    with pytest.raises(ConfigError, match="axes of layout 'x'"):
        Layout("x", axes=("layer", "page", "row", "row"))
    with pytest.raises(ConfigError, match="pages of 0 rows"):
        Layout("x", page_rows=0)
    assert find_layout("rows") is ROWS
