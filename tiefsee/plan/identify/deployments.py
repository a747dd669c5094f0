"""The deployments that could be behind an endpoint, and what `plan.serving` says of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, chip_names, find_chip
from tiefsee.plan.fitted.efficiency import calibration
from tiefsee.plan.identify.hypothesis import Guess, Hypothesis, Predictor, Quantity, Row
from tiefsee.plan.names.formats import formats_of, usual_precision
from tiefsee.plan.serving.deployment import Deployment
from tiefsee.plan.serving.loop import Load, serve_aggregated
from tiefsee.plan.serving.worker import Worker
from tiefsee.spec import ModelSpec, checkpoint_tensors
from tiefsee.spec.cost import Formats
from tiefsee.spec.cost.types import BYTES

# Drafts that are accepted of each: DeepSeek-V3's report, section 5.4.3, says 0.85 to 0.9; other texts give less.
ACCEPTED = (0.6, 0.85)
REPLICAS = (1, 2, 4)
ROOM = 0.85  # of the memory: cache, activations and graphs want the rest
DOUBLINGS = 3  # of the fewest chips that hold the weights
MOST_TP = 16


def hypotheses_of(spec: ModelSpec, chips: Sequence[str], rows: Sequence[Row]) -> tuple[Hypothesis, ...]:
    """Every legal combination, for chips that can be had; raises ConfigError if nothing holds the model."""
    found = [h for name in chips for h in _of_chip(spec, find_chip(name), rows)]
    if not found:
        raise ConfigError(f"no layout of up to {2**DOUBLINGS} times a node of {', '.join(chips)} holds the weights")
    return tuple(found)


def usual_chips() -> tuple[str, ...]:
    """Those that can be had; nobody serves on a chip that is only announced. Where the die of a package is an entry of
    its own (Ascend 910C), it is the rank, and stands for both."""
    names = [name for name in chip_names() if not find_chip(name).is_announced_only]
    return tuple(name for name in names if f"{name}-die" not in names)


def _of_chip(spec: ModelSpec, chip: Chip, rows: Sequence[Row]) -> Iterator[Hypothesis]:
    precisions = dict.fromkeys((usual_precision(chip), *(["fp4"] if chip.has("fp4") else [])))
    replicas = REPLICAS if any(row.concurrency > 1 for row in rows) else REPLICAS[:1]
    for precision in precisions:
        for tp, dp, ep in _layouts(spec, chip, formats_of(precision)):
            for drafts, accepted in _speculations(spec, rows):
                for count in replicas:
                    yield Hypothesis(chip.name, precision, tp, dp, ep, drafts, accepted, count)


def _speculations(spec: ModelSpec, rows: Sequence[Row]) -> Iterator[tuple[int, float]]:
    """Rows that say how many drafts were accepted leave one choice."""
    known = {row.accepted for row in rows if row.accepted is not None}
    if not spec.mtp_layers or known == {0.0}:
        yield 0, 0.0
        return
    if known:
        yield max(1, math.ceil(max(known))), sum(known) / len(known)
        return
    yield 0, 0.0
    for accepted in ACCEPTED:
        yield 1, accepted


def _layouts(spec: ModelSpec, chip: Chip, formats: Formats) -> Iterator[tuple[int, int, int]]:
    """(tp, dp, ep): tensor parallel, with experts spread or split over all; data parallel; four ranks to a group."""
    num = 1
    while weight_bytes(spec, formats) > ROOM * num * chip.memory_bytes.value and num < 4096:
        num *= 2
    seen = set()
    for _ in range(DOUBLINGS):
        wide = num if has_experts(spec) else 1
        for tp, ep in ((min(num, MOST_TP), wide), (min(num, MOST_TP), 1), (1, wide), (4, wide)):
            layout = (tp, num // tp, ep)
            if num % tp == 0 and layout not in seen and _is_legal(spec, chip, formats, layout):
                seen.add(layout)
                yield layout
        num *= 2


def _is_legal(spec: ModelSpec, chip: Chip, formats: Formats, layout: tuple[int, int, int]) -> bool:
    """Whether heads, experts and widths divide, and links join so many chips: asked by predicting one token."""
    try:
        worker = _worker(spec, chip, formats, *layout)
        serve_aggregated(worker, 1, Load(1, 16, 2), calibration().of(chip.vendor, None))
    except ConfigError:
        return False
    return True


def _worker(spec: ModelSpec, chip: Chip, formats: Formats, tp: int, dp: int, ep: int) -> Worker:
    """Experts that are not spread over all ranks are split over those that are left."""
    return Worker(spec, chip, formats, tp, dp, ep, tp * dp // ep if has_experts(spec) else 1)


def has_experts(spec: ModelSpec) -> bool:
    return any(hasattr(layer.ffn, "n_routed_experts") for layer in spec.layers)


@lru_cache(maxsize=32)
def weight_bytes(spec: ModelSpec, formats: Formats) -> float:
    """Weights of a whole replica: experts and other linears in their formats, the rest in BF16."""
    total = 0.0
    for tensor in checkpoint_tensors(spec):
        stored = formats.experts if tensor.expert is not None else formats.linear if tensor.kind == "linear" else "bf16"
        total += tensor.num_values * BYTES[stored]
    return total


def predictor_of(spec: ModelSpec, spread: Mapping[Quantity, float]) -> Predictor:
    """What `plan.serving` says, within `spread`, under the middle of all stacks; fitted.py moves it to what was
    measured."""

    def guess(h: Hypothesis, row: Row) -> Guess:
        served = deployment_of(spec, h).serve(load_of(h, row), calibration().of(find_chip(h.chip).vendor, None))
        return Guess(served.ttft_s, served.tpot_s, spread["ttft_s"], spread["tpot_s"])

    return guess


@lru_cache(maxsize=8192)
def deployment_of(spec: ModelSpec, h: Hypothesis) -> Deployment:
    worker = _shared_worker(spec, h.chip, h.precision, h.tp, h.dp, h.ep)
    return Deployment(worker, h.replicas, h.precision)


@lru_cache(maxsize=4096)
def _shared_worker(spec: ModelSpec, chip: str, precision: str, tp: int, dp: int, ep: int) -> Worker:
    """Steps are kept by worker: hypotheses that differ in drafts and replicas share them."""
    return _worker(spec, find_chip(chip), formats_of(precision), tp, dp, ep)


def load_of(h: Hypothesis, row: Row) -> Load:
    accepted = h.accepted if row.accepted is None or not h.drafts else row.accepted
    return Load(row.concurrency, row.isl, row.osl, row.cached, accepted, h.drafts)


def wanted_rows(spec: ModelSpec) -> tuple[Row, ...]:
    """Loads that anybody can measure on an endpoint, within the model's context."""
    loads = ((1024, 256, 1), (32768, 64, 1), (131072, 64, 1), (1024, 256, 16), (1024, 256, 64), (8192, 256, 64))
    most = spec.max_position_embeddings
    return tuple(Row(isl, osl, c) for isl, osl, c in loads if isl + osl <= most or isl == 1024)
