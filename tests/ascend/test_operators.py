"""Each adapter on the card against the definition on the CPU, one operator at a time, and what the emulator refuses."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.ascend.rounded import RoundedOperators
from tiefsee.engine.cache import CachePlan, PagedView, StreamCache
from tiefsee.layouts import ROWS
from tiefsee.ops import Operators, formats, operators_for, reference
from tiefsee.ops.ascend import AscendOperators, hyper
from tiefsee.ops.ascend.chip import chip_of
from tiefsee.ops.ascend.settle import both_of, settled
from tiefsee.ops.view import Segment
from tiefsee.ops.weight import Packing, Weight, dense
from tiefsee.spec.model import Router
from tiefsee.streams import Stream

BF16 = torch.bfloat16
# One rounding to BF16 of a number of the size of the largest.
STEP = 2**-8


def values(*shape, dtype=BF16, scale=1.0, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


ERRORS: list[float] = []


def assert_near(found, needed, steps=2):
    found = found.cpu()
    assert found.shape == needed.shape
    assert found.dtype == needed.dtype
    one = (STEP if found.dtype == BF16 else 1e-5) * float(needed.float().abs().max())
    ERRORS.append(float((found.float() - needed.float()).abs().max()) / one)
    assert ERRORS[-1] <= steps


@pytest.fixture(autouse=True)
def note_the_largest_error(record_property):
    """For the report of a machine with a card: how far the kernels' roundings are from those that are assumed."""
    ERRORS.clear()
    yield
    if ERRORS:
        record_property("largest error, in roundings of the result", f"{max(ERRORS):.2f}")


@pytest.fixture(scope="module")
def ops(npu):
    return operators_for(npu)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_norm_rotation_activation(ops, npu, dtype):
    x, weight = values(7, 3, 64, dtype=dtype), values(64, dtype=dtype, seed=1)
    angles = torch.linspace(0, 6, 7 * 32).view(7, 1, 32)
    cos, sin = angles.cos(), angles.sin()
    assert_near(ops.rms_norm(x.to(npu), weight.to(npu), 1e-6), reference.rms_norm(x, weight, 1e-6))
    assert_near(ops.rms_norm(x.to(npu), None, 1e-6), reference.rms_norm(x, None, 1e-6))
    for name in ("rotate_pairs", "rotate_halves"):
        needed = getattr(reference, name)(x, cos, sin)
        assert_near(getattr(ops, name)(x.to(npu), cos.to(npu), sin.to(npu)), needed)
    flat = reference.rotate_pairs(x[:, 0], cos[:, 0], sin[:, 0])
    assert_near(ops.rotate_pairs(x[:, 0].to(npu), cos[:, 0].to(npu), sin[:, 0].to(npu)), flat)
    for limit in (None, 0.7):
        needed = RoundedOperators().swiglu(x, x.flip(0), limit)
        assert_near(ops.swiglu(x.to(npu), x.flip(0).to(npu), limit), needed)


ROUTERS = {
    "v2": Router("softmax", "group_limited_greedy", 3, 16.0, False, 4, 2),
    "v2-greedy": Router("softmax", "greedy", 6, 1.0, False),
    "v3": Router("sigmoid", "noaux_tc", 4, 2.5, True, 4, 2),
    "v4": Router("sqrtsoftplus", "noaux_tc", 4, 1.5, True),
    "v4-hash": Router("sqrtsoftplus", "hash", 4, 1.5, True),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_gating(npu, ops, name):
    """Of V4 it is the definition, unless the chip is a 950."""
    router = ROUTERS[name]
    hidden, weight = values(20, 48), values(32, 48, dtype=torch.float32, seed=1, scale=0.3)
    bias = values(32, dtype=torch.float32, seed=2, scale=0.2) if router.has_bias else None
    tokens = torch.arange(20) % 11
    table = torch.stack([torch.randperm(32)[:4] for _ in range(11)]) if router.selection == "hash" else None
    experts, weights = Operators().route(hidden, weight, bias, router, tokens, table)
    on = [None if t is None else t.to(npu) for t in (hidden, weight, bias, tokens, table)]
    found, found_weights = ops.route(on[0], on[1], on[2], router, on[3], on[4])
    assert torch.equal(found.cpu(), experts)
    assert_near(found_weights, weights)


def int8_stack(*shape, seed):
    codes, scale = formats.pack_int8(values(*shape, seed=seed, scale=shape[-1] ** -0.5, dtype=torch.float32))
    return Weight(codes, scale, Packing("int8"))


def experts_module(stacks):
    """As the network holds them."""
    module = torch.nn.Module()
    for name, stack in zip(("w1", "w2", "w3"), stacks, strict=True):
        setattr(module, name, torch.nn.Parameter(stack, False) if isinstance(stack, torch.Tensor) else stack)
    return module


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("kind", ["bfloat16", "float32", "int8"])
def test_experts(npu, ops, kind, limit):
    dtype = torch.float32 if kind == "float32" else BF16
    hidden, picks = values(9, 64, dtype=dtype), torch.stack([torch.randperm(6)[:2] for _ in range(9)])
    picks[picks == 4] = 5  # an expert that nobody visits; one token visits another twice, which is allowed
    weights = torch.rand(9, 2)
    if kind == "int8":
        stacks = [int8_stack(6, 32, 64, seed=1), int8_stack(6, 64, 32, seed=2), int8_stack(6, 32, 64, seed=3)]
        moved = [Weight(w.data.to(npu), w.scale.to(npu), w.packing) for w in stacks]
    else:
        stacks = [values(6, 32, 64, dtype=dtype, seed=1, scale=0.2), values(6, 64, 32, dtype=dtype, seed=2, scale=0.2),
                  values(6, 32, 64, dtype=dtype, seed=3, scale=0.2)]  # fmt: skip
        moved = [w.to(npu) for w in stacks]
    on_card = hidden.to(npu), picks.to(npu), weights.to(npu)
    needed = RoundedOperators(settled=False).run_experts(hidden, picks, weights, *stacks, limit)
    assert_near(ops.run_experts(*on_card, *moved, limit), needed)
    module = experts_module(moved)
    ops.settle(module, dtype)
    rounded = RoundedOperators(settled=ops.chip.generation.has_gated_quant)
    needed = rounded.run_experts(hidden, picks, weights, *stacks, limit)
    found = ops.run_experts(*on_card, module.w1, module.w2, module.w3, limit)
    assert_near(found, needed)
    assert module.w1.shape == module.w3.shape == (6, 32, 64)
    for name, stack in zip(("w1", "w2", "w3"), stacks, strict=True):  # what the definition reads is what it was
        for mine, theirs in zip(getattr(module, name).unbind(), stack.unbind(), strict=True):
            assert torch.equal(dense(mine, dtype).cpu(), dense(theirs, dtype))


@pytest.mark.parametrize("span", [(0, 2), (2, 5), (4, 6)])  # of the middle one nobody picks the last
@pytest.mark.parametrize("kind", ["bfloat16", "float32", "int8"])
def test_experts_of_one_rank(npu, ops, kind, span):
    dtype = torch.float32 if kind == "float32" else BF16
    hidden, picks = values(9, 64, dtype=dtype), torch.stack([torch.randperm(6)[:2] for _ in range(9)])
    picks[picks == 4] = 5
    weights, share = torch.rand(9, 2), (span[0], 6)
    if kind == "int8":
        stacks = [int8_stack(6, 32, 64, seed=1), int8_stack(6, 64, 32, seed=2), int8_stack(6, 32, 64, seed=3)]
        own = [Weight(w.data[slice(*span)], w.scale[slice(*span)], w.packing) for w in stacks]
        moved = [Weight(w.data.to(npu), w.scale.to(npu), w.packing) for w in own]
    else:
        shapes = ((6, 32, 64), (6, 64, 32), (6, 32, 64))
        own = [values(*s, dtype=dtype, seed=n, scale=0.2)[slice(*span)] for n, s in enumerate(shapes)]
        moved = [w.contiguous().to(npu) for w in own]
    on_card = hidden.to(npu), picks.to(npu), weights.to(npu)
    needed = RoundedOperators(settled=False).run_experts(hidden, picks, weights, *own, None, share)
    assert_near(ops.run_experts(*on_card, *moved, None, share), needed)
    module = experts_module(moved)
    ops.settle(module, dtype)
    rounded = RoundedOperators(settled=ops.chip.generation.has_gated_quant)
    needed = rounded.run_experts(hidden, picks, weights, *own, None, share)
    assert_near(ops.run_experts(*on_card, module.w1, module.w2, module.w3, None, share), needed)


def test_int8_linear(npu, ops):
    x, weight, bias = values(5, 3, 96), int8_stack(40, 96, seed=1), values(40, seed=2)
    moved = Weight(weight.data.to(npu), weight.scale.to(npu), weight.packing)
    needed = RoundedOperators().linear(x, weight, bias)
    assert_near(ops.linear(x.to(npu), moved, bias.to(npu)), needed)
    ordered = settled(moved, ops.chip.generation, in_order=True)
    assert_near(ops.linear(x.to(npu), ordered, bias.to(npu)), needed)
    assert torch.equal(dense(ordered, BF16).cpu(), dense(weight, BF16))  # in whichever order it lies
    # In float32 the weight is unpacked: an INT8 product would need FP16 or BF16 activations.
    needed = reference.linear(x.float(), weight, bias.float())
    assert_near(ops.linear(x.float().to(npu), moved, bias.float().to(npu)), needed)


def test_more_rows_than_one_product_takes(npu, ops):
    """65,536 rows of V4-Pro's wq_b."""
    x, weight = values(2, 32), first_of(int8_stack(1, 65536, 32, seed=1))
    needed = RoundedOperators().linear(x, weight)
    for moved in (on(npu, weight), settled(on(npu, weight), ops.chip.generation, in_order=True)):
        assert_near(ops.linear(x.to(npu), moved), needed)


def packed_stack(kind, *shape, seed):
    """FP8 in blocks of 128 or of 32, or FP4; on the CPU."""
    wide = [values(*shape[-2:], seed=seed + e, scale=shape[-1] ** -0.5, dtype=torch.float32) for e in range(shape[0])]
    block = (32, 32) if kind == "mx" else (128, 128)
    pack = formats.pack_fp4 if kind == "mx4" else partial(formats.pack_fp8, block=block, ue8m0=kind == "mx")
    data, scale = (torch.stack(part) for part in zip(*map(pack, wide), strict=True))
    return Weight(data, scale, Packing("fp4" if kind == "mx4" else "fp8", block))


def on(device, weight):
    return Weight(weight.data.to(device), weight.scale.to(device), weight.packing)


def first_of(stack):
    return Weight(stack.data[0], stack.scale[0], stack.packing)


@pytest.fixture
def multiplies_fp8(ops):
    if not ops.chip.generation.has_block_products:
        pytest.skip(f"{ops.chip} multiplies no FP8")


IN_FP8 = RoundedOperators(multiplies_fp8=True)


@pytest.mark.usefixtures("multiplies_fp8")
@pytest.mark.parametrize("kind", ["blocks", "mx"])
@pytest.mark.parametrize("shape", [(256, 384), (200, 160)], ids=["whole-blocks", "cut-blocks"])
def test_fp8_linear(npu, ops, kind, shape):
    x, weight, bias = values(5, 3, shape[1]), first_of(packed_stack(kind, 1, *shape, seed=1)), values(shape[0], seed=2)
    x[1, 0] = 0  # a row of zeros has no scale
    needed = IN_FP8.linear(x, weight, bias)
    for moved in (on(npu, weight), settled(on(npu, weight), ops.chip.generation, in_order=True)):
        assert_near(ops.linear(x.to(npu), moved, bias.to(npu)), needed)
    # In float32 the weight is unpacked, exactly.
    needed = reference.linear(x.float(), weight, bias.float())
    assert_near(ops.linear(x.float().to(npu), on(npu, weight), bias.float().to(npu)), needed)


@pytest.mark.usefixtures("multiplies_fp8")
@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize(("kind", "width"), [("blocks", 256), ("blocks", 192), ("mx", 192), ("mx4", 192)])
def test_fp8_and_fp4_experts(npu, ops, kind, width, limit):
    """In blocks of 128, gate and up of 192 rows cannot lie side by side: one block would hold rows of both."""
    hidden, picks, weights = values(9, 128), torch.stack([torch.randperm(6)[:2] for _ in range(9)]), torch.rand(9, 2)
    picks[picks == 4] = 5
    shapes = ((6, width, 128), (6, 128, width), (6, width, 128))
    stacks = [packed_stack(kind, *shape, seed=10 * n) for n, shape in enumerate(shapes)]
    module = experts_module([on(npu, s) for s in stacks])
    ops.settle(module, BF16)
    needed = IN_FP8.run_experts(hidden, picks, weights, *stacks, limit)
    found = ops.run_experts(hidden.to(npu), picks.to(npu), weights.to(npu), module.w1, module.w2, module.w3, limit)
    assert_near(found, needed)
    if kind == "mx4":
        assert module.w1.scale.dtype == torch.uint8  # a byte for 32 values, not four
        return
    for name, stack in zip(("w1", "w2", "w3"), stacks, strict=True):
        for mine, theirs in zip(getattr(module, name).unbind(), stack.unbind(), strict=True):
            assert torch.equal(dense(mine, BF16).cpu(), dense(theirs, BF16))


@pytest.mark.usefixtures("multiplies_fp8")
def test_fp4_in_odd_widths_is_the_definition(npu, ops):
    hidden, picks = values(4, 96, dtype=BF16), torch.tensor([[0, 1]] * 4)
    stacks = [packed_stack("mx4", 3, 32, 96, seed=1), packed_stack("mx4", 3, 96, 32, seed=2),
              packed_stack("mx4", 3, 32, 96, seed=3)]  # fmt: skip
    module = experts_module([on(npu, s) for s in stacks])
    ops.settle(module, BF16)
    assert type(module.w1) is Weight
    weights = torch.rand(4, 2)
    needed = reference.run_experts(hidden, picks, weights, *stacks, None)
    found = ops.run_experts(hidden.to(npu), picks.to(npu), weights.to(npu), module.w1, module.w2, module.w3, None)
    assert_near(found, needed)


@pytest.mark.usefixtures("multiplies_fp8")
def test_fp4_that_was_not_brought_in_order_is_the_definition(npu, ops):
    hidden, picks, weights = values(4, 128), torch.tensor([[0, 1]] * 4), torch.rand(4, 2)
    shapes = ((3, 192, 128), (3, 128, 192), (3, 192, 128))
    stacks = [packed_stack("mx4", *shape, seed=n) for n, shape in enumerate(shapes)]
    needed = reference.run_experts(hidden, picks, weights, *stacks, None)
    found = ops.run_experts(hidden.to(npu), picks.to(npu), weights.to(npu), *(on(npu, s) for s in stacks), None)
    assert_near(found, needed)


@pytest.mark.parametrize("kind", ["int8", "blocks", "mx"])
def test_grouped_linear(npu, ops, kind):
    """V4's output projection, [T, G, I] by G blocks of rows."""
    x = values(7, 3, 160)
    if kind == "int8":
        stack = int8_stack(3, 128, 160, seed=1)
    else:
        stack = packed_stack(kind, 3, 128, 160, seed=1)
    flat = Weight(stack.data.flatten(0, 1), stack.scale.flatten(0, 1), stack.packing)
    fused = kind == "int8" or ops.chip.generation.has_block_products
    needed = (IN_FP8 if fused else Operators()).grouped_linear(x, flat)
    for moved in (on(npu, flat), settled(on(npu, flat), ops.chip.generation, in_order=False)):
        assert_near(ops.grouped_linear(x.to(npu), moved), needed)


@pytest.mark.usefixtures("multiplies_fp8")
def test_groups_that_share_a_block_are_unpacked(npu, ops):
    """Three groups of 64 rows: the second lies in the first block of 128 and has no scales of its own."""
    data, scale = formats.pack_fp8(values(192, 256, dtype=torch.float32, scale=1 / 16), block=(128, 128), ue8m0=False)
    weight, x = Weight(data, scale, Packing("fp8", (128, 128))), values(7, 3, 256)
    assert_near(ops.grouped_linear(x.to(npu), on(npu, weight)), reference.grouped_linear(x, weight))


LATENT = Stream("latent", layers=(0,), family="history", shape=(576,), num_rotated=64)
INDEX = Stream("index", layers=(0,), family="history", shape=(128,))
# Requests: decode, drafts, a first token, a long chunk, a prompt; (tokens, start, origin).
SPANS = [(1, 500, 0), (3, 130, 0), (1, 0, 0), (40, 300, 0), (17, 0, 0), (1, 40, 7), (30, 5, 5)]
TABLES = [[5, 0], [3], [7], [9, 2], [4], [6], [1]]


def views(spans, npu):
    """The same rows on the CPU in plain rows, and on the card apart, in scattered pages."""
    segments, first = [], 0
    for count, start, origin in spans:
        segments.append(Segment(first, first + count, start, origin))
        first += count
    found = []
    for device, ops in ((torch.device("cpu"), RoundedOperators()), (npu, operators_for(npu))):
        layout = ROWS if device.type == "cpu" else ops.layout
        plan = CachePlan((LATENT, INDEX), 256, 10, 0, 0, 0, "bfloat16", layout)
        cache = StreamCache(plan, device, ops)
        for i, segment in enumerate(segments):
            one = PagedView(cache, [Segment(0, segment.end, 0)], [TABLES[i]], [0])
            one.append_tokens("latent", 0, values(segment.end, 576, seed=100 + i, scale=0.3).to(device))
            one.append_tokens("index", 0, values(segment.end, 128, seed=200 + i).to(device))
        found.append(PagedView(cache, segments, TABLES[: len(segments)], [0] * len(segments)))
    return first, found[0], found[1]


LATE = [(2, 300, 3), (1, 40, 7)]  # drafts of an MTP layer: both are gathered, ends of their rows are running sums


@pytest.mark.parametrize("spans", [SPANS, SPANS[:3], SPANS[3:5], LATE], ids=["mixed", "decode", "prefill", "late"])
def test_latent_attention(npu, ops, spans):
    tokens, on_cpu, on_npu = views(spans, npu)
    heads = 4
    nope, rope = values(tokens, heads, 128), values(tokens, heads, 64, seed=1)
    weight = values(heads * 256, 512, seed=2, scale=512**-0.5)
    needed = RoundedOperators().latent_attention(nope, rope, weight, on_cpu, 0, 0.07, 128)
    found = ops.latent_attention(nope.to(npu), rope.to(npu), weight.to(npu), on_npu, 0, 0.07, 128)
    assert_near(found, needed)


def test_heads_of_other_widths_are_the_definition(npu, ops):
    """Decodes stay fused (D = 512 asks nothing of the heads), prompts are not; picks of late segments beside them."""
    tokens, on_cpu, on_npu = views(SPANS, npu)
    nope, rope, weight = values(tokens, 4, 96), values(tokens, 4, 64, seed=1), values(4 * 160, 512, seed=2, scale=0.04)
    picks = [None] * len(SPANS)
    picks[6] = torch.arange(20).expand(30, 20)
    moved = [None if p is None else p.to(npu) for p in picks]
    needed = RoundedOperators().latent_attention(nope, rope, weight, on_cpu, 0, 0.07, 64, picks)
    found = ops.latent_attention(nope.to(npu), rope.to(npu), weight.to(npu), on_npu, 0, 0.07, 64, moved)
    assert found.shape == (tokens, 4, 64)
    assert_near(found, needed, steps=8)  # the definition rounds its scores


@pytest.mark.parametrize("spans", [SPANS[:5], SPANS], ids=["from-the-start", "late-ones-too"])
def test_picks_and_the_attention_over_them(npu, ops, spans):
    tokens, on_cpu, on_npu = views(spans, npu)
    query, weights = values(tokens, 4, 128), values(tokens, 4, seed=1, dtype=torch.float32)
    needed = RoundedOperators().pick_keys(query, weights, on_cpu, 0, 32)
    found = ops.pick_keys(query.to(npu), weights.to(npu), on_npu, 0, 32)
    assert [p is None for p in found] == [p is None for p in needed]
    for segment, mine, theirs in zip(on_cpu.segments, found, needed, strict=True):
        for row, (a, b) in enumerate(zip(mine.tolist(), theirs.tolist(), strict=True) if mine is not None else ()):
            visible = segment.start + row + 1 - segment.origin
            assert {k for k in a if k < visible} == {k for k in b if k < visible}
            assert len(a) == len(b) == 32
            assert all(0 <= k < segment.end - segment.origin for k in a)
    heads = 4
    nope, rope = values(tokens, heads, 128), values(tokens, heads, 64, seed=1)
    weight = values(heads * 256, 512, seed=2, scale=512**-0.5)
    attended = RoundedOperators().latent_attention(nope, rope, weight, on_cpu, 0, 0.07, 128, needed)
    assert_near(ops.latent_attention(nope.to(npu), rope.to(npu), weight.to(npu), on_npu, 0, 0.07, 128, found), attended)


@pytest.mark.parametrize("dtype", [BF16, torch.float32, torch.int8, torch.uint8])
def test_rows_are_written_in_place(npu, ops, dtype):
    pool, rows = torch.zeros(12, 5, dtype=dtype), values(3, 5, scale=20).to(dtype)
    slots = torch.tensor([7, 0, 11])
    found = pool.clone().to(npu)
    ops.write_rows(found, slots.to(npu), rows.to(npu))
    assert torch.equal(found.cpu(), pool.index_copy(0, slots, rows))
    ops.write_rows(found, slots[:0].to(npu), rows[:0].to(npu))


def test_training_runs_the_definition(npu, ops):
    with torch.inference_mode(False), torch.enable_grad():
        x = values(4, 64, dtype=torch.float32).to(npu).requires_grad_()
        weight = torch.ones(64).to(npu).requires_grad_()
        ops.rms_norm(x, weight, 1e-6).square().sum().backward()
    assert weight.grad is not None
    needed = torch.ones(64, requires_grad=True)
    with torch.inference_mode(False), torch.enable_grad():
        reference.rms_norm(values(4, 64, dtype=torch.float32), needed, 1e-6).square().sum().backward()
    assert_near(weight.grad, needed.grad)


# ------------------------------------------------------------------- what the documentation refuses, the emulator does


def test_the_emulator_refuses_float32_attention(emulated):
    query, rope = torch.zeros(1, 4, 512).to(emulated), torch.zeros(1, 4, 64).to(emulated)
    with pytest.raises(RuntimeError, match=r"query is torch\.float32; FP16, BF16 and INT8"):
        torch.ops.npu.npu_fused_infer_attention_score_v2(
            query, query[:, :1], query[:, :1], query_rope=rope, key_rope=rope[:, :1], actual_seq_qlen=[1],
            actual_seq_kvlen=[1], num_query_heads=4, num_key_value_heads=1, input_layout="TND",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"heads": 6}, "6 heads"),
        ({"block_size": 24}, "multiple of 16"),
        ({"tokens": 17}, "17 queries of one request"),
        ({"mask": torch.ones(2048, 2048, dtype=torch.int8)}, "1 above the diagonal"),
        ({"table": torch.int64}, "block_table is int32"),
    ],
)
def test_the_emulator_refuses_other_shapes(emulated, change, word):
    heads, tokens, size = change.get("heads", 4), change.get("tokens", 2), change.get("block_size", 128)
    mask = change.get("mask", torch.ones(2048, 2048, dtype=torch.int8).triu(1)).to(emulated)
    pages, rotated = (torch.zeros(2, 1, size, width, dtype=BF16).to(emulated) for width in (512, 64))
    query, rope = (torch.zeros(tokens, heads, width, dtype=BF16).to(emulated) for width in (512, 64))
    with pytest.raises(RuntimeError, match=word):
        torch.ops.npu.npu_fused_infer_attention_score_v2(
            query, pages, pages, query_rope=rope, key_rope=rotated, atten_mask=mask, actual_seq_qlen=[tokens],
            actual_seq_kvlen=[20], block_table=torch.zeros(1, 1, dtype=change.get("table", torch.int32)).to(emulated),
            block_size=size, num_query_heads=heads, num_key_value_heads=1, input_layout="TND", sparse_mode=3,
        )  # fmt: skip


def test_grouped_products_want_bf16_scales(emulated):
    x, weight = torch.zeros(4, 64, dtype=torch.int8).to(emulated), torch.zeros(2, 64, 32, dtype=torch.int8).to(emulated)
    counts, scale, row = torch.tensor([2, 2]).to(emulated), torch.ones(2, 32).to(emulated), torch.ones(4).to(emulated)
    with pytest.raises(RuntimeError, match=r"scale is torch\.float32 for results in torch\.bfloat16"):
        torch.ops.npu.npu_grouped_matmul(
            [x], [weight], scale=[scale], per_token_scale=[row], group_list=counts, split_item=3, group_type=0,
            group_list_type=1, output_dtype=BF16,
        )  # fmt: skip


def test_hyper_connections_of_ascend_950(soc, npu):
    streams, width, output = values(6, 4, 32), 32, values(6, 32, seed=5)
    fn, base = values(24, 4 * width, dtype=torch.float32, seed=1, scale=0.1), values(24, dtype=torch.float32, seed=2)
    scale = torch.tensor([0.5, 0.4, 0.3])
    moved = [t.to(npu) for t in (streams, fn, base, scale)]
    if not soc.startswith("Ascend950"):
        with pytest.raises(RuntimeError, match="has no fused hyper-connections"):
            hyper.mix(*moved, 5, 1e-6, 1e-6)
        return
    needed = reference.hyper_mix(streams, fn, base, scale, 5, 1e-6, 1e-6)
    ops = AscendOperators(chip_of(soc))
    found = ops.hyper_mix(*moved, 5, 1e-6, 1e-6)
    for mine, theirs in zip(found, needed, strict=True):
        assert_near(mine, theirs)
    joined = reference.hyper_join(streams, output, *needed[1:])
    assert_near(ops.hyper_join(moved[0], output.to(npu), *found[1:]), joined)


def test_halves_that_lie_apart_are_not_taken_for_one():
    """w1 and w3 are gate and up of one tensor only if they alternate in it, expert by expert."""
    both = torch.zeros(3, 8, 16)
    assert both_of(both[:, :4], both[:, 4:]).data_ptr() == both.data_ptr()
    assert both_of(both[:, :4], both[:, :4]) is None
    assert both_of(both[:, 4:], both[:, :4]) is None
    in_turn = torch.zeros(3, 4, 16)
    assert both_of(in_turn[0:2], in_turn[1:3]) is None  # w3 begins where the first expert's w1 ends, and that is all
