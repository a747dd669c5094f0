"""Operators by themselves: each call again on the judged device, with the inputs that the reference had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tiefsee.engine import EngineCore
from tiefsee.ops import Operators, reference
from tiefsee.ops.weight import dense
from tiefsee.parity.calls import PICKS, ROPE, Call
from tiefsee.parity.measures import PickErrors, channel_errors, pick_errors, row_errors, scale_error
from tiefsee.parity.recording import Recording
from tiefsee.parity.replay import Player
from tiefsee.parity.report import OperatorResult
from tiefsee.parity.tolerances import (
    CHANNEL_FACTOR,
    FLOAT32_INSIDE,
    SCALE_FACTOR,
    NumberFormat,
    Tolerance,
    coarsest,
    row_limit,
)

Tolerances = Mapping[NumberFormat, Tolerance]
# Tries at moving a router by noise, to see whether it decides by a near tie.
NOISE_DRAWS = 32


def judge_calls(
    calls: Sequence[Call], recording: Recording, core: EngineCore, tolerances: Tolerances
) -> tuple[OperatorResult, ...]:
    """All calls again on a device; one result for each operator and number format."""
    player = Player(core)
    found: dict[tuple[str, NumberFormat], list[_Judged]] = {}
    for call in calls:
        number = call_format(call, recording, player)
        found.setdefault((call.operator, number), []).append(_judge(call, player, tolerances[number]))
    return tuple(_joined(name, number, all_of, tolerances[number]) for (name, number), all_of in found.items())


class _Judged:
    """One call: errors of its rows, or its picks, or what it raised."""

    def __init__(self, site: str) -> None:
        self.site = site
        self.errors = torch.zeros(0, dtype=torch.float64)
        self.channel = self.scale = 0.0
        self.num_rows = self.num_different = self.num_wrong = 0
        self.failure: str | None = None

    def add(self, picks: PickErrors) -> None:
        self.num_rows += picks.num_rows
        self.num_different += picks.num_different
        self.num_wrong += picks.num_wrong

    @property
    def worst(self) -> float:
        return float(self.errors.max()) if len(self.errors) else 0.0

    @property
    def order(self) -> tuple[bool, int, float]:
        channel, scale = self.channel / CHANNEL_FACTOR, self.scale / SCALE_FACTOR
        return self.failure is not None, self.num_wrong, max(self.worst, channel, scale)


def _judge(kept: Call, player: Player, tolerance: Tolerance) -> _Judged:
    call, judged = kept.whole(), _Judged(kept.site)
    try:
        outputs = player.play(call)
    except Exception as error:  # a device's operator may refuse anything in any way: that is a finding, too
        judged.failure = said(error)
        return judged
    if [o is None for o in outputs] != [o is None for o in call.outputs]:
        judged.failure = "gives nothing where the reference does, or the other way round"
        return judged
    if call.operator == "pick_keys":
        _judge_keys(judged, call, outputs, tolerance)
        return judged
    if call.operator == "route":
        _judge_route(judged, call, outputs, player, tolerance)
        return judged
    for found, needed in zip(outputs, call.outputs, strict=True):
        if found is None or needed is None:
            continue
        if call.operator in PICKS:
            _judge_picks(judged, call, found, needed, tolerance)
        elif found.shape != needed.shape:
            judged.failure = f"shape {list(found.shape)}, needed {list(needed.shape)}"
        elif needed.numel():
            judged.errors = torch.cat((judged.errors, row_errors(found, needed)))
            judged.num_rows = len(judged.errors)
            if bool(needed.isfinite().all()):
                judged.channel = max(judged.channel, float(channel_errors(found, needed).max()))
                judged.scale = max(judged.scale, scale_error(found, needed))
    return judged


def said(error: Exception) -> str:
    """An exception in a line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _judge_picks(judged: _Judged, call: Call, found: torch.Tensor, needed: torch.Tensor, tolerance: Tolerance) -> None:
    scores, visible = call.arguments[0].float(), None
    if call.operator == "select_entries":
        visible = call.arguments[1]
    near = 0.0 if call.probe or call.operator == "select_experts" else tolerance.near_tie
    judged.add(pick_errors(found.long(), needed.long(), scores, visible, near))


def _judge_keys(judged: _Judged, call: Call, outputs: Sequence[torch.Tensor | None], tolerance: Tolerance) -> None:
    """An indexer in one piece: scores are made again by the definition, to tell near ties. Its own scores are an
    operator's output, on keys as its cache has them, and may be as far off as any."""
    query, weights, cached = call.arguments[:3]
    for found, needed, segment, keys in zip(outputs, call.outputs, cached.segments, cached.rows, strict=True):
        if found is None or needed is None:
            continue
        tokens = slice(segment.first, segment.last)
        scores = reference.index_scores(query[tokens], weights[tokens], keys)
        visible = torch.arange(segment.start, segment.end) + 1 - segment.origin
        judged.add(pick_errors(found.long(), needed.long(), scores, visible, tolerance.operator))


def _judge_route(
    judged: _Judged, call: Call, outputs: Sequence[torch.Tensor | None], player: Player, tolerance: Tolerance
) -> None:
    """A router in one piece: other experts are right where a little noise on the input makes the definition take
    others, too; weights are compared where the experts are the same, whatever their order."""
    (experts, weights), (needed, needed_weights) = outputs, call.outputs
    assert experts is not None and weights is not None and needed is not None and needed_weights is not None  # noqa: PT018
    if experts.shape != needed.shape or weights.shape != needed_weights.shape:
        judged.failure = f"shapes {list(experts.shape)} and {list(weights.shape)}, needed {list(needed.shape)}"
        return
    (ours, order), (theirs, needed_order) = experts.long().sort(-1), needed.long().sort(-1)
    same = (ours == theirs).all(-1)
    by_hash = call.arguments[5] is not None
    near = torch.zeros_like(same) if by_hash or bool(same.all()) else _undecided(call, player, tolerance.near_tie)
    judged.add(PickErrors(len(same), int((~same).sum()), int((~same & ~near).sum())))
    if bool(same.any()):
        errors = row_errors(weights.gather(1, order)[same], needed_weights.gather(1, needed_order)[same])
        judged.errors = torch.cat((judged.errors, errors))


def _undecided(call: Call, player: Player, noise: float) -> torch.Tensor:
    """Rows of a router's call whose experts change with a relative noise on the input, [T]."""
    hidden, weight, bias, router = call.arguments[:4]
    on_cpu = [None if p is None else dense(player.parameters[p.name], torch.float32).cpu() for p in (weight, bias)]
    assert on_cpu[0] is not None
    table, generator = Operators(), torch.Generator().manual_seed(0)
    moved = torch.zeros(len(hidden), dtype=torch.bool)
    for _ in range(NOISE_DRAWS):
        loud = hidden.float() * (1 + noise * torch.randn(hidden.shape, generator=generator))
        picks = table.route(loud, on_cpu[0], on_cpu[1], router, call.arguments[4], None)[0]
        moved |= (picks.sort(-1).values != call.outputs[0].long().sort(-1).values).any(-1)  # type: ignore[union-attr]
    return moved


def _joined(name: str, number: NumberFormat, judged: Sequence[_Judged], tolerance: Tolerance) -> OperatorResult:
    worst = max(judged, key=lambda j: j.order)
    errors = torch.cat([j.errors for j in judged])
    return OperatorResult(
        name, number, len(judged), sum(j.num_rows for j in judged), worst.worst,
        float(errors.median()) if len(errors) else 0.0, row_limit(tolerance, name), worst.site,
        sum(j.num_different for j in judged), sum(j.num_wrong for j in judged),
        next((j.failure for j in judged if j.failure), None), max(j.channel for j in judged),
        max(j.scale for j in judged),
    )  # fmt: skip


def call_format(call: Call, recording: Recording, player: Player) -> NumberFormat:
    """The coarsest number that either side uses for this call: its dtype, weights that only one side has packed,
    activations that meet packed weights as codes, rows of a cache that is packed."""
    dtype = player.network.norm.weight.dtype
    dtypes = {recording.side["dtype"], str(dtype).removeprefix("torch.")}
    if call.operator == ROPE or (call.operator in FLOAT32_INSIDE and len(dtypes) == 1):
        dtypes = {"float32"}
    formats = [*dtypes]
    for there, here in player.kinds(call):
        codes = {
            recording.side.get("activations", {}).get(there.kind),
            player.network.ops.activation_format(here.kind, dtype),
        }
        formats += codes & {"int8", "fp8"}
        if there.kind != here.kind:
            formats += [there.kind, here.kind]
    if call.operator in ("latent_attention", "window_attention", "pick_keys"):
        formats += [player.core.plan.dtype, *(["fp8"] if player.core.plan.layout.packed else [])]
    return coarsest(formats)
