"""A training plan as plain data: what `tiefsee plan train --json` has under "data"."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tiefsee.plan.figures.estimate import Estimate
from tiefsee.plan.training.plan import TrainingPlan
from tiefsee.plan.training.scaling import ScalingPoint
from tiefsee.plan.training.step import Step


def estimate_json(e: Estimate | None) -> dict[str, Any] | None:
    """An estimate to as many digits as its range carries: three."""
    if e is None:
        return None
    return {"value": digits(e.value), "low": digits(e.low), "high": digits(e.high), "unit": e.unit, "grade": e.grade}


def digits(value: float, n: int = 3) -> float:
    return float(f"{value:.{n}g}")


def layout_json(step: Step) -> dict[str, Any]:
    layout = asdict(step.layout)
    layout |= {"recompute": step.recompute, "overlap": step.overlap, "gradients": step.layout.gradients or "fp32"}
    return layout | {"ranks": step.layout.ranks, "micro_batches": step.micro_batches, "stage_ends": list(step.ends)}


def to_json(plan: TrainingPlan) -> dict[str, Any]:
    job, step, good = plan.job, plan.step, plan.goodput
    memory = {name: digits(value) for name, value in asdict(step.memory).items()}
    return {
        "question": {
            "model": job.model, "chip": job.chip.name, "num_chips": job.num_chips, "ranks_per_chip": job.ranks_per_chip,
            "tokens": job.tokens, "sequence": job.sequence, "global_batch_sequences": job.global_batch,
            "global_batch_tokens": job.global_batch_tokens, "precision": job.precision, "optimizer": job.optimizer,
            "mtp": job.with_mtp, "imbalance": job.imbalance, "stack": plan.stack.name,
        },
        "layout": layout_json(step),
        "step_s": estimate_json(plan.step_s),
        "parts_s": {name: digits(value) for name, value in step.parts.items()},
        "where": {name: digits(value, 2) for name, value in plan.where.items()},
        "memory_bytes": memory | {"total": digits(step.memory.total)},
        "tokens_per_s": estimate_json(plan.tokens_per_s),
        "tokens_per_s_per_chip": estimate_json(plan.tokens_per_s_per_chip),
        "tflops_per_chip": {name: digits(value) for name, value in plan.tflops_per_chip.items()},
        "mfu": {name: estimate_json(value) for name, value in plan.mfu.items()},
        "goodput": {
            "share": estimate_json(good.share), "failures_per_day": estimate_json(good.failures_per_day),
            "mtbf_s": digits(good.mtbf_s), "checkpoint_bytes": digits(good.checkpoint_bytes),
            "interval_s": digits(good.interval_s), "save_s": digits(good.save_s), "write_s": digits(good.write_s),
            "restart_s": digits(good.restart_s), "lost": {k: digits(v, 2) for k, v in good.lost.items()},
        },
        "days": estimate_json(plan.days),
        "chip_hours": estimate_json(plan.chip_hours),
        "busy_chip_hours": estimate_json(plan.busy_chip_hours),
        "usd": estimate_json(plan.usd),
        "usd_per_chip_hour": plan.usd_per_chip_hour,
        "break_even_usd_per_chip_hour": estimate_json(plan.break_even_usd_per_hour),
        "against": plan.against,
        "grade": plan.grade,
        "bottleneck": plan.bottleneck,
        "alternatives": [layout_json(s) | {"step_s": digits(s.seconds)} for s in plan.alternatives],
        "notes": list(plan.notes),
        "sources": list(plan.sources),
    }  # fmt: skip


def scaling_json(point: ScalingPoint) -> dict[str, Any]:
    answer: dict[str, Any] = {"num_chips": point.num_chips}
    if point.plan is None:
        return answer | {"error": point.error}
    rates = ("tokens_per_s", "tokens_per_s_per_chip", "useful_tokens_per_s_per_chip")
    for name in (*rates, "mfu", "goodput", "efficiency"):
        answer[name] = digits(getattr(point, name))
    answer["losses"] = {name: digits(value, 2) for name, value in point.losses.items()}
    return answer | {"why": point.why, "layout": layout_json(point.plan.step), "days": digits(point.plan.days.value)}
