"""Which layout serves a workload best: within service levels, on one pool of chips or on two.

goal.py         the workload, its service levels, the pools, what is to be made best
layouts.py      every legal layout of a worker
placement.py    workers of one or two kinds, and a plan: what they serve under a load
fill.py         how much load a deployment takes
question.py     what is asked, what is handed back
sides.py        what the layouts of one pool can do alone
find.py         all deployments of one pool, or of a pool that prefills and one that decodes
pairs.py        the disaggregated ones
corrected.py    figures moved to what was measured · predicted.py: figures with ranges
misses.py       why nothing serves
rollout.py      the same for answers of reinforcement learning
"""

from tiefsee.plan.search.find import search
from tiefsee.plan.search.goal import GOALS, Demand, Goal, Pool, Slo, Workload, make_pool
from tiefsee.plan.search.placement import Correct, Placement, Plan, Role
from tiefsee.plan.search.question import Found, Question

__all__ = [
    "GOALS",
    "Correct",
    "Demand",
    "Found",
    "Goal",
    "Placement",
    "Plan",
    "Pool",
    "Question",
    "Role",
    "Slo",
    "Workload",
    "make_pool",
    "search",
]  # fmt: skip
