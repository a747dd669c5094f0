"""The inputs that a served load depends on, with the ranges that they have, and the question that takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, Figure
from tiefsee.plan.efficiency import FIELDS, Efficiency
from tiefsee.plan.sensitivity import Function, Input
from tiefsee.plan.serving import Load, Worker, serve_aggregated

Quantity = Literal["tokens_per_s_per_chip", "tpot_s", "ttft_s", "usd_per_million_tokens"]
# What a reader calls the efficiencies; any other goes by its own name.
LABELS = {
    "matmul": "share of peak in dense products", "experts": "share of peak in experts",
    "attention": "share of peak in attention", "matmul_memory": "share of bandwidth in dense products",
    "experts_memory": "share of bandwidth in experts", "attention_memory": "share of bandwidth in attention",
    "near": "share of the near link", "far": "share of the far link", "prefill": "prefill against decode, arithmetic",
    "launch_s": "launch of an operator", "step_s": "host, per step", "near_s": "latency of the near link",
    "far_s": "latency of the far link", "request_s": "front, per request",
}  # fmt: skip


def serving_inputs(
    worker: Worker, e: Efficiency, *, efficiency_spread: Mapping[str, float], workload: Sequence[Input] = ()
) -> tuple[Input, ...]:
    """Chip figures with their ranges, efficiencies within `efficiency_spread` (field -> factor), price and workload.

    `workload` are Inputs named isl, osl, concurrency, cached, accepted or imbalance; whoever asks knows their ranges.
    """
    chip = worker.chip
    figures = [("memory_bytes_per_s", chip.memory_bytes_per_s, "bytes_per_s", "memory bandwidth")]
    figures += [(f"peak.{name}", figure, "flops_per_s", name.upper()) for name, figure in chip.flops_per_s.items()]
    figures += [(f"link.{i}", link.bytes_per_s, "bytes_per_s", link.name) for i, link in enumerate(chip.links)]
    if chip.usd_per_hour is not None:
        figures.append(("usd_per_hour", chip.usd_per_hour, "usd_per_chip_hour", "price"))
    found = [Input(name, f.low, f.value, f.high, unit, f"{label} of {chip.name}") for name, f, unit, label in figures]
    return (*found, *_efficiencies(e, efficiency_spread), *workload)


def _efficiencies(e: Efficiency, spread: Mapping[str, float]) -> Iterator[Input]:
    for name, factor in spread.items():
        if name not in FIELDS:
            raise ConfigError(f"{name!r} is no efficiency; there are {', '.join(FIELDS)}")
        value = float(getattr(e, name))
        unit = "s" if name.endswith("_s") else "share" if value <= 1 else "factor"
        high = min(value * factor, 1.0) if unit == "share" else value * factor  # nothing is faster than its peak
        yield Input(f"efficiency.{name}", value / factor, value, high, unit, LABELS.get(name, name.replace("_", " ")))


def serving_question(worker: Worker, replicas: int, load: Load, e: Efficiency, quantity: Quantity) -> Function:
    """What an aggregated deployment gives, for the inputs of `serving_inputs`."""

    def question(values: Mapping[str, float]) -> float:
        moved = replace(worker, chip=_chip(worker.chip, values), imbalance=values.get("imbalance", worker.imbalance))
        changed = replace(
            load, isl=values.get("isl", load.isl), osl=values.get("osl", load.osl),
            concurrency=values.get("concurrency", load.concurrency), cached=values.get("cached", load.cached),
            accepted=values.get("accepted", load.accepted),
        )  # fmt: skip
        own = {n.removeprefix("efficiency."): v for n, v in values.items() if n.startswith("efficiency.")}
        served = serve_aggregated(moved, replicas, changed, replace(e, **own))
        if quantity in ("tpot_s", "ttft_s"):
            return float(getattr(served, quantity))
        each = served.output_tokens_per_s(changed.osl) / (replicas * worker.num_chips)
        if quantity == "tokens_per_s_per_chip":
            return each
        if "usd_per_hour" not in values:
            raise ConfigError(
                f"{worker.chip.name} has no public price; ask for tokens_per_s_per_chip, or give usd_per_hour"
            )
        return values["usd_per_hour"] / 3600 / each * 1e6

    return question


def _chip(chip: Chip, values: Mapping[str, float]) -> Chip:
    """The chip with other figures."""
    memory = _moved(chip.memory_bytes_per_s, values.get("memory_bytes_per_s"))
    peaks = {name: _moved(figure, values.get(f"peak.{name}")) for name, figure in chip.flops_per_s.items()}
    links = tuple(
        replace(link, bytes_per_s=_moved(link.bytes_per_s, values.get(f"link.{i}")))
        for i, link in enumerate(chip.links)
    )
    return replace(chip, memory_bytes_per_s=memory, flops_per_s=peaks, links=links)


def _moved(figure: Figure, value: float | None) -> Figure:
    return figure if value is None or value == figure.value else replace(figure, value=value, low=value, high=value)
