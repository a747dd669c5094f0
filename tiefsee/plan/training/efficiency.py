"""What software and silicon leave of a chip's peaks in training: few numbers, fitted and stored.

They live in ../data/training.toml with what they were fitted on and how far left-out families were off (fit.py).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.plan.estimate import Grade


@dataclass(frozen=True, slots=True)
class TrainEfficiency:
    """Shares are of the data sheet's peaks; times are seconds.

    matmul, experts     dense and grouped products in BF16
    low                 FP8's share over BF16's: finer scales, shorter products
    attention, sparse   scores and values forward, of all keys or of gathered ones; backward reaches
                        `attention_backward` of it
    memory              of the memory's bandwidth, by everything element by element and by quantisation
    near, far           of the links' bandwidth, by all-to-all and rings
    overlap_tax         of the arithmetic, while communication runs beside it (V3: 20 of 132 SMs)
    host_layer_s        until the host has launched one layer's forward; backward takes twice that
    step_s              once per step: gradient norm, data, logs
    jitter              what the slowest of many ranks takes over the mean, each step
    """

    matmul: float = 0.7
    experts: float = 0.6
    low: float = 0.75
    attention: float = 0.5
    sparse: float = 0.25
    attention_backward: float = 0.8
    memory: float = 0.7
    near: float = 0.8
    far: float = 0.9
    overlap_tax: float = 0.15
    host_layer_s: float = 0.5e-3
    step_s: float = 0.05
    jitter: float = 1.02

    def changed(self, factors: Mapping[str, float]) -> TrainEfficiency:
        """Each named field times its factor."""
        return replace(self, **{name: getattr(self, name) * factor for name, factor in factors.items()})

    def slower(self, k: float) -> TrainEfficiency:
        """Every clock k times slower; shares stay."""
        return replace(self, host_layer_s=self.host_layer_s * k, step_s=self.step_s * k)


FIELDS = tuple(f.name for f in fields(TrainEfficiency))


@dataclass(frozen=True)
class Stack:
    """A training software: factors on the efficiencies, and two habits.

    overlap         hides the experts' all-to-all where the schedule allows it
    low_dispatch    sends tokens to experts in FP8 when it trains in FP8
    """

    name: str
    factors: Mapping[str, float]
    overlap: bool
    low_dispatch: bool
    seen: tuple[str, ...]
    aliases: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class TrainCalibration:
    """`spread`: the 80 % range as a factor (high / value) by grade. `seen`: chips with rows in the fit."""

    base: TrainEfficiency
    vendors: Mapping[str, Mapping[str, float]]
    stacks: Mapping[str, Stack]
    spread: Mapping[str, float]
    seen: tuple[str, ...]
    fitted_on: str

    def stack(self, name: str | None) -> Stack:
        """None is "today": the best stack that a vendor's chips are known to run."""
        key = "today" if name is None else name.lower().replace("_", "-").replace(" ", "-")
        for stack in self.stacks.values():
            if key == stack.name or key in stack.aliases:
                return stack
        raise ConfigError(f"training stack is {name!r}; known are {', '.join(sorted(self.stacks))} (docs/training_plan.md)")

    def of(self, vendor: str, stack: str | None) -> TrainEfficiency:
        own = self.base.changed(self.vendors.get(vendor, {}))
        return own.changed(self.stack(stack).factors)

    def grade(self, chip: str, vendor: str, stack: str | None, announced: bool) -> Grade:
        """How near to what was fitted a run is: chip and stack, the chip's vendor, or nothing."""
        if announced:
            return "rumour"
        found = self.stack(stack)
        if chip in found.seen or (found.name == "today" and chip in self.seen):
            return "measured"
        return "fitted" if vendor in {"nvidia", "huawei"} else "datasheet"


def read_training(text: str) -> TrainCalibration:
    table: dict[str, Any] = tomllib.loads(text)
    stacks = {
        name: Stack(
            name, {k: float(v) for k, v in item.items() if k in FIELDS}, bool(item.get("overlap", False)),
            bool(item.get("low_dispatch", False)), tuple(item.get("seen", ())), tuple(item.get("aliases", ())),
            str(item.get("source", "")),
        )  # fmt: skip
        for name, item in table["stacks"].items()
    }
    seen = tuple(dict.fromkeys(chip for stack in stacks.values() for chip in stack.seen))
    return TrainCalibration(
        TrainEfficiency(**table["base"]), table.get("vendors", {}), stacks, table["spread"], seen, table["fitted_on"]
    )


@cache
def training_calibration() -> TrainCalibration:
    """What the package ships."""
    return read_training(resources.files("tiefsee.plan").joinpath("data/training.toml").read_text())
