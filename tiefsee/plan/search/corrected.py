"""A search that knows what was measured: every figure is moved as `predict` moves it, and quickly.

A search asks for thousands of figures; the correction of one layout is smooth in the load, so it is worked out at
loads half a doubling apart and drawn between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from tiefsee.plan.fitted.calibrated import Calibrated
from tiefsee.plan.search.placement import Placement
from tiefsee.plan.serving.loop import Served

_PER_DOUBLING = 2


@dataclass(eq=False)
class Corrector:
    """Moves what the model says of a placement under a load to what runs like it were measured at."""

    calibrated: Calibrated
    stack: str | None
    date: str | None
    _known: dict[tuple[Any, ...], tuple[float, float]] = field(default_factory=dict)

    def __call__(self, placement: Placement, concurrency: float, served: Served) -> Served:
        tpot, ttft = self.factors(placement, concurrency)
        tpot_s, ttft_s = served.tpot_s * tpot, served.ttft_s * ttft
        rate = concurrency / (ttft_s + placement.workload.osl * tpot_s)
        return replace(served, tpot_s=tpot_s, ttft_s=ttft_s, step_s=served.step_s * tpot, requests_per_s=rate)

    def factors(self, placement: Placement, concurrency: float) -> tuple[float, float]:
        """(measured / modelled TPOT, TTFT), as far as is known."""
        place = _PER_DOUBLING * math.log2(max(concurrency, 1.0))
        below = math.floor(place)
        (tpot, ttft), (tpot_above, ttft_above) = (self._node(placement, n) for n in (below, below + 1))
        part = place - below
        return math.exp(tpot + part * (tpot_above - tpot)), math.exp(ttft + part * (ttft_above - ttft))

    def _node(self, placement: Placement, node: int) -> tuple[float, float]:
        workers = placement.workers
        key = (workers.decode, workers.num_decode, workers.prefill is None, node)
        if key not in self._known:
            load = placement.workload.load(2.0 ** (node / _PER_DOUBLING))
            situation = workers.situation(load, self.stack or "", self.calibrated.base.years(self.date))
            self._known[key] = self.calibrated.tpot.mean(situation), self.calibrated.ttft.mean(situation)
        return self._known[key]


def steady(calibrated: Calibrated) -> Calibrated:
    """The same without the bunches that a benchmark's requests come in: a service's come as they like, and what they
    wait for then is simulated."""
    base = calibrated.base
    return replace(calibrated, base=replace(base, base=replace(base.base, burst=0.0)))


__all__ = ["Corrector", "steady"]
