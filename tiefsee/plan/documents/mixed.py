"""The answer of mixed pools as a document: which does what, against each pool by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tiefsee.plan.documents.describe import describe, plan_data, price_of_plan
from tiefsee.plan.figures.estimate import Estimate, weakest
from tiefsee.plan.figures.money import Price, fleet_usd_per_hour, usd_per_million_tokens
from tiefsee.plan.figures.prediction import Prediction
from tiefsee.plan.mixed.service import Mixed
from tiefsee.plan.report import Cell, Column, Document, NamedEstimate, Source, Table, show, show_plain
from tiefsee.plan.search.goal import Slo, Workload
from tiefsee.plan.search.placement import Plan


@dataclass(frozen=True, eq=False)
class MixedAnswer:
    """What was found, and the figures of each of its plans with their ranges."""

    model: str
    workload: Workload
    slo: Slo
    mixed: Mixed
    predictions: Sequence[Prediction]

    def document(self, *, command: str, date: str) -> Document:
        mixed, load = self.mixed, self.workload
        pools = " + ".join(map(str, mixed.pools))
        sources = dict.fromkeys(text for p in self.predictions for text in p.sources if text)
        levels = [
            f"{name} within {show_plain(value, unit)}"
            for name, value, unit in (("TPOT", self.slo.tpot_s, "tpot_s"), ("TTFT", self.slo.ttft_s, "ttft_s"))
            if value < math.inf
        ]
        return Document(
            title=f"Serving {self.model} on {pools}, mixed",
            question="; ".join((f"prompts of {load.isl:,} tokens, answers of {load.osl:,}", *levels)),
            answer=f"{'; '.join(describe(plan) for plan in mixed.plans)}: {show(self.rate)}.",
            grade=weakest(p.grade for p in self.predictions),
            bottleneck="; ".join(dict.fromkeys(p.bottleneck for p in self.predictions)),
            figures=tuple(self._figures()),
            tables=(self._plans(), self._alone()),
            sources=tuple(Source(f"s{n}", text) for n, text in enumerate(sources, 1)),
            notes=tuple(dict.fromkeys(note for p in self.predictions for note in p.notes)),
            command=command,
            date=date,
            data={
                "plans": [plan_data(plan) for plan in mixed.plans],
                "requests_per_s": mixed.requests_per_s,
                "bound_requests_per_s": mixed.bound_requests_per_s,
                "used_chips": dict(zip(map(str, mixed.pools), mixed.used_chips(), strict=True)),
                "alone": {
                    str(pool): found if isinstance(found, str) else plan_data(found)
                    for pool, found in zip(mixed.pools, mixed.alone, strict=True)
                },
            },
        )

    @property
    def rate(self) -> Estimate:
        """Of all plans: one model predicted them all, so their ends add."""
        parts = [
            prediction.estimate("tokens_per_s_per_chip").scaled(plan.num_chips, "tokens_per_s")
            for plan, prediction in zip(self.mixed.plans, self.predictions, strict=True)
        ]
        return Estimate(
            sum(p.value for p in parts), sum(p.low for p in parts), sum(p.high for p in parts), "tokens_per_s",
            weakest(p.grade for p in parts),
        )  # fmt: skip

    def _figures(self) -> list[NamedEstimate]:
        rate = self.rate
        chips = sum(plan.num_chips for plan in self.mixed.plans)
        found = [
            NamedEstimate("tokens_per_s", "output", rate),
            NamedEstimate("tokens_per_s_per_chip", "per chip", rate.scaled(1 / chips, "tokens_per_s_per_chip")),
        ]
        prices: list[tuple[Price, int]] = []
        for plan in self.mixed.plans:
            if (price := price_of_plan(plan)) is not None:
                prices.append((price, 1))
        if len(prices) == len(self.mixed.plans):
            cost = usd_per_million_tokens(rate, fleet_usd_per_hour(prices))
            found.append(NamedEstimate("usd_per_million_tokens", "price", cost))
        return found

    def _plans(self) -> Table:
        columns = (
            Column("layout", "layout"), Column("num_chips", "cards"), Column("concurrency", "at once"),
            Column("tokens_per_s", "output", "tokens_per_s"), Column("tpot_s", "TPOT", "tpot_s"),
            Column("ttft_s", "TTFT", "ttft_s"), Column("limit", "limit"),
        )  # fmt: skip
        rows: list[tuple[Cell, ...]] = [
            (
                describe(plan), plan.num_chips, round(plan.concurrency),
                p.estimate("tokens_per_s_per_chip").scaled(plan.num_chips, "tokens_per_s"), p.estimate("tpot_s"),
                p.estimate("ttft_s"), plan.limit,
            )
            for plan, p in zip(self.mixed.plans, self.predictions, strict=True)
        ]  # fmt: skip
        share = self.mixed.requests_per_s / self.mixed.bound_requests_per_s
        note = f"{share:.0%} of what the linear program promises for workers that could be divided."
        return Table("Who does what", columns, tuple(rows), note)

    def _alone(self) -> Table:
        columns = (
            Column("pool", "pool alone"), Column("layout", "layout"), Column("num_chips", "cards"),
            Column("tokens_per_s", "output", "tokens_per_s"),
        )  # fmt: skip
        rows: list[tuple[Cell, ...]] = []
        for pool, found in zip(self.mixed.pools, self.mixed.alone, strict=True):
            if isinstance(found, Plan):
                rows.append((str(pool), describe(found), found.num_chips, found.tokens_per_s))
            else:
                rows.append((str(pool), found, None, None))
        return Table("Against each pool by itself", columns, tuple(rows))


__all__ = ["MixedAnswer"]
