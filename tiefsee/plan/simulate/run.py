"""The virtual clock: requests come, lanes step, caches move from prefill to decode; whatever is earliest is next.

One attention group stands for its like: they get the same share of the requests and do the same. Of a deployment with
many groups few are simulated, in the ratio of prefill to decode groups, with their part of the load.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tiefsee.errors import ConfigError
from tiefsee.plan.search.goal import Slo
from tiefsee.plan.search.placement import Placement, Plan, Role
from tiefsee.plan.simulate.lane import Lane, make_lane
from tiefsee.plan.simulate.result import Life, Simulated, percentiles
from tiefsee.plan.simulate.traffic import Ask, Closed, Lengths, Source, poisson, prompt_of
from tiefsee.schedule import Request

# Requests of an open loop if nobody says: enough for a 99th percentile of sorts. Of a closed loop half as many do,
# but at least three for each client: one to fill up, one to measure, one to run out.
NUM_REQUESTS = 1000
MOST_LANES = 8
# Where many groups prefill for few, or few for many, more are simulated: most of them have little to do.
_MOST_UNLIKE = 64
# Entries that a decode pool's scheduler is asked for in a simulation, about: one second of this program's time.
_MOST_ENTRIES = 120_000
# Steps that a decode pool may take at once all the same, as a share of an answer's.
_GRAIN = 0.01
# Lighter loads that are tried until the levels are kept.
_SETTLED = 3
# The share of requests, first to come, that find an emptier system than later ones, and are not counted.
WARMUP = 0.15


@dataclass(eq=False)
class _Job:
    ask: Ask
    first_s: float = math.nan
    cached_tokens: int = 0
    num_preemptions: int = 0


@dataclass(frozen=True)
class Lanes:
    """How many are simulated: `first` prefill (0: aggregated), `second` decode, as a `share` of all. Prefill lanes run
    at `speed`, where the numbers of groups have no small ratio."""

    first: int
    second: int
    share: float
    speed: float


@dataclass(eq=False)
class _Clock:
    placement: Placement
    source: Source
    front: list[Lane]  # where prompts go
    back: list[Lane]  # where answers are decoded; the same where aggregated
    jobs: dict[str, _Job] = field(default_factory=dict)
    lives: list[Life] = field(default_factory=list)
    # (time, number, request, lane): what is on its way to a lane
    on_way: list[tuple[float, int, Request, Lane]] = field(default_factory=list)
    num_asked: int = 0
    num_sent: int = 0

    def run(self) -> None:
        lanes = list(dict.fromkeys((*self.front, *self.back)))
        while True:
            busy = [lane for lane in lanes if lane.scheduler.has_work()]
            lane = min(busy, key=lambda x: x.now_s, default=None)
            next_s = min(self.source.next_s(), self.on_way[0][0] if self.on_way else math.inf)
            if lane is None and next_s == math.inf:
                return
            if lane is None or next_s <= lane.now_s:
                self._arrive()
                continue
            # A stretch may not outrun what others are about to send.
            ahead = min((x.now_s for x in busy if x is not lane and self._may_send(x, lane)), default=math.inf)
            for request, when_s in lane.step(min(next_s, ahead), self._on_first):
                self._finish(request, lane, when_s)

    def _may_send(self, sender: Lane, lane: Lane) -> bool:
        """Whether what `sender` finishes may come to `lane`."""
        return self.front is not self.back or (isinstance(self.source, Closed) and sender is not lane)

    def _arrive(self) -> None:
        """A new request at the front, or one whose way to its lane is over."""
        if self.on_way and self.on_way[0][0] <= self.source.next_s():
            now, _, request, lane = heapq.heappop(self.on_way)
            lane.add(request, now)
            return
        ask = self.source.take()
        name = str(self.num_asked)
        self.num_asked += 1
        prefills_only = self.front is not self.back
        request = Request(name, list(prompt_of(ask, self.num_asked)), ask.isl, 1 if prefills_only else ask.osl)
        self.jobs[name] = _Job(ask)
        lane = self._least_loaded(self.front)
        until_sent_s = 0.0 if prefills_only else lane.until_sent_s(ask.isl)
        self._send(request, lane, lane.front(ask.arrival_s) + until_sent_s, ask)

    def _send(self, request: Request, lane: Lane, when_s: float, ask: Ask) -> None:
        heapq.heappush(self.on_way, (max(when_s, ask.arrival_s), self.num_sent, request, lane))
        self.num_sent += 1

    def _least_loaded(self, lanes: Sequence[Lane]) -> Lane:
        """Requests on their way count too: a router knows where it has sent them."""
        on_way = [lane for _, _, _, lane in self.on_way]
        return min(lanes, key=lambda lane: lane.load + on_way.count(lane))

    def _on_first(self, request: Request, now_s: float) -> None:
        job = self.jobs[request.request_id]
        if math.isnan(job.first_s):
            job.first_s = now_s
            job.cached_tokens = request.num_cached_tokens

    def _finish(self, request: Request, lane: Lane, now_s: float) -> None:
        job = self.jobs[request.request_id]
        job.num_preemptions += request.num_preemptions
        if self.front is not self.back and lane in self.front:
            # The first token is seen when its cache has arrived, as engines hand it out there.
            tokens, receiver = [*request.tokens], self._least_loaded(self.back)
            job.first_s = now_s + self.placement.transfer_s + receiver.until_sent_s(job.ask.isl)
            moved = Request(request.request_id, tokens, len(tokens), job.ask.osl - 1)
            self._send(moved, receiver, job.first_s, job.ask)
            return
        ask = job.ask
        self.lives.append(
            Life(ask.arrival_s, job.first_s, now_s, ask.isl, ask.osl, job.cached_tokens, job.num_preemptions)
        )
        self.source.finished(now_s)


def choose_lanes(plan: Plan) -> Lanes:
    """Few lanes that stand for all: as many as make a whole number of clients, and the ratio of prefill to decode."""
    decode, prefill = plan.placement.decode, plan.placement.prefill
    total = decode.num_groups
    if prefill is None:
        clients = plan.concurrency / total
        if total <= 2:
            return Lanes(0, total, 1.0, 1.0)
        count = min(range(1, min(total, MOST_LANES) + 1), key=lambda n: (_off_whole(clients * n) > 0.03, n))
        return Lanes(0, count, count / total, 1.0)
    ratio = prefill.num_groups / total
    options = [
        (first, second)
        for second in range(1, min(total, _MOST_UNLIKE) + 1)
        for first in range(1, min(prefill.num_groups, _MOST_UNLIKE) + 1)
    ]
    first, second = min(options, key=lambda n: (abs(math.log(n[0] / n[1] / ratio)) > 0.05, n[0] + n[1]))
    if abs(math.log(first / second / ratio)) > 0.05:
        first, second = min(options, key=lambda n: abs(math.log(n[0] / n[1] / ratio)))
    return Lanes(first, second, second / total, ratio / (first / second))


def _off_whole(number: float) -> float:
    return abs(number - max(1, round(number))) / number


def simulate(
    plan: Plan, slo: Slo, *, requests_per_s: float | None = None, source: Source | None = None,
    num_requests: int | None = None, seed: int = 0, low: float = 1.0, num_groups: int = 1,
) -> Simulated:  # fmt: skip
    """A plan under load: the closed loop that it was made for, or, given a rate, an open one.

    `source` are requests of one's own (a trace): all of them, for all of the deployment. `low` is the shortest length
    as a share of the workload's. Raises ConfigError for a load that cannot be simulated.
    """
    lanes = choose_lanes(plan) if source is None else _all_lanes(plan)
    clients = max(1, round(plan.concurrency * lanes.share))
    if source is None:
        lengths = Lengths(plan.placement.workload, low, num_groups)
        if requests_per_s is not None:
            source = poisson(lengths, requests_per_s * lanes.share, num_requests or NUM_REQUESTS, seed)
        else:
            count = num_requests or max(NUM_REQUESTS // 2, 3 * clients)
            ramp_s = plan.served.ttft_s + plan.placement.workload.osl * plan.served.tpot_s
            source = Closed(lengths, clients, max(count, 3 * clients), seed, ramp_s)
    clock = _Clock(plan.placement, source, *_make_lanes(plan, lanes, source, seed))
    clock.run()
    return _result(plan, slo, clock, lanes, seed, clients)


def _all_lanes(plan: Plan) -> Lanes:
    prefill, decode = plan.placement.prefill, plan.placement.decode
    return Lanes(0 if prefill is None else prefill.num_groups, decode.num_groups, 1.0, 1.0)


def _make_lanes(plan: Plan, lanes: Lanes, source: Source, seed: int) -> tuple[list[Lane], list[Lane]]:
    """(where prompts go, where answers are decoded). Steps take what the model says, moved to what was measured nearby
    as the plan's own times are."""
    placement, workload = plan.placement, plan.placement.workload
    longest = source.longest_tokens
    prefixes = workload.cache_hit > 0 or source.has_prefixes
    modelled = placement.modelled(plan.concurrency)
    decoding, prefilling = modelled.tpot_s / plan.served.tpot_s, modelled.ttft_s / plan.served.ttft_s

    def lane(role: Role, number: int, kind: str, speed: float, grain: int = 1) -> Lane:
        return make_lane(
            role, workload, longest, seed + number, kind=kind, prefixes=prefixes, speed=speed, grain=grain
        )  # fmt: skip

    if placement.prefill is None:
        both = [lane(placement.decode, n, "both", decoding) for n in range(lanes.second)]
        return both, both
    steps = workload.osl / (1 + workload.mtp_acceptance)
    grain = max(1, min(math.ceil(source.num_requests * steps / _MOST_ENTRIES), round(steps * _GRAIN)))
    front = [lane(placement.prefill, n, "prefill", lanes.speed * prefilling) for n in range(lanes.first)]
    back = [lane(placement.decode, 100 + n, "decode", decoding, grain) for n in range(lanes.second)]
    return front, back


def _result(plan: Plan, slo: Slo, clock: _Clock, lanes: Lanes, seed: int, clients: int) -> Simulated:
    lives = sorted(clock.lives, key=lambda life: (life.arrival_s, life.end_s))
    closed = isinstance(clock.source, Closed)
    ramp_s = clock.source.ramp_s if isinstance(clock.source, Closed) else lives[int(WARMUP * len(lives))].arrival_s
    begin, end = ramp_s, lives[-1].arrival_s
    # Those who come last in a closed loop see others leave and nobody follow.
    tail_s = sum(life.e2e_s for life in lives) / len(lives) if closed else 0.0
    counted = tuple(life for life in lives if begin <= life.arrival_s <= end - tail_s) or tuple(lives)
    done = sum(begin < life.end_s <= end for life in lives)
    # Too short to have a steady stretch: all of it, then.
    rate = done / (end - begin) if done > 10 else len(lives) / max(life.end_s for life in lives)
    whole_s = max(lane.now_s for lane in clock.back)
    prompts = sum(life.isl for life in counted)
    return Simulated(
        plan=plan,
        concurrency=plan.concurrency,
        lives=counted,
        ttft=percentiles([life.ttft_s for life in counted]),
        tpot=percentiles([life.tpot_s for life in counted]),
        e2e=percentiles([life.e2e_s for life in counted]),
        requests_per_s=rate / lanes.share,
        within=sum(life.ttft_s <= slo.ttft_s and life.tpot_s <= slo.tpot_s for life in counted) / len(counted),
        mean_waiting=sum(lane.waited for lane in clock.front) / whole_s / len(clock.front),
        max_waiting=max(lane.max_waiting for lane in clock.front),
        busy=sum(lane.busy_s for lane in clock.back) / whole_s / len(clock.back),
        num_requests=len(lives),
        num_preemptions=sum(lane.scheduler.num_preemptions for lane in {*clock.front, *clock.back}),
        hit_share=sum(life.cached_tokens for life in counted) / prompts,
        share=lanes.share,
        seed=seed,
        closed=closed,
        notes=_notes(plan, lanes, clients, closed),
    )


def _notes(plan: Plan, lanes: Lanes, clients: int, closed: bool) -> tuple[str, ...]:
    decode, prefill = plan.placement.decode, plan.placement.prefill
    notes = []
    if lanes.share < 1:
        of = f"{lanes.second} of {decode.num_groups} attention groups"
        if prefill is not None:
            of = f"{lanes.first} of {prefill.num_groups} prefill groups and {of}"
        notes.append(f"simulated were {of}, with their part of the load; the others are alike")
    if abs(lanes.speed - 1) > 0.01:
        notes.append(f"prefill lanes run at {lanes.speed:.2f} times their speed, to keep the ratio of the groups")
    off = clients / (plan.concurrency * lanes.share) - 1
    if closed and abs(off) > 0.05:
        notes.append(f"{clients} clients stand for {plan.concurrency * lanes.share:.2f} ({off:+.0%})")
    return tuple(notes)


def simulate_plans(
    plans: Sequence[Plan], slo: Slo, *, top: int = 3, requests_per_s: float | None = None,
    num_requests: int | None = None, seed: int = 0,
) -> tuple[Simulated, ...]:  # fmt: skip
    """The first `top` plans, each with the same seed; closed loops at a load that keeps the levels (`settle`)."""
    if top < 1:
        raise ConfigError(f"top is {top}; needed is 1 or more plans to simulate")
    if requests_per_s is not None:
        return tuple(
            simulate(plan, slo, requests_per_s=requests_per_s, num_requests=num_requests, seed=seed)
            for plan in plans[:top]
        )
    return tuple(settle(plan, slo, num_requests=num_requests, seed=seed) for plan in plans[:top])


def settle(plan: Plan, slo: Slo, *, num_requests: int | None = None, seed: int = 0) -> Simulated:
    """A closed loop of the plan's load, or of a little less where the simulation does not keep the levels then.

    A plan is filled to its limit by the closed form; where that is a few percent off, the levels would be missed by
    all requests alike, which says nothing.
    """
    found = simulate(plan, slo, num_requests=num_requests, seed=seed)
    for _ in range(_SETTLED):
        if found.within >= 0.9:
            break
        over = max(found.tpot.p90 / slo.tpot_s, min(found.ttft.p90 / slo.ttft_s, 1.15), 1.01)
        load = found.concurrency / over**1.3
        served = plan.placement.serve(load)
        lighter = replace(plan, concurrency=load, served=served)
        found = replace(simulate(lighter, slo, num_requests=num_requests, seed=seed), plan=plan)
    return found


__all__ = ["NUM_REQUESTS", "Lanes", "choose_lanes", "settle", "simulate", "simulate_plans"]
