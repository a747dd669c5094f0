"""Do two devices answer alike?

    recording = record(reference, prompts)      runs the model once and keeps calls, picks and logits
    report = compare(recording, device)         each call again by itself, then the prompts again

An operator is given the inputs that the reference had, so errors do not add up and the one that is wrong is named.
End to end the prompts run twice: freely, and with the reference's experts and entries, so that one near tie that
falls otherwise does not hide everything behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from tiefsee.engine import EngineCore
from tiefsee.parity.calls import PICKS, Call
from tiefsee.parity.measures import first_divergence, logit_errors, overlap, pick_errors, row_errors
from tiefsee.parity.recording import Recording, describe, keep_logits, structure
from tiefsee.parity.replay import Player
from tiefsee.parity.report import Check, OperatorResult, PromptResult, Report
from tiefsee.parity.run import Run, run
from tiefsee.parity.tolerances import TOLERANCES, NumberFormat, Tolerance, coarsest, row_limit
from tiefsee.parity.watch import Picks, Watch
from tiefsee.schedule import Batch
from tiefsee.spec.model import ModelSpec

NUM_NEW = 8
LIMIT_BYTES = 512e6
Tolerances = Mapping[NumberFormat, Tolerance]


def record(
    core: EngineCore, prompts: Mapping[str, Sequence[int]], *, model: str = "", num_new: int = NUM_NEW,
    limit_bytes: float = LIMIT_BYTES,
) -> Recording:  # fmt: skip
    """Run prompts (name -> tokens) on the reference. Calls are kept of the first step, of the end of the longest
    prompts and of the last decode step, in the first and last layer of each kind."""
    layers = chosen_layers(core.spec)
    watch = Watch(core, wants=_chosen_steps(num_new), limit_bytes=limit_bytes, sites=_in_layers(layers))
    runs = run(core, list(prompts.values()), num_new, watch)
    return Recording(
        model, core.fingerprint, structure(core), describe(core), {n: tuple(t) for n, t in prompts.items()},
        tuple(r.tokens for r in runs), tuple(keep_logits(r.logits) for r in runs), watch.picks,
        tuple(watch.calls), watch.num_left_out,
    )  # fmt: skip


def compare(
    recording: Recording, core: EngineCore, tolerances: Tolerances = TOLERANCES, *,
    operators: Callable[[str], bool] = lambda name: True, end_to_end: bool = True,
) -> Report:  # fmt: skip
    """Judge a device by a recording. `operators` and `end_to_end` leave parts out, for who knows what he asks."""
    recording.check_fits(core)
    device = describe(core)
    number = coarsest([*recording.formats(), *device["formats"], *_unlike_weights(recording, device)])
    results = _compare_operators([c for c in recording.calls if operators(c.operator)], recording, core, tolerances)
    prompts = _compare_prompts(recording, core, tolerances[number]) if end_to_end else ()
    return Report(recording.model, recording.side, device, number, results, prompts, _notes(recording, core))


# ---------------------------------------------------------------------------------------- operators


def _compare_operators(
    calls: Sequence[Call], recording: Recording, core: EngineCore, tolerances: Tolerances
) -> tuple[OperatorResult, ...]:
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
        self.num_rows = self.num_different = self.num_wrong = 0
        self.failure: str | None = None

    @property
    def worst(self) -> float:
        return float(self.errors.max()) if len(self.errors) else 0.0

    @property
    def order(self) -> tuple[bool, int, float]:
        return self.failure is not None, self.num_wrong, self.worst


def _judge(call: Call, player: Player, tolerance: Tolerance) -> _Judged:
    judged = _Judged(call.site)
    try:
        outputs = player.play(call)
    except Exception as error:  # a device's operator may refuse anything in any way: that is a finding, too
        judged.failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return judged
    if [o is None for o in outputs] != [o is None for o in call.outputs]:
        judged.failure = "gives nothing where the reference does, or the other way round"
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
    return judged


def _judge_picks(judged: _Judged, call: Call, found: torch.Tensor, needed: torch.Tensor, tolerance: Tolerance) -> None:
    scores, visible = call.arguments[0].float(), None
    if call.operator == "select_entries":
        visible = call.arguments[1]
    near = 0.0 if call.has_ties or call.operator == "select_experts" else tolerance.near_tie
    errors = pick_errors(found.long(), needed.long(), scores, visible, near)
    judged.num_rows += errors.num_rows
    judged.num_different += errors.num_different
    judged.num_wrong += errors.num_wrong


def _joined(name: str, number: NumberFormat, judged: Sequence[_Judged], tolerance: Tolerance) -> OperatorResult:
    worst = max(judged, key=lambda j: j.order)
    errors = torch.cat([j.errors for j in judged])
    return OperatorResult(
        name, number, len(judged), sum(j.num_rows for j in judged), worst.worst,
        float(errors.median()) if len(errors) else 0.0, row_limit(tolerance, name), worst.site,
        sum(j.num_different for j in judged), sum(j.num_wrong for j in judged),
        next((j.failure for j in judged if j.failure), None),
    )  # fmt: skip


def call_format(call: Call, recording: Recording, player: Player) -> NumberFormat:
    """The coarsest number that either side uses for this call: its dtype, weights that only one side has packed,
    rows of a cache that is packed."""
    formats = [recording.side["dtype"], str(player.network.norm.weight.dtype).removeprefix("torch.")]
    for there, here in player.kinds(call):
        if there.kind != here.kind:
            formats += [there.kind, here.kind]
    if call.operator in ("latent_attention", "window_attention"):
        formats += [player.core.plan.dtype, *(["fp8"] if player.core.plan.layout.packed else [])]
    return coarsest(formats)


# --------------------------------------------------------------------------------------- end to end


def _compare_prompts(recording: Recording, core: EngineCore, tolerance: Tolerance) -> tuple[PromptResult, ...]:
    prompts, given = list(recording.prompts.values()), recording.tokens
    num_new = len(given[0])
    free_watch = Watch(core)
    free = run(core, prompts, num_new, free_watch, given)
    forced = run(core, prompts, num_new, Watch(core, forced=recording.picks), given)
    return tuple(
        _prompt_result(i, name, recording, free[i], forced[i], free_watch.picks, tolerance)
        for i, name in enumerate(recording.prompts)
    )


def _prompt_result(
    index: int, name: str, recording: Recording, free: Run, forced: Run, picks: Picks, tolerance: Tolerance
) -> PromptResult:
    needed = recording.logits[index]
    errors, free_errors = logit_errors(forced.logits, needed), logit_errors(free.logits, needed)
    decisive = errors.margin > tolerance.logits
    agreed = float(errors.same_best[decisive].double().mean()) if bool(decisive.any()) else 1.0
    checks = [
        Check("logits", float(errors.error.median()), tolerance.logits),
        Check("KL", float(errors.kl.mean()), tolerance.kl),
        Check("best token", agreed, tolerance.top1, at_least=True),
    ]
    for kind, limit in (("experts", tolerance.experts), ("entries", tolerance.entries)):
        share = _agreement(recording.picks, picks, index, kind)
        if share is not None:
            checks.append(Check(kind, share, limit, at_least=True))
    return PromptResult(
        name, len(recording.prompts[name]), tuple(checks), float(errors.error.max()), float(errors.kl.max()),
        float(free_errors.same_best.double().mean()), first_divergence(free.best, recording.tokens[index]),
    )  # fmt: skip


def _agreement(needed: Picks, found: Picks, prompt: int, kind: str) -> float | None:
    """Mean share of the picks of one kind that both sides made for a prompt; None where nothing is picked."""
    shares = []
    for site, of_prompts in needed.items():
        if site.endswith("gate") != (kind == "experts"):
            continue
        other = found.get(site, {}).get(prompt, {})
        for position, picks in of_prompts.get(prompt, {}).items():
            theirs = other.get(position)
            same = theirs is not None and theirs.shape == picks.shape
            shares.append(float(overlap(theirs[None], picks[None])) if same and theirs is not None else 0.0)
    return sum(shares) / len(shares) if shares else None


# ---------------------------------------------------------------------------------------- what is looked at


def chosen_layers(spec: ModelSpec) -> set[int]:
    """The first and the last layer of each kind: of attention, feed-forward and compression."""
    kinds: dict[object, list[int]] = {}
    for index, layer in enumerate(spec.layers):
        kinds.setdefault((layer.attention.kind, getattr(layer.attention, "ratio", 0), layer.ffn.kind), []).append(index)
    return {layer for layers in kinds.values() for layer in (layers[0], layers[-1])}


def _in_layers(layers: set[int]) -> Callable[[str], bool]:
    def is_chosen(site: str) -> bool:
        parts = site.split(".")
        return parts[0] != "layers" or int(parts[1]) in layers

    return is_chosen


def _chosen_steps(num_new: int) -> Callable[[Batch], bool]:
    seen = [0]

    def wants(batch: Batch) -> bool:
        seen[0] += 1
        ends = [e.start + len(e.tokens) - e.request.num_prompt_tokens for e in batch.entries]
        is_end = any(end == 0 and e.start > 0 for end, e in zip(ends, batch.entries, strict=True))
        return seen[0] == 1 or is_end or max(ends) == num_new - 1

    return wants


def _unlike_weights(recording: Recording, device: Mapping[str, object]) -> list[str]:
    """Formats of weights that only one side has."""
    there, here = set(recording.side["weights"]), set(device["weights"])  # type: ignore[call-overload]
    return sorted(there ^ here)


def _notes(recording: Recording, core: EngineCore) -> tuple[str, ...]:
    notes = [
        "DeepSeek's own quantisation of indexer and cache is off on both sides: the definition is in full precision",
        "MTP layers draft only and are not compared",
    ]
    if recording.fingerprint != core.fingerprint:
        notes.append("the two sides loaded unlike files of weights")
    if recording.num_left_out:
        notes.append(f"{recording.num_left_out} calls were left out: the recording had reached its limit of bytes")
    return tuple(notes)
