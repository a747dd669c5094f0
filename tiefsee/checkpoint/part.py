"""A rank's own rows and columns of a tensor on disk: views of the mapped file, so that no more is read."""

from __future__ import annotations

from torch import Tensor

from tiefsee.ops.formats import FP4_COLUMNS
from tiefsee.ops.weight import Packing
from tiefsee.spec.tensors import Part


def own_part(raw: Tensor, part: Part, block: tuple[int, int] = (1, 1)) -> Tensor:
    """The part of a tensor of which each element stands for a block of values."""
    for dim, taken in enumerate((part.rows, part.columns)):
        if taken is not None:
            first, last = taken.start // block[dim], -(-taken.stop // block[dim])
            raw = raw.narrow(dim, first, last - first)
    return raw


def own_packed(codes: Tensor, scale: Tensor, packing: Packing, part: Part) -> tuple[Tensor, Tensor]:
    """Codes and scales of the part, whose borders lie between scale blocks (`spec.split`)."""
    if packing.format == "fp4":  # two columns a byte
        return own_part(codes, part, (1, 2)), own_part(scale, part, (1, FP4_COLUMNS))
    return own_part(codes, part), own_part(scale, part, packing.block)
