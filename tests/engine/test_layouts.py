"""An engine gives the same answers however its cache is stored."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import FAMILIES, fresh_logits, prompt, relative_error, tiny_llm, tiny_network
from tiefsee import Sampling
from tiefsee.errors import ConfigError
from tiefsee.layouts import LAYOUTS, Layout

PLAIN = sorted(name for name, layout in LAYOUTS.items() if not layout.packed)
CROSSED = Layout("crossed", apart=True, page_rows=64, axes=("page", "value", "layer", "row"))


@pytest.fixture(scope="module", params=FAMILIES)
def network(request, device):
    return tiny_network(request.param, device=device)


def allocated_bytes(cache):
    stores = [*cache.pools.values(), *cache.rings.values(), *cache.snapshots.values()]
    return sum(t.numel() * t.itemsize for store in stores for t in store._tensors)


@pytest.mark.parametrize("layout", [*PLAIN, "crossed"])
def test_bit_equal_in_every_plain_layout(network, layout, monkeypatch):
    """Scattered blocks, chunks, a hit through a snapshot, decode, drafts."""
    monkeypatch.setitem(LAYOUTS, "crossed", CROSSED)
    options = {"max_draft": 2 if network.spec.mtp_layers else 0, "max_step_tokens": 90, "num_blocks": 12}
    sampling = Sampling(temperature=0.8, seed=5, max_tokens=24, ignore_eos=True, logprobs=3)

    def answers(name):
        llm = tiny_llm(network, cache_layout=name, **options)
        assert allocated_bytes(llm.core.runner.cache) == llm.core.plan.num_bytes
        llm.core.draft_length.choose = lambda num_requests: options["max_draft"]
        first = llm.generate([prompt(n) for n in (300, 7, 520)], sampling)
        again = llm.generate(prompt(300), sampling)
        assert again.num_cached_tokens == 256
        return [(a.token_ids, a.logprobs) for a in (*first, again)]

    assert answers(layout) == answers("rows")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_rows_are_near(network, dtype):
    """FP8 rows: not the same numbers, but the same model; and the cache is as small as the plan says.

    Up to position 9 no indexer chooses; behind it a random one picks other keys for the least difference.
    """
    llm = tiny_llm(network, cache_layout="packed", cache_dtype=dtype)
    (found,) = llm.logits([prompt(300)], chunk=50)
    needed = fresh_logits(network, prompt(300))
    error = ((found - needed).norm(dim=-1) / needed.norm(dim=-1))[:9].median()
    assert 1e-4 < error < 0.2
    assert allocated_bytes(llm.core.runner.cache) == llm.core.plan.num_bytes


def test_a_narrower_cache_than_the_model(network):
    (found,) = tiny_llm(network, cache_dtype="bfloat16").logits([prompt(100)])
    assert 0 < relative_error(found[:20], fresh_logits(network, prompt(100))[:20]) < 0.1


def test_the_backend_says_which_layout(network, monkeypatch):
    monkeypatch.setattr(network.ops, "layout", LAYOUTS["apart"], raising=False)
    cache = tiny_llm(network).core.runner.cache
    assert cache.plan.layout.name == "apart"
    for name, pool in cache.pools.items():
        pages = pool.pages(0)
        assert len(pages) == (2 if cache.streams[name].num_rotated else 1)
        assert {p.shape[1] for p in pages} == {min(128, 256 // cache.streams[name].ratio)}


def test_unknown_names(network):
    with pytest.raises(ConfigError, match="no cache layout 'nz'"):
        tiny_llm(network, cache_layout="nz")
    with pytest.raises(ConfigError, match="cache_dtype = 'fp8'"):
        tiny_llm(network, cache_dtype="fp8")


def test_page_tables_name_the_pages_of_each_segment(device):
    from tiefsee.engine.cache import PagedView
    from tiefsee.ops.view import Segment

    network = tiny_network("v3.2", device=device)
    cache = tiny_llm(network, cache_layout="apart", num_blocks=8).core.runner.cache
    view = PagedView(cache, [Segment(0, 2, 300), Segment(2, 3, 0)], [[5, 2], [7]], [-1, -1])
    rows = torch.randn(3, 36, device=cache.device)
    view.append_tokens("latent", 1, rows)
    table = view.page_table("latent")
    assert table.tolist() == [[10, 11, 4, 5], [14, 15, 0, 1]]
    nope, rotated = view.pages("latent", 1)
    page, row = divmod(301, 128)
    assert torch.equal(nope[table[0, page], row], rows[1, :28])
    assert torch.equal(rotated[table[0, page], row], rows[1, 28:])
