"""How a device stores the rows of a stream: `Layout`, a named table.

Devices keep the same numbers differently. A row of V3's latent, 512 values and 64 that RoPE has turned:

    rows      576 in one tensor, pages of a whole block                    1,152 B in BF16    CPU, the reference
    apart     512 and 64 in tensors of their own, pages of 128 rows        1,152 B            Ascend
    packed    512 FP8 codes, 4 float32 scales, 64 in the cache's dtype       656 B            CUDA

A layout is made of a few choices; what they mean for a stream is its `planes`: the tensors that hold it, and
the fields of a row in each. Memory planning asks them for bytes, `ops.storage` reads and writes rows by them,
and they are the description that goes with a request from one device to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tiefsee.errors import ConfigError

Axis = Literal["layer", "page", "row", "value"]

DTYPE_BYTES = {
    "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "float8_e4m3": 1.0, "int8": 1.0, "ue8m0": 1.0,
}  # fmt: skip
CODES = "float8_e4m3"
# Rows of a packed plane begin at multiples of so many bytes: 583 -> 584 for V4, as its kernels have them.
ROW_ALIGNMENT = 4


@dataclass(frozen=True)
class Scales:
    """How the published kernels scale the FP8 codes of a row: one scale for `block` values, stored as `dtype`."""

    block: int
    dtype: Literal["float32", "ue8m0"]


@dataclass(frozen=True)
class Field:
    """Values `first` to `last - 1` of a row, as numbers of `dtype`.

    With `block` these are codes, each times the scale of its block; a field with `is_scale` holds those scales.
    """

    first: int
    last: int
    dtype: str
    block: int = 0
    is_scale: bool = False

    @property
    def count(self) -> int:
        """Numbers that are stored: 512 codes have 4 scales of 128."""
        values = self.last - self.first
        return -(-values // self.block) if self.is_scale else values

    @property
    def num_bytes(self) -> int:
        return int(self.count * DTYPE_BYTES[self.dtype])


@dataclass(frozen=True)
class Plane:
    """One tensor of a stream, and what a row of it holds, in this order."""

    fields: tuple[Field, ...]

    @property
    def dtype(self) -> str | None:
        """The dtype of its numbers; None: several kinds are packed in bytes."""
        return self.fields[0].dtype if len(self.fields) == 1 else None

    @property
    def num_bytes(self) -> int:
        """Bytes of a row: 656 = 512 + 4 * 4 + 64 * 2."""
        used = sum(f.num_bytes for f in self.fields)
        return used if self.dtype is not None else -(-used // ROW_ALIGNMENT) * ROW_ALIGNMENT


@dataclass(frozen=True)
class Layout:
    """The choices of a device.

    `apart`: values that RoPE has turned lie in a plane of their own. `packed`: the others are FP8 codes with
    scales, where the stream has a published form of that. `page_rows`: a page of a history stream has at most
    so many rows, and a block is several pages side by side (None: a block is a page). `axes`: order in memory.
    """

    name: str
    apart: bool = False
    packed: bool = False
    page_rows: int | None = None
    axes: tuple[Axis, ...] = ("layer", "page", "row", "value")

    def __post_init__(self) -> None:
        if sorted(self.axes) != ["layer", "page", "row", "value"]:
            raise ConfigError(f"the axes of layout {self.name!r} are {self.axes}; needed layer, page, row and value")
        if self.page_rows is not None and self.page_rows < 1:
            raise ConfigError(f"layout {self.name!r} has pages of {self.page_rows} rows; needed at least 1")

    def planes(self, num_values: int, num_rotated: int, dtype: str, scales: Scales | None) -> tuple[Plane, ...]:
        """The tensors of a stream whose rows have `num_values` values, the last `num_rotated` turned by RoPE."""
        border = num_values - num_rotated
        if not (self.packed and scales is not None):
            if self.apart and 0 < border < num_values:
                return Plane((Field(0, border, dtype),)), Plane((Field(border, num_values, dtype),))
            return (Plane((Field(0, num_values, dtype),)),)
        codes = Field(0, border, CODES, scales.block)
        factors = Field(0, border, scales.dtype, scales.block, is_scale=True)
        if not num_rotated:
            return (Plane((codes, factors)),)
        rotated = Field(border, num_values, dtype)
        if self.apart:
            return Plane((codes, factors)), Plane((rotated,))
        # Scales of one byte stand last, where they move nothing off its alignment.
        return (Plane((codes, rotated, factors) if scales.dtype == "ue8m0" else (codes, factors, rotated)),)

    def rows_per_page(self, entries_per_block: int) -> int:
        """Rows of a page: the most that divide a block and that the layout allows."""
        most = min(self.page_rows or entries_per_block, entries_per_block)
        return next(rows for rows in range(most, 0, -1) if entries_per_block % rows == 0)


ROWS = Layout("rows")
LAYOUTS = {
    layout.name: layout
    for layout in (
        ROWS,
        Layout("apart", apart=True, page_rows=128),
        Layout("packed", packed=True, page_rows=64),
        Layout("block-first", axes=("page", "layer", "row", "value")),  # one run of memory per block, for offload
    )
}


def find_layout(name: str) -> Layout:
    """A layout by its name; ConfigError with those there are."""
    if name not in LAYOUTS:
        raise ConfigError(f"there is no cache layout {name!r}; needed one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
