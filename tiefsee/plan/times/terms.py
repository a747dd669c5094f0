"""A step as terms: ideal seconds of arithmetic and of memory for each operator, and of each collective.

Ideal means at the data sheet's peaks. `seconds` applies efficiencies:

    operator     (arithmetic^knee + memory^knee)^(1/knee) + launch
    arithmetic   (FLOPs / (peak share) + feed / reuse) rows computed / rows
    collective   bytes / share + latency (alpha-beta)

`feed` is the time to bring one operand of every multiply-add from memory: caches and shared memory feed the matrix
units, and are about as much faster than memory on one chip as on another. So a chip with little arithmetic for its
bandwidth (H20) reaches more of its peak than one with much (H800): 0.88 against 0.62 in the same product (points
infersim-*-4096x1536x7168). The corner of the roofline is round; a launch cannot be hidden between dependent operators.
Rows are computed in tiles: fewer than `tile_rows` take as long as those, and of more rows half a tile is empty in the
mean. Uneven experts fill tiles before they take longer. Where few tokens reach only some of the experts, the rank with
most of those reads longest (`patchy`).

Terms do not depend on efficiencies, so a fit evaluates them thousands of times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tiefsee.hardware import Chip, Link
from tiefsee.plan.fitted.efficiency import Efficiency
from tiefsee.plan.names.formats import compute_format
from tiefsee.spec.cost import BYTES, Op

KINDS = ("matmul", "experts", "attention", "vector")
LARGEST = 0.7  # of sqrt(2 ln n), which the largest of 4 to 32 normal values falls short of
_KIND = {"matmul": 0, "experts": 1, "attention": 2, "indexer": 2, "vector": 3}


@dataclass(frozen=True, slots=True)
class Term:
    """One operator of a step: `compute_s`, `memory_s` and `feed_s` are ideal, of one execution. `rows` are those that
    each weight is multiplied with (0: there are no weights); `patchy` is how far the experts that a rank reads deviate
    from their mean, if there were one expert to a rank; `launches` are per execution."""

    name: str
    kind: int
    count: float
    compute_s: float
    memory_s: float
    feed_s: float = 0.0
    rows: float = 0.0
    patchy: float = 0.0
    launches: float = 1.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """One collective of a step: ideal seconds of its bytes on the link that it uses; `far` is across nodes.

    `experts`: it goes to the ranks of the experts, and is done when the fullest one has its tokens.
    """

    name: str
    count: float
    bytes_s: float
    far: bool
    experts: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """`spread` is how unevenly experts that are chosen at random load `ep` ranks, in units of one expert's
    unevenness (`uneven`); 0 where nothing can be uneven, or where the loads were given with the work."""

    terms: tuple[Term, ...]
    transfers: tuple[Transfer, ...]
    spread: float = 0.0

    def parts(self, e: Efficiency, *, eager: bool = False) -> dict[str, float]:
        """Seconds by operator and collective. `eager`: a prefill step, whose operators are launched one by one."""
        found: dict[str, float] = {}
        for name, own in (*self._operators(e, eager), *self._collectives(e)):
            found[name] = found.get(name, 0.0) + own
        return found

    def seconds(self, e: Efficiency, *, eager: bool = False) -> tuple[float, float]:
        """(operators, collectives)."""
        return sum([own for _, own in self._operators(e, eager)]), sum([own for _, own in self._collectives(e)])

    def _operators(self, e: Efficiency, eager: bool) -> list[tuple[str, float]]:
        share, launch_s = (e.prefill, e.launch_s * e.eager) if eager else (1.0, e.launch_s)
        compute = (1 / (e.matmul * share), 1 / (e.experts * share), 1 / (e.attention * share), 1.0)
        memory = (1 / e.matmul_memory, 1 / e.experts_memory, 1 / e.attention_memory, 1 / e.vector_memory)
        fullest = (1.0, 1.0 + e.skew * self.spread, 1.0, 1.0)
        feed, tile, knee, most = 1 / (e.reuse * share), e.tile_rows, e.knee, LARGEST * self.spread
        found = []
        for t in self.terms:
            compute_s = t.compute_s * compute[t.kind] + t.feed_s * feed
            memory_s = t.memory_s * memory[t.kind] * (1.0 + most * t.patchy)
            if t.rows:
                compute_s *= max(tile, t.rows * fullest[t.kind] + tile / 2) / t.rows
            own_s = (compute_s**knee + memory_s**knee) ** (1 / knee) + t.launches * launch_s
            found.append((t.name, t.count * own_s))
        return found

    def _collectives(self, e: Efficiency) -> list[tuple[str, float]]:
        fullest = 1.0 + e.skew * self.spread
        return [
            (x.name, x.count * (x.bytes_s * (fullest if x.experts else 1.0) / (e.far if x.far else e.near)
                                + (e.far_s if x.far else e.near_s)))
            for x in self.transfers
        ]  # fmt: skip


def terms_of(ops: Iterable[Op], chip: Chip) -> tuple[Term, ...]:
    """Ideal times of operators on a chip; formats that it lacks run in the nearest that it has."""
    bandwidth = chip.memory_bytes_per_s.value
    known: dict[tuple[str, str], tuple[float, float]] = {}
    found = []
    for op in ops:
        key = (op.format, op.kind)
        if key not in known:
            known[key] = _arithmetic(chip, op)
        peak, operand_bytes = known[key]
        cost = op.cost
        # Each value of a weight takes part in two FLOPs for every row that it is multiplied with.
        rows = cost.flops / 2 / (cost.weight_bytes / BYTES[op.format]) if cost.weight_bytes else 0.0
        feed_s = cost.flops / 2 * operand_bytes / bandwidth
        found.append(
            Term(
                op.name, _KIND[op.kind], op.count, cost.flops / peak, cost.bytes / bandwidth, feed_s, rows,
                _patchy(rows) if op.kind == "experts" else 0.0,
            )
        )  # fmt: skip
    return tuple(found)


def _patchy(rows: float) -> float:
    """sqrt((1 - p) / p) where an expert is read with probability p: the deviation over the mean of one that is read or
    not. With a mean of x tokens for each of all experts p is 1 - exp(-x) and those that are read have x / p rows, from
    which x is rows - 1 / rows within 6 %. 0.03 is one token of V3: 8 of 256."""
    x = max(rows - 1.0 / rows, 0.03)
    return math.expm1(x) ** -0.5 if x < 50 else 0.0


def _arithmetic(chip: Chip, op: Op) -> tuple[float, float]:
    """(FLOP/s, bytes of an operand that is fed to matrix units). Attention over a cache in a format that the chip
    cannot multiply dequantises to BF16."""
    lacks = op.kind == "attention" and not chip.has(op.format)
    name = compute_format(chip, "bf16" if lacks else op.format)
    peak = chip.peak(name).value / (8.0 if op.format == "fp32" and name != "fp32" else 1.0)
    return peak, 0.0 if op.kind == "vector" else BYTES[name]


def transfer(name: str, count: float, num_bytes: float, link: Link, *, experts: bool = False) -> Transfer:
    return Transfer(name, count, num_bytes / link.bytes_per_s.value, link.tier == "fabric", experts)


def uneven(ep: int, num_experts: int) -> float:
    """How far the fullest of `ep` ranks lies above the mean, if one expert's load has a deviation of 1.

    A rank's load is a mean over num_experts / ep of them; the largest of n normal values is sqrt(2 ln n) above. It
    stops growing where deployments keep copies of hot experts, as wide ones do (DeepSeek-V3, section 3.4).
    256 experts: 0.36 on 8 ranks, 0.5 on 13 and more.
    """
    return min(0.5, math.sqrt(2 * math.log(ep) * ep / num_experts)) if ep > 1 else 0.0
