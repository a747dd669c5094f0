"""Which run a row of the measured table describes, where the row alone does not say: layout and drafts.

copy             another row of the same measurement that says more
configuration    what InferenceX published for this chip, stack, format, lengths, load, day and release
drafts           where the same load was published with drafts and without: the run is held against runs of this load
                 that are known not to have drafted, else against its like; one that takes less than FASTER of their
                 time drafted
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tiefsee.plan.evidence.campaigns import Configuration, Sizes, agreed, configurations, narrowed
from tiefsee.plan.evidence.measured import Run, is_total

FASTER, SLOWER = 0.78, 0.9


def resolve(runs: Sequence[Run], known: Sequence[Run]) -> list[Run]:
    """The runs, with all that rows of `known` and the published configurations add."""
    copies: dict[tuple[object, ...], Run] = {}
    for run in (*known, *runs):
        if run.source == "dump":
            copies.setdefault(run.measurement, run)
    asked = [
        _as_copy(run, copies[run.measurement]) if run.source == "export" and run.measurement in copies else run
        for run in runs
    ]
    others = [run for run in known if run.measurement not in copies]
    found = [candidates(run) for run in (*asked, *others)]
    known_so_far = [settled(run, ones) for run, ones in zip((*asked, *others), found, strict=True)]
    for _ in range(3):  # those that are told first tell others
        known_so_far = _tell_drafts(known_so_far, (*copies.values(),), found)
    return [_with_slots(_named(run)) for run in known_so_far[: len(runs)]]


def _as_copy(run: Run, other: Run) -> Run:
    return replace(
        run, decode=other.decode, num_decode=other.num_decode, prefill=other.prefill, num_prefill=other.num_prefill,
        drafts=other.drafts, assumed=tuple(a for a in run.assumed if a in other.assumed),
    )  # fmt: skip


def candidates(run: Run) -> list[Configuration]:
    """Published configurations that the row may be of; none where it is whole already, or of other origin."""
    if run.source != "export" or run.drafts is not None:
        return []
    found = configurations().get((run.chip, run.stack, run.precision, run.isl, run.osl), ())
    ran = [c for c in found if c.ran(run.concurrency)]
    fit = [c for c in ran if _fits(run, c)]
    if not fit and run.prefill is not None and run.prefill.num_chips == run.decode.num_chips:
        # Decode workers smaller than they seem: exports wrote the prefill worker's size for some.
        fit = [c for c in ran if c.prefill is not None and c.prefill.num_chips == run.prefill.num_chips]
    if not fit and is_total(run.decode):
        whole = [c for c in found if c.num_chips == run.decode.num_chips]
        least = min((c.distance(run.concurrency) for c in whole), default=0.0)
        fit = [c for c in whole if c.distance(run.concurrency) == least]
    return narrowed(fit, run.date, run.version)


def _fits(run: Run, c: Configuration) -> bool:
    """Whether the sizes that the row states are those of the configuration."""
    if "layout" in run.assumed:
        return c.num_chips == run.decode.num_chips
    if run.prefill is None or c.prefill is None:
        return c.prefill is None and c.decode.num_chips == run.decode.num_chips
    if run.prefill.num_chips == run.decode.num_chips == 1:
        return True  # one export wrote 1 everywhere
    return (c.prefill.num_chips, c.decode.num_chips) == (run.prefill.num_chips, run.decode.num_chips)


def settled(run: Run, found: Sequence[Configuration]) -> Run:
    """The layout and the drafts that all candidates agree on, or the first one's layout, marked as assumed."""
    if not found:
        return run
    same, drafts = agreed(found)
    chosen = same or found[0]
    said = run.prefill is None and run.decode in [c.decode for c in found]
    kept = tuple(a for a in run.assumed if a not in ("layout", "decode_num_workers"))
    sure = (same or said) and all(c.ran(run.concurrency) for c in found)
    assumed = kept if sure else (*kept, "layout")
    if said and not same:
        return replace(run, drafts=drafts, assumed=assumed)
    return replace(
        run, decode=chosen.decode, num_decode=chosen.num_decode, prefill=chosen.prefill,
        num_prefill=chosen.num_prefill or 1, drafts=drafts, assumed=assumed,
    )  # fmt: skip


def _tell_drafts(runs: Sequence[Run], plain: Sequence[Run], found: Sequence[list[Configuration]]) -> list[Run]:
    """Drafts of runs whose candidates differ in them, by comparison; the layout follows."""
    alike: dict[tuple[object, ...], list[Run]] = {}
    for run in (*runs, *plain):
        alike.setdefault(load_of(run), []).append(run)
    told = []
    for run, ones in zip(runs, found, strict=True):
        if run.drafts is not None or len({c.drafts for c in ones}) < 2:
            told.append(run)
            continue
        faster = drafted(run, alike[load_of(run)])
        kept = [c for c in ones if (c.drafts > 0) == faster] if faster is not None else []
        told.append(_by_its_time(settled(run, kept)) if kept else run)
    return told


def _by_its_time(run: Run) -> Run:
    """Marked, since accuracy on such runs is accuracy given the drafts."""
    return run if "drafts" in run.assumed else replace(run, assumed=(*run.assumed, "drafts"))


def load_of(run: Run) -> tuple[object, ...]:
    """What runs have in common whose times can be compared: the same load on as many chips per worker."""
    return (run.chip, run.stack, run.precision, run.concurrency, run.decode.num_chips, run.prefill is None)


def drafted(run: Run, alike: Iterable[Run]) -> bool | None:
    """Whether it is much faster than runs without drafts, or than its like; None where that cannot be told."""
    like = [other for other in alike if other.num_decode == run.num_decode]
    same = [other for other in like if (other.isl, other.osl) == (run.isl, run.osl)]
    plain = [o.tpot_s for o in same if o.drafts == 0] or [o.tpot_s for o in like if o.drafts == 0]
    if plain:
        ratio = run.tpot_s / statistics.median(plain)
        return True if ratio < FASTER else False if ratio > SLOWER else None
    times = [o.tpot_s for o in same if o.drafts is None]
    if min(times) > FASTER * max(times):
        return None
    return run.tpot_s < math.sqrt(min(times) * max(times))


def _with_slots(run: Run) -> Run:
    """With what its decode workers hold, as published for this load on this layout."""
    if run.source == "own" or run.prefill is None:
        return run
    found = configurations().get((run.chip, run.stack, run.precision, run.isl, run.osl), ())
    layout = (run.prefill, run.num_prefill, run.decode, run.num_decode)
    same = [c for c in found if c.layout == layout and c.drafts == run.drafts and c.ran(run.concurrency)]
    sizes = {c.slots for c in narrowed(same, run.date, run.version)}
    return replace(run, slots=sizes.pop()) if len(sizes) == 1 else run


def _named(run: Run) -> Run:
    """Layouts of whole deployments that nobody knows are guessed, and said to be."""
    if "layout" in run.assumed and is_total(run.decode):
        decode, num_decode, prefill, num_prefill = split(run.decode.num_chips, run.concurrency, run.isl)
        return replace(run, decode=decode, num_decode=num_decode, prefill=prefill, num_prefill=num_prefill)
    return run


def split(chips: int, concurrency: float, isl: int) -> tuple[Sizes, int, Sizes, int]:
    """A rack's deployments as others of its kind are: few prefill workers of 4, decode by TP8 or by wide EP."""
    workers = max(1, (chips - 4) // 8)
    if concurrency <= 64 * workers and (chips - 4) % 8 == 0:
        return Sizes(8, 1, 8, 1), workers, Sizes(1, 4, 4, 1), 1
    wide = min(32, 1 << max(3, (int(chips * (0.5 if isl < 4096 else 0.35))).bit_length() - 1))
    return Sizes(1, wide, wide, 1), 1, Sizes(1, 4, 4, 1), max(1, (chips - wide) // 4)
