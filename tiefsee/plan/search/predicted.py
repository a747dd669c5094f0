"""A plan's figures with their ranges: `predict` asked about the deployment that the search chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiefsee.plan.figures.prediction import Prediction
from tiefsee.plan.fitted.calibrated import Calibrated
from tiefsee.plan.predictor import predict
from tiefsee.plan.search.placement import Plan, Role


def predicted(
    plan: Plan, calibrated: Calibrated, *, stack: str | None, date: str | None, kv_precision: str = ""
) -> Prediction:
    """The closed loop of the plan, with ranges, grade, parts and bottleneck."""
    placement, load = plan.placement, plan.placement.workload
    decode, prefill = placement.decode, placement.prefill
    disagg = None if prefill is None else {"prefill": _role(prefill), "decode": _role(decode)}
    return predict(
        kind="e2e", model=load.spec, chip=decode.pool.sold, num_chips=plan.num_chips, layout=_layout(decode),
        precision=decode.pool.precision, concurrency=plan.concurrency, isl=load.isl, osl=load.osl,
        mtp_acceptance=load.mtp_acceptance, mtp_drafts=load.drafts, cache_hit=load.cache_hit,
        imbalance=load.imbalance, stack=stack, date=date, disagg=disagg, kv_precision=kv_precision,
        calibrated=calibrated,
    )  # fmt: skip


def _role(role: Role) -> Mapping[str, Any]:
    return {
        "chip": role.pool.sold, "num_chips": role.num_chips, "layout": _layout(role),
        "precision": role.pool.precision,
    }  # fmt: skip


def _layout(role: Role) -> Mapping[str, int]:
    w = role.worker
    return {"tp": w.tp, "dp": w.dp, "ep": w.ep, "moe_tp": w.moe_tp}


__all__ = ["predicted"]
