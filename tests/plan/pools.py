"""Pools for tests: efficiencies are the defaults, so that a new fit doesn't move them."""

from __future__ import annotations

from tiefsee.hardware import find_chip
from tiefsee.plan.efficiency import Efficiency
from tiefsee.plan.formats import formats_of, usual_precision
from tiefsee.plan.search import Pool, Workload, make_pool
from tiefsee.spec import preset

EFFICIENCY = Efficiency()


def pool(name: str, count: int) -> Pool:
    chip = find_chip(name)
    return make_pool(chip, count, formats_of(usual_precision(chip)), EFFICIENCY)


def workload(model: str = "v3", isl: int = 4096, osl: int = 1024, **more: float) -> Workload:
    return Workload(preset(model), isl, osl, **more)  # type: ignore[arg-type]
