"""What a closed loop of requests makes of the steps.

closed loop of c requests, prefill apart from decode:
          c = rate (TTFT + osl TPOT): what waits for prefill is not in the decode batch, nor what waits until one of
          the requests ends that decode workers hold at most (slots)
aggregated: each request's prefill stops the others' decode: TPOT = step + b / osl * prefill * interleave
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tiefsee.plan.fitted.efficiency import Efficiency
from tiefsee.plan.serving.step import decode_between_s, decode_s, prefill_each_s, prefill_s
from tiefsee.plan.serving.worker import Worker


@dataclass(frozen=True)
class Load:
    """A closed loop of `concurrency` requests, or an endless one as fast as it goes."""

    concurrency: float
    isl: float
    osl: float
    cached: float = 0.0
    accepted: float = 0.0
    drafts: int = 0

    @property
    def context(self) -> float:
        """Tokens that a decoded token sees, in the mean over an answer."""
        return self.isl + self.osl / 2


@dataclass(frozen=True)
class Served:
    """What a closed loop settles at. Rates are of the whole deployment."""

    tpot_s: float
    ttft_s: float
    requests_per_s: float
    batch: float
    prefill_s: float
    step_s: float

    def output_tokens_per_s(self, osl: float) -> float:
        return self.requests_per_s * osl


def serve_aggregated(worker: Worker, replicas: int, load: Load, e: Efficiency) -> Served:
    """Prefill and decode share the chips."""
    batch = max(1.0, load.concurrency / replicas)
    step = decode_s(worker, batch, load.context, load.drafts, e)
    alone = prefill_s(worker, load.isl, load.cached, e)
    each = prefill_each_s(worker, load.isl, load.cached, e)
    # Each attention group prefills its own prompts; all groups of a worker wait for one another.
    per_group = batch * worker.dp ** (e.lockstep - 1.0)
    tpot = step / (1 + load.accepted) + per_group / load.osl * alone * e.interleave
    served_s = each + e.front_s
    wait = closed_loop_wait_s(per_group, served_s, load.osl * tpot) + e.burst * per_group * served_s
    ttft = e.request_s + alone + e.steps_until_sent(worker.dp, aggregated=True) * step + wait
    return Served(tpot, ttft, load.concurrency / (ttft + load.osl * tpot), batch, alone, step)


def serve_disaggregated(
    prefill: Worker, num_prefill: int, decode: Worker, num_decode: int, load: Load, prefill_e: Efficiency,
    decode_e: Efficiency, transfer_s: float = 0.0, slots: float = math.inf,
) -> Served:  # fmt: skip
    """Prefill and decode on pools of their own; `transfer_s` is the cache's way between them, `slots` the requests that
    the decode pool holds at most: where more want to be served, each waits (c / slots - 1) answers for a place."""
    alone = prefill_s(prefill, load.isl, load.cached, prefill_e)
    each = prefill_each_s(prefill, load.isl, load.cached, prefill_e)
    # Groups of a worker step together, and prompts of some do not wait for prompts of all.
    per_server = load.concurrency / (num_prefill * prefill.dp ** (1.0 - prefill_e.lockstep))
    served_s = each + prefill_e.front_s
    prefilled_s = alone + prefill_e.burst * per_server * served_s
    batch = max(1.0, min(load.concurrency, slots) / num_decode)
    for _ in range(40):
        step = decode_between_s(decode, batch, load.context, load.drafts, decode_e)
        answer_s = load.osl * step / (1 + load.accepted)
        # Who waits for prefill or a slot, whichever is narrower, is not in the decode batch.
        before_s = prefilled_s + closed_loop_wait_s(per_server, served_s, answer_s)
        for_slot_s = (load.concurrency / slots - 1) * answer_s
        ttft = (
            prefill_e.request_s
            + max(before_s, for_slot_s)
            + transfer_s
            + decode_e.steps_until_sent(decode.dp, aggregated=False) * step
        )
        rate = load.concurrency / (ttft + answer_s)
        new = max(1.0, min(rate * answer_s, slots) / num_decode)
        if abs(new - batch) < 0.005 * batch:
            break
        batch = (batch + new) / 2
    return Served(step / (1 + load.accepted), ttft, rate, batch, alone, step)


def closed_loop_wait_s(customers: float, service_s: float, away_s: float) -> float:
    """How long one of `customers` waits before its service, if each comes back `away_s` after it was served.

    Mean value analysis of one queue and a delay, with Schweitzer's approximation (Performance Evaluation of
    Computer Systems, 1979): an arriving customer finds (n - 1) / n of the mean queue. R is the root of
    R^2 + R (Z - n D) - D Z = 0. Few customers: almost nothing; many: n D - Z, the queue that never empties.
    """
    if customers <= 1:
        return 0.0
    half = (away_s - customers * service_s) / 2
    return (half * half + service_s * away_s) ** 0.5 - half - service_s
