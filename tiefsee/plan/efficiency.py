"""What software and silicon leave of a chip's peaks: few numbers, each with a physical meaning, fitted and stored.

They live in data/efficiency.toml with what they were fitted on. Peaks and efficiencies are never mixed: a chip's
figure is in the catalogue, the share of it that is reached is here.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from typing import Any

from tiefsee.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares are of the peak, between 0 and 1 or little above (a peak is a data sheet's); times are seconds.

    launch_s       between two dependent operators of one step: launch, tail, the gap of a graph
    step_s         once per step: scheduling, sampling, the host
    near_s, far_s  once per collective inside a node or supernode, and across nodes
    prefill        share of the arithmetic's efficiency that prefill steps reach (no graph, ragged batches)
    eager          launches of a prefill step against those of a captured decode step
    interleave     how much longer a prefill between decode steps takes than alone (aggregated serving)
    request_s      what a request waits that no model step explains: the front, the tokenizer, the first schedule
    waves          requests of a closed loop come in waves: the part of the others' prefills that one waits for
    """

    matmul: float = 0.65
    experts: float = 0.5
    attention: float = 0.6
    matmul_memory: float = 0.6
    experts_memory: float = 0.8
    attention_memory: float = 0.65
    vector_memory: float = 0.5
    launch_s: float = 5e-6
    step_s: float = 1e-3
    near: float = 0.4
    far: float = 0.8
    near_s: float = 1e-5
    far_s: float = 3e-5
    prefill: float = 0.6
    eager: float = 3.0
    interleave: float = 1.5
    request_s: float = 0.1
    waves: float = 0.2

    def changed(self, **factors: float) -> Efficiency:
        """Each named field times its factor."""
        return replace(self, **{name: getattr(self, name) * factor for name, factor in factors.items()})


FIELDS = tuple(f.name for f in fields(Efficiency))


@dataclass(frozen=True)
class Calibration:
    """The base, what vendors and stacks change of it, and how far predictions were off where nothing was fitted.

    `spread` is the 80 % range as a factor (high / value) by grade: measured, fitted, datasheet, rumour.
    """

    base: Efficiency
    vendors: dict[str, dict[str, float]]
    stacks: dict[str, dict[str, Any]]
    spread: dict[str, dict[str, float]]
    fitted_on: str

    def of(self, vendor: str, stack: str | None) -> Efficiency:
        """The efficiencies of a vendor's chips under a stack; None is a good stack of today."""
        found = self.base.changed(**self.vendors.get(vendor, {}))
        if stack is None:
            return found
        if stack not in self.stacks:
            raise ConfigError(f"stack is {stack!r}; known are {', '.join(sorted(self.stacks))} (docs/plan.md)")
        factors = {name: value for name, value in self.stacks[stack].items() if name in FIELDS}
        return found.changed(**factors)

    def stack_names(self) -> tuple[str, ...]:
        return tuple(sorted(self.stacks))


def read_calibration(text: str) -> Calibration:
    table = tomllib.loads(text)
    return Calibration(
        Efficiency(**table["base"]), table.get("vendors", {}), table.get("stacks", {}), table["spread"],
        table["fitted_on"],
    )  # fmt: skip


@cache
def calibration() -> Calibration:
    """What the package ships."""
    return read_calibration(resources.files(__package__).joinpath("data/efficiency.toml").read_text())
