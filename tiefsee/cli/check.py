"""`tiefsee check ...`: is it so? One file per question; each answers by its exit status, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def add_options(steps: Any, later: Callable[..., object]) -> None:
    """The sub-commands of `check`; `later(module, function)` makes a handler that imports when it is called."""
    from tiefsee.cli import check_parity, check_plan

    plan = steps.add_parser(
        "plan",
        help="how good the planner's predictions are (no torch needed)",
        description="Without files: the figures that the package carries, by cross-validation over families. With "
        "files: theirs, predicted as the package is. The two formats are described in docs/points.md.",
    )
    check_plan.add_options(plan)
    plan.set_defaults(handler=later("check_plan"))
    parity = steps.add_parser("parity", help="do two devices answer alike?")
    check_parity.add_options(parity)
    parity.set_defaults(handler=later("check_parity"))
