"""Units under efficiencies: seconds of one micro-batch, alone or beside another's.

An operator takes max(arithmetic / share, memory / share); what quantises and sums comes on top. A forward or backward
pass by itself waits for its exchanges. A forward beside a backward hides the experts' all-to-all as far as the
arithmetic is longer.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiefsee.plan.training.efficiency import TrainEfficiency
from tiefsee.plan.training.exchange import Exchange
from tiefsee.plan.training.layout import Recompute
from tiefsee.plan.training.units import Piece, Unit


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
    shares = {"matmul": e.matmul, "experts": e.experts, "attention": e.attention, "sparse": e.sparse}
    share = shares.get(piece.kind, 1.0)
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
    return Times(forward, backward, weight, experts, experts * back, others, others * back, host, host * (1.0 + back))
