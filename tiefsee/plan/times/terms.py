"""A step as terms: ideal seconds of arithmetic and of memory for each operator, and of each collective.

Ideal means at the data sheet's peaks. `seconds` applies efficiencies: max(compute / share, memory / share) + launch
for an operator (roofline; a launch cannot be hidden between dependent operators), bytes / share + latency for a
collective (alpha-beta). Products of few rows reach less: half of the share at `half_rows`, a fifth at the least, where
kernels turn the product around. Terms do not depend on
efficiencies, so a fit evaluates them thousands of times.
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
_KIND = {"matmul": 0, "experts": 1, "attention": 2, "indexer": 2, "vector": 3}


@dataclass(frozen=True, slots=True)
class Term:
    """One operator of a step: `compute_s` and `memory_s` are ideal, of one execution. `rows` are those that each weight
    is multiplied with (0: there are no weights); `launches` are per execution."""

    name: str
    kind: int
    count: float
    compute_s: float
    memory_s: float
    rows: float = 0.0
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
        fullest = 1.0 + e.skew * self.spread
        compute = (1 / (e.matmul * share), fullest / (e.experts * share), 1 / (e.attention * share), 1.0)
        memory = (1 / e.matmul_memory, 1 / e.experts_memory, 1 / e.attention_memory, 1 / e.vector_memory)
        half = e.half_rows
        found = []
        for t in self.terms:
            few = 1.0 + half / (t.rows + half / 4) if t.rows else 1.0
            own_s = max(t.compute_s * few * compute[t.kind], t.memory_s * memory[t.kind]) + t.launches * launch_s
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
    peaks: dict[str, float] = {}
    found = []
    for op in ops:
        peak = peaks.get(op.format)
        if peak is None:
            name = compute_format(chip, op.format)
            peak = peaks[op.format] = chip.peak(name).value / (8.0 if op.format == "fp32" and name != "fp32" else 1.0)
        cost = op.cost
        # Each value of a weight takes part in two FLOPs for every row that it is multiplied with.
        rows = cost.flops / 2 / (cost.weight_bytes / BYTES[op.format]) if cost.weight_bytes else 0.0
        found.append(Term(op.name, _KIND[op.kind], op.count, cost.flops / peak, cost.bytes / bandwidth, rows))
    return tuple(found)


def transfer(name: str, count: float, num_bytes: float, link: Link, *, experts: bool = False) -> Transfer:
    return Transfer(name, count, num_bytes / link.bytes_per_s.value, link.tier == "fabric", experts)


def uneven(ep: int, num_experts: int) -> float:
    """How far the fullest of `ep` ranks lies above the mean, if one expert's load has a deviation of 1.

    A rank's load is a mean over num_experts / ep of them; the largest of n normal values is sqrt(2 ln n) above. It
    stops growing where deployments keep copies of hot experts, as wide ones do (DeepSeek-V3, section 3.4).
    256 experts: 0.36 on 8 ranks, 0.5 on 13 and more.
    """
    return min(0.5, math.sqrt(2 * math.log(ep) * ep / num_experts)) if ep > 1 else 0.0
