"""Reads the arguments of an aclnn call out of registers and stack, and writes a call down in one line.

The signature of an operator is the signature of the Python function that emulates it: its annotations say, in the order
of the C prototype, how each argument is passed.

    T  tensor or null        Ts  tensor list        Scalar  aclScalar        Ints, Floats, Bools  arrays
    Int  int64      Int32  int32, enum     Int8  int8_t     Bool  bool      Double, Float      Text  char *

SysV ABI: whole numbers and pointers go through six registers and then the stack, floating point through eight others.
"""

from __future__ import annotations

import ctypes
import inspect
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import fractal

MAGIC = 0x4E4E41436B616600
NUM_INTEGER_REGISTERS, NUM_FLOAT_REGISTERS = 6, 8
FORMAT_ND = (-1, 0, 1, 2, 27, 30, 47)  # undefined, NCHW, NHWC, ND, NDHWC, NCDHW, NCL: plain strided memory

# aclDataType
DTYPES = {
    0: torch.float32, 1: torch.float16, 2: torch.int8, 3: torch.int32, 4: torch.uint8, 6: torch.int16, 7: torch.uint16,
    8: torch.uint32, 9: torch.int64, 10: torch.uint64, 11: torch.float64, 12: torch.bool, 16: torch.complex64,
    17: torch.complex128, 27: torch.bfloat16, 35: torch.float8_e5m2, 36: torch.float8_e4m3fn, 37: torch.float8_e8m0fnu,
    fractal.FP4_E2M1: torch.uint8,
}  # fmt: skip
SCALARS = {0: "f", 2: "b", 3: "i", 4: "B", 6: "h", 1: "e", 7: "H", 8: "I", 9: "q", 10: "Q", 11: "d", 12: "?"}


class Handle(ctypes.Structure):
    """As in opapi.c."""

    _fields_ = (
        ("magic", ctypes.c_uint64), ("kind", ctypes.c_int32), ("dtype", ctypes.c_int32), ("count", ctypes.c_int64),
        ("offset", ctypes.c_int64), ("format", ctypes.c_int64), ("data", ctypes.c_void_p),
        ("dims", ctypes.c_int64 * 16), ("strides", ctypes.c_int64 * 16), ("num_storage_dims", ctypes.c_int64),
        ("storage_dims", ctypes.c_int64 * 16),
    )  # fmt: skip


@dataclass
class Call:
    """One decoded call: the operator's name without "aclnn", and its arguments by name."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        inside = ", ".join(_text(name, value) for name, value in self.arguments.items())
        return f"{self.name}({inside})"


class Signature:
    """How the arguments of one operator are passed."""

    def __init__(self, function: Callable[..., None]) -> None:
        parameters = inspect.signature(function).parameters.values()
        self.kinds = [(p.name, str(p.annotation)) for p in parameters]
        unknown = [k for _, k in self.kinds if k not in _READERS and k not in ("Double", "Float")]
        assert not unknown, f"{function.__name__} is annotated with {unknown}"

    def read(self, integers: Any, floats: Any, stack: Any) -> tuple[dict[str, Any], int]:
        """The arguments, and the address where the executor is to be written (the last argument of all)."""
        words, reals, on_stack = 0, 0, 0

        def next_word() -> int:
            nonlocal words, on_stack
            words += 1
            if words <= NUM_INTEGER_REGISTERS:
                return int(integers[words - 1])
            on_stack += 1
            return int(stack[on_stack - 1])

        def next_real(single: bool) -> float:
            nonlocal reals, on_stack
            reals += 1
            if reals <= NUM_FLOAT_REGISTERS:
                raw = struct.pack("d", floats[reals - 1])
            else:
                on_stack += 1
                raw = struct.pack("Q", stack[on_stack - 1])
            return float(struct.unpack_from("f" if single else "d", raw)[0])

        arguments: dict[str, Any] = {}
        for name, kind in self.kinds:
            if kind in ("Double", "Float"):
                arguments[name] = next_real(kind == "Float")
            else:
                arguments[name] = _READERS[kind](next_word())
        next_word()  # where the size of the workspace goes: none is needed, and it is 0 already
        return arguments, next_word()


def handle_at(address: int) -> Handle | None:
    if address == 0:
        return None
    handle = Handle.from_address(address)
    assert handle.magic == MAGIC, f"no handle at {address:#x}: the signature does not fit the call"
    return handle


def tensor_at(address: int) -> torch.Tensor | None:
    """A CPU view of the device's memory, with the handle it came from; of memory that is not plain, a copy."""
    handle = handle_at(address)
    if handle is None:
        return None
    if not fractal.is_plain(handle):
        tensor = fractal.read(handle, DTYPES[handle.dtype])
        tensor.handle = handle  # type: ignore[attr-defined]
        return tensor
    dtype, sizes, strides = DTYPES[handle.dtype], list(handle.dims[: handle.count]), handle.strides[: handle.count]
    if 0 in sizes or not handle.data:
        tensor = torch.empty(sizes, dtype=dtype)
    else:
        extent = handle.offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + 1
        raw = (ctypes.c_char * (extent * dtype.itemsize)).from_address(handle.data)
        tensor = torch.frombuffer(raw, dtype=torch.uint8).view(dtype).as_strided(sizes, list(strides), handle.offset)
    tensor.handle = handle  # type: ignore[attr-defined]
    return tensor


def _scalar(address: int) -> Any:
    handle = handle_at(address)
    if handle is None:
        return None
    raw = bytes(handle.dims)[:16]
    if handle.dtype == 27:
        return struct.unpack("f", b"\0\0" + raw[:2])[0]
    return struct.unpack_from(SCALARS[handle.dtype], raw)[0]


def _array(element: Any) -> Callable[[int], list[Any] | None]:
    def read(address: int) -> list[Any] | None:
        handle = handle_at(address)
        return None if handle is None else list((element * handle.count).from_address(handle.data))

    return read


def _tensors(address: int) -> list[torch.Tensor | None] | None:
    addresses = _array(ctypes.c_uint64)(address)
    return None if addresses is None else [tensor_at(a) for a in addresses]


_READERS: dict[str, Callable[[int], Any]] = {
    "T": tensor_at,
    "Ts": _tensors,
    "Scalar": _scalar,
    "Ints": _array(ctypes.c_int64),
    "Floats": _array(ctypes.c_float),
    "Bools": _array(ctypes.c_bool),
    "Int": lambda word: ctypes.c_int64(word).value,
    "Int32": lambda word: ctypes.c_int32(word & 0xFFFFFFFF).value,
    "Int8": lambda word: ctypes.c_int8(word & 0xFF).value,
    "Bool": lambda word: bool(word & 0xFF),
    "Text": lambda word: "" if word == 0 else ctypes.string_at(word).decode(),
}


def guess(integers: Any, stack: Any, most: int = 24) -> str:
    """What can be told of a call whose signature is not known: its tensors, for the message."""
    found = []
    for word in [*integers[:NUM_INTEGER_REGISTERS], *stack[:most]]:
        if word > 1 << 20 and word % 16 == 0 and _peek(word) == MAGIC:
            handle = Handle.from_address(word)
            found.append(_text("", tensor_at(word)) if handle.kind == 1 else f"handle of kind {handle.kind}")
    return ", ".join(found)


class _Span(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _peek(address: int) -> int | None:
    """The word at an address that may not be one; process_vm_readv fails where a read would crash."""
    import os

    buffer = ctypes.c_uint64()
    local, remote = _Span(ctypes.addressof(buffer), 8), _Span(address, 8)
    read = ctypes.CDLL(None).process_vm_readv(os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    return buffer.value if read == 8 else None


def _text(name: str, value: Any) -> str:
    """float32[4,256], or with ~ for memory that is not contiguous; whole numbers and the like by name."""
    if isinstance(value, torch.Tensor):
        handle = value.handle  # type: ignore[attr-defined]
        sizes = ",".join(map(str, value.shape))
        strided = "" if value.is_contiguous() else "~"
        layout = "" if handle.format in FORMAT_ND else f"@{handle.format}"
        dtype = "float4_e2m1" if handle.dtype == fractal.FP4_E2M1 else str(value.dtype).removeprefix("torch.")
        return f"{dtype}[{sizes}]{strided}{layout}"
    if isinstance(value, list) and value and all(v is None or isinstance(v, torch.Tensor) for v in value):
        return "[" + ", ".join(_text("", v) for v in value) + "]"
    if value is None:
        return "-"
    shown = f"{value:.6g}" if isinstance(value, float) else str(value).replace(", ", ",")
    return f"{name}={shown}"
