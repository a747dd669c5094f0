"""The example picture of docs/plan.md, from the present model of time: python docs/pictures/make.py [FOLDER]

With a folder, the page too. DeepSeek-V3 on H200, H20 and Ascend 910C. Efficiencies are not fitted yet:
figures and ranges are placeholders.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tiefsee.hardware import Chip, find_chip
from tiefsee.plan.efficiency import Efficiency, calibration
from tiefsee.plan.estimate import Estimate, Grade, around
from tiefsee.plan.formats import formats_of, usual_precision
from tiefsee.plan.report import (
    Column,
    Document,
    Frontier,
    FrontierPoint,
    Line,
    NamedEstimate,
    RangeBar,
    RangeBars,
    Scaling,
    ScalingPoint,
    Source,
    Table,
    TimeBar,
    TimeBars,
    Tornado,
    interactivity,
    show,
)
from tiefsee.plan.report.html import page
from tiefsee.plan.report.png import write_png
from tiefsee.plan.report.roofline import roofline
from tiefsee.plan.sensitivity import Input, tornado, vary
from tiefsee.plan.sensitivity_serving import serving_inputs, serving_question
from tiefsee.plan.serving import Load, Worker, decode_s, decode_step, serve_aggregated
from tiefsee.spec import preset

SPEC = preset("v3")
SPREAD, SPREAD_TTFT = 1.2, 1.4
CHIPS: dict[str, tuple[str, Grade]] = {
    "h200": ("H200", "fitted"), "h20": ("H20", "fitted"), "ascend-910c": ("Ascend 910C", "datasheet"),
}  # fmt: skip
NUM_CHIPS, ISL, OSL, LIMIT_TPOT_S = 32, 4096, 1024, 0.05
PER_CHIP = (1, 2, 4, 8, 16, 24, 32, 48)  # requests of each card


@dataclass(frozen=True)
class Found:
    """One load of one fleet."""

    fleet: str
    worker: Worker
    per_chip: int
    load: Load
    tpot: Estimate
    ttft: Estimate
    each: Estimate
    grade: Grade


def worker_of(chip: Chip, num_chips: int) -> Worker:
    return Worker(SPEC, chip, formats_of(usual_precision(chip)), 1, num_chips, num_chips)


def efficiency_of(chip: Chip) -> Efficiency:
    return calibration().of(chip.vendor, None)


def loads_of(name: str) -> list[Found]:
    title, grade = CHIPS[name]
    chip = find_chip(name)
    worker, found = worker_of(chip, NUM_CHIPS), []
    for per_chip in PER_CHIP:
        load = Load(per_chip * NUM_CHIPS, ISL, OSL)
        served = serve_aggregated(worker, 1, load, efficiency_of(chip))
        each = served.output_tokens_per_s(OSL) / NUM_CHIPS
        tpot = around(served.tpot_s, SPREAD, "tpot_s", grade)
        ttft = around(served.ttft_s, SPREAD_TTFT, "ttft_s", grade)
        throughput = around(each, SPREAD, "tokens_per_s_per_chip", grade)
        found.append(Found(f"{NUM_CHIPS} x {title}", worker, per_chip, load, tpot, ttft, throughput, grade))
    return found


def best_of(found: list[Found]) -> Found:
    return max([f for f in found if f.tpot.value <= LIMIT_TPOT_S] or found[:1], key=lambda f: f.each.value)


def frontier(fleets: list[list[Found]], chosen: Found) -> Frontier:
    lines = tuple(
        Line(found[0].fleet, tuple(
            FrontierPoint(interactivity(f.tpot), f.each, f"b {f.per_chip}", chosen=f is chosen) for f in found
        ))
        for found in fleets
    )  # fmt: skip
    note = "b is the number of requests per card. Prefill and decode share the cards."
    return Frontier("Throughput against interactivity", lines, LIMIT_TPOT_S, note, ("model",))


def time_bars(best: list[Found]) -> TimeBars:
    bars = []
    for f in best:
        e = efficiency_of(f.worker.chip)
        parts = {**decode_step(f.worker, f.load.concurrency, f.load.context).parts(e), "host": e.step_s}
        seconds = decode_s(f.worker, f.load.concurrency, f.load.context, 0, e)
        total = around(seconds, SPREAD, "step_s", f.grade)
        bars.append(TimeBar(f"{f.fleet}, {f.per_chip} requests per card", total, tuple(parts.items())))
    return TimeBars("Where a decode step's time goes", tuple(bars), "Steps of the loads that are best within the SLO.")


def price_of(f: Found) -> Estimate | None:
    usd = f.worker.chip.usd_per_hour
    if usd is None:
        return None
    pairs = ((usd.value, f.each.value), (usd.low, f.each.high), (usd.high, f.each.low))
    return Estimate(*(usd / 3600 / rate * 1e6 for usd, rate in pairs), "usd_per_million_tokens", f.grade)


def costs(best: list[Found]) -> RangeBars:
    bars, reference = [], price_of(best[0])
    assert reference is not None
    for f in best:
        price, remark = price_of(f), ""
        if price is None:
            rates = (f.each.value, f.each.low, f.each.high)
            even = Estimate(*(reference.value * rate * 3600 / 1e6 for rate in rates), "usd_per_chip_hour", f.grade)
            remark = f"no public price: breaks even with {best[0].fleet} at {show(even)}"
        bars.append(RangeBar(f.fleet, price, remark, chosen=f is best[0]))
    title = "Cost of output tokens by fleet"
    return RangeBars(title, "price of output", "usd_per_million_tokens", tuple(bars), sources=("tco",))


def scaling() -> Scaling:
    chip, points = find_chip("ascend-910c"), []
    for num in (16, 32, 64, 128, 256, 320):
        worker, e = worker_of(chip, num), efficiency_of(chip)
        step = decode_step(worker, 48 * num, ISL)
        operators, collectives = step.seconds(e)
        whole = operators + collectives + e.step_s
        experts = sum(s for name, s in step.parts(e).items() if name.startswith("experts"))
        parts = {
            "attention and the rest": operators - experts, "experts": experts,
            "exposed exchange of experts": collectives, "host": e.step_s,
        }  # fmt: skip
        rate = around(48 * num / whole, SPREAD, "tokens_per_s", "datasheet")
        points.append(ScalingPoint(num, rate, None, tuple((name, s / whole) for name, s in parts.items())))
    return Scaling("Decode on more 910C: experts over all of them, 48 requests per card", tuple(points))


def sensitivity(f: Found) -> Tornado:
    e = efficiency_of(f.worker.chip)
    workload = (
        Input("isl", ISL / 2, ISL, ISL * 2, "tokens", "prompt length"),
        Input("osl", OSL / 2, OSL, OSL * 2, "tokens", "answer length"),
        Input("accepted", 0.0, 0.0, 0.8, "", "MTP: accepted drafts per step"),
        Input("cached", 0.0, 0.0, ISL / 2, "tokens", "prompt tokens in the prefix cache"),
        Input("imbalance", 1.0, 1.0, 1.5, "factor", "busiest expert rank over the mean"),
    )
    spread = {"matmul": 1.15, "experts_memory": 1.15, "attention_memory": 1.25, "far": 1.2, "launch_s": 1.4}
    inputs = serving_inputs(f.worker, e, efficiency_spread=spread, workload=workload)
    base, swings = vary(serving_question(f.worker, 1, f.load, e, "usd_per_million_tokens"), inputs)
    return tornado(
        "What moves the price most", "price of output", around(base, SPREAD, "usd_per_million_tokens", f.grade), swings
    )


def table(best: list[Found]) -> Table:
    columns = (
        Column("fleet", "fleet"), Column("precision", "format"), Column("batch", "requests per card"),
        Column("tpot", "TPOT", "tpot_s"), Column("ttft", "TTFT", "ttft_s"),
        Column("throughput", "throughput", "tokens_per_s_per_chip"), Column("grade", "evidence"),
    )  # fmt: skip
    rows = tuple((f.fleet, f.worker.formats.linear.upper(), f.per_chip, f.tpot, f.ttft, f.each, f.grade) for f in best)
    return Table("The best load of each fleet within the SLO", columns, rows, chosen=0)


def document() -> Document:
    fleets = [loads_of(name) for name in CHIPS]
    best = [best_of(found) for found in fleets]
    chosen = best[0]
    steps, money = time_bars(best), costs(best)
    name, seconds = max(steps.bars[0].parts, key=lambda part: part[1])
    share = seconds / sum(s for _, s in steps.bars[0].parts)
    price, usd = price_of(chosen), chosen.worker.chip.usd_per_hour
    assert price is not None
    assert usd is not None
    limit = f"{LIMIT_TPOT_S * 1e3:g} ms"
    e = efficiency_of(chosen.worker.chip)
    return Document(
        title="DeepSeek-V3 on 32 H200",
        question=f"Which load serves prompts of {ISL:,} and answers of {OSL:,} tokens within {limit} per token?",
        answer=f"{chosen.per_chip * NUM_CHIPS} requests at once, experts over all {NUM_CHIPS} cards: "
        f"{show(chosen.each)} at a TPOT of {show(chosen.tpot)}.",
        grade="fitted",
        bottleneck=f"{name}, {share:.0%} of a decode step",
        figures=(
            NamedEstimate("throughput", "Output", chosen.each),
            NamedEstimate("tpot", "TPOT", chosen.tpot),
            NamedEstimate("ttft", "TTFT", chosen.ttft),
            NamedEstimate("usd_per_million_tokens", "Price", price, ("tco",)),
        ),
        tables=(table(best),),
        charts=(
            frontier(fleets, chosen), steps, money, sensitivity(chosen),
            roofline(chosen.worker, e, batch=chosen.load.concurrency, context=chosen.load.context), scaling(),
        ),
        sources=(Source("model", "tiefsee's model of time, docs/plan.md"), Source("tco", usd.source)),
        notes=("An example of the drawing: efficiencies are not fitted yet, figures and ranges are placeholders.",),
        command="tiefsee plan serve --model deepseek-ai/DeepSeek-V3 --chips h200:32 --isl 4096 --osl 1024 --tpot-ms 50",
        date=date.today().isoformat(),
    )  # fmt: skip


def main() -> None:
    found = document()
    if len(sys.argv) > 1:
        (Path(sys.argv[1]) / "serve.html").write_text(page(found), encoding="utf-8")
    write_png((Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent) / "serve.png", found)


if __name__ == "__main__":
    main()
