"""What was measured, what might be behind it, and what a prediction says of the two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Quantity = Literal["ttft_s", "tpot_s"]


@dataclass(frozen=True)
class Row:
    """One load that was measured, or could be. `accepted` drafts per step and `cached` prompt tokens where known."""

    isl: float
    osl: float
    concurrency: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    accepted: float | None = None
    cached: float = 0.0


@dataclass(frozen=True)
class Hypothesis:
    """A deployment that might be it. `accepted` are drafts per step, 0 without MTP; `replicas` share the load."""

    chip: str
    precision: str
    tp: int
    dp: int
    ep: int
    drafts: int = 0
    accepted: float = 0.0
    replicas: int = 1

    @property
    def num_chips(self) -> int:
        return self.tp * self.dp

    @property
    def layout(self) -> str:
        """ "8 x h200, fp8, TP8 EP8, MTP, 2 replicas", as far as there is something to say."""
        sizes = " ".join(f"{n}{size}" for n, size in (("TP", self.tp), ("DP", self.dp), ("EP", self.ep)) if size > 1)
        mtp = f"MTP ({self.accepted:g} accepted)" if self.drafts else "no MTP"
        replicas = f"{self.replicas} replicas" if self.replicas > 1 else ""
        return ", ".join(filter(None, (f"{self.num_chips} x {self.chip}", self.precision, sizes, mtp, replicas)))


class Guess(NamedTuple):
    """What a hypothesis says of a row; the spreads are the 80 % ranges as factors."""

    ttft_s: float
    tpot_s: float
    ttft_spread: float
    tpot_spread: float


Predictor = Callable[[Hypothesis, Row], Guess]


class Observation(NamedTuple):
    row: Row
    quantity: Quantity
