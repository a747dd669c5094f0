"""The one place that every aclnn call of the process comes to: decode, write down, compute on the same memory.

An operator is a function registered by its name; it computes on CPU views of device memory and raises `Refused` for
what the operator's documentation does not allow. The caller then sees the reason in torch_npu's own RuntimeError.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .calls import Call, Signature, guess
from .fractal import is_plain

Function = Callable[..., None]
NOT_THERE, BAD_PARAMETER, FAILED = 561000, 161002, 561002  # ACLNN_ERR_INNER, _PARAM_INVALID, _INNER_TILING_ERROR


class Refused(Exception):
    """The public documentation of the operator does not allow this call."""


OPERATORS: dict[str, tuple[Function, Signature]] = {}


def operator(*names: str) -> Callable[[Function], Function]:
    """Registers an emulated operator under its name without "aclnn"; several names share one prototype."""

    def register(function: Function) -> Function:
        signature = Signature(function)
        for name in names:
            assert name not in OPERATORS, name
            OPERATORS[name] = (function, signature)
        return function

    return register


def require(holds: bool, sentence: str) -> None:
    """Refuse the call unless its documentation allows it."""
    if not holds:
        raise Refused(sentence)


class Emulator:
    """Callbacks, what is planned and not run yet, and who listens."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Call], None]] = []
        self._planned: dict[int, Call] = {}
        self._next_executor = 1
        self._library = ctypes.CDLL("libopapi.so", mode=ctypes.RTLD_GLOBAL)
        self._library.fakecann_name.restype = ctypes.c_char_p
        self._set_error = ctypes.CDLL("libascendcl.so").fakecann_set_error
        count = self._library.fakecann_count()
        self.names = [self._library.fakecann_name(i).decode().removeprefix("aclnn") for i in range(count)]
        words, reals = ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_double)
        # Kept here: ctypes frees a callback that nobody holds.
        self._plan = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, words, reals, words)(self.plan)
        self._run = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64)(self.run)
        self._library.fakecann_set(self._plan, self._run)

    def plan(self, index: int, integers: Any, floats: Any, stack: Any) -> int:
        name = self.names[index]
        try:
            if name not in OPERATORS:
                return self._fail(
                    NOT_THERE, f"aclnn{name} is not emulated; it was called with {guess(integers, stack)}"
                )
            arguments, executor_at = OPERATORS[name][1].read(integers, floats, stack)
            executor, self._next_executor = self._next_executor, self._next_executor + 1
            self._planned[executor] = Call(name, arguments)
            ctypes.c_uint64.from_address(executor_at).value = executor
        except Exception as error:  # an exception must not cross the C frames
            return self._fail(BAD_PARAMETER, f"the call of aclnn{name} could not be read: {error!r}")
        return 0

    def run(self, executor: int) -> int:
        call = self._planned.pop(executor)
        for listener in self.listeners:
            listener(call)
        copies = [t for t in _tensors_of(call.arguments.values()) if not is_plain(t.handle)]
        before = [t._version for t in copies]
        try:
            with torch._C._AutoDispatchBelowAutograd():
                OPERATORS[call.name][0](**call.arguments)
            require([t._version for t in copies] == before, "writing to an internal format is not emulated")
        except Refused as error:
            return self._fail(FAILED, f"aclnn{call.name} refuses: {error} -- {call}")
        except Exception as error:
            return self._fail(FAILED, f"aclnn{call.name} failed in the emulator: {error!r} -- {call}")
        return 0

    def _fail(self, code: int, text: str) -> int:
        self._set_error(f"fakecann: {text}".encode())
        return code


def _tensors_of(values: Iterable[Any]) -> Iterator[Any]:
    """Tensors among the arguments, and in their lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list):
            yield from _tensors_of(value)


_installed: list[Emulator] = []  # one per process: the library has one pair of callbacks


def install() -> Emulator:
    """The emulator of this process; libopapi calls this by itself on the first operator."""
    if not _installed:
        from . import attention, experts, hyper, matmul, norms, plain, quantise  # noqa: F401  (they register their operators)

        _installed.append(Emulator())
        if path := os.environ.get("FAKECANN_TRACE"):
            file = open(path, "a", buffering=1)  # noqa: SIM115  (open as long as the process lives)
            _installed[0].listeners.append(lambda call: print(call, file=file))
        if os.environ.get("FAKECANN_VERBOSE"):
            _installed[0].listeners.append(lambda call: print(call, file=sys.stderr))
    return _installed[0]


@contextmanager
def record() -> Iterator[list[str]]:
    """The aclnn calls inside the block, a line each."""
    lines: list[str] = []
    emulator = install()

    def listener(call: Call) -> None:
        lines.append(str(call))

    emulator.listeners.append(listener)
    try:
        yield lines
    finally:
        emulator.listeners.remove(listener)
