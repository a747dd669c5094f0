"""Do two devices answer alike?

    recording = record(reference, prompts)      runs the model once and keeps calls, picks and logits
    report = compare(recording, device)         each call again by itself, then the prompts again

An operator is given the inputs that the reference had, so errors do not add up and the one that is wrong is named.
End to end the prompts run twice: freely, and with the reference's experts and entries, so that one near tie that
falls otherwise does not hide everything behind it. Where both sides have an MTP layer it drafts in all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from tiefsee.engine import EngineCore
from tiefsee.parity.calls import rope_calls
from tiefsee.parity.judge import Tolerances, judge_calls, said
from tiefsee.parity.measures import LogitErrors, first_divergence, in_order, joined, logit_errors, overlap
from tiefsee.parity.recording import Recording, describe, keep_logits, settings, structure
from tiefsee.parity.replay import Player
from tiefsee.parity.report import Check, Drafted, PromptResult, Report
from tiefsee.parity.run import Run, run
from tiefsee.parity.tolerances import TOLERANCES, Tolerance, coarsest
from tiefsee.parity.trace import parting
from tiefsee.parity.watch import Picks, Watch
from tiefsee.schedule import Batch
from tiefsee.spec.model import ModelSpec

NUM_NEW = 8
LIMIT_BYTES = 1e9
MTP = "mtp."
# A KL that is none: what adding up in float64 leaves.
NO_KL = 1e-9


def record(
    core: EngineCore, prompts: Mapping[str, Sequence[int]], *, model: str = "", num_new: int = NUM_NEW,
    limit_bytes: float = LIMIT_BYTES, all_layers: bool = False,
) -> Recording:  # fmt: skip
    """Run prompts (name -> tokens) on the reference. Calls are kept of the first step, of the end of the longest
    prompts and of a decode step, in the first and last layer of each kind, or in `all_layers`.

    Raises RecordingError where the reference itself gives what is no number.
    """
    num_drafts = core.plan.max_draft
    sites = _in_layers(None if all_layers else chosen_layers(core.spec))
    ropes = rope_calls(core.runner.network, Player(core).play)
    left = limit_bytes - sum(call.num_bytes for call in ropes)
    watch = Watch(core, wants=_chosen_steps(num_new, num_drafts), limit_bytes=left, sites=sites)
    runs, drafted = run(
        core, list(prompts.values()), num_new, watch, lambda _prompt, _first, rows: keep_logits(rows),
        num_drafts=num_drafts, look_at_drafts=lambda _prompt, _first, rows: keep_logits(rows),
    )  # fmt: skip
    recording = Recording(
        model, core.fingerprint, structure(core), describe(core), {n: tuple(t) for n, t in prompts.items()},
        tuple(r.tokens for r in runs), tuple(joined(r.looked) for r in runs), watch.picks,
        (*watch.calls, *ropes),
        watch.trace.sketches([len(p) + num_new - 1 for p in prompts.values()]), settings(core),
        num_drafts, tuple(in_order(r.drafts) for r in runs) if num_drafts else (), drafted, watch.num_left_out,
    )  # fmt: skip
    recording.check_sound()
    return recording


def compare(
    recording: Recording, core: EngineCore, tolerances: Tolerances = TOLERANCES, *,
    operators: Callable[[str], bool] = lambda name: True, end_to_end: bool = True, control: bool = False,
) -> Report:  # fmt: skip
    """Judge a device by a recording. `operators` and `end_to_end` leave parts out, for who knows what he asks.

    `control`: both sides are one and the same; then they must be equal bit by bit, end to end.
    """
    recording.check_fits(core)
    device = describe(core)
    number = coarsest([*recording.formats(), *device["formats"], *_unlike_weights(recording, device)])
    drafts = bool(recording.num_drafts and core.plan.max_draft)
    calls = [c for c in recording.calls if operators(c.operator) and (drafts or not c.site.startswith(MTP))]
    results = judge_calls(calls, recording, core, tolerances)
    prompts: tuple[PromptResult, ...] = ()
    failure, parts_at, drafted = None, None, Drafted()
    if end_to_end:
        try:
            prompts, parts_at, drafted = _compare_prompts(recording, core, tolerances[number], drafts)
        except Exception as error:  # as of an operator: whatever it is, it belongs into the report
            failure = said(error)
    return Report(
        recording.model, recording.side, device, number, results, prompts, _notes(recording, core), failure,
        _unlike_settings(recording, core), parts_at, recording.drafted if drafts else None,
        drafted if drafts else None, control,
    )  # fmt: skip


# --------------------------------------------------------------------------------------- end to end


def _compare_prompts(
    recording: Recording, core: EngineCore, tolerance: Tolerance, drafts: bool
) -> tuple[tuple[PromptResult, ...], str | None, Drafted]:
    """Of each prompt its result; where the runs part first, if they do; and what was drafted."""
    prompts, given = list(recording.prompts.values()), recording.tokens
    num_new, num_drafts = len(given[0]), min(recording.num_drafts, core.plan.max_draft) if drafts else 0

    def look(prompt: int, first: int, rows: Tensor) -> LogitErrors:
        return logit_errors(rows, recording.logits[prompt].rows(first, len(rows)))

    def look_at_drafts(prompt: int, first: int, rows: Tensor) -> LogitErrors:
        kept = recording.drafts[prompt]
        assert kept is not None, "every prompt is drafted behind"
        needed = kept.rows(first - 1, len(rows))  # how far it drafts at the end depends on what was accepted
        return logit_errors(rows[: len(needed.log_sum)], needed)

    def once(watch: Watch) -> tuple[list[Run[LogitErrors]], Drafted]:
        return run(core, prompts, num_new, watch, look, given, num_drafts=num_drafts, look_at_drafts=look_at_drafts)

    free_watch, forced_watch = Watch(core), Watch(core, forced=recording.picks)
    (free, drafted), (forced, _) = once(free_watch), once(forced_watch)
    results = tuple(
        _prompt_result(i, name, recording, free[i], forced[i], (free_watch.picks, forced_watch.picks), tolerance)
        for i, name in enumerate(recording.prompts)
    )
    lengths = [len(p) + num_new - 1 for p in prompts]
    needed = {p: rows for p, rows in recording.trace.items() if drafts or not p.startswith(MTP)}
    failed = not all(result.passed for result in results)
    parts_at = parting(forced_watch.trace.sketches(lengths), needed, tolerance.operator) if failed else None
    return results, parts_at, drafted


def _prompt_result(
    index: int, name: str, recording: Recording, free: Run[LogitErrors], forced: Run[LogitErrors],
    picks: tuple[Picks, Picks], tolerance: Tolerance,
) -> PromptResult:  # fmt: skip
    """`picks` of both runs, as they were before the reference's were forced: the decoder's count freely, those of the
    MTP layer where the decoder has decided alike."""
    errors, free_errors = joined(forced.looked), joined(free.looked)
    drafts, free_drafts = in_order(forced.drafts), in_order(free.drafts)
    checks = []
    for what, of_what, own in (("", errors, picks[0]), ("draft ", drafts, picks[1])):
        if of_what is None:
            continue
        checks += _checks(what, of_what, tolerance)
        for kind, limit in (("experts", tolerance.experts), ("entries", tolerance.entries)):
            share = _agreement(recording.picks, own, index, kind, is_draft=bool(what))
            if share is not None:
                checks.append(Check(f"{what}{kind}", share, limit, at_least=True))
    seen = [e for e in (free_errors, free_drafts) if e is not None]
    return PromptResult(
        name, len(recording.prompts[name]), tuple(checks),
        float(free_errors.same_best.double().mean()), first_divergence(free.best, recording.tokens[index]),
        all(bool((e.error == 0).all() and (e.kl.abs() < NO_KL).all()) for e in seen),
        None if free_drafts is None else float(free_drafts.same_best.double().mean()),
    )  # fmt: skip


def _checks(what: str, errors: LogitErrors, tolerance: Tolerance) -> list[Check]:
    decisive = errors.margin > tolerance.logits
    agreed = float(errors.same_best[decisive].double().mean()) if bool(decisive.any()) else 1.0
    return [
        Check(f"{what}logits", float(errors.error.median()), tolerance.logits),
        Check(f"{what}KL", float(errors.kl.mean()), tolerance.kl),
        Check(f"{what}best token", agreed, tolerance.top1, at_least=True),
        Check(f"{what}worst logits", float(errors.error.max()), tolerance.worst_logits),
        Check(f"{what}worst KL", float(errors.kl.max()), tolerance.worst_kl),
    ]


def _agreement(needed: Picks, found: Picks, prompt: int, kind: str, *, is_draft: bool) -> float | None:
    """Mean share of the picks of one kind that both sides made for a prompt, in the decoder or in the MTP layer; None
    where nothing is picked."""
    shares = []
    for site, of_prompts in needed.items():
        if site.endswith("gate") != (kind == "experts") or site.startswith(MTP) != is_draft:
            continue
        other = found.get(site, {}).get(prompt, {})
        for position, picks in of_prompts.get(prompt, {}).items():
            theirs = other.get(position)
            if theirs is None and is_draft:  # how far it drafts depends on what was accepted
                continue
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


def _in_layers(layers: set[int] | None) -> Callable[[str], bool]:
    def is_chosen(site: str) -> bool:
        parts = site.split(".")
        return layers is None or parts[0] != "layers" or int(parts[1]) in layers

    return is_chosen


def _chosen_steps(num_new: int, num_drafts: int) -> Callable[[Batch], bool]:
    seen, decodes = [0], [0]
    wanted = 2 if num_new > 2 + num_drafts else 1  # of those that decode alone: there are so many at least

    def wants(batch: Batch) -> bool:
        seen[0] += 1
        starts = [e.start - e.request.num_prompt_tokens for e in batch.entries]
        ends_prompt = any(
            s < 0 <= s + len(e.tokens) and e.start > 0 for s, e in zip(starts, batch.entries, strict=True)
        )
        decodes[0] += min(starts) >= 0
        return seen[0] == 1 or ends_prompt or (min(starts) >= 0 and decodes[0] == wanted)

    return wants


def _unlike_settings(recording: Recording, core: EngineCore) -> tuple[str, ...]:
    """Numbers of the two specs that differ: "rms_norm_eps: 1e-06 there, 1e-05 here"."""
    there, here = recording.settings, settings(core)
    return tuple(
        f"{name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in {**there, **here} if there.get(name) != here.get(name)
    )  # fmt: skip


def _unlike_weights(recording: Recording, device: Mapping[str, object]) -> list[str]:
    """Formats of weights that only one side has."""
    there, here = set(recording.side["weights"]), set(device["weights"])  # type: ignore[call-overload]
    return sorted(there ^ here)


def _notes(recording: Recording, core: EngineCore) -> tuple[str, ...]:
    notes = [
        "DeepSeek's own quantisation of indexer and cache is off on both sides: the definition is in full precision",
    ]
    if core.spec.mtp_layers and not (recording.num_drafts and core.plan.max_draft):
        notes.append("the MTP layer was not compared: one of the sides has none, or does not draft")
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
