"""One worker's decode step and its prefill, in seconds.

decode    step(b) = operators + collectives + host; TPOT = step / (1 + accepted drafts)
prefill   a batch of prompts, as far as it is not cached
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from tiefsee.plan.fitted.efficiency import Efficiency
from tiefsee.plan.serving.worker import Worker
from tiefsee.plan.times.collectives import forward_transfers
from tiefsee.plan.times.terms import Step, terms_of
from tiefsee.spec.cost import Work, mtp_ops, step_ops

# Tokens of a prefill step: engines cut longer prompts and join shorter ones.
PREFILL_TOKENS = 8192


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
        total += prefill_chunk_s(worker, chunk, 1.0, done, e)
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
    return prefill_chunk_s(worker, new * together, together, cached, e) / together / worker.pp


def prefill_chunk_s(worker: Worker, tokens: float, requests: float, context: float, e: Efficiency) -> float:
    operators, collectives = prefill_step(worker, tokens, requests, context).seconds(e, eager=True)
    return join(operators, collectives, e, overlap=worker.overlap) + e.step_s
