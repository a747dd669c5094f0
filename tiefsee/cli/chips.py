"""`tiefsee chips`, `chips show`, `chips compare`, `chips measure`: the catalogue. Answers without torch.

Figures are printed in the units that people talk in: TFLOP/s, GB, TB/s; `--json` gives base units.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tiefsee.errors import ConfigError, DeviceError, TiefseeError
from tiefsee.hardware import (
    Chip,
    Figure,
    chip_names,
    chip_toml,
    find_chip,
    load_chips,
    own_files,
    own_folder,
    read_chips,
)
from tiefsee.units import Unit, format_quantity

FORMATS = (("bf16", "BF16"), ("fp8", "FP8"), ("int8", "INT8"), ("fp4", "FP4"))
PREFIXED: dict[str, Unit] = {"bytes": "bytes", "bytes/s": "bytes/s", "flops/s": "flops/s", "s": "s"}


def add_options(parser: argparse.ArgumentParser, later: Callable[[str, str], object]) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable, in base units")
    parser.set_defaults(handler=later("chips", "run_list"))
    steps = parser.add_subparsers(dest="chips_command", metavar="STEP")
    show = steps.add_parser("show", help="every figure of a chip with its range, kind and source")
    show.add_argument("chip", help="name or .toml")
    how = show.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="machine-readable, in base units")
    how.add_argument("--toml", action="store_true", help="as a file to start your own chip from")
    show.set_defaults(handler=later("chips", "run_show"))
    compare = steps.add_parser("compare", help="chips side by side, with ratios to the first")
    compare.add_argument("chip", nargs="+", help="names or .toml files")
    compare.add_argument("--price", action="append", default=[], metavar="CHIP=USD", help="per hour: 2.5 or 1.2..1.8")
    compare.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="machine-readable")
    compare.set_defaults(handler=later("chips", "run_compare"))
    measure = steps.add_parser("measure", help="this machine's CPU, with numpy; afterwards `cpu` is a chip")
    measure.add_argument("--out", type=Path, metavar="FILE.toml", help="default: cpu.toml in the folder of own chips")
    measure.add_argument("--seconds", type=float, default=20.0, help="about so long (default: %(default)g)")
    measure.add_argument("--with-torch", action="store_true", help="BF16 too, by torch")
    measure.set_defaults(handler=later("chips", "run_measure"))


def run_list(options: argparse.Namespace) -> int:
    chips, unread = all_chips()
    if options.json:
        print(json.dumps({"chips": [dataclasses.asdict(chip) for chip in chips], "unread": unread}, indent=2))
        return 0
    from tiefsee.cli.chips_table import print_list

    print_list(chips)
    for problem in unread:
        print(f"tiefsee: left out: {problem}", file=sys.stderr)
    return 0


def all_chips() -> tuple[list[Chip], list[str]]:
    """The catalogue's, then those in the user's folder; what cannot be read there is told and not in the way."""
    chips, unread = [find_chip(name) for name in chip_names()], []
    for path in own_files().values():
        try:
            chips.extend(load_chips(path))
        except ConfigError as error:
            unread.append(str(error))
    return chips, unread


def run_show(options: argparse.Namespace) -> int:
    chip = find_chip(options.chip)
    if options.json:
        print(json.dumps(dataclasses.asdict(chip), indent=2))
    elif options.toml:
        print(chip_toml(chip), end="")
    else:
        from tiefsee.cli.chips_table import print_chip

        print_chip(chip)
    return 0


def run_compare(options: argparse.Namespace) -> int:
    from tiefsee.plan.figures.money import parse_prices

    prices = parse_prices(options.price)
    chips = [find_chip(name) for name in options.chip]
    foreign = sorted(set(prices) - {chip.name for chip in chips})
    if foreign:
        raise ConfigError(f"--price names {', '.join(foreign)}, which is not among the chips that are compared")
    rows = list(compared(chips, prices))
    if options.json:
        table = [{"figure": name, "unit": unit, "values": v, "ratios": ratios(v)} for name, unit, v in rows]
        print(json.dumps({"chips": [chip.name for chip in chips], "rows": table}, indent=2))
        return 0
    from tiefsee.cli.chips_table import print_comparison

    print_comparison(chips, rows)
    return 0


def compared(chips: list[Chip], prices: dict[str, Any]) -> Iterator[tuple[str, str, list[float | None]]]:
    """(figure, unit, a value per chip or None where the chip has no such figure), in base units."""
    from tiefsee.plan.figures.money import price_of

    def values(of: Callable[[Chip], float | None]) -> list[float | None]:
        return [of(chip) for chip in chips]

    def per(a: list[float | None], b: list[float | None]) -> list[float | None]:
        return [x / y if x is not None and y else None for x, y in zip(a, b, strict=True)]

    usd = values(lambda chip: None if (price := price_of(chip, prices)) is None else price.value)
    bandwidth = values(lambda chip: chip.memory_bytes_per_s.value)
    peaks = {label: values(lambda c, key=key: c.flops_per_s[key].value if c.has(key) else None)  # type: ignore[misc]
             for key, label in (("fp32", "FP32"), *FORMATS)}  # fmt: skip
    yield "memory", "bytes", values(lambda chip: chip.memory_bytes.value)
    yield "memory bandwidth", "bytes/s", bandwidth
    for label, peak in peaks.items():
        yield label, "flops/s", peak
    yield "nearest link", "bytes/s", values(lambda chip: chip.links[0].bytes_per_s.value)
    yield "chips on it", "", values(lambda chip: chip.links[0].num_chips)
    yield "farthest link", "bytes/s", values(lambda chip: chip.links[-1].bytes_per_s.value)
    yield "TDP", "W", values(lambda chip: None if chip.tdp_w is None else chip.tdp_w.value)
    yield "price", "USD/h", usd
    yield "BF16 FLOP per byte", "", per(peaks["BF16"], bandwidth)
    yield "BF16 per USD/h", "flops/s", per(peaks["BF16"], usd)
    yield "bandwidth per USD/h", "bytes/s", per(bandwidth, usd)


def ratios(values: list[float | None]) -> list[float | None]:
    """To the first, which is 1; None where one of the two is missing."""
    first = values[0]
    return [None if value is None or not first else value / first for value in values]


def run_measure(options: argparse.Namespace) -> int:
    from tiefsee.plan.evidence.measure_chip import measure_cpu

    path: Path = options.out or own_folder() / "cpu.toml"
    if options.out is not None and not path.resolve().parent.is_dir():
        raise ConfigError(f"--out is {path}; there is no folder {path.resolve().parent}")
    chip = measure_cpu(options.seconds, bf16_product=torch_products() if options.with_torch else None)
    text = chip_toml(chip)
    read_chips(text, "what was measured")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TiefseeError(f"{path} cannot be written: {error.strerror}; try --out FILE.toml") from None
    print(text, end="")
    name = "cpu" if options.out is None else str(path)
    print(f"written to {path}; use it as --chips {name}:1", file=sys.stderr)
    return 0


def torch_products() -> Callable[[int], Callable[[], object]]:
    """BF16 products by torch, which alone of what tiefsee needs has them for CPUs."""
    try:
        import torch
    except ImportError as error:
        raise DeviceError(
            f"BF16 is measured with torch, which cannot be imported: {error}; leave out --with-torch"
        ) from None

    def product(size: int) -> Callable[[], object]:
        a, b = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
        return lambda: a @ b

    return product


def show_figure(figure: Figure) -> tuple[str, str]:
    """(value with unit, its range or ""): "3.35 TB/s", "2.24 TB/s to 2.7 TB/s"."""
    ends = [show(end, figure.unit) for end in (figure.low, figure.high)]
    return show(figure.value, figure.unit), "" if figure.is_certain else " to ".join(ends)


def show(value: float, unit: str, digits: int = 4) -> str:
    """A value of any unit that figures have: with prefixes, or as a plain number (W, USD, a count)."""
    if unit in PREFIXED:
        return format_quantity(value, PREFIXED[unit], digits)
    number = f"{value:,.{digits}g}" if value < 1000 else f"{value:,.0f}"
    return f"{number} {unit}".strip()
