"""What a step added to one answer: the only thing of the engine that travels to other processes. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# "moved": the answer goes on in another engine, and not here.
FinishReason = Literal["stop", "length", "cancelled", "error", "moved"]


@dataclass(frozen=True)
class TokenLogprobs:
    """Log probability of one token under the model (no temperature, no penalty), its rank, and the best few."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Delta:
    """What one step added to one answer. `text` holds whole characters only.

    `special_ranges` are the (start, end) of `text` that the model wrote as single control tokens; `stop` is
    the stop string that ended the answer; `error` says what went wrong where the finish reason is "error"
    (other answers go on). `prompt_logprobs`, one per prompt token and None for the first, come once, with
    the first delta of the first answer, where they were asked for.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    special_ranges: tuple[tuple[int, int], ...] = ()
    stop: str | None = None
    error: str | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
