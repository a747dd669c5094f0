"""A chip: figures that know where they come from, and the links that join it to others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tiefsee.errors import ConfigError

Kind = Literal["vendor", "measured", "paper", "estimate"]
Tier = Literal["die", "node", "supernode", "fabric"]
KINDS: tuple[Kind, ...] = ("vendor", "measured", "paper", "estimate")
TIERS: tuple[Tier, ...] = ("die", "node", "supernode", "fabric")
PERS: tuple[Literal["die", "package", "card"], ...] = ("die", "package", "card")
NUMBER_FORMATS = ("fp32", "bf16", "fp8", "int8", "fp4")


@dataclass(frozen=True)
class Figure:
    """One number in base units, between `low` and `high` (equal to it where nobody doubts it).

    vendor     what the maker says           measured   what somebody measured, named in `source`
    paper      what a paper or report says   estimate   a guess: always with a range
    """

    value: float
    unit: str
    kind: Kind
    source: str
    low: float
    high: float
    note: str = ""

    @property
    def is_certain(self) -> bool:
        return self.low == self.high


@dataclass(frozen=True)
class Link:
    """What joins chips of one tier: bytes per second of one chip in one direction, seconds per message.

    `num_chips` is the largest group that it joins; None: any number.
    """

    tier: Tier
    name: str
    bytes_per_s: Figure
    latency_s: Figure
    num_chips: int | None


@dataclass(frozen=True, eq=False)
class Chip:
    """One schedulable accelerator, as `per` says: a die, a package of dies, or a card.

    `flops_per_s` are dense peaks by number format; a format that is not there the chip cannot multiply in.
    `links` go from the nearest to the farthest. Money is in USD, None where no price is public. `launch_s` is the
    time of an operator that does next to nothing, where somebody measured it.
    """

    name: str
    title: str
    vendor: str
    per: Literal["die", "package", "card"]
    dies: int
    aliases: tuple[str, ...]
    flops_per_s: Mapping[str, Figure]
    memory_bytes: Figure
    memory_bytes_per_s: Figure
    links: tuple[Link, ...]
    chips_per_node: int
    available: str
    tdp_w: Figure | None = None
    usd_per_hour: Figure | None = None
    purchase_usd: Figure | None = None
    launch_s: Figure | None = None
    notes: tuple[str, ...] = field(default=())

    def peak(self, number_format: str) -> Figure:
        """Dense FLOP/s in a number format. Raises ConfigError for one that the chip lacks."""
        found = self.flops_per_s.get(number_format)
        if found is None:
            raise ConfigError(f"{self.name} does not multiply in {number_format}; it has {', '.join(self.flops_per_s)}")
        return found

    def has(self, number_format: str) -> bool:
        return number_format in self.flops_per_s

    @property
    def is_announced_only(self) -> bool:
        """Nothing of it was measured or sold: every figure of its memory and its arithmetic is an announcement."""
        return self.available > LATEST_SEEN


# Chips available after this date are known by announcement only.
LATEST_SEEN = "2026-06"
