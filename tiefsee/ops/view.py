"""What a layer sees of the cache in one step: `CacheView`, and the view of a network without one.

A step is a row of packed tokens, cut into segments: one segment per request (or per document, in
training). A layer appends its new rows and reads what the segment's tokens may see. Where rows live
(pages, rings, another device's layout) is the view's business; a fused operator may ask the engine's
view for its pools, the reference only for rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

from torch import Tensor

from tiefsee.layouts import Layout


@dataclass(frozen=True)
class Segment:
    """Tokens `first` to `last - 1` of the packed step, at positions `start` onwards of one sequence.

    `origin` is the first position that holds rows: 0 in the decoder; at least 1 in MTP layers, whose entry
    at position p needs the hidden state of p - 1, and later where drafting has paused.
    """

    first: int
    last: int
    start: int
    origin: int = 0

    @property
    def num_tokens(self) -> int:
        return self.last - self.first

    @property
    def end(self) -> int:
        """Position after the last token: rows before it exist once the step is written."""
        return self.start + self.num_tokens


class CacheView(Protocol):
    """The streams of one step. `layer` counts as in `Stream.layers`, `segment` as in `segments`."""

    segments: tuple[Segment, ...]

    def append_tokens(self, stream: str, layer: int, rows_T: Tensor) -> None:
        """Write one history entry per token of the step (ratio 1): rows [T, *shape]."""
        ...

    def append(self, stream: str, layer: int, segment: int, first_entry: int, rows: Tensor) -> None:
        """Write history entries `first_entry` onwards of one segment: rows [n, *shape]."""
        ...

    def history(self, stream: str, layer: int, segment: int, num_entries: int) -> Tensor:
        """Entries `origin` to `num_entries - 1`, new ones included: [num_entries - origin, *shape]."""
        ...

    def recent(self, stream: str, layer: int, segment: int, num_rows: int) -> Tensor | None:
        """State rows of the positions just before the segment: the last `num_rows`, fewer near the origin."""
        ...

    def remember(self, stream: str, layer: int, rows_T: Tensor) -> None:
        """Write the state rows of all tokens of the step; called after the layer has read."""
        ...


@runtime_checkable
class PagedHistory(CacheView, Protocol):
    """A view whose history lies on pages that a fused operator may read by itself."""

    @property
    def layout(self) -> Layout:
        """How rows are stored: an operator that reads pages must know it, and leave others to the definition."""
        ...

    def pool(self, stream: str, layer: int) -> Tensor:
        """All blocks of one layer, [M, P, *shape]; for layouts of plain rows only."""
        ...

    def pages(self, stream: str, layer: int) -> tuple[Tensor, ...]:
        """All pages of one layer, [pages, rows, width] for each plane of the layout."""
        ...

    def page_table(self, stream: str) -> Tensor:
        """Pages of each segment, in order: [segments, pages] int64, 0 where a segment has fewer."""
        ...

    def token_pages(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token of the step: its block table [T, M], and the first and last + 1 of the positions that
        it sees, [T] each; int64."""
        ...


class StatelessView:
    """A view without history, for training and for a single pass: every segment starts its sequence.

    Differentiable: appended rows are kept as they are and handed back.
    """

    def __init__(self, lengths: list[int], origin: int = 0) -> None:
        ends = [0]
        for length in lengths:
            ends.append(ends[-1] + length)
        self.segments = tuple(Segment(a, b, origin, origin) for a, b in pairwise(ends))
        self._entries: dict[tuple[str, int, int], Tensor] = {}

    def append_tokens(self, stream: str, layer: int, rows_T: Tensor) -> None:
        for index, segment in enumerate(self.segments):
            self._entries[stream, layer, index] = rows_T[segment.first : segment.last]

    def append(self, stream: str, layer: int, segment: int, first_entry: int, rows: Tensor) -> None:
        self._entries[stream, layer, segment] = rows

    def history(self, stream: str, layer: int, segment: int, num_entries: int) -> Tensor:
        return self._entries.pop((stream, layer, segment))

    def recent(self, stream: str, layer: int, segment: int, num_rows: int) -> Tensor | None:
        return None

    def remember(self, stream: str, layer: int, rows_T: Tensor) -> None:
        pass
