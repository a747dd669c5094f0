"""What is asked: a workload, its service levels, the pools of chips, and what is to be made best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, Figure
from tiefsee.plan.fitted.efficiency import Calibration, Efficiency, calibration
from tiefsee.plan.names.formats import formats_of, usual_precision
from tiefsee.plan.names.stacks import OVERLAPPING_STACKS
from tiefsee.plan.serving.deployment import as_ranks
from tiefsee.plan.serving.loop import Load
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import Formats

# throughput  most tokens per second on the chips that there are
# cost        fewest USD per million output tokens, on as few of the chips as that takes
# chips       fewest chips that serve a request rate or a concurrency
Goal = Literal["throughput", "cost", "chips"]
GOALS: tuple[Goal, ...] = ("throughput", "cost", "chips")


@dataclass(frozen=True)
class Slo:
    """Service levels, of the mean request; a simulation says what the 99th percentile is."""

    tpot_s: float = math.inf
    ttft_s: float = math.inf

    def __post_init__(self) -> None:
        for name in ("tpot_s", "ttft_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; needed is a time above 0")


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests of `isl` prompt and `osl` answer tokens. `cache_hit` of each prompt is found in the prefix cache.

    `mtp_acceptance` is how many of a step's `drafts` are accepted in the mean, as in `predict`. `imbalance` is the
    fullest expert rank's load over the mean's; None leaves it to the model of time.
    """

    spec: ModelSpec
    isl: int
    osl: int
    cache_hit: float = 0.0
    mtp_acceptance: float = 0.0
    drafts: int = 0
    imbalance: float | None = None

    def __post_init__(self) -> None:
        longest = self.spec.max_position_embeddings
        if self.isl < 1 or self.osl < 2:
            raise ConfigError(f"isl {self.isl}, osl {self.osl}: needed is a prompt of 1 token or more, an answer of 2")
        if self.isl + self.osl > longest:
            raise ConfigError(f"isl {self.isl:,} + osl {self.osl:,} tokens exceed the model's context of {longest:,}")
        if not 0 <= self.cache_hit < 1:
            raise ConfigError(f"cache_hit is {self.cache_hit}; needed is a share from 0 to below 1")
        if not 0 <= self.drafts <= 16:
            raise ConfigError(f"drafts is {self.drafts}; needed is 0 to 16")
        if not 0 <= self.mtp_acceptance <= self.drafts:
            raise ConfigError(
                f"mtp_acceptance is {self.mtp_acceptance} of {self.drafts} drafts; needed is how many are accepted"
            )
        if self.drafts and not self.spec.mtp_layers:
            raise ConfigError(f"{self.spec.model_type} has no MTP layer to draft with; leave drafts at 0")
        if self.imbalance is not None and not 1 <= self.imbalance < math.inf:
            raise ConfigError(f"imbalance is {self.imbalance}; the fullest rank has at least the mean's load, 1.0")

    @property
    def chance(self) -> float:
        """That a draft is right, given that those before it were: p + p^2 + .. over the drafts is what is accepted."""
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            kept = sum(middle**n for n in range(1, self.drafts + 1))
            low, high = (middle, high) if kept < self.mtp_acceptance else (low, middle)
        return high if self.drafts else 0.0

    def load(self, concurrency: float) -> Load:
        return Load(concurrency, self.isl, self.osl, self.cache_hit * self.isl, self.mtp_acceptance, self.drafts)


@dataclass(frozen=True, eq=False)
class Pool:
    """Like chips in one place, the number formats that they run the model in, what their software reaches.

    A rank is one entry of a layout, `chip` what it runs on, `count` how many there are: with an Ascend 910C, a package
    of two, ranks are dies. `sold` is the chip as it is sold, `usd_per_hour` its price.
    """

    sold: Chip
    chip: Chip
    count: int
    precision: str
    formats: Formats
    efficiency: Efficiency
    usd_per_hour: Figure | None = None
    overlap: bool = False

    @property
    def ranks_per_chip(self) -> int:
        return 1 if self.chip is self.sold else self.sold.dies

    @property
    def name(self) -> str:
        return self.sold.name

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"a pool of {self.count} x {self.chip.name}; needed is 1 or more")

    def chips_of(self, ranks: int) -> int:
        """Chips, as they are sold, that so many ranks take."""
        return -(-ranks // self.ranks_per_chip)

    def __str__(self) -> str:
        return f"{self.name}:{self.chips_of(self.count)}"


def make_pool(
    chip: Chip, count: int, *, precision: str | None = None, kv_precision: str = "", stack: str | None = None,
    date: str | None = None, usd_per_hour: Figure | None = None, base: Calibration | None = None,
) -> Pool:  # fmt: skip
    """A pool of `count` chips; the ranks of an Ascend 910C are its dies. Two-batch overlap is on if the stack does it.

    Raises ConfigError for a precision, a stack or a date that means nothing.
    """
    ranks, num_ranks = as_ranks(chip, count)
    chosen = precision or usual_precision(ranks)
    efficiency = (base or calibration()).of(ranks.vendor, stack, date)
    return Pool(
        chip, ranks, num_ranks, chosen, formats_of(chosen, kv_precision), efficiency, usd_per_hour or chip.usd_per_hour,
        stack in OVERLAPPING_STACKS,
    )  # fmt: skip


@dataclass(frozen=True)
class Demand:
    """What must be served at least; None where as much as goes is wanted."""

    requests_per_s: float | None = None
    concurrency: float | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_s", "concurrency"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}; needed is a number above 0")

    @property
    def is_open(self) -> bool:
        return self.requests_per_s is None and self.concurrency is None


__all__ = ["GOALS", "Demand", "Goal", "Pool", "Slo", "Workload", "make_pool"]
