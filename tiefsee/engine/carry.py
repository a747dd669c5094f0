"""The rows of one request: out of the cache of one engine, and into that of another.

A history goes whole; of a state stream only the rows that are looked back at. Layers of MTP go along where both
sides draft. What others need to resume behind the same prefix goes along too, if it was kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tiefsee.engine.moved import Moved, MovedStream
from tiefsee.engine.runner import CacheKind, Runner
from tiefsee.engine.stored import StoredRows
from tiefsee.ops.storage import Stored, checksum, convert
from tiefsee.schedule import Request, handover

if TYPE_CHECKING:
    from tiefsee.engine.core import EngineCore


def gather(core: EngineCore, request: Request) -> tuple[tuple[MovedStream, ...], tuple[Stored, ...]]:
    """The rows of the request in every stream, and the latest state that is kept of its prefix."""
    cache, count = core.runner.cache, request.num_committed_tokens
    found: list[tuple[MovedStream, Stored]] = []
    if count:
        for pool in cache.pools.values():
            found.append(_take(pool, _pool_slots(pool, request, count // pool.stream.ratio), 0))
        for rings in cache.rings.values():
            first = max(0, count - rings.stream.lookback)
            found.append(_take(rings, _ring_slots(rings, request, first, count), first))
        boundary = handover.kept_boundary(core.scheduler, request)
        if boundary is not None:
            num_tokens, slot = boundary
            for saved in (s for s in cache.snapshots.values() if s.rows_per_block):
                stream, stored = _take(saved, _snapshot_slots(saved, slot), num_tokens - saved.rows_per_block)
                found.append((replace(stream, num_tokens=num_tokens), stored))
    return tuple(stream for stream, _ in found), tuple(stored for _, stored in found)


def _take(store: StoredRows, slots: list[int] | range, first: int) -> tuple[MovedStream, Stored]:
    """Rows of the slots in all layers of a stream, [layers, rows, width] for each plane."""
    stream = store.stream
    index = torch.tensor(list(slots), dtype=torch.int64, device=store.device)
    parts = [store.read_stored(layer, index) for layer in range(len(stream.layers))]
    stored = tuple(torch.stack(planes).cpu() for planes in zip(*parts, strict=True))
    described = MovedStream(
        stream.name, stream.family, stream.layers, stream.shape, stream.ratio, first, len(slots), store.planes,
        checksum(stored),
    )  # fmt: skip
    return described, stored


def _pool_slots(pool: StoredRows, request: Request, num_entries: int) -> list[int]:
    size, table = pool.rows_per_block, request.block_table
    return [table[e // size] * size + e % size for e in range(num_entries)]


def _ring_slots(rings: StoredRows, request: Request, first: int, last: int) -> list[int]:
    assert request.ring is not None
    size = rings.rows_per_block
    return [request.ring * size + p % size for p in range(first, last)]


def _snapshot_slots(saved: StoredRows, slot: int) -> range:
    return range(slot * saved.rows_per_block, (slot + 1) * saved.rows_per_block)


def scatter(core: EngineCore, request: Request, moved: Moved) -> None:
    """Write the rows into the blocks and the ring that were taken for them."""
    cache = core.runner.cache
    for sent, stored in zip(moved.header.streams, moved.rows, strict=True):
        if sent.num_tokens is not None:
            continue
        if sent.name in cache.pools:
            slots = _pool_slots(cache.pools[sent.name], request, sent.num_rows)
            _put(core.runner, "pools", sent, stored, slots)
        elif sent.name in cache.rings:
            slots = _ring_slots(cache.rings[sent.name], request, sent.first, sent.first + sent.num_rows)
            _put(core.runner, "rings", sent, stored, slots)


def _put(runner: Runner, kind: CacheKind, sent: MovedStream, stored: Stored, slots: list[int] | range) -> None:
    """Rows [layers, rows, width] into slots, layer by layer; layers that this engine lacks are passed over."""
    store: StoredRows = getattr(runner.cache, kind)[sent.name]
    for row, layer in enumerate(sent.layers):
        if layer not in store.stream.layers or not len(slots):
            continue
        own: list[Tensor] = [plane[row] for plane in stored]
        converted = convert(own, sent.planes, store.planes)
        runner.write(kind, sent.name, store.stream.layers.index(layer), list(slots), converted)


def keep_state(core: EngineCore, request: Request, moved: Moved) -> None:
    """Let others resume behind the prefix whose state came along, if this engine keeps states."""
    kept = {s.name: (s, r) for s, r in zip(moved.header.streams, moved.rows, strict=True) if s.num_tokens is not None}
    wanted = {name: saved for name, saved in core.runner.cache.snapshots.items() if saved.rows_per_block}
    if not wanted or any(n not in kept or kept[n][0].num_rows != s.rows_per_block for n, s in wanted.items()):
        return
    num_tokens = min(sent.num_tokens or 0 for sent, _ in kept.values())
    slot = handover.keep_boundary(core.scheduler, request, num_tokens)
    if slot is None:
        return
    try:
        for name, saved in wanted.items():
            _put(core.runner, "snapshots", *kept[name], _snapshot_slots(saved, slot))
    except BaseException:
        handover.drop_boundary(core.scheduler, request, num_tokens)
        raise
