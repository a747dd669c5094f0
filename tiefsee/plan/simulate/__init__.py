"""The engine's scheduler under a virtual clock, with the plan's step times: percentiles, queues, goodput.

traffic.py     who asks when, and for how much
step_time.py   how long a step takes, from what is in it
lane.py        one attention group: the real scheduler, stretches of alike steps taken at once
run.py         the clock, and which groups stand for all
result.py      percentiles; where simulation and closed form differ
"""

from tiefsee.plan.simulate.result import DISAGREEMENT, Life, Percentiles, Simulated
from tiefsee.plan.simulate.run import settle, simulate, simulate_plans
from tiefsee.plan.simulate.traffic import Ask, Closed, Lengths, Source, Trace, poisson

__all__ = [
    "DISAGREEMENT", "Ask", "Closed", "Lengths", "Life", "Percentiles", "Simulated", "Source", "Trace", "poisson",
    "settle", "simulate", "simulate_plans",
]  # fmt: skip
