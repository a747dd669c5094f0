"""How fast a pool generates rollouts: the best deployment without service levels, as `predict` has it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from tiefsee.errors import ConfigError, OutOfMemory
from tiefsee.plan.figures.prediction import Prediction
from tiefsee.plan.fitted.calibrated import Calibrated
from tiefsee.plan.search import Demand, Plan, Pool, Question, Slo, Workload, search
from tiefsee.plan.search.corrected import Corrector
from tiefsee.plan.search.predicted import predicted


@dataclass(frozen=True, eq=False)
class Generator:
    """`pool` generates up to `sequences` answers at once. Plans are kept by the number of chips."""

    workload: Workload
    pool: Pool
    sequences: int
    calibrated: Calibrated
    stack: str | None = None
    date: str | None = None

    @cached_property
    def _plans(self) -> dict[int, tuple[Plan, Prediction]]:
        return {}

    def plan(self, chips: int) -> tuple[Plan, Prediction]:
        """The best on so many chips, as they are sold. Raises ConfigError, OutOfMemory."""
        if chips not in self._plans:
            best = self._search(replace(self.pool, count=chips * self.pool.ranks_per_chip))
            prediction = predicted(best, self.calibrated, stack=self.stack, date=self.date)
            self._plans[chips] = best, prediction
        return self._plans[chips]

    def _search(self, pool: Pool) -> Plan:
        """All answers at once where the memory holds them, else as many as it does."""
        question = Question(
            self.workload, Slo(), pool, demand=Demand(concurrency=float(self.sequences)), disaggregated=False,
            correct=Corrector(self.calibrated, self.stack, self.date),
        )  # fmt: skip
        try:
            return search(question, frontier=False).best
        except OutOfMemory:
            raise
        except ConfigError:
            return search(replace(question, demand=Demand()), frontier=False).best

    def tokens_per_s_per_chip(self, chips: int) -> float:
        """Idle chips count: a layout that does not use all of them generates less per chip."""
        best, prediction = self.plan(chips)
        return prediction.value("tokens_per_s_per_chip") * best.num_chips / chips

    def pace_s(self, chips: int) -> float:
        """Seconds per token at the end, one answer being left on each attention group."""
        placement = self.plan(chips)[0].placement
        return placement.serve(float(placement.decode.num_groups)).tpot_s

    def spread(self, chips: int) -> float:
        """The 80 % range of the throughput, as a factor."""
        figure = self.plan(chips)[1].estimate("tokens_per_s_per_chip")
        return figure.high / figure.value


__all__ = ["Generator"]
