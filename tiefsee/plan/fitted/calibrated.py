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
from typing import TYPE_CHECKING

from tiefsee.plan.figures.estimate import Grade
from tiefsee.plan.fitted.efficiency import Calibration, calibration
from tiefsee.plan.fitted.neighbours import SITUATION_FIELDS, Kernel, Neighbours, Situation

if TYPE_CHECKING:
    from tiefsee.plan.training.efficiency import TrainCalibration

# What `tiefsee check plan` asked for: 80 % ranges of Ascend's left-out families covered 64 % at 1.3 times the process's
# own deviation and 75 % at 1.65 times, those of left-out chips 74 % without and 80 % with a tenth more.
WIDER = {"huawei": 1.65, "datasheet": 1.1, "rumour": 1.1}
QUANTITIES = ("tpot", "ttft", "prefill")


@dataclass(frozen=True, eq=False)
class Calibrated:
    """`tpot` of decode steps and services, `ttft` of services, `prefill` of prompts per second; `training` apart, None
    being what the package ships."""

    base: Calibration
    tpot: Neighbours
    ttft: Neighbours
    prefill: Neighbours
    training: TrainCalibration | None = None

    def correction(self, quantity: str, situation: Situation) -> tuple[float, float]:
        """(mean, deviation) of the logarithm of measured / predicted, wider where left-out families said that it has to
        be (WIDER)."""
        own: Neighbours = getattr(self, quantity)
        mean, deviation = own.correction(situation)
        return mean, deviation * self.wider(quantity, situation)

    def wider(self, quantity: str, situation: Situation) -> float:
        return WIDER.get(situation.vendor, 1.0) * WIDER.get(self.grade(situation, quantity), 1.0)

    def grade(self, situation: Situation, quantity: str) -> Grade:
        """The evidence for a quantity; a chip that is known from other quantities only is no more than fitted."""
        own: Neighbours = getattr(self, quantity)
        grade = own.grade(situation)
        if grade == "datasheet" and any(
            s.chip == situation.chip for q in QUANTITIES for s in getattr(self, q).situations
        ):
            return "fitted"
        return grade


@cache
def shipped() -> Calibrated:
    """What the package ships."""
    data = resources.files("tiefsee.plan").joinpath("data")
    kernels = read_kernels(data.joinpath("kernels.toml").read_text())
    found = read_neighbours(gzip.decompress(data.joinpath("neighbours.csv.gz").read_bytes()).decode(), kernels)
    return Calibrated(calibration(), found["tpot"], found["ttft"], found["prefill"])


def read_kernels(text: str) -> dict[str, Kernel]:
    return {
        quantity: Kernel(t["wide"], t["local"], t["noise"], tuple(t["differs"]), tuple(t["lengths"]))
        for quantity, t in tomllib.loads(text).items()
    }


def write_kernels(kernels: Mapping[str, Kernel]) -> str:
    lines = ["# Written by tiefsee.plan.fitting.calibrate; the fields are explained in plan/fitted/neighbours.py."]
    for quantity, kernel in kernels.items():
        lines += ["", f"[{quantity}]", *(f"{n} = {getattr(kernel, n):.4g}" for n in ("wide", "local", "noise"))]
        lines += [f"{n} = [{', '.join(f'{v:.4g}' for v in getattr(kernel, n))}]" for n in ("differs", "lengths")]
    return "\n".join(lines) + "\n"


def read_neighbours(text: str, kernels: Mapping[str, Kernel]) -> dict[str, Neighbours]:
    """One row for each measured quantity: the quantity, residual and noise, the situation."""
    types = {f.name: {"str": str, "int": int, "float": float}[str(f.type)] for f in fields(Situation)}
    rows: dict[str, list[tuple[Situation, float, float]]] = {quantity: [] for quantity in QUANTITIES}
    for row in csv.DictReader(io.StringIO(text)):
        situation = Situation(**{name: kind(row[name]) for name, kind in types.items()})
        rows[row["quantity"]].append((situation, float(row["residual"]), float(row["noise"])))
    return {
        quantity: Neighbours(
            kernels[quantity],
            tuple(s for s, _, _ in found),
            tuple(r for _, r, _ in found),
            tuple(n for _, _, n in found),
        )
        for quantity, found in rows.items()
    }


def write_neighbours(neighbours: Mapping[str, Neighbours]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["quantity", "residual", "noise", *SITUATION_FIELDS])
    for quantity, found in neighbours.items():
        for situation, residual, noise in zip(found.situations, found.residuals, found.noises, strict=True):
            row = [f"{v:.5g}" if isinstance(v, float) else v for v in astuple(situation)]
            writer.writerow([quantity, f"{residual:.4f}", f"{noise:.4f}", *row])
    return out.getvalue()
