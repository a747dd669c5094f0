"""A step as terms: ideal seconds of arithmetic and of memory for each operator, and of each collective.

Ideal means at the data sheet's peaks. `seconds` applies efficiencies: max(compute / share, memory / share) + launch
for an operator (roofline; a launch cannot be hidden between dependent operators), bytes / share + latency for a
collective (alpha-beta). Terms do not depend on efficiencies, so a fit evaluates them thousands of times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tiefsee.hardware import Chip, Link
from tiefsee.plan.efficiency import Efficiency
from tiefsee.plan.formats import compute_format
from tiefsee.spec.cost import Op

KINDS = ("matmul", "experts", "attention", "vector")
_KIND = {"matmul": 0, "experts": 1, "attention": 2, "indexer": 2, "vector": 3}


@dataclass(frozen=True, slots=True)
class Term:
    """One operator of a step: `compute_s` and `memory_s` are ideal, of one execution; `launches` per execution."""

    name: str
    kind: int
    count: float
    compute_s: float
    memory_s: float
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
        share, launch_s = (e.prefill, e.launch_s * e.eager) if eager else (1.0, e.launch_s)
        fullest = 1.0 + e.skew * self.spread
        compute = (e.matmul * share, e.experts * share / fullest, e.attention * share, 1.0)
        memory = (e.matmul_memory, e.experts_memory, e.attention_memory, e.vector_memory)
        found: dict[str, float] = {}
        for t in self.terms:
            own = max(t.compute_s / compute[t.kind], t.memory_s / memory[t.kind]) + t.launches * launch_s
            found[t.name] = found.get(t.name, 0.0) + t.count * own
        for x in self.transfers:
            num_bytes_s = x.bytes_s * fullest if x.experts else x.bytes_s
            own = num_bytes_s / (e.far if x.far else e.near) + (e.far_s if x.far else e.near_s)
            found[x.name] = found.get(x.name, 0.0) + x.count * own
        return found

    def seconds(self, e: Efficiency, *, eager: bool = False) -> tuple[float, float]:
        """(operators, collectives)."""
        names = {x.name for x in self.transfers}
        parts = self.parts(e, eager=eager)
        comm = sum(value for name, value in parts.items() if name in names)
        return sum(parts.values()) - comm, comm


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
        found.append(Term(op.name, _KIND[op.kind], op.count, cost.flops / peak, cost.bytes / bandwidth))
    return tuple(found)


def transfer(name: str, count: float, num_bytes: float, link: Link, *, experts: bool = False) -> Transfer:
    return Transfer(name, count, num_bytes / link.bytes_per_s.value, link.tier == "fabric", experts)


def uneven(ep: int, num_experts: int) -> float:
    """How far the fullest of `ep` ranks lies above the mean, if one expert's load has a deviation of 1.

    A rank's load is a mean over num_experts / ep of them; the largest of n normal values is sqrt(2 ln n) above.
    256 experts: 0.36 on 8 ranks, 0.93 on 32, 2.4 on 144.
    """
    return math.sqrt(2 * math.log(ep) * ep / num_experts) if ep > 1 else 0.0
