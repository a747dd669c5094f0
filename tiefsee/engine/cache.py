"""The stream cache of one device: pools for history, rings for state, snapshots for resumed prefixes.

    history   [layers, blocks, P / ratio, *shape]       one page per block, the block id is the page id
    ring      [layers, rings, lookback + k, *shape]     the row of position p at p % rows
    snapshot  [layers, snapshots, rows at a boundary, *shape]

`StreamCache` owns the tensors and carries out what the scheduler orders; `PagedView` shows one step to
the network. Which block, ring or snapshot is whose is the scheduler's business alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tiefsee.ops import Operators
from tiefsee.ops.view import Segment
from tiefsee.schedule.batch import BeforeStep, CopyBlock, CopyRing, RestoreSnapshot, SaveSnapshot
from tiefsee.streams import Stream


@dataclass(frozen=True)
class CachePlan:
    """How much of everything; see engine/memory.py for how it is chosen."""

    streams: tuple[Stream, ...]
    block_tokens: int
    num_blocks: int
    num_rings: int
    num_snapshots: int
    max_draft: int
    dtype: str

    @property
    def num_bytes(self) -> float:
        """Bytes of all pools together."""
        per_block = sum(s.block_bytes(self.block_tokens, self.dtype) for s in self.streams)
        per_ring = sum(s.ring_bytes(self.max_draft, self.dtype) for s in self.streams)
        per_snapshot = sum(s.snapshot_bytes(self.dtype) for s in self.streams)
        return self.num_blocks * per_block + self.num_rings * per_ring + self.num_snapshots * per_snapshot


class StreamCache:
    """All cached rows of one engine."""

    def __init__(self, plan: CachePlan, device: torch.device, ops: Operators) -> None:
        self.plan, self.device, self._ops = plan, device, ops
        self.streams = {s.name: s for s in plan.streams}
        self._row = {(s.name, layer): i for s in plan.streams for i, layer in enumerate(s.layers)}
        self._pools: dict[str, Tensor] = {}
        self._rings: dict[str, Tensor] = {}
        self._snapshots: dict[str, Tensor] = {}
        for stream in plan.streams:
            if stream.family == "history":
                self._pools[stream.name] = self._empty(stream, plan.num_blocks, plan.block_tokens // stream.ratio)
            else:
                self._rings[stream.name] = self._empty(stream, plan.num_rings, stream.ring_rows(plan.max_draft))
                self._snapshots[stream.name] = self._empty(stream, plan.num_snapshots, stream.snapshot_rows)

    def _empty(self, stream: Stream, num_pages: int, num_rows: int) -> Tensor:
        dtype = getattr(torch, self.plan.dtype if stream.dtype == "cache" else stream.dtype)
        return self._ops.allocate((len(stream.layers), num_pages, num_rows, *stream.shape), dtype, self.device)

    def pool(self, stream: str, layer: int) -> Tensor:
        """[blocks, P / ratio, *shape] of one layer: what a fused operator reads through a block table."""
        return self._pools[stream][self._row[stream, layer]]

    def ring(self, stream: str, layer: int) -> Tensor:
        """[rings, rows, *shape] of one layer."""
        return self._rings[stream][self._row[stream, layer]]

    def carry_out(self, operation: BeforeStep) -> None:
        """One order of the scheduler: save or restore a snapshot, copy a block or a ring."""
        match operation:
            case SaveSnapshot(ring, snapshot, num_tokens):
                self._move_snapshot(ring, snapshot, num_tokens, save=True)
            case RestoreSnapshot(snapshot, ring, num_tokens):
                self._move_snapshot(ring, snapshot, num_tokens, save=False)
            case CopyBlock(source, destination):
                for pool in self._pools.values():
                    pool[:, destination] = pool[:, source]
            case CopyRing(source, destination):
                for ring_pool in self._rings.values():
                    ring_pool[:, destination] = ring_pool[:, source]

    def _move_snapshot(self, ring: int, snapshot: int, num_tokens: int, *, save: bool) -> None:
        """The rows just before position `num_tokens`, between ring and snapshot."""
        for name, rings in self._rings.items():
            rows = self.streams[name].snapshot_rows
            if rows == 0:
                continue
            slots = torch.arange(num_tokens - rows, num_tokens, device=self.device) % rings.shape[2]
            if save:
                self._snapshots[name][:, snapshot] = rings[:, ring, slots]
            else:
                rings[:, ring, slots] = self._snapshots[name][:, snapshot]


class PagedView:
    """One step of the cache as the network sees it (`ops.view.CacheView`).

    Index tensors are made once per step and shared by all layers.
    """

    def __init__(
        self,
        cache: StreamCache,
        segments: Sequence[Segment],
        tables: Sequence[Sequence[int]],
        rings: Sequence[int],
    ) -> None:
        self.cache, self.segments = cache, tuple(segments)
        self.tables, self.rings = tables, rings
        self._indexes: dict[tuple[object, ...], Tensor] = {}

    def append_tokens(self, stream: str, layer: int, rows_T: Tensor) -> None:
        pool = self.cache.pool(stream, layer)
        slots_T = self._index(("slots",), self._token_slots)
        pool.flatten(0, 1).index_copy_(0, slots_T, rows_T.to(pool.dtype))

    def append(self, stream: str, layer: int, segment: int, first_entry: int, rows: Tensor) -> None:
        if len(rows) == 0:
            return
        pool = self.cache.pool(stream, layer)
        per_page = pool.shape[1]
        entries = range(first_entry, first_entry + len(rows))
        slots = self._index(
            ("entries", per_page, segment),
            lambda: [self.tables[segment][e // per_page] * per_page + e % per_page for e in entries],
        )
        pool.flatten(0, 1).index_copy_(0, slots, rows.to(pool.dtype))

    def history(self, stream: str, layer: int, segment: int, num_entries: int) -> Tensor:
        pool = self.cache.pool(stream, layer)
        num_pages = -(-num_entries // pool.shape[1])
        table = self.tables[segment][:num_pages]
        if not num_pages:
            return pool[0, :0]
        if all(b - a == 1 for a, b in pairwise(table)):
            pages = pool[table[0] : table[0] + num_pages]  # neighbours: a view, nothing is copied
        else:
            pages = pool[self._index(("pages", segment, num_pages), lambda: table)]
        return pages.flatten(0, 1)[self.segments[segment].origin : num_entries]

    def pool(self, stream: str, layer: int) -> Tensor:
        return self.cache.pool(stream, layer)

    def token_pages(self) -> tuple[Tensor, Tensor, Tensor]:
        counts, size = [s.num_tokens for s in self.segments], self.cache.plan.block_tokens
        width = max(-(-s.end // size) for s in self.segments)
        spread = self._index(("spread",), lambda: [i for i, n in enumerate(counts) for _ in range(n)])
        tables = self._index(
            ("tables",), lambda: [[*t[:width], *[0] * (width - len(t))] for t in map(list, self.tables)]
        )
        first = self._index(("first",), lambda: [s.origin for s in self.segments])
        last = self._index(("last",), lambda: [p + 1 for s in self.segments for p in range(s.start, s.end)])
        return tables[spread], first[spread], last

    def recent(self, stream: str, layer: int, segment: int, num_rows: int) -> Tensor | None:
        ring = self.cache.ring(stream, layer)
        end, size = self.segments[segment].start, ring.shape[1]
        first = max(self.segments[segment].origin, end - num_rows)
        if first >= end:
            return None
        slots = self._index(("recent", segment, size, num_rows), lambda: [p % size for p in range(first, end)])
        return ring[self.rings[segment]][slots]

    def remember(self, stream: str, layer: int, rows_T: Tensor) -> None:
        ring = self.cache.ring(stream, layer)
        size = ring.shape[1]
        tokens = self._index(("kept", size), lambda: self._kept_tokens(size))
        slots = self._index(("ring", size), lambda: self._ring_slots(size))
        ring.flatten(0, 1).index_copy_(0, slots, rows_T[tokens].to(ring.dtype))

    def _index(self, key: tuple[object, ...], make) -> Tensor:  # type: ignore[no-untyped-def]
        if key not in self._indexes:
            self._indexes[key] = torch.tensor(make(), dtype=torch.int64, device=self.cache.device)
        return self._indexes[key]

    def _token_slots(self) -> list[int]:
        """Slot of each token in a stream of one entry per token."""
        size = self.cache.plan.block_tokens
        return [
            table[p // size] * size + p % size
            for segment, table in zip(self.segments, self.tables, strict=True)
            for p in range(segment.start, segment.end)
        ]

    def _kept_tokens(self, size: int) -> list[int]:
        """Tokens of the step whose state rows survive it: the last ring's worth of each segment."""
        return [t for s in self.segments for t in range(max(s.first, s.last - size), s.last)]

    def _ring_slots(self, size: int) -> list[int]:
        return [
            ring * size + p % size
            for s, ring in zip(self.segments, self.rings, strict=True)
            for p in range(max(s.start, s.end - size), s.end)
        ]
