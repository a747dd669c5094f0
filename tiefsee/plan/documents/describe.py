"""Plans and simulations in words, and in base units for machines."""

from __future__ import annotations

from typing import Any

from tiefsee.plan.figures.money import Price, fleet_usd_per_hour
from tiefsee.plan.search.placement import Plan, Role
from tiefsee.plan.serving.memory import worker_name
from tiefsee.plan.simulate.result import Percentiles, Simulated


def describe(plan: Plan) -> str:
    """2 x DP8 EP8 prefill + 1 x DP16 EP16 decode, and on what if that is not said elsewhere."""
    placement = plan.placement
    if placement.prefill is None:
        return _role_text(placement.decode)
    return f"prefill {_role_text(placement.prefill)} + decode {_role_text(placement.decode)}"


def workers_text(plan: Plan) -> str:
    """Short: what prefills first."""
    return " + ".join(f"{role.count} x {worker_name(role.worker)}" for role in plan.placement.roles)


def _role_text(role: Role) -> str:
    return f"{role.count} x {worker_name(role.worker)} on {role.pool.chips_of(role.worker.num_chips)} {role.pool.name}"


def price_of_plan(plan: Plan) -> Price | None:
    """USD per hour of all its chips; None where one has no price."""
    listed = []
    for role in plan.placement.roles:
        if role.pool.usd_per_hour is None:
            return None
        listed.append((Price.of(role.pool.usd_per_hour), role.num_chips))
    return fleet_usd_per_hour(listed)


def plan_data(plan: Plan) -> dict[str, Any]:
    """In base units."""
    placement, served = plan.placement, plan.served
    roles = {"decode": placement.decode} | ({"prefill": placement.prefill} if placement.prefill is not None else {})
    return {
        "kind": plan.kind,
        "num_chips": plan.num_chips,
        "concurrency": plan.concurrency,
        "batch_per_chip": plan.batch_per_chip,
        "tokens_per_s": plan.tokens_per_s,
        "tokens_per_s_per_chip": plan.tokens_per_s_per_chip,
        "requests_per_s": served.requests_per_s,
        "tpot_s": served.tpot_s,
        "ttft_s": served.ttft_s,
        "prefill_busy": plan.prefill_busy,
        "transfer_s": placement.transfer_s,
        "limit": plan.limit,
        "roles": {name: _role_data(role) for name, role in roles.items()},
    }


def _role_data(role: Role) -> dict[str, Any]:
    w = role.worker
    return {
        "chip": role.pool.name, "num_chips": role.num_chips, "num_workers": role.count,
        "precision": role.pool.precision,
        "layout": {"tp": w.tp, "dp": w.dp, "ep": w.ep, "moe_tp": w.moe_tp, "ranks": w.num_chips},
        "memory_bytes": role.memory.parts(),
    }  # fmt: skip


def simulated_data(s: Simulated) -> dict[str, Any]:
    def spread(p: Percentiles) -> dict[str, float]:
        return {"mean": p.mean, "p50": p.p50, "p90": p.p90, "p99": p.p99}

    return {
        "layout": describe(s.plan), "concurrency": s.concurrency, "num_requests": s.num_requests,
        "closed": s.closed, "seed": s.seed,
        "share": s.share, "ttft_s": spread(s.ttft), "tpot_s": spread(s.tpot), "e2e_s": spread(s.e2e),
        "requests_per_s": s.requests_per_s, "goodput_requests_per_s": s.goodput_requests_per_s, "within": s.within,
        "mean_waiting": s.mean_waiting, "max_waiting": s.max_waiting, "num_preemptions": s.num_preemptions,
        "hit_share": s.hit_share, "disagreements": list(s.disagreements()),
    }  # fmt: skip


__all__ = ["describe", "plan_data", "price_of_plan", "simulated_data", "workers_text"]
