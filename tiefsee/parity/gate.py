"""Do two devices answer alike?

    recording = record(reference, prompts)      runs the model once and keeps calls, picks and logits
    report = compare(recording, device)         each call again by itself, then the prompts again

An operator is given the inputs that the reference had, so errors do not add up and the one that is wrong is named.
End to end the prompts run twice: freely, and with the reference's experts and entries, so that one near tie that
falls otherwise does not hide everything behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tiefsee.engine import EngineCore
from tiefsee.parity.judge import Tolerances, judge_calls, said
from tiefsee.parity.measures import first_divergence, logit_errors, overlap
from tiefsee.parity.recording import Recording, describe, keep_logits, structure
from tiefsee.parity.report import Check, PromptResult, Report
from tiefsee.parity.run import Run, run
from tiefsee.parity.tolerances import TOLERANCES, Tolerance, coarsest
from tiefsee.parity.watch import Picks, Watch
from tiefsee.schedule import Batch
from tiefsee.spec.model import ModelSpec

NUM_NEW = 8
LIMIT_BYTES = 512e6


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
    results = judge_calls([c for c in recording.calls if operators(c.operator)], recording, core, tolerances)
    prompts: tuple[PromptResult, ...] = ()
    failure = None
    if end_to_end:
        try:
            prompts = _compare_prompts(recording, core, tolerances[number])
        except Exception as error:  # as of an operator: whatever it is, it belongs into the report
            failure = said(error)
    notes = _notes(recording, core)
    return Report(recording.model, recording.side, device, number, results, prompts, notes, failure)


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
    called = {call.operator for call in recording.calls}
    if "select_entries" not in called and any(layer.attention.indexer is not None for layer in core.spec.layers):
        notes.append(
            "no prompt was long enough for an indexer to choose: index_scores, select_entries were not compared"
        )
    if recording.num_left_out:
        notes.append(f"{recording.num_left_out} calls were left out: the recording had reached its limit of bytes")
    return tuple(notes)
