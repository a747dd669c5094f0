"""The planner fitted without some families: what cross-validation asks for.

The efficiencies of each fold are kept in data/folds, as `tiefsee.plan.fitting.calibrate` fitted them: a fit takes most
of a minute. Their residuals, and what of them speaks for what is left out, are worked out here. The kernels were tuned
on all families: 16 numbers of how far runs speak for one another, none of them a level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from importlib import resources

from tiefsee.errors import ConfigError
from tiefsee.plan.fitted.calibrated import Calibrated, read_kernels
from tiefsee.plan.fitted.efficiency import Calibration, calibration, read_calibration
from tiefsee.plan.fitting.calibrate import all_samples, with_neighbours
from tiefsee.plan.fitting.fit import infer_drafts
from tiefsee.plan.fitting.samples import Sample
from tiefsee.plan.training.efficiency import TrainCalibration

_samples = cache(all_samples)


def calibrated_without(without: frozenset[str]) -> Calibrated:
    """Raises ConfigError for a fold that the package does not carry."""
    kept = [sample for sample in _samples() if sample.family not in without]
    base = fold(without)
    kernels = read_kernels(resources.files("tiefsee.plan").joinpath("data/kernels.toml").read_text())
    made = with_neighbours(kept, base, infer_drafts(kept, base), kernels)
    return replace(made, training=_training_without(without))


@cache
def _training_without(without: frozenset[str]) -> TrainCalibration | None:
    """Fitted without the training runs of some families; None where none of them trained."""
    from tiefsee.plan.fitting.training import fit, shipped_points, shipped_table

    points = shipped_points()
    kept = [point for point in points if point.family not in without]
    return fit(kept, shipped_table()).calibration if len(kept) < len(points) else None


def fold(without: frozenset[str]) -> Calibration:
    """The efficiencies that were fitted without some families; those that none of the samples is of change nothing."""
    known = {sample.family for sample in _samples()}
    if not without & known:
        return calibration()  # what is left out was not fitted on
    name = fold_name(without & known)
    path = resources.files("tiefsee.plan").joinpath(f"data/folds/{name}.toml")
    if not path.is_file():
        raise ConfigError(
            f"no fold without {', '.join(sorted(without))} is in the package; make it: "
            "python -m tiefsee.plan.fitting.calibrate folds"
        )
    return read_calibration(path.read_text())


def folds_of(samples: Iterable[Sample]) -> list[frozenset[str]]:
    """Each family alone, and all of each chip together (a family begins with its chip)."""
    families = {sample.family for sample in samples}
    chips: dict[str, set[str]] = {}
    for family in families:
        chips.setdefault(family.split()[0], set()).add(family)
    wanted = {frozenset([family]) for family in families} | {frozenset(group) for group in chips.values()}
    return sorted(wanted, key=lambda group: (len(group), sorted(group)))


def fold_name(without: Iterable[str]) -> str:
    """A short name that does not depend on the order; the whole is written in the file."""
    return hashlib.sha256("\n".join(sorted(without)).encode()).hexdigest()[:12] if without else "none"
