"""The pieces that a network is cut into, and what one micro-batch costs in each: ideal seconds, at the peaks.

A unit is a layer, the embedding, or what stands behind the last layer (MTP and heads). Layers of a kind share one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from tiefsee.hardware import Chip
from tiefsee.plan.names.formats import compute_format
from tiefsee.plan.training.exchange import Exchange, context_exchange, expert_exchange, tensor_exchange
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import Formats, Shard, TrainOp, training_ops
from tiefsee.spec.cost.types import BYTES
from tiefsee.spec.model import LayerSpec, MoE

_LOW = ("fp8", "fp4")


@dataclass(frozen=True, slots=True)
class Piece:
    """One operator: ideal seconds of arithmetic, of its own memory traffic, and of what runs besides (quantisation,
    sums of gradients): forward, for the inputs' gradients, for the weights'. `cheap`: recomputed if "selective".
    """

    name: str
    kind: str
    low: bool
    cheap: bool
    compute_s: tuple[float, float, float]
    memory_s: tuple[float, float, float]
    extra_s: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Unit:
    """`experts` is one direction's dispatch and combine, `others` the TP and CP exchanges of one pass."""

    pieces: tuple[Piece, ...]
    experts: Exchange
    others: Exchange
    launches: float


@dataclass(frozen=True, eq=False)
class Micro:
    """One micro-batch on one rank: all that units depend on, so that layouts share them. Specs are told by identity:
    hashing 61 layers at each look-up costs more than the look-up saves."""

    spec: ModelSpec
    chip: Chip
    formats: Formats
    sequence: int
    tokens: float
    tp: int
    cp: int
    ep: int
    imbalance: float
    low_dispatch: bool

    @property
    def _key(self) -> tuple[object, ...]:
        return (
            id(self.spec), id(self.chip), self.formats, self.sequence, self.tokens, self.tp, self.cp, self.ep,
            self.imbalance, self.low_dispatch,
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Micro) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@dataclass(frozen=True, eq=False)
class Network:
    """Units in the order in which a token passes them: embedding, layers, MTP layers, heads."""

    kinds: tuple[Unit, ...]
    order: tuple[int, ...]


@lru_cache(maxsize=1024)
def network_units(micro: Micro, with_mtp: bool) -> Network:
    """The units of a whole network; those of a kind are the same object."""
    spec = micro.spec
    seen: dict[LayerSpec, int] = {}
    kinds: list[Unit] = []
    order: list[int] = []
    ends: dict[str, list[TrainOp]] = {}
    last = len(spec.layers) - 1
    for index, layer in enumerate(spec.layers):
        if layer not in seen or index in (0, last):
            ops = _layer_ops(micro, index, with_mtp and index == last)
            own, outside = _apart(ops)
            for name, found in outside.items():
                ends.setdefault(name, []).extend(found)
            if layer not in seen:
                seen[layer] = len(kinds)
                kinds.append(_unit(micro, layer, own))
        order.append(seen[layer])
    for name in ("embedding", "mtp", "head"):
        if name in ends:
            layer_ = spec.mtp_layers[0] if name == "mtp" else None
            kinds.append(_unit(micro, layer_, ends[name]))
            order = [len(kinds) - 1, *order] if name == "embedding" else [*order, len(kinds) - 1]
    return Network(tuple(kinds), tuple(order))


def _layer_ops(micro: Micro, index: int, with_mtp: bool) -> tuple[TrainOp, ...]:
    # Tokens of the ranks that share the experts; those of a TP group are the same, each rank sends its part.
    everyone = micro.ep * micro.tokens / micro.tp
    return training_ops(
        micro.spec, micro.tokens, micro.sequence, micro.formats, Shard(micro.tp, micro.ep), expert_tokens=everyone,
        recompute="selective", with_mtp=with_mtp, layers=(index, index + 1), imbalance=micro.imbalance,
    )  # fmt: skip


def _apart(ops: tuple[TrainOp, ...]) -> tuple[list[TrainOp], dict[str, list[TrainOp]]]:
    """A layer's own operators, and those before and behind the layers."""
    own: list[TrainOp] = []
    outside: dict[str, list[TrainOp]] = {}
    for op in ops:
        if op.name.startswith("mtp.") and "head" not in op.name:
            outside.setdefault("mtp", []).append(replace(op, name=op.name.removeprefix("mtp.")))
        elif "head" in op.name:
            outside.setdefault("head", []).append(op)
        elif op.name == "embedding":
            outside.setdefault("embedding", []).append(op)
        else:
            own.append(op)
    return own, outside


def _unit(micro: Micro, layer: LayerSpec | None, ops: list[TrainOp]) -> Unit:
    chip, hidden = micro.chip, micro.spec.hidden_size
    # Attention that gathers its keys: V3.2's behind an indexer, V4's window and compressed entries.
    sparse = layer is not None and layer.attention.kind != "mla"
    pieces = tuple(_piece(chip, op, micro.tp, sparse) for op in ops)
    if layer is None:
        return Unit(pieces, Exchange(), Exchange(), 0.5)
    part = micro.tokens / micro.tp
    experts = Exchange()
    if isinstance(layer.ffn, MoE):
        low = 1.0 if micro.low_dispatch and micro.formats.linear in _LOW else 2.0
        experts = expert_exchange(layer.ffn, hidden, chip, micro.ep, part, low)
        experts += expert_exchange(layer.ffn, hidden, chip, micro.ep, part, 2.0)
    others = tensor_exchange(hidden, chip, micro.tp, micro.tokens) * 4.0
    others += context_exchange(layer, chip, micro.tp, micro.cp, micro.tokens)
    return Unit(pieces, experts, others, 1.0)


def _piece(chip: Chip, op: TrainOp, tp: int, sparse: bool) -> Piece:
    fmt = compute_format(chip, op.format)
    peak = chip.peak(fmt).value / (8.0 if op.format == "fp32" and fmt != "fp32" else 1.0)
    bandwidth = chip.memory_bytes_per_s.value
    low = fmt in _LOW
    # With sequence parallelism what works element by element does so on its part of the tokens.
    count = op.count / (tp if op.kind == "vector" else 1)
    costs = (op.forward, op.backward_input, op.backward_weight)
    # Read in BF16, written in FP8 along rows and along columns: as many bytes as the product itself moves.
    packed = [cost.activation_bytes if low else 0.0 for cost in (op.forward, op.backward_input, op.forward)]
    if op.backward_weight.flops:
        # Gradients of weights are added to an FP32 sum: read and written once more than the operator's own write.
        packed[2] += op.forward.weight_bytes / BYTES[op.format] * 2 * BYTES["fp32"]
    gathers = op.kind == "indexer" or (op.kind == "attention" and sparse)
    f, b, w = (count * cost.flops / peak for cost in costs)
    fm, bm, wm = (count * cost.bytes / bandwidth for cost in costs)
    fx, bx, wx = (count * size / bandwidth for size in packed)
    kind = "sparse" if gathers else op.kind
    return Piece(op.name, kind, low, op.recompute.bytes > 0, (f, b, w), (fm, bm, wm), (fx, bx, wx))
