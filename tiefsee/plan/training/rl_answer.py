"""A plan of reinforcement learning as a document: an iteration and its parts, placements side by side, the tail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tiefsee.plan.figures.estimate import weakest
from tiefsee.plan.figures.prediction import Prediction
from tiefsee.plan.report import (
    Cell,
    Column,
    Document,
    NamedEstimate,
    RangeBar,
    RangeBars,
    Source,
    Table,
    TimeBar,
    TimeBars,
    show,
    show_plain,
)
from tiefsee.plan.training.answer import layout_text
from tiefsee.plan.training.report import digits, estimate_json, layout_json
from tiefsee.plan.training.rl import RLAnswer, RLPlan, Rollouts

SHOWN = 7  # placements


@dataclass(frozen=True, eq=False)
class RLDocument:
    """`rollout_layout` and `generation` are of the best plan's rollout pool; `iterations` of a whole run."""

    model: str
    fleet: str
    rollouts: Rollouts
    found: RLAnswer
    rollout_layout: str
    generation: Prediction
    rollout_precision: str
    iterations: int | None = None

    def document(self, *, command: str, date: str) -> Document:
        best, r = self.found.best, self.rollouts
        learner = best.learner
        sources = dict.fromkeys((*learner.sources, *self.generation.sources))
        return Document(
            title=f"Reinforcement learning (GRPO) of {self.model} on {self.fleet}",
            question=f"{r.prompts:,} prompts of {r.prompt_tokens:,.0f} tokens with {r.samples} answers each of "
            f"{r.answer_tokens:,.0f} (the longest {r.longest:,.0f}); {r.updates} update{'s' if r.updates > 1 else ''} "
            f"and {r.forwards} passes for log-probabilities an iteration",
            answer=f"{_placement(best)}: {show(best.iteration_s)} an iteration, {show(best.samples_per_hour)}. "
            f"Rollouts in {self.rollout_precision} by {self.rollout_layout}; learning in {learner.job.precision} by "
            f"{layout_text(learner.step)}.",
            grade=weakest((best.iteration_s.grade, self.generation.grade)),
            bottleneck=f"{best.bottleneck}; of rollouts: {self.generation.bottleneck}; of an update: "
            f"{learner.bottleneck}",
            figures=tuple(self._figures()),
            tables=(self._placements(),),
            charts=(self._times(), self._iterations()),
            sources=tuple(Source(f"s{n}", text) for n, text in enumerate(sources, 1) if text),
            notes=tuple(dict.fromkeys((*self._notes(), *self.found.notes, *learner.notes))),
            command=command,
            date=date,
            data=self._data(),
        )

    def _figures(self) -> list[NamedEstimate]:
        best = self.found.best
        found = [
            NamedEstimate("iteration_s", "iteration", best.iteration_s),
            NamedEstimate("samples_per_hour", "answers", best.samples_per_hour),
            NamedEstimate(
                "rollout_tokens_per_s_per_chip", "rollouts, per card",
                self.generation.estimate("tokens_per_s_per_chip"),
            ),
            NamedEstimate("update_s", "one update", best.learner.step_s),
        ]  # fmt: skip
        if best.usd_per_iteration is not None:
            found.append(NamedEstimate("usd_per_iteration", "money, an iteration", best.usd_per_iteration))
        if self.iterations is not None:
            label = f"{self.iterations:,} iterations"
            found.append(NamedEstimate("days", label, best.iteration_s.scaled(self.iterations / 86400, "days")))
            if best.usd_per_iteration is not None:
                found.append(NamedEstimate("usd", label, best.usd_per_iteration.scaled(self.iterations, "usd")))
        return found

    def _plans(self) -> list[RLPlan]:
        """The best first, then whatever was tried."""
        others = [p for p in (self.found.colocated, *self.found.separate) if p is not None and p is not self.found.best]
        return [self.found.best, *sorted(others, key=lambda p: p.iteration_s.value)][:SHOWN]

    def _placements(self) -> Table:
        names = list(dict.fromkeys(name for plan in self._plans() for name in plan.parts))
        columns = (
            Column("placement", "placement"), Column("iteration_s", "iteration", "step_s"),
            *(Column(name.replace(" ", "_"), name, "step_s") for name in names),
            Column("usd_per_iteration", "money", "usd"),
        )  # fmt: skip
        rows: list[tuple[Cell, ...]] = [
            (_placement(p), p.iteration_s, *(p.parts.get(name) for name in names), p.usd_per_iteration)
            for p in self._plans()
        ]
        note = "On separate cards rollouts of the next batch run beside the update of this one."
        return Table("Placements", columns, tuple(rows), note, 0)

    def _times(self) -> TimeBars:
        best = self.found.best
        if best.placement == "colocated":
            bars = [TimeBar("all cards", best.iteration_s, tuple(best.parts.items()))]
        else:
            sync = ("new weights", best.parts["new weights"])
            bars = [
                _bar(f"{best.rollout_chips:,} cards of rollouts", best, ("rollout", "tail"), sync),
                _bar(f"{best.learner_chips:,} cards that learn", best, ("reference", "update"), sync),
            ]
        return TimeBars("Where an iteration's time goes", tuple(bars))

    def _iterations(self) -> RangeBars:
        bars = tuple(RangeBar(_placement(p), p.iteration_s, chosen=not i) for i, p in enumerate(self._plans()))
        return RangeBars("Time of an iteration by placement", "iteration", "step_s", bars)

    def _notes(self) -> list[str]:
        best, r = self.found.best, self.rollouts
        tail, hidden = best.parts["tail"], r.tail_hidden
        text = f"the tail: while the last answers grow to {r.longest:,.0f} tokens, most of the rollout pool idles "
        text += f"for {show_plain(tail, 'step_s', 2)}, {tail / best.iteration_s.value:.0%} of an iteration"
        return [text + (f"; {hidden:.0%} of it is hidden by partial rollouts" if hidden else "")]

    def _data(self) -> Mapping[str, Any]:
        return {
            "best": _plan_data(self.found.best),
            "placements": [_plan_data(plan) for plan in self._plans()],
            "rollout": {
                "layout": self.rollout_layout, "precision": self.rollout_precision,
                "tokens_per_s_per_chip": self.generation.estimate("tokens_per_s_per_chip"),
            },
            "learner": {"layout": layout_json(self.found.best.learner.step)},
        }  # fmt: skip


def _placement(plan: RLPlan) -> str:
    if plan.placement == "colocated":
        return f"all {plan.rollout_chips:,} cards in turn"
    return f"{plan.rollout_chips:,} for rollouts, {plan.learner_chips:,} to learn"


def _bar(label: str, plan: RLPlan, names: tuple[str, ...], sync: tuple[str, float]) -> TimeBar:
    """What a pool does, and how long it waits for the other."""
    own = [(name, plan.parts[name]) for name in names]
    waits = plan.iteration_s.value - sync[1] - sum(seconds for _, seconds in own)
    return TimeBar(label, plan.iteration_s, (*own, sync, ("waits", max(0.0, waits))))


def _plan_data(plan: RLPlan) -> dict[str, Any]:
    return {
        "placement": plan.placement, "rollout_chips": plan.rollout_chips, "learner_chips": plan.learner_chips,
        "iteration_s": estimate_json(plan.iteration_s), "samples_per_hour": estimate_json(plan.samples_per_hour),
        "tokens_per_s_per_chip": digits(plan.tokens_per_s_per_chip),
        "usd_per_iteration": estimate_json(plan.usd_per_iteration),
        "parts_s": {name: digits(seconds) for name, seconds in plan.parts.items()}, "bottleneck": plan.bottleneck,
    }  # fmt: skip


__all__ = ["RLDocument"]
