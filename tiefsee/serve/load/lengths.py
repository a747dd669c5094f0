"""How long prompts and answers are: a constant, or drawn from a distribution."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from tiefsee.errors import ConfigError

FORMS = "N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA"


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens, drawn one by one.

    constant   first
    uniform    first .. second, both included
    lognormal  median first, standard deviation of the logarithm second
    """

    kind: str
    first: float
    second: float = 0.0

    @classmethod
    def parse(cls, text: str, option: str) -> Lengths:
        """`1024`, `uniform:100:900`, `lognormal:800:0.6`; ConfigError for anything else."""
        kind, *numbers = text.split(":") if ":" in text else ("constant", text)
        try:
            found = cls(kind, *(float(number) for number in numbers))
        except (ValueError, TypeError):
            found = cls("", 0)
        needed = {"constant": 1, "uniform": 2, "lognormal": 2}.get(found.kind)
        fits = needed == len(numbers) and 1 <= found.first < math.inf and 0 <= found.second < math.inf
        if not fits or (found.kind == "uniform" and found.second < found.first):
            raise ConfigError(f"{option} is {text!r}; needed is {FORMS}, of at least one token")
        return found

    def draw(self, chance: random.Random) -> int:
        if self.kind == "uniform":
            return chance.randint(round(self.first), round(self.second))
        if self.kind == "lognormal":
            return max(1, round(chance.lognormvariate(math.log(self.first), self.second)))
        return round(self.first)

    def __str__(self) -> str:
        numbers = [self.first] if self.kind == "constant" else [self.first, self.second]
        return ":".join([*([] if self.kind == "constant" else [self.kind]), *(f"{n:g}" for n in numbers)])
