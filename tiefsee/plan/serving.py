"""Serving: one worker's decode step and prefill, and what a closed loop of requests makes of them.

decode    step(b) = operators + collectives + host; TPOT = step / (1 + accepted drafts)
prefill   a batch of prompts, as far as it is not cached
closed loop of c requests, prefill apart from decode:
          c = rate (TTFT + osl TPOT) and rate <= prefill's: what waits for prefill is not in the decode batch
aggregated: each request's prefill stops the others' decode: TPOT = step + b / osl * prefill * interleave
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip
from tiefsee.plan.collectives import forward_transfers
from tiefsee.plan.efficiency import Efficiency
from tiefsee.plan.terms import Step, terms_of
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import Formats, Shard, Work, mtp_ops, step_ops
from tiefsee.spec.model import MoE

# Tokens of a prefill step: engines cut longer prompts and join shorter ones.
PREFILL_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class Worker:
    """One replica: `tp` ranks to each of `dp` attention groups; experts over `ep` ranks, each split by `moe_tp`."""

    spec: ModelSpec
    chip: Chip
    formats: Formats
    tp: int = 1
    dp: int = 1
    ep: int = 1
    moe_tp: int = 1
    overlap: bool = False
    imbalance: float = 1.0

    def __post_init__(self) -> None:
        heads = self.spec.layers[0].attention.num_attention_heads
        if heads % self.tp:
            raise ConfigError(f"tp = {self.tp} does not divide {heads} heads; take a divisor")
        if self.ep * self.moe_tp > self.num_chips and self.has_experts:
            raise ConfigError(
                f"experts over ep {self.ep} x moe_tp {self.moe_tp} need {self.ep * self.moe_tp} chips; "
                f"attention by tp {self.tp} x dp {self.dp} has {self.num_chips}"
            )

    @property
    def num_chips(self) -> int:
        return self.tp * self.dp

    @property
    def has_experts(self) -> bool:
        return any(isinstance(layer.ffn, MoE) for layer in self.spec.layers)

    @property
    def shard(self) -> Shard:
        return Shard(self.tp, self.ep, self.moe_tp)


@lru_cache(maxsize=65536)
def decode_step(worker: Worker, batch: float, context: float, drafts: int = 0) -> Step:
    """Terms of one decode step of `batch` requests on the worker; each verifies `drafts` tokens more."""
    per_group = batch / worker.dp
    tokens = per_group * (1 + drafts)
    work = Work(tokens, per_group, context, decode=True, expert_tokens=batch * (1 + drafts), num_logits=tokens)
    ops = step_ops(worker.spec, work, worker.formats, worker.shard, imbalance=worker.imbalance)
    terms = terms_of(ops, worker.chip)
    transfers = tuple(forward_transfers(worker.spec, worker.chip, worker.shard, worker.dp, tokens))
    if drafts:
        one = replace(work, num_tokens=per_group, expert_tokens=batch, num_logits=per_group)
        extra = terms_of(
            mtp_ops(worker.spec, one, worker.formats, worker.shard, imbalance=worker.imbalance), worker.chip
        )
        terms += tuple(replace(term, count=term.count * drafts) for term in extra)
    return Step(terms, transfers)


@lru_cache(maxsize=16384)
def prefill_step(worker: Worker, tokens: float, requests: float, context: float) -> Step:
    """Terms of one prefill step of `tokens` tokens in each attention group, of `requests` prompts."""
    work = Work(tokens, requests, context, expert_tokens=tokens * worker.dp)
    ops = step_ops(worker.spec, work, worker.formats, worker.shard, imbalance=worker.imbalance)
    transfers = tuple(forward_transfers(worker.spec, worker.chip, worker.shard, worker.dp, tokens))
    return Step(terms_of(ops, worker.chip), transfers)


def join(operators_s: float, collectives_s: float, *, overlap: bool) -> float:
    """Two-batch overlap: one half's collectives run under the other half's operators; what is longer stays.

    Half a batch keeps most of its memory traffic, so overlapping operators take somewhat longer: 10 % is what
    CloudMatrix384 and SGLang report to lose, and the gain is taken only where there is one.
    """
    plain = operators_s + collectives_s
    return min(plain, max(operators_s * 1.1, collectives_s)) if overlap else plain


def decode_s(worker: Worker, batch: float, context: float, drafts: int, e: Efficiency) -> float:
    """Seconds of a decode step."""
    operators, collectives = decode_step(worker, batch, context, drafts).seconds(e)
    return join(operators, collectives, overlap=worker.overlap) + e.step_s


def prefill_s(worker: Worker, prompt: float, cached: float, e: Efficiency) -> float:
    """Seconds to prefill one prompt in each attention group, `cached` of its tokens being known already."""
    left, done, total = max(1.0, prompt - cached), cached, 0.0
    while left > 0:
        chunk = min(left, PREFILL_TOKENS)
        total += _prefill_chunk_s(worker, chunk, 1.0, done, e)
        left, done = left - chunk, done + chunk
    return total


def prefill_each_s(worker: Worker, prompt: float, cached: float, e: Efficiency) -> float:
    """Seconds per prompt of each attention group where prompts wait: short ones share a step."""
    new = max(1.0, prompt - cached)
    together = max(1.0, PREFILL_TOKENS // new)
    if together == 1:
        return prefill_s(worker, prompt, cached, e)
    return _prefill_chunk_s(worker, new * together, together, cached, e) / together


def _prefill_chunk_s(worker: Worker, tokens: float, requests: float, context: float, e: Efficiency) -> float:
    operators, collectives = prefill_step(worker, tokens, requests, context).seconds(e, eager=True)
    return join(operators, collectives, overlap=worker.overlap) + e.step_s


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
    between = batch / worker.dp / load.osl * alone * e.interleave
    tpot = step / (1 + load.accepted) + between
    ttft = e.request_s + alone + step / 2 + e.waves * (batch / worker.dp - 1) * each
    rate = load.concurrency / (ttft + load.osl * tpot)
    return Served(tpot, ttft, rate, batch, alone, step)


def serve_disaggregated(
    prefill: Worker, num_prefill: int, decode: Worker, num_decode: int, load: Load, prefill_e: Efficiency,
    decode_e: Efficiency, transfer_s: float = 0.0,
) -> Served:  # fmt: skip
    """Prefill and decode on pools of their own; `transfer_s` is the cache's way between them."""
    alone = prefill_s(prefill, load.isl, load.cached, prefill_e)
    each = prefill_each_s(prefill, load.isl, load.cached, prefill_e)
    servers = num_prefill * prefill.dp
    most = servers / each
    free = prefill_e.request_s + alone + transfer_s
    ttft = free + prefill_e.waves * max(0.0, load.concurrency / servers - 1) * each
    batch = max(1.0, load.concurrency / num_decode)
    for _ in range(40):
        step = decode_s(decode, batch, load.context, load.drafts, decode_e)
        tpot = step / (1 + load.accepted)
        # Requests that wait for a prefill which cannot keep up are not in the decode batch.
        rate = min(most, load.concurrency / (ttft + load.osl * tpot))
        waiting = load.concurrency / rate - load.osl * tpot
        new = max(1.0, min(load.concurrency, rate * load.osl * tpot) / num_decode)
        if abs(new - batch) < 0.005 * batch:
            break
        batch = (batch + new) / 2
    return Served(tpot, max(ttft, waiting), rate, batch, alone, step)
