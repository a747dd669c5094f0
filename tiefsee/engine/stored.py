"""The rows of one stream on the device: pages of them, for all its layers, in the planes of a layout.

Whoever reads or writes speaks of slots: slot s of a layer lies on page s // rows, row s % rows. A block of the
scheduler is `pages_per_block` pages side by side, so the slot of an entry does not depend on how long pages are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tiefsee.layouts import Layout, Plane
from tiefsee.ops import Operators
from tiefsee.ops.storage import Stored, decode, encode, width
from tiefsee.streams import Stream


class StoredRows:
    """[layers, blocks * pages_per_block, rows, *shape] of one stream, as a layout has it."""

    def __init__(
        self, stream: Stream, layout: Layout, cache_dtype: str, ops: Operators, device: torch.device,
        num_blocks: int, rows_per_block: int, rows_per_page: int,
    ) -> None:  # fmt: skip
        self.stream, self.layout, self.device, self._ops = stream, layout, device, ops
        self.planes: tuple[Plane, ...] = stream.planes(cache_dtype, layout)
        self.num_blocks, self.rows_per_block, self.rows_per_page = num_blocks, rows_per_block, rows_per_page
        self.pages_per_block = rows_per_block // rows_per_page if rows_per_page else 1
        self._read_as = getattr(torch, cache_dtype if stream.dtype == "cache" else stream.dtype)
        self._tensors = [self._allocate(plane, ops, device) for plane in self.planes]
        # Pages that follow each other in memory can be read as one run, without a copy. Views of each layer are
        # made once: a decode step reads and writes every one of them.
        self._is_run = layout.axes[1:] == ("page", "row", "value")
        layers = range(len(stream.layers))
        self._flat = [[t[layer].flatten(0, 1) for t in self._tensors] for layer in layers] if self._is_run else []
        sizes = (num_blocks, self.pages_per_block)
        self._blocks = [[t[layer].unflatten(0, sizes) for t in self._tensors] for layer in layers]
        if self._is_run:
            self._blocks = [[t.flatten(1, 2) for t in tensors] for tensors in self._blocks]

    def _allocate(self, plane: Plane, ops: Operators, device: torch.device) -> Tensor:
        """[layers, pages, rows, width], whatever the order in memory."""
        columns, dtype = width(plane)
        sizes = {
            "layer": len(self.stream.layers), "page": self.num_blocks * self.pages_per_block,
            "row": self.rows_per_page, "value": columns,
        }  # fmt: skip
        axes = self.layout.axes
        tensor = ops.allocate(tuple(sizes[axis] for axis in axes), dtype, device)
        return tensor.permute([axes.index(axis) for axis in ("layer", "page", "row", "value")])

    def pages(self, layer: int) -> Stored:
        """[pages, rows, width] of one layer (counted within the stream), plane by plane: for fused operators."""
        return tuple(t[layer] for t in self._tensors)

    def blocks(self, layer: int) -> Tensor:
        """[blocks, rows of a block, *shape]: where rows lie in one plane as plain numbers, and as one run."""
        assert len(self.planes) == 1
        assert self.planes[0].dtype is not None
        assert self._is_run
        return self._blocks[layer][0].unflatten(-1, self.stream.shape)

    def write(self, layer: int, slots: Tensor, rows: Tensor) -> None:
        """Rows [n, *shape] to slots [n] of one layer."""
        self.write_stored(layer, slots, encode(rows, self.planes))

    def write_stored(self, layer: int, slots: Tensor, stored: Stored) -> None:
        if self._is_run:
            for flat, new in zip(self._flat[layer], stored, strict=True):
                self._ops.write_rows(flat, slots, new)
            return
        for tensor, new in zip(self._tensors, stored, strict=True):
            tensor[layer][slots // self.rows_per_page, slots % self.rows_per_page] = new

    def read(self, layer: int, slots: Tensor) -> Tensor:
        """Rows [n, *shape] of slots [n]."""
        return self._decode(self.read_stored(layer, slots))

    def read_stored(self, layer: int, slots: Tensor) -> Stored:
        if self._is_run:
            return tuple(flat[slots] for flat in self._flat[layer])
        page, row = slots // self.rows_per_page, slots % self.rows_per_page
        return tuple(t[layer][page, row] for t in self._tensors)

    def read_blocks(self, layer: int, table: Sequence[int], index: Tensor | None) -> Tensor:
        """All rows of the blocks of `table`, one after the other; neighbours are not copied if memory has them so.

        `index` is the table on the device; it may be left out where blocks are neighbours.
        """
        are_neighbours = all(b - a == 1 for a, b in pairwise(table))
        which = slice(table[0], table[0] + len(table)) if are_neighbours else index
        return self._decode(tuple(blocks[which].flatten(0, -2) for blocks in self._blocks[layer]))

    def copy_block(self, source: int, destination: int) -> None:
        """All rows of a block, in all layers."""
        for tensor in self._tensors:
            blocks = tensor.unflatten(1, (self.num_blocks, self.pages_per_block))
            blocks[:, destination] = blocks[:, source]

    def copy_rows(self, block: int, rows: Tensor, other: StoredRows, other_block: int, other_rows: Tensor) -> None:
        """Some rows of a block to some of another's block, in all layers, as they are stored. One page a block."""
        for source, target in zip(self._tensors, other._tensors, strict=True):
            target[:, other_block, other_rows] = source[:, block, rows]

    def _decode(self, stored: Stored) -> Tensor:
        return decode(stored, self.planes, self.stream.shape, self._read_as)
