"""Which link a group of chips talks over."""

from __future__ import annotations

from tiefsee.errors import ConfigError
from tiefsee.hardware.chip import Chip, Link


def link_for(chip: Chip, num_ranks: int, *, stride: int = 1) -> Link:
    """The slowest link that a group spans: the nearest tier that joins `num_ranks` chips, `stride` apart.

    Ranks are laid out contiguously, so tensor-parallel groups (stride 1) sit inside a node first; pipeline
    stages that are 64 ranks apart have a stride of 64. Raises ConfigError where nothing joins so many.
    """
    reach = num_ranks * stride if stride == 1 else (num_ranks - 1) * stride + 1
    for link in chip.links:
        if link.num_chips is None or reach <= link.num_chips:
            return link
    largest = chip.links[-1]
    raise ConfigError(
        f"{num_ranks} x {chip.name} are joined by no link in the catalogue: {largest.name} joins {largest.num_chips}"
    )
