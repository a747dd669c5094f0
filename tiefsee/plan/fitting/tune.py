"""The kernels of `neighbours`: what makes the residuals of left-out runs, campaigns and families most likely."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tiefsee.plan.fitted.neighbours import Kernel, Situation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

START = Kernel(0.1, 0.15, 0.08, (0.3, 0.5, 0.5, 0.7, 0.7, 0.7, 0.7), (3.0, 3.0, 2.0, 3.0, 2.0, 3.0, 0.4))
STEPS = (0.6, 0.8, 1.25, 1.6)
TAILS = 4.0  # degrees of freedom of Student's t: residuals have long tails


def tune(
    situations: Sequence[Situation], residuals: Sequence[float], groupings: Sequence[Sequence[Hashable]],
    start: Kernel = START, *, rounds: int = 2,
) -> Kernel:  # fmt: skip
    """Coordinate ascent on the mean log density of residuals that are left out one by one, and by each grouping."""
    values = [start.wide, start.local, start.noise, *start.differs, *start.lengths]
    num_kinds = len(start.differs)

    def made(v: Sequence[float]) -> Kernel:
        return Kernel(v[0], v[1], v[2], tuple(v[3 : 3 + num_kinds]), tuple(v[3 + num_kinds :]))

    best = density(start, situations, residuals, groupings)
    for _ in range(rounds):
        for i in range(len(values)):
            is_share = 3 <= i < 3 + num_kinds
            for step in STEPS:
                tried = list(values)
                tried[i] = 1 - (1 - values[i]) * step if is_share else values[i] * step
                if is_share and not 0.02 < tried[i] < 0.98:
                    continue
                found = density(made(tried), situations, residuals, groupings)
                if found > best + 1e-4:
                    best, values = found, tried
    return made(values)


def density(
    kernel: Kernel, situations: Sequence[Situation], residuals: Sequence[float],
    groupings: Sequence[Sequence[Hashable]],
) -> float:  # fmt: skip
    """Mean over the ways to leave out of the mean log density of what was left out."""
    import numpy as np

    ways = [left_out(kernel, situations, residuals, groups) for groups in (range(len(residuals)), *groupings)]
    y = np.array(residuals)
    found = [
        np.mean(-0.5 * np.log(variance) - (TAILS + 1) / 2 * np.log1p((y - mean) ** 2 / variance / TAILS))
        for mean, variance in ways
    ]
    return float(np.mean(found))


def left_out(
    kernel: Kernel, situations: Sequence[Situation], residuals: Sequence[float], groups: Sequence[Hashable]
) -> tuple[Array, Array]:
    """(mean, variance) of each residual from all that are in other groups, in closed form from the inverse of the
    whole (Rasmussen and Williams, equations 5.10 to 5.12, for blocks)."""
    import numpy as np

    y = np.array(residuals)
    covariance = kernel.between(situations, situations)
    noise = np.full(len(y), kernel.noise**2)
    for _ in range(2):
        inverse = np.linalg.inv(covariance + np.diag(noise))
        strange = (inverse @ y) / np.sqrt(np.diag(inverse)) / 2
        noise = kernel.noise**2 * np.maximum(1.0, strange**2)
    inverse = np.linalg.inv(covariance + np.diag(noise))
    solved = inverse @ y
    mean, variance = np.zeros(len(y)), np.zeros(len(y))
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    for block in members.values():
        within = np.linalg.inv(inverse[np.ix_(block, block)])
        mean[block] = y[block] - within @ solved[block]
        variance[block] = np.diag(within) - noise[block] + kernel.noise**2
    return mean, np.maximum(variance, kernel.noise**2)


def narrowed(kernel: Kernel, factor: float) -> Kernel:
    """All deviations times `factor`: how a range is brought to cover what it says."""
    return replace(kernel, wide=kernel.wide * factor, local=kernel.local * factor, noise=kernel.noise * factor)
