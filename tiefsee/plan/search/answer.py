"""The answer of a search as a document: the best layouts, the chosen one in detail, what limits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiefsee.plan.estimate import Estimate, weakest
from tiefsee.plan.formats import conversion_note
from tiefsee.plan.memory import worker_name
from tiefsee.plan.money import usd_per_million_tokens
from tiefsee.plan.prediction import Prediction
from tiefsee.plan.report import (
    Cell,
    Column,
    Document,
    Frontier,
    FrontierPoint,
    Line,
    NamedEstimate,
    Source,
    Table,
    TimeBar,
    TimeBars,
    interactivity,
    show,
    show_plain,
)
from tiefsee.plan.report.roofline import roofline
from tiefsee.plan.search.describe import describe, plan_data, price_of_plan, simulated_data, workers_text
from tiefsee.plan.search.placement import Plan, Role
from tiefsee.plan.search.question import Found, Question
from tiefsee.plan.simulate.result import Simulated

LIMITS = {
    "tpot": "the TPOT: a larger batch makes each step longer",
    "ttft": "the TTFT: more prompts would wait",
    "memory": "memory: the cache holds no request more",
    "transfer": "the links between prefill and decode",
    "prefill": "prefill: its chips have no time left",
    "demand": "nothing: it serves what was asked for, with room to spare",
}
SHOWN_PARTS = 8


@dataclass(frozen=True, eq=False)
class Answer:
    """A question, what was found, and for the plans that are shown the figures with their ranges."""

    model: str
    question: Question
    found: Found
    predictions: Sequence[Prediction]
    simulated: Sequence[Simulated] = ()
    alone: Sequence[tuple[str, Plan | str]] = ()
    notes: Sequence[str] = ()

    @property
    def best(self) -> Plan:
        return self.found.best

    @property
    def prediction(self) -> Prediction:
        return self.predictions[0]

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
            charts=(self._frontier(), self._times(), self._roofline()),
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
        return found

    # ------------------------------------------------------------------------------------- tables

    def _tables(self) -> list[Table]:
        tables = [self._layouts(), self._roles()]
        if self.simulated:
            tables.append(self._simulation())
        if self.alone:
            tables.append(self._alone())
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

    def _alone(self) -> Table:
        columns = (
            Column("pool", "pool alone"), Column("layout", "layout"), Column("num_chips", "cards"),
            Column("tokens_per_s", "output", "tokens_per_s"), Column("per_chip", "per card", "tokens_per_s_per_chip"),
        )  # fmt: skip
        rows: list[tuple[Cell, ...]] = []
        for pool, plan in self.alone:
            if isinstance(plan, str):
                rows.append((pool, plan, None, None, None))
            else:
                rows.append((pool, describe(plan), plan.num_chips, plan.tokens_per_s, plan.tokens_per_s_per_chip))
        return Table("Against each pool by itself", columns, tuple(rows))

    # ------------------------------------------------------------------------------------- charts

    def _frontier(self) -> Frontier:
        """Other points take the range of the best: the same evidence is behind them."""
        per_chip, tpot = (self.prediction.estimate(unit) for unit in ("tokens_per_s_per_chip", "tpot_s"))
        points = tuple(
            FrontierPoint(
                interactivity(_like(tpot, plan.served.tpot_s)), _like(per_chip, plan.tokens_per_s_per_chip),
                f"{describe(plan)}, {plan.concurrency:,.0f} at once", plan is self.best,
            )
            for plan in self.found.frontier
        )  # fmt: skip
        limit = self.question.slo.tpot_s
        return Frontier(
            "Throughput against interactivity", (Line(str(self.question), points),),
            limit if limit < float("inf") else None, "Best layouts at other TPOTs; the TTFT holds at each.",
        )  # fmt: skip

    def _times(self) -> TimeBars:
        parts = list(self.prediction.parts.items())
        shown = [*parts[:SHOWN_PARTS], ("others", sum(seconds for _, seconds in parts[SHOWN_PARTS:]))]
        total = sum(self.prediction.parts.values())
        step = _like(self.prediction.estimate("tpot_s"), total)
        bar = TimeBar("decode step", step, tuple(part for part in shown if part[1] > 0))
        return TimeBars("Where a step's time goes", (bar,))

    def _roofline(self) -> Any:
        decode, load = self.best.placement.decode, self.best.load
        batch = max(1.0, self.best.served.batch)
        return roofline(decode.worker, decode.pool.efficiency, batch=batch, context=load.context, prompt=load.isl)

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
        unpriced = [role.pool.name for _, role in self._named_roles() if role.pool.usd_per_hour is None]
        notes += [f"no price of {name} is public; give one with --price {name}=USD" for name in dict.fromkeys(unpriced)]
        return notes

    def _data(self) -> Mapping[str, Any]:
        return {
            "plans": [plan_data(plan) for plan in self.found.plans[: len(self.predictions)]],
            "frontier": [plan_data(plan) for plan in self.found.frontier],
            "simulated": [simulated_data(s) for s in self.simulated],
            "num_layouts": self.found.num_layouts,
        }


def _like(estimate: Estimate, value: float) -> Estimate:
    """Another value with the same relative range."""
    return estimate.scaled(value / estimate.value, estimate.unit)


__all__ = ["Answer"]
