"""`predict`: one configuration in, figures with ranges out. The model of time is told in docs/plan.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, find_chip
from tiefsee.plan.answers import answer_decode, answer_e2e, answer_prefill
from tiefsee.plan.figures.prediction import Prediction
from tiefsee.plan.fitted.calibrated import Calibrated, shipped
from tiefsee.plan.names.formats import usual_precision
from tiefsee.plan.names.models import find_spec
from tiefsee.plan.question import Question, drafts_of
from tiefsee.spec import ModelSpec

KINDS = ("decode", "prefill", "e2e", "train")
MOST = 1e12  # anything above is a slip


def predict(
    *, kind: str, model: str | ModelSpec, chip: str | Chip, num_chips: int, layout: Mapping[str, int] | None = None,
    precision: str | None = None, batch: float | None = None, concurrency: float | None = None,
    isl: float | None = None, osl: float | None = None, mtp_acceptance: float = 0.0, cache_hit: float = 0.0,
    imbalance: float | str | None = None, stack: str | None = None, date: str | None = None,
    disagg: Mapping[str, Any] | None = None, mtp_drafts: int | None = None, overlap: bool | None = None,
    kv_precision: str = "", calibrated: Calibrated | None = None, **training: Any,
) -> Prediction:  # fmt: skip
    """What one configuration takes.

    kind            decode (steps of a full batch), prefill, e2e (a closed loop of `concurrency` requests), train
    num_chips       all chips; `batch` and `concurrency` count requests on all of them together
    layout          tp, dp, ep, pp, moe_tp of one worker; chips beyond one worker hold replicas of it. Of Ascend's
                    910C packages the ranks are the dies
    isl, osl        tokens of prompt and answer; decode sees isl + osl / 2
    mtp_acceptance  mean accepted drafts per step; `mtp_drafts` how many are made (default: 1, or more to hold it)
    cache_hit       share of a prompt's tokens that is found in a cache
    imbalance       fullest expert rank over the mean; "balanced" is 1, None what random choices make of it
    stack, date     whose software, of when (docs/plan.md lists them); None: the middle, of 2026-02
    disagg          {"prefill": {...}, "decode": {...}}: chip, num_chips, layout, precision, batch, num_workers of each;
                    `slots` of decode: the requests that all its workers hold at most
    overlap         two-batch overlap; None: if the stack is one that does

    Training takes `isl` as the sequence length and `batch` as sequences of a global batch. Units: tpot_s, ttft_s,
    tokens_per_s_per_chip, step_s, mfu, gpu_hours, usd_per_million_tokens. Raises ConfigError.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind is {kind!r}; needed is one of {', '.join(KINDS)}")
    for name, size in (("num_chips", num_chips), ("batch", batch), ("concurrency", concurrency), ("isl", isl)):
        _check(name, size, 1e-9)
    for name, size in (("osl", osl), ("mtp_acceptance", mtp_acceptance), ("cache_hit", cache_hit)):
        _check(name, size, 0)
    if cache_hit >= 1:
        raise ConfigError(f"cache_hit is {cache_hit}; needed is a share below 1: the last token is always computed")
    spec = find_spec(model) if isinstance(model, str) else model
    on = find_chip(chip) if isinstance(chip, str) else chip
    if kind == "train":
        name = model if isinstance(model, str) else model.model_type
        return _train(
            name, on, num_chips, layout, precision=precision, batch=batch, isl=isl, stack=stack, date=date,
            imbalance=_imbalance(imbalance), calibrated=calibrated or shipped(), **training,
        )  # fmt: skip
    if training:
        raise ConfigError(f"{next(iter(training))!r} is no argument of a {kind} prediction")
    question = Question(
        spec, on, num_chips, layout or {}, precision or usual_precision(on), batch, concurrency, isl, osl or 0.0,
        mtp_acceptance, drafts_of(mtp_drafts, mtp_acceptance), cache_hit, _imbalance(imbalance), stack, date, overlap,
        kv_precision, calibrated or shipped(),
    )  # fmt: skip
    if kind == "decode":
        return answer_decode(question)
    if kind == "prefill":
        return answer_prefill(question)
    return answer_e2e(question, disagg)


TRAINED = ("tokens", "optimizer", "mtp")
LAID_OUT = ("recompute", "schedule", "micro_batch")


def _train(
    model: str, chip: Chip, num_chips: int, layout: Mapping[str, Any] | None, *, batch: float | None,
    isl: float | None, calibrated: Calibrated, **more: Any,
) -> Prediction:  # fmt: skip
    """A training step by plan/training; `recompute`, `schedule` and `micro_batch` may stand beside the layout."""
    from tiefsee.plan.training.predict import predict_training

    unknown = sorted(set(more) - {*TRAINED, *LAID_OUT, "precision", "stack", "date", "imbalance"})
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no argument of a train prediction; more are {', '.join(TRAINED)}")
    extra = {name: more.pop(name) for name in LAID_OUT if name in more}
    found = predict_training(
        model, chip, num_chips, layout=None if layout is None else {**layout, **extra},
        batch=None if batch is None else round(batch), isl=None if isl is None else round(isl),
        calibration=calibrated.training, **more,
    )  # fmt: skip
    return Prediction(
        "train", "step_s", found.estimates, found.parts, found.bottleneck, found.plan.sources, found.notes
    )


def _check(name: str, size: Any, least: float) -> None:
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, (int, float)) or not math.isfinite(size):
        raise ConfigError(f"{name} is {size!r}; needed is a number")
    if not least <= size <= MOST:
        raise ConfigError(
            f"{name} is {size:g}; needed is {'more than 0' if least > 0 else '0 or more'}, below {MOST:g}"
        )


def _imbalance(imbalance: float | str | None) -> float | None:
    if imbalance is None or imbalance == "real":
        return None
    if imbalance == "balanced":
        return 1.0
    if isinstance(imbalance, str) or not 1 <= imbalance <= 1000:
        raise ConfigError(
            f"imbalance is {imbalance!r}; needed is the fullest rank's load over the mean's, 1 or more, or 'balanced'"
        )
    return float(imbalance)
