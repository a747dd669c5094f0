"""When requests come.

open loop    at times that do not ask whether the server keeps up (poisson, even, burst, a trace)
closed loop  `concurrency` users, each of whom sends the next request when the last is answered
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Arrivals:
    """`rate_per_s` is of open loops, `concurrency` of closed ones; a trace brings times of its own."""

    kind: Literal["poisson", "even", "burst", "closed", "trace"]
    rate_per_s: float | None = None
    concurrency: int | None = None

    def times_s(self, seed: int) -> Iterator[float]:
        """Arrival times of an open loop, without end; those of a burst are all 0."""
        chance = random.Random(f"arrivals:{seed}")
        now_s = 0.0
        while True:
            if self.kind == "poisson" and self.rate_per_s is not None:
                now_s += chance.expovariate(self.rate_per_s)
            yield now_s
            if self.kind == "even" and self.rate_per_s is not None:
                now_s += 1 / self.rate_per_s

    @property
    def label(self) -> str:
        if self.kind == "closed":
            return f"{self.concurrency} at once"
        return self.kind if self.rate_per_s is None else f"{self.rate_per_s:g}/s {self.kind}"
