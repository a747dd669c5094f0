"""The answer of a search as a document: the best layouts, the chosen one in detail, what limits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tiefsee.plan.documents.describe import describe, plan_data, price_of_plan, simulated_data, workers_text
from tiefsee.plan.documents.fleet_views import (
    cost_by_fleet,
    fleet_data,
    fleets_table,
    frontier_lines,
    scaling_chart,
    sizes_table,
)
from tiefsee.plan.documents.fleets import Fleet, alternative_of, break_even_text
from tiefsee.plan.documents.roofline import rooflines
from tiefsee.plan.figures.estimate import weakest
from tiefsee.plan.figures.money import usd_per_million_tokens
from tiefsee.plan.figures.prediction import Prediction
from tiefsee.plan.names.formats import conversion_note
from tiefsee.plan.report import (
    Cell,
    Chart,
    Column,
    Document,
    Frontier,
    NamedEstimate,
    Source,
    Table,
    TimeBar,
    TimeBars,
    Tornado,
    show,
    show_plain,
)
from tiefsee.plan.search.placement import Plan, Role
from tiefsee.plan.search.question import Found, Question
from tiefsee.plan.serving.memory import worker_name
from tiefsee.plan.simulate.result import Simulated

LIMITS = {
    "tpot": "the TPOT: a larger batch makes each step longer",
    "ttft": "the TTFT: more prompts would wait",
    "memory": "memory: the cache holds no request more",
    "transfer": "the links between prefill and decode",
    "prefill": "prefill: its chips have no time left",
    "demand": "nothing: it serves what was asked for, with room to spare",
}


@dataclass(frozen=True, eq=False)
class Answer:
    """A question, what was found, and for the plans that are shown the figures with their ranges.

    `others` are fleets that it is held against; `tornado` and `scaling` are there where somebody asked for them.
    """

    model: str
    question: Question
    found: Found
    predictions: Sequence[Prediction]
    simulated: Sequence[Simulated] = ()
    others: Sequence[Fleet] = ()
    tornado: Tornado | None = None
    scaling: Sequence[Fleet] = ()
    notes: Sequence[str] = ()

    @property
    def best(self) -> Plan:
        return self.found.best

    @property
    def prediction(self) -> Prediction:
        return self.predictions[0]

    @cached_property
    def fleet(self) -> Fleet:
        return Fleet(str(self.question), self.found, self.prediction)

    @cached_property
    def alternative(self) -> Fleet | None:
        """What a fleet without a price is held against."""
        return alternative_of(self.fleet, self.others) if self.fleet.unpriced else None

    def document(self, *, command: str, date: str) -> Document:
        best, prediction = self.best, self.prediction
        figures = tuple(self._figures())
        rate, tpot = figures[0].estimate, prediction.estimate("tpot_s")
        return Document(
            title=f"Serving {self.model} on {self.question}",
            question=self._asked(),
            answer=f"{describe(best)}: {show(rate)} at a TPOT of {show(tpot)}, "
            f"{best.concurrency:,.0f} requests at once.",
            grade=weakest(p.grade for p in self.predictions[:1]),
            bottleneck=f"{prediction.bottleneck}; more requests are kept out by {LIMITS[best.limit]}",
            figures=figures,
            tables=tuple(self._tables()),
            charts=tuple(self._charts()),
            sources=tuple(Source(f"s{n}", text) for n, text in enumerate(prediction.sources, 1) if text),
            notes=tuple(dict.fromkeys((*self.notes, *self._notes()))),
            command=command,
            date=date,
            data=self._data(),
        )

    def _asked(self) -> str:
        q = self.question
        load, demand = q.workload, q.demand
        parts = [f"prompts of {load.isl:,} tokens, answers of {load.osl:,}"]
        if q.slo.tpot_s < float("inf"):
            parts.append(f"TPOT within {show_plain(q.slo.tpot_s, 'tpot_s')}")
        if q.slo.ttft_s < float("inf"):
            parts.append(f"TTFT within {show_plain(q.slo.ttft_s, 'ttft_s')}")
        if demand.requests_per_s is not None:
            parts.append(f"{demand.requests_per_s:g} requests/s")
        if demand.concurrency is not None:
            parts.append(f"{demand.concurrency:g} requests at once")
        if load.cache_hit:
            parts.append(f"{load.cache_hit:.0%} of prompts cached")
        if load.drafts:
            parts.append(f"{load.mtp_acceptance:g} of {load.drafts} drafts accepted")
        goals = {"throughput": "most throughput", "cost": "least cost", "chips": "fewest chips"}
        return "; ".join((*parts, goals[q.goal]))

    def _figures(self) -> list[NamedEstimate]:
        per_chip = self.prediction.estimate("tokens_per_s_per_chip")
        rate = per_chip.scaled(self.best.num_chips, "tokens_per_s")
        found = [
            NamedEstimate("tokens_per_s", "output", rate),
            NamedEstimate("tokens_per_s_per_chip", "per chip", per_chip),
            NamedEstimate("tpot_s", "TPOT", self.prediction.estimate("tpot_s")),
            NamedEstimate("ttft_s", "TTFT", self.prediction.estimate("ttft_s")),
        ]
        price = price_of_plan(self.best)
        if price is not None:
            found.append(NamedEstimate("usd_per_million_tokens", "price", usd_per_million_tokens(rate, price)))
        if self.alternative is not None and (even := self.fleet.break_even(self.alternative)) is not None:
            label = f"breaks even with {self.alternative.name} at"
            found.append(NamedEstimate("break_even_usd_per_chip_hour", label, even))
        return found

    # ------------------------------------------------------------------------------------- tables

    def _tables(self) -> list[Table]:
        tables = [self._layouts(), self._roles()]
        if self.simulated:
            tables.append(self._simulation())
        if self.others:
            tables.append(fleets_table((self.fleet, *self.others)))
        if self.scaling:
            tables.append(sizes_table(self.scaling))
        return tables

    def _layouts(self) -> Table:
        columns = (
            Column("kind", "kind"), Column("layout", "workers"), Column("num_chips", "cards"),
            Column("concurrency", "at once"), Column("tokens_per_s_per_chip", "per card", "tokens_per_s_per_chip"),
            Column("tpot_s", "TPOT", "tpot_s"), Column("ttft_s", "TTFT", "ttft_s"), Column("limit", "limit"),
        )  # fmt: skip
        rows: list[tuple[Cell, ...]] = []
        for plan, prediction in zip(self.found.plans, self.predictions, strict=False):
            figures = [prediction.estimate(unit) for unit in ("tokens_per_s_per_chip", "tpot_s", "ttft_s")]
            rows.append(
                (plan.kind, workers_text(plan), plan.num_chips, round(plan.concurrency), *figures, plan.limit)
            )  # fmt: skip
        return Table(
            f"The best of {len(self.found.plans)} deployments, from {self.found.num_layouts} layouts of a worker",
            columns, tuple(rows), "Ranges hold 80%.", 0,
        )  # fmt: skip

    def _roles(self) -> Table:
        parts = list(self.best.placement.decode.memory.parts())
        columns = (
            Column("role", "role"), Column("precision", "format"),
            *(Column(name.replace(" ", "_"), name, "bytes") for name in parts),
            Column("max_requests", "requests"),
        )  # fmt: skip
        rows: list[tuple[Cell, ...]] = []
        for name, role in self._named_roles():
            load = self.question.workload
            osl = load.osl if name != "prefill" else 1
            rows.append(
                (
                    f"{name}: {role.count} x {worker_name(role.worker)}", role.pool.precision,
                    *role.memory.parts().values(),
                    role.count * role.memory.max_requests(load.isl, osl),
                )
            )  # fmt: skip
        note = "Requests: what fits into all its workers."
        return Table("What a card of the chosen one holds", columns, tuple(rows), note)

    def _named_roles(self) -> list[tuple[str, Role]]:
        placement = self.best.placement
        if placement.prefill is None:
            return [("prefill and decode", placement.decode)]
        return [("prefill", placement.prefill), ("decode", placement.decode)]

    def _simulation(self) -> Table:
        columns = (
            Column("layout", "workers"), Column("concurrency", "at once"),
            *(Column(f"ttft_{p}_s", f"TTFT {p}", "ttft_s") for p in ("p50", "p90", "p99")),
            *(Column(f"tpot_{p}_s", f"TPOT {p}", "tpot_s") for p in ("p50", "p90", "p99")),
            Column("goodput_requests_per_s", "goodput", "requests_per_s"), Column("within", "within", "share"),

        )  # fmt: skip
        rows: list[tuple[Cell, ...]] = [
            (
                workers_text(s.plan), round(s.concurrency), s.ttft.p50, s.ttft.p90, s.ttft.p99, s.tpot.p50, s.tpot.p90,
                s.tpot.p99, s.goodput_requests_per_s, s.within,
            )
            for s in self.simulated
        ]  # fmt: skip
        how = "A closed loop" if self.simulated[0].closed else "Poisson arrivals"
        return Table(
            "Simulated with the engine's scheduler", columns, tuple(rows),
            f"{how}, seed {self.simulated[0].seed}; lengths all alike. Within: both levels kept, as goodput counts.", 0,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------- charts

    def _charts(self) -> list[Chart]:
        charts: list[Chart] = [self._frontier(), self._times(), *self._rooflines()]
        if self.others or self.fleet.unpriced:
            charts.append(cost_by_fleet(self.fleet, self.others))
        if (chart := scaling_chart(self.scaling)) is not None:
            charts.append(chart)
        if self.tornado is not None:
            charts.append(self.tornado)
        return charts

    def _frontier(self) -> Frontier:
        lines = frontier_lines((self.fleet, *self.others), self.best)
        limit = self.question.slo.tpot_s
        return Frontier(
            "Throughput against interactivity", lines, limit if limit < float("inf") else None,
            "Best layouts at other TPOTs; the TTFT holds at each.",
        )  # fmt: skip

    def _times(self) -> TimeBars:
        """The model's parts, all longer or shorter by what was measured nearby."""
        parts, accepted = self.prediction.parts, self.question.workload.mtp_acceptance
        step = self.prediction.estimate("tpot_s").scaled(1 + accepted, "step_s")
        factor = step.value / sum(parts.values())
        bar = TimeBar("decode step", step, tuple((name, s * factor) for name, s in parts.items() if s > 0))
        return TimeBars("Where a step's time goes", (bar,))

    def _rooflines(self) -> tuple[Chart, ...]:
        placement, load = self.best.placement, self.best.load
        decode, prefill = placement.decode, placement.prefill or placement.decode
        return rooflines(
            prefill.worker, prefill.pool.efficiency, decode.worker, decode.pool.efficiency,
            batch=max(1.0, self.best.served.batch), context=load.context, prompt=load.isl,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------- the rest

    def _notes(self) -> list[str]:
        best = self.best
        notes = [note for p in self.predictions[:1] for note in p.notes]
        for _, role in self._named_roles():
            if (note := conversion_note(role.worker.chip, role.worker.formats)) is not None:
                notes.append(note)
        prefill = best.placement.prefill
        if prefill is not None:
            first, second = prefill.worker.formats.cache, best.placement.decode.worker.formats.cache
            sent = f"the cache of a request is {show_plain(best.placement.transfer_bytes, 'bytes')} on its way"
            sent += f", {show_plain(best.placement.transfer_s, 's')}"
            notes.append(sent + (f"; it is converted from {first} to {second}" if first != second else ""))
        for _, role in self._named_roles():
            spare = role.pool.chips_of(role.pool.count) - role.num_chips
            if self.question.pool is None and spare > 0:
                notes.append(
                    f"{spare} of the {role.pool.name} would bring nothing here: the other pool is at its limit"
                )
        for one in self.simulated:
            notes += one.notes
            notes += (f"{workers_text(one.plan)}: {line}" for line in one.disagreements())
        for name in self.fleet.unpriced:
            notes.append(f"no price of {name} is public; give one with --price {name}=USD")
        if self.alternative is not None and (even := self.fleet.break_even(self.alternative)) is not None:
            notes.append(f"{', '.join(self.fleet.unpriced)} {break_even_text(even, self.alternative)}")
        return notes

    def _data(self) -> Mapping[str, Any]:
        return {
            "plans": [plan_data(plan) for plan in self.found.plans[: len(self.predictions)]],
            "frontier": [plan_data(plan) for plan in self.found.frontier],
            "simulated": [simulated_data(s) for s in self.simulated],
            "num_layouts": self.found.num_layouts,
            "fleets": [fleet_data(fleet, self.alternative) for fleet in (self.fleet, *self.others)],
            "scaling": [fleet_data(fleet, None) for fleet in self.scaling],
        }


__all__ = ["Answer"]
