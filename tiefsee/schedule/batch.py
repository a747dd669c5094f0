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
    """Copy all rows of a block, in every history stream."""

    source: int
    destination: int


@dataclass(frozen=True)
class CopyRing:
    """Copy all rows of a ring, in every state stream."""

    source: int
    destination: int


BeforeStep = SaveSnapshot | RestoreSnapshot | CopyBlock | CopyRing


@dataclass(slots=True)
class Entry:
    """Tokens of one request at positions `start` onwards; the last `num_drafts` are guesses.

    Table and ring are those of the step: a request that finishes in it has lost its own by then.
    `samples`: the entry reaches the last known token, so its logits draw the next one.
    Not to be changed; but freezing it would cost a fifth of the scheduler's step.
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
    """One step: `before` is carried out first, in this order; then `entries`, at once.

    A batch without entries needs no step, and has no orders either.
    """

    entries: list[Entry] = field(default_factory=list)
    before: list[BeforeStep] = field(default_factory=list)
    num_tokens: int = 0

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.num_tokens += len(entry.tokens)

    def drop(self, request: Request) -> None:
        """Take back the part of a request that was preempted."""
        for index, entry in enumerate(self.entries):
            if entry.request is request:
                del self.entries[index]
                self.num_tokens -= len(entry.tokens)
                return
