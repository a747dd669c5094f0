"""One user call as the scheduler sees it: tokens, what of them is cached where, and its state."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b


class State(Enum):
    """waiting -> running -> finished; preempted is waiting again, with tokens of its own; held is on its way to
    another engine."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    HELD = "held"
    FINISHED = "finished"


@dataclass(eq=False)
class Request:
    """Tokens known so far and where their rows are.

    Rows of the first `num_committed_tokens` tokens stand in the cache: blocks of `block_table`, and
    `ring`. A decoding request has exactly one token more than that. `drafts` are guesses for the tokens
    after the last, set by the engine before `schedule`, which may use fewer of them.

    `priority`: lower goes first; `salt` keeps one client's prefix hits from another's;
    `needs_prompt_logprobs` asks for every prompt position and so for no prefix hit.
    """

    request_id: str
    tokens: list[int]
    num_prompt_tokens: int
    max_tokens: int
    priority: int = 0
    salt: str | None = None
    needs_prompt_logprobs: bool = False
    # The scheduler's own.
    state: State = State.WAITING
    finish_reason: str | None = None
    order: int = -1
    num_committed_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    block_table: list[int] = field(default_factory=list)
    ring: int | None = None
    turn_snapshot: bytes | None = None
    drafts: list[int] = field(default_factory=list)
    _hashes: list[bytes] = field(default_factory=list)

    @property
    def is_decoding(self) -> bool:
        return self.num_committed_tokens == len(self.tokens) - 1

    @property
    def rank(self) -> tuple[int, int]:
        """Who goes first: urgency, then arrival. A preempted request keeps its arrival."""
        return self.priority, self.order

    def block_hash(self, index: int, block_tokens: int) -> bytes:
        """Key of the first `index + 1` blocks of tokens, chained, so that equal keys mean equal prefixes."""
        while len(self._hashes) <= index:
            first = len(self._hashes) * block_tokens
            # The chain's root has a domain of its own: no salt can pose as the key of a prefix.
            parent = self._hashes[-1] if self._hashes else blake2b((self.salt or "").encode(), person=b"salt").digest()
            block = array("q", self.tokens[first : first + block_tokens])
            self._hashes.append(blake2b(block.tobytes(), digest_size=32, key=parent).digest())
        return self._hashes[index]
