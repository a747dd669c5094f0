"""What is fitted: efficiencies are found again, left-out residuals in closed form are those of leaving out."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from tiefsee.plan.fitted.calibrated import (
    QUANTITIES,
    read_kernels,
    read_neighbours,
    shipped,
    write_kernels,
    write_neighbours,
)
from tiefsee.plan.fitted.efficiency import FIELDS, calibration, read_calibration, write_calibration
from tiefsee.plan.fitted.neighbours import Kernel, Neighbours, Situation, robust_noises
from tiefsee.plan.fitting.calibrate import all_samples
from tiefsee.plan.fitting.fit import answers, fit, infer_drafts, parameters_of
from tiefsee.plan.fitting.samples import Sample
from tiefsee.plan.fitting.tune import left_out


def situation(**changes) -> Situation:
    base = {"vendor": "nvidia", "chip": "h200", "stack": "sglang", "precision": "fp8", "mode": "agg", "drafts": 0,
            "year": 0.0, "concurrency": 32.0, "batch": 32.0, "isl": 1024.0, "osl": 1024.0, "tp": 8, "dp": 1,
            "ep": 1}  # fmt: skip
    return Situation(**{**base, **changes})


KERNEL = Kernel(0.1, 0.15, 0.05, (0.3, 0.5, 0.5, 0.7, 0.7, 0.7, 0.7), (3.0, 3.0, 2.0, 3.0, 2.0, 3.0, 0.4))


def some(n: int, seed: int) -> tuple[list[Situation], list[float], list[str]]:
    rng = random.Random(seed)
    chips = ("h100", "h200", "b200")
    situations = [
        situation(chip=rng.choice(chips), concurrency=2.0 ** rng.uniform(0, 10), batch=2.0 ** rng.uniform(0, 8))
        for _ in range(n)
    ]
    residuals = [0.1 * chips.index(s.chip) + rng.gauss(0, 0.05) for s in situations]
    return situations, residuals, [s.chip for s in situations]


def test_left_out_in_closed_form_is_leaving_out():
    situations, residuals, groups = some(24, 1)
    mean, variance = left_out(KERNEL, situations, residuals, groups)
    for group in set(groups):
        kept = [i for i, g in enumerate(groups) if g != group]
        covariance = KERNEL.between([situations[i] for i in kept], [situations[i] for i in kept])
        inverse = np.linalg.inv(covariance + KERNEL.noise**2 * np.eye(len(kept)))
        for i, g in enumerate(groups):
            if g == group:
                near = KERNEL.between([situations[i]], [situations[j] for j in kept])[0]
                assert mean[i] == pytest.approx(near @ inverse @ np.array([residuals[j] for j in kept]), abs=0.02)
                assert variance[i] == pytest.approx(KERNEL.variance - near @ inverse @ near, rel=0.1)


def test_neighbours_move_an_answer_only_where_they_are():
    situations, residuals, _ = some(40, 2)
    found = Neighbours(KERNEL, tuple(situations), tuple(residuals), robust_noises(KERNEL, situations, residuals))
    near, near_deviation = found.correction(situation(chip="b200"))
    far, far_deviation = found.correction(situation(vendor="huawei", chip="x", stack="y", precision="int8"))
    assert near == pytest.approx(0.2, abs=0.08)
    assert abs(far) < 0.03
    assert near_deviation < far_deviation <= math.sqrt(KERNEL.variance)


def test_an_outlier_weighs_little():
    situations, residuals, _ = some(40, 3)
    wild = [*residuals[:-1], residuals[-1] + 3.0]
    noises = robust_noises(KERNEL, situations, wild)
    assert noises[-1] > 5 * sorted(noises)[20]
    calm, wilder = (
        Neighbours(KERNEL, tuple(situations), tuple(r), robust_noises(KERNEL, situations, r)).correction(situations[-1])
        for r in (residuals, wild)
    )
    assert wilder[0] == pytest.approx(calm[0], abs=0.12)


def test_files_hold_what_was_written():
    assert read_calibration(write_calibration(calibration())) == calibration()
    kernels = {q: getattr(shipped(), q).kernel for q in QUANTITIES}
    assert read_kernels(write_kernels(kernels)) == kernels
    found = {q: getattr(shipped(), q) for q in QUANTITIES}
    again = read_neighbours(write_neighbours(found), kernels)
    assert all(again[q].situations == found[q].situations for q in QUANTITIES)


def test_shipped_efficiencies_are_physical():
    base = calibration().base
    shares = ("matmul", "experts", "attention", "matmul_memory", "experts_memory", "attention_memory", "vector_memory")
    assert all(0.1 < getattr(base, name) <= 1.2 for name in shares)
    assert all(1e-6 < getattr(base, name) < 1 for name in FIELDS if name.endswith("_s"))
    assert 1e-6 < base.launch_s < 5e-5


def test_efficiencies_are_found_again_and_drafts_told():
    """Samples whose times are made from known efficiencies: the fit finds what they say, and who drafted."""
    truth = read_calibration(write_calibration(calibration()))
    picked = [s for s in all_samples() if s.family.startswith(("h200 trtllm inf", "b200 sglang inf"))][::4]
    rng, made = random.Random(0), []
    for i, sample in enumerate(picked):
        drafts = 3 if i % 3 == 0 else 0
        [times] = answers([sample], [drafts], truth)
        noisy = tuple(t + rng.gauss(0, 0.02) for t in times)
        made.append(Sample(**{**vars(sample), "measured": noisy, "drafts": None, "accepted": None}))
    fitted = fit(made, truth, rounds=1, steps=2)
    errors = [
        abs(a - m)
        for s, found in zip(made, answers(made, fitted.drafts, fitted.calibration), strict=True)
        for a, m in zip(found, s.measured, strict=True)
    ]
    assert np.median(errors) < 0.03
    told = infer_drafts(made, fitted.calibration)
    assert sum((n > 0) == (i % 3 == 0) for i, n in enumerate(told)) > 0.9 * len(made)
    assert {p.scope for p in parameters_of(made)} >= {"base", "stack:sglang", "stack:trtllm", "trend:sglang"}
