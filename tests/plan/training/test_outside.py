"""Runs that took no part in the fit."""

from __future__ import annotations

import pytest

from tiefsee.hardware import find_chip
from tiefsee.plan.training.job import make_job
from tiefsee.plan.training.plan import plan_training
from tiefsee.spec import model_spec
from tiefsee.spec.presets import preset_config


def test_pangu_ultra_moe_on_6000_ascend_910b_is_met_though_nothing_of_it_was_fitted() -> None:
    """arXiv 2505.04519: 1.46M tokens/s on 6,000 cards, 243 each. Its shape is V3's at width 7,680; virtual stages,
    batch and the kind of 910B are assumed."""
    spec = model_spec({**preset_config("v3"), "hidden_size": 7680})
    chip = find_chip("ascend-910b3")
    job = make_job("pangu-like", spec, chip, 6144, sequence=8192, global_batch=4608, stack="mindspeed")
    plan = plan_training(job, {"tp": 8, "pp": 16, "ep": 32, "virtual": 2})
    assert plan.tokens_per_s_per_chip.value == pytest.approx(1.46e6 / 6000, rel=0.2)
    assert plan.tokens_per_s_per_chip.low < 1.46e6 / 6000 < plan.tokens_per_s_per_chip.high
