"""One step on the device: the scheduler's lists become tensors, the network runs, logits come back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tiefsee.engine.cache import PagedView, StreamCache
from tiefsee.engine.ranks import Followers
from tiefsee.engine.stored import StoredRows
from tiefsee.model import Hidden, Network
from tiefsee.ops.storage import Stored
from tiefsee.ops.view import Segment
from tiefsee.schedule.batch import Batch, BeforeStep, Entry

# Which of a cache's rows.
CacheKind = Literal["pools", "rings", "snapshots"]


@dataclass(frozen=True)
class StepResult:
    """Of one step: logits [n, W] per entry (n = 0 where none are wanted), and the states that MTP reads."""

    logits: tuple[Tensor, ...]
    draft_TXD: Tensor
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Places:
    """Where the tokens of a pass lie: segments, and of each its block table and its ring."""

    segments: tuple[Segment, ...]
    tables: tuple[tuple[int, ...], ...]
    rings: tuple[int, ...]

    @classmethod
    def of(cls, segments: Sequence[Segment], entries: Sequence[Entry]) -> Places:
        return cls(tuple(segments), tuple(tuple(e.block_table) for e in entries), tuple(ring_of(e) for e in entries))

    def view(self, cache: StreamCache) -> PagedView:
        return PagedView(cache, self.segments, self.tables, self.rings)


class Runner:
    """Network and cache of one device. Holds no request.

    With `followers` this is the first of several ranks that share the model: `carry_out`, `forward`, `draft`, `logits`
    and `write` are told to the others first, who do the same with their shares (engine/ranks.py). So whatever changes
    a network's pass or a cache's rows is one of these.
    """

    def __init__(self, network: Network, cache: StreamCache, followers: Followers | None = None) -> None:
        self.network, self.cache, self.followers = network, cache, followers
        self._last: Hidden | None = None

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepResult:
        """Carry out the scheduler's orders, then compute every entry's tokens in one pass."""
        self.carry_out(batch.before)
        segments = pack([(len(e.tokens), e.start) for e in batch.entries])
        tokens = [t for e in batch.entries for t in e.tokens]
        hidden = self.forward(tokens, Places.of(segments, batch.entries))
        counts = [num_logit_rows(e) for e in batch.entries]
        rows = [t for s, n in zip(segments, counts, strict=True) for t in range(s.last - n, s.last)]
        return StepResult(self.logits(rows).split(counts), hidden.draft_TXD, tuple(segments))

    def carry_out(self, orders: Sequence[BeforeStep]) -> None:
        """What the scheduler wants done to the cache before a step."""
        if not orders:
            return
        with self._all_ranks("carry_out", tuple(orders)):
            for order in orders:
                self.cache.carry_out(order)

    def forward(self, tokens: Sequence[int], places: Places) -> Hidden:
        """The decoder on packed tokens."""
        with self._all_ranks("forward", tokens, places):
            self._last = self.network(*self._tensors(tokens, places), places.view(self.cache))
        return self._last

    def draft(self, index: int, tokens: Sequence[int], places: Places, hidden_TXD: Tensor | None = None) -> Hidden:
        """MTP layer `index` on tokens whose predecessors have the hidden states; a follower is sent those."""
        with self._all_ranks("draft", index, tokens, places):
            if hidden_TXD is None:
                assert self._last is not None
                hidden_TXD = self._last.draft_TXD.new_empty(len(tokens), *self._last.draft_TXD.shape[1:])
            hidden_TXD = self.network.group.broadcast(hidden_TXD, 0)
            view = places.view(self.cache)
            self._last = self.network.draft(index, *self._tensors(tokens, places), hidden_TXD, view)
        return self._last

    def logits(self, rows: Sequence[int]) -> Tensor:
        """[len(rows), W] in float32: of rows of the last pass."""
        assert self._last is not None
        with self._all_ranks("logits", rows):
            index = torch.tensor(rows, device=self.cache.device, dtype=torch.int64)
            return self.network.logits(self._last.final_TD[index])

    def write(self, kind: CacheKind, stream: str, layer: int, slots: Sequence[int], stored: Stored) -> None:
        """Rows that came from elsewhere, as this cache stores them, to slots of one layer (counted in its stream)."""
        with self._all_ranks("write", kind, stream, layer, slots, tuple(plane.cpu() for plane in stored)):
            device = self.cache.device
            index = torch.tensor(slots, dtype=torch.int64, device=device)
            store: StoredRows = getattr(self.cache, kind)[stream]
            store.write_stored(layer, index, tuple(plane.to(device) for plane in stored))

    def _all_ranks(self, name: str, *arguments: object) -> AbstractContextManager[None]:
        return nullcontext() if self.followers is None else self.followers.together(name, arguments)

    def _tensors(self, tokens: Sequence[int], places: Places) -> tuple[Tensor, Tensor]:
        """Tokens and their positions, on the device."""
        device = self.cache.device
        positions = [p for s in places.segments for p in range(s.start, s.end)]
        return torch.tensor(tokens, device=device, dtype=torch.int64), torch.tensor(positions, device=device)


def pack(spans: list[tuple[int, int]]) -> list[Segment]:
    """Segments of (number of tokens, start position), one after the other."""
    segments, first = [], 0
    for count, start in spans:
        segments.append(Segment(first, first + count, start))
        first += count
    return segments


def num_logit_rows(entry: Entry) -> int:
    """Positions of an entry whose logits are wanted: its last, those of its drafts, or all of a prompt."""
    if entry.request.needs_prompt_logprobs and entry.start < entry.request.num_prompt_tokens:
        return len(entry.tokens)
    return 1 + entry.num_drafts if entry.samples else 0


def ring_of(entry: Entry) -> int:
    """The entry's ring; models without state streams have none, and no stream asks for it."""
    return -1 if entry.ring is None else entry.ring
