"""What `predict` would say of every hypothesis, with its ranges, for all of them at once.

Thousands of hypotheses make thousands of predictions; what measured runs say beyond the model is one product of
matrices for all together. tests/plan/test_identify.py holds both against one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice

from tiefsee.plan.answers import TAIL, with_chip
from tiefsee.plan.fitted.calibrated import Calibrated
from tiefsee.plan.fitted.efficiency import Efficiency
from tiefsee.plan.fitted.neighbours import Neighbours, Situation
from tiefsee.plan.identify.deployments import deployment_of, load_of
from tiefsee.plan.identify.hypothesis import Guess, Hypothesis, Row
from tiefsee.plan.serving.loop import serve_aggregated
from tiefsee.plan.serving.worker import Worker
from tiefsee.spec import ModelSpec

TOGETHER = 2048  # predictions of one product: a covariance of 15 MB


class FittedPredictor:
    """A `Predictor`. `rows` are predicted for all hypotheses at once; of `later` rows whatever is asked for, when it
    is, for one hypothesis together."""

    def __init__(
        self, spec: ModelSpec, calibrated: Calibrated, hypotheses: Sequence[Hypothesis], rows: Iterable[Row],
        later: Sequence[Row] = (),
    ) -> None:  # fmt: skip
        self._spec, self._calibrated, self._later = spec, calibrated, tuple(later)
        self._chip_doubt: dict[Worker, float] = {}
        self._wider: dict[tuple[str, str], float] = {}
        self._known: dict[tuple[Hypothesis, Row], Guess] = {}
        distinct = tuple(dict.fromkeys(rows))
        pairs = iter([(h, row) for h in hypotheses for row in distinct])
        while part := list(islice(pairs, TOGETHER)):
            self._predict(part)

    def __call__(self, h: Hypothesis, row: Row) -> Guess:
        if (h, row) not in self._known:
            self._predict([(h, r) for r in dict.fromkeys((row, *self._later))])
        return self._known[h, row]

    def _predict(self, pairs: Sequence[tuple[Hypothesis, Row]]) -> None:
        situations = [deployment_of(self._spec, h).situation(load_of(h, row), "", 0.0) for h, row in pairs]
        tpots, tpot_deviations = self._corrections("tpot", situations)
        ttfts, ttft_deviations = self._corrections("ttft", situations)
        for i, (h, row) in enumerate(pairs):
            deployment, e = deployment_of(self._spec, h), self._efficiency(h)
            served = deployment.serve(load_of(h, row), e)
            doubt = math.hypot(tpot_deviations[i], self._doubt(h, row, e))
            self._known[h, row] = Guess(
                served.ttft_s * math.exp(ttfts[i]), served.tpot_s * math.exp(tpots[i]),
                math.exp(TAIL * ttft_deviations[i]), math.exp(TAIL * doubt),
            )  # fmt: skip

    def _corrections(self, quantity: str, situations: Sequence[Situation]) -> tuple[list[float], list[float]]:
        """Means and deviations as `Calibrated.correction` has them; how much wider depends on the chip alone."""
        neighbours: Neighbours = getattr(self._calibrated, quantity)
        means, deviations = neighbours.corrections(situations)
        for s in situations:
            if (quantity, s.chip) not in self._wider:
                self._wider[quantity, s.chip] = self._calibrated.wider(quantity, s)
        wider = [self._wider[quantity, s.chip] for s in situations]
        return [float(m) for m in means], [float(d) * w for d, w in zip(deviations, wider, strict=True)]

    def _efficiency(self, h: Hypothesis) -> Efficiency:
        return self._calibrated.base.of(deployment_of(self._spec, h).decode.chip.vendor, None)

    def _doubt(self, h: Hypothesis, row: Row, e: Efficiency) -> float:
        """The deviation that the chip's own figures leave of a TPOT. It hardly differs between loads, and is worked
        out at the first that is asked of a layout."""
        worker = deployment_of(self._spec, h).decode
        if worker not in self._chip_doubt:
            load = load_of(h, row)

            def tpot_s(changed: Worker) -> float:
                return serve_aggregated(changed, h.replicas, load, e).tpot_s

            self._chip_doubt[worker] = with_chip(0.0, worker, tpot_s)
        return self._chip_doubt[worker]


__all__ = ["FittedPredictor"]
