"""How a model is dealt out over ranks: every value to somebody, nothing cut that must stay whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import FAMILIES, tiny_spec
from tiefsee.errors import ConfigError
from tiefsee.spec import checkpoint_tensors, preset, preset_names
from tiefsee.spec.size import weight_bytes
from tiefsee.spec.split import WHOLE, Split, split_of


@given(st.integers(1, 40), st.integers(1, 4000), st.sampled_from([1, 32, 128]))
def test_shares_tile_the_whole(size, total, block):
    shares = [Split(rank, size, block).width(total) for rank in range(size)]
    assert [n for share in shares for n in share] == list(range(total))
    assert all(share.start % block == 0 or not share for share in shares)
    units = [-(-len(share) // block) for share in shares]
    assert max(units) - min(units) <= 1
    assert units == sorted(units, reverse=True)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_tile_each_tensor_or_are_all_of_it(family, size):
    spec = tiny_spec(family)
    for parts in zip(*(checkpoint_tensors(spec, split_of(spec, r, size)) for r in range(size)), strict=True):
        tensor, held = parts[0], [t for t in parts if t.part.is_held]
        if tensor.expert is not None or tensor.name.endswith("wo.bias"):
            assert len(held) == 1
        elif tensor.part.rows is not None:
            assert [n for t in held for n in t.part.rows] == list(range(tensor.shape[0]))
        elif tensor.part.columns is not None:
            assert [n for t in held for n in t.part.columns] == list(range(tensor.shape[1]))
        else:
            assert {t.held_shape for t in held} == {tensor.shape}
            assert len(held) == size


@pytest.mark.parametrize("name", preset_names())
def test_no_border_cuts_a_scale_block(name):
    spec = preset(name)
    spec = replace(spec, layers=tuple(dict.fromkeys(spec.layers)), mtp_layers=())  # one layer of each kind
    for size in (2, 3, 7, 8):
        for rank in range(size):
            split = split_of(spec, rank, size)
            for tensor in checkpoint_tensors(spec, split):
                if tensor.kind != "linear":
                    continue
                for taken, whole in zip((tensor.part.rows, tensor.part.columns), tensor.shape, strict=True):
                    assert taken is None or taken.start % split.block == 0
                    assert taken is None or taken.stop % split.block == 0 or taken.stop == whole


def test_bytes_of_the_published_models():
    """V3 in FP8: 684.8 GB; on eight ranks 86.7 GB each, since latents, routers and norms are on all of them."""
    v3 = preset("v3")
    assert weight_bytes(v3, "keep", "bfloat16", split=WHOLE) == pytest.approx(684.8e9, rel=1e-3)
    shares = [weight_bytes(v3, "keep", "bfloat16", split=split_of(v3, rank, 8)) for rank in (0, 7)]
    assert shares == pytest.approx([86.7e9, 86.7e9], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "size", "most", "what"),
    [
        ("v2-lite", 17, 16, "16 attention heads"),
        ("v3", 17, 16, "2048 columns of the shared experts in units of 128"),
        ("v4-flash", 9, 8, "8 groups of the output projection"),
    ],
)
def test_too_many_ranks(name, size, most, what):
    assert split_of(preset(name), most - 1, most).size == most
    with pytest.raises(ConfigError, match=f"{size} ranks cannot share {what}; use {most} or fewer"):
        split_of(preset(name), 0, size)


@pytest.mark.parametrize(("rank", "size"), [(0, 0), (2, 2), (-1, 2)])
def test_no_such_rank(rank, size):
    with pytest.raises(ConfigError, match="needed a rank"):
        split_of(preset("v3"), rank, size)
