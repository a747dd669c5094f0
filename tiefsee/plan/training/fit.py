"""Fits the efficiencies on published runs and says how far each is off when its whole family is left out.

    python -m tiefsee.plan.training.fit            # the table
    python -m tiefsee.plan.training.fit --write    # and data/training.toml

A least-squares fit of log(predicted / published), few parameters, each drawn towards a physical first value
(`PRIORS`: value, standard deviation of its logarithm, why). Steps are Gauss-Newton with numerical derivatives.
"""

from __future__ import annotations

import math
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import numpy as np

from tiefsee.hardware import find_chip
from tiefsee.plan.training.efficiency import TrainCalibration, training_calibration
from tiefsee.plan.training.job import TrainJob, make_job
from tiefsee.plan.training.layout import TrainLayout, read_layout
from tiefsee.plan.training.step import Step, place, step_time
from tiefsee.spec import preset


@dataclass(frozen=True)
class Point:
    """One published run: `value` in tokens per second and chip."""

    name: str
    family: str
    job: TrainJob
    layout: TrainLayout
    value: float
    parts: Mapping[str, float]
    source: str
    assumed: tuple[str, ...]


def read_points(text: str) -> list[Point]:
    table: dict[str, Any] = tomllib.loads(text)
    return [_point(item, table["sources"]) for item in table["point"]]


def shipped_points() -> list[Point]:
    return read_points(resources.files("tiefsee.plan").joinpath("data/training_points.toml").read_text())


def _point(item: Mapping[str, Any], sources: Mapping[str, str]) -> Point:
    job = make_job(
        item["model"], preset(item["model"]), find_chip(item["chip"]), item["num_chips"], sequence=item["sequence"],
        global_batch=item["global_batch"], precision=item["precision"], with_mtp=item.get("mtp", True),
        optimizer=item.get("optimizer"), stack=item["stack"],
    )  # fmt: skip
    return Point(
        item["name"], item["family"], job, read_layout(item["layout"], job.num_ranks), item["value"],
        item.get("parts", {}), sources[item["source"]], tuple(item.get("assumed", ())),
    )  # fmt: skip


def predict_point(point: Point, calibration: TrainCalibration) -> Step:
    e = calibration.of(point.job.chip.vendor, point.job.stack)
    stack = calibration.stack(point.job.stack)
    return step_time(point.job, place(point.job, point.layout, e, stack), e, stack)


def tokens_per_s_per_chip(point: Point, step: Step) -> float:
    return step.sequences * point.job.sequence / step.seconds / point.job.num_chips


# First values, and how far the logarithm may wander (one standard deviation). Three kinds: of every chip, of a
# generation or vendor, of a stack.
PRIORS: dict[str, tuple[float, float, str]] = {
    "base.matmul": (0.70, 0.10, "cuBLAS at these sizes reaches 65 to 80 % of a Hopper's BF16 peak"),
    "base.experts": (0.60, 0.15, "grouped products: DeepGEMM's README, 60 to 75 %, less with few rows"),
    "base.low": (0.75, 0.15, "DeepGEMM 1,200 to 1,500 of 1,979 TFLOP/s, less quantisation beside it"),
    "base.attention": (0.50, 0.20, "FlashAttention-3 forward at unequal head sizes"),
    "base.sparse": (0.25, 0.40, "gathered keys: FlashMLA's sparse prefill kernel 640 TFLOP/s on H800; training less"),
    "base.memory": (0.70, 0.20, "streaming kernels reach 80 to 90 %, ragged and small ones less"),
    "base.near": (0.80, 0.10, "160 of 200 GB/s NVLink on H800, ISCA 2025, section 4"),
    "base.host_layer_s": (0.5e-3, 0.50, "about 100 launches of 5 us for one layer's forward"),
    "base.overlap_tax": (0.10, 0.30, "20 of 132 SMs communicate, ISCA 2025; part of them idle otherwise"),
    "base.step_s": (0.05, 0.50, "gradient norm, data, logs"),
    "generations.blackwell": (1.0, 0.20, "power caps arithmetic below its peak"),
    "generations.hopper": (1.0, 0.02, "what the base values are of"),
    "generations.ascend": (1.0, 0.20, "Cube units at CANN's kernels"),
    "stacks.deepseek": (1.0, 0.10, "kernels of its own, host work hidden"),
    "stacks.megatron": (1.0, 0.10, ""),
    "stacks.automodel": (1.0, 0.15, ""),
    "stacks.torchtitan-npu": (1.0, 0.15, ""),
    "stacks.mindspeed": (1.0, 0.15, ""),
    "host.megatron-2025": (3.0, 0.50, "before graphs: gaps between kernels, Megatron-LM's GB200 guide"),
    "host.torchtitan-npu": (1.5, 0.50, "eager"),
    "host.mindspeed": (10.0, 0.50, "eager, FSDP-less RL engine with swapping"),
}
SIGMA = 0.08  # of a published figure's logarithm: runs of the same layout differ by this much
PART_SIGMA = 0.15
ARITHMETIC = ("matmul", "experts", "attention", "sparse", "memory")
