"""Plain operators: what `aten::` calls become. Each does what its PyTorch namesake does, on the output's own memory.

Prototypes: the aclnn pages of CANN's ops-nn, ops-math and ops-index (gitcode.com/cann), e.g. aclnnAdd&aclnnInplaceAdd.
"""
# The annotations are kinds of arguments (calls.py), not types.
# ruff: noqa: F821
# mypy: ignore-errors

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .emulator import operator

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Silu": F.silu, "Sigmoid": torch.sigmoid, "Rsqrt": torch.rsqrt, "Sqrt": torch.sqrt, "Exp": torch.exp,
    "Log": torch.log, "Cos": torch.cos, "Sin": torch.sin, "Relu": torch.relu, "Neg": torch.neg, "Abs": torch.abs,
    "Ceil": torch.ceil, "Floor": torch.floor, "IsFinite": torch.isfinite, "IsInf": torch.isinf, "Tanh": torch.tanh,
    "BitwiseNot": torch.bitwise_not, "LogicalNot": torch.logical_not, "Max": torch.max, "Min": torch.min,
    "Reciprocal": torch.reciprocal, "Erf": torch.erf,
}  # fmt: skip
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Mul": torch.mul, "Div": torch.div, "GtTensor": torch.gt, "GeTensor": torch.ge, "LtTensor": torch.lt,
    "LeTensor": torch.le, "EqTensor": torch.eq, "NeTensor": torch.ne, "BitwiseAndTensor": torch.bitwise_and,
    "BitwiseOrTensor": torch.bitwise_or, "BitwiseXorTensor": torch.bitwise_xor, "LogicalAnd": torch.logical_and,
    "LogicalOr": torch.logical_or, "RightShift": torch.bitwise_right_shift,
    "FloorDivide": torch.floor_divide, "RemainderTensorTensor": torch.remainder, "Maximum": torch.maximum,
    "Minimum": torch.minimum, "PowTensorTensor": torch.pow,
}  # fmt: skip
WITH_SCALAR: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Muls": torch.mul, "Divs": torch.div, "GtScalar": torch.gt, "GeScalar": torch.ge, "LtScalar": torch.lt,
    "LeScalar": torch.le, "EqScalar": torch.eq, "NeScalar": torch.ne, "BitwiseAndScalar": torch.bitwise_and,
    "BitwiseOrScalar": torch.bitwise_or, "BitwiseXorScalar": torch.bitwise_xor, "FloorDivides": torch.floor_divide,
    "RemainderTensorScalar": torch.remainder, "PowTensorScalar": torch.pow,
    "ClampMax": lambda x, most: x.clamp(max=most), "ClampMin": lambda x, least: x.clamp(min=least),
}  # fmt: skip


def _register_tables() -> None:
    def unary(compute: Callable[[Tensor], Tensor]):
        def call(x: T, out: T):
            out.copy_(compute(x))

        return call

    def binary(compute: Callable[[Tensor, Tensor], Tensor]):
        def call(x: T, other: T, out: T):
            out.copy_(compute(x, other))

        return call

    def with_scalar(compute: Callable[[Tensor, float], Tensor]):
        def call(x: T, other: Scalar, out: T):
            out.copy_(compute(x, other))

        return call

    def in_place(compute, kind: str):
        def tensor(x: T, other: T):
            x.copy_(compute(x, other))

        def scalar(x: T, other: Scalar):
            x.copy_(compute(x, other))

        return tensor if kind == "T" else scalar

    for table, make in ((UNARY, unary), (BINARY, binary), (WITH_SCALAR, with_scalar)):
        for name, compute in table.items():
            operator(name)(make(compute))
    for name, compute in BINARY.items():
        operator(f"Inplace{name}")(in_place(compute, "T"))
    for name, compute in WITH_SCALAR.items():
        operator(f"Inplace{name}")(in_place(compute, "Scalar"))


_register_tables()


# ------------------------------------------------------------------------------------------------------ arithmetic


@operator("Add")
def _(x: T, other: T, alpha: Scalar, out: T):
    out.copy_(torch.add(x, other, alpha=alpha))


@operator("Adds")
def _(x: T, other: Scalar, alpha: Scalar, out: T):
    out.copy_(torch.add(x, other, alpha=alpha))


@operator("InplaceAdd")
def _(x: T, other: T, alpha: Scalar):
    x.add_(other, alpha=alpha)


@operator("InplaceAdds")
def _(x: T, other: Scalar, alpha: Scalar):
    x.add_(other, alpha=alpha)


@operator("Sub")
def _(x: T, other: T, alpha: Scalar, out: T):
    out.copy_(torch.sub(x, other, alpha=alpha))


@operator("Subs")
def _(x: T, other: Scalar, alpha: Scalar, out: T):
    out.copy_(torch.sub(x, other, alpha=alpha))


@operator("InplaceSub")
def _(x: T, other: T, alpha: Scalar):
    x.sub_(other, alpha=alpha)


@operator("InplaceSubs")
def _(x: T, other: Scalar, alpha: Scalar):
    x.sub_(other, alpha=alpha)


@operator("Rsubs")
def _(x: T, other: Scalar, alpha: Scalar, out: T):
    out.copy_(torch.rsub(x, other, alpha=alpha))


@operator("Clamp")
def _(x: T, least: Scalar, most: Scalar, out: T):
    out.copy_(x.clamp(least, most))


@operator("Softplus")
def _(x: T, beta: Scalar, threshold: Scalar, out: T):
    out.copy_(F.softplus(x, beta, threshold))


@operator("SWhere")
def _(condition: T, x: T, other: T, out: T):
    out.copy_(torch.where(condition.bool(), x, other))


# ---------------------------------------------------------------------------------------------- filling and copying


@operator("InplaceZero")
def _(x: T):
    x.zero_()


@operator("InplaceOne")
def _(x: T):
    x.fill_(1)


@operator("InplaceFillScalar")
def _(x: T, value: Scalar):
    x.fill_(value)


@operator("InplaceFillTensor")
def _(x: T, value: T):
    x.fill_(value)


@operator("InplaceCopy")
def _(x: T, source: T):
    x.copy_(source)


@operator("Cast")
def _(x: T, dtype: Int32, out: T):
    out.copy_(x)


@operator("Arange")
def _(start: Scalar, end: Scalar, step: Scalar, out: T):
    out.copy_(torch.arange(start, end, step))


@operator("Cat")
def _(tensors: Ts, dim: Int, out: T):
    out.copy_(torch.cat(tensors, dim))


@operator("Stack")
def _(tensors: Ts, dim: Int, out: T):
    out.copy_(torch.stack(tensors, dim))


@operator("ConstantPadNd")
def _(x: T, pad: Ints, value: Scalar, out: T):
    out.copy_(F.pad(x, pad, value=value))


@operator("RepeatInterleaveIntWithDim")
def _(x: T, repeats: Int, dim: Int, size: Int, out: T):
    out.copy_(x.repeat_interleave(repeats, dim))


@operator("Repeat")
def _(x: T, repeats: Ints, out: T):
    out.copy_(x.repeat(repeats))


@operator("Triu")
def _(x: T, diagonal: Int, out: T):
    out.copy_(x.triu(diagonal))


@operator("Tril")
def _(x: T, diagonal: Int, out: T):
    out.copy_(x.tril(diagonal))


# -------------------------------------------------------------------------------------------------------- reductions


@operator("Mean")
def _(x: T, dims: Ints, keep: Bool, dtype: Int32, out: T):
    out.copy_(x.mean(dims or None, keep, dtype=out.dtype))


@operator("ReduceSum")
def _(x: T, dims: Ints, keep: Bool, dtype: Int32, out: T):
    out.copy_(x.sum(dims or None, keep, dtype=out.dtype))


@operator("Amax")
def _(x: T, dims: Ints, keep: Bool, out: T):
    out.copy_(x.amax(dims or (), keep))


@operator("Any")
def _(x: T, dims: Ints, keep: Bool, out: T):
    out.copy_(x.bool().any() if not dims else x.bool().any(dims[0], keep))


@operator("All")
def _(x: T, dims: Ints, keep: Bool, out: T):
    out.copy_(x.bool().all() if not dims else x.bool().all(dims[0], keep))


@operator("MaxDim")
def _(x: T, dim: Int, keep: Bool, out: T, indices: T):
    values, places = x.max(dim, keep)
    out.copy_(values)
    indices.copy_(places)


@operator("ArgMax")
def _(x: T, dim: Int, keep: Bool, out: T):
    out.copy_(x.argmax(dim, keep))


@operator("Cumsum")
def _(x: T, dim: Int, dtype: Int32, out: T):
    out.copy_(x.cumsum(dim, dtype=out.dtype))


@operator("Softmax")
def _(x: T, dim: Int, out: T):
    out.copy_(x.float().softmax(dim))


@operator("LogSoftmax")
def _(x: T, dim: Int, out: T):
    out.copy_(x.float().log_softmax(dim))


@operator("LayerNorm")
def _(x: T, shape: Ints, weight: T, bias: T, eps: Double, out: T, mean: T, rstd: T):
    out.copy_(F.layer_norm(x.float(), shape, _float(weight), _float(bias), eps))


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


# ------------------------------------------------------------------------------------------------------- linear algebra


@operator("Matmul", "Mm", "BatchMatMul")
def _(x: T, other: T, out: T, cube_math: Int8):
    out.copy_(torch.matmul(x, other))


@operator("Mv")
def _(x: T, other: T, out: T, cube_math: Int8):
    out.copy_(torch.mv(x, other))


@operator("Addmm")
def _(base: T, x: T, other: T, beta: Scalar, alpha: Scalar, out: T, cube_math: Int8):
    out.copy_(torch.addmm(base, x, other, beta=beta, alpha=alpha))


# -------------------------------------------------------------------------------------------------- indexes and sorting


@operator("Topk")
def _(x: T, k: Int, dim: Int, largest: Bool, in_order: Bool, values: T, indices: T):
    found, places = torch.topk(x, k, dim, largest, in_order)
    values.copy_(found)
    indices.copy_(places)


# Named by the wheel, on no public page: the argument between `sorted` and the results is taken for a mode.
@operator("TopkV2")
def _(x: T, k: Int, dim: Int, largest: Bool, in_order: Bool, mode: Int, values: T, indices: T):
    found, places = torch.topk(x, k, dim, largest, in_order)
    values.copy_(found)
    indices.copy_(places)


@operator("Sort")
def _(x: T, stable: Bool, dim: Int, descending: Bool, values: T, indices: T):
    found, places = torch.sort(x, dim=dim, descending=descending, stable=True)
    values.copy_(found)
    indices.copy_(places)


@operator("Argsort")
def _(x: T, dim: Int, descending: Bool, out: T):
    out.copy_(torch.argsort(x, dim=dim, descending=descending, stable=True))


@operator("Index")
def _(x: T, indices: Ts, out: T):
    if out.numel():
        out.copy_(torch.ops.aten.index(x, _given(indices)))


@operator("IndexPutImpl")
def _(x: T, indices: Ts, values: T, accumulate: Bool, unsafe: Bool):
    if values.numel():
        torch.ops.aten.index_put_(x, _given(indices), values, accumulate)


def _given(indices: list[Tensor | None]) -> list[Tensor | None]:
    """An empty tensor stands for a dim that is taken whole: torch_npu passes undefined ones like that."""
    return [None if i is None or i.numel() == 0 else i for i in indices]


@operator("IndexSelect")
def _(x: T, dim: Int, index: T, out: T):
    out.copy_(torch.index_select(x, dim, index))


@operator("InplaceIndexCopy")
def _(x: T, dim: Int, index: T, source: T):
    x.index_copy_(dim, index, source)


@operator("IndexFill")
def _(x: T, dim: Int, index: T, value: Scalar, out: T):
    out.copy_(torch.index_fill(x, dim, index, value))


@operator("IndexAdd")
def _(x: T, dim: Int, index: T, source: T, alpha: Scalar, out: T):
    out.copy_(torch.index_add(x, dim, index, source, alpha=alpha))


@operator("Gather")
def _(x: T, dim: Int, index: T, out: T):
    out.copy_(torch.gather(x, dim, index))


@operator("Scatter")
def _(x: T, dim: Int, index: T, source: T, reduce: Int, out: T):
    out.copy_(torch.scatter(x, dim, index, source))


@operator("ScatterValue")
def _(x: T, dim: Int, index: T, value: Scalar, reduce: Int, out: T):
    out.copy_(torch.scatter(x, dim, index, value))


@operator("InplaceScatterValue")
def _(x: T, dim: Int, index: T, value: Scalar, reduce: Int):
    x.scatter_(dim, index, value)


@operator("InplaceMaskedFillScalar")
def _(x: T, mask: T, value: Scalar):
    x.masked_fill_(mask, value)


@operator("InplaceMaskedFillTensor")
def _(x: T, mask: T, value: T):
    x.masked_fill_(mask, value)


@operator("Embedding")
def _(weight: T, indices: T, out: T):
    out.copy_(F.embedding(indices, weight))


@operator("Bincount")
def _(x: T, weights: T, least: Int, out: T):
    out.copy_(torch.bincount(x, weights, least))


@operator("Nonzero")
def _(x: T, out: T):
    found = torch.nonzero(x)
    out.view(-1)[: found.numel()].copy_(found.flatten())
    out.handle.dims[0] = len(found)


@operator("NonzeroV2")
def _(x: T, out: T):
    found = torch.nonzero(x).T.contiguous()
    out.view(-1)[: found.numel()].copy_(found.flatten())
    out.handle.dims[1] = found.shape[1]


@operator("MaskedSelect")
def _(x: T, mask: T, out: T):
    found = torch.masked_select(x, mask)
    out.view(-1)[: found.numel()].copy_(found)
    out.handle.count = 1
    out.handle.dims[0] = found.numel()
