"""Points: published or measured figures in one structured form, so that predictions can be held against them.

A point says what ran (model, chip, layout, format, load), what was measured (quantity, unit, value) and who says so.
The form is TOML, one [[point]] each, described with an example in docs/points.md; points_file.py reads and writes it.
Conventions, the same everywhere:

* Values are in base units, and per chip where the unit says so. `chip` is a name of the catalogue, and every rank of
  the layout is one such chip: where ranks are the dies of a package, the chip is the die (ascend-910c-die).
* `batch` and `concurrency` count requests over all `num_chips`; in a role's table, over that role's chips.
* `context` is the mean number of cached tokens that a decoded token sees.
* `mtp_acceptance` is the mean number of accepted drafts per step: 0.7 with one draft, 1.44 with three. `tpot_s` is
  what users see: the step's time / (1 + accepted).
* Prefill throughput counts all prompt tokens, those found in a cache (`cached`, a share) too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["prefill", "decode", "e2e", "train", "rl", "kernel", "comm", "size"]
KINDS: tuple[Kind, ...] = ("prefill", "decode", "e2e", "train", "rl", "kernel", "comm", "size")
PREDICTED_KINDS: tuple[Kind, ...] = ("prefill", "decode", "e2e", "train")

# quantity -> (unit, the kinds that have it)
QUANTITIES: dict[str, tuple[str, tuple[Kind, ...]]] = {
    "input_throughput": ("tokens_per_s_per_chip", ("prefill",)),
    "output_throughput": ("tokens_per_s_per_chip", ("decode", "e2e")),
    "total_throughput": ("tokens_per_s_per_chip", ("e2e",)),  # prompts and answers
    "tpot": ("tpot_s", ("decode", "e2e")),
    "ttft": ("ttft_s", ("prefill", "e2e")),
    "price": ("usd_per_million_tokens", ("prefill", "decode", "e2e")),
    "training_throughput": ("tokens_per_s_per_chip", ("train",)),
    "step": ("step_s", ("train",)),
    "mfu": ("mfu", ("train",)),
    "gpu_hours": ("gpu_hours", ("train",)),
    "rollout_throughput": ("tokens_per_s_per_chip", ("rl",)),
    "update_throughput": ("tokens_per_s_per_chip", ("rl",)),
    "system_throughput": ("tokens_per_s_per_chip", ("rl",)),
    "compute": ("flops_per_s", ("kernel",)),
    "bandwidth": ("bytes_per_s", ("kernel", "comm")),
    "latency": ("s", ("kernel", "comm")),
    "cache": ("bytes", ("size",)),
    "training_flops": ("flops", ("size",)),
}

LAYOUT = ("tp", "dp", "ep", "pp", "moe_tp", "cp", "vpp", "zero")
_MODEL = re.compile(r"deepseek[-_](v4-pro|v4-flash|v3\.2|v3\.1|v3|r1|v2-lite|v2)", re.IGNORECASE)


def preset_of(model: str) -> str:
    """The preset that a hub name is a variant of: `Eco-Tech/DeepSeek-V4-Pro-w4a8-mtp` -> `v4-pro`, else itself."""
    found = _MODEL.search(model)
    return found[1].lower() if found else model


@dataclass(frozen=True)
class Role:
    """The prefill or the decode side of a disaggregated deployment. `num_chips` is of all its `num_workers`, `slots`
    are the requests that all workers of a decode side hold at most."""

    chip: str
    num_chips: int
    layout: Mapping[str, int]
    precision: str = ""
    batch: float | None = None
    num_workers: int = 1
    slots: float | None = None


@dataclass(frozen=True)
class Operator:
    """What a kernel or a collective did. `name`: matmul, grouped_matmul, mla_decode, mla_prefill, mla_sparse_decode,
    mla_sparse_prefill, ep.dispatch, ep.combine, copy. `m` counts the rows of each of `groups`; `tokens` are one rank's.
    """

    name: str
    format: str = ""
    m: int = 0
    n: int = 0
    k: int = 0
    groups: int = 1
    tokens: int = 0
    num_bytes: int = 0
    link: str = ""
    bound: Literal["", "compute", "memory"] = ""


@dataclass(frozen=True)
class Rollout:
    """One step of reinforcement learning: `num_prompts` x `num_samples` answers, and where its seconds went."""

    num_prompts: int
    num_samples: int
    generate_s: float
    reference_s: float
    update_s: float
    total_s: float


@dataclass(frozen=True)
class Point:
    """One figure. None and empty mean: not stated, or has no meaning for this kind."""

    id: str
    kind: Kind | None
    source: str
    quantity: str = ""
    unit: str = ""
    value: float = 0.0
    model: str = ""
    chip: str = ""
    num_chips: int = 0
    num_workers: int = 1
    layout: Mapping[str, int] = field(default_factory=dict)
    precision: str = ""
    kv_precision: str = ""
    batch: float | None = None
    concurrency: float | None = None
    isl: float | None = None
    osl: float | None = None
    context: float | None = None
    cached: float = 0.0
    mtp_drafts: int = 0
    mtp_acceptance: float = 0.0
    imbalance: Literal["", "balanced", "real"] = ""
    overlap: bool | None = None
    stack: str = ""
    version: str = ""
    date: str = ""
    lower_bound: bool = False
    prefill: Role | None = None
    decode: Role | None = None
    # training
    sequence: int | None = None
    global_batch_tokens: float | None = None
    micro_batch: int | None = None
    recompute: str = ""
    schedule: str = ""
    mtp: bool | None = None
    tokens: float | None = None
    part: str = ""
    causal: bool | None = None
    # kernels, collectives, reinforcement learning
    operator: Operator | None = None
    rollout: Rollout | None = None
    # where it comes from
    published_value: float | None = None
    published_unit: str = ""
    basis: Literal["", "read", "derived", "memory"] = ""
    confidence: Literal["", "high", "med", "low"] = ""
    family: str = ""
    assumed: tuple[str, ...] = ()
    notes: str = ""
    in_csv: str = ""
    same_as: str = ""
    inexpressible: str = ""

    @property
    def is_expressible(self) -> bool:
        return not self.inexpressible

    @property
    def is_scored(self) -> bool:
        """Whether a prediction is held against it: expressible, of a kind that `predict` knows, counted once."""
        return self.is_expressible and self.kind in PREDICTED_KINDS and not self.in_csv and not self.same_as

    @property
    def seen_context(self) -> float | None:
        """Cached tokens that a decoded token sees: as stated, or the prompt and half of the answer."""
        if self.context is not None or self.isl is None:
            return self.context
        return self.isl + (self.osl or 0) / 2

    def predict_arguments(self) -> dict[str, Any]:
        """The keywords of `tiefsee.plan.predictor` that ask for this point, and more that it may take."""
        training = self.kind == "train"
        isl, osl = (self.isl, self.osl) if self.isl is not None else (self.context, None)
        batch = self.batch
        if training:
            isl = self.sequence
            batch = self.global_batch_tokens / self.sequence if self.global_batch_tokens and self.sequence else None
        return {
            "kind": self.kind, "model": self.model, "chip": self.chip, "num_chips": self.num_chips,
            "layout": dict(self.layout), "precision": self.precision, "batch": batch, "concurrency": self.concurrency,
            "isl": isl, "osl": osl, "mtp_acceptance": self.mtp_acceptance, "cache_hit": self.cached,
            "imbalance": self.imbalance or None, "stack": self.stack or None, "date": self.date or None,
            "disagg": None if self.prefill is None or self.decode is None
            else {"prefill": _role(self.prefill), "decode": _role(self.decode)},
            "context": self.context, "mtp_drafts": self.mtp_drafts, "overlap": self.overlap,
            "kv_precision": self.kv_precision or None, "num_workers": self.num_workers, "tokens": self.tokens,
            "recompute": self.recompute or None, "schedule": self.schedule or None, "micro_batch": self.micro_batch,
            "mtp": self.mtp,
        }  # fmt: skip


def _role(role: Role) -> dict[str, Any]:
    found = {
        "chip": role.chip, "num_chips": role.num_chips, "layout": dict(role.layout), "precision": role.precision,
        "batch": role.batch, "num_workers": role.num_workers,
    }  # fmt: skip
    return found if role.slots is None else found | {"slots": role.slots}
