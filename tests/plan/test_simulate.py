"""The simulation: everyone is served, nothing happens early, the scheduler is the engine's, and simple cases agree
with what can be worked out by hand."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.plan.pools import EFFICIENCY, pool, workload
from tiefsee.errors import ConfigError
from tiefsee.plan.search import Demand, Placement, Pool, Question, Slo, search
from tiefsee.plan.search.fill import fill
from tiefsee.plan.search.misses import Misses
from tiefsee.plan.search.sides import Side
from tiefsee.plan.serving.step import decode_s, prefill_s
from tiefsee.plan.simulate import Ask, Lengths, Trace, poisson, simulate, simulate_plans
from tiefsee.plan.simulate.lane import make_lane
from tiefsee.plan.simulate.run import choose_lanes
from tiefsee.schedule import Scheduler

SLO = Slo(0.05, 5.0)


def plan_of(load=None, chips="h200", count=8, tp=8, dp=1, concurrency=None, **more):
    """An aggregated plan of one layout, filled, or at a load of its own."""
    side = Side(pool(chips, count), load or workload())
    worker = next(w for w in side.workers if (w.tp, w.dp, w.moe_tp) == (tp, dp, 1))
    placement = Placement(side.workload, side.role(worker, count // worker.num_chips))
    plan = fill(placement, Slo(**more), Misses(), most=concurrency)
    assert plan is not None
    return plan


@pytest.fixture(scope="module")
def split():
    """A disaggregated plan, not filled up, so that it is quickly simulated."""
    best = search(Question(workload(), SLO, pool("h200", 32), aggregated=False), frontier=False).best
    plan = fill(best.placement, SLO, Misses(), most=320)
    assert plan is not None
    return plan


def same(first, second):
    return first.lives == second.lives and first.num_preemptions == second.num_preemptions


def test_everyone_is_served_and_nobody_before_he_came(split):
    for plan in (plan_of(concurrency=40), split):
        found = simulate(plan, SLO, requests_per_s=plan.served.requests_per_s * 0.8, num_requests=200, seed=3)
        assert found.num_requests == 200
        floor = plan.placement.roles[0].pool.efficiency.request_s
        for life in found.lives:
            assert life.first_s >= life.arrival_s + floor
            assert life.end_s > life.first_s
            assert (life.isl, life.osl) == (4096, 1024)
        assert found.goodput_requests_per_s == pytest.approx(found.requests_per_s * found.within)
        assert found.ttft.p50 <= found.ttft.p90 <= found.ttft.p99


def test_the_scheduler_is_the_engine_s():
    plan = plan_of(concurrency=8)
    lane = make_lane(plan.placement.decode, plan.placement.workload, 6000, 0, kind="both", prefixes=False)
    assert type(lane.scheduler) is Scheduler
    assert lane.scheduler.config.num_blocks == plan.placement.decode.memory.num_blocks
    assert lane.scheduler.config.block_tokens == plan.placement.decode.memory.block_tokens


def test_the_same_seed_is_the_same_life(split):
    for plan in (plan_of(workload(mtp_acceptance=0.7, drafts=2), concurrency=30), split):
        first, again, other = (
            simulate(plan, SLO, requests_per_s=2.0, num_requests=80, seed=seed) for seed in (5, 5, 6)
        )
        assert same(first, again)
        assert not same(first, other)


def test_one_request_alone_takes_what_its_steps_take():
    plan = plan_of(concurrency=1)
    worker = plan.placement.decode.worker
    (life,) = simulate(plan, SLO, source=Trace([Ask(2.0, 4096, 1024)])).lives
    step_s = decode_s(worker, 1.0, 4096 + 512, 0, EFFICIENCY)
    until_sent_s = EFFICIENCY.request_s + EFFICIENCY.first_steps * step_s
    assert life.ttft_s == pytest.approx(until_sent_s + prefill_s(worker, 4096, 0, EFFICIENCY), rel=0.02)
    assert life.tpot_s == pytest.approx(step_s, rel=0.02)


def test_prompts_alone_wait_as_in_a_queue_with_one_server(split):
    """Poisson arrivals at a prefill group, one alike prompt after the other: M/D/1, a mean wait of
    rho / (2 (1 - rho)) services. Prompts of 8,192 tokens fill a step, so that none share one."""
    load = workload(isl=8192, osl=2)
    side = Side(pool("h200", 16), load)
    worker = next(w for w in side.workers if (w.tp, w.dp, w.moe_tp) == (8, 1, 1))
    placement = Placement(load, side.role(worker, 1, prefill=False), side.role(worker, 1, decode=False))
    plan = fill(placement, Slo(), Misses(), most=2.0)
    assert plan is not None
    service_s = prefill_s(worker, 8192, 0, EFFICIENCY)
    rho = 0.7
    found = simulate(plan, SLO, requests_per_s=rho / service_s, num_requests=6000, seed=11)
    step_s = decode_s(worker, 1.0, 8192, 0, EFFICIENCY)
    until_sent_s = EFFICIENCY.request_s + EFFICIENCY.first_steps * step_s
    wait_s = found.ttft.mean - until_sent_s - service_s - placement.transfer_s
    assert wait_s == pytest.approx(rho / (2 * (1 - rho)) * service_s, rel=0.15)


def test_a_saturated_closed_loop_agrees_with_the_closed_form(split):
    """Without the waits that benchmarks add (waves) both describe the same thing: rate and TPOT within 10 %."""
    for plan in (plan_of(tpot_s=0.05), plan_of(workload(mtp_acceptance=0.8, drafts=1), tpot_s=0.05), split):
        found = simulate(plan, SLO, seed=1)
        assert found.tpot.mean == pytest.approx(plan.served.tpot_s, rel=0.1)
        # By Little's law the rate follows from both times.
        through = plan.concurrency / (found.ttft.mean + 1024 * found.tpot.mean)
        assert found.requests_per_s == pytest.approx(through, rel=0.06)


def test_more_load_never_shortens_the_wait():
    plan = plan_of(tpot_s=0.06)
    waits = [
        simulate(plan, SLO, requests_per_s=share * plan.served.requests_per_s, num_requests=400, seed=2).ttft.p90
        for share in (0.3, 0.6, 0.9)
    ]
    assert waits == sorted(waits)


def test_stretches_change_nothing(monkeypatch):
    """One call for many steps gives what single steps give: TTFT, TPOT and order of all."""
    plan = plan_of(concurrency=12)
    lengths = Lengths(plan.placement.workload, low=0.5)

    def run():
        return simulate(plan, SLO, source=poisson(lengths, 0.5, 60, 4), seed=4)

    stretched = run()
    monkeypatch.setattr("tiefsee.plan.simulate.lane._LONGEST_STRETCH", 1)
    single = run()
    for a, b in zip(stretched.lives, single.lives, strict=True):
        assert a.arrival_s == b.arrival_s
        assert a.first_s == pytest.approx(b.first_s, rel=2e-3)
        assert a.end_s == pytest.approx(b.end_s, rel=2e-3)


def test_a_full_cache_preempts_and_still_serves_everyone():
    """Answers much longer than prompts, more at once than fit to their ends."""
    load = workload(isl=64, osl=2000)
    plan = plan_of(load, chips="h100", count=16, tp=16)
    memory = replace(plan.placement.decode.memory, fraction=0.61)
    tight = replace(plan, placement=Placement(load, replace(plan.placement.decode, memory=memory)))
    assert 2 <= memory.max_requests(64, 2000) < 30
    found = simulate(tight, Slo(), requests_per_s=50.0, num_requests=60, seed=1)
    assert found.num_requests == 60
    assert found.num_preemptions > 0
    assert found.max_waiting > 0


def test_shared_prefixes_are_found():
    load = workload(isl=4096, cache_hit=0.75)
    found = simulate(plan_of(load, concurrency=20), SLO, num_requests=200)
    assert found.hit_share == pytest.approx(0.75, abs=0.02)
    assert found.ttft.mean < simulate(plan_of(concurrency=20), SLO, num_requests=200).ttft.mean


def test_v4_is_simulated_with_its_rings_and_snapshots():
    load = workload("v4-flash", cache_hit=0.5, mtp_acceptance=0.8, drafts=1)
    found = simulate(plan_of(load, tp=8, concurrency=24), SLO, num_requests=120)
    assert found.num_requests == 120
    assert found.hit_share == pytest.approx(0.5, abs=0.03)


def test_drafts_are_accepted_as_often_as_is_said():
    """TPOT falls by the accepted tokens: one alone, so that nothing else plays a part."""
    load = workload(osl=4000, mtp_acceptance=0.6 + 0.36, drafts=2)
    plan = plan_of(load, concurrency=1)
    (life,) = simulate(plan, SLO, source=Trace([Ask(0.0, 4096, 4000)]), seed=9).lives
    step_s = decode_s(plan.placement.decode.worker, 1.0, 4096 + 2000, 2, EFFICIENCY)
    assert life.tpot_s == pytest.approx(step_s / (1 + 0.6 + 0.36), rel=0.03)


def test_few_lanes_stand_for_all_and_it_is_said(split):
    lanes = choose_lanes(split)
    prefill, decode = split.placement.prefill, split.placement.decode
    assert lanes.first / lanes.second * lanes.speed == pytest.approx(prefill.num_groups / decode.num_groups, rel=0.01)
    assert lanes.share < 1
    assert "stand" in (found := simulate(split, SLO, num_requests=100)).notes[0] or "simulated were" in found.notes[0]
    assert found.share == lanes.share


def test_the_top_plans_are_simulated_and_differences_said():
    found = search(Question(workload(), SLO, pool("h200", 8)), frontier=False)
    top = simulate_plans(found.plans, SLO, top=2, num_requests=150)
    assert len(top) == 2
    for one in top:
        assert one.within >= 0.9  # the load is settled at what keeps the levels
        assert one.concurrency <= one.plan.concurrency
        for line in one.disagreements():
            assert "%" in line
    plan = replace(top[0].plan, served=replace(top[0].plan.served, tpot_s=1.0))
    off = replace(top[0], plan=plan, concurrency=plan.concurrency)
    assert any(line.startswith("TPOT: simulated -9") for line in off.disagreements())


def test_times_are_moved_as_the_plan_s_are():
    """What was measured nearby makes decode slower: the simulation is slower by as much."""
    plan = plan_of(concurrency=20)
    moved = replace(plan, served=replace(plan.served, tpot_s=1.5 * plan.served.tpot_s))
    plain, slower = (simulate(p, SLO, num_requests=120).tpot.mean for p in (plan, moved))
    assert slower == pytest.approx(1.5 * plain, rel=0.05)


def test_two_thousand_requests_take_a_few_seconds():
    plan = plan_of(tpot_s=0.05)
    began = time.process_time()
    found = simulate(plan, SLO, requests_per_s=0.85 * plan.served.requests_per_s, num_requests=2000)
    seconds = time.process_time() - began
    print(f"\n2,000 requests of 4,096 + 1,024 tokens: {seconds:.2f} CPU-seconds, {found.mean_waiting:.1f} waiting")
    assert found.num_requests == 2000
    assert seconds < 10


def test_a_load_that_means_nothing_is_refused():
    plan = plan_of(concurrency=4)
    with pytest.raises(ConfigError, match="numbers above 0"):
        simulate(plan, SLO, requests_per_s=0.0)
    with pytest.raises(ConfigError, match="no arrival before 0"):
        Trace([Ask(-1.0, 10, 10)])
    with pytest.raises(ConfigError, match="a share above 0"):
        Lengths(workload(), low=0.0)
    assert isinstance(plan.placement.decode.pool, Pool)
    assert Demand().is_open
