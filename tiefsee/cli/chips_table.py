"""The tables of `tiefsee chips`."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from tiefsee.cli.chips import FORMATS, ratios, show, show_figure
from tiefsee.hardware import Chip, Figure

_PIPED_WIDTH = 10_000  # a pipe has no width: nothing is cut or folded there, one line a chip or figure
# What a narrow terminal does without, in this order.
_DISPENSABLE = ("since", "fabric", "per", "INT8", "USD/h", "links GB/s", "FP4")


def console() -> Console:
    probe = Console()
    return probe if probe.is_terminal else Console(width=_PIPED_WIDTH)


def plain_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def print_list(chips: list[Chip]) -> None:
    """One line a chip; columns that do not fit are left out, and that is said."""
    out = console()
    rows = [list_row(chip) for chip in chips]
    widths = {title: max(len(title), *(len(row[title]) for row in rows)) for title in rows[0]}
    left_out = []
    for title in _DISPENSABLE:
        if sum(widths.values()) + 2 * len(widths) <= out.width - 2:
            break
        left_out.append(title)
        del widths[title]
    table = plain_table()
    for title in widths:
        is_text = title in ("chip", "per", "links GB/s", "USD/h", "since")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[title] for title in widths))
    out.print(table)
    out.print(
        "Arithmetic in dense TFLOP/s; links per chip and direction, x the chips they join; ~ an estimate.",
        highlight=False,
    )
    if "USD/h" in widths:
        out.print(
            "USD/h is what an hour costs the owner; renting on demand is two to three times that: `chips show`.",
            highlight=False,
        )
    if left_out:
        out.print(f"Left out for want of width: {', '.join(left_out)}.", highlight=False)
    out.print("`tiefsee chips show NAME` has ranges, kinds and sources.", highlight=False)


def list_row(chip: Chip) -> dict[str, str]:
    fabric = next((link.bytes_per_s for link in chip.links if link.tier == "fabric"), None)
    price = chip.usd_per_hour
    return {
        "chip": chip.name,
        "per": chip.per,
        "GB": _short(chip.memory_bytes, 1e9),
        "TB/s": _short(chip.memory_bytes_per_s, 1e12),
        **{label: _short(chip.flops_per_s.get(key), 1e12) for key, label in FORMATS},
        "links GB/s": _links(chip),
        "fabric": _short(fabric, 1e9),
        "USD/h": "-" if price is None else f"{price.low:.2f}..{price.high:.2f}",
        "since": chip.available or "-",
    }


def _links(chip: Chip) -> str:
    """All but the fabric, from the nearest: "270x2, 196x768 UB"."""
    inner = [link for link in chip.links if link.tier != "fabric" and link.num_chips != 1]
    reach = [f"{_short(link.bytes_per_s, 1e9)}x{link.num_chips or 'any'}" for link in inner]
    return f"{', '.join(reach)} {inner[-1].name.split(',')[0]}" if inner else "-"


def _short(figure: Figure | None, scale: float) -> str:
    if figure is None:
        return "-"
    value = figure.value / scale
    return ("~" if figure.kind == "estimate" else "") + (f"{value:,.0f}" if value >= 100 else f"{value:.3g}")


def print_chip(chip: Chip) -> None:
    out = console()
    out.print(f"{chip.name}: {chip.title}; every figure is per {chip.per}", highlight=False, soft_wrap=True)
    out.print("; ".join(_facts(chip)), highlight=False, soft_wrap=True)
    table = plain_table()
    for title in ("figure", "value", "80 % range", "kind"):
        table.add_column(title, no_wrap=title != "figure")
    table.add_column("source", overflow="fold")
    for name, figure in _figures(chip):
        note = f" ({figure.note})" if figure.note else ""
        table.add_row(name, *show_figure(figure), figure.kind, figure.source + note)
    out.print(table)
    for note in chip.notes:
        out.print(f"* {note}", highlight=False, soft_wrap=True)
    if chip.usd_per_hour is None:
        out.print(
            "* the catalogue has no price: plans answer with the price per chip-hour at which it breaks even, or take "
            f"yours, --price {chip.name}=USD",
            highlight=False,
            soft_wrap=True,
        )


def _facts(chip: Chip) -> Iterator[str]:
    if chip.dies > 1:
        yield f"{chip.dies} dies a {chip.per}"
    if chip.chips_per_node > 1:
        yield f"{chip.chips_per_node} in a node"
    if chip.available:
        yield f"announced for {chip.available}" if chip.is_announced_only else f"since {chip.available}"
    if chip.aliases:
        yield f"also called {', '.join(chip.aliases)}"


def _figures(chip: Chip) -> Iterator[tuple[str, Figure]]:
    yield "memory", chip.memory_bytes
    yield "memory bandwidth", chip.memory_bytes_per_s
    for key, peak in chip.flops_per_s.items():
        yield f"{key.upper()}, dense", peak
    for link in chip.links:
        reach = "any number" if link.num_chips is None else f"up to {link.num_chips:,}"
        yield f"{link.tier}: {link.name}, {reach}", link.bytes_per_s
        yield "  latency", link.latency_s
    others = (("smallest operator", chip.launch_s), ("TDP", chip.tdp_w), ("rent", chip.usd_per_hour),
              ("purchase", chip.purchase_usd))  # fmt: skip
    yield from ((name, figure) for name, figure in others if figure is not None)


def print_comparison(chips: list[Chip], rows: list[tuple[str, str, list[float | None]]]) -> None:
    table = plain_table()
    table.add_column("", no_wrap=True)
    for chip in chips:
        table.add_column(f"{chip.name}, per {chip.per}", justify="right")
    for name, unit, values in rows:
        if any(value is not None for value in values):
            pairs = zip(values, ratios(values), strict=True)
            table.add_row(name, *(_cell(value, ratio, unit) for value, ratio in pairs))
    console().print(table)


def _cell(value: float | None, ratio: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return show(value, unit, 3) + ("" if ratio is None or ratio == 1 else f"  x{ratio:.2f}")
