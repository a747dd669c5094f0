"""What is in a safetensors file, read from its header alone: no tensor, no torch.

The format (github.com/huggingface/safetensors): 8 bytes with the header's length, little endian; a JSON
object of name -> dtype, shape and the two data offsets, counted from the header's end; then the data.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiefsee.errors import CheckpointError

DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
    "U16": 16, "U32": 32, "U64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
}  # fmt: skip
LARGEST_HEADER = 100_000_000  # as in the reference implementation
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: bytes `start` to `end - 1` of `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


def read_headers(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one file. Raises CheckpointError for a file that is cut short or no safetensors."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise CheckpointError(
                    f"{file} is no whole safetensors file: it has {size} bytes and names a header of {length}; "
                    "download it again"
                )
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"the header of {file} is not JSON ({error}); download the file again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"the header of {file} is a {type(header).__name__}, not an object; download it again")
    entries = {
        name: _entry(file, name, fields, 8 + length) for name, fields in header.items() if name != "__metadata__"
    }
    needed = max((entry.end for entry in entries.values()), default=8 + length)
    if needed > size:
        raise CheckpointError(
            f"{file} is cut short: its tensors need {needed} bytes and it has {size} ({needed - size} missing); "
            "download it again"
        )
    return entries


def read_index(folder: Path) -> dict[str, TensorEntry]:
    """All tensors of a checkpoint folder, sharded or not; empty if it holds no safetensors.

    Raises CheckpointError when the index names a shard or a tensor that is not there.
    """
    index = folder / INDEX_FILE
    if not index.is_file():
        single = folder / SINGLE_FILE
        files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
        return {name: entry for file in files for name, entry in read_headers(file).items()}
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    absent = [name for name in shards if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{index} names {len(absent)} shards that are not there: {', '.join(absent[:5])}; download them"
        )
    found = {shard: read_headers(folder / shard) for shard in shards}
    missing = [name for name, shard in weight_map.items() if name not in found[shard]]
    if missing:
        raise CheckpointError(
            f"{index} places {len(missing)} tensors in shards that lack them, such as {missing[0]}; "
            "the index and the shards are of different downloads"
        )
    return {name: found[shard][name] for name, shard in weight_map.items()}


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read {index}: {error!r}; needed a weight_map; download it again") from error


def _entry(file: Path, name: str, fields: Mapping[str, Any], base: int) -> TensorEntry:
    try:
        dtype, shape = str(fields["dtype"]), tuple(int(n) for n in fields["shape"])
        first, last = (int(n) for n in fields["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} describes {name} badly ({error!r}); download it again") from error
    bits = DTYPE_BITS.get(dtype)
    if bits is None:
        raise CheckpointError(f"{name} in {file} has the unknown dtype {dtype!r}; known are {', '.join(DTYPE_BITS)}")
    count = 1
    for n in shape:
        count *= n
    if first < 0 or min(shape, default=0) < 0 or (last - first) * 8 != count * bits:
        raise CheckpointError(
            f"{name} in {file} is {dtype} {list(shape)} but has {last - first} bytes; the file is damaged"
        )
    return TensorEntry(file, dtype, shape, base + first, base + last)
