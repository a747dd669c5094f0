"""Was it the client that was slow? The event loop's lag and this process's share of a core."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

TICK_S = 0.01
# Beyond these the times that were measured are partly the client's own.
MOST_CPU_SHARE = 0.85
MOST_LAG_S = 0.025


@dataclass
class Health:
    """`lags_s` are delays of a timer of 10 ms; `cpu_share` is CPU time over wall time, 1 being one whole core."""

    lags_s: list[float] = field(default_factory=list)
    cpu_share: float = 0.0

    async def watch(self) -> None:
        """Measure until cancelled."""
        wall, cpu = time.monotonic(), time.process_time()
        try:
            while True:
                due = time.monotonic() + TICK_S
                await asyncio.sleep(TICK_S)
                self.lags_s.append(time.monotonic() - due)
        finally:
            self.cpu_share = (time.process_time() - cpu) / max(1e-9, time.monotonic() - wall)

    @property
    def lag_p99_s(self) -> float:
        return sorted(self.lags_s)[int(len(self.lags_s) * 0.99)] if self.lags_s else 0.0

    def complaint(self) -> str | None:
        """What to tell the user, if the client was the bottleneck."""
        if self.cpu_share > MOST_CPU_SHARE:
            return f"the load generator used {self.cpu_share:.0%} of a core"
        if self.lag_p99_s > MOST_LAG_S:
            return f"the load generator's event loop was late by {self.lag_p99_s * 1e3:.0f} ms (P99)"
        return None
