"""What machines are: chips and the links between them. Data in TOML, every figure with unit, kind and source.

chip = find_chip("h200")            # unknown names are errors that list near ones
chip.memory_bytes.value             # 1.41e11, with .kind, .source, .low, .high
link_for(chip, 16)                  # the slowest link that a group of 16 chips spans
"""

from tiefsee.hardware.catalogue import chip_names, find_chip, load_chips, parse_fleet
from tiefsee.hardware.chip import Chip, Figure, Kind, Link, Tier
from tiefsee.hardware.topology import link_for

__all__ = [
    "Chip", "Figure", "Kind", "Link", "Tier", "chip_names", "find_chip", "link_for", "load_chips", "parse_fleet",
]  # fmt: skip
