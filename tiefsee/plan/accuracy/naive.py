"""The baseline that predictions have to beat: a roofline with one constant efficiency, and nothing else.

    time = max(FLOPs / peak, bytes / bandwidth) / efficiency

over a whole step; no launches, no links, no queues, no imbalance. It shares the operators' costs and the chips' data
sheets with the planner: what a careful person gets from a spreadsheet in an afternoon. The one constant is the median
over measured rows (TTFT apart, most of which is waiting), and the 80 % interval, by unit, are the quantiles of those
rows' residuals; where they all lie to one side, so does the interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, find_chip
from tiefsee.plan.accuracy.cases import Case
from tiefsee.plan.figures.estimate import Estimate
from tiefsee.plan.fitting.fit import ACCEPTED
from tiefsee.plan.names.formats import compute_format, formats_of
from tiefsee.plan.names.models import find_spec
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import Formats, Shard, Work, step_ops, training_flops_per_token
from tiefsee.spec.model import MoE

RATES = ("tokens_per_s_per_chip", "mfu")
FEW = 5
UNKNOWN = (0.25, 4.0)  # of a quantity that no row has: a guess


@dataclass(frozen=True)
class NaiveAnswer:
    """Times by unit, with the residuals' ends."""

    figures: Mapping[str, float]
    ends: Mapping[str, tuple[float, float]]
    parts: Mapping[str, float] = field(default_factory=dict)

    def estimate(self, unit: str | None = None) -> Estimate:
        if unit is None or unit not in self.figures:
            raise ConfigError(f"the baseline has no {unit}; it has {', '.join(self.figures)}")
        (low, high), value = self.ends[unit], self.figures[unit]
        return Estimate(value, value * low, value * high, unit, "fitted")


@dataclass(frozen=True)
class Naive:
    """`ends` are the 10 and 90 % quantiles of measured / predicted, by kind of question and unit."""

    efficiency: float = 1.0
    ends: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def __call__(self, **question: Any) -> NaiveAnswer:
        kind = question["kind"]
        found = _train(question) if kind == "train" else _serve(question)
        scaled = {u: v * self.efficiency if u in RATES else v / self.efficiency for u, v in found.items()}
        return NaiveAnswer(scaled, {u: self.ends.get((kind, u), UNKNOWN) for u in scaled})


def fit_naive(cases: Iterable[Case]) -> Naive:
    """The constant that is right in the middle, and how far rows lie from it."""
    logs: dict[tuple[str, str], list[float]] = {}
    for case in cases:
        if case.lower_bound or case.part or case.is_open:
            continue
        try:
            ideal = Naive()(**case.questions[0]).estimate(case.unit).value * case.factor
        except ConfigError:
            continue
        sign = 1.0 if case.unit in RATES else -1.0
        logs.setdefault((case.questions[0]["kind"], case.unit), []).append(sign * math.log(case.value / ideal))
    if not logs:
        raise ConfigError("nothing to fit the baseline on: no case of these that it can compute")
    plain = [value for (_, unit), values in logs.items() for value in values if unit != "ttft_s"]
    middle = statistics.median(plain or [value for values in logs.values() for value in values])
    ends = {}
    for key, values in logs.items():
        few = len(values) < FEW  # too few for quantiles of their own: all rows' then
        off = sorted((value - middle) * (1.0 if key[1] in RATES else -1.0) for value in (plain if few else values))
        low, high = off[int(0.1 * (len(off) - 1))], off[math.ceil(0.9 * (len(off) - 1))]
        ends[key] = (math.exp(low), math.exp(high))
    return Naive(math.exp(middle), ends)


def _serve(q: Mapping[str, Any]) -> dict[str, float]:
    spec, osl, disagg = find_spec(q["model"]), q.get("osl") or 0.0, q.get("disagg")
    decode = _pool(q, disagg["decode"] if disagg else {})
    prefill = _pool(q, disagg["prefill"] if disagg else {})
    isl, new = q["isl"], q["isl"] * (1 - q.get("cache_hit", 0.0))
    prompt_s = prefill.step_s(spec, Work(new, 1.0, isl - new, expert_tokens=new * prefill.groups))
    input_rate = prefill.groups * prefill.replicas * isl / prompt_s / prefill.num_chips
    if q["kind"] == "prefill":
        return {"ttft_s": prompt_s, "tokens_per_s_per_chip": input_rate}
    requests = q.get("batch") or q.get("concurrency")
    if not requests:
        raise ConfigError("batch is missing; needed are the requests on all chips together")
    each = max(1.0, requests / (decode.replicas * decode.groups))
    drafts = q.get("mtp_drafts") or 0
    accepted = q.get("mtp_acceptance", 0.0)
    if accepted is None:  # nobody says: what drafts bring elsewhere
        accepted = ACCEPTED.get(drafts, 0.0)
    tokens = each * (1 + drafts)
    work = Work(tokens, each, isl + osl / 2, decode=True, expert_tokens=tokens * decode.groups, num_logits=tokens)
    tpot_s = decode.step_s(spec, work) / (1 + accepted)
    if q["kind"] == "decode":
        return {"tpot_s": tpot_s, "tokens_per_s_per_chip": requests / tpot_s / decode.num_chips}
    if not disagg:  # the others' prompts stop decoding
        tpot_s += each * prompt_s / osl
    chips = decode.num_chips + (prefill.num_chips if disagg else 0)
    rate = requests * osl / (prompt_s + osl * tpot_s) / chips
    return {"tpot_s": tpot_s, "ttft_s": prompt_s, "tokens_per_s_per_chip": rate}


def _train(q: Mapping[str, Any]) -> dict[str, float]:
    spec, chip = find_spec(q["model"]), find_chip(q["chip"])
    peak = chip.peak(compute_format(chip, formats_of(q["precision"]).linear)).value
    rate = peak / training_flops_per_token(spec, int(q["isl"]), with_mtp=True)
    step_s = q["batch"] * q["isl"] / rate / q["num_chips"]
    bf16 = chip.peak("bf16").value
    return {
        "tokens_per_s_per_chip": rate,
        "step_s": step_s,
        "mfu": peak / bf16,
        "gpu_hours": (q.get("tokens") or 0.0) / rate / 3600,
    }


@dataclass(frozen=True)
class _Pool:
    chip: Chip
    num_chips: int
    groups: int
    replicas: int
    shard: Shard
    formats: Formats

    def step_s(self, spec: ModelSpec, work: Work) -> float:
        """Seconds of a step at the data sheet's peaks: arithmetic or memory, whichever is longer in all."""
        compute_s = memory_s = 0.0
        for op in step_ops(spec, work, self.formats, self.shard):
            peak = self.chip.peak(compute_format(self.chip, op.format)).value
            compute_s += op.count * op.cost.flops / peak
            memory_s += op.count * op.cost.bytes / self.chip.memory_bytes_per_s.value
        return max(compute_s, memory_s)


def _pool(q: Mapping[str, Any], role: Mapping[str, Any]) -> _Pool:
    layout: Mapping[str, int] = role.get("layout", q.get("layout") or {})
    tp, dp, ep = (layout.get(name, 1) for name in ("tp", "dp", "ep"))
    moe_tp = layout.get("moe_tp", max(1, tp * dp // ep))
    num_chips = role.get("num_chips", q["num_chips"])
    if not any(isinstance(layer.ffn, MoE) for layer in find_spec(q["model"]).layers):
        ep = moe_tp = 1
    return _Pool(
        find_chip(role.get("chip", q["chip"])), num_chips, dp, max(1, num_chips // (tp * dp)), Shard(tp, ep, moe_tp),
        formats_of(role.get("precision") or q["precision"], q.get("kv_precision") or ""),
    )  # fmt: skip
