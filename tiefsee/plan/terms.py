"""A step as terms: ideal seconds of arithmetic and of memory for each operator, and of each collective.

Ideal means at the data sheet's peaks. `seconds` applies efficiencies: max(compute / share, memory / share) + launch
for an operator (roofline; a launch cannot be hidden between dependent operators), bytes / share + latency for a
collective (alpha-beta). Terms do not depend on efficiencies, so a fit evaluates them thousands of times.
"""

from __future__ import annotations

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
    """One collective of a step: ideal seconds of its bytes on the link that it uses; `far` is across nodes."""

    name: str
    count: float
    bytes_s: float
    far: bool


@dataclass(frozen=True, slots=True)
class Step:
    terms: tuple[Term, ...]
    transfers: tuple[Transfer, ...]

    def parts(self, e: Efficiency, *, eager: bool = False) -> dict[str, float]:
        """Seconds by operator and collective. `eager`: a prefill step, whose operators are launched one by one."""
        share, launch_s = (e.prefill, e.launch_s * e.eager) if eager else (1.0, e.launch_s)
        compute = (e.matmul * share, e.experts * share, e.attention * share, 1.0)
        memory = (e.matmul_memory, e.experts_memory, e.attention_memory, e.vector_memory)
        found: dict[str, float] = {}
        for t in self.terms:
            own = max(t.compute_s / compute[t.kind], t.memory_s / memory[t.kind]) + t.launches * launch_s
            found[t.name] = found.get(t.name, 0.0) + t.count * own
        for x in self.transfers:
            own = x.bytes_s / (e.far if x.far else e.near) + (e.far_s if x.far else e.near_s)
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


def transfer(name: str, count: float, num_bytes: float, link: Link) -> Transfer:
    return Transfer(name, count, num_bytes / link.bytes_per_s.value, link.tier == "fabric")
