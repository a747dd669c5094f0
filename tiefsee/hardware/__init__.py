"""What machines are: chips and the links between them. Data in TOML, every figure with unit, kind and source.

chip = find_chip("h200")            # unknown names are errors that list near ones
chip.memory_bytes.value             # 1.41e11, with .kind, .source, .low, .high
link_for(chip, 16)                  # the slowest link that a group of 16 chips spans
"""

from tiefsee.hardware.catalogue import chip_names, find_chip, own_files, own_folder, parse_fleet
from tiefsee.hardware.chip import Chip, Figure, Kind, Link, Tier
from tiefsee.hardware.read import load_chips, read_chips
from tiefsee.hardware.topology import link_for
from tiefsee.hardware.write import chip_toml

__all__ = [
    "Chip", "Figure", "Kind", "Link", "Tier", "chip_names", "chip_toml", "find_chip", "link_for", "load_chips",
    "own_files", "own_folder", "parse_fleet", "read_chips",
]  # fmt: skip
