"""`predict(kind="train", ...)`: a run that is fully described, as estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, find_chip
from tiefsee.plan.figures.estimate import Estimate, Grade
from tiefsee.plan.names.models import find_spec
from tiefsee.plan.training.efficiency import TrainCalibration
from tiefsee.plan.training.job import Optimizer, TrainJob, make_job, split_package
from tiefsee.plan.training.layout import read_layout
from tiefsee.plan.training.plan import TrainingPlan, plan_training


@dataclass(frozen=True, eq=False)
class TrainingPrediction:
    """`estimates` by unit: step_s, tokens_per_s_per_chip, tokens_per_s, mfu (causal, of the BF16 peak), gpu_hours (of
    the tokens, failures not counted), days (counted). `parts` are seconds of a step."""

    estimates: Mapping[str, Estimate]
    parts: Mapping[str, float]
    bottleneck: str
    grade: Grade
    notes: tuple[str, ...]
    plan: TrainingPlan

    def value(self, unit: str) -> float:
        if unit not in self.estimates:
            raise ConfigError(f"a training run has no {unit!r}; there are {', '.join(self.estimates)}")
        return self.estimates[unit].value


def predict_training(
    model: str, chip: str | Chip, num_chips: int, *, layout: Mapping[str, Any] | None = None,
    precision: str | None = None, batch: int | None = None, isl: int | None = None, tokens: float | None = None,
    optimizer: Optimizer | None = None, imbalance: float | None = None, stack: str | None = None,
    date: str | None = None, mtp: bool = True, calibration: TrainCalibration | None = None,
) -> TrainingPrediction:  # fmt: skip
    """`batch` is the global batch in sequences, `isl` a sequence's tokens; what is None follows the model's recipe.

    `layout` counts ranks: tp x cp x pp (x dp) of them. Ranks of an Ascend 910C are its dies; a layout of as many ranks
    as there are packages is taken as one rank per package, and the notes say so. None: the best layout is looked for.
    """
    found = find_chip(chip) if isinstance(chip, str) else chip
    spec = find_spec(model)

    def job_of(packages: bool) -> TrainJob:
        return make_job(
            model, spec, found, num_chips, sequence=isl, global_batch=batch, tokens=tokens, precision=precision,
            optimizer=optimizer, with_mtp=mtp, imbalance=1.0 if imbalance is None else imbalance, stack=stack,
            package_ranks=packages,
        )  # fmt: skip

    packages = layout is not None and split_package(found)[1] > 1 and _ranks(layout) == num_chips
    job = job_of(packages)
    plan = plan_training(job, layout if layout is not None else "search", date=date, calibration=calibration)
    if layout is not None and plan.step.layout.ranks != job.num_ranks:
        raise ConfigError(
            f"the layout has {plan.step.layout.ranks:,} ranks; {num_chips:,} x {found.name} are {job.num_ranks:,}. "
            "Leave dp out, and it follows"
        )
    estimates = {
        "step_s": plan.step_s, "tokens_per_s_per_chip": plan.tokens_per_s_per_chip, "tokens_per_s": plan.tokens_per_s,
        "mfu": plan.mfu["causal_bf16"], "gpu_hours": plan.busy_chip_hours, "days": plan.days,
    }  # fmt: skip
    notes = plan.notes
    if packages:
        notes += (f"one rank per package of {found.dies} dies: an approximation, since the layout has as many ranks",)
    return TrainingPrediction(estimates, plan.step.parts, plan.bottleneck, plan.grade, notes, plan)


def _ranks(layout: Mapping[str, Any]) -> int | None:
    """Ranks that a layout names, or None where dp is left open."""
    try:
        if layout.get("dp") is None:
            return None
        return read_layout(layout, 1).ranks
    except ConfigError:
        return None
