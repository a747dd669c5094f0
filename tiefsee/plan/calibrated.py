"""All that was fitted, together: efficiencies, and what measured runs say beyond them."""

from __future__ import annotations

import csv
import gzip
import io
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources

from tiefsee.plan.efficiency import Calibration, calibration
from tiefsee.plan.neighbours import Kernel, Neighbours, Situation

QUANTITIES = ("tpot", "ttft", "prefill")


@dataclass(frozen=True, eq=False)
class Calibrated:
    """`tpot` of decode steps and services, `ttft` of services, `prefill` of prompts per second."""

    base: Calibration
    tpot: Neighbours
    ttft: Neighbours
    prefill: Neighbours


@cache
def shipped() -> Calibrated:
    """What the package ships."""
    data = resources.files(__package__).joinpath("data")
    found = read_neighbours(gzip.decompress(data.joinpath("neighbours.csv.gz").read_bytes()).decode())
    return Calibrated(calibration(), *(found[quantity] for quantity in QUANTITIES))


def read_neighbours(text: str) -> dict[str, Neighbours]:
    """Rows of `write_neighbours`: first the kernels, then one row for each measured quantity."""
    kernels: dict[str, Kernel] = {}
    rows: dict[str, list[tuple[Situation, float]]] = {quantity: [] for quantity in QUANTITIES}
    types = {f.name: f.type for f in fields(Situation)}
    for row in csv.DictReader(io.StringIO(text)):
        quantity = row.pop("quantity")
        residual = float(row.pop("residual"))
        kinds = {"str": str, "int": int, "float": float}
        rows[quantity].append((Situation(**{name: kinds[str(types[name])](row[name]) for name in types}), residual))
    for quantity in QUANTITIES:
        kernels[quantity] = KERNELS[quantity]
    return {
        quantity: Neighbours(kernels[quantity], tuple(s for s, _ in found), tuple(r for _, r in found))
        for quantity, found in rows.items()
    }
