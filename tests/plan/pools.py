"""Pools for tests: efficiencies are the defaults, so that a new fit doesn't move them."""

from __future__ import annotations

from tiefsee.hardware import find_chip
from tiefsee.plan.fitted.efficiency import Calibration, Efficiency
from tiefsee.plan.search import Pool, Workload, make_pool
from tiefsee.spec import preset

EFFICIENCY = Efficiency()
BASE = Calibration(EFFICIENCY, {}, {}, {1: 0.8}, "2026-02-01", "nothing: the defaults")


def pool(name: str, count: int) -> Pool:
    return make_pool(find_chip(name), count, base=BASE)


def workload(model: str = "v3", isl: int = 4096, osl: int = 1024, **more: float) -> Workload:
    return Workload(preset(model), isl, osl, **more)  # type: ignore[arg-type]
