"""Answers to questions about serving: the model's figure, moved and ranged by what was measured nearby."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, Figure
from tiefsee.plan.figures.estimate import Estimate, Grade
from tiefsee.plan.figures.money import price_of, usd_per_million_tokens
from tiefsee.plan.figures.prediction import Prediction
from tiefsee.plan.names.formats import conversion_note
from tiefsee.plan.question import Question
from tiefsee.plan.serving.deployment import Deployment, as_ranks
from tiefsee.plan.serving.step import PREFILL_TOKENS, decode_s, decode_step, prefill_each_s, prefill_s, prefill_step
from tiefsee.plan.serving.worker import Worker

TAIL = 1.2816  # deviations that leave a tenth of a normal distribution outside, on one side


def answer_decode(q: Question) -> Prediction:
    """Steps of a full batch, prefill elsewhere."""
    worker, replicas = q.workers()
    requests = q.requests("batch")
    if requests < worker.dp * replicas:
        raise ConfigError(
            f"batch is {requests:g} for {worker.dp * replicas} attention groups; it counts the requests of all chips "
            f"together: for {requests:g} on each group give {requests * worker.dp * replicas:g}"
        )
    e, context, each = q.efficiency(worker.chip), q.tokens + q.osl / 2, requests / replicas

    def tpot_s(w: Worker) -> float:
        return decode_s(w, each, context, q.drafts, e) / (1 + q.accepted)

    situation = q.situation(Deployment(worker, replicas, q.precision, worker, 1), requests)
    mean, deviation = q.calibrated.correction("tpot", situation)
    grade = grade_of(worker.chip, q.calibrated.grade(situation, "tpot"))
    value = tpot_s(worker) * math.exp(mean)
    tpot = ranged(value, with_chip(deviation, worker, tpot_s), "tpot_s", grade)
    figures = {
        "tpot_s": tpot,
        "step_s": tpot.scaled(1 + q.accepted, "step_s"),
        "tokens_per_s_per_chip": tpot.inverse(requests / q.num_chips, "tokens_per_s_per_chip"),
    }
    parts = decode_step(worker, each / worker.pp, context, q.drafts).parts(e) | {"host": e.step_s}
    return _prediction("decode", "tpot_s", figures, parts, q, (worker,))


def answer_prefill(q: Question) -> Prediction:
    """Prompts as fast as they go, and one alone."""
    worker, replicas = q.workers()
    e, cached, groups = q.efficiency(worker.chip), q.cache_hit * q.tokens, worker.dp * replicas
    step_tokens = PREFILL_TOKENS if q.batch is None else max(1.0, q.batch / groups) * (q.tokens - cached)

    def each_s(w: Worker) -> float:
        return prefill_each_s(w, q.tokens, cached, e, step_tokens)

    situation = q.situation(Deployment(worker, replicas, q.precision, worker, 1), q.batch or groups)
    mean, deviation = q.calibrated.correction("prefill", situation)
    grade = grade_of(worker.chip, q.calibrated.grade(situation, "prefill"))
    deviation = with_chip(deviation, worker, each_s)
    rate = groups * q.tokens / (each_s(worker) * math.exp(mean)) / q.num_chips
    alone = prefill_s(worker, q.tokens, cached, e) * math.exp(mean) + e.request_s
    figures = {
        "ttft_s": ranged(alone, deviation, "ttft_s", grade),
        "tokens_per_s_per_chip": ranged(rate, deviation, "tokens_per_s_per_chip", grade),
    }
    new = min(step_tokens, PREFILL_TOKENS)
    parts = prefill_step(worker, new, max(1.0, new / (q.tokens - cached)), cached).parts(e, eager=True)
    return _prediction("prefill", "ttft_s", figures, parts | {"host": e.step_s}, q, (worker,))


def answer_e2e(q: Question, disagg: Mapping[str, Any] | None) -> Prediction:
    """A closed loop of requests, on one pool or on two."""
    if q.osl <= 0:
        raise ConfigError("osl is missing; needed are the tokens of an answer")
    requests = q.requests("concurrency")
    d, num_chips = q.deployment(disagg)
    load, first = q.load(requests), d.prefill or d.decode
    decode_e, prefill_e = q.efficiency(d.decode.chip), q.efficiency(first.chip)
    served = d.serve(load, decode_e, prefill_e)
    situation = q.situation(d, requests)
    tpot_mean, tpot_deviation = q.calibrated.correction("tpot", situation)
    ttft_mean, ttft_deviation = q.calibrated.correction("ttft", situation)
    tpot_deviation = with_chip(
        tpot_deviation, d.decode, lambda w: replace(d, decode=w).serve(load, decode_e, prefill_e).tpot_s
    )
    grade = grade_of(d.decode.chip, q.calibrated.grade(situation, "tpot"))
    tpot_s, ttft_s = served.tpot_s * math.exp(tpot_mean), served.ttft_s * math.exp(ttft_mean)
    whole_s = ttft_s + q.osl * tpot_s
    share = ttft_s / whole_s
    # Waiting and decoding err apart from one another; in a request's whole time each counts by its share.
    deviation = math.hypot(share * ttft_deviation, (1 - share) * tpot_deviation)
    rate = requests * q.osl / whole_s
    figures = {
        "tokens_per_s_per_chip": ranged(rate / num_chips, deviation, "tokens_per_s_per_chip", grade),
        "tpot_s": ranged(tpot_s, tpot_deviation, "tpot_s", grade),
        "ttft_s": ranged(ttft_s, ttft_deviation, "ttft_s", grade),
    }
    w = d.decode
    parts = decode_step(w, max(1.0, served.batch) / w.pp, load.context, q.drafts).parts(decode_e)
    between = max(0.0, served.tpot_s * (1 + q.accepted) - served.step_s)
    parts = parts | {"host": decode_e.step_s} | ({"prefill between steps": between} if between else {})
    return _prediction("e2e", "tokens_per_s_per_chip", figures, parts, q, (d.decode, first))


def ranged(value: float, deviation: float, unit: str, grade: Grade) -> Estimate:
    """80 % of a log-normal distribution around `value`, its median."""
    factor = math.exp(TAIL * deviation)
    return Estimate(value, value / factor, value * factor, unit, grade)


def grade_of(chip: Chip, evidence: Grade) -> Grade:
    """A chip that was only announced makes a rumour of any answer."""
    return "rumour" if chip.is_announced_only else evidence


def with_chip(deviation: float, worker: Worker, seconds: Callable[[Worker], float]) -> float:
    """The deviation, widened by what is not known of the chip: all its figures low together, or high."""
    if all(figure.is_certain for figure in _figures(worker.chip)):
        return deviation
    slow, fast = (seconds(replace(worker, chip=at_end(worker.chip, end))) for end in ("low", "high"))
    return math.hypot(deviation, math.log(slow / fast) / (2 * TAIL))


def at_end(chip: Chip, end: str) -> Chip:
    """The chip if all its figures lie at one end of their ranges."""

    def moved(figure: Figure) -> Figure:
        value = getattr(figure, end)
        return replace(figure, value=value, low=value, high=value)

    links = tuple(replace(link, bytes_per_s=moved(link.bytes_per_s)) for link in chip.links)
    return replace(
        chip, flops_per_s={name: moved(peak) for name, peak in chip.flops_per_s.items()},
        memory_bytes_per_s=moved(chip.memory_bytes_per_s), links=links,
    )  # fmt: skip


def _figures(chip: Chip) -> list[Figure]:
    """What times depend on."""
    return [chip.memory_bytes_per_s, *chip.flops_per_s.values(), *(link.bytes_per_s for link in chip.links)]


def _prediction(
    kind: str, main: str, figures: dict[str, Estimate], parts: Mapping[str, float], q: Question,
    workers: tuple[Worker, ...],
) -> Prediction:  # fmt: skip
    """Money, where a price is public, the largest part, sources and notes."""
    price = price_of(q.chip)
    if price is not None and {worker.chip.name for worker in workers} == {as_ranks(q.chip, 1)[0].name}:
        figures = figures | {"usd_per_million_tokens": usd_per_million_tokens(figures["tokens_per_s_per_chip"], price)}
    chips = {worker.chip.name: worker.chip for worker in workers}
    sources = dict.fromkeys(figure.source for chip in chips.values() for figure in _figures(chip))
    notes = [note for worker in workers if (note := conversion_note(worker.chip, worker.formats))]
    return Prediction(
        kind, main, figures, dict(sorted(parts.items(), key=lambda part: -part[1])), max(parts, key=lambda p: parts[p]),
        (*sources, q.calibrated.base.fitted_on), tuple(dict.fromkeys(notes)),
    )  # fmt: skip
