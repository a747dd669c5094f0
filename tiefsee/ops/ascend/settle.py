"""Weights as fused operators want them, made once after a load.

wkv_b        unpacked for good: attention takes it apart anew in every step
gate         in float32 for good: so it is multiplied in every step
w1 and w3    of routed experts side by side, so that one grouped product gives gate and up together
INT8         in FRACTAL_NZ, the order in which the chip reads matrices (910B, 910C)
FP4          in FRACTAL_NZ too, the only one that its products take (950); scales as the bytes they are
scales       in the type that each product asks for
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tiefsee.ops import formats
from tiefsee.ops.ascend import packed, rules
from tiefsee.ops.ascend.chip import Generation
from tiefsee.ops.ascend.device import load_torch_npu
from tiefsee.ops.weight import PackedSlice, Weight, dense

ND, FRACTAL_NZ, FRACTAL_NZ_FP4 = 2, 29, 50
# Weights that are not used by `linear`: of MLA, of routers, and of V4's grouped projection, which is cut by rows.
UNPACKED, ROUTER, CUT_BY_ROWS = "wkv_b", "gate", "wo_a"


class Settled(Weight):
    """A packed weight in this chip's order. `factors` are made of `scale`, and are no part of the network's state."""

    def __init__(self, weight: Weight, data: Tensor) -> None:
        super().__init__(data, weight.scale, weight.packing)
        self.factors = packed.make_factors(self) if packed.way_of(weight.packing) != "blocks" else weight.scale

    def unbind(self) -> tuple[PackedSlice, ...]:
        return Weight(as_plain(self.data), self.scale, self.packing).unbind()

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        return PackedSlice(as_plain(self.data), self.scale, self.packing).dequantise(dtype)


class Half(Weight):
    """w1 or w3 of routed experts [E, F, D], of which `both` holds the two in turn: [E, 2 F, D]."""

    def __init__(self, both: Settled, is_second: bool) -> None:
        # Views: a buffer that two modules share would be listed under one name only.
        super().__init__(both.data.view_as(both.data), both.scale.view_as(both.scale), both.packing)
        self.is_second = is_second
        object.__setattr__(self, "both", both)  # not a submodule: its state is here already
        self.both: Settled

    @property
    def shape(self) -> torch.Size:
        experts, rows, columns = super().shape
        return torch.Size((experts, rows // 2, columns))

    def unbind(self) -> tuple[PackedSlice, ...]:
        halves = (self._of(x, self.is_second) for x in (as_plain(self.data), self.scale))
        return tuple(PackedSlice(d, s, self.packing) for d, s in zip(*(h.unbind() for h in halves), strict=True))

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError("a stack is dequantised one by one, see `unbind`")

    @staticmethod
    def _of(x_E: Tensor, is_second: bool) -> Tensor:
        return x_E.chunk(2, 1)[is_second]


def settle(network: nn.Module, chip: Generation, dtype: torch.dtype) -> None:
    """In place. Formats that no fused product takes in this dtype are left as they are."""
    for path, module in list(network.named_modules()):
        name, weight = path.rpartition(".")[2], getattr(module, "weight", None)
        if name == UNPACKED and isinstance(weight, Weight):
            _replace(module, dense(weight, dtype))
        elif name == ROUTER and isinstance(weight, Tensor):
            _replace(module, weight.float())
        elif isinstance(weight, Weight):
            if rules.packed_matmul(chip, dtype, weight.packing, weight.shape) is None:
                module.weight = settled(weight, chip, in_order=name != CUT_BY_ROWS)
        elif isinstance(getattr(module, "w1", None), Tensor | Weight):
            _settle_experts(module, chip, dtype)


def settled(weight: Weight, chip: Generation, *, in_order: bool) -> Settled:
    """One weight, or a stack of them."""
    if weight.packing.format == "fp4":
        scale = weight.scale if weight.scale.dtype == torch.uint8 else formats.encode_ue8m0(weight.scale)
        return Settled(Weight(weight.data, scale, weight.packing), _in_order(weight.data, fp4=True))
    rows, columns = weight.shape[-2:]
    # What is multiplied in pieces is cut by rows, which this order does not allow; nor does it know a single row.
    in_order = in_order and min(rows, columns) > 1 and rows <= rules.LARGEST_INNER
    if weight.packing.format == "int8" and in_order and chip.orders_weights:
        return Settled(weight, _in_order(weight.data))
    return Settled(weight, weight.data)


def _settle_experts(experts: nn.Module, chip: Generation, dtype: torch.dtype) -> None:
    w1, w2, w3 = experts.w1, experts.w2, experts.w3
    if isinstance(w1, Tensor) and isinstance(w3, Tensor):
        both = torch.cat((w1.detach(), w3.detach()), 1)
        experts.w1, experts.w3 = (nn.Parameter(half, requires_grad=False) for half in both.chunk(2, 1))
        return
    weights = [w for w in (w1, w2, w3) if isinstance(w, Weight)]
    reasons = [rules.packed_experts(chip, dtype, w.packing, w.shape) for w in weights]
    if len(weights) == 3 and not any(reasons):
        _settle_packed(experts, chip, *weights)


def _settle_packed(experts: nn.Module, chip: Generation, w1: Weight, w2: Weight, w3: Weight) -> None:
    experts.w2 = settled(w2, chip, in_order=True)
    if w1.packing.format == "fp8" and w1.shape[1] % w1.packing.block[0]:  # a block would hold rows of both
        experts.w1, experts.w3 = settled(w1, chip, in_order=True), settled(w3, chip, in_order=True)
        return
    joint = settled(
        Weight(torch.cat((w1.data, w3.data), 1), torch.cat((w1.scale, w3.scale), 1), w1.packing), chip, in_order=True
    )
    experts.w1, experts.w3 = Half(joint, is_second=False), Half(joint, is_second=True)


def _replace(module: nn.Module, weight: Tensor) -> None:
    del module.weight
    module.weight = nn.Parameter(weight.detach(), requires_grad=False)


def both_of(w1: Tensor, w3: Tensor) -> Tensor | None:
    """The tensor [E, 2 F, D] whose halves these are; None where they lie apart."""
    if w1.stride() != w3.stride() or w1.data_ptr() + w1[0].numel() * w1.element_size() != w3.data_ptr():
        return None
    experts, rows, columns = w1.shape
    if w1.stride() != (2 * rows * columns, columns, 1):
        return None
    return w1.as_strided((experts, 2 * rows, columns), w1.stride())


def as_plain(data: Tensor) -> Tensor:
    """Codes in rows and columns again; FP4 has no way back."""
    if load_torch_npu().get_npu_format(data) not in (FRACTAL_NZ, FRACTAL_NZ_FP4):
        return data
    plain: Tensor = torch.ops.npu.npu_format_cast(data, ND)
    return plain


def _in_order(data: Tensor, *, fp4: bool = False) -> Tensor:
    if fp4:
        cast: Tensor = torch.ops.npu.npu_format_cast(
            data.view(torch.uint8), FRACTAL_NZ, customize_dtype=packed.E4M3, input_dtype=packed.E2M1_PAIRS
        )
        return cast
    with _internal_formats():
        cast = torch.ops.npu.npu_format_cast(data, FRACTAL_NZ)
        return cast


@contextmanager
def _internal_formats() -> Iterator[None]:
    """On 910, torch_npu makes tensors in the chip's own order only where it is told to, for the whole process."""
    torch_npu = load_torch_npu()
    before = torch_npu._C._npu_getOption("ALLOW_INTERNAL_FORMAT") == b"enable"
    torch_npu.npu.config.allow_internal_format = True
    try:
        yield
    finally:
        torch_npu.npu.config.allow_internal_format = before
