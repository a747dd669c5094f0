"""Serving: one worker's decode step and prefill, and what a closed loop of requests makes of them.

decode    step(b) = operators + collectives + host; TPOT = step / (1 + accepted drafts)
prefill   a batch of prompts, as far as it is not cached
closed loop of c requests, prefill apart from decode:
          c = rate (TTFT + osl TPOT): what waits for prefill is not in the decode batch, nor what waits until one of
          the requests ends that decode workers hold at most (slots)
aggregated: each request's prefill stops the others' decode: TPOT = step + b / osl * prefill * interleave
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip
from tiefsee.plan.collectives import forward_transfers
from tiefsee.plan.efficiency import Efficiency
from tiefsee.plan.terms import Step, terms_of, uneven
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import Formats, Shard, Work, check_shard, mtp_ops, step_ops
from tiefsee.spec.model import MoE

# Tokens of a prefill step: engines cut longer prompts and join shorter ones.
PREFILL_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class Worker:
    """One replica: `tp` ranks to each of `dp` attention groups; experts over `ep` ranks, each split by `moe_tp`;
    all of it `pp` times, one after the other, each with a part of the layers.

    `imbalance` is the load of the fullest expert rank over the mean's; None leaves it to `Efficiency.skew`.
    """

    spec: ModelSpec
    chip: Chip
    formats: Formats
    tp: int = 1
    dp: int = 1
    ep: int = 1
    moe_tp: int = 1
    pp: int = 1
    overlap: bool = False
    imbalance: float | None = None

    def __post_init__(self) -> None:
        if self.pp > len(self.spec.layers):
            raise ConfigError(f"pp = {self.pp} stages for {len(self.spec.layers)} layers; take at most one each")
        ranks = self.tp * self.dp
        if self.has_experts and self.ep * self.moe_tp != ranks:
            raise ConfigError(
                f"experts over ep {self.ep} x moe_tp {self.moe_tp} are {self.ep * self.moe_tp} ranks, attention over "
                f"tp {self.tp} x dp {self.dp} is {ranks}; they have to be the same ranks"
            )
        check_shard(self.spec, self.shard)

    @property
    def num_chips(self) -> int:
        return self.tp * self.dp * self.pp

    @property
    def has_experts(self) -> bool:
        return any(isinstance(layer.ffn, MoE) for layer in self.spec.layers)

    @property
    def shard(self) -> Shard:
        return Shard(self.tp, self.ep, self.moe_tp)

    @property
    def spread(self) -> float:
        """See `terms.uneven`; 0 where the imbalance is given."""
        moe = next((layer.ffn for layer in self.spec.layers if isinstance(layer.ffn, MoE)), None)
        return uneven(self.ep, moe.n_routed_experts) if moe is not None and self.imbalance is None else 0.0


@lru_cache(maxsize=65536)
def decode_step(worker: Worker, batch: float, context: float, drafts: int = 0) -> Step:
    """Terms of one decode step of `batch` requests on the worker; each verifies `drafts` tokens more."""
    per_group = batch / worker.dp
    tokens = per_group * (1 + drafts)
    work = Work(tokens, per_group, context, decode=True, expert_tokens=batch * (1 + drafts), num_logits=tokens)
    ops = step_ops(worker.spec, work, worker.formats, worker.shard, imbalance=worker.imbalance or 1.0)
    terms = terms_of(ops, worker.chip)
    transfers = tuple(forward_transfers(worker.spec, worker.chip, worker.shard, worker.dp, tokens))
    if drafts:
        one = replace(work, num_tokens=per_group, expert_tokens=batch, num_logits=per_group)
        extra = terms_of(
            mtp_ops(worker.spec, one, worker.formats, worker.shard, imbalance=worker.imbalance or 1.0), worker.chip
        )
        terms += tuple(replace(term, count=term.count * drafts) for term in extra)
    return Step(terms, transfers, worker.spread)


@lru_cache(maxsize=16384)
def prefill_step(worker: Worker, tokens: float, requests: float, context: float) -> Step:
    """Terms of one prefill step of `tokens` tokens in each attention group, of `requests` prompts."""
    work = Work(tokens, requests, context, expert_tokens=tokens * worker.dp)
    ops = step_ops(worker.spec, work, worker.formats, worker.shard, imbalance=worker.imbalance or 1.0)
    transfers = tuple(forward_transfers(worker.spec, worker.chip, worker.shard, worker.dp, tokens))
    return Step(terms_of(ops, worker.chip), transfers, worker.spread)


def join(operators_s: float, collectives_s: float, e: Efficiency, *, overlap: bool) -> float:
    """Two-batch overlap: one half's collectives run under the other half's operators; what is longer stays.

    Half a batch keeps most of its memory traffic and collectives take processors, so operators take longer
    (`Efficiency.overlapped`); where nothing is gained it is left off, as engines do.
    """
    plain = operators_s + collectives_s
    return min(plain, max(operators_s * e.overlapped, collectives_s)) if overlap else plain


def decode_s(worker: Worker, batch: float, context: float, drafts: int, e: Efficiency) -> float:
    """Seconds from one token of a request to its next step. With pp stages, pp micro-batches follow one another, and
    each request waits for all stages: as long as one stage with all layers takes for a micro-batch."""
    operators, collectives = decode_step(worker, batch / worker.pp, context, drafts).seconds(e)
    return join(operators, collectives, e, overlap=worker.overlap) + e.step_s


def decode_between_s(worker: Worker, batch: float, context: float, drafts: int, e: Efficiency) -> float:
    """The same, between batches four to a doubling: within 0.3 %, and the terms of those are worked out only once."""
    place = 4 * math.log2(max(batch, 1.0))
    below = math.floor(place)
    low, high = 2.0 ** (below / 4), 2.0 ** ((below + 1) / 4)
    first, second = (decode_s(worker, size, context, drafts, e) for size in (low, high))
    return first + (second - first) * (max(batch, 1.0) - low) / (high - low)


def prefill_s(worker: Worker, prompt: float, cached: float, e: Efficiency) -> float:
    """Seconds to prefill one prompt in each attention group, `cached` of its tokens being known already."""
    left, done, total = max(1.0, prompt - cached), cached, 0.0
    while left > 0:
        chunk = min(left, PREFILL_TOKENS)
        total += _prefill_chunk_s(worker, chunk, 1.0, done, e)
        left, done = left - chunk, done + chunk
    return total


def prefill_each_s(
    worker: Worker, prompt: float, cached: float, e: Efficiency, step_tokens: float = PREFILL_TOKENS
) -> float:
    """Seconds per prompt of each attention group where prompts wait: short ones share a step, stages work at once."""
    new = max(1.0, prompt - cached)
    together = max(1.0, step_tokens // new)
    if together == 1:
        return prefill_s(worker, prompt, cached, e) / worker.pp
    return _prefill_chunk_s(worker, new * together, together, cached, e) / together / worker.pp


def _prefill_chunk_s(worker: Worker, tokens: float, requests: float, context: float, e: Efficiency) -> float:
    operators, collectives = prefill_step(worker, tokens, requests, context).seconds(e, eager=True)
    return join(operators, collectives, e, overlap=worker.overlap) + e.step_s


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
