"""One document with a chart of every kind, and texts that would break a page which trusts them."""

from __future__ import annotations

import math

from tiefsee.plan.figures.estimate import Estimate, around
from tiefsee.plan.report import (
    Chart,
    Column,
    Document,
    Frontier,
    FrontierPoint,
    Line,
    NamedEstimate,
    RangeBar,
    RangeBars,
    Roof,
    Roofline,
    RoofPoint,
    Scaling,
    ScalingPoint,
    Source,
    Swing,
    Table,
    TimeBar,
    TimeBars,
    Tornado,
    interactivity,
)

HOSTILE = "<script>alert(\"1\")</script> & 'x' https://evil.example/a.js"
RATE, TPOT, USD = "tokens_per_s_per_chip", "tpot_s", "usd_per_million_tokens"


def tpot(seconds: float) -> Estimate:
    return around(seconds, 1.2, TPOT, "fitted")


def point(seconds: float, rate: float, label: str = "", *, chosen: bool = False) -> FrontierPoint:
    return FrontierPoint(interactivity(tpot(seconds)), around(rate, 1.2, RATE, "fitted"), label, chosen)


def frontier(num: int = 5) -> Frontier:
    lines = tuple(
        Line(name, tuple(point(0.01 * (i + 1) * k, 400 * (i + 1) / k, f"b {2**i}", chosen=i == 2) for i in range(num)))
        for name, k in (("32 x H200", 1.0), (f"32 x 910C {HOSTILE}", 1.3))
    )
    return Frontier("Throughput against interactivity", lines, 0.05, sources=("model",))


def scaling(num: int = 4) -> Scaling:
    points = []
    for i in range(num):
        lost = 0.04 * i
        shares = (("compute", 0.8 - 2 * lost), ("bubble", 0.1 + lost), ("exposed communication", 0.1 + lost))
        rate = around(1500 * 512 * 4**i * (0.8 - 2 * lost), 1.15, "tokens_per_s", "fitted")
        points.append(ScalingPoint(512 * 4**i, rate, around(0.4 - lost, 1.1, "mfu", "fitted"), shares))
    return Scaling("Training on more cards", tuple(points))


def roofline() -> Roofline:
    points = tuple(
        RoofPoint(f"op.{i}", phase, "fp8", 10.0 ** (i / 2), 1e12 * 3**i, 1e-3, 0.2)
        for phase in ("prefill", "decode")
        for i in range(5)
    )
    return Roofline("Roofline of a chip", (Roof("FP8", 2e15), Roof("BF16", 1e15)), (Roof("HBM", 4.8e12),), points)


def time_bars() -> TimeBars:
    parts = tuple((f"part {i}", 1e-3 * (10 - i)) for i in range(10))
    bars = tuple(TimeBar(f"step {n}", around(0.055 * n, 1.2, "step_s", "fitted"), parts) for n in (1, 2))
    return TimeBars("Where a step's time goes", bars)


def costs() -> RangeBars:
    bars = (
        RangeBar("32 x H200", around(2.3, 1.3, USD, "fitted"), chosen=True),
        RangeBar(
            "32 x 910C", None, "no public price: breaks even with 32 x H200 at 1.7 USD per card-hour (1.5 .. 2.1)"
        ),
    )
    return RangeBars("Cost of output tokens by fleet", "price of output", USD, bars)


def tornado() -> Tornado:
    swings = (
        Swing("prompt length", "2,048 .. 8,192 tokens", 1.7, 3.7),
        Swing("batch", "8 .. 80", 2.8, None, "none at 80: it does not fit by 3 GB"),
        Swing(HOSTILE, "1 .. 2", 2.2, 2.4),
    )
    return Tornado("What moves the price most", "price of output", around(2.3, 1.2, USD, "fitted"), swings)


def charts() -> tuple[Chart, ...]:
    return (frontier(), scaling(), roofline(), time_bars(), costs(), tornado())


def degenerate() -> tuple[Chart, ...]:
    """One point, none, and numbers that are none."""
    nan, nothing = float("nan"), Estimate(math.nan, math.nan, math.nan, RATE, "fitted")
    broken = FrontierPoint(interactivity(tpot(0.01)), nothing, "b 1")
    roofs = (Roof("FP8", 1e15),), (Roof("HBM", 1e12),)
    one = Estimate(2.0, 2.0, 2.0, USD, "fitted")
    return (
        frontier(1), frontier(0), Frontier("none", ()), Frontier("nan", (Line("a", (broken, point(0.02, 100))),)),
        scaling(1), scaling(0), Scaling("nan", (ScalingPoint(8, nothing),)),
        Roofline("none", (), (), ()),
        Roofline("copy", *roofs, (RoofPoint("a", "p", "fp8", 0.0, 0.0, 1e-3, 1.0),)),
        Roofline("nan", *roofs, (RoofPoint("a", "p", "fp8", nan, nan, nan, nan),)),
        TimeBars("none", ()), TimeBars("nan", (TimeBar("a", Estimate(nan, nan, nan, "step_s", "fitted"), ()),)),
        TimeBars("zero", (TimeBar("a", around(1e-3, 1.2, "step_s", "fitted"), (("x", 0.0),)),)),
        RangeBars("none", "price", USD, ()), RangeBars("unknown", "price", USD, (RangeBar("a", None),)),
        RangeBars("nan", "price", RATE, (RangeBar("a", nothing),)),
        RangeBars("one", "price", USD, (RangeBar("a", one),)),
        Tornado("none", "price", one, ()), Tornado("flat", "price", one, (Swing("a", "1 .. 2", 2.0, 2.0),)),
        Tornado("nan", "price", one, (Swing("a", "1 .. 2", nan, None, "none"),)),
    )  # fmt: skip


def document(more: tuple[Chart, ...] = ()) -> Document:
    rate = around(1903.0, 1.2, RATE, "fitted")
    columns = (Column("fleet", "fleet"), Column("chips", "cards", "chips"), Column("tpot", "TPOT", TPOT))
    rows = (("32 x H200", 32, tpot(0.0094)), (HOSTILE, 64, None), ("c", 8, Estimate(math.nan, 1, 2, TPOT, "rumour")))
    return Document(
        title=f"V3 {HOSTILE}",
        question=f"How fast? {HOSTILE}",
        answer="1,900 tokens/s per chip (1,600 .. 2,300).",
        grade="fitted",
        bottleneck="reading the experts",
        figures=(NamedEstimate("throughput", "Output", rate, ("model",)), NamedEstimate("tpot", "TPOT", tpot(0.0094))),
        tables=(Table("Fleets", columns, rows, "a note", 0, ("model",)),),
        charts=(*charts(), *more),
        sources=(Source("other", HOSTILE), Source("model", "docs/plan.md")),
        notes=(HOSTILE,),
        command=f"tiefsee plan serve {HOSTILE}",
        date="2026-11-28",
        data={"deep": [rate, math.inf]},
    )
