"""What the efficiencies are fitted on: measured runs and published points, each as a function of the efficiencies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from tiefsee.errors import ConfigError
from tiefsee.hardware import find_chip
from tiefsee.plan.evidence.measured import LENGTH_SHARE, Run, Sizes
from tiefsee.plan.evidence.points import Point, Role
from tiefsee.plan.fitted.efficiency import Efficiency
from tiefsee.plan.fitted.neighbours import Situation
from tiefsee.plan.names.dates import full_date
from tiefsee.plan.names.models import find_spec
from tiefsee.plan.names.stacks import OVERLAPPING_STACKS
from tiefsee.plan.serving.deployment import LAYOUT_KEYS, Deployment, make_worker
from tiefsee.plan.serving.loop import Load
from tiefsee.plan.serving.step import PREFILL_TOKENS, decode_s, prefill_each_s
from tiefsee.plan.serving.worker import Worker

# Runs that cannot be what they say: TPOT of 85 ms whether 40 or 224 requests run, and answers that are as slow as
# the fastest chip's with ten times the load (docs/log.md, 2026-11-28).
IMPOSSIBLE = {("4000", "1000")}


@dataclass(frozen=True, eq=False)
class Sample:
    """One run or point. `answer(efficiency, drafts, accepted)` and `measured` are logarithms of seconds, in the order
    of `quantities` (tpot, ttft, prefill). `drafts` is None where nobody knows whether drafts were made, `accepted`
    where nobody says how many were accepted; `num_assumed` counts what of its layout was guessed."""

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
    accepted: float | None = None
    num_assumed: int = 0


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
    num_prefill, slots = (run.num_prefill if prefill else 0), (run.slots or math.inf)
    return Deployment(decode, run.num_decode, run.precision, prefill, num_prefill, slots)


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
        (math.log(run.tpot_s), math.log(run.ttft_s)), answer, situation, run.drafts, None, len(run.assumed),
    )  # fmt: skip


def sample_of_point(point: Point, years: Callable[[str], float]) -> Sample:
    """A decode, prefill or end-to-end point. Raises ConfigError for what it does not say enough about."""
    chip, spec = find_chip(point.chip), find_spec(point.model)
    imbalance = 1.0 if point.imbalance == "balanced" else None
    overlap = point.overlap if point.overlap is not None else point.stack in OVERLAPPING_STACKS

    def worker(role: Role | None) -> tuple[Worker, int]:
        chosen = chip if role is None else find_chip(role.chip)
        layout = {k: v for k, v in (point.layout if role is None else role.layout).items() if k in LAYOUT_KEYS}
        count = point.num_chips if role is None else role.num_chips
        precision = (role.precision if role is not None else "") or point.precision
        made = make_worker(
            spec, chosen, layout, precision, kv_precision=point.kv_precision, imbalance=imbalance, overlap=overlap,
            num_chips=count,
        )  # fmt: skip
        return made, max(1, count // made.num_chips)

    decode, num_decode = worker(point.decode)
    prefill, num_prefill = worker(point.prefill) if point.prefill is not None else (None, 0)
    if point.kind == "decode" and prefill is None:
        prefill, num_prefill = decode, 1  # somewhere else
    slots = point.decode.slots if point.decode is not None else None
    deployment = Deployment(decode, num_decode, point.precision, prefill, num_prefill, slots or math.inf)
    context = point.seen_context if point.kind == "decode" else point.isl
    requests = point.batch or point.concurrency or float(decode.dp * num_decode)
    if context is None or (point.kind == "e2e" and not point.osl):
        raise ConfigError(f"{point.id}: the lengths are not known")
    osl = point.osl or 0.0

    def load(drafts: int, accepted: float) -> Load:
        return Load(requests, context, osl if point.kind == "e2e" else 0.0, point.cached * context, accepted, drafts)

    def answer(e: Efficiency, drafts: int, accepted: float) -> tuple[float, ...]:
        if point.kind == "decode":
            return (math.log(decode_s(decode, requests / num_decode, context, drafts, e) / (1 + accepted)),)
        if point.kind == "prefill":
            new = context * (1 - point.cached)
            together = max(1.0, requests / decode.dp / num_decode) * new if point.batch else PREFILL_TOKENS
            each = prefill_each_s(decode, context, point.cached * context, e, together)
            return (math.log(each / context / decode.dp * decode.num_chips),)
        served = deployment.serve(load(drafts, accepted), e)
        if point.quantity == "ttft":
            return (math.log(served.ttft_s),)
        return (math.log(served.tpot_s if point.quantity == "tpot" else served.ttft_s / osl + served.tpot_s),)

    year = years(full_date(point.date))
    quantity = "prefill" if point.kind == "prefill" else "ttft" if point.quantity == "ttft" else "tpot"
    return Sample(
        point.id, point.family, (point.family, point.kind or ""), chip.vendor, point.stack, full_date(point.date),
        (quantity,), (math.log(_seconds(point, requests)),), answer,
        lambda drafts, accepted: deployment.situation(load(drafts, accepted), point.stack, year),
        point.mtp_drafts, point.mtp_acceptance,
    )  # fmt: skip


def _seconds(point: Point, requests: float) -> float:
    """What was measured, as seconds: of a token of one request, or of one chip."""
    if point.unit in ("tpot_s", "ttft_s"):
        return point.value
    if point.unit != "tokens_per_s_per_chip" or point.quantity not in ("input_throughput", "output_throughput"):
        raise ConfigError(f"{point.id}: {point.quantity} in {point.unit} says nothing of a time")
    if point.kind == "prefill":
        return 1 / point.value
    return requests / (point.value * point.num_chips)


def samples_of_points(points: Iterable[Point], years: Callable[[str], float]) -> tuple[list[Sample], list[str]]:
    """(samples of points on serving, why others were left out). A lower bound is no measurement."""
    samples, refused = [], []
    for point in points:
        if not point.is_scored or point.kind == "train" or point.lower_bound:
            continue
        try:
            samples.append(sample_of_point(point, years))
        except ConfigError as error:
            refused.append(f"{point.id}: {error}")
    return samples, refused


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
