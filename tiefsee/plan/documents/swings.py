"""Which input a plan turns on: its deployment is filled anew, within the levels, with each input at its ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, Figure
from tiefsee.plan.documents.sensitivity import Function, Input, tornado, vary
from tiefsee.plan.figures.estimate import Estimate
from tiefsee.plan.names.formats import compute_format
from tiefsee.plan.report import Tornado
from tiefsee.plan.search.fill import meet
from tiefsee.plan.search.goal import Pool, Workload
from tiefsee.plan.search.misses import Misses
from tiefsee.plan.search.placement import Placement, Plan, Role
from tiefsee.plan.search.question import Question
from tiefsee.plan.search.sides import Side

# How far a workload may lie from what was said of it: lengths by a factor, the others up to these.
LENGTHS, MOST_CACHED, ONE_DRAFT, UNEVEN = 2.0, 0.5, 0.85, 1.5
LEAST = 0.005  # of the answer: what moves it less is not shown


def plan_tornado(plan: Plan, question: Question, estimate: Estimate) -> Tornado:
    """Of the output's price where all cards have one, else of the output per card; `estimate` is that figure's."""
    base, swings = vary(question_of(plan, question), inputs_of(plan))
    priced = plan.usd_per_hour is not None
    title = "What the answer turns on"
    axis = "price of output" if priced else "output per card"
    felt = [s for s in swings if s.size >= LEAST * base]
    chart = tornado(title, axis, estimate.scaled(base / estimate.value, estimate.unit), felt)
    note = "The chosen workers, with as many requests as the levels and the memory allow."
    return replace(chart, note=f"{note} {chart.note}".strip())


def inputs_of(plan: Plan) -> tuple[Input, ...]:
    """Workload, chips' figures and prices, with the ranges that they have."""
    pools = {role.pool.name: role.pool for role in plan.placement.roles}
    formats = {role.pool.name: role.worker.formats for role in plan.placement.roles}
    figures = []
    for name, pool in pools.items():
        chip = pool.chip
        used = dict.fromkeys(compute_format(chip, f) for f in (formats[name].linear, formats[name].experts, "bf16"))
        figures.append((f"memory.{name}", chip.memory_bytes_per_s, "bytes_per_s", f"memory bandwidth of {chip.name}"))
        figures += [
            (f"peak.{f}.{name}", chip.flops_per_s[f], "flops_per_s", f"{f.upper()} of {chip.name}") for f in used
        ]
        if pool.usd_per_hour is not None:
            figures.append((f"price.{name}", pool.usd_per_hour, "usd_per_chip_hour", f"price of {name}"))
    return (
        *_workload_inputs(plan),
        *(Input(key, f.low, f.value, f.high, unit, label) for key, f, unit, label in figures),
    )


def _workload_inputs(plan: Plan) -> Iterator[Input]:
    load = plan.placement.workload
    longest = load.spec.max_position_embeddings
    lengths = (("isl", load.isl, load.osl, "prompt", 1), ("osl", load.osl, load.isl, "answer", 2))
    for name, tokens, other, text, least in lengths:
        high = max(tokens, min(tokens * LENGTHS, longest - other))
        yield Input(name, max(least, tokens / LENGTHS), tokens, high, "tokens", text)
    yield Input("cached", 0.0, load.cache_hit, max(MOST_CACHED, load.cache_hit), "share", "prompts found in the cache")
    if load.spec.mtp_layers:
        drafts, mean = load.drafts, load.mtp_acceptance
        low, high = (mean / 2, min(float(drafts), 1.2 * mean)) if drafts else (0.0, ONE_DRAFT)
        yield Input("accepted", low, mean, max(high, mean), "", f"accepted drafts of {drafts or 1} per step")
    worker = plan.placement.decode.worker
    if worker.ep > 1:
        value = unevenness(plan)
        yield Input("imbalance", 1.0, value, value * UNEVEN, "", "fullest rank of experts over the mean")


def unevenness(plan: Plan) -> float:
    """The load of the fullest expert rank over the mean, as it was said or as the model of time has it."""
    decode = plan.placement.decode
    said = decode.worker.imbalance
    return said if said is not None else 1.0 + decode.pool.efficiency.skew * decode.worker.spread


def question_of(plan: Plan, question: Question) -> Function:
    """The figure, for the inputs of `inputs_of`. Raises ConfigError where the workers can't serve within the levels."""
    before, usual = plan.placement, unevenness(plan)

    def ask(values: Mapping[str, float]) -> float:
        load = _workload(before.workload, values, usual)
        decode = _role(before.decode, load, values, prefill=before.prefill is None)
        prefill = None if before.prefill is None else _role(before.prefill, load, values, decode=False)
        misses = Misses()
        found = meet(Placement(load, decode, prefill, before.correct), question.slo, question.demand, misses)
        if found is None:
            raise ConfigError("these workers don't serve it within the levels")
        prices = [(role.num_chips, values.get(f"price.{role.pool.name}")) for role in found.placement.roles]
        if any(price is None for _, price in prices):
            return found.tokens_per_s_per_chip
        hourly = sum(chips * price for chips, price in prices if price is not None)
        return hourly / (found.tokens_per_s * 3600) * 1e6

    return ask


def _workload(load: Workload, values: Mapping[str, float], usual: float) -> Workload:
    accepted = values.get("accepted", load.mtp_acceptance)
    uneven = values.get("imbalance", usual)
    return replace(
        load, isl=round(values["isl"]), osl=round(values["osl"]), cache_hit=values["cached"], mtp_acceptance=accepted,
        drafts=load.drafts or int(accepted > 0), imbalance=load.imbalance if uneven == usual else uneven,
    )  # fmt: skip


def _role(
    role: Role, load: Workload, values: Mapping[str, float], *, prefill: bool = True, decode: bool = True
) -> Role:
    chip = _moved_chip(role.pool.chip, role.pool.name, values)
    pool: Pool = role.pool
    if chip is not pool.chip:
        pool = replace(pool, chip=chip, sold=chip if pool.sold is pool.chip else pool.sold)
    worker = replace(role.worker, chip=chip, imbalance=load.imbalance)
    return Side(pool, load).role(worker, role.count, prefill=prefill, decode=decode)


def _moved_chip(chip: Chip, pool: str, values: Mapping[str, float]) -> Chip:
    memory = _moved(chip.memory_bytes_per_s, values.get(f"memory.{pool}"))
    peaks = {name: _moved(figure, values.get(f"peak.{name}.{pool}")) for name, figure in chip.flops_per_s.items()}
    if memory is chip.memory_bytes_per_s and all(peaks[name] is figure for name, figure in chip.flops_per_s.items()):
        return chip
    return replace(chip, memory_bytes_per_s=memory, flops_per_s=peaks)


def _moved(figure: Figure, value: float | None) -> Figure:
    return figure if value is None or value == figure.value else replace(figure, value=value, low=value, high=value)


__all__ = ["inputs_of", "plan_tornado", "question_of"]
