"""What a card holds: against numbers worked out by hand, and against what a steady loop of requests really takes."""

from __future__ import annotations

import random

import pytest

from tiefsee.errors import OutOfMemory
from tiefsee.hardware import find_chip
from tiefsee.plan.names.formats import formats_of
from tiefsee.plan.serving.cache import cache_bytes
from tiefsee.plan.serving.memory import check_fits, worker_memory
from tiefsee.plan.serving.weights import rank_weight_bytes
from tiefsee.plan.serving.worker import Worker
from tiefsee.spec import cache_streams, preset
from tiefsee.spec.size import weight_bytes

V3_EXPERTS = 58 * 256 * 3 * 7168 * 2048  # values of all routed experts: 653.9e9


def worker(model="v3", chip="h200", precision="fp8", tp=8, dp=1, ep=8, moe_tp=1):
    return Worker(preset(model), find_chip(chip), formats_of(precision), tp=tp, dp=dp, ep=ep, moe_tp=moe_tp)


def memory(isl=4096, drafts=0, keeps_prefixes=False, **layout):
    return worker_memory(worker(**layout), isl=isl, drafts=drafts, keeps_prefixes=keeps_prefixes)


def test_v3_in_fp8_is_673_gb():
    """671.03e9 parameters in a byte each, but embedding, head (129,280 x 7,168 each) and router gates in two."""
    in_bf16 = 2 * 129280 * 7168 + 58 * 256 * 7168
    found = rank_weight_bytes(preset("v3"), formats_of("fp8"), 1, 1, 1)
    assert found == pytest.approx(671.026e9 + in_bf16, rel=2e-4)


@pytest.mark.parametrize("model", ["v2", "v2-lite", "v3", "v3.2"])
def test_weights_agree_with_the_list_of_all_tensors(model):
    """`spec/size` lists every tensor with its scales; here layers of a kind are counted."""
    spec, precision = preset(model), "fp8" if model.startswith("v3") else "bf16"
    listed = weight_bytes(spec, "keep", "bfloat16", with_mtp=False)
    assert rank_weight_bytes(spec, formats_of(precision), 1, 1, 1) == pytest.approx(listed, rel=1e-3)


def test_experts_are_split_and_the_rest_is_split_or_copied():
    spec, formats = preset("v3"), formats_of("fp8")
    whole, spread = (rank_weight_bytes(spec, formats, 1, ep, 1) for ep in (1, 8))
    assert whole - spread == pytest.approx(V3_EXPERTS * 7 / 8)
    split = rank_weight_bytes(spec, formats, 1, 1, 8)
    assert split == pytest.approx(spread)
    # Over 8 ranks: query, key-value and output projections of 61 layers, dense and shared products, the vocabulary.
    by_tp = 61 * (1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168) + 3 * 3 * 7168 * 18432 + 58 * 3 * 7168 * 2048
    assert spread - rank_weight_bytes(spec, formats, 8, 8, 1) == pytest.approx(
        (by_tp + 2 * 2 * 129280 * 7168) * 7 / 8, rel=1e-6
    )


def test_experts_that_do_not_divide_and_copies_are_whole_experts():
    spec, formats, each = preset("v3"), formats_of("fp8"), V3_EXPERTS / 256
    even = rank_weight_bytes(spec, formats, 1, 128, 1)
    assert rank_weight_bytes(spec, formats, 1, 144, 1) == pytest.approx(even)  # 256 / 144: two each, as with 32 copies
    assert rank_weight_bytes(spec, formats, 1, 128, 1, redundant_experts=128) == pytest.approx(even + each)


def test_latents_are_copied_by_tensor_parallelism():
    """70,272 B per token (ISCA 2025, table 1), on each rank of a TP group."""
    alone, group = memory(tp=1, dp=8), memory(tp=8)
    assert alone.token_bytes == group.token_bytes == 70272
    assert group.num_groups == 1
    assert group.max_requests(4096, 1024) < alone.max_requests(4096, 1024)


def test_v4_counts_rings_and_snapshots():
    streams = cache_streams(preset("v4-flash"), speculate=False)
    plain = memory(model="v4-flash", precision="fp4", tp=4, ep=4)
    kept = memory(model="v4-flash", precision="fp4", tp=4, ep=4, keeps_prefixes=True)
    assert plain.request_bytes == sum(s.ring_bytes(0, "float8_e4m3") for s in streams) > 1e6
    assert kept.request_bytes - plain.request_bytes == sum(s.snapshot_bytes("float8_e4m3") for s in streams) > 1e6
    assert memory(model="v4-flash", precision="fp4", tp=4, ep=4, drafts=1).request_bytes > plain.request_bytes


def test_drafts_take_the_mtp_layer_and_its_cache():
    plain, drafting = memory(), memory(drafts=1)
    assert drafting.token_bytes == 70272 + 1152
    # 11.6e9 values over 8 ranks, but for what each has: the joining matrix, and the projections to the latents.
    copied = 2 * 7168 * 7168 + 7168 * (1536 + 576) + 2 * 256 * 7168
    assert drafting.weight_bytes - plain.weight_bytes == pytest.approx((11.61e9 - copied) / 8 + copied, rel=0.01)


def test_parts_add_up_to_the_card():
    found = memory(tp=1, dp=16, ep=16)
    assert sum(found.parts().values()) == pytest.approx(found.card_bytes)
    assert min(found.parts().values()) > 0
    assert found.exchange_bytes == 4 * 256 * 128 * 7168 * 2  # DeepEP's buffers
    assert worker_memory(worker(tp=1, dp=16, ep=16), isl=4096, decode=False).exchange_bytes == 0


def test_a_longer_prompt_or_answer_never_admits_more():
    found = memory()
    counts = [found.max_requests(isl, osl) for isl, osl in ((512, 128), (1024, 128), (4096, 128), (4096, 4096))]
    assert counts == sorted(counts, reverse=True)
    assert found.requests_of_length(5120) <= found.max_requests(4096, 1024)


@pytest.mark.parametrize(("isl", "osl"), [(4096, 1024), (512, 8192), (60000, 500)])
def test_what_is_admitted_fits_while_requests_come_and_go(isl, osl):
    """Requests at random points of their answers: the cache holds them 19 times in 20, and not far more would fit."""
    found, dice = memory(), random.Random(1)
    most = found.max_requests(isl, osl)
    assert most > 0

    def overflows(batch):
        held = [sum(found.held_bytes(isl + dice.random() * osl) for _ in range(batch)) for _ in range(300)]
        return sum(total > found.cache_bytes for total in held) / len(held)

    assert overflows(most) < 0.05
    assert overflows(int(most * 1.25) + 1) > 0.5


def test_too_large_a_model_is_refused_with_bytes_and_a_way_out():
    """DeepSeek-V3 in FP8 never fitted one node of 8 x 80 GB."""
    w = worker(chip="h100")
    with pytest.raises(OutOfMemory, match=r"on 8 x h100: weights take 85\.1 GB.*GB short\. 16 such cards would"):
        check_fits(w, worker_memory(w, isl=4096), 4096, 1024)


def test_too_many_requests_are_refused_with_how_many_would_fit():
    w = worker()
    found = worker_memory(w, isl=4096)
    most = found.max_requests(4096, 1024)
    check_fits(w, found, 4096, 1024, most)
    with pytest.raises(OutOfMemory, match=rf"GB more than each card holds; {most} requests would fit"):
        check_fits(w, found, 4096, 1024, 3 * most)
    with pytest.raises(OutOfMemory, match=r"one request of 600,000 tokens.*tokens would fit"):
        check_fits(w, found, 590_000, 10_000)


def test_a_transfer_is_the_prompt_s_streams():
    assert cache_bytes(preset("v3"), "bf16", 4096) == 4096 * 70272
