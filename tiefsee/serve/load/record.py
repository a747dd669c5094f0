"""What was seen of one request. Times are seconds since the start of the run, on one monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["ok", "refused", "failed", "truncated", "unreachable", "timeout", "cancelled"]


@dataclass(slots=True)
class Record:
    """One request from its arrival to its end.

    `arrival_s` is when it should have been sent (open loop), so time lost in the client or behind a retry counts.
    `chunk_s` and `chunk_tokens` are of the chunks that brought tokens; their tokens are None where the server counts
    none in its chunks and they have to be shared out evenly (`even_tokens`).
    """

    number: int
    arrival_s: float
    sent_s: float = 0.0
    end_s: float = 0.0
    outcome: Outcome = "cancelled"
    status: int = 0
    error: str = ""
    num_retries: int = 0
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    num_cached_tokens: int = 0
    wanted_prompt_tokens: int | None = None
    wanted_output_tokens: int | None = None
    finish_reason: str | None = None
    chunk_s: list[float] = field(default_factory=list)
    chunk_tokens: list[int] | None = None

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    @property
    def ttft_s(self) -> float | None:
        return self.chunk_s[0] - self.arrival_s if self.chunk_s else None

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """(end to end - TTFT) / (output tokens - 1), the end being the last token's; None for less than two tokens."""
        tokens = self.num_output_tokens or 0
        return (self.chunk_s[-1] - self.chunk_s[0]) / (tokens - 1) if self.chunk_s and tokens > 1 else None

    def itl_s(self) -> list[float]:
        """Seconds before each token after those of the first chunk; k tokens of one chunk share its gap."""
        tokens = self.chunk_tokens
        if tokens is None:
            even = (self.num_output_tokens or 0) / max(1, len(self.chunk_s))
            tokens = [max(1, round(even))] * len(self.chunk_s)
        gaps: list[float] = []
        for i in range(1, len(self.chunk_s)):
            gaps += [(self.chunk_s[i] - self.chunk_s[i - 1]) / tokens[i]] * tokens[i]
        return gaps

    def as_json(self) -> dict[str, Any]:
        skipped = ("chunk_tokens",)
        made = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in skipped}
        return {**made, "ttft_s": self.ttft_s, "tpot_s": self.tpot_s, "chunk_tokens": self.chunk_tokens}
