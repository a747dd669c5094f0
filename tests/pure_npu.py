"""A device "npu" of pure Python: a pytest plugin that shows whether tiefsee is neutral to devices.

    python -m pytest -p tests.pure_npu --device npu tests/engine

torch has a place for a device of others (PrivateUse1). This one wraps CPU tensors, so it computes what the CPU does,
but no tensor of it may meet a CPU tensor, and nothing here is called torch.cuda. It is also what a backend of tiefsee
is made of: a module with `open_device` and `operators`, and a line in `ops.table.BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils.backend_registration as registration

from tiefsee.ops import Operators
from tiefsee.ops.cpu import CpuOperators
from tiefsee.ops.table import BACKENDS

aten = torch.ops.aten
# Operators that make a tensor from a size, and so know only from `device` that it is ours.
FACTORIES = (
    aten.empty.memory_format, aten.empty_strided.default, aten._to_copy.default, aten.zeros.default, aten.ones.default,
    aten.full.default, aten.arange.default, aten.arange.start, aten.arange.start_step, aten.scalar_tensor.default,
)  # fmt: skip
# A number may stand beside a tensor of any device; these take one tensor to another device.
BETWEEN = (aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default)


class PureTensor(torch.Tensor):
    """A tensor of device npu around a CPU tensor."""

    inner: torch.Tensor
    # Straight to __torch_dispatch__.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False) -> PureTensor:
        with torch.inference_mode(False):  # a view of a parameter has a version, which inference tensors lack
            wrapped = torch.Tensor._make_wrapper_subclass(
                cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                device="npu:0", requires_grad=requires_grad,
            )  # fmt: skip
        wrapped.inner = inner
        return wrapped

    def __repr__(self, **_: Any) -> str:
        return f"PureTensor({self.inner})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})


def compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the wrapped tensors, and wrap what it gives."""
    own: list[PureTensor] = []
    strangers: list[torch.Tensor] = []
    inner_args = [_unwrap(a, own, strangers) for a in args]
    inner_kwargs = {name: _unwrap(value, own, strangers) for name, value in kwargs.items()}
    if own and any(t.dim() for t in strangers) and function not in BETWEEN:
        raise RuntimeError(f"{function}: tensors on npu and on cpu; nothing may mix them")
    result = function(*inner_args, **inner_kwargs)
    if function is aten.copy_.default:
        return args[0]
    wanted = kwargs.get("device")
    if function is aten._local_scalar_dense.default or (wanted is not None and torch.device(wanted).type == "cpu"):
        return result
    return _wrap(result, own)


def _unwrap(value: Any, own: list[PureTensor], strangers: list[torch.Tensor]) -> Any:
    """The CPU's side of an argument; tensors of either side are noted."""
    if isinstance(value, PureTensor):
        own.append(value)
        return value.inner
    if isinstance(value, torch.Tensor):
        strangers.append(value)
    elif isinstance(value, list | tuple):
        return type(value)(_unwrap(v, own, strangers) for v in value)
    elif isinstance(value, torch.device) and value.type == "npu":
        return torch.device("cpu")
    return value


def _wrap(value: Any, own: list[PureTensor]) -> Any:
    """What was written in place is the tensor that came in."""
    if isinstance(value, torch.Tensor):
        same = next((t for t in own if t.inner is value), None)
        return PureTensor(value) if same is None else same
    return type(value)(_wrap(v, own) for v in value) if isinstance(value, list | tuple) else value


def _factory(function: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: compute(function, args, kwargs)


# -------------------------------------------------------------------------------- what a backend of tiefsee offers


def open_device(name: str) -> torch.device:
    return torch.device(name)


class PureOperators(Operators):
    name = "pure"
    free_bytes = staticmethod(CpuOperators.free_bytes)


def operators(device: torch.device) -> Operators:
    return PureOperators()


def pytest_configure(config: Any) -> None:
    """Once per process: torch cannot forget a device again."""
    torch.utils.rename_privateuse1_backend("npu")
    registration._setup_privateuseone_for_python_backend("npu")
    library = torch.library.Library("aten", "IMPL")
    for function in FACTORIES:
        library.impl(function.name().removeprefix("aten::"), _factory(function), "PrivateUse1")
    config.stash_library = library  # the registrations live as long as it does
    BACKENDS["npu"] = __name__
