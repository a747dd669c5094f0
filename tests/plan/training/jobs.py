"""Jobs that several tests share, and a slower world for the test of units."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from tiefsee.hardware import Chip, Figure, find_chip
from tiefsee.plan.training.job import TrainJob, make_job
from tiefsee.plan.training.predict import TrainingPrediction, predict_training
from tiefsee.spec import preset

V3_LAYOUT = {"pp": 16, "ep": 64, "dp": 128}


@cache
def v3_on_h800() -> TrainingPrediction:
    return predict_training("v3", "h800", 2048, layout=V3_LAYOUT, precision="fp8", batch=15360, isl=4096)


def job(model: str, chip: str, count: int, **rest: object) -> TrainJob:
    return make_job(model, preset(model), find_chip(chip), count, **rest)  # type: ignore[arg-type]


def slower_chip(chip: Chip, k: float) -> Chip:
    """Every clock k times slower: arithmetic, memory, links; latencies longer."""

    def by(figure: Figure, factor: float) -> Figure:
        return replace(figure, value=figure.value * factor, low=figure.low * factor, high=figure.high * factor)

    return replace(
        chip,
        flops_per_s={name: by(peak, 1 / k) for name, peak in chip.flops_per_s.items()},
        memory_bytes_per_s=by(chip.memory_bytes_per_s, 1 / k),
        links=tuple(
            replace(link, bytes_per_s=by(link.bytes_per_s, 1 / k), latency_s=by(link.latency_s, k))
            for link in chip.links
        ),
    )
