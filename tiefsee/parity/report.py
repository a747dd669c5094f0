"""What a comparison found: `Report`, plain data with a verdict. No torch; goes to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

REPORT_VERSION = 1
# Operators that are made of others, unless a backend has them in one piece.
MADE_OF = {
    "route": {"router_scores", "select_experts", "expert_weights"}, "pick_keys": {"index_scores", "select_entries"},
}  # fmt: skip


@dataclass(frozen=True)
class OperatorResult:
    """All calls of one operator in one number format, on the inputs that the reference had.

    `worst_error` and `median_error` are of rows; `num_wrong_picks` counts rows that chose otherwise and for no near
    tie; `failure` is what the operator raised. `site` is where the worst was found.
    """

    operator: str
    format: str
    num_calls: int
    num_rows: int
    worst_error: float
    median_error: float
    tolerance: float
    site: str
    num_different_picks: int = 0
    num_wrong_picks: int = 0
    failure: str | None = None

    @property
    def passed(self) -> bool:
        return self.failure is None and self.worst_error <= self.tolerance and self.num_wrong_picks == 0

    @property
    def badness(self) -> float:
        """For an order: how many times the tolerance."""
        if self.failure is not None:
            return float("inf")
        return max(self.worst_error / self.tolerance, 1.0 + self.num_wrong_picks if self.num_wrong_picks else 0.0)


@dataclass(frozen=True)
class Check:
    """One figure of the whole model against its limit; `at_least` says on which side of it is right."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class PromptResult:
    """One prompt end to end. `checks` decide; the rest is for reading.

    The reference's choices given: "logits", relative error of the median position; "KL", mean in nats; "best token",
    share of positions where it is the same, among those where it leads. Freely: "experts", "entries", share of the
    picks that both made; `first_divergence`, where the continuation by the largest logit parts.
    """

    name: str
    num_tokens: int
    checks: tuple[Check, ...]
    worst_error: float
    worst_kl: float
    free_top1: float
    first_divergence: int | None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class Report:
    """`reference` and `device` describe the two sides; `notes` are what a reader must know to judge; `failure` says
    why the prompts could not be run at all."""

    model: str
    reference: Mapping[str, Any]
    device: Mapping[str, Any]
    format: str
    operators: tuple[OperatorResult, ...]
    prompts: tuple[PromptResult, ...]
    notes: tuple[str, ...] = ()
    failure: str | None = None
    version: int = field(default=REPORT_VERSION)

    @property
    def passed(self) -> bool:
        return self.failure is None and not self.blamed and all(p.passed for p in self.prompts)

    @property
    def blamed(self) -> tuple[OperatorResult, ...]:
        """Operators that are too far off by themselves, the worst first; of those made of others the parts alone."""
        wrong = {o.operator for o in self.operators if not o.passed}
        named = [o for o in self.operators if not o.passed and not MADE_OF.get(o.operator, set()) & wrong]
        return tuple(sorted(named, key=lambda o: -o.badness))

    def verdict(self) -> str:
        """One sentence."""
        if self.passed:
            return f"the same model: every operator and every prompt is within the limits of {self.format}"
        if self.blamed:
            first = self.blamed[0]
            what = first.failure or (
                f"{first.num_wrong_picks} wrong picks" if first.num_wrong_picks
                else f"a row is off by {first.worst_error:.2g}, allowed {first.tolerance:.2g}"
            )  # fmt: skip
            names = ", ".join(dict.fromkeys(o.operator for o in self.blamed))
            return f"not the same: {names}; the worst at {first.site or 'the top'}: {what}"
        if self.failure is not None:
            return f"the prompts cannot be run: {self.failure}"
        failed = [f"{c.name} {c.value:.3g}" for p in self.prompts for c in p.checks if not c.passed]
        return (
            "not the same, though every operator that was looked at is: something between them (cache, order of steps, "
            f"a layer that was not looked at); {', '.join(failed[:3])}"
        )

    def to_json(self) -> dict[str, Any]:
        """All of it and the verdict, for `json.dumps`; an error that is not finite is the text "inf"."""
        facts = {
            **asdict(self),
            "passed": self.passed,
            "verdict": self.verdict(),
            "blamed": list(dict.fromkeys(o.operator for o in self.blamed)),
        }
        for operator, result in zip(facts["operators"], self.operators, strict=True):
            operator["passed"] = result.passed
        for prompt, judged in zip(facts["prompts"], self.prompts, strict=True):
            prompt["passed"] = judged.passed
        return _finite(facts)  # type: ignore[no-any-return]


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return "inf"
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
