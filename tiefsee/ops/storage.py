"""Rows of a stream as a device stores them: encode, decode, convert between layouts.

`Stored` is one tensor [n, width] per plane of the layout (`tiefsee.layouts`): numbers of the plane's dtype, or
bytes where several fields are packed. Converting between layouts that hold the same numbers changes no bit; where
numbers become narrower the error is bounded by `error_bound`, and what the narrower ones cannot hold is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from tiefsee.errors import LayoutError
from tiefsee.layouts import Field, Plane
from tiefsee.ops import formats

Stored = tuple[Tensor, ...]

# Largest relative error of rounding a normal number once.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Dtypes that hold every number of another.
HOLDS = {
    "float32": {"float32", "float16", "bfloat16"}, "float16": {"float16"}, "bfloat16": {"bfloat16"},
}  # fmt: skip


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a layout's name; scales of one byte are stored as plain bytes."""
    known = {"float8_e4m3": torch.float8_e4m3fn, "ue8m0": torch.uint8}
    return known.get(name) or getattr(torch, name)


def width(plane: Plane) -> tuple[int, torch.dtype]:
    """Columns of a plane's tensor, and their dtype."""
    return (plane.num_bytes, torch.uint8) if plane.dtype is None else (plane.fields[0].count, torch_dtype(plane.dtype))


def encode(rows: Tensor, planes: Sequence[Plane]) -> Stored:
    """Rows [n, *shape] as the planes hold them; narrower numbers are rounded once."""
    if len(planes) == 1 and planes[0].dtype is not None:
        return (rows.flatten(1).to(torch_dtype(planes[0].dtype)),)
    return _assemble({}, rows.flatten(1), planes)


def decode(stored: Sequence[Tensor], planes: Sequence[Plane], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Rows [n, *shape] in `dtype`; a plain plane of that dtype is handed back as a view."""
    if len(planes) == 1 and planes[0].dtype is not None:
        rows = stored[0].to(dtype)
        return rows if len(shape) == 1 else rows.unflatten(-1, tuple(shape))
    fields = _take_apart(stored, planes)
    return _values(fields, dtype).unflatten(-1, tuple(shape))


def convert(stored: Sequence[Tensor], planes: Sequence[Plane], other: Sequence[Plane]) -> Stored:
    """The same rows in the planes of another layout.

    Numbers that both layouts have are copied bit for bit: codes are not quantised a second time, nan stays the nan
    that it is. Raises LayoutError where a finite value does not fit into the other layout's numbers (float16 ends at
    65,504).
    """
    if list(planes) == list(other):
        return tuple(stored)
    fields = _take_apart(stored, planes)
    for field in (f for p in other for f in p.fields if f not in fields):
        same = _same_numbers(fields, field)
        if same is not None:
            fields[field] = same
    if all(f in fields for p in other for f in p.fields):
        return _assemble(fields, None, other)
    values = _values({f: t for f, t in fields.items() if any(f in p.fields for p in planes)}, torch.float32)
    converted = _assemble(fields, values, other)
    if _overflows(values, converted, other):
        names = ", ".join(sorted({f.dtype for p in other for f in p.fields if not f.is_scale}))
        raise LayoutError(
            f"a row holds {float(values.abs().max()):.4g}, which {names} cannot hold; keep this cache in bfloat16"
        )
    return converted


def is_lossless(planes: Sequence[Plane], other: Sequence[Plane]) -> bool:
    """Whether `convert` loses nothing, so that converting back gives the same bits."""
    before = [f for p in planes for f in p.fields if not f.is_scale]
    after = [f for p in other for f in p.fields if not f.is_scale]
    return all(
        (a.block == 0 and b.block == 0 and a.dtype in HOLDS[b.dtype]) or a == b
        for a in before for b in after if a.first < b.last and b.first < a.last
    )  # fmt: skip


def error_bound(values: Tensor, planes: Sequence[Plane]) -> Tensor:
    """Largest |decode(encode(x)) - x| of each value of float32 rows [n, values], by the numbers of its field.

    A shorter significand: `ROUNDING` of the value, or the smallest normal number. FP8 codes: half the widest step
    between codes (16 of 448) of the block's largest value, which a scale that is a power of two doubles at most.
    """
    bound = torch.zeros_like(values)
    for field in (f for p in planes for f in p.fields if not f.is_scale):
        part = values[:, field.first : field.last]
        if field.block:
            largest = formats.block_maxima(part, (1, field.block)) * (2 * 16 / formats.E4M3_MAX)
            one = formats.expand_blocks(largest, (1, field.block), (part.shape[0], part.shape[1]))
        else:
            one = part.abs() * ROUNDING[field.dtype] + torch.finfo(torch_dtype(field.dtype)).smallest_normal
        bound[:, field.first : field.last] = one
    return bound


def checksum(stored: Sequence[Tensor]) -> str:
    """Of the bytes of all planes, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in stored:
        digest.update(to_bytes(tensor))
    return digest.hexdigest()


def to_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor, row by row, as this machine has them (little endian on all that torch supports)."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _take_apart(stored: Sequence[Tensor], planes: Sequence[Plane]) -> dict[Field, Tensor]:
    """Each field of the planes as a tensor of its own dtype [n, count]."""
    fields: dict[Field, Tensor] = {}
    for plane, tensor in zip(planes, stored, strict=True):
        if plane.dtype is not None:
            fields[plane.fields[0]] = tensor
            continue
        first = 0
        for field in plane.fields:
            part = tensor[..., first : first + field.num_bytes]
            # A copy at offset 0: a view of other numbers needs their alignment.
            fields[field] = part.clone(memory_format=torch.contiguous_format).view(torch_dtype(field.dtype))
            first += field.num_bytes
    return fields


def _same_numbers(fields: dict[Field, Tensor], field: Field) -> Tensor | None:
    """A plain field cut out of others of its dtype; None where some of its values are other numbers there."""
    parts = [
        (f, t) for f, t in fields.items() if not f.is_scale and f.first < field.last and field.first < f.last
    ]  # fmt: skip
    if field.block or field.is_scale or any(f.block or f.dtype != field.dtype for f, _ in parts):
        return None
    cuts = [
        t[..., max(f.first, field.first) - f.first : min(f.last, field.last) - f.first]
        for f, t in sorted(parts, key=lambda part: part[0].first)
    ]
    return torch.cat(cuts, -1)


def _values(fields: dict[Field, Tensor], dtype: torch.dtype) -> Tensor:
    """All values of the rows, in order; codes times their scales, in float32, rounded once."""
    parts = []
    for field in sorted((f for f in fields if not f.is_scale), key=lambda f: f.first):
        part = fields[field]
        if field.block:
            scale = next(_scale(f, t) for f, t in fields.items() if f.is_scale and f.first == field.first)
            part = formats.unpack_fp8(part, scale, (1, field.block), dtype)
        parts.append(part.to(dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _scale(field: Field, stored: Tensor) -> Tensor:
    return formats.decode_ue8m0(stored) if field.dtype == "ue8m0" else stored


def _assemble(fields: dict[Field, Tensor], values: Tensor | None, planes: Sequence[Plane]) -> Stored:
    """The planes, from fields that are there already, the others made from `values`."""
    made = dict(fields)
    for field in (f for p in planes for f in p.fields):
        if field in made:
            continue
        assert values is not None
        part = values[..., field.first : field.last]
        if not field.block:
            made[field] = part.to(torch_dtype(field.dtype))
            continue
        scale_field = next(f for p in planes for f in p.fields if f.first == field.first and f.is_scale)
        codes_field = next(f for p in planes for f in p.fields if f.first == field.first and not f.is_scale)
        ue8m0 = scale_field.dtype == "ue8m0"
        made[codes_field], scale = formats.pack_fp8(part, (1, field.block), ue8m0=ue8m0)
        made[scale_field] = formats.encode_ue8m0(scale) if ue8m0 else scale
    return tuple(_plane(plane, made) for plane in planes)


def _plane(plane: Plane, fields: dict[Field, Tensor]) -> Tensor:
    if plane.dtype is not None:
        return fields[plane.fields[0]]
    parts = [fields[f].contiguous().view(torch.uint8) for f in plane.fields]
    unused = plane.num_bytes - sum(p.shape[-1] for p in parts)
    if unused:
        parts.append(parts[0].new_zeros(*parts[0].shape[:-1], unused))
    return torch.cat(parts, -1)


def _overflows(values: Tensor, converted: Stored, planes: Sequence[Plane]) -> bool:
    """Whether a finite value became infinite."""
    back = _values(_take_apart(converted, planes), torch.float32)
    return bool((values.isfinite() & ~back.isfinite()).any())
