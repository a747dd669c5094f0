"""What software and silicon leave of a chip's peaks in training: few numbers, fitted and stored.

They live in plan/data/training.toml with what they were fitted on and how far left-out families were off
(plan/fitting/training.py).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip
from tiefsee.plan.figures.estimate import Grade
from tiefsee.plan.names.dates import check_date, full_date
from tiefsee.plan.training.layout import Recompute, Schedule


@dataclass(frozen=True, slots=True)
class TrainEfficiency:
    """Shares are of the data sheet's peaks; times are seconds.

    matmul, experts     dense and grouped products in BF16
    low                 FP8's share over BF16's: finer scales, shorter products
    attention, sparse   scores and values forward, of all keys or of gathered ones; backward reaches
                        `attention_backward` of it
    weight              of a product's share that the same product reaches for gradients of weights: its long side is
                        the tokens, FP8 operands are transposed and quantised anew
    memory              of the memory's bandwidth, by everything element by element and by quantisation
    near, far           of the links' bandwidth, by all-to-all and rings
    overlap_tax         of the arithmetic, while communication runs beside it (V3: 20 of 132 SMs)
    host_layer_s        until the host has launched one layer's forward; backward takes twice that
    step_s              once per step: gradient norm, data, logs
    host_bytes_per_s    between a chip and its host in one direction, PCIe 5 x16 at work: states kept there, saves
    jitter              what the slowest of many ranks takes over the mean, each step
    """

    matmul: float = 0.7
    experts: float = 0.6
    low: float = 0.75
    attention: float = 0.5
    sparse: float = 0.3
    attention_backward: float = 0.8
    weight: float = 0.9
    memory: float = 0.7
    near: float = 0.8
    far: float = 0.9
    overlap_tax: float = 0.15
    host_layer_s: float = 0.5e-3
    step_s: float = 0.05
    host_bytes_per_s: float = 25e9
    jitter: float = 1.02

    def changed(self, **factors: float) -> TrainEfficiency:
        """Each named field times its factor."""
        return replace(self, **{name: getattr(self, name) * factor for name, factor in factors.items()})

    def scaled(self, arithmetic: float, host: float, low: float) -> TrainEfficiency:
        """What a generation of chips, or a stack, makes of it."""
        return self.changed(**dict.fromkeys(ARITHMETIC, arithmetic), host_layer_s=host, low=low)

    def slower(self, k: float) -> TrainEfficiency:
        """Every clock k times slower; shares stay."""
        return self.changed(host_layer_s=k, step_s=k, host_bytes_per_s=1 / k)


FIELDS = tuple(f.name for f in fields(TrainEfficiency))
LARGER = 4  # a cluster of more than this times the largest that was seen is not like those
ARITHMETIC = ("matmul", "experts", "attention", "sparse")


@dataclass(frozen=True)
class Generation:
    """Chips that reach a like share of their peaks. A chip that is in none is taken to be of its vendor's `default`.

    `power`: by chip, the share of its peak that its power allows in long runs; 1 where it is not listed. `sparse`:
    factor on attention over gathered keys; `sparse_seen`: whether runs with such attention were fitted.
    """

    name: str
    vendor: str
    chips: tuple[str, ...]
    default: bool
    arithmetic: float
    low: float
    sparse: float
    sparse_seen: bool
    power: Mapping[str, float]


@dataclass(frozen=True)
class Stack:
    """A training software: factors on arithmetic and on the host's work, and two habits.

    overlap         hides the experts' all-to-all where the schedule allows it
    low_dispatch    sends tokens to experts in FP8 when it trains in FP8
    seen            chips that it was fitted on, and the largest number of them
    default_for     chips that it is taken for where no stack is named
    schedules       of a pipeline that it has; the first is taken where a layout names none
    recompute       what a layout of this stack that does not say recomputes; None: the least that fits
    before          (ISO date, stack): what a run before that date used
    """

    name: str
    arithmetic: float
    host: float
    overlap: bool
    low_dispatch: bool
    seen: Mapping[str, int]
    default_for: tuple[str, ...]
    aliases: tuple[str, ...]
    about: str
    schedules: tuple[Schedule, ...]
    recompute: Recompute | None = None
    before: tuple[str, str] | None = None


@dataclass(frozen=True)
class TrainCalibration:
    """`spread`: the 80 % range as a factor (high / value) by grade."""

    base: TrainEfficiency
    generations: tuple[Generation, ...]
    stacks: Mapping[str, Stack]
    spread: Mapping[Grade, float]
    fitted_on: str

    def stack(self, name: str | None, chip: Chip, date: str | None = None) -> Stack:
        """None: the stack that the chip is known by, else "today", a good one of its vendor's. Raises ConfigError."""
        check_date(date)
        if name is None:
            known = (stack for stack in self.stacks.values() if chip.name in stack.default_for)
            found = next(known, self.stacks["today"])
        else:
            key = name.lower().replace("_", "-").replace(" ", "-")
            named = [stack for stack in self.stacks.values() if key == stack.name or key in stack.aliases]
            if not named:
                raise ConfigError(f"training stack is {name!r}; known are {', '.join(sorted(self.stacks))}")
            found = named[0]
        if date is not None and found.before is not None and full_date(date) < found.before[0]:
            return self.stacks[found.before[1]]
        return found

    def generation(self, chip: Chip) -> Generation | None:
        named = next((g for g in self.generations if chip.name in g.chips), None)
        return named or next((g for g in self.generations if g.default and g.vendor == chip.vendor), None)

    def of(self, chip: Chip, stack: Stack) -> TrainEfficiency:
        generation = self.generation(chip)
        if generation is None:
            return self.base.scaled(stack.arithmetic, stack.host, 1.0)
        own = generation.arithmetic * generation.power.get(chip.name, 1.0)
        return self.base.scaled(own * stack.arithmetic, stack.host, generation.low).changed(sparse=generation.sparse)

    def grade(self, chip: Chip, num_chips: int, stack: Stack, sparse: bool) -> Grade:
        """How near to what was fitted a run is. `sparse`: the model attends over gathered keys."""
        if chip.is_announced_only:
            return "rumour"
        generation = self.generation(chip)
        largest = stack.seen.get(
            chip.name, stack.seen.get(chip.name.removesuffix("-die"), 0) * (2 if chip.per == "die" else 1)
        )
        if num_chips <= LARGER * largest and (not sparse or (generation is not None and generation.sparse_seen)):
            return "measured"
        return "fitted" if generation is not None and chip.name in generation.chips else "datasheet"


def calibration_of(table: Mapping[str, Any]) -> TrainCalibration:
    """From the contents of data/training.toml."""
    generations = tuple(
        Generation(
            name=name, vendor=item["vendor"], chips=tuple(item["chips"]), default=bool(item.get("default", False)),
            arithmetic=item["arithmetic"], low=item["low"], sparse=item["sparse"], sparse_seen=item["sparse_seen"],
            power=item["power"],
        )
        for name, item in table["generations"].items()
    )  # fmt: skip
    stacks = {
        name: Stack(
            name=name, arithmetic=item["arithmetic"], host=item["host"], overlap=item["overlap"],
            low_dispatch=item["low_dispatch"], seen=item["seen"], default_for=tuple(item["default_for"]),
            aliases=tuple(item["aliases"]), about=item["about"], schedules=tuple(item["schedules"]),
            recompute=item.get("recompute"), before=tuple(item["before"]) if "before" in item else None,
        )
        for name, item in table["stacks"].items()
    }  # fmt: skip
    return TrainCalibration(TrainEfficiency(**table["base"]), generations, stacks, table["spread"], table["fitted_on"])


@cache
def training_calibration() -> TrainCalibration:
    """What the package ships."""
    return calibration_of(tomllib.loads(resources.files("tiefsee.plan").joinpath("data/training.toml").read_text()))
