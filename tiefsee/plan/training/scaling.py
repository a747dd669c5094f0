"""The same job on more and more chips: where and why a large cluster falls short. Data for a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tiefsee.errors import ConfigError, OutOfMemory
from tiefsee.plan.training.job import TrainJob
from tiefsee.plan.training.plan import TrainingPlan, plan_training


@dataclass(frozen=True, eq=False)
class ScalingPoint:
    """One size of cluster. `efficiency`: useful tokens per second and chip over those of the smallest size; `losses`
    split what is missing (they add up to 1 - efficiency, where losses only grow)."""

    num_chips: int
    tokens_per_s: float
    tokens_per_s_per_chip: float
    mfu: float
    goodput: float
    useful_tokens_per_s_per_chip: float
    efficiency: float
    losses: dict[str, float]
    why: str
    plan: TrainingPlan | None
    error: str = ""


def scaling(job: TrainJob, counts: Sequence[int], date: str | None = None) -> list[ScalingPoint]:
    """The best layout for each count, at the same global batch. A count that cannot hold the model says so."""
    found: list[ScalingPoint] = []
    first: TrainingPlan | None = None
    for count in sorted(set(counts)):
        try:
            plan = plan_training(replace(job, num_chips=count), date=date)
        except (OutOfMemory, ConfigError) as error:
            found.append(ScalingPoint(count, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, {}, str(error), None, str(error)))
            continue
        first = first or plan
        found.append(_point(plan, first))
    return found


def _point(plan: TrainingPlan, first: TrainingPlan) -> ScalingPoint:
    good, base = plan.goodput.share.value, first.goodput.share.value
    rate = plan.tokens_per_s_per_chip.value
    useful, reference = rate * good, first.tokens_per_s_per_chip.value * base
    efficiency = useful / reference
    losses = _losses(plan, first)
    worst = max(losses, key=lambda name: losses[name])
    why = f"{worst}: {losses[worst]:.0%}" if losses[worst] > 0.01 else "as good as the smallest"
    return ScalingPoint(
        plan.job.num_chips, plan.tokens_per_s.value, rate, plan.mfu["causal_bf16"].value, good, useful, efficiency,
        losses, why, plan,
    )  # fmt: skip


def _losses(plan: TrainingPlan, first: TrainingPlan) -> dict[str, float]:
    """Chip seconds per token, by cause, over those of the smallest size: the growth of each."""
    names = {"bubble": "pipeline waits", "exchange": "communication", "update": "reduce and update"}

    def per_token(p: TrainingPlan) -> dict[str, float]:
        seconds = 1 / p.tokens_per_s_per_chip.value
        found = dict.fromkeys([*names.values(), "arithmetic"], 0.0)
        for key, share in p.where.items():
            found[names.get(key, "arithmetic")] += share * seconds
        found["failures"] = seconds / p.goodput.share.value - seconds
        return found

    now, then = per_token(plan), per_token(first)
    total = sum(now.values())
    return {name: (now[name] - then[name]) / total for name in now}
