"""Why nothing serves: each layout that fell out says by how much, and the nearest miss is the answer."""

from __future__ import annotations

from dataclasses import dataclass

from tiefsee.errors import ConfigError, OutOfMemory
from tiefsee.plan.search.goal import Slo
from tiefsee.plan.search.placement import Limit, Placement
from tiefsee.plan.serving.loop import Served
from tiefsee.plan.serving.memory import Memory, check_fits
from tiefsee.plan.serving.worker import Worker
from tiefsee.units import format_seconds

_HINTS = {
    "tpot": "Allow more per token, draft tokens (MTP), or take chips with more memory bandwidth",
    "ttft": "Allow more until the first token, or take more chips, or faster ones, for prefill",
    "memory": "Take more chips, or a smaller number format",
    "transfer": "Take chips with a faster link between the pools",
}


@dataclass
class Misses:
    """Collects; `error` makes one exception of them. A missed service level is nearer than a model that doesn't fit:
    there is a layout at least."""

    _memory: tuple[float, OutOfMemory] | None = None
    _level: tuple[float, str] | None = None
    _chips: tuple[int, str] | None = None

    def memory(self, worker: Worker, memory: Memory, isl: float, osl: float) -> None:
        """A worker whose cards don't hold the weights and one request."""
        short = memory.held_bytes(isl + osl) - memory.cache_bytes
        if self._memory is not None and self._memory[0] <= short:
            return
        try:
            check_fits(worker, memory, isl, osl)
        except OutOfMemory as error:
            self._memory = (short, error)

    def level(self, placement: Placement, served: Served, slo: Slo, broken: tuple[Limit, float]) -> None:
        """A deployment that misses a service level even with one request per worker."""
        name, ratio = broken
        if self._level is not None and self._level[0] <= ratio:
            return
        load = f"{placement} with {served.batch:,.0f} request{'s' if served.batch > 1 else ''} at once per worker"
        if name in ("tpot", "ttft"):
            value, wanted = (served.tpot_s, slo.tpot_s) if name == "tpot" else (served.ttft_s, slo.ttft_s)
            text = (
                f"{load} has a {name.upper()} of {format_seconds(value)}, {format_seconds(value - wanted)} over the "
                f"{format_seconds(wanted)} that were asked for"
            )
        else:
            text = f"{load} exceeds its {name} by a factor of {ratio:.2f}"
        self._level = (ratio, f"{text}. {_HINTS[name]}")

    def chips(self, placement: Placement, needed: int, available: int) -> None:
        """A layout that would serve the demand with more chips than there are."""
        if self._chips is None or needed < self._chips[0]:
            self._chips = (needed, f"the nearest layout, {placement}, takes {needed:,} chips of {available:,}")

    def error(self, what: str) -> ConfigError | OutOfMemory:
        """`what` names model and pools: "v3 on h200:8"."""
        if self._chips is not None:
            return ConfigError(f"{what}: the demand is not met; {self._chips[1]}. Lower it, or give more chips")
        if self._level is not None:
            return ConfigError(f"{what}: no layout is within the service levels; the nearest: {self._level[1]}")
        if self._memory is not None:
            return OutOfMemory(f"{what}: nothing fits; the nearest: {self._memory[1]}")
        return ConfigError(f"{what}: there is no legal layout; a worker's size must divide into heads and experts")


__all__ = ["Misses"]
