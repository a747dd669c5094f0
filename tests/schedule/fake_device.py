"""A device without a network: it remembers which prefix every cached row was computed from.

`FakeDevice` carries out batches as an engine would. A row holds a fingerprint of all tokens up to its
position, so a wrong row (another request's, a stale one, a rejected draft's, one never written) cannot look
right: `run` raises `WrongRow` as soon as an entry would read it. It knows nothing of how the scheduler
decides; it shares only the batch's format and the formulas of `Stream`.

    history   (block, slot)       of every position before the entry's tokens
    ring      (ring, p % rows)    of the last `lookback` positions, and what an open window needs
    snapshot  the last `snapshot_rows` rows before a block boundary

Fingerprints begin with the request's salt, so a hit across salts is a wrong row too. What the tokens of a
request should be is not checked here but in `tests/schedule/driver.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tiefsee.schedule import Batch, BeforeStep, CopyBlock, CopyRing, Entry, Request, RestoreSnapshot, SaveSnapshot
from tiefsee.streams import Stream


class WrongRow(AssertionError):
    """An entry would read a row that was not computed from its own prefix."""


@lru_cache(maxsize=1 << 16)
def extend(prefix: int, token: int) -> int:
    """Fingerprint of a prefix with one token more."""
    return hash((prefix, token))


def fingerprints(tokens: Sequence[int], salt: str | None = None) -> list[int]:
    """Fingerprint of the prefix that ends at each position."""
    found, prefix = [], sum(ord(character) << 8 * i for i, character in enumerate(salt or ""))
    for token in tokens:
        prefix = extend(prefix, token)
        found.append(prefix)
    return found


class FakeDevice:
    """Blocks, rings and snapshots of one engine, with fingerprints for rows."""

    def __init__(self, block_tokens: int, states: Sequence[Stream] = (), max_draft: int = 0) -> None:
        self.block_tokens = block_tokens
        self.states = {stream.name: stream for stream in states}
        self.max_draft = max_draft
        self.history: dict[tuple[int, int], int] = {}
        self.rings: dict[tuple[str, int], dict[int, int]] = {}
        self.snapshots: dict[tuple[str, int], list[int | None]] = {}

    def run(self, batch: Batch) -> None:
        """Carry out a step. Raises WrongRow if any entry reads a row that is not of its own prefix."""
        for operation in batch.before:
            self.carry_out(operation)
        expected = [fingerprints(_sequence(entry), entry.request.salt) for entry in batch.entries]
        for entry, prefixes in zip(batch.entries, expected, strict=True):
            self._check_reads(entry, prefixes)
        self._check_writes(batch)
        for entry, prefixes in zip(batch.entries, expected, strict=True):
            self._write(entry, prefixes)

    def carry_out(self, operation: BeforeStep) -> None:
        """One order: save or restore a snapshot, copy a block or a ring."""
        match operation:
            case SaveSnapshot(ring, snapshot, num_tokens):
                for name, stream in self.states.items():
                    rows = self.rings.get((name, ring), {})
                    self.snapshots[name, snapshot] = [
                        rows.get(p % self._ring_rows(stream))
                        for p in range(max(0, num_tokens - stream.snapshot_rows), num_tokens)
                    ]
            case RestoreSnapshot(snapshot, ring, num_tokens):
                for name, stream in self.states.items():
                    # Rows that the snapshot does not hold are garbage, as after any other request.
                    saved = self.snapshots.get((name, snapshot), [])
                    first = num_tokens - len(saved)
                    rows = self.rings[name, ring] = {}
                    for p, row in enumerate(saved, first):
                        if row is not None:
                            rows[p % self._ring_rows(stream)] = row
            case CopyBlock(source, destination):
                for slot in range(self.block_tokens):
                    row = self.history.get((source, slot))
                    self.history.pop((destination, slot), None)
                    if row is not None:
                        self.history[destination, slot] = row
            case CopyRing(source, destination):
                for name in self.states:
                    self.rings[name, destination] = dict(self.rings.get((name, source), {}))

    def rows_of(self, request: Request) -> tuple[list[int | None], dict[str, dict[int, int | None]]]:
        """What a request takes along: its history, and of each state stream the rows by position."""
        count, size = request.num_committed_tokens, self.block_tokens
        rows = [self.history.get((request.block_table[p // size], p % size)) for p in range(count)]
        states: dict[str, dict[int, int | None]] = {}
        for name, stream in self.states.items():
            ring = self.rings.get((name, -1 if request.ring is None else request.ring), {})
            kept = range(max(0, count - stream.lookback), count)
            states[name] = {p: ring.get(p % self._ring_rows(stream)) for p in kept}
        return rows, states

    def put_rows(self, request: Request, rows: list[int | None], states: dict[str, dict[int, int | None]]) -> None:
        """Write what a request has brought along to its blocks and its ring."""
        for p, row in enumerate(rows):
            if row is not None:
                self.history[request.block_table[p // self.block_tokens], p % self.block_tokens] = row
        for name, kept in states.items():
            if request.ring is not None:
                size = self._ring_rows(self.states[name])
                self.rings[name, request.ring] = {p % size: row for p, row in kept.items() if row is not None}

    def _ring_rows(self, stream: Stream) -> int:
        return stream.ring_rows(self.max_draft)

    def _check_reads(self, entry: Entry, prefixes: list[int]) -> None:
        for p in range(entry.start):
            found = self.history.get((entry.block_table[p // self.block_tokens], p % self.block_tokens))
            if found != prefixes[p]:
                raise WrongRow(f"{entry.request.request_id}: history row of position {p} is not of its prefix: {entry}")
        for name, stream in self.states.items():
            assert entry.ring is not None
            rows = self.rings.get((name, entry.ring), {})
            for p in range(max(0, first_state_row(stream, entry.start)), entry.start):
                if rows.get(p % self._ring_rows(stream)) != prefixes[p]:
                    raise WrongRow(f"{entry.request.request_id}: {name} row of position {p} is not its own: {entry}")

    def _check_writes(self, batch: Batch) -> None:
        """Nobody writes where another entry of the step reads or writes."""
        written: dict[int, str] = {}
        for entry in batch.entries:
            first = entry.start // self.block_tokens
            last = (entry.start + len(entry.tokens) - 1) // self.block_tokens
            for block in entry.block_table[first : last + 1]:
                if block in written:
                    raise WrongRow(f"{written[block]} and {entry.request.request_id} both write block {block}")
                written[block] = entry.request.request_id
        for entry in batch.entries:
            for block in entry.block_table[: entry.start // self.block_tokens]:
                if block in written:
                    raise WrongRow(f"{written[block]} writes block {block}, which {entry.request.request_id} reads")

    def _write(self, entry: Entry, prefixes: list[int]) -> None:
        end = entry.start + len(entry.tokens)
        for p in range(entry.start, end):
            self.history[entry.block_table[p // self.block_tokens], p % self.block_tokens] = prefixes[p]
        for name, stream in self.states.items():
            assert entry.ring is not None
            rows = self.rings.setdefault((name, entry.ring), {})
            size = self._ring_rows(stream)
            for p in range(max(entry.start, end - size), end):
                rows[p % size] = prefixes[p]


def _sequence(entry: Entry) -> list[int]:
    """The tokens that the request stands for, up to the end of this entry."""
    return [*entry.request.tokens[: entry.start], *entry.tokens]


def first_state_row(stream: Stream, start: int) -> int:
    """The earliest position that a step from `start` on looks back at.

    A window: its whole length. A compressor: the open window, and with overlap the one before it.
    """
    if stream.ratio == 1:
        return start - stream.lookback
    return start // stream.ratio * stream.ratio - (stream.lookback - stream.ratio)
