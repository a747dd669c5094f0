"""A fleet: what it would do, what its tokens cost, and at which price one without a price breaks even."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiefsee.plan.documents.describe import price_of_plan
from tiefsee.plan.figures.estimate import Estimate
from tiefsee.plan.figures.money import Price, break_even_price, fleet_usd_per_hour, usd_per_million_tokens
from tiefsee.plan.figures.prediction import Prediction
from tiefsee.plan.report import show
from tiefsee.plan.search.placement import Plan
from tiefsee.plan.search.question import Found


@dataclass(frozen=True, eq=False)
class Fleet:
    """`found` and the `prediction` of its best plan; or `error`, which says why it can't serve."""

    name: str
    found: Found | None = None
    prediction: Prediction | None = None
    error: str = ""

    @property
    def best(self) -> Plan | None:
        return None if self.found is None else self.found.best

    @property
    def tokens_per_s(self) -> Estimate | None:
        """All cards of the best plan together."""
        if self.found is None or self.prediction is None:
            return None
        each = self.prediction.estimate("tokens_per_s_per_chip")
        return each.scaled(self.found.best.num_chips, "tokens_per_s")

    @property
    def usd_per_million_tokens(self) -> Estimate | None:
        """None where it does not serve, or a card of it has no price."""
        rate, price = self.tokens_per_s, None if self.found is None else price_of_plan(self.found.best)
        return None if rate is None or price is None else usd_per_million_tokens(rate, price)

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Chips of its plan that have no price."""
        if self.found is None:
            return ()
        roles = self.found.best.placement.roles
        return tuple(dict.fromkeys(role.pool.name for role in roles if role.pool.usd_per_hour is None))

    def break_even(self, other: Fleet) -> Estimate | None:
        """USD per hour of each of its cards without a price at which its tokens cost as much as the other's."""
        rate, cost = self.tokens_per_s, other.usd_per_million_tokens
        if self.found is None or rate is None or cost is None or not self.unpriced:
            return None
        roles = self.found.best.placement.roles
        known = [(Price.of(r.pool.usd_per_hour), r.num_chips) for r in roles if r.pool.usd_per_hour is not None]
        num_chips = sum(role.num_chips for role in roles if role.pool.usd_per_hour is None)
        found = break_even_price(rate, num_chips, cost, fleet_usd_per_hour(known) if known else None)
        return found.scaled(1.0, "usd_per_chip_hour")


def alternative_of(fleet: Fleet, others: Sequence[Fleet]) -> Fleet | None:
    """What a fleet is held against: the cheapest other one whose tokens have a price."""
    priced = [(f.usd_per_million_tokens, f) for f in others if f is not fleet]
    known = [(cost.value, f) for cost, f in priced if cost is not None]
    return min(known, key=lambda one: one[0])[1] if known else None


def break_even_text(even: Estimate, other: Fleet) -> str:
    """ "breaks even with h800:32 at 1.1 USD per card-hour (0.9 .. 1.3)"."""
    if even.value <= 0:
        return f"even for nothing its tokens cost more than those of {other.name}"
    return f"breaks even with {other.name} at {show(even)}"


__all__ = ["Fleet", "alternative_of", "break_even_text"]
