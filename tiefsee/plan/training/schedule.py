"""Pipeline schedules: how long a flush of m micro-batches through p stages takes, and in which parts.

Parts are named as in table 4 of "Insights into DeepSeek-V3" (ISCA 2025): time in which a rank runs a forward alone
(1F), a backward for inputs alone (1B), for weights alone (1W), a forward beside a backward (1F1B), and waits (bubble).

bubbles, from DeepSeek-V3's report, table 2, and Megatron-LM (arXiv 2104.04473, section 2.2):
1F1B         (p - 1) (F + B)              interleaved  (p - 1) / v (F + B), v stages on each rank
zero-bubble  (p - 1) (F + B - 2 W)        DualPipe     (p/2 - 1) (F&B + B - 3 W)
B is a whole backward, W its part for the weights, F&B a forward beside a backward. Whatever the slowest rank takes
longer than the mean is waiting too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiefsee.errors import ConfigError
from tiefsee.plan.training.layout import TrainLayout
from tiefsee.plan.training.times import Times


@dataclass(frozen=True, slots=True)
class Timeline:
    """Seconds of one flush on the mean rank; they add up to `total`."""

    forward: float
    backward: float
    weight: float
    pair: float
    bubble: float
    imbalance: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.weight + self.pair + self.bubble + self.imbalance


def timeline(ranks: Sequence[Times], layout: TrainLayout, micro_batches: int, overlap: bool, tax: float) -> Timeline:
    """`ranks`: one micro-batch on each rank, all its stages together. Raises ConfigError."""
    mean = sum(ranks[1:], ranks[0]) * (1.0 / len(ranks))
    parts = [_busy(times, layout, micro_batches, overlap, tax) for times in (mean, *ranks)]
    own = parts[0]
    slowest = max(sum(each) for each in parts[1:])
    bubble = max(0.0, _bubble(mean, layout, overlap, tax))
    return Timeline(*own, bubble=bubble, imbalance=max(0.0, slowest - sum(own)))


def _busy(
    t: Times, layout: TrainLayout, m: int, overlap: bool, tax: float
) -> tuple[float, float, float, float]:  # fmt: skip
    """(1F, 1B, 1W, 1F1B) of one rank."""
    pair = t.pair(tax) if overlap else t.alone
    if layout.schedule == "dualpipe":
        half = layout.pp // 2
        if m < 2 * layout.pp:
            raise ConfigError(
                f"DualPipe over pp {layout.pp} needs {2 * layout.pp} micro-batches or more (its README); a replica has "
                f"{m}: take fewer stages, smaller micro-batches, fewer replicas or schedule zero-bubble"
            )
        # Of the eight steps of its schedule, counted over the ranks: see deepseek-ai/DualPipe, dualpipe.py.
        h = (half - 1) / 2
        alone, apart = 3 * half - 1 - h, 2 * half - 1 - h
        joined = (alone - apart) * t.one_weight  # backwards that are not split
        return alone * t.one_forward, alone * t.one_backward + joined, apart * t.one_weight, (m - alone) * pair
    warm = _warm(layout, m)
    weight = t.one_weight if layout.schedule == "zero-bubble" else 0.0
    back = max(0.0, t.alone - t.one_forward - weight)
    return warm * t.one_forward, warm * back, warm * weight, (m - warm) * pair


def _warm(layout: TrainLayout, m: int) -> float:
    """Micro-batches that a rank runs forward before its first backward, in the mean over ranks."""
    p, v = layout.pp, layout.virtual
    if p == 1:
        return min(1.0, float(m))
    return min(float(m), (p - 1 + (v - 1) * p) / v if v > 1 else (p - 1) / 2)


def _bubble(t: Times, layout: TrainLayout, overlap: bool, tax: float) -> float:
    p = layout.pp
    if p == 1:
        return 0.0
    if layout.schedule == "dualpipe":
        pair = t.pair(tax) if overlap else t.alone
        return (p / 2 - 1) * (pair + t.one_backward + t.one_weight - 3 * t.one_weight)
    if layout.schedule == "zero-bubble":
        return (p - 1) * (t.one_forward + t.one_backward - t.one_weight)
    return (p - 1) / layout.virtual * t.alone
