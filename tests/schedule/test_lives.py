"""Whatever arrives, is cancelled, forked, preempted or rolled back: every entry reads its own prefix,
blocks are conserved, and everyone comes to the end with the right answer."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.schedule.driver import STOP, Driver, simulate, small_config
from tiefsee.schedule import RestoreSnapshot

# Few roots and a token that no root holds: prompts agree on a prefix of any length, and no further.
ROOTS = [[(7 * root + i * i) % STOP for i in range(40)] for root in (1, 2)]

CONFIGS = st.builds(
    small_config,
    needs_rings=st.booleans(),
    num_blocks=st.integers(2, 14),
    num_snapshots=st.integers(0, 4),
    max_step_tokens=st.integers(1, 20),
    max_running=st.integers(1, 3),
    max_draft=st.integers(0, 3),
    snapshot_every=st.integers(0, 3),
    enable_prefix_cache=st.sampled_from([True, True, True, False]),
)


class Life(RuleBasedStateMachine):
    """The rules are what an engine may do; `Driver` checks what must hold after each."""

    @initialize(config=CONFIGS)
    def start(self, config):
        self.driver = Driver(config)

    @rule(
        root=st.sampled_from(ROOTS), length=st.integers(1, 36), own=st.integers(0, 2),
        max_tokens=st.integers(1, 20), forks=st.sampled_from([0, 0, 0, 1, 2]), priority=st.integers(0, 2),
        salt=st.sampled_from([None, None, "a"]), logprobs=st.sampled_from([False] * 5 + [True]),
    )  # fmt: skip
    def add(self, root, length, own, max_tokens, forks, priority, salt, logprobs):
        prompt = root[:length] + [7] * own
        self.driver.add(prompt, max_tokens, forks=forks, priority=priority, salt=salt, needs_prompt_logprobs=logprobs)

    @rule(seed=st.integers(0, 1 << 16), num_steps=st.integers(1, 6))
    def step(self, seed, num_steps):
        dice = random.Random(seed)
        for _ in range(num_steps):
            self.driver.step(dice.randint)

    @precondition(lambda self: self.driver.alive)
    @rule(data=st.data(), in_step=st.booleans())
    def cancel(self, data, in_step):
        request_id = data.draw(st.sampled_from(sorted(self.driver.alive)))
        if in_step:
            self.driver.step(lambda low, high: high, cancel=[request_id])
        else:
            self.driver.cancel(request_id)

    def teardown(self):
        if hasattr(self, "driver"):
            self.driver.drain()


Life.TestCase.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLife = Life.TestCase


@pytest.mark.parametrize("needs_rings", [True, False])
def test_random_lives_meet_every_hazard(needs_rings):
    """The checks are in the driver; this makes sure that the hazards they are for did come up."""
    lives = [simulate(small_config(needs_rings=needs_rings), seed) for seed in range(60)]
    assert sum(life.scheduler.num_preemptions for life in lives) > 50
    assert sum(life.scheduler.num_hit_tokens for life in lives) > 500
    assert sum(life.num_forked for life in lives) > 50
    assert sum(life.num_rolled_back for life in lives) > 100
    orders = [order for life in lives for before, _ in life.trace for order in before]
    assert (sum(isinstance(order, RestoreSnapshot) for order in orders) > 50) == needs_rings


@pytest.mark.parametrize("max_step_tokens", [1, 2, 5])
def test_nobody_starves_on_a_tight_budget(max_step_tokens):
    """Fewer tokens per step than running requests, each with drafts: prompts still get on."""
    for seed in range(10):
        simulate(small_config(max_step_tokens=max_step_tokens, num_blocks=9), seed)


def test_the_same_calls_give_the_same_steps():
    for seed in range(10):
        assert simulate(small_config(), seed).trace == simulate(small_config(), seed).trace
