"""One live request on its way between two engines: `Moved`, and its form as bytes.

    8 bytes   b"tiefmove"
    4 bytes   version of the form, little endian (FORM)
    8 bytes   length of the header, little endian
    16 bytes  blake2b of the header
    header    JSON: `Header`, all fields by name
    rows      of each stream of the header, in its order: of each plane, in its order, [layers, rows, width],
              last index fastest, numbers little endian, nothing in between

The header says of every stream which rows of which layers follow, in which planes (`tiefsee.layouts`), and their
checksum. docs/parity.md describes it for readers in other languages.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from tiefsee.engine.delta import TokenLogprobs
from tiefsee.engine.sampling import Sampling
from tiefsee.errors import MoveDamaged, MoveMismatch
from tiefsee.layouts import DTYPE_BYTES, Plane
from tiefsee.ops.storage import Stored, checksum, to_bytes, width
from tiefsee.streams import Family

MAGIC = b"tiefmove"
FORM = 2
_PREFIX = struct.Struct("<8sIQ16s")
LARGEST_HEADER_BYTES = 256 << 20


# JSON has no infinity: None stands for it.
MovedLogprobs = tuple[int, float | None, int, tuple[tuple[int, float | None], ...]]


def pack_logprobs(told: TokenLogprobs) -> MovedLogprobs:
    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return told.token_id, finite(told.logprob), told.rank, tuple((token, finite(value)) for token, value in told.top)


def unpack_logprobs(moved: MovedLogprobs) -> TokenLogprobs:
    def number(value: float | None) -> float:
        return -math.inf if value is None else value

    token, logprob, rank, top = moved
    return TokenLogprobs(token, number(logprob), rank, tuple((other, number(value)) for other, value in top))


@dataclass(frozen=True)
class MovedRequest:
    """What the scheduler knows: all tokens, and how many of them have rows."""

    tokens: tuple[int, ...]
    num_prompt_tokens: int
    num_committed_tokens: int
    max_tokens: int
    priority: int
    salt: str | None
    num_cached_tokens: int


@dataclass(frozen=True)
class MovedAnswer:
    """What the sampler knows. The rest (text, stop strings, constraint) follows from the tokens.

    `siblings` are the indexes of answers that wait for the prompt's end; `has_text`: the engine has a tokenizer.
    Log probabilities are [token, log probability, rank, [[token, log probability], ..]]; null is minus infinity.
    """

    index: int
    seed: int
    sampling: Sampling
    eos_ids: tuple[int, ...]
    has_text: bool
    siblings: tuple[int, ...] = ()
    logprobs: tuple[MovedLogprobs, ...] = ()
    prompt_logprobs: tuple[MovedLogprobs | None, ...] = ()


@dataclass(frozen=True)
class MovedDrafts:
    """Where the rows of the MTP layers are complete: from `origin` up to the position before `filled`."""

    origin: int
    filled: int


@dataclass(frozen=True)
class MovedStream:
    """Rows `first` to `first + num_rows - 1` of one stream: entries of a history, positions of a state.

    `num_tokens` is None for the request's own rows; else these are the state behind so many tokens, which lets
    others resume there. `layers` count as in `Stream`.
    """

    name: str
    family: Family
    layers: tuple[int, ...]
    shape: tuple[int, ...]
    ratio: int
    first: int
    num_rows: int
    planes: tuple[Plane, ...]
    checksum: str
    num_tokens: int | None = None

    @property
    def num_bytes(self) -> int:
        return len(self.layers) * self.num_rows * sum(plane.num_bytes for plane in self.planes)


@dataclass(frozen=True)
class Header:
    """Everything but the rows. `model` is the fingerprint of the checkpoint (`files.fingerprint`), `ticket` another
    number for each export: who gets one twice takes it once."""

    model: str
    ticket: str
    request: MovedRequest
    answer: MovedAnswer
    drafts: MovedDrafts | None
    streams: tuple[MovedStream, ...]


@dataclass(frozen=True)
class Moved:
    """A request, complete. `rows` has [layers, rows, width] on the CPU for each plane of each stream."""

    header: Header
    rows: tuple[Stored, ...]

    @property
    def num_bytes(self) -> int:
        """Of the rows: 70,272 for a token of V3 in BF16."""
        return sum(stream.num_bytes for stream in self.header.streams)

    def check(self) -> None:
        """MoveDamaged if any row is not what was sent."""
        for stream, stored in zip(self.header.streams, self.rows, strict=True):
            if checksum(stored) != stream.checksum:
                raise MoveDamaged(
                    f"the rows of stream {stream.name!r} have another checksum than was sent; send the request again"
                )

    def pieces(self) -> Iterator[bytes]:
        """The wire form, piece by piece: what a socket is given."""
        header = msgspec.json.encode(self.header)
        yield _PREFIX.pack(MAGIC, FORM, len(header), _digest(header))
        yield header
        for stored in self.rows:
            yield from map(to_bytes, stored)

    def to_bytes(self) -> bytes:
        return b"".join(self.pieces())

    @classmethod
    def from_bytes(cls, data: bytes | bytearray) -> Moved:
        """Read the wire form. MoveDamaged for what is cut off or altered, MoveMismatch for another version."""
        if len(data) < _PREFIX.size:
            raise MoveDamaged(f"a moved request begins with {_PREFIX.size} bytes, found {len(data)}; send it again")
        magic, form, length, digest = _PREFIX.unpack_from(data)
        if magic != MAGIC:
            raise MoveDamaged(f"these bytes are no moved request: they begin with {magic!r}, needed {MAGIC!r}")
        if form != FORM:
            raise MoveMismatch(
                f"the moved request has form {form}; this tiefsee reads form {FORM}. Use one version on both sides"
            )
        end = _PREFIX.size + length
        if length > LARGEST_HEADER_BYTES or len(data) < end:
            raise MoveDamaged(f"the header is to have {length} bytes, {len(data) - _PREFIX.size} came; send it again")
        raw = bytes(data[_PREFIX.size : end])
        if _digest(raw) != digest:
            raise MoveDamaged("the header has another checksum than was sent; send the request again")
        header = _decode(raw)
        needed = end + sum(stream.num_bytes for stream in header.streams)
        if len(data) != needed:
            raise MoveDamaged(f"the moved request is to have {needed} bytes, {len(data)} came; send it again")
        return cls(header, tuple(_rows(header, memoryview(data)[end:])))


def _decode(raw: bytes) -> Header:
    try:
        header = msgspec.json.decode(raw, type=Header)
    except msgspec.DecodeError as error:  # or its ValidationError: a field is missing, or what Sampling refuses
        raise MoveMismatch(f"the header is of another form than this tiefsee reads: {error}") from error
    for stream in header.streams:
        if not _is_sound(stream):
            raise MoveMismatch(f"the header describes stream {stream.name!r} by rows that no layout has: {stream}")
    return header


def _is_sound(stream: MovedStream) -> bool:
    """The planes hold each value of a row once, in numbers that we know."""
    fields = [f for plane in stream.planes for f in plane.fields]
    values = sorted((f.first, f.last) for f in fields if not f.is_scale)
    ends = [0, *(last for _, last in values)]
    scaled = {(f.first, f.last, f.block) for f in fields if f.is_scale}
    return (
        stream.num_rows >= 0 <= stream.first
        and all(plane.fields for plane in stream.planes)
        and all(f.dtype in DTYPE_BYTES and f.block >= 0 for f in fields)
        and [first for first, _ in values] == ends[:-1]
        and all(first < last for first, last in values)
        and ends[-1] == math.prod(stream.shape)
        and all((f.first, f.last, f.block) in scaled for f in fields if f.block and not f.is_scale)
        and all(f.block > 0 for f in fields if f.is_scale)
    )


def _rows(header: Header, body: memoryview) -> Iterator[Stored]:
    """One tensor per plane, each a copy of its own: what came is not kept alive, and numbers are aligned."""
    start = 0
    for stream in header.streams:
        tensors: list[Tensor] = []
        for plane in stream.planes:
            columns, dtype = width(plane)
            shape = (len(stream.layers), stream.num_rows, columns)
            count = shape[0] * shape[1] * columns
            if count == 0:
                tensors.append(torch.empty(shape, dtype=dtype))
                continue
            piece = bytearray(body[start : start + count * dtype.itemsize])
            tensors.append(torch.frombuffer(piece, dtype=dtype).view(shape))
            start += count * dtype.itemsize
        yield tuple(tensors)


def _digest(header: bytes) -> bytes:
    return hashlib.blake2b(header, digest_size=16).digest()
