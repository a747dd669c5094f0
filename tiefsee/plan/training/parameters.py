"""Where the parameters lie: those of each unit, and what one rank of a layout holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tiefsee.plan.training.layout import TrainLayout
from tiefsee.plan.training.stages import rank_chunks
from tiefsee.spec import ModelSpec, checkpoint_tensors
from tiefsee.spec.tensors import CheckpointTensor


@dataclass(frozen=True, slots=True)
class Parameters:
    """`dense` are on every rank of a stage (split by TP), `experts` the routed ones (split by EP).

    `newton` are the FLOPs of one Newton-Schulz iteration over all matrices, see optimizer.py.
    """

    dense: float = 0.0
    experts: float = 0.0
    newton_dense: float = 0.0
    newton_experts: float = 0.0

    def __add__(self, o: Parameters) -> Parameters:
        return Parameters(
            self.dense + o.dense, self.experts + o.experts, self.newton_dense + o.newton_dense,
            self.newton_experts + o.newton_experts,
        )  # fmt: skip


def newton_flops(rows: int, columns: int) -> float:
    """One iteration X <- aX + b(XX')X + c(XX')^2 X for a rows <= columns matrix: two products with X, one square.

    An expert's 3,072 x 7,168 of V4-Pro: 4 * 3072^2 * 7168 + 2 * 3072^3 = 0.33 TFLOP.
    """
    a, b = min(rows, columns), max(rows, columns)
    return 4.0 * a * a * b + 2.0 * a**3


@lru_cache(maxsize=32)
def unit_parameters(spec: ModelSpec, with_mtp: bool) -> tuple[Parameters, ...]:
    """In the order of units.network_units: embedding, layers, MTP, head."""
    layers = len(spec.layers)
    found = [Parameters() for _ in range(layers + 2 + (1 if with_mtp and spec.mtp_layers else 0))]
    for tensor in checkpoint_tensors(spec):
        index = _unit_of(tensor, layers, len(found))
        if index is not None and tensor.kind != "table":
            found[index] = found[index] + _own(tensor)
    return tuple(found)


def _unit_of(tensor: CheckpointTensor, layers: int, units: int) -> int | None:
    name = tensor.name
    if name.startswith("layers."):
        return 1 + int(name.split(".")[1])
    if name.startswith("mtp."):
        return layers + 1 if units == layers + 3 else None
    return 0 if name.startswith("embed") else units - 1


def _own(tensor: CheckpointTensor) -> Parameters:
    newton = 0.0
    if len(tensor.shape) == 2 and min(tensor.shape) > 1 and "embed" not in tensor.name and "head" not in tensor.name:
        newton = newton_flops(*tensor.shape)
    count = float(tensor.num_values)
    if tensor.expert is not None:
        return Parameters(0.0, count, 0.0, newton)
    return Parameters(count, 0.0, newton, 0.0)


def rank_parameters(units: Sequence[Parameters], ends: Sequence[int], layout: TrainLayout) -> list[Parameters]:
    """What a TP and EP rank of each pipeline rank holds before any ZeRO: dense / tp, experts / ep."""
    chunks = []
    for i, end in enumerate(ends):
        total = sum(units[(ends[i - 1] if i else 0) : end], Parameters())
        chunks.append(
            Parameters(
                total.dense / layout.tp, total.experts / layout.ep, total.newton_dense / layout.tp,
                total.newton_experts / layout.ep,
            )
        )  # fmt: skip
    ranks = rank_chunks(layout.pp, layout.virtual, layout.schedule)
    return [sum((chunks[c] for c in held), Parameters()) for held in ranks]
