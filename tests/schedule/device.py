"""A device that remembers what each cached row stands for: the prefix of tokens that it was computed from.

It carries out what the scheduler orders, and complains when an entry would read a row that is not exactly
the one a fresh prefill would have put there. Ring and snapshot sizes follow one state stream of `lookback`
rows; the history stream has one row per token.
"""

from __future__ import annotations

from hashlib import blake2b

from tiefsee.schedule import Accepted, Batch, CopyBlock, CopyRing, Entry, RestoreSnapshot, SaveSnapshot

Prefix = tuple[int, ...]


def next_token(prefix: list[int], alphabet: int) -> int:
    """What the model says after a prefix: any fixed function will do."""
    return blake2b(bytes(t % 256 for t in prefix), digest_size=2).digest()[0] % alphabet


class FakeDevice:
    def __init__(self, block_tokens: int, lookback: int, max_draft: int) -> None:
        self.size, self.lookback = block_tokens, lookback
        self.ring_rows = lookback + max_draft
        self.blocks: dict[tuple[int, int], Prefix] = {}
        self.rings: dict[tuple[int, int], Prefix] = {}
        self.snapshots: dict[int, dict[int, Prefix | None]] = {}
        self.num_restored = 0

    def run(self, batch: Batch) -> None:
        for operation in batch.before:
            self._carry_out(operation)
        written: set[int] = set()
        for entry in batch.entries:
            self._check(entry)
        for entry in batch.entries:
            self._write(entry, written)

    def _carry_out(self, operation: object) -> None:
        match operation:
            case SaveSnapshot(ring, snapshot, num_tokens):
                rows = range(max(0, num_tokens - self.lookback), num_tokens)
                self.snapshots[snapshot] = {p: self.rings.get((ring, p % self.ring_rows)) for p in rows}
            case RestoreSnapshot(snapshot, ring, _):
                self.num_restored += 1
                for p, prefix in self.snapshots[snapshot].items():
                    assert prefix is not None
                    self.rings[ring, p % self.ring_rows] = prefix
            case CopyBlock(source, destination):
                for slot in range(self.size):
                    if (source, slot) in self.blocks:
                        self.blocks[destination, slot] = self.blocks[source, slot]
            case CopyRing(source, destination):
                for row in range(self.ring_rows):
                    if (source, row) in self.rings:
                        self.rings[destination, row] = self.rings[source, row]

    def _check(self, entry: Entry) -> None:
        known = (*entry.request.tokens[: entry.start], *entry.tokens)
        assert len(entry.block_table) * self.size >= len(known), "no room for what is computed"
        for p in range(entry.start):
            row = self.blocks.get((entry.block_table[p // self.size], p % self.size))
            assert row == known[: p + 1], f"history row {p} of {entry.request.request_id} is of another prefix"
        if entry.ring is None:
            return
        for p in range(max(0, entry.start - self.lookback), entry.start):
            row = self.rings.get((entry.ring, p % self.ring_rows))
            assert row == known[: p + 1], f"state row {p} of {entry.request.request_id} is of another prefix"

    def _write(self, entry: Entry, written: set[int]) -> None:
        known = (*entry.request.tokens[: entry.start], *entry.tokens)
        own = {entry.block_table[p // self.size] for p in range(entry.start, len(known))}
        assert not own & written, "two requests write one block"
        written |= own
        for p in range(entry.start, len(known)):
            self.blocks[entry.block_table[p // self.size], p % self.size] = known[: p + 1]
            if entry.ring is not None:
                self.rings[entry.ring, p % self.ring_rows] = known[: p + 1]


def accept(entry: Entry, alphabet: int, limit: int) -> Accepted | None:
    """What an engine would accept: right drafts and one token more, cut at `limit` new tokens in all."""
    if not entry.samples:
        return None
    first = len(entry.tokens) - entry.num_drafts
    known = [*entry.request.tokens[: entry.start], *entry.tokens[:first]]
    drafts, new = entry.tokens[first:], []
    left = limit - (len(entry.request.tokens) - entry.request.num_prompt_tokens)
    for draft in [*drafts, None]:
        new.append(next_token(known + new, alphabet))
        if len(new) == left or new[-1] != draft:
            break
    return Accepted(tuple(new), "length" if len(new) == left else None)
