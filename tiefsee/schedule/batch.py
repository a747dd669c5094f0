"""What one step needs, as plain lists: entries to compute, and cache operations to carry out before."""

from __future__ import annotations

from dataclasses import dataclass, field

from tiefsee.schedule.request import Request


@dataclass(frozen=True)
class SaveSnapshot:
    """Copy the state behind position `num_tokens` from a ring to a snapshot slot."""

    ring: int
    snapshot: int
    num_tokens: int


@dataclass(frozen=True)
class RestoreSnapshot:
    """Copy it back, into the ring of a request that resumes after `num_tokens` tokens."""

    snapshot: int
    ring: int
    num_tokens: int


@dataclass(frozen=True)
class CopyBlock:
    source: int
    destination: int


@dataclass(frozen=True)
class CopyRing:
    source: int
    destination: int


BeforeStep = SaveSnapshot | RestoreSnapshot | CopyBlock | CopyRing


@dataclass(frozen=True)
class Entry:
    """Tokens of one request at positions `start` onwards; the last `num_drafts` are guesses.

    Table and ring are those of the step: a request that finishes in it has lost its own by then.
    `samples`: the entry reaches the last known token, so its logits draw the next one.
    """

    request: Request
    start: int
    tokens: list[int]
    num_drafts: int
    samples: bool
    block_table: tuple[int, ...]
    ring: int | None


@dataclass(frozen=True)
class Accepted:
    """What an entry's logits drew: one token, or accepted drafts and one more; and why it ends, if so."""

    tokens: tuple[int, ...]
    finish_reason: str | None = None


@dataclass
class Batch:
    """One step. `before` is carried out in order, first."""

    entries: list[Entry] = field(default_factory=list)
    before: list[BeforeStep] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(len(entry.tokens) for entry in self.entries)
