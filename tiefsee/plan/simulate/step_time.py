"""How long a step takes, from what is in it: the plan's step model as a quick function of a batch.

Steps are looked up in a table that fills as they come up. Contexts are rounded to 2 % and prefill tokens to 1/16 of
their power of two, so that a simulation of thousands of steps works out a few hundred.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tiefsee.plan.fitted.efficiency import Efficiency
from tiefsee.plan.serving.step import decode_s, prefill_chunk_s
from tiefsee.plan.serving.worker import Worker

_CONTEXT_STEP = math.log(1.02)


@dataclass(frozen=True)
class Parts:
    """What one attention group computes in a step: `contexts` are tokens that stand before the new ones, in sum."""

    num_decodes: int = 0
    decode_context: float = 0.0
    prefill_tokens: int = 0
    num_prefills: int = 0
    prefill_context: float = 0.0


@dataclass(eq=False)
class StepTime:
    """Seconds of a worker's step if all its attention groups compute what the given one does: they wait for one
    another, so a worker whose groups are uneven is slower than this."""

    worker: Worker
    efficiency: Efficiency
    drafts: int = 0
    _decode: dict[tuple[int, int], float] = field(default_factory=dict)
    _prefill: dict[tuple[int, int, int], float] = field(default_factory=dict)

    @property
    def others(self) -> float:
        """Prefills of the worker's other groups that a group waits for, for each of its own: they step together, and
        their prompts seldom come at once."""
        return self.worker.dp**self.efficiency.lockstep - 1.0

    def decode_s(self, num_requests: int, context: float) -> float:
        if not num_requests:
            return 0.0
        rounded = _rounded(context / num_requests)
        key = (num_requests, rounded)
        if key not in self._decode:
            batch = float(num_requests * self.worker.dp)
            self._decode[key] = decode_s(self.worker, batch, _context(rounded), self.drafts, self.efficiency)
        return self._decode[key]

    def prefill_s(self, tokens: int, requests: int, context: float) -> float:
        if not tokens:
            return 0.0
        grain = max(1, 1 << max(0, tokens.bit_length() - 5))
        near = round(tokens / grain) * grain
        key = (near, requests, _rounded(context / requests))
        if key not in self._prefill:
            self._prefill[key] = prefill_chunk_s(
                self.worker, float(near), float(requests), _context(key[2]), self.efficiency
            )
        return self._prefill[key] * tokens / near if tokens > 1024 else self._prefill[key]


def _rounded(context: float) -> int:
    return round(math.log(context) / _CONTEXT_STEP) if context >= 1 else -1


def _context(rounded: int) -> float:
    return math.exp(rounded * _CONTEXT_STEP) if rounded >= 0 else 0.0


__all__ = ["Parts", "StepTime"]
