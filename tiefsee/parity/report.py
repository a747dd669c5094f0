"""What a comparison found: `Report`, plain data with a verdict. No torch; goes to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tiefsee.parity.tolerances import CHANNEL_FACTOR, SCALE_FACTOR

REPORT_VERSION = 2
# Operators that are made of others, unless a backend has them in one piece.
MADE_OF = {
    "route": {"router_scores", "select_experts", "expert_weights"}, "pick_keys": {"index_scores", "select_entries"},
}  # fmt: skip


@dataclass(frozen=True)
class OperatorResult:
    """All calls of one operator in one number format, on the inputs that the reference had.

    `worst_error` and `median_error` are of rows, `worst_channel` of channels, `scale_error` of an output as a whole;
    `num_wrong_picks` counts rows that chose otherwise and for no near tie; `failure` is what the operator raised.
    `site` is where the worst was found.
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
    worst_channel: float = 0.0
    scale_error: float = 0.0

    @property
    def passed(self) -> bool:
        return self.badness <= 1.0

    @property
    def badness(self) -> float:
        """How many times the tolerance the worst figure is."""
        if self.failure is not None:
            return float("inf")
        picks = 1.0 + self.num_wrong_picks if self.num_wrong_picks else 0.0
        return max(picks, *(value / limit for _, value, limit in self.figures))

    @property
    def figures(self) -> tuple[tuple[str, float, float], ...]:
        """(what is off, by how much, how much is allowed)"""
        return (
            ("a row", self.worst_error, self.tolerance),
            ("a channel", self.worst_channel, CHANNEL_FACTOR * self.tolerance),
            ("all together", self.scale_error, SCALE_FACTOR * self.tolerance),
        )

    @property
    def said(self) -> str:
        """What is wrong with it."""
        if self.failure is not None:
            return self.failure
        if self.num_wrong_picks:
            return f"{self.num_wrong_picks} wrong picks"
        what, value, limit = max(self.figures, key=lambda f: f[1] / f[2])
        return f"{what} is off by {value:.2g}, allowed {limit:.2g}"


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
    share of positions where it is the same, among those where it leads; "worst logits", "worst KL", of the worst
    position; the same of what the MTP layer says, with
    "draft" before it. Freely: "experts", "entries", share of the picks that both made; `first_divergence`, where the
    continuation by the largest logit parts; `draft_top1`, share of drafts that are the same; `is_equal`: all logits are
    the reference's, bit by bit.
    """

    name: str
    num_tokens: int
    checks: tuple[Check, ...]
    free_top1: float
    first_divergence: int | None
    is_equal: bool = False
    draft_top1: float | None = None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class Drafted:
    """How many drafts were verified in a run, and how many of them were right."""

    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Report:
    """`reference` and `device` describe the two sides; `notes` are what a reader must know to judge; `failure` says
    why the prompts could not be run at all.

    `unlike_settings` are numbers of the two config.json that differ. `parts_at` says where the prompts part from the
    reference, layer by layer, if they do. `reference_drafted` and `device_drafted` are None where the MTP layer was not
    compared. `control`: both sides are the same, so they must be equal bit by bit.
    """

    model: str
    reference: Mapping[str, Any]
    device: Mapping[str, Any]
    format: str
    operators: tuple[OperatorResult, ...]
    prompts: tuple[PromptResult, ...]
    notes: tuple[str, ...] = ()
    failure: str | None = None
    unlike_settings: tuple[str, ...] = ()
    parts_at: str | None = None
    reference_drafted: Drafted | None = None
    device_drafted: Drafted | None = None
    control: bool = False
    version: int = field(default=REPORT_VERSION)

    @property
    def passed(self) -> bool:
        return self.is_within_limits and (self.is_equal or not self.control)

    @property
    def is_within_limits(self) -> bool:
        whole = self.failure is None and not self.unlike_settings
        return whole and not self.blamed and all(p.passed for p in self.prompts)

    @property
    def is_equal(self) -> bool:
        """Whether all logits are equal bit by bit, and all picks."""
        picks = [c.value for p in self.prompts for c in p.checks if c.name.endswith(("experts", "entries"))]
        return bool(self.prompts) and all(p.is_equal for p in self.prompts) and all(share == 1.0 for share in picks)

    @property
    def blamed(self) -> tuple[OperatorResult, ...]:
        """Operators that are too far off by themselves, the worst first; of those made of others the parts alone."""
        wrong = {o.operator for o in self.operators if not o.passed}
        named = [o for o in self.operators if not o.passed and not MADE_OF.get(o.operator, set()) & wrong]
        return tuple(sorted(named, key=lambda o: -o.badness))

    def verdict(self) -> str:
        """One sentence."""
        if self.passed and self.is_equal:
            return "equal: all logits and picks of all prompts are the same bit by bit"
        if self.passed:
            return f"the same model: every operator and every prompt is within the limits of {self.format}"
        if self.is_within_limits:
            return "within the limits, but a device is not equal to itself: its operators are not deterministic"
        if self.unlike_settings:
            more = f" and {len(self.unlike_settings) - 3} more" if len(self.unlike_settings) > 3 else ""
            return f"not the same: two unlike config.json: {'; '.join(self.unlike_settings[:3])}{more}"
        if self.blamed:
            first = self.blamed[0]
            names = ", ".join(dict.fromkeys(o.operator for o in self.blamed))
            return f"not the same: {names}; the worst at {first.site or 'the top'}: {first.said}"
        if self.failure is not None:
            return f"the prompts cannot be run: {self.failure}"
        failed = [c for p in self.prompts for c in p.checks if not c.passed]
        figures = ", ".join(f"{c.name} {c.value:.3g}" for c in failed[:3])
        place = f"; they part at {self.parts_at}" if self.parts_at else ""
        if all(c.name.startswith("draft") for c in failed):
            return f"not the same: the decoder is, the MTP layer drafts otherwise ({figures}){place}"
        return (
            "not the same, though every operator that was looked at is: something between them (cache, order of steps, "
            f"a layer that was not looked at; {figures}){place}"
        )

    def to_json(self) -> dict[str, Any]:
        """All of it and the verdict, for `json.dumps`; an error that is not finite is the text "inf"."""
        facts = {
            **asdict(self),
            "passed": self.passed,
            "equal": self.is_equal,
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
