"""A verdict as a document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tiefsee.hardware import Chip, find_chip
from tiefsee.plan.figures.estimate import Estimate, Grade, around, weakest
from tiefsee.plan.identify.field import Field
from tiefsee.plan.identify.hypothesis import Hypothesis, Row
from tiefsee.plan.identify.next import Next
from tiefsee.plan.identify.verdict import FITS, NOT_ASKED, Verdict
from tiefsee.plan.report import Column, Document, NamedEstimate, RangeBar, RangeBars, Table
from tiefsee.plan.report.machine import plain
from tiefsee.plan.report.numbers import show_plain

SHOWN, SUGGESTED = 8, 3  # layouts in the table, measurements in the notes


def answer(
    model: str,
    field: Field,
    verdict: Verdict,
    grade_of: Callable[[Chip], Grade],
    *,
    command: str,
    date: str,
) -> Document:
    """What could be behind the rows of the field."""
    rows = list(dict.fromkeys(o.row for o in field.observed))
    best = verdict.hypotheses[0][0]
    grade = weakest(grade_of(find_chip(chip)) for chip in verdict.candidates)
    guess = field.predictor(best, rows[0])
    return Document(
        title=f"What serves {model}?",
        question=f"{len(rows)} measured loads: which of {len(verdict.chips)} chips, in which layout, could give them?",
        answer=_sentence(verdict),
        grade=grade,
        bottleneck=f"the prediction's own error: 80% of TPOT within a factor of {guess.tpot_spread:.3g}, "
        f"of TTFT {guess.ttft_spread:.3g}",
        figures=tuple(
            NamedEstimate(f"probability.{chip}", chip, _certain(p), ())
            for chip, p in verdict.chips
            if chip in verdict.candidates
        ),
        tables=(_layouts(verdict), _fit(field, best, rows, grade)),
        charts=(_bars(verdict),),
        notes=(
            *verdict.doubts,
            *map(_advice, verdict.next[:SUGGESTED]),
            f"not asked about: {NOT_ASKED}",
        ),
        command=command,
        date=date,
        data=_data(verdict),
    )


def _sentence(verdict: Verdict) -> str:
    chip, probability = verdict.chips[0]
    best = next(h for h, _ in verdict.hypotheses if h.chip == chip)
    if verdict.is_told:
        return (
            f"{find_chip(chip).title}, with a probability of {probability:.0%}; of its layouts {best.layout} fits best."
        )
    names = " or ".join(f"{name} ({p:.0%})" for name, p in verdict.chips if name in verdict.candidates)
    if verdict.fit < FITS:
        return f"Nothing that was asked about fits; the nearest is {names}."
    return f"It can't be told. It may be {names}: {verdict.doubts[0].split(':')[0]}."


def _certain(probability: float) -> Estimate:
    return Estimate(probability, probability, probability, "probability", "fitted")


def _bars(verdict: Verdict) -> RangeBars:
    shown = [(chip, p) for chip, p in verdict.chips if p >= 0.005]
    bars = tuple(RangeBar(chip, _certain(p), chosen=chip in verdict.candidates) for chip, p in shown)
    rest = len(verdict.chips) - len(shown)
    note = f"Bold: the fewest that hold 90% together. {rest} chips of less than 0.5% are not shown." if rest else ""
    return RangeBars("Probability by chip", "probability", "probability", bars, note)


def _layouts(verdict: Verdict) -> Table:
    columns = (
        Column("layout", "deployment"), Column("chip", "chip"), Column("num_chips", "cards"),
        Column("probability", "probability", "probability"),
    )  # fmt: skip
    rows = tuple((h.layout, h.chip, h.num_chips * h.replicas, p) for h, p in verdict.hypotheses[:SHOWN])
    note = (
        f"{SHOWN} of {len(verdict.hypotheses)}; those of one chip are hard to tell apart" if len(rows) == SHOWN else ""
    )
    return Table("The likeliest deployments", columns, rows, note, chosen=0)


def _fit(field: Field, best: Hypothesis, rows: Sequence[Row], grade: Grade) -> Table:
    columns = (
        Column("isl", "prompt", "tokens"), Column("osl", "answer", "tokens"), Column("concurrency", "requests"),
        Column("ttft", "TTFT measured", "ttft_s"), Column("ttft_predicted", "predicted", "ttft_s"),
        Column("tpot", "TPOT measured", "tpot_s"), Column("tpot_predicted", "predicted", "tpot_s"),
    )  # fmt: skip
    lines = []
    for row in rows:
        guess = field.predictor(best, row)
        ttft = around(guess.ttft_s, guess.ttft_spread, "ttft_s", grade)
        tpot = around(guess.tpot_s, guess.tpot_spread, "tpot_s", grade)
        seen = (_measured(row.ttft_s, "ttft_s"), ttft, _measured(row.tpot_s, "tpot_s"), tpot)
        lines.append((round(row.isl), round(row.osl), round(row.concurrency), *seen))
    return Table(f"The rows, and {best.layout}", columns, tuple(lines))


def _measured(seconds: float | None, unit: str) -> Estimate | None:
    return None if seconds is None else Estimate(seconds, seconds, seconds, unit, "measured")


def _advice(wanted: Next) -> str:
    row, name = wanted.row, wanted.quantity.removesuffix("_s").upper()
    requests = "one request" if row.concurrency == 1 else f"{row.concurrency:.0f} requests at once"
    first, second = (show_plain(s, wanted.quantity, 2) for s in (wanted.first_s, wanted.second_s))
    return (
        f"{name} of {requests} with {row.isl:,.0f} tokens of prompt would help: {wanted.first.chip} would take about "
        f"{first}, {wanted.second.chip} {second}"
    )


def _data(verdict: Verdict) -> Mapping[str, Any]:
    return {
        "told": verdict.is_told,
        "chips": [{"chip": chip, "probability": p} for chip, p in verdict.chips],
        "hypotheses": [{**plain(h), "probability": p} for h, p in verdict.hypotheses[:50]],
        "candidates": list(verdict.candidates),
        "chance_of_so_large_an_error": verdict.fit,
        "doubts": list(verdict.doubts),
        "next": [plain(n) for n in verdict.next],
    }
