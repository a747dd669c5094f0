"""Which layout serves a workload best: within service levels, on one pool of chips or on two.

goal.py         the workload, its service levels, the pools, what is to be made best
layouts.py      every legal layout of a worker
placement.py   workers of one or two kinds, and a plan: what they serve under a load
fill.py         how much load a deployment takes
find.py         all deployments of one pool, or of a pool that prefills and one that decodes
misses.py       why nothing serves
"""

from tiefsee.plan.search.find import Found, Question, search
from tiefsee.plan.search.goal import GOALS, Demand, Goal, Pool, Slo, Workload, make_pool
from tiefsee.plan.search.placement import Correct, Placement, Plan, Role

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
