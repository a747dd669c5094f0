"""The pieces that a network is cut into, and what one micro-batch costs in each: ideal seconds, before efficiencies.

A unit is a layer, the embedding, or what stands behind the last layer (MTP and heads). Layers of a kind share one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from tiefsee.hardware import Chip
from tiefsee.plan.formats import compute_format
from tiefsee.plan.training.efficiency import TrainEfficiency
from tiefsee.plan.training.exchange import Exchange, context_exchange, expert_exchange, tensor_exchange
from tiefsee.plan.training.layout import Recompute
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import Formats, Shard, TrainOp, training_ops
from tiefsee.spec.cost.types import BYTES
from tiefsee.spec.model import LayerSpec, MoE

_LOW = ("fp8", "fp4")


@dataclass(frozen=True, slots=True)
class Piece:
    """One operator: ideal seconds of arithmetic, of its own memory traffic, and of what runs besides (quantisation, sums
    of gradients): forward, for the inputs' gradients, for the weights'. `cheap`: selective recomputation repeats it.
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


@lru_cache(maxsize=4096)
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


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one micro-batch in a unit or a stage.

    forward, backward   arithmetic: backward is recomputation and the gradients of the inputs, `weight` those of the
                        weights
    experts             all-to-all of the forward pass, `experts_back` of the backward pass (which recomputation of
                        everything doubles)
    others              TP, CP and exposed PP exchanges, likewise
    host                until the host has launched the forward pass, `host_back` the backward pass
    """

    forward: float = 0.0
    backward: float = 0.0
    weight: float = 0.0
    experts: float = 0.0
    experts_back: float = 0.0
    others: float = 0.0
    others_back: float = 0.0
    host: float = 0.0
    host_back: float = 0.0

    def __add__(self, o: Times) -> Times:
        return Times(
            self.forward + o.forward, self.backward + o.backward, self.weight + o.weight, self.experts + o.experts,
            self.experts_back + o.experts_back, self.others + o.others, self.others_back + o.others_back,
            self.host + o.host, self.host_back + o.host_back,
        )  # fmt: skip

    def __mul__(self, k: float) -> Times:
        return Times(
            self.forward * k, self.backward * k, self.weight * k, self.experts * k, self.experts_back * k,
            self.others * k, self.others_back * k, self.host * k, self.host_back * k,
        )  # fmt: skip

    # The host launches ahead while the chip works; where both take long, gaps add up a little: a soft maximum.

    @property
    def one_forward(self) -> float:
        """Alone, nothing beside it."""
        return either(self.forward + self.experts + self.others, self.host)

    @property
    def one_backward(self) -> float:
        """Gradients of the inputs, alone."""
        return either(self.backward + self.experts_back + self.others_back, self.host_back * 0.5)

    @property
    def one_weight(self) -> float:
        return either(self.weight, self.host_back * 0.5)

    @property
    def alone(self) -> float:
        """Forward and the whole backward one after the other."""
        whole_back = either(self.backward + self.weight + self.experts_back + self.others_back, self.host_back)
        return self.one_forward + whole_back

    def pair(self, tax: float) -> float:
        """Forward of one micro-batch beside the backward of another: all-to-all under arithmetic; what is longer
        stays. Communication takes `tax` of the chip meanwhile."""
        arithmetic = (self.forward + self.backward + self.weight) / (1.0 - tax)
        hidden = max(arithmetic, self.experts + self.experts_back) + self.others + self.others_back
        return min(either(hidden, self.host + self.host_back), self.alone)


def either(a: float, b: float) -> float:
    """Close to the larger of two; 19 % above it where they are equal."""
    return float((a**4 + b**4) ** 0.25)


def piece_seconds(piece: Piece, e: TrainEfficiency) -> tuple[float, float, float]:
    """Forward, inputs' gradients, weights' gradients."""
    share = {"matmul": e.matmul, "experts": e.experts, "attention": e.attention, "sparse": e.sparse}.get(piece.kind, 1.0)
    if piece.low:
        share *= e.low
    back = share * (e.attention_backward if piece.kind in ("attention", "sparse") else 1.0)
    f, b, w = (
        max(compute / own, memory / e.memory) + extra / e.memory
        for compute, memory, extra, own in zip(
            piece.compute_s, piece.memory_s, piece.extra_s, (share, back, share * e.weight), strict=True
        )
    )
    return f, b, w


def exchange_seconds(x: Exchange, e: TrainEfficiency) -> float:
    return max(x.near_s / e.near, x.far_s / e.far) + x.latency_s


def unit_times(unit: Unit, e: TrainEfficiency, recompute: Recompute) -> Times:
    """What is computed again before the backward pass counts with it; with "full" it is exchanged again as well."""
    forward = backward = weight = 0.0
    for piece in unit.pieces:
        f, b, w = piece_seconds(piece, e)
        again = f if recompute == "full" or (recompute == "selective" and piece.cheap) else 0.0
        forward, backward, weight = forward + f, backward + b + again, weight + w
    experts, others = exchange_seconds(unit.experts, e), exchange_seconds(unit.others, e)
    back, host = 2.0 if recompute == "full" else 1.0, unit.launches * e.host_layer_s
    return Times(
        forward, backward, weight, experts, experts * back, others, others * back, host, host * (1.0 + back)
    )


def operator_seconds(network: Network, e: TrainEfficiency) -> dict[str, float]:
    """Seconds of one micro-batch by operator over the whole network, all phases: what a bottleneck is named by."""
    found: dict[str, float] = {}
    for index in network.order:
        for piece in network.kinds[index].pieces:
            found[piece.name] = found.get(piece.name, 0.0) + sum(piece_seconds(piece, e))
    return found
