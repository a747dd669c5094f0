"""One attention group under a virtual clock: the engine's own scheduler, with steps that take what the plan says.

A stretch of steps in which nobody arrives, ends or starts a prompt is one call of the scheduler: its requests are
given the tokens of all those steps as drafts that come true. The blocks that it takes, whom it preempts and when are
then what single steps would have come to, at a fraction of the time.

Where a decode pool runs hundreds of requests somebody comes or goes in each step. There `grain` steps are taken at
once all the same: who ends in between ends on time, who comes waits for at most so many steps (of a thousand).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tiefsee.plan.search.goal import Workload
from tiefsee.plan.search.placement import Role
from tiefsee.plan.serving.step import PREFILL_TOKENS
from tiefsee.plan.simulate.step_time import Parts, StepTime
from tiefsee.schedule import Accepted, Batch, Entry, Request, Scheduler, SchedulerConfig
from tiefsee.spec import cache_streams

# Most steps that are taken as one: contexts grow meanwhile, and their mean is charged.
_LONGEST_STRETCH = 256
_NO_BUDGET = 1 << 30


@dataclass(eq=False)
class Lane:
    """`now_s` is when its last step ended. `receives`: prompts come with their cache from a prefill pool, and cost
    nothing but their blocks, unless they are preempted and computed anew."""

    scheduler: Scheduler
    step_time: StepTime
    dice: np.random.Generator
    acceptance: float
    drafts: int
    receives: bool
    speed: float = 1.0
    grain: int = 1
    now_s: float = 0.0
    num_steps: int = 0
    waited: float = 0.0  # waiting requests, integrated over time
    max_waiting: int = 0
    busy_s: float = 0.0
    free_s: float = 0.0  # when its front has handed on the last request
    owed_s: float = 0.0  # what other groups' prompts take of the next step
    _stuck: bool = False  # the one that waits longest was refused, and nothing has changed since

    def __post_init__(self) -> None:
        usual = self.scheduler.config
        if self.receives:
            usual = self.scheduler.config = replace(usual, max_step_tokens=_NO_BUDGET)
        self._usual, self._stretched = usual, replace(usual, max_step_tokens=_NO_BUDGET)

    @property
    def load(self) -> int:
        return len(self.scheduler.waiting) + len(self.scheduler.running)

    def add(self, request: Request, now_s: float) -> None:
        if not self.scheduler.has_work():
            self.now_s = max(self.now_s, now_s)
        self.scheduler.add(request)
        self._stuck = False
        self.max_waiting = max(self.max_waiting, len(self.scheduler.waiting))

    def step(self, horizon_s: float, on_token: Callable[[Request, float], None]) -> list[tuple[Request, float]]:
        """One step, or a stretch that the first step to end after `horizon_s` ends. Returns who has finished, and
        when; `on_token` hears of each request whose prompt is done, and when."""
        scheduler = self.scheduler
        count = self._stretch(horizon_s)
        gains = self._propose(count)
        scheduler.config = self._stretched if count > 1 else self._usual
        num_waiting = len(scheduler.waiting)
        batch = scheduler.schedule()
        assert batch.entries, "a scheduler with work has a step"
        seconds = self._seconds(self._parts(batch, count), count)
        accepted = [self._accept(entry, gains) for entry in batch.entries]
        scheduler.commit(batch, accepted)
        finished = [
            (e.request, self.now_s + seconds * _part(e, result, gains))
            for e, result in zip(batch.entries, accepted, strict=True)
            if e.request.finish_reason is not None
        ]
        self.now_s += seconds
        self.busy_s += seconds
        self.waited += seconds * len(scheduler.waiting)
        self.num_steps += count
        for entry in batch.entries:
            if entry.samples and entry.start + len(entry.tokens) - entry.num_drafts == entry.request.num_prompt_tokens:
                on_token(entry.request, self.now_s)
        self._stuck = bool(scheduler.waiting) and not finished and len(scheduler.waiting) == num_waiting
        return finished

    # ------------------------------------------------------------------------------ stretches

    def _stretch(self, horizon_s: float) -> int:
        """Steps that can be taken as one."""
        scheduler, most = self.scheduler, 1 + self.drafts
        running = scheduler.running
        if not running or (scheduler.waiting and not self._stuck):
            return 1
        left = _LONGEST_STRETCH * most
        size = scheduler.config.block_tokens
        for request in running:
            if not request.is_decoding:
                return 1
            end = min(request.num_prompt_tokens + request.max_tokens, scheduler.config.max_tokens)
            left = min(left, end - len(request.tokens))
        if scheduler.config.keeps_snapshots:
            left = min(left, *(size - r.num_committed_tokens % size for r in running))
        count = max(left // most, self.grain)
        if count < 2:
            return 1
        context = float(sum(r.num_committed_tokens for r in running))
        step_s = self.step_time.decode_s(len(running), context) / self.speed
        if horizon_s < float("inf"):
            count = min(count, max(self.grain, int((horizon_s - self.now_s) / step_s) + 1))
        while count > 1 and self._blocks_of(count * most) > scheduler.blocks.num_free:
            count //= 2
        return max(1, count)

    def _blocks_of(self, num_tokens: int) -> int:
        """Blocks that all running requests take for so many tokens more."""
        size = self.scheduler.config.block_tokens
        return sum(
            max(0, -(-(r.num_committed_tokens + num_tokens) // size) - len(r.block_table))
            for r in self.scheduler.running
        )

    def _propose(self, count: int) -> dict[str, int]:
        """Tokens that each decoding request gains in `count` steps, set as its drafts. Coins decide how many drafts
        of each step are right: of those that were, again as many, and so on."""
        decoding = [r for r in self.scheduler.running if r.is_decoding]
        gains = np.full(len(decoding), count)
        if self.drafts and decoding:
            right = np.full(len(decoding), count)
            for _ in range(self.drafts):
                right = self.dice.binomial(right, self.acceptance)
                gains = gains + right
        for request, gain in zip(decoding, gains.tolist(), strict=True):
            request.drafts = [0] * ((gain - 1) if count > 1 else self.drafts)
        return {r.request_id: gain for r, gain in zip(decoding, gains.tolist(), strict=True)}

    # ---------------------------------------------------------------------------------- a step

    def _seconds(self, parts: Parts, count: int) -> float:
        """Of `count` steps. Prompts among decodes take `interleave` times as long as alone, and the other groups' of
        the worker, which step with this one, come on top in the next step: as in the closed form."""
        decode_s = count * self.step_time.decode_s(parts.num_decodes, parts.decode_context)
        prefill_s = self.step_time.prefill_s(parts.prefill_tokens, parts.num_prefills, parts.prefill_context)
        owed_s, self.owed_s = self.owed_s, 0.0
        if decode_s and prefill_s:
            prefill_s *= self.step_time.efficiency.interleave
            self.owed_s = prefill_s * self.step_time.others
        return (decode_s + prefill_s + owed_s) / self.speed

    def front(self, arrival_s: float) -> float:
        """When a request that arrives is there: network and tokenizer, of which some is done one after the other."""
        e = self.step_time.efficiency
        begin_s = max(arrival_s, self.free_s)
        self.free_s = begin_s + e.front_s
        return begin_s + e.request_s

    def until_sent_s(self, context: float) -> float:
        """What a request of that many tokens waits for its first token to be sent, in steps of those that run now."""
        running = self.scheduler.running
        known = float(sum(r.num_committed_tokens for r in running)) or context
        steps = self.step_time.efficiency.steps_until_sent(self.step_time.worker.dp, aggregated=not self.receives)
        return steps * self.step_time.decode_s(max(1, len(running)), known) / self.speed

    def _parts(self, batch: Batch, count: int) -> Parts:
        num_decodes = prefill_tokens = num_prefills = 0
        decode_context = prefill_context = 0.0
        for entry in batch.entries:
            known = len(entry.tokens) - entry.num_drafts
            handed_over = self.receives and entry.request.num_preemptions == 0
            if known == 1 or handed_over:
                num_decodes += 1
                decode_context += entry.start + known - 1
            else:
                num_prefills += 1
                prefill_tokens += known
                prefill_context += entry.start
        decode_context += num_decodes * (count - 1) / 2
        return Parts(num_decodes, decode_context, prefill_tokens, num_prefills, prefill_context)

    def _accept(self, entry: Entry, gains: dict[str, int]) -> Accepted | None:
        if not entry.samples:
            return None
        gain = min(gains.get(entry.request.request_id, 1), 1 + entry.num_drafts)
        return Accepted((0,) * gain)


def _part(entry: Entry, result: Accepted | None, gains: dict[str, int]) -> float:
    """How far into a stretch a request ends that has not all of it before it."""
    whole = gains.get(entry.request.request_id, 1)
    return 1.0 if result is None else min(1.0, len(result.tokens) / whole)


def make_lane(
    role: Role, workload: Workload, longest: int, seed: int, *, kind: str, prefixes: bool, speed: float = 1.0,
    grain: int = 1,
) -> Lane:  # fmt: skip
    """The lane of one attention group. `kind` is "both", "prefill" or "decode"; `longest` is the most tokens of a
    request."""
    memory, drafts = role.memory, workload.drafts if kind != "prefill" else 0
    isl, osl = workload.isl, workload.osl if kind != "prefill" else 1
    max_running = max(1, memory.max_requests(isl, osl) // memory.num_groups)
    block_bytes = memory.token_bytes * memory.block_tokens
    needs_rings = any(s.family == "state" for s in cache_streams(workload.spec, speculate=drafts > 0))
    prefixes = prefixes and kind != "decode"
    config = SchedulerConfig(
        block_tokens=memory.block_tokens,
        num_blocks=max(1, int((memory.cache_bytes - max_running * memory.request_bytes) // block_bytes)),
        num_rings=max_running if needs_rings else 0,
        num_snapshots=8 * max_running if needs_rings and prefixes else 0,
        needs_rings=needs_rings,
        max_step_tokens=PREFILL_TOKENS,
        max_running=max_running,
        max_context=longest + 1,
        max_draft=_LONGEST_STRETCH * (1 + drafts),
        snapshot_every=4,
        enable_prefix_cache=prefixes,
    )
    step_time = StepTime(role.worker, role.pool.efficiency, drafts)
    dice = np.random.default_rng(seed)
    return Lane(Scheduler(config), step_time, dice, workload.chance, drafts, kind == "decode", speed, grain)


__all__ = ["Lane", "make_lane"]
