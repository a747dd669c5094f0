"""A recorded call, made again by another device's operator on that device's own parameters and cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tiefsee.engine import EngineCore
from tiefsee.engine.cache import CachePlan, PagedView, StreamCache
from tiefsee.parity.calls import ROPE, CachedRows, Call, Parameter, Parameters, as_outputs, cast


class Player:
    """Plays calls on one engine. Rows of a cache are stored as that engine stores them, on scattered blocks."""

    def __init__(self, core: EngineCore) -> None:
        self.core, self.network = core, core.runner.network
        self.device = self.network.device
        self.parameters = Parameters(self.network)

    @torch.inference_mode()
    def play(self, call: Call) -> tuple[Tensor | None, ...]:
        """The outputs, on the CPU. Whatever the operator raises comes through."""
        if call.operator == ROPE:
            layer, positions = call.arguments
            positions = positions.to(self.device)
            rotary = self.network.step(positions, positions, None).rotary  # type: ignore[arg-type]
            return tuple(t.cpu() for t in rotary.at(self.network.spec.all_layers[layer].attention.rope, positions))
        places = [i for i, value in enumerate(call.arguments) if isinstance(value, CachedRows)]
        layer = call.arguments[places[0] + 1] if places else 0
        arguments = [self._here(value, layer) for value in cast(call, self._dtype)]
        result = getattr(self.network.ops, call.operator)(*arguments)
        return tuple(None if o is None else o.cpu() for o in as_outputs(result))

    def kinds(self, call: Call) -> list[tuple[Parameter, Parameter]]:
        """The call's parameters as they were there, and as they are here."""
        return [(p, self.parameters.describe(p.name)) for p in call.arguments if isinstance(p, Parameter)]

    @property
    def _dtype(self) -> torch.dtype:
        return self.network.norm.weight.dtype

    def _here(self, value: Any, layer: int) -> Any:
        if isinstance(value, Parameter):
            return self.parameters[value.name]
        if isinstance(value, Tensor):
            return value.to(self.device)
        if isinstance(value, CachedRows):
            return self._view(value, layer)
        return [self._here(v, layer) for v in value] if isinstance(value, list) else value

    def _view(self, cached: CachedRows, layer: int) -> PagedView:
        """A cache of this engine's layout that holds just these rows."""
        plan = self.core.plan
        (stream,) = (s for s in plan.streams if s.name == cached.stream)
        size, segments = plan.block_tokens, cached.segments
        counts = [-(-s.end // size) for s in segments]
        small = CachePlan(
            (stream,), size, 2 * sum(counts) + 1, len(segments), 0, plan.max_draft, plan.dtype, plan.layout
        )
        cache = StreamCache(small, self.device, self.network.ops)
        # Every second block, from the last on: no two of a table are neighbours.
        free = list(range(2 * sum(counts), 0, -2))
        tables = [[free.pop(0) for _ in range(count)] for count in counts]
        view = PagedView(cache, segments, tables, list(range(len(segments))))
        place = cache.layer_of(stream.name, layer)
        for index, (segment, rows) in enumerate(zip(segments, cached.rows, strict=True)):
            if rows is None:
                continue
            if stream.family == "history":
                store, first = cache.pools[stream.name], segment.origin
                per = store.rows_per_block
                slots = [tables[index][e // per] * per + e % per for e in range(first, first + len(rows))]
            else:
                store, first = cache.rings[stream.name], segment.start - len(rows)
                per = store.rows_per_block
                slots = [index * per + p % per for p in range(first, segment.start)]
            store.write(place, torch.tensor(slots, device=self.device), rows.to(self.device))
        return view
