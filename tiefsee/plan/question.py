"""A question about serving, its arguments checked, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, find_chip
from tiefsee.plan.fitted.calibrated import Calibrated
from tiefsee.plan.fitted.efficiency import Efficiency
from tiefsee.plan.fitted.neighbours import Situation
from tiefsee.plan.names.formats import usual_precision
from tiefsee.plan.names.stacks import OVERLAPPING_STACKS
from tiefsee.plan.serving.deployment import Deployment, as_ranks, make_worker
from tiefsee.plan.serving.loop import Load
from tiefsee.plan.serving.worker import Worker
from tiefsee.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Question:
    """See `predict`. `accepted` and `drafts` are per step; `imbalance` is None or a number."""

    spec: ModelSpec
    chip: Chip
    num_chips: int
    layout: Mapping[str, int]
    precision: str
    batch: float | None
    concurrency: float | None
    isl: float | None
    osl: float
    accepted: float
    drafts: int
    cache_hit: float
    imbalance: float | None
    stack: str | None
    date: str | None
    overlap: bool | None
    kv_precision: str
    calibrated: Calibrated

    @property
    def tokens(self) -> float:
        """Of a prompt, or of the context that decode sees."""
        if self.isl is None:
            raise ConfigError("isl is missing; needed are the tokens of a prompt, or of the context that decode sees")
        return self.isl

    def requests(self, name: str) -> float:
        """Batch or concurrency, whichever was given; `name` is the one that should have been."""
        found = (self.batch, self.concurrency) if name == "batch" else (self.concurrency, self.batch)
        given = next((size for size in found if size is not None), None)
        if given is None:
            raise ConfigError(f"{name} is missing; needed are the requests on all chips together")
        return given

    def load(self, concurrency: float) -> Load:
        return Load(concurrency, self.tokens, self.osl, self.cache_hit * self.tokens, self.accepted, self.drafts)

    def workers(self, role: Mapping[str, Any] | None = None) -> tuple[Worker, int]:
        """(the worker, how many of them) of the whole, or of one side of a disaggregated deployment."""
        role = role or {}
        named = role.get("chip", self.chip)
        given = find_chip(named) if isinstance(named, str) else named
        chip, count = as_ranks(given, int(role.get("num_chips", self.num_chips)))
        overlap = self.overlap if self.overlap is not None else self.stack in OVERLAPPING_STACKS
        precision = role.get("precision") or (usual_precision(chip) if "chip" in role else self.precision)
        worker = make_worker(
            self.spec, chip, role.get("layout", self.layout), precision, kv_precision=self.kv_precision,
            imbalance=self.imbalance, overlap=overlap, num_chips=count,
        )  # fmt: skip
        if count % worker.num_chips:
            what = "chips" if chip is given else "dies"
            raise ConfigError(
                f"a worker of tp {worker.tp} x dp {worker.dp} x pp {worker.pp} has {worker.num_chips} {what}, which "
                f"does not divide {count}; change num_chips or the layout"
            )
        return worker, count // worker.num_chips

    def deployment(self, disagg: Mapping[str, Any] | None) -> tuple[Deployment, int]:
        """(what serves, on how many chips)."""
        if disagg is None:
            worker, replicas = self.workers()
            return Deployment(worker, replicas, self.precision), self.num_chips
        missing = [role for role in ("prefill", "decode") if role not in disagg]
        if missing or set(disagg) - {"prefill", "decode"}:
            raise ConfigError(f"disagg has {', '.join(disagg) or 'nothing'}; needed are prefill and decode")
        first, num_first = self.workers(disagg["prefill"])
        second, num_second = self.workers(disagg["decode"])
        precision = disagg["decode"].get("precision") or self.precision
        chips = sum(int(disagg[role].get("num_chips", self.num_chips)) for role in ("prefill", "decode"))
        slots = disagg["decode"].get("slots", math.inf)
        if isinstance(slots, bool) or not isinstance(slots, (int, float)) or not slots > 0:
            raise ConfigError(
                f"decode's slots are {slots!r}; needed are the requests that all its workers hold at most"
            )
        return Deployment(second, num_second, precision, first, num_first, slots), chips

    def efficiency(self, chip: Chip) -> Efficiency:
        return self.calibrated.base.of(chip.vendor, self.stack, self.date)

    def situation(self, deployment: Deployment, concurrency: float) -> Situation:
        year = self.calibrated.base.years(self.date)
        return deployment.situation(self.load(concurrency), self.stack or "", year)


def drafts_of(drafts: int | None, accepted: float) -> int:
    """How many drafts each step verifies. Raises ConfigError where more are accepted than made."""
    if drafts is None:
        # With one draft at most 1 is accepted; published systems make three where they accept more than 0.9.
        return 0 if not accepted else 1 if accepted <= 0.9 else max(3, math.ceil(accepted))
    if drafts < 0 or accepted > drafts:
        raise ConfigError(f"mtp_acceptance is {accepted} of {drafts} drafts; at most all of them are accepted")
    return drafts
