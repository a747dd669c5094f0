"""What software and silicon leave of a chip's peaks: few numbers, each with a physical meaning, fitted and stored.

They live in data/efficiency.toml with what they were fitted on. Peaks and efficiencies are never mixed: a chip's
figure is in the catalogue, the share of it that is reached is here.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import resources

from tiefsee.errors import ConfigError
from tiefsee.plan.names.dates import years_after
from tiefsee.plan.names.stacks import STACKS


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares are of the peak, between 0 and 1 or little above (a peak is a data sheet's); times are seconds.

    launch_s       between two dependent operators of one step: launch, tail, the gap of a graph
    step_s         once per step: scheduling, sampling, the host
    near_s, far_s  once per collective inside a node or supernode, and across nodes
    tile_rows      rows that a product computes at least, and half of which it computes too many in the mean
    reuse          multiply-adds for each value that memory could bring in: how much caches multiply its bandwidth
    knee           how arithmetic and memory share an operator's time: (a^k + m^k)^(1/k); 1 is one after the other, a
                   large one what a roofline draws
    prefill        the arithmetic's efficiency in prefill steps over that in decode steps of as many rows
    eager          launches of a prefill step against those of a captured decode step
    overlapped     how much longer operators take while a collective runs beside them (two-batch overlap)
    interleave     how much longer a prefill between decode steps takes than alone (aggregated serving)
    lockstep       data-parallel groups step together: how far a prompt of one stops the others (0: prompts of all
                   groups always come together, 1: never)
    skew           deviation of one expert's load from the mean, where copies of hot experts do not even it out
    request_s      what a request waits that no model step explains: the network, the tokenizer, the first schedule
    front_s        of that, what is done for one request after the other
    first_steps    decode steps until the first token is sent: engines under load schedule, and send tokens, in bunches
    gather_steps   the same on top where data-parallel groups of a worker wait for one another's prompts
    burst          requests of a benchmark come in bunches, all at once at first: the share of all prompts' prefills
                   that one waits for in the mean, beyond the queue of arrivals at random
    """

    matmul: float = 0.85
    experts: float = 0.8
    attention: float = 0.7
    matmul_memory: float = 0.6
    experts_memory: float = 0.8
    attention_memory: float = 0.65
    vector_memory: float = 0.6
    launch_s: float = 5e-6
    step_s: float = 1e-3
    near: float = 0.6
    far: float = 0.6
    near_s: float = 1e-5
    far_s: float = 3e-5
    tile_rows: float = 64.0
    reuse: float = 600.0
    knee: float = 1.5
    prefill: float = 1.0
    eager: float = 2.5
    overlapped: float = 1.15
    interleave: float = 1.0
    lockstep: float = 0.5
    skew: float = 0.7
    request_s: float = 0.05
    front_s: float = 0.01
    first_steps: float = 10.0
    gather_steps: float = 10.0
    burst: float = 0.08

    def steps_until_sent(self, dp: int, *, aggregated: bool) -> float:
        return self.first_steps + (self.gather_steps if aggregated and dp > 1 else 0.0)

    def changed(self, factors: Mapping[str, float]) -> Efficiency:
        """Each named field times its factor."""
        return replace(self, **{name: getattr(self, name) * factor for name, factor in factors.items()})


FIELDS = tuple(f.name for f in fields(Efficiency))
# What becomes faster as a stack matures: everything that is not arithmetic.
OVERHEADS = ("launch_s", "step_s", "near_s", "far_s")


@dataclass(frozen=True)
class Stack:
    """A serving engine: factors on the base, and how fast its overheads shrank around `Calibration.reference`."""

    factors: Mapping[str, float] = field(default_factory=dict)
    improvement_per_year: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """The base, what vendors and stacks change of it, and what drafts bring where nobody says.

    `accepted` are mean accepted drafts per step by how many are made. Dates are ISO; overheads are as of `reference`.
    """

    base: Efficiency
    vendors: Mapping[str, Mapping[str, float]]
    stacks: Mapping[str, Stack]
    accepted: Mapping[int, float]
    reference: str
    fitted_on: str

    def of(self, vendor: str, stack: str | None = None, date: str | None = None) -> Efficiency:
        """The efficiencies of a vendor's chips under a stack; None is the middle of all stacks, as of the reference.

        So is a stack of docs/points.md that nothing was measured of. Raises ConfigError for any other, and for a date
        that is none.
        """
        found = self.base.changed(self.vendors.get(vendor, {}))
        if stack is None:
            return found
        known = self.stacks.get(stack, Stack())
        if stack not in self.stacks and stack not in STACKS:
            raise ConfigError(f"stack is {stack!r}; known are {', '.join(sorted({*STACKS, *self.stacks}))}")
        shrink = math.exp(-known.improvement_per_year * self.years(date))
        return found.changed(known.factors).changed(dict.fromkeys(OVERHEADS, shrink))

    def years(self, date: str | None) -> float:
        """From the reference to a date, at most one."""
        return years_after(self.reference, date)


def read_calibration(text: str) -> Calibration:
    """Raises ConfigError for a field that no efficiency has."""
    table = tomllib.loads(text)
    for part in (table["base"], *table.get("vendors", {}).values(), *(s["factors"] for s in table["stacks"].values())):
        unknown = sorted(set(part) - set(FIELDS))
        if unknown:
            raise ConfigError(f"{unknown[0]!r} is no efficiency; there are {', '.join(FIELDS)}")
    return Calibration(
        base=Efficiency(**table["base"]),
        vendors=table.get("vendors", {}),
        stacks={name: Stack(s["factors"], s["improvement_per_year"]) for name, s in table["stacks"].items()},
        accepted={int(drafts): value for drafts, value in table["accepted"].items()},
        reference=table["reference"],
        fitted_on=table["fitted_on"],
    )


def write_calibration(calibration: Calibration) -> str:
    """TOML that `read_calibration` takes, figures to four digits."""

    def section(title: str, values: Mapping[str, float]) -> list[str]:
        return [f"[{title}]", *(f"{name} = {value:.4g}" for name, value in values.items()), ""]

    lines = [
        "# Written by tiefsee.plan.fitting.calibrate. The fields are explained in plan/fitted/efficiency.py.",
        f'fitted_on = "{calibration.fitted_on}"',
        f'reference = "{calibration.reference}"',
        "",
        *section("base", {name: getattr(calibration.base, name) for name in FIELDS}),
        *section("accepted", {str(drafts): value for drafts, value in calibration.accepted.items()}),
    ]
    for name, factors in calibration.vendors.items():
        lines += section(f"vendors.{name}", factors)
    for name, stack in calibration.stacks.items():
        lines += [f"[stacks.{name}]", f"improvement_per_year = {stack.improvement_per_year:.4g}"]
        lines += section(f"stacks.{name}.factors", stack.factors)
    return "\n".join(lines)


@cache
def calibration() -> Calibration:
    """What the package ships."""
    return read_calibration(resources.files("tiefsee.plan").joinpath("data/efficiency.toml").read_text())
