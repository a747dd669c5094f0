"""GRPO: rollouts, log-probabilities, update; cards for both in turn, or split between them.

    colocated   rollout + tail + log-probabilities + updates + switch (weights and states change places)
    separate    rollouts of the next batch beside the update of this one: the longer, and the new weights' way

The tail: a batch is done when its longest answer is. While the last answers finish, most of the pool idles; partial
rollouts hide a share of it (`tail_hidden`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tiefsee.errors import ConfigError, OutOfMemory
from tiefsee.hardware import Chip
from tiefsee.plan.figures.estimate import Estimate
from tiefsee.plan.training.exchange import far_link, near_link
from tiefsee.plan.training.job import TrainJob
from tiefsee.plan.training.optimizer import STATE_BYTES, WEIGHT_BYTES
from tiefsee.plan.training.plan import Layout, TrainingPlan, plan_training

Rate = float | Callable[[int], float]


@dataclass(frozen=True)
class Rollouts:
    """What one iteration generates. Lengths are means in tokens; `longest` is the longest answer of a batch.

    `tokens_per_s_per_chip` of output at full load: a number, or a function of the number of chips (a serving plan).
    `tpot_s` is the pace of a single answer at the end, when few are left; a number or a function likewise. `forwards`:
    passes for log-probabilities, of the reference and of the policy that generated (verl computes both; 1 without a KL
    term).
    """

    prompts: int
    samples: int
    prompt_tokens: float
    answer_tokens: float
    longest: float
    tokens_per_s_per_chip: Rate
    tpot_s: Rate = 0.03
    tail_hidden: float = 0.0
    updates: int = 1
    forwards: int = 2

    def __post_init__(self) -> None:
        for name in ("prompts", "samples", "updates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; needed is 1 or more")
        if self.forwards < 0:
            raise ConfigError(f"forwards is {self.forwards}; needed is 0 or more")
        if not self.longest >= self.answer_tokens > 0:
            raise ConfigError(
                f"the longest answer has {self.longest:g} tokens, the mean {self.answer_tokens:g}; needed is "
                "longest >= mean > 0"
            )
        if not 0 <= self.tail_hidden <= 1 or self.prompt_tokens < 0:
            raise ConfigError("needed are tail_hidden from 0 to 1 and prompt_tokens of 0 or more")

    @property
    def sequences(self) -> int:
        return self.prompts * self.samples

    @property
    def output_tokens(self) -> float:
        return self.sequences * self.answer_tokens

    def rate(self, chips: int) -> float:
        return _positive(self.tokens_per_s_per_chip, chips, "rollout throughput in tokens/s per chip")

    def pace_s(self, chips: int) -> float:
        return _positive(self.tpot_s, chips, "tpot_s")


def _positive(rate: Rate, chips: int, name: str) -> float:
    value = rate(chips) if callable(rate) else rate
    if value <= 0:
        raise ConfigError(f"{name} is {value:g}; needed is above 0")
    return value


@dataclass(frozen=True, eq=False)
class RLPlan:
    """One way to place the work. `parts` are seconds of an iteration; with separate pools they overlap."""

    placement: str
    rollout_chips: int
    learner_chips: int
    iteration_s: Estimate
    samples_per_hour: Estimate
    tokens_per_s_per_chip: float
    usd_per_iteration: Estimate | None
    parts: dict[str, float]
    bottleneck: str
    learner: TrainingPlan


@dataclass(frozen=True, eq=False)
class RLAnswer:
    best: RLPlan
    colocated: RLPlan | None
    separate: tuple[RLPlan, ...]
    notes: tuple[str, ...]


def plan_rl(
    job: TrainJob, rollouts: Rollouts, *, layout: Layout = "search",
    shares: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75), rollout_spread: float = 1.3,
) -> RLAnswer:  # fmt: skip
    """Both placements on the job's chips; the job's sequence and batch follow from the rollouts. `shares` of the chips
    are tried for the learner. `rollout_spread`: the 80 % range of the throughput that was given, as a factor."""
    job = _with_rollouts(job, rollouts)
    notes: list[str] = []
    together: RLPlan | None = None
    try:
        together = _colocated(job, rollouts, layout, rollout_spread)
    except OutOfMemory as error:
        notes.append(f"colocated: {error}")
    apart = []
    for share in shares:
        learners = round(job.num_chips * share)
        if 0 < learners < job.num_chips:
            try:
                learner = replace(job, num_chips=learners)
                apart.append(_separate(learner, rollouts, job.chip, job.num_chips - learners, None, rollout_spread))
            except (OutOfMemory, ConfigError) as error:
                notes.append(f"{learners:,} chips for the learner: {error}")
    found = [plan for plan in (together, *apart) if plan is not None]
    if not found:
        raise OutOfMemory("; ".join(notes))
    apart.sort(key=lambda plan: plan.iteration_s.value)
    return RLAnswer(min(found, key=lambda plan: plan.iteration_s.value), together, tuple(apart), tuple(notes))


def plan_pools(
    learner: TrainJob, rollouts: Rollouts, generator: Chip, generators: int, *, layout: Layout = "search",
    rollout_spread: float = 1.3,
) -> RLAnswer:  # fmt: skip
    """Rollouts on `generators` chips of their own, of whatever kind; the learner's job is on its own chips."""
    found = _separate(_with_rollouts(learner, rollouts), rollouts, generator, generators, layout, rollout_spread)
    return RLAnswer(found, None, (found,), ())


def _with_rollouts(job: TrainJob, rollouts: Rollouts) -> TrainJob:
    """Sequence and batch follow from the rollouts."""
    tokens = max(1, round(rollouts.prompt_tokens + rollouts.answer_tokens))
    batch = max(1, rollouts.sequences // rollouts.updates)
    return replace(job, sequence=tokens, global_batch=batch, tokens=float(rollouts.sequences * tokens))


def _generation(rollouts: Rollouts, chips: int) -> tuple[float, float]:
    """(all tokens at full load, the tail)."""
    bulk = rollouts.output_tokens / (rollouts.rate(chips) * chips)
    tail = (rollouts.longest - rollouts.answer_tokens) * rollouts.pace_s(chips) * (1.0 - rollouts.tail_hidden)
    return bulk, tail


def _learning(plan: TrainingPlan, rollouts: Rollouts) -> tuple[float, float]:
    """(log-probabilities, updates): forward passes of every sequence through the same layout, and whole steps."""
    step = plan.step
    forward = (step.micro_batches + step.layout.pp - 1) * step.mean.one_forward * rollouts.updates
    return forward * rollouts.forwards, step.seconds * rollouts.updates


def _colocated(job: TrainJob, rollouts: Rollouts, layout: Layout, spread: float) -> RLPlan:
    plan = plan_training(job, layout)
    bulk, tail = _generation(rollouts, job.num_chips)
    reference, update = _learning(plan, rollouts)
    # Weights change layout over the links; states leave the card and come back.
    held = job.total_parameters.dense + job.total_parameters.experts
    each = held / job.num_ranks
    link = near_link(job.rank_chip) or far_link(job.rank_chip)
    assert link is not None
    switch = (
        2 * each * STATE_BYTES[job.optimizer] / plan.efficiency.host_bytes_per_s
        + each * WEIGHT_BYTES / link.bytes_per_s.value
    )
    parts = {"rollout": bulk, "tail": tail, "reference": reference, "update": update, "switch": switch}
    fleet = [(job.chip, job.num_chips)]
    return _answer("colocated", fleet, job.num_chips, sum(parts.values()), parts, plan, rollouts, spread)


def _separate(
    learner: TrainJob, rollouts: Rollouts, generator: Chip, generators: int, layout: Layout, spread: float
) -> RLPlan:
    plan = plan_training(learner, layout)
    bulk, tail = _generation(rollouts, generators)
    reference, update = _learning(plan, rollouts)
    held = learner.total_parameters.dense + learner.total_parameters.experts
    # Each rank of the learner sends its part once; the rollout pool passes it on meanwhile.
    part = held * WEIGHT_BYTES / learner.num_ranks
    sync = max(part / _way_out(learner.rank_chip), held * WEIGHT_BYTES / generators / _way_out(generator))
    parts = {"rollout": bulk, "tail": tail, "reference": reference, "update": update, "new weights": sync}
    seconds = max(bulk + tail, reference + update) + sync
    fleet = [(generator, generators), (learner.chip, learner.num_chips)]
    return _answer("separate", fleet, generators, seconds, parts, plan, rollouts, spread)


def _way_out(chip: Chip) -> float:
    """Bytes/s of a chip's link to other pools."""
    link = far_link(chip) or near_link(chip)
    assert link is not None
    return link.bytes_per_s.value


def _answer(
    placement: str, fleet: Sequence[tuple[Chip, int]], generators: int, seconds: float, parts: dict[str, float],
    plan: TrainingPlan, rollouts: Rollouts, spread: float,
) -> RLPlan:  # fmt: skip
    own = max(spread, plan.step_s.high / plan.step_s.value)
    iteration = Estimate(seconds, seconds / own, seconds * own, "step_s", plan.grade)
    chips = sum(count for _, count in fleet)
    worst = max(parts, key=lambda name: parts[name])
    waits = ""
    if placement == "separate":
        left, right = parts["rollout"] + parts["tail"], parts["reference"] + parts["update"]
        idle = "learner" if left > right else "rollout pool"
        waits = f"; the {idle} waits {abs(left - right) / seconds:.0%} of the time"
    tokens = rollouts.sequences * plan.job.sequence
    return RLPlan(
        placement, generators, plan.job.num_chips, iteration,
        iteration.inverse(3600.0 * rollouts.sequences, "samples_per_hour"), tokens / seconds / chips,
        _money(fleet, iteration), parts, f"{worst}, {parts[worst] / seconds:.0%} of an iteration{waits}", plan,
    )  # fmt: skip


def _money(fleet: Sequence[tuple[Chip, int]], iteration: Estimate) -> Estimate | None:
    """USD of an iteration; None where a chip has no price."""
    prices = [(chip.usd_per_hour, count) for chip, count in fleet]
    if any(price is None for price, _ in prices):
        return None
    hourly = [sum(getattr(p, end) * n for p, n in prices if p is not None) for end in ("value", "low", "high")]
    seconds = (iteration.value, iteration.low, iteration.high)
    usd, low, high = (rate * s / 3600 for rate, s in zip(hourly, seconds, strict=True))
    return Estimate(usd, low, high, "usd", iteration.grade)
