"""What `tiefsee check plan` found, as plain data: for --json, for the terminal and for docs/accuracy.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tiefsee.plan.accuracy.cases import GROUPS
from tiefsee.plan.accuracy.goals import REASONS, Goal, goals_of
from tiefsee.plan.accuracy.score import Scored, Summary, both_answered, by, summarise, worst

NUM_WORST = 3  # of each group
UNSAID = """Whether these made drafts is not recorded. Where the time itself tells (a run far faster than its like
drafted), that is taken; else the nearer of two answers, with three drafts and with none. Either way the figures below
are accuracy given the drafts, so these runs are in no other table."""


@dataclass(frozen=True)
class Line:
    """One line of a table. The baseline's interval score is of the rows that both have answered, and so is ours
    beside it (`paired_score`)."""

    group: str
    chips: str
    planner: Summary
    baseline: Summary | None
    paired_score: float = math.nan
    paired_baseline_score: float = math.nan


@dataclass(frozen=True)
class Report:
    """`lines` by group, `families` by family; runs that may have drafted are apart in `open`. `goals` are of
    cross-validation alone."""

    title: str
    lines: tuple[Line, ...]
    families: tuple[Line, ...]
    open: tuple[Line, ...]
    scored: tuple[Scored, ...]
    inexpressible: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = field(default=())
    goals: tuple[Goal, ...] = ()

    @property
    def worst(self) -> list[Scored]:
        return [s for group in GROUPS for s in worst((s for s in self.scored if s.case.group == group), NUM_WORST)]

    @property
    def refused(self) -> list[Scored]:
        return [s for s in self.scored if s.predicted is None]


@dataclass(frozen=True)
class Part:
    """Rows that are judged together under one heading: how they were predicted, and how by the baseline."""

    chips: str
    scored: Sequence[Scored]
    naive: Sequence[Scored]


def make_report(
    title: str, parts: Iterable[Part], rows: Iterable[Scored], *, inexpressible: Iterable[tuple[str, str]] = (),
    notes: Iterable[str] = (), with_goals: bool = False,
) -> Report:  # fmt: skip
    """Tables of all parts; `rows` are listed one by one."""
    rows = tuple(rows)
    lines, families, unsaid = [], [], []
    for part in parts:
        known = [s for s in part.scored if not s.case.is_open]
        for group in GROUPS:
            lines += _lines(group, part, [s for s in known if s.case.group == group])
        for family, scored in by(known, lambda case: f"{case.family}: {case.group}").items():
            families += _lines(family, part, scored)
        for group in GROUPS:
            unsaid += _lines(group, part, [s for s in part.scored if s.case.is_open and s.case.group == group])
    bounds = summarise([s for s in rows if s.case.lower_bound])
    if bounds.num_bounds:
        notes = (*notes, f"lower bounds, in no error: {bounds.num_bounds_held} of {bounds.num_bounds} are allowed for")
    goals = goals_of(lines) if with_goals else ()
    return Report(title, tuple(lines), tuple(families), tuple(unsaid), rows, tuple(inexpressible), tuple(notes), goals)


def _lines(name: str, part: Part, scored: Sequence[Scored]) -> list[Line]:
    if not scored:
        return []
    keys = {(s.case.id, s.case.unit, s.case.part) for s in scored}
    naive = [s for s in part.naive if (s.case.id, s.case.unit, s.case.part) in keys]
    ours, theirs = both_answered(scored, naive)
    found = summarise(naive) if any(s.predicted is not None for s in naive) else None
    scores = (summarise(ours).interval_score, summarise(theirs).interval_score)
    return [Line(name, part.chips, summarise(scored), found, *scores)]


def as_json(report: Report) -> dict[str, Any]:
    """Numbers that are none (nothing measured, everything refused) are null."""
    return {
        "title": report.title,
        "groups": [_line(line) for line in report.lines],
        "families": [_line(line) for line in report.families],
        "drafts_unknown": [_line(line) for line in report.open],
        "rows": [_row(s) for s in report.scored],
        "refused": [{"id": s.case.id, "unit": s.case.unit, "why": s.refusal} for s in report.refused],
        "inexpressible": [{"id": name, "why": why} for name, why in report.inexpressible],
        "notes": list(report.notes),
        "goals": [_goal(goal) for goal in report.goals],
    }


def _goal(goal: Goal) -> dict[str, Any]:
    numbers = {"found": _number(goal.found), "aim": _number(goal.aim)}
    return asdict(goal) | numbers | {"reached": goal.is_reached}


def _line(line: Line) -> dict[str, Any]:
    return {
        "group": line.group,
        "chips": line.chips,
        "planner": _summary(line.planner) | {"paired_interval_score": _number(line.paired_score)},
        "baseline": None
        if line.baseline is None
        else _summary(line.baseline) | {"paired_interval_score": _number(line.paired_baseline_score)},
    }


def _summary(summary: Summary) -> dict[str, Any]:
    return {name: _number(value) for name, value in asdict(summary).items()} | {"refused": _number(summary.refused)}


def _row(s: Scored) -> dict[str, Any]:
    case, found = s.case, s.predicted
    return {
        "id": case.id, "family": case.family, "group": case.group, "unit": case.unit, "measured": case.value,
        "predicted": found and found.value, "low": found and found.low, "high": found and found.high,
        "grade": found and found.grade, "error": _number(s.error), "covered": s.is_covered,
        "lower_bound": case.lower_bound, "seen": case.seen, "drafts_unknown": case.is_open,
        "assumed": list(case.assumed), "refusal": s.refusal,
    }  # fmt: skip


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


HEADINGS = (
    "group", "chips", "", "figures", "refused", "median error", "P90", "bias", "in 80 %", "high/low", "score", "macro",
)  # fmt: skip
# Of a terminal's narrower table, whose first column joins the first three.
SHORT = ("figures", "n", "ref", "med", "P90", "bias", "in", "h/l", "score", "macro")


def table(lines: Iterable[Line]) -> list[tuple[str, ...]]:
    """Rows of text under HEADINGS, two for each line: ours, then the baseline's."""
    rows = []
    for line in lines:
        rows.append((line.group, line.chips, "tiefsee", *_cells(line.planner, line.paired_score)))
        if line.baseline is not None:
            rows.append(("", "", "roofline", *_cells(line.baseline, line.paired_baseline_score)))
    return rows


def _cells(s: Summary, paired: float) -> tuple[str, ...]:
    return (
        f"{s.num_cases}", f"{s.refused:.0%}" if s.num_refused else "0", percent(s.median_error), percent(s.p90_error),
        percent(s.bias, sign=True), percent(s.coverage), _plain(s.sharpness), _plain(paired), percent(s.macro_error),
    )  # fmt: skip


def percent(value: float, *, sign: bool = False) -> str:
    """Two digits, as many as the inputs carry: 7.3 %, 24 %, 340 %."""
    if not math.isfinite(value):
        return "∞" if value == math.inf else "-"
    digits = 1 if abs(value) < 0.0995 else 0
    return f"{value * 100:{'+' if sign else ''}.{digits}f} %"


def _plain(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def describe(s: Scored) -> str:
    """One row in words, for the list of the worst."""
    unit = s.case.part or s.case.unit
    if s.predicted is None:
        return f"{s.case.id}: {unit}: refused: {s.refusal}"
    more = f"; {', '.join(s.case.assumed)} assumed" if s.case.assumed else ""
    found = f"{s.predicted.value:.3g} ({s.predicted.low:.3g} to {s.predicted.high:.3g})"
    return f"{s.case.id}: {unit} measured {s.case.value:.3g}, predicted {found}{more}"


def describe_goals(goals: Sequence[Goal]) -> str:
    """How many are reached, and all that are not."""
    missed = [goal for goal in goals if not goal.is_reached]
    said = f"{len(goals) - len(missed)} of {len(goals)} goals are reached" + (". Missed are:" if missed else ".")
    lines = [f"* {g.group}, {g.chips} chips: {g.what} {_figure(g, g.found)}, aim {_figure(g, g.aim)}" for g in missed]
    why = [f"* {group}: {reason}." for group, reason in REASONS.items() if any(g.group == group for g in missed)]
    return "\n".join([said, "", *lines, "", "Why:", "", *why] if lines else [said])


def _figure(goal: Goal, value: float) -> str:
    return _plain(value) if goal.what in ("high/low", "score") else percent(value)


def as_markdown(report: Report, intro: str, widest: Callable[[str], str] = str.strip) -> str:
    """The page docs/accuracy.md."""
    blocks = [f"# {report.title}", widest(intro)]
    blocks += [_markdown_table(report.lines)]
    if report.goals:
        blocks += ["## What is aimed for", describe_goals(report.goals)]
    if report.open:
        blocks += ["## Runs that may have drafted", UNSAID, _markdown_table(report.open)]
    blocks += ["## By family", _markdown_table(report.families)]
    blocks += ["## The worst of each group", "\n".join(f"* {describe(s)}" for s in report.worst)]
    if report.refused:
        blocks += ["## Refused", "\n".join(f"* {s.case.id}: {s.refusal}" for s in report.refused)]
    if report.inexpressible:
        blocks += ["## Points that cannot be expressed", "\n".join(f"* {i}: {why}" for i, why in report.inexpressible)]
    if report.notes:
        blocks += ["## Notes", "\n".join(f"* {note}" for note in report.notes)]
    return "\n\n".join(blocks) + "\n"


def _markdown_table(lines: Iterable[Line]) -> str:
    rows = [HEADINGS, ("---",) * len(HEADINGS), *table(lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
