"""What is predicted to be judged: one case for each figure of a point or a measured run, as keywords of `predict`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.hardware import find_chip
from tiefsee.plan.evidence.measured import LENGTH_SHARE, Run
from tiefsee.plan.evidence.points import Point, preset_of

# Groups of figures that are judged together, in the order of reports.
GROUPS = ("decode TPOT", "throughput", "prefill and TTFT", "Ascend serving", "training", "parts of a step")
# Parts of a training step: points name them in words, the model as DeepSeek's table does.
PARTS = {"forward": "1F", "backward_input": "1B", "backward_weight": "1W", "both": "1F1B", "optimizer": "opt"}
DRAFTS_TRIED = (0, 3)  # of runs that may have drafted or not: the nearer answer counts


@dataclass(frozen=True)
class Case:
    """`questions` are one, or those that a run with unknown drafts may have been. An acceptance of None is unknown:
    what drafts bring in the mean. `seen` is set where the figure is among those that the package was fitted on."""

    id: str
    family: str
    group: str
    chip: str
    cell: tuple[str, str, str]
    unit: str
    value: float
    questions: tuple[Mapping[str, Any], ...]
    lower_bound: bool = False
    assumed: tuple[str, ...] = ()
    part: str = ""
    seen: bool = False
    factor: float = 1.0  # the case's figure is so many times that of the unit

    @property
    def is_open(self) -> bool:
        """Whether drafts were made is not known, or known from the time alone that is to be predicted."""
        return len(self.questions) > 1 or not {"drafts", "mtp_drafts"}.isdisjoint(self.assumed)


def cases_of_points(points: Iterable[Point]) -> list[Case]:
    """Cases of all that are scored: expressible, of a kind that is predicted, and counted once."""
    return [case_of_point(point) for point in points if point.is_scored]


def case_of_point(point: Point) -> Case:
    question = {name: value for name, value in point.predict_arguments().items() if value is not None}
    factor = 1.0
    if point.quantity == "total_throughput" and point.isl and point.osl:
        factor = (point.isl + point.osl) / point.osl
    chip = point.decode.chip if point.decode is not None else point.chip
    return Case(
        point.id, point.family or f"{chip} {point.stack or 'unnamed'} {point.source[:40]}",
        group_of(chip, point.kind or "", point.unit, point.part), chip,
        (chip, point.stack, point.precision or (point.decode.precision if point.decode else "")), point.unit,
        point.value, (question,), point.lower_bound, point.assumed, PARTS.get(point.part, point.part),
        factor=factor,
    )  # fmt: skip


def group_of(chip: str, kind: str, unit: str, part: str = "") -> str:
    if kind == "train":
        return "parts of a step" if part else "training"
    if _vendor(chip) == "huawei":
        return "Ascend serving"
    if kind == "prefill" or unit == "ttft_s":
        return "prefill and TTFT"
    return "decode TPOT" if unit == "tpot_s" else "throughput"


def _vendor(chip: str) -> str:
    """Empty for a chip that is not in the catalogue: its rows are refused one by one, not the whole file."""
    try:
        return find_chip(chip).vendor
    except ConfigError:
        return ""


def cases_of_runs(runs: Iterable[Run]) -> list[Case]:
    """TPOT, TTFT and the throughput that follows from both, once for each measurement."""
    found: list[Case] = []
    done: set[tuple[object, ...]] = set()
    for run in sorted(runs, key=lambda run: (len(run.assumed), run.drafts is None)):
        if run.measurement not in done:
            done.add(run.measurement)
            found += case_of_run(run)
    return found


def case_of_run(run: Run) -> list[Case]:
    osl = run.osl * LENGTH_SHARE
    rate = run.concurrency * osl / (run.ttft_s + osl * run.tpot_s) / run.num_chips
    figures = (("tpot_s", run.tpot_s), ("ttft_s", run.ttft_s), ("tokens_per_s_per_chip", rate))
    questions = tuple(question_of_run(run, drafts) for drafts in _drafts_of(run))
    cell = (run.chip, run.stack, run.precision)

    def case(unit: str, value: float) -> Case:
        group = group_of(run.chip, "e2e", unit)
        return Case(run.id, run.family, group, run.chip, cell, unit, value, questions, assumed=run.assumed)

    return [case(unit, value) for unit, value in figures]


def _drafts_of(run: Run) -> tuple[int, ...]:
    return DRAFTS_TRIED if run.drafts is None else (run.drafts,)


def question_of_run(run: Run, drafts: int) -> dict[str, Any]:
    question: dict[str, Any] = {
        "kind": "e2e", "model": preset_of(run.model), "chip": run.chip, "num_chips": run.num_chips,
        "layout": _layout(run.decode), "precision": run.precision, "concurrency": run.concurrency,
        "isl": run.isl * LENGTH_SHARE, "osl": run.osl * LENGTH_SHARE, "stack": run.stack,
        "mtp_drafts": drafts, "mtp_acceptance": None if drafts else 0.0,
    }  # fmt: skip
    if run.date:
        question["date"] = run.date
    if run.prefill is not None:
        question["disagg"] = {
            "prefill": _role(run, run.prefill, run.num_prefill),
            "decode": _role(run, run.decode, run.num_decode) | ({"slots": run.slots} if run.slots else {}),
        }
    return question


def _role(run: Run, sizes: Any, number: int) -> dict[str, Any]:
    return {
        "chip": run.chip, "num_chips": sizes.num_chips * number, "layout": _layout(sizes), "precision": run.precision,
        "num_workers": number,
    }  # fmt: skip


def _layout(sizes: Any) -> dict[str, int]:
    return {"tp": sizes.tp, "dp": sizes.dp, "ep": sizes.ep, "moe_tp": sizes.moe_tp}


def mark_seen(cases: Iterable[Case], known: Iterable[Case]) -> list[Case]:
    """The cases, with those marked that are among `known`: the same id, or the same figure of the same set-up."""
    ids = {case.id for case in known}
    figures = {_figure(case) for case in known}
    return [replace(case, seen=case.id in ids or _figure(case) in figures) for case in cases]


def _figure(case: Case) -> tuple[object, ...]:
    first = case.questions[0]
    return (case.chip, case.unit, f"{case.value:.5g}", first.get("isl"), first.get("concurrency") or first.get("batch"))


def check_families(cases: Iterable[Case]) -> tuple[str, ...]:
    """The families, sorted. Raises ConfigError where there is only one: nothing can be left out then."""
    found = sorted({case.family for case in cases})
    if len(found) < 2:
        raise ConfigError(f"all cases are of one family ({', '.join(found) or 'none'}); needed are two or more")
    return tuple(found)
