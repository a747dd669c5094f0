"""The CPU's operators against the definition."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from tiefsee.engine.cache import CachePlan, PagedView, StreamCache
from tiefsee.ops import native, operators_for, reference
from tiefsee.ops.cpu import COLUMN_ROWS, NATIVE_ROWS, CpuOperators
from tiefsee.ops.view import Segment
from tiefsee.streams import Stream

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 96),
        (2, 96),
        (NATIVE_ROWS, 96),
        (NATIVE_ROWS + 1, 96),
        (COLUMN_ROWS, 96),
        (COLUMN_ROWS + 1, 96),
        (3, 5, 96),
        (1, 1, 96),
        (0, 96),
    ],
)
def test_linear(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    weight = torch.randn(80, 96, generator=generator).to(dtype)
    for bias in (None, torch.randn(80, generator=generator).to(dtype)):
        with torch.inference_mode():
            found, needed = CpuOperators().linear(x, weight, bias), reference.linear(x, weight, bias)
        assert found.shape == needed.shape
        assert found.dtype == dtype
        tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float32: 1e-5}[dtype]
        torch.testing.assert_close(found.float(), needed.float(), rtol=tolerance, atol=10 * tolerance)


def test_gradients_go_through_the_definition():
    weight = torch.randn(8, 6, dtype=torch.bfloat16, requires_grad=True)
    CpuOperators().linear(torch.randn(2, 6, dtype=torch.bfloat16), weight).sum().backward()
    assert weight.grad is not None


def test_the_table_of_the_cpu_is_used():
    assert isinstance(operators_for(torch.device("cpu")), CpuOperators)


@pytest.fixture(params=["AVX512-BF16", "AMX"])
def kernels(request):
    """The compiled kernels, by each way that this processor has."""
    loaded = native.load()
    if loaded is None and shutil.which("g++") is None:
        pytest.skip("csrc/cpu is not built: there is no C++ compiler here")
    assert loaded is not None, "csrc/cpu is not built; install tiefsee again"
    way = {"AVX512-BF16": 1, "AMX": 2}[request.param]
    if loaded.way < way:
        pytest.skip(f"this processor has no {request.param}")
    found = native.Products(loaded.library)
    found.way = way
    return found


def values(*shape, scale=1.0, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def assert_near(found, needed):
    """Within two roundings to BF16 of the largest value."""
    assert found.shape == needed.shape
    assert (found.float() - needed.float()).abs().max() <= 2**-7 * needed.float().abs().max()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, 17])
@pytest.mark.parametrize(("ins", "outs"), [(32, 4), (96, 81), (33, 7), (5, 1), (2048, 515)])
def test_compiled_linear(kernels, rows, ins, outs):
    x, weight = values(rows, ins), values(outs, ins, seed=1)
    assert_near(kernels.linear(x, weight), reference.linear(x.float(), weight.float()))


def test_a_row_does_not_depend_on_its_company(kernels):
    x, weight = values(11, 200), values(37, 200, seed=1)
    together = kernels.linear(x, weight)
    for row in range(len(x)):
        assert torch.equal(kernels.linear(x[row : row + 1], weight)[0], together[row])


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("counts", [[1, 0, 3], [0, 0, 1], [12, 1, 2], [0, 0, 0], [4, 5, 16], [17, 0, 50]])
@pytest.mark.parametrize(("width", "inner"), [(70, 45), (96, 32), (64, 160)])  # tiles take multiples of 32
def test_compiled_experts(kernels, width, inner, counts, limit):
    x = values(sum(counts), width)
    stacks = [
        values(3, inner, width, seed=1),
        values(3, width, inner, seed=2, scale=0.2),
        values(3, inner, width, seed=3),
    ]
    found = kernels.experts(x, torch.tensor(counts), *stacks, limit)
    if sum(counts):
        needed = reference.expert_loop(x.float(), torch.tensor(counts), *(s.float() for s in stacks), limit)
        assert_near(found, needed)
    assert found.shape == x.shape


@torch.inference_mode()
def test_decode_reads_the_pages_of_the_cache():
    """Requests of unlike length, scattered pages, drafts, an origin: as the definition, which gathers rows."""
    stream = Stream("latent", layers=(0,), family="history", ratio=1, shape=(40,), dtype="cache")
    plan = CachePlan(
        (stream,), block_tokens=16, num_blocks=12, num_rings=0, num_snapshots=0, max_draft=2, dtype="bfloat16"
    )
    ops, heads = CpuOperators(), 11
    cache = StreamCache(plan, torch.device("cpu"), ops)
    cache.pool("latent", 0).copy_(values(12, 16, 40))
    segments = [Segment(0, 1, 36), Segment(1, 4, 15), Segment(4, 5, 0), Segment(5, 6, 30, origin=17)]
    tables = [[7, 2, 11], [3, 9], [0], [5, 4]]
    view = PagedView(cache, segments, tables, [-1] * 4)
    view.append_tokens("latent", 0, values(6, 40, seed=5))
    arguments = values(6, heads, 24), values(6, heads, 8, seed=1), values(heads * (24 + 16), 32, seed=2, scale=0.2)
    found = ops.latent_attention(*arguments, view, 0, 0.2, 16)
    needed = reference.latent_attention(*arguments, view, 0, 0.2, 16)
    assert_near(found, needed)


def test_without_compiled_kernels_torch_computes_and_says_so(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: None)
    ops = CpuOperators()
    assert "no C++ compiler" in ops.notes[0]
    with torch.inference_mode():
        x, weight = values(2, 96), values(80, 96, seed=1)
        assert_near(ops.linear(x, weight), reference.linear(x, weight))
        stacks = [values(3, 45, 96), values(3, 96, 45, scale=0.2), values(3, 45, 96)]
        counts = torch.tensor([2, 0, 0])
        assert_near(ops.each_expert(x, counts, *stacks, None), reference.expert_loop(x, counts, *stacks, None))


def test_a_processor_without_the_instructions_is_told(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: native.Products(SimpleNamespace(tiefsee_best=lambda: 0)))
    ops = CpuOperators()
    assert "no AVX512-BF16" in ops.notes[0]
    with torch.inference_mode():
        x, weight = values(2, 96), values(80, 96, seed=1)
        assert_near(ops.linear(x, weight), reference.linear(x, weight))
