"""What the efficiencies are fitted on: measured runs and published points, each as a function of the efficiencies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from tiefsee.errors import ConfigError
from tiefsee.hardware import find_chip
from tiefsee.plan.deployment import Deployment, make_worker
from tiefsee.plan.efficiency import Efficiency
from tiefsee.plan.measured import LENGTH_SHARE, Run, Sizes
from tiefsee.plan.models import find_spec
from tiefsee.plan.neighbours import Situation
from tiefsee.plan.serving import Load, Worker

# Runs that cannot be what they say: TPOT of 85 ms whether 40 or 224 requests run, and answers that are as slow as
# the fastest chip's with ten times the load (docs/log.md, 2026-11-28).
IMPOSSIBLE = {("4000", "1000")}


@dataclass(frozen=True, eq=False)
class Sample:
    """One run or point. `answer(efficiency, drafts, accepted)` and `measured` are logarithms of seconds, in the order
    of `quantities` (tpot, ttft, prefill); `drafts` is None where nobody knows whether drafts were made."""

    id: str
    family: str
    campaign: tuple[str, ...]
    vendor: str
    stack: str
    date: str
    quantities: tuple[str, ...]
    measured: tuple[float, ...]
    answer: Callable[[Efficiency, int, float], tuple[float, ...]]
    situation: Callable[[int, float], Situation]
    drafts: int | None
    accepted: float = 0.0
    num_chips: float = 1.0


def distinct_runs(runs: Iterable[Run]) -> list[Run]:
    """One of each measurement: the same one stands in the table up to three times, and the copy that says most about
    its layout is kept."""
    best: dict[tuple[object, ...], Run] = {}
    for run in runs:
        key = run.measurement
        if key not in best or len(run.assumed) < len(best[key].assumed):
            best[key] = run
    return list(best.values())


def run_deployment(run: Run) -> Deployment:
    """Raises ConfigError for a layout that does not fit together."""
    decode = _worker(run.model, run.chip, run.precision, run.decode)
    prefill = _worker(run.model, run.chip, run.precision, run.prefill) if run.prefill is not None else None
    return Deployment(decode, run.num_decode, run.precision, prefill, run.num_prefill if prefill else 0)


@lru_cache(maxsize=4096)
def _worker(model: str, chip: str, precision: str, sizes: Sizes) -> Worker:
    layout = {"tp": sizes.tp, "dp": sizes.dp, "ep": sizes.ep, "moe_tp": sizes.moe_tp}
    return make_worker(find_spec(model), find_chip(chip), layout, precision)


def run_load(run: Run, drafts: int, accepted: float) -> Load:
    return Load(run.concurrency, run.isl * LENGTH_SHARE, run.osl * LENGTH_SHARE, 0.0, accepted, drafts)


def sample_of_run(run: Run, years: Callable[[str], float]) -> Sample:
    """`years` turns a date into years from the calibration's reference."""
    deployment = run_deployment(run)

    def answer(e: Efficiency, drafts: int, accepted: float) -> tuple[float, ...]:
        served = deployment.serve(run_load(run, drafts, accepted), e)
        return math.log(served.tpot_s), math.log(served.ttft_s)

    def situation(drafts: int, accepted: float) -> Situation:
        return deployment.situation(run_load(run, drafts, accepted), run.stack, years(run.date))

    return Sample(
        run.id, run.family, run.campaign, deployment.decode.chip.vendor, run.stack, run.date, ("tpot", "ttft"),
        (math.log(run.tpot_s), math.log(run.ttft_s)), answer, situation, 0 if run.drafting is False else None,
        0.0, deployment.num_chips,
    )  # fmt: skip


def samples_of_runs(runs: Iterable[Run], years: Callable[[str], float]) -> tuple[list[Sample], list[str]]:
    """(samples of distinct runs, why others were left out)."""
    samples, refused = [], []
    for run in distinct_runs(runs):
        if (str(run.isl), str(run.osl)) in IMPOSSIBLE:
            refused.append(f"{run.id}: a time that does not depend on the load")
            continue
        try:
            samples.append(sample_of_run(run, years))
        except ConfigError as error:
            refused.append(f"{run.id}: {error}")
    return samples, refused
