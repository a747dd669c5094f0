"""All that was fitted, together: efficiencies, and what measured runs say beyond them."""

from __future__ import annotations

import csv
import gzip
import io
import tomllib
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from functools import cache
from importlib import resources

from tiefsee.plan.efficiency import Calibration, calibration
from tiefsee.plan.neighbours import SITUATION_FIELDS, Kernel, Neighbours, Situation

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
    kernels = read_kernels(data.joinpath("kernels.toml").read_text())
    found = read_neighbours(gzip.decompress(data.joinpath("neighbours.csv.gz").read_bytes()).decode(), kernels)
    return Calibrated(calibration(), *(found[quantity] for quantity in QUANTITIES))


def read_kernels(text: str) -> dict[str, Kernel]:
    return {
        quantity: Kernel(t["wide"], t["local"], t["noise"], tuple(t["differs"]), tuple(t["lengths"]))
        for quantity, t in tomllib.loads(text).items()
    }


def write_kernels(kernels: Mapping[str, Kernel]) -> str:
    lines = ["# Written by tiefsee.plan.calibrate; the fields are explained in ../neighbours.py."]
    for quantity, kernel in kernels.items():
        lines += ["", f"[{quantity}]", *(f"{n} = {getattr(kernel, n):.4g}" for n in ("wide", "local", "noise"))]
        lines += [f"{n} = [{', '.join(f'{v:.4g}' for v in getattr(kernel, n))}]" for n in ("differs", "lengths")]
    return "\n".join(lines) + "\n"


def read_neighbours(text: str, kernels: Mapping[str, Kernel]) -> dict[str, Neighbours]:
    """One row for each measured quantity: the quantity, the residual, the situation."""
    types = {f.name: {"str": str, "int": int, "float": float}[str(f.type)] for f in fields(Situation)}
    rows: dict[str, tuple[list[Situation], list[float]]] = {quantity: ([], []) for quantity in QUANTITIES}
    for row in csv.DictReader(io.StringIO(text)):
        situations, residuals = rows[row["quantity"]]
        situations.append(Situation(**{name: kind(row[name]) for name, kind in types.items()}))
        residuals.append(float(row["residual"]))
    return {q: Neighbours(kernels[q], tuple(situations), tuple(found)) for q, (situations, found) in rows.items()}


def write_neighbours(neighbours: Mapping[str, Neighbours]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["quantity", "residual", *SITUATION_FIELDS])
    for quantity, found in neighbours.items():
        for situation, residual in zip(found.situations, found.residuals, strict=True):
            row = [f"{v:.5g}" if isinstance(v, float) else v for v in astuple(situation)]
            writer.writerow([quantity, f"{residual:.4f}", *row])
    return out.getvalue()
