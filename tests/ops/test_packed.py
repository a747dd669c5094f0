"""The CPU's products with FP8, FP4 and INT8 weights against the definition: `dense`, then a product."""

from __future__ import annotations

import shutil

import pytest
import torch

from tiefsee.engine.cache import CachePlan, PagedView, StreamCache
from tiefsee.ops import formats, native, reference
from tiefsee.ops.cpu import PACKED_ROWS, CpuOperators
from tiefsee.ops.packed import PackedProducts
from tiefsee.ops.view import Segment
from tiefsee.ops.weight import Packing, Weight
from tiefsee.streams import Stream

FORMATS = ("fp8", "fp8 ue8m0", "fp8 32x32", "fp8 32x32 float32", "fp8 1x128", "fp4", "int8")
# Rows of x, and weights [O, I]: multiples of nothing, of a block, of a step; smaller than all of them; larger.
ROWS = (1, 2, 3, 7, 8, 17, 32, 200)
SHAPES = ((1, 2), (7, 6), (33, 64), (130, 66), (129, 514), (301, 1000))


def values(*shape, scale=1.0, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def packed(format, *shape, scale=1.0, seed=0):
    """A random weight [O, I], or a stack [E, O, I]; rows differ in size, so that a scale of another row shows."""
    wide = values(*shape, scale=scale, seed=seed) * (1 + torch.arange(shape[-2])[:, None] / shape[-2])
    pack, packing = {
        "fp8": (lambda w: formats.pack_fp8(w, (128, 128), ue8m0=False), Packing("fp8")),
        "fp8 ue8m0": (lambda w: formats.pack_fp8(w, (128, 128), ue8m0=True), Packing("fp8", scales="ue8m0")),
        "fp8 32x32": (lambda w: formats.pack_fp8(w, (32, 32), ue8m0=True), Packing("fp8", (32, 32), "ue8m0")),
        "fp8 32x32 float32": (lambda w: formats.pack_fp8(w, (32, 32), ue8m0=False), Packing("fp8", (32, 32))),
        "fp8 1x128": (lambda w: formats.pack_fp8(w, (1, 128), ue8m0=False), Packing("fp8", (1, 128))),
        "fp4": (formats.pack_fp4, Packing("fp4", scales="ue8m0")),
        "int8": (formats.pack_int8, Packing("int8")),
    }[format]
    if len(shape) == 2:
        return Weight(*pack(wide), packing)
    codes, scales = zip(*map(pack, wide), strict=True)
    return Weight(torch.stack(codes), torch.stack(scales), packing)


def dense(weight):
    """The weight's own values: float32 holds every product of a code and a scale to 2 ** -24."""
    slices = weight.unbind() if weight.data.dim() == 3 else [weight]
    wide = torch.stack([w.dequantise(torch.float32) for w in slices])
    return wide if weight.data.dim() == 3 else wide[0]


def assert_product(found, x, weight, *, weight_rounded):
    """Against the product in float64, within what is rounded on the way.

    The result to BF16: 2 ** -8 of it. Sums in float32: a chain of I / 32 + 12 additions, each 2 ** -24 of at most the
    sum of the magnitudes. The weight to BF16 (only with many rows, where the definition's own weight is multiplied):
    2 ** -8 of the magnitudes.
    """
    exact = x.double() @ weight.double().T
    magnitudes = x.double().abs() @ weight.double().abs().T
    chain = (x.shape[-1] / 32 + 12) * 2**-24
    allowed = 2**-8 * exact.abs() + (chain + (2**-8 if weight_rounded else 0)) * magnitudes
    assert found.dtype == torch.bfloat16
    assert found.shape == exact.shape
    assert ((found.double() - exact).abs() <= 1.01 * allowed).all()  # the sum's own error is rounded with it


@pytest.fixture
def kernels():
    """The compiled kernels of packed weights."""
    loaded = native.load()
    if loaded is None and shutil.which("g++") is None:
        pytest.skip("csrc/cpu is not built: there is no C++ compiler here")
    assert loaded is not None, "csrc/cpu is not built; install tiefsee again"
    found = PackedProducts(loaded.library) if loaded.way else None
    assert found is None or found.built, "csrc/cpu is an older build; install tiefsee again"
    if found is None or not found.usable:
        pytest.skip("this processor has no AVX512-BF16 and AVX512-VBMI")
    return found


def operand(kernels, weight):
    found = kernels.operand(weight, weight.shape[-1])
    assert found is not None
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", FORMATS)
def test_unpacked_is_dense_bit_by_bit(kernels, format, shape):
    weight = packed(format, *shape, scale=0.02)
    whole = weight.dequantise(torch.bfloat16)
    assert torch.equal(operand(kernels, weight).unpack().view(torch.int16), whole.view(torch.int16))
    some = slice(shape[0] // 3, shape[0] // 2 + 1)
    assert torch.equal(operand(kernels, weight).unpack(some.start, some.stop), whole[some])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("format", FORMATS)
@torch.inference_mode()
def test_linear(format, rows):
    ops = CpuOperators()
    for outs, ins in SHAPES:
        x, weight = values(rows, ins).bfloat16(), packed(format, outs, ins, seed=1)
        found = ops.linear(x, weight)
        assert_product(found, x, dense(weight), weight_rounded=True)
        if ops._packed is not None and ops._packed.usable and rows <= PACKED_ROWS:
            assert_product(found, x, dense(weight), weight_rounded=False)


CODES = {
    "fp8": (torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn), 256),
    "fp4": (torch.arange(256, dtype=torch.uint8), 512),
    "int8": (torch.arange(256, dtype=torch.uint8).view(torch.int8), 256),
}


@pytest.mark.parametrize("scale", [1.0, 0.7, 2.0**-127, 2.0**-118, 3e38])
@pytest.mark.parametrize("format", CODES)
def test_every_code_unpacks(kernels, format, scale):
    """Not-a-number, both zeros, results below BF16's normal numbers, and infinite ones."""
    codes, columns = CODES[format]
    grid = {"fp8": (1, columns // 128), "fp4": (1, columns // 32), "int8": (1,)}[format]
    weight = Weight(codes.unsqueeze(0), torch.full(grid, scale), Packing(format))
    found, needed = operand(kernels, weight).unpack(), weight.dequantise(torch.bfloat16)
    number = ~needed.isnan()
    assert torch.equal(found.isnan(), needed.isnan())
    assert torch.equal(found[number].view(torch.int16), needed[number].view(torch.int16))


@pytest.mark.parametrize("format", CODES)
def test_every_code_multiplies(kernels, format):
    """Rows of x that are 1 in one place read a column of the weight each: exactly its codes times their scales."""
    codes, columns = CODES[format]
    if format == "fp8":  # 0x7f and 0xff are no numbers, and would be in every sum
        codes = codes.view(torch.uint8).clone()
        codes[[0x7F, 0xFF]] = torch.tensor([0x01, 0x81], dtype=torch.uint8)
        codes = codes.view(torch.float8_e4m3fn)
    grid = {"fp8": (3, columns // 128), "fp4": (3, columns // 32), "int8": (3,)}[format]
    scale = 2.0 ** torch.arange(torch.Size(grid).numel()).view(grid)  # powers of two: nothing is rounded
    packing = Packing(format, block=(1, 128))
    weight = Weight(torch.stack([codes.roll(i) for i in range(3)]), scale, packing)
    needed = dense(weight)
    for first in range(0, columns, 8):
        x = torch.eye(columns)[first : first + 8].bfloat16()
        found = operand(kernels, weight).linear(x.unsqueeze(1))[:, 0]
        assert torch.equal(found.float(), needed.T[first : first + 8])


def test_a_scale_that_is_no_number_shows(kernels):
    """0x7fffffff, which would be rounded up to -0."""
    weight = packed("int8", 3, 40)
    weight.scale.view(torch.int32)[1] = 0x7FFFFFFF
    assert operand(kernels, weight).unpack().isnan().all(1).tolist() == [False, True, False]
    found = operand(kernels, weight).linear(values(2, 1, 40).bfloat16())
    assert found.isnan().all(0).flatten().tolist() == [False, True, False]


@pytest.mark.parametrize("format", ["fp4", "fp8 1x128"])
def test_a_row_does_not_touch_the_scales_of_the_next(kernels, format):
    """A last step that is not full has fewer scales; the next row's would be multiplied by zero, but NaN stays NaN."""
    weight = packed(format, 6, 70)
    weight.scale[3] = torch.nan
    for rows in (1, 3, 8):
        found = operand(kernels, weight).linear(values(rows, 1, 70).bfloat16())
        assert torch.equal(found.isnan()[:, 0], (torch.arange(6) == 3).expand(rows, 6))


def test_what_is_no_number_stays_one(kernels):
    weight = packed("fp8", 5, 200)
    weight.data.view(torch.uint8)[3, 150] = 0xFF
    found = operand(kernels, weight).linear(values(2, 1, 200).bfloat16())
    assert found.isnan().any(0).flatten().tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_its_company(kernels, format):
    x, weight = values(17, 1, 514).bfloat16(), packed(format, 37, 514, seed=1)
    together = operand(kernels, weight).linear(x)
    for row in range(len(x)):
        assert torch.equal(operand(kernels, weight).linear(x[row : row + 1])[0], together[row])


@pytest.mark.parametrize("format", FORMATS)
@torch.inference_mode()
def test_activations_of_any_form(format):
    ops, weight = CpuOperators(), packed(format, 50, 96)
    wide = values(96, 2, 3, 6).bfloat16()
    for x in (
        wide[:, 0, 0].T,  # columns
        wide.permute(1, 2, 3, 0)[:, ::2],  # many dims
        values(4, 200).bfloat16()[:, 3:99],  # rows of something wider
        values(1, 96).bfloat16().expand(5, 96),  # one row five times
        values(96).bfloat16(),
    ):
        found = ops.linear(x, weight)
        assert found.shape == (*x.shape[:-1], 50)
        assert_product(found.reshape(-1, 50), x.reshape(-1, 96), dense(weight), weight_rounded=True)
    bias = values(50).bfloat16()
    assert torch.equal(ops.linear(x, weight, bias), ops.linear(x, weight) + bias)


@torch.inference_mode()
def test_nothing_in_nothing_out():
    ops, weight = CpuOperators(), packed("fp8", 50, 96)
    assert ops.linear(values(0, 96).bfloat16(), weight).shape == (0, 50)
    assert ops.grouped_linear(values(0, 5, 96).bfloat16(), weight).shape == (0, 50)
    none = Weight(weight.data[:0], weight.scale[:0], weight.packing)
    assert ops.linear(values(2, 96).bfloat16(), none).shape == (2, 0)


@torch.inference_mode()
def test_what_does_not_fit_is_an_error_as_in_the_definition():
    ops, weight = CpuOperators(), packed("fp8", 50, 96)
    with pytest.raises(RuntimeError):
        ops.linear(values(2, 95).bfloat16(), values(50, 96).bfloat16())
    for run in (ops, reference):
        with pytest.raises(RuntimeError):
            run.linear(values(2, 95).bfloat16(), weight)
        with pytest.raises(RuntimeError):
            run.linear(values(2, 96).bfloat16(), Weight(weight.data, weight.scale[:, :0], weight.packing))


@torch.inference_mode()
def test_other_blocks_go_through_the_definition(kernels):
    wide = values(40, 96)
    weight = Weight(*formats.pack_fp8(wide, (16, 48), ue8m0=False), Packing("fp8", (16, 48)))
    assert kernels.operand(weight, 96) is None
    x = values(3, 96).bfloat16()
    assert_product(CpuOperators().linear(x, weight), x, dense(weight), weight_rounded=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.inference_mode()
def test_other_dtypes_go_through_the_definition(dtype):
    x, weight = values(2, 96).to(dtype), packed("fp8", 50, 96)
    assert torch.equal(CpuOperators().linear(x, weight), reference.linear(x, weight))


def test_gradients_pass_a_packed_weight():
    x = values(2, 96).bfloat16().requires_grad_()
    CpuOperators().linear(x, packed("fp8", 50, 96)).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("rows", [1, 5, PACKED_ROWS, PACKED_ROWS + 1])
@pytest.mark.parametrize("format", FORMATS)
@torch.inference_mode()
def test_grouped_linear(format, rows):
    ops, weight = CpuOperators(), packed(format, 3 * 26, 70)
    columns, parts = values(rows, 70, 3).bfloat16().transpose(1, 2), values(rows, 3, 99).bfloat16()[..., 5:75]
    for x in (columns, parts):
        found = ops.grouped_linear(x, weight).unflatten(1, (3, 26))
        for group, rows_OI in enumerate(dense(weight).view(3, 26, 70)):
            assert_product(found[:, group], x[:, group], rows_OI, weight_rounded=True)


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("counts", [[1, 0, 3], [0, 0, 1], [12, 1, 2], [0, 0, 0], [17, 0, 50]])
@pytest.mark.parametrize(("width", "inner"), [(70, 46), (256, 32), (64, 160)])
@pytest.mark.parametrize("format", FORMATS)
@torch.inference_mode()
def test_experts(kernels, format, width, inner, counts, limit):
    x = values(sum(counts), width).bfloat16()
    stacks = (
        packed(format, 3, inner, width, scale=0.3, seed=1),
        packed(format, 3, width, inner, scale=0.2, seed=2),
        packed(format, 3, inner, width, scale=0.3, seed=3),
    )
    operands = kernels.stacks(*stacks, width)
    assert operands is not None
    found = kernels.experts(x, torch.tensor(counts), *operands, limit)
    assert found.shape == x.shape
    if sum(counts):
        needed = reference.expert_loop(x.float(), torch.tensor(counts), *map(dense, stacks), limit)
        # Two roundings to BF16 on the way (hidden, result), of the largest value.
        assert (found.float() - needed).abs().max() <= 2**-7 * needed.abs().max()


@torch.inference_mode()
def test_experts_of_unlike_packings_go_one_by_one(kernels):
    stacks = packed("fp8", 2, 64, 96), packed("fp8 32x32", 2, 96, 64, scale=0.1), packed("fp8", 2, 64, 96)
    assert kernels.stacks(*stacks, 96) is None
    x, counts = values(5, 96).bfloat16(), torch.tensor([2, 3])
    found = CpuOperators().each_expert(x, counts, *stacks, None)
    needed = reference.expert_loop(x.float(), counts, *map(dense, stacks), None)
    assert (found.float() - needed).abs().max() <= 2**-7 * needed.abs().max()


HEADS, NOPE, ROPE, VALUE, RANK = 5, 23, 8, 16, 32  # an odd width has no pairs


def latent_step(ops, segments, tables):
    """A view of one layer's latents with these segments appended, and queries for them."""
    stream = Stream("latent", layers=(0,), family="history", ratio=1, shape=(RANK + ROPE,), dtype="cache")
    plan = CachePlan(
        (stream,), block_tokens=16, num_blocks=24, num_rings=0, num_snapshots=0, max_draft=2, dtype="bfloat16"
    )
    cache = StreamCache(plan, torch.device("cpu"), ops)
    cache.pool("latent", 0).copy_(values(24, 16, RANK + ROPE))
    view, tokens = PagedView(cache, segments, tables, [-1] * len(segments)), segments[-1].last
    view.append_tokens("latent", 0, values(tokens, RANK + ROPE, seed=5).bfloat16())
    query = values(tokens, HEADS, NOPE + ROPE).bfloat16()
    return view, *query.split((NOPE, ROPE), dim=-1)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", ["decode", "chosen keys", "prefill"])
@torch.inference_mode()
def test_latent_attention(format, case):
    ops, wkv_b = CpuOperators(), packed(format, HEADS * (NOPE + VALUE), RANK, scale=0.2, seed=2)
    segments = [Segment(0, 1, 36), Segment(1, 4, 15), Segment(4, 5, 0), Segment(5, 6, 30, origin=17)]
    tables, picks = [[7, 2, 11], [3, 9], [0], [5, 4]], None
    if case == "prefill":
        segments, tables = [Segment(0, 100, 20)], [list(range(8))]
    if case == "chosen keys":
        picks = [torch.tensor([[3, 30, 36, 4]]), None, None, torch.tensor([[1, 2, 13]])]
    view, nope, rope = latent_step(ops, segments, tables)
    found = ops.latent_attention(nope, rope, wkv_b, view, 0, 0.2, VALUE, picks)
    needed = reference.latent_attention(nope, rope, dense(wkv_b).bfloat16(), view, 0, 0.2, VALUE, picks)
    assert found.shape == needed.shape
    assert (found.float() - needed.float()).abs().max() <= 2**-6 * needed.float().abs().max()


class WithoutVbmi:
    """The real library on a processor that lacks an instruction."""

    def __init__(self, library):
        self._library = library

    def __getattr__(self, name):
        return (lambda: 0) if name == "tiefsee_packed_best" else getattr(self._library, name)


class OlderBuild(WithoutVbmi):
    """The library as it was before it had kernels for packed weights."""

    def __getattr__(self, name):
        if "packed" in name:
            raise AttributeError(name)
        return getattr(self._library, name)


@pytest.mark.parametrize(("lacking", "note"), [(WithoutVbmi, "no AVX512-VBMI"), (OlderBuild, "older tiefsee")])
@torch.inference_mode()
def test_without_these_kernels_torch_unpacks_and_says_so(kernels, monkeypatch, lacking, note):
    library = native.load().library
    monkeypatch.setattr(native, "load", lambda: native.Products(lacking(library)))
    ops = CpuOperators()
    assert note in ops.notes[0]
    x, weight = values(2, 96).bfloat16(), packed("fp8", 50, 96)
    assert_product(ops.linear(x, weight), x, dense(weight), weight_rounded=True)
    assert ops.grouped_linear(values(2, 5, 96).bfloat16(), weight).shape == (2, 50)
