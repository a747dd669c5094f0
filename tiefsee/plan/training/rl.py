"""GRPO: rollouts, log-probabilities, update; cards for both in turn, or split between them.

    colocated   rollout + tail + log-probabilities + updates + switch (weights and states change places)
    separate    rollouts of the next batch beside the update of this one: the longer, and the new weights' way

The tail: a batch is done when its longest answer is. While the last answers finish, most of the pool idles; partial
rollouts hide a share of it (`tail_hidden`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tiefsee.errors import ConfigError, OutOfMemory
from tiefsee.plan.estimate import Estimate
from tiefsee.plan.training.exchange import far_link, near_link
from tiefsee.plan.training.job import TrainJob
from tiefsee.plan.training.optimizer import STATE_BYTES, WEIGHT_BYTES
from tiefsee.plan.training.plan import Layout, TrainingPlan, plan_training

Rate = float | Callable[[int], float]


@dataclass(frozen=True)
class Rollouts:
    """What one iteration generates. Lengths are means in tokens; `longest` is the longest answer of a batch.

    `tokens_per_s_per_chip` of output at full load: a number, or a function of the number of chips (a serving plan).
    `tpot_s` is the pace of a single answer at the end, when few are left. `forwards`: passes for log-probabilities, of
    the reference and of the policy that generated (verl computes both; 1 without a KL term).
    """

    prompts: int
    samples: int
    prompt_tokens: float
    answer_tokens: float
    longest: float
    tokens_per_s_per_chip: Rate
    tpot_s: float = 0.03
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
        if not 0 <= self.tail_hidden <= 1 or self.tpot_s <= 0 or self.prompt_tokens < 0:
            raise ConfigError("needed are tail_hidden from 0 to 1, tpot_s above 0 and prompt_tokens of 0 or more")

    @property
    def sequences(self) -> int:
        return self.prompts * self.samples

    @property
    def output_tokens(self) -> float:
        return self.sequences * self.answer_tokens

    def rate(self, chips: int) -> float:
        found = self.tokens_per_s_per_chip
        value = found(chips) if callable(found) else found
        if value <= 0:
            raise ConfigError(f"rollout throughput is {value:g} tokens/s per chip; needed is above 0")
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
    tokens = max(1, round(rollouts.prompt_tokens + rollouts.answer_tokens))
    batch = max(1, rollouts.sequences // rollouts.updates)
    job = replace(job, sequence=tokens, global_batch=batch, tokens=float(rollouts.sequences * tokens))
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
                apart.append(_separate(job, rollouts, learners, rollout_spread))
            except (OutOfMemory, ConfigError) as error:
                notes.append(f"{learners:,} chips for the learner: {error}")
    found = [plan for plan in (together, *apart) if plan is not None]
    if not found:
        raise OutOfMemory("; ".join(notes))
    apart.sort(key=lambda plan: plan.iteration_s.value)
    return RLAnswer(min(found, key=lambda plan: plan.iteration_s.value), together, tuple(apart), tuple(notes))


def _generation(rollouts: Rollouts, chips: int) -> tuple[float, float]:
    """(all tokens at full load, the tail)."""
    bulk = rollouts.output_tokens / (rollouts.rate(chips) * chips)
    tail = (rollouts.longest - rollouts.answer_tokens) * rollouts.tpot_s * (1.0 - rollouts.tail_hidden)
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
    return _answer("colocated", job, job.num_chips, job.num_chips, sum(parts.values()), parts, plan, rollouts, spread)


def _separate(job: TrainJob, rollouts: Rollouts, learners: int, spread: float) -> RLPlan:
    plan = plan_training(replace(job, num_chips=learners))
    generators = job.num_chips - learners
    bulk, tail = _generation(rollouts, generators)
    reference, update = _learning(plan, rollouts)
    held = job.total_parameters.dense + job.total_parameters.experts
    far = far_link(job.rank_chip) or near_link(job.rank_chip)
    assert far is not None
    # Each learner sends its part once; the rollout pool passes it on meanwhile.
    sync = held * WEIGHT_BYTES / (learners * job.ranks_per_chip) / far.bytes_per_s.value
    parts = {"rollout": bulk, "tail": tail, "reference": reference, "update": update, "new weights": sync}
    seconds = max(bulk + tail, reference + update) + sync
    return _answer("separate", job, generators, learners, seconds, parts, plan, rollouts, spread)


def _answer(
    placement: str, job: TrainJob, generators: int, learners: int, seconds: float, parts: dict[str, float],
    plan: TrainingPlan, rollouts: Rollouts, spread: float,
) -> RLPlan:  # fmt: skip
    own = max(spread, plan.step_s.high / plan.step_s.value)
    iteration = Estimate(seconds, seconds / own, seconds * own, "step_s", plan.grade)
    price, usd = job.chip.usd_per_hour, None
    if price is not None:
        hours = seconds / 3600 * job.num_chips
        usd = Estimate(hours * price.value, hours / own * price.low, hours * own * price.high, "usd", plan.grade)
    worst = max(parts, key=lambda name: parts[name])
    waits = ""
    if placement == "separate":
        left, right = parts["rollout"] + parts["tail"], parts["reference"] + parts["update"]
        idle = "learner" if left > right else "rollout pool"
        waits = f"; the {idle} waits {abs(left - right) / seconds:.0%} of the time"
    tokens = rollouts.sequences * job.sequence
    return RLPlan(
        placement, generators, learners, iteration, iteration.inverse(3600.0 * rollouts.sequences, "samples_per_hour"),
        tokens / seconds / job.num_chips, usd, parts, f"{worst}, {parts[worst] / seconds:.0%} of an iteration{waits}",
        plan,
    )  # fmt: skip
