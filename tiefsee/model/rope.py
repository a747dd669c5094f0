"""RoPE frequencies, with YaRN's ramp, computed in float32 exactly as the published inference code does."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tiefsee.spec.model import Rope, Yarn


def inverse_frequencies(rope: Rope) -> Tensor:
    """dim / 2 angles per position step, float32.

    YaRN (arXiv 2309.00071, section 3.2) keeps channel pairs that turn often within the original
    context, divides those that turn less than once by `factor`, and ramps linearly in between.
    """
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    periods = rope.theta**exponents
    if rope.yarn is None:
        return 1.0 / periods
    low, high = _ramp_bounds(rope, rope.yarn)
    ramp = ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (rope.yarn.factor * periods) * (1 - keep) + 1.0 / periods * keep


def _ramp_bounds(rope: Rope, yarn: Yarn) -> tuple[float, float]:
    """The channel pairs that turn beta_fast and beta_slow times over the original context."""

    def pair_of(rotations: float) -> float:
        turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return rope.dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = pair_of(yarn.beta_fast), pair_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    return low, high if high != low else high + 0.001


class Rotary:
    """cos and sin of the step's positions, for each distinct `Rope` of a model once."""

    def __init__(self, ropes: set[Rope], device: torch.device) -> None:
        self._frequencies = {rope: inverse_frequencies(rope).to(device) for rope in ropes}

    def at(self, rope: Rope, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [.., R / 2] in float32, YaRN's attention factor applied."""
        angles = positions.float().unsqueeze(-1) * self._frequencies[rope]
        factor = 1.0 if rope.yarn is None else rope.yarn.attention_factor
        return angles.cos() * factor, angles.sin() * factor
