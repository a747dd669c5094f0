"""The stream cache of one device: pools for history, rings for state, snapshots for resumed prefixes.

    history   blocks * P / ratio rows per layer         one table of blocks for every history stream
    ring      rings * (lookback + k) rows per layer     the row of position p at p % rows
    snapshot  snapshots * rows at a boundary per layer

How rows are stored is the layout's business (`stored.py`). `StreamCache` owns the tensors and carries out what
the scheduler orders; `PagedView` shows one step to the network. Which block, ring or snapshot is whose is the
scheduler's business alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tiefsee.engine.stored import StoredRows
from tiefsee.layouts import ROWS, Layout
from tiefsee.ops import Operators
from tiefsee.ops.storage import Stored
from tiefsee.ops.view import Segment
from tiefsee.schedule.batch import BeforeStep, CopyBlock, CopyRing, RestoreSnapshot, SaveSnapshot
from tiefsee.streams import Stream


@dataclass(frozen=True)
class CachePlan:
    """How much of everything, and in which layout; see `config.plan_memory` for how it is chosen."""

    streams: tuple[Stream, ...]
    block_tokens: int
    num_blocks: int
    num_rings: int
    num_snapshots: int
    max_draft: int
    dtype: str
    layout: Layout = ROWS

    @property
    def num_bytes(self) -> float:
        """Bytes of all pools together."""
        per_block = sum(s.block_bytes(self.block_tokens, self.dtype, self.layout) for s in self.streams)
        per_ring = sum(s.ring_bytes(self.max_draft, self.dtype, self.layout) for s in self.streams)
        per_snapshot = sum(s.snapshot_bytes(self.dtype, self.layout) for s in self.streams)
        return self.num_blocks * per_block + self.num_rings * per_ring + self.num_snapshots * per_snapshot


class StreamCache:
    """All cached rows of one engine."""

    def __init__(self, plan: CachePlan, device: torch.device, ops: Operators) -> None:
        self.plan, self.device, self._ops = plan, device, ops
        self.streams = {s.name: s for s in plan.streams}
        self._row = {(s.name, layer): i for s in plan.streams for i, layer in enumerate(s.layers)}
        self.pools: dict[str, StoredRows] = {}
        self.rings: dict[str, StoredRows] = {}
        self.snapshots: dict[str, StoredRows] = {}
        for stream in plan.streams:
            if stream.family == "history":
                rows = plan.block_tokens // stream.ratio
                self.pools[stream.name] = self._stored(stream, plan.num_blocks, rows, plan.layout.rows_per_page(rows))
            else:
                rows = stream.ring_rows(plan.max_draft)
                self.rings[stream.name] = self._stored(stream, plan.num_rings, rows, rows)
                rows = stream.snapshot_rows
                self.snapshots[stream.name] = self._stored(stream, plan.num_snapshots, rows, rows)

    def _stored(self, stream: Stream, num_blocks: int, rows: int, rows_per_page: int) -> StoredRows:
        return StoredRows(
            stream, self.plan.layout, self.plan.dtype, self._ops, self.device, num_blocks, rows, rows_per_page
        )

    def layer_of(self, stream: str, layer: int) -> int:
        """Where a layer of the model stands among those of the stream."""
        return self._row[stream, layer]

    def pool(self, stream: str, layer: int) -> Tensor:
        """[blocks, P / ratio, *shape] of one layer, where the layout stores plain rows."""
        return self.pools[stream].blocks(self._row[stream, layer])

    def carry_out(self, operation: BeforeStep) -> None:
        """One order of the scheduler: save or restore a snapshot, copy a block or a ring."""
        match operation:
            case SaveSnapshot(ring, snapshot, num_tokens):
                self._move_snapshot(ring, snapshot, num_tokens, save=True)
            case RestoreSnapshot(snapshot, ring, num_tokens):
                self._move_snapshot(ring, snapshot, num_tokens, save=False)
            case CopyBlock(source, destination):
                for pool in self.pools.values():
                    pool.copy_block(source, destination)
            case CopyRing(source, destination):
                for rings in self.rings.values():
                    rings.copy_block(source, destination)

    def _move_snapshot(self, ring: int, snapshot: int, num_tokens: int, *, save: bool) -> None:
        """The rows just before position `num_tokens`, between ring and snapshot."""
        for name, rings in self.rings.items():
            rows = self.streams[name].snapshot_rows
            if rows == 0:
                continue
            saved = self.snapshots[name]
            slots = torch.arange(num_tokens - rows, num_tokens, device=self.device) % rings.rows_per_block
            every = torch.arange(rows, device=self.device)
            if save:
                rings.copy_rows(ring, slots, saved, snapshot, every)
            else:
                saved.copy_rows(snapshot, every, rings, ring, slots)


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

    @property
    def layout(self) -> Layout:
        return self.cache.plan.layout

    def append_tokens(self, stream: str, layer: int, rows_T: Tensor) -> None:
        slots_T = self._index(("slots",), self._token_slots)
        self.cache.pools[stream].write(self.cache.layer_of(stream, layer), slots_T, rows_T)

    def append(self, stream: str, layer: int, segment: int, first_entry: int, rows: Tensor) -> None:
        if len(rows) == 0:
            return
        pool = self.cache.pools[stream]
        per_block = pool.rows_per_block
        entries = range(first_entry, first_entry + len(rows))
        slots = self._index(
            ("entries", per_block, segment),
            lambda: [self.tables[segment][e // per_block] * per_block + e % per_block for e in entries],
        )
        pool.write(self.cache.layer_of(stream, layer), slots, rows)

    def history(self, stream: str, layer: int, segment: int, num_entries: int) -> Tensor:
        pool, row = self.cache.pools[stream], self.cache.layer_of(stream, layer)
        num_blocks = -(-num_entries // pool.rows_per_block)
        table = self.tables[segment][:num_blocks]
        index = None
        if not all(b - a == 1 for a, b in pairwise(table)):
            index = self._index(("blocks", segment, num_blocks), lambda: table)
        rows = pool.read_blocks(row, table, index) if num_blocks else pool.read_blocks(row, [0], None)[:0]
        return rows[self.segments[segment].origin : num_entries]

    def pool(self, stream: str, layer: int) -> Tensor:
        return self.cache.pool(stream, layer)

    def pages(self, stream: str, layer: int) -> Stored:
        return self.cache.pools[stream].pages(self.cache.layer_of(stream, layer))

    def page_table(self, stream: str) -> Tensor:
        pool = self.cache.pools[stream]
        count, size = pool.pages_per_block, self.cache.plan.block_tokens
        width = max(-(-s.end // size) for s in self.segments)

        def rows() -> list[list[int]]:
            tables = [[*t[:width], *[0] * (width - len(t))] for t in map(list, self.tables)]
            return [[block * count + page for block in table for page in range(count)] for table in tables]

        return self._index(("pages", count), rows)

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
        rings = self.cache.rings[stream]
        end, size = self.segments[segment].start, rings.rows_per_block
        first = max(self.segments[segment].origin, end - num_rows)
        if first >= end:
            return None
        ring = self.rings[segment]
        slots = self._index(
            ("recent", segment, size, num_rows), lambda: [ring * size + p % size for p in range(first, end)]
        )
        return rings.read(self.cache.layer_of(stream, layer), slots)

    def remember(self, stream: str, layer: int, rows_T: Tensor) -> None:
        rings = self.cache.rings[stream]
        size = rings.rows_per_block
        tokens = self._index(("kept", size), lambda: self._kept_tokens(size))
        slots = self._index(("ring", size), lambda: self._ring_slots(size))
        rings.write(self.cache.layer_of(stream, layer), slots, rows_T[tokens])

    def _index(self, key: tuple[object, ...], make: Callable[[], object]) -> Tensor:
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
