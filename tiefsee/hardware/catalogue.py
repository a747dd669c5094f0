"""The chips by name: those that tiefsee knows, and those that a user keeps in a folder of their own.

`find_chip` takes what people type and what tools print: "910c", "Ascend910B3", "h100_sxm", "NVIDIA H100 80GB HBM3",
"nvidia/H200". Its own chips a user describes in TOML (read.py): a path that ends in .toml names one, and every file
`NAME.toml` in the folder $TIEFSEE_CHIPS (default ~/.config/tiefsee/chips) is known as NAME. `cpu` is this machine,
once `tiefsee chips measure` has written it there.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from tiefsee.errors import ConfigError
from tiefsee.hardware.chip import Chip
from tiefsee.hardware.read import load_chips, read_chips

_FILES = ("nvidia.toml", "ascend.toml", "cpu.toml")
# Names that people look for and that never were a chip, as _plain writes them.
_NEVER = dict.fromkeys(
    ("920", "920c", "ascend920", "ascend920c"),
    "the Ascend 920C was a rumour of 2025 and never appeared under that name; what came are ascend-950pr and "
    "ascend-950dt (Huawei Connect 2025)",
)


def find_chip(name: str) -> Chip:
    """The chip of that name, in any case and spelling, by alias too; a path that ends in .toml is a user's own chip.

    Raises ConfigError with near names: no chip is a default.
    """
    if name.lower().endswith(".toml"):
        return _only(Path(name))
    key = _plain(name)
    found = _by_name().get(key)
    if found is not None:
        return found
    if key in _NEVER:
        raise ConfigError(f"no chip is named {name!r}: {_NEVER[key]}")
    if key in (own := own_files()):
        return _only(own[key])
    if key == "cpu":
        raise ConfigError(
            f"this machine's CPU was never measured: there is no {own_folder() / 'cpu.toml'}; "
            "run `tiefsee chips measure`, which writes it"
        )
    raise ConfigError(
        f"no chip is named {name!r}; {_near(key, own)}. `tiefsee chips` lists them; a .toml file describes your own"
    )


def chip_names() -> tuple[str, ...]:
    """Of the chips that come with tiefsee."""
    return tuple(chip.name for chip in _catalogue())


def parse_fleet(text: str) -> tuple[Chip, int]:
    """`h200:32` -> (the chip, 32). Raises ConfigError."""
    name, _, count = text.rpartition(":")
    if not name or not re.fullmatch("[0-9]{1,8}", count) or not 1 <= int(count) <= 10_000_000:
        raise ConfigError(f"{text!r} is no pool of chips; needed is CHIP:COUNT, for example h200:32")
    return find_chip(name), int(count)


def own_folder() -> Path:
    """Where a user keeps chips of their own: $TIEFSEE_CHIPS, else ~/.config/tiefsee/chips."""
    given = os.environ.get("TIEFSEE_CHIPS")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "tiefsee" / "chips"


def own_files() -> dict[str, Path]:
    """The TOML files of that folder by the name that `find_chip` looks for; none where there is no folder."""
    try:
        return {_plain(path.stem): path for path in sorted(own_folder().glob("*.toml"))}
    except OSError:
        return {}


def _only(path: Path) -> Chip:
    chips = load_chips(path)
    if len(chips) != 1:
        raise ConfigError(f"{path} describes {len(chips)} chips; needed is one")
    return chips[0]


@cache
def _catalogue() -> tuple[Chip, ...]:
    folder = resources.files(__package__).joinpath("data")
    return tuple(
        chip for name in _FILES for chip in read_chips(folder.joinpath(name).read_text(encoding="utf-8"), name)
    )


@cache
def _by_name() -> Mapping[str, Chip]:
    return {_plain(alias): chip for chip in _catalogue() for alias in (chip.name, *chip.aliases)}


def _plain(name: str) -> str:
    """What spellings differ in is dropped: NVIDIA H100 80GB HBM3 -> h10080gbhbm3, ascend_910c -> ascend910c."""
    squeezed = re.sub(r"[\s_/.-]+", "", name.lower())
    return re.sub(r"^(nvidia|huawei)", "", squeezed) or squeezed


def _near(key: str, own: Mapping[str, Path]) -> str:
    names = {alias: chip.name for alias, chip in _by_name().items()} | {plain: path.stem for plain, path in own.items()}
    close = difflib.get_close_matches(key, names, n=12, cutoff=0.5)
    # "910" is close to little, and the beginning of much.
    begun = sorted(plain for plain in names if len(key) > 1 and (plain.startswith(key) or key.startswith(plain)))
    found = list(dict.fromkeys(names[plain] for plain in [*begun, *close]))[:4]
    return f"near are {', '.join(found)}" if found else f"there are {', '.join(chip_names())}"
