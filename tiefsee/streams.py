"""What a layer must remember between steps: `Stream`.

A cache is a table of streams. Memory planning, prefix hits, eviction, speculation roll-back and the
hand-off between unlike machines all derive from that one table; nothing else knows model versions.

* A **history** stream keeps one entry per `ratio` tokens, for the whole sequence, in blocks of `P`
  token slots (`P / ratio` entries per block). The block id is the page id in every history stream.
* A **state** stream keeps the last `lookback` rows of one request in a ring of
  `lookback + max_draft` rows; the row of position p lies at p % ring length.

How a device stores a row is another table's business (`layouts`); bytes follow from both.

No torch here: the planner and the scheduler read the same table as the engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tiefsee.errors import ConfigError
from tiefsee.layouts import ROWS, Layout, Plane, Scales

Family = Literal["history", "state"]

MIN_BLOCK_TOKENS = 256
MAX_BLOCK_TOKENS = 4096


@dataclass(frozen=True)
class Stream:
    """One kind of cached row.

    `layers` are the layer indexes that own it, in order (MTP layers count on from the last decoder
    layer); `shape` is one row of one layer; `dtype` is a name, or "cache" for the engine's choice. The last
    `num_rotated` values of a row are turned by RoPE: layouts store them apart, or unpacked. `scales` is the
    published FP8 form of the others; streams without one are never packed.
    """

    name: str
    layers: tuple[int, ...]
    family: Family
    shape: tuple[int, ...]
    ratio: int = 1
    overlap: bool = False
    lookback: int = 0
    dtype: str = "cache"
    num_rotated: int = 0
    scales: Scales | None = None

    def __post_init__(self) -> None:
        if self.family == "state" and self.lookback < 1:
            raise ConfigError(f"state stream {self.name!r} needs a look-back of at least 1 row")

    @property
    def num_values(self) -> int:
        """Values in one row of one layer: 576 for the MLA latent of V3."""
        return math.prod(self.shape)

    def planes(self, cache_dtype: str, layout: Layout = ROWS) -> tuple[Plane, ...]:
        """The tensors that hold the stream in a layout, and what a row of each is made of."""
        name = cache_dtype if self.dtype == "cache" else self.dtype
        return layout.planes(self.num_values, self.num_rotated, name, self.scales)

    def row_bytes(self, cache_dtype: str, layout: Layout = ROWS) -> float:
        """Bytes of one row of one layer: 1,152 for the latent of V3 in BF16, 656 packed."""
        return sum(plane.num_bytes for plane in self.planes(cache_dtype, layout))

    def bytes_per_token(self, cache_dtype: str, layout: Layout = ROWS) -> float:
        """Bytes that one more token adds over all layers, for ever: 0 for a state stream.

        61 * 576 * 2 = 70,272 for V3 in BF16.
        """
        if self.family == "state":
            return 0.0
        return len(self.layers) * self.row_bytes(cache_dtype, layout) / self.ratio

    def block_bytes(self, block_tokens: int, cache_dtype: str, layout: Layout = ROWS) -> float:
        """Bytes of one block over all layers; a state stream has none."""
        return self.bytes_per_token(cache_dtype, layout) * block_tokens

    def ring_rows(self, max_draft: int) -> int:
        """Rows of one ring: rolling back k drafts must not lose a row that is still looked at."""
        return self.lookback + max_draft

    def ring_bytes(self, max_draft: int, cache_dtype: str, layout: Layout = ROWS) -> float:
        """Bytes of one request's ring over all layers; a history stream has none."""
        if self.family == "history":
            return 0.0
        return len(self.layers) * self.ring_rows(max_draft) * self.row_bytes(cache_dtype, layout)

    @property
    def snapshot_rows(self) -> int:
        """Rows that a prefix needs to be resumed at a block boundary.

        A boundary is a multiple of every ratio, so no compressor window is open there: only the rows of
        the window before it are looked at again, and only with overlap. Ratio 4 with overlap: 8 - 4 = 4;
        ratio 128: 0; a sliding window: all of it.
        """
        if self.family == "history":
            return 0
        return self.lookback - self.ratio if self.ratio > 1 else self.lookback

    def snapshot_bytes(self, cache_dtype: str, layout: Layout = ROWS) -> float:
        """Bytes of one snapshot over all layers. V4-Flash in BF16: 6.7 MB over all state streams."""
        return len(self.layers) * self.snapshot_rows * self.row_bytes(cache_dtype, layout)


def block_tokens(streams: Sequence[Stream]) -> int:
    """P, the token slots of a block: the smallest multiple of every ratio that is >= 256."""
    ratios = math.lcm(*(s.ratio for s in streams)) if streams else 1
    size = -(-MIN_BLOCK_TOKENS // ratios) * ratios
    if size > MAX_BLOCK_TOKENS:
        raise ConfigError(
            f"the cache ratios {sorted({s.ratio for s in streams})} have no common block of at most "
            f"{MAX_BLOCK_TOKENS} tokens (found {size}); compression ratios must divide one another"
        )
    return size
