"""`tiefsee check ...`: is it so? One file per question; each answers by its exit status, too."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_options(steps: Any, later: Callable[..., object]) -> None:
    """The sub-commands of `check`; `later(module, function)` makes a handler that imports when it is called."""
    from tiefsee.cli import check_parity

    parity: argparse.ArgumentParser = steps.add_parser("parity", help="do two devices answer alike?")
    check_parity.add_options(parity)
    parity.set_defaults(handler=later("check_parity"))
