"""Mixed pools: the linear program against other solvers, the whole workers against the bound and against no mixing."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.plan.pools import pool, workload
from tiefsee.errors import ConfigError, OutOfMemory
from tiefsee.plan.mixed.linear import maximise
from tiefsee.plan.mixed.service import mix
from tiefsee.plan.search import Slo

SLO = Slo(0.05, 5.0)


def random_program(seed):
    dice = np.random.default_rng(seed)
    rows, columns = int(dice.integers(1, 4)), int(dice.integers(1, 7))
    a = dice.uniform(0, 3, (rows, columns)) * (dice.random((rows, columns)) < 0.7)
    a[:, a.max(axis=0) == 0] = 1.0  # nothing is free
    return dice.uniform(-1, 2, columns), a, dice.uniform(1, 100, rows)


@pytest.mark.parametrize("seed", range(40))
def test_no_point_is_better_than_the_vertex_found(seed):
    """Feasible points at random, and on every edge to a limit, are worth no more."""
    c, a, b = random_program(seed)
    found = maximise(c, a, b)
    x = np.array(found.x)
    assert (a @ x <= b * (1 + 1e-9)).all()
    assert (x >= 0).all()
    assert found.value == pytest.approx(c @ x)
    dice = np.random.default_rng(seed + 1000)
    for _ in range(400):
        direction = dice.exponential(size=len(c)) * (dice.random(len(c)) < 0.5)
        if direction.any():
            pushed = direction * (b / np.maximum(a @ direction, 1e-12)).min()
            assert c @ pushed <= found.value + 1e-9 * abs(found.value)


@pytest.mark.parametrize("seed", range(40))
def test_it_agrees_with_duality(seed):
    """The dual's optimum is the same: min b y where A'y >= c, y >= 0, is a maximisation of -b over -A' and -c."""
    c, a, b = random_program(seed)
    dual = maximise(-b, -a.T, -c)
    assert dual is not None
    assert -dual.value == pytest.approx(maximise(c, a, b).value, rel=1e-7, abs=1e-9)


def test_it_agrees_with_scipy():
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(60):
        c, a, b = random_program(seed)
        other = optimize.linprog(-c, A_ub=a, b_ub=b)
        assert maximise(c, a, b).value == pytest.approx(-other.fun, rel=1e-7, abs=1e-9)


def test_what_cannot_be_is_none_and_what_has_no_end_is_refused():
    one = np.array([[1.0]])
    assert maximise(np.array([1.0]), np.vstack([one, -one]), np.array([2.0, -3.0])) is None  # x <= 2, x >= 3
    with pytest.raises(ConfigError, match="has no best"):
        maximise(np.array([1.0]), -one, np.array([-3.0]))
    with pytest.raises(ConfigError, match="too many"):
        maximise(np.ones(400), np.ones((5, 400)), np.ones(5))


@pytest.fixture(scope="module")
def mixed():
    return mix(workload(), SLO, [pool("h200", 32), pool("h20", 32)])


def test_a_mix_serves_at_least_what_the_pools_do_alone(mixed):
    assert mixed.requests_per_s >= mixed.alone_requests_per_s * 0.999
    assert mixed.requests_per_s > 0
    assert mixed.tokens_per_s == pytest.approx(mixed.requests_per_s * 1024)


def test_a_mix_keeps_to_its_chips_and_levels(mixed):
    assert all(used <= 32 for used in mixed.used_chips())
    for plan in mixed.plans:
        assert plan.served.tpot_s <= SLO.tpot_s * (1 + 1e-6)
        assert plan.served.ttft_s <= SLO.ttft_s * (1 + 1e-6)


def test_the_program_s_bound_is_near_what_whole_workers_do(mixed):
    assert 0.6 * mixed.bound_requests_per_s <= mixed.requests_per_s <= 1.1 * mixed.bound_requests_per_s


def test_the_cheapest_way_to_a_rate_is_no_dearer_than_one_pool_s():
    found = mix(workload(), SLO, [pool("h200", 16), pool("h20", 16)], goal="cost", requests_per_s=2.0)
    assert found.requests_per_s >= 2.0 * 0.999
    alone = [plan.usd_per_hour[1] for plan in found.alone if not isinstance(plan, str)]
    assert found.usd_per_hour[1] <= min(alone) * 1.001


def test_bad_mixes_are_refused():
    pools = [pool("h200", 8), pool("h20", 16)]
    with pytest.raises(ConfigError, match=r"at most [\d.]+ requests/s within the service levels, not 500"):
        mix(workload(), SLO, pools, goal="cost", requests_per_s=500.0)
    with pytest.raises(ConfigError, match="named twice"):
        mix(workload(), SLO, [pool("h200", 8), pool("h200", 8)])
    with pytest.raises(ConfigError, match="no price of ascend-910c is public"):
        mix(workload(), SLO, [pool("h200", 8), pool("ascend-910c", 8)], goal="cost", requests_per_s=1.0)
    with pytest.raises(OutOfMemory, match="nothing fits"):
        mix(workload(), SLO, [pool("h100", 4), pool("h20", 4)])


def test_seeds_are_not_needed():
    """The same question has the same answer."""
    random.seed(1)
    first = mix(workload("v2-lite", 1024, 256), Slo(0.03, 1.0), [pool("h20", 4), pool("a100", 4)])
    random.seed(2)
    second = mix(workload("v2-lite", 1024, 256), Slo(0.03, 1.0), [pool("h20", 4), pool("a100", 4)])
    assert [str(p) for p in first.plans] == [str(p) for p in second.plans]
    assert first.requests_per_s == second.requests_per_s
