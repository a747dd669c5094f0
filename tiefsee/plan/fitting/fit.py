"""Efficiencies from measurements: maximum a posteriori over logarithms, robust, with drafting inferred where unsaid.

What is fitted is small against what was measured: the base, a few factors of each stack and vendor that are drawn
to 1, what drafts bring. Deviations are Cauchy distributed, so that a run that stalled while it compiled says little.
Where nobody knows whether a run drafted, the answer that lies nearer decides, in turn with the fit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiefsee.plan.fitted.efficiency import FIELDS, Calibration, Efficiency, Stack
from tiefsee.plan.fitting.samples import Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# How far a logarithm lies off in the mean where the model is right: measurements of one configuration differ by this.
SCALE = {"tpot": 0.10, "ttft": 0.25, "prefill": 0.12}
# Deviations of the prior, of logarithms: of the base around `Efficiency()`, of a factor around 1.
BASE_SPREAD, FACTOR_SPREAD, TREND_SPREAD, ACCEPTED_SPREAD = 0.5, 0.25, 0.5, 0.3
# Bases that are known better. Products, attention, tiles and knee from kernels alone: DeepGEMM and FlashMLA on H800 and
# H20 (points deepgemm-*, flashmla-*, infersim-*).
SURE = {
    "matmul": 0.15, "experts": 0.15, "attention": 0.15, "tile_rows": 0.2, "knee": 0.15, "experts_memory": 0.1,
    "vector_memory": 0.2, "far": 0.25, "prefill": 0.15, "overlapped": 0.07, "interleave": 0.3, "skew": 0.25,
}  # fmt: skip
STACK_FIELDS = (
    "launch_s", "step_s", "near", "near_s", "far", "prefill", "eager", "interleave", "request_s", "front_s", "burst",
    "first_steps", "gather_steps",
    "experts_memory", "matmul_memory",
)  # fmt: skip
VENDOR_FIELDS = (
    "matmul", "experts", "attention", "matmul_memory", "experts_memory", "attention_memory", "launch_s", "near",
    "near_s", "prefill",
)  # fmt: skip
ACCEPTED = {1: 0.75, 2: 1.15, 3: 1.45}
UNSAID_PENALTY = 0.12  # a run is taken to have drafted only if that explains it better by this much
REFERENCE = "2026-02-01"


@dataclass(frozen=True)
class Parameter:
    """`scope` is base, trend:STACK, stack:STACK, vendor:VENDOR or accepted; values are logarithms, 0 at the prior."""

    scope: str
    name: str
    spread: float


@dataclass(frozen=True)
class Fitted:
    calibration: Calibration
    drafts: tuple[int, ...]  # of each sample, said or inferred


def parameters_of(samples: Iterable[Sample]) -> tuple[Parameter, ...]:
    stacks = sorted({s.stack for s in samples if s.stack})
    vendors = sorted({s.vendor for s in samples} - {"nvidia"})
    found = [Parameter("base", name, SURE.get(name, BASE_SPREAD)) for name in FIELDS]
    for stack in stacks:
        found += [Parameter(f"stack:{stack}", name, FACTOR_SPREAD) for name in STACK_FIELDS]
        found.append(Parameter(f"trend:{stack}", "", TREND_SPREAD))
    for vendor in vendors:
        found += [Parameter(f"vendor:{vendor}", name, FACTOR_SPREAD) for name in VENDOR_FIELDS]
    return (*found, *(Parameter("accepted", str(drafts), ACCEPTED_SPREAD) for drafts in ACCEPTED))


def calibration_at(parameters: Sequence[Parameter], x: Array | Sequence[float], fitted_on: str = "") -> Calibration:
    """The calibration that parameters stand for."""
    base = dict.fromkeys(FIELDS, 1.0)
    factors: dict[str, dict[str, float]] = {}
    trends: dict[str, float] = {}
    accepted = dict(ACCEPTED)
    for parameter, value in zip(parameters, x, strict=True):
        scope, _, who = parameter.scope.partition(":")
        if scope == "base":
            base[parameter.name] = math.exp(value)
        elif scope == "accepted":
            accepted[int(parameter.name)] *= math.exp(value)
        elif scope == "trend":
            trends[who] = float(value)
        else:
            factors.setdefault(parameter.scope, {})[parameter.name] = math.exp(value)
    return Calibration(
        base=Efficiency().changed(base),
        vendors={scope.partition(":")[2]: f for scope, f in factors.items() if scope.startswith("vendor:")},
        stacks={stack: Stack(factors[f"stack:{stack}"], trend) for stack, trend in trends.items()},
        accepted={drafts: min(value, float(drafts)) for drafts, value in accepted.items()},
        reference=REFERENCE,
        fitted_on=fitted_on,
    )


def fit(
    samples: Sequence[Sample], start: Calibration | None = None, *, rounds: int = 4, steps: int = 4, fitted_on: str = ""
) -> Fitted:
    """Fitted in `rounds` of at most `steps` Gauss-Newton steps, with drafting inferred anew before each."""
    import numpy as np

    parameters = parameters_of(samples)
    x = np.array(_logarithms(parameters, start)) if start is not None else np.zeros(len(parameters))
    weights = _weights(samples)
    drafts = infer_drafts(samples, calibration_at(parameters, x)) if start is not None else _said(samples)
    for _ in range(rounds):
        x = _minimise(samples, drafts, weights, parameters, x, steps)
        drafts = infer_drafts(samples, calibration_at(parameters, x))
    return Fitted(calibration_at(parameters, x, fitted_on), drafts)


def answers(samples: Sequence[Sample], drafts: Sequence[int], calibration: Calibration) -> list[tuple[float, ...]]:
    """The model's logarithms for every sample."""
    efficiencies: dict[tuple[str, str, str], Efficiency] = {}
    found = []
    for sample, n in zip(samples, drafts, strict=True):
        key = (sample.vendor, sample.stack, sample.date)
        if key not in efficiencies:
            stack = sample.stack if sample.stack in calibration.stacks else None
            efficiencies[key] = calibration.of(sample.vendor, stack, sample.date or None)
        found.append(sample.answer(efficiencies[key], n, accepted_of(sample, n, calibration)))
    return found


def accepted_of(sample: Sample, drafts: int, calibration: Calibration) -> float:
    return sample.accepted if sample.accepted is not None else calibration.accepted.get(drafts, 0.0)


def infer_drafts(samples: Sequence[Sample], calibration: Calibration) -> tuple[int, ...]:
    """How many drafts each run made: as said, or whichever of none, 1, 2 and 3 explains its TPOT best."""
    unsaid = [i for i, sample in enumerate(samples) if sample.drafts is None]
    asked = [samples[i] for i in unsaid]
    misses = {
        n: [abs(a[0] - s.measured[0]) + (UNSAID_PENALTY if n else 0.0) for s, a in zip(asked, found, strict=True)]
        for n in (0, *ACCEPTED)
        for found in [answers(asked, [n] * len(asked), calibration)]
    }
    found = list(_said(samples))
    for place, i in enumerate(unsaid):
        found[i] = min(misses, key=lambda n: misses[n][place])
    return tuple(found)


def _said(samples: Sequence[Sample]) -> tuple[int, ...]:
    return tuple(sample.drafts or 0 for sample in samples)


def _weights(samples: Sequence[Sample]) -> list[float]:
    """A campaign of many runs says less per run: all of it counts as the square root of their number. What is guessed
    of a run counts against it."""
    sizes = Counter(sample.campaign for sample in samples)
    return [math.sqrt(4 / max(4, sizes[s.campaign])) / (1 + s.num_assumed) for s in samples]


def _logarithms(parameters: Sequence[Parameter], start: Calibration) -> list[float]:
    """Where the parameters lie at a calibration; what it does not know is at the prior."""
    middle = Efficiency()
    found = []
    for p in parameters:
        scope, _, who = p.scope.partition(":")
        if scope == "base":
            found.append(math.log(getattr(start.base, p.name) / getattr(middle, p.name)))
        elif scope == "accepted":
            found.append(math.log(start.accepted.get(int(p.name), ACCEPTED[int(p.name)]) / ACCEPTED[int(p.name)]))
        elif scope == "trend":
            found.append(start.stacks[who].improvement_per_year if who in start.stacks else 0.0)
        else:
            known = start.vendors.get(who, {}) if scope == "vendor" else getattr(start.stacks.get(who), "factors", {})
            found.append(math.log(known.get(p.name, 1.0)))
    return found


def _minimise(
    samples: Sequence[Sample], drafts: Sequence[int], weights: Sequence[float], parameters: Sequence[Parameter],
    x: Array, steps: int,
) -> Array:  # fmt: skip
    """Gauss-Newton with a trust region, on reweighted squares (the Cauchy loss)."""
    import numpy as np

    spread = np.array([p.spread for p in parameters])
    weight = np.repeat(weights, [len(s.quantities) for s in samples])

    def residuals(at: Array, part: Sequence[int]) -> Array:
        chosen = [samples[i] for i in part]
        found = answers(chosen, [drafts[i] for i in part], calibration_at(parameters, at))
        return np.array([
            (a - m) / SCALE[quantity]
            for sample, answer in zip(chosen, found, strict=True)
            for quantity, a, m in zip(sample.quantities, answer, sample.measured, strict=True)
        ])  # fmt: skip

    everyone = range(len(samples))
    starts = np.cumsum([0, *(len(s.quantities) for s in samples)])
    touched = [_touched(p, samples, drafts) for p in parameters]

    def cost(r: Array, at: Array) -> float:
        return float((weight * 2 * np.log1p(r * r / 4)).sum() + ((at / spread) ** 2).sum() / 2)

    now, damping = residuals(x, everyone), 1e-2
    for _ in range(steps):
        jacobian = np.zeros((len(now), len(x)))
        for j, part in enumerate(touched):
            moved = x.copy()
            moved[j] += 0.03
            if part:
                rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in part])
                jacobian[rows, j] = (residuals(moved, part) - now[rows]) / 0.03
        pull = weight / (1 + now * now / 4)
        curvature = jacobian.T @ (jacobian * pull[:, None]) + np.diag(1 / spread**2)
        slope = jacobian.T @ (pull * now) + x / spread**2
        before = cost(now, x)
        for _ in range(6):
            move = np.clip(np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), -slope), -0.7, 0.7)
            after = residuals(x + move, everyone)
            if cost(after, x + move) < before:
                break
            damping *= 5
        else:
            return x
        x, now, damping = x + move, after, max(damping / 4, 1e-4)
        if before - cost(now, x) < 1e-3 * before:
            break
    return x


def _touched(parameter: Parameter, samples: Sequence[Sample], drafts: Sequence[int]) -> list[int]:
    """Which samples depend on a parameter at all."""
    scope, _, who = parameter.scope.partition(":")
    belongs: Callable[[int], bool]
    if scope == "base":
        return list(range(len(samples)))
    if scope == "accepted":
        belongs = lambda i: samples[i].accepted is None and drafts[i] == int(parameter.name)  # noqa: E731
    elif scope == "vendor":
        belongs = lambda i: samples[i].vendor == who  # noqa: E731
    else:
        belongs = lambda i: samples[i].stack == who  # noqa: E731
    return [i for i in range(len(samples)) if belongs(i)]
