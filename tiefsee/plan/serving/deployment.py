"""A deployment: how many workers of which kind, on one pool or on two, and where it stands among measured ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, chip_names, find_chip
from tiefsee.plan.fitted.efficiency import Efficiency
from tiefsee.plan.fitted.neighbours import Situation
from tiefsee.plan.names.formats import formats_of
from tiefsee.plan.serving.cache import cache_bytes
from tiefsee.plan.serving.loop import Load, Served, serve_aggregated, serve_disaggregated
from tiefsee.plan.serving.worker import Worker
from tiefsee.spec import ModelSpec

LAYOUT_KEYS = ("tp", "dp", "ep", "pp", "moe_tp")


@dataclass(frozen=True, eq=False)
class Deployment:
    """`num_decode` workers that decode, and prefill too unless `prefill` says who does; `precision` is decode's.
    `slots` are the requests that a decode pool of its own holds at most."""

    decode: Worker
    num_decode: int
    precision: str
    prefill: Worker | None = None
    num_prefill: int = 0
    slots: float = math.inf

    @property
    def num_chips(self) -> int:
        """Of both pools together."""
        first = self.prefill.num_chips * self.num_prefill if self.prefill is not None else 0
        return first + self.decode.num_chips * self.num_decode

    def serve(self, load: Load, decode_e: Efficiency, prefill_e: Efficiency | None = None) -> Served:
        """What a closed loop of this load settles at; `prefill_e` where the pools differ."""
        if self.prefill is None:
            return serve_aggregated(self.decode, self.num_decode, load, decode_e)
        first = prefill_e or decode_e
        moved = self.transfer_s(load.isl, min(decode_e.far, first.far))
        return serve_disaggregated(
            self.prefill,
            self.num_prefill,
            self.decode,
            self.num_decode,
            load,
            first,
            decode_e,
            moved,
            self.slots,
        )

    def transfer_s(self, tokens: float, share: float) -> float:
        """Seconds that a prompt's cache takes to the decode pool, over the slower of the two fabrics' links; all ranks
        of a TP group hold the same latents and each sends its part."""
        if self.prefill is None:
            return 0.0
        links = [worker.chip.links[-1] for worker in (self.prefill, self.decode)]
        rate = min(link.bytes_per_s.value for link in links) * min(self.prefill.tp, self.decode.tp) * share
        latency_s = max(link.latency_s.value for link in links)
        return cache_bytes(self.prefill.spec, self.decode.formats.cache, tokens) / rate + latency_s

    def situation(self, load: Load, stack: str, year: float) -> Situation:
        """Where it stands among measured runs; chips and layout are those that decode."""
        w = self.decode
        batch = max(load.concurrency / self.num_decode / w.dp / w.pp, 0.5)
        return Situation(
            w.chip.vendor, w.chip.name, stack, self.precision, "agg" if self.prefill is None else "disagg",
            load.drafts, year, load.concurrency, batch, load.isl, max(load.osl, 1.0), w.tp, w.dp, w.ep,
        )  # fmt: skip


def make_worker(
    spec: ModelSpec, chip: Chip, layout: Mapping[str, int], precision: str, *, kv_precision: str = "",
    imbalance: float | None = None, overlap: bool = False, num_chips: int | None = None,
) -> Worker:  # fmt: skip
    """A worker of a layout; sizes that are left out follow from the others: moe_tp fills up tp x dp / ep; without tp
    and dp, all chips (at most a node) are one TP group. Raises ConfigError for what does not divide."""
    unknown = sorted(set(layout) - set(LAYOUT_KEYS))
    if unknown:
        raise ConfigError(f"layout has {unknown[0]!r}; known are {', '.join(LAYOUT_KEYS)}")
    for name, size in layout.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"layout's {name} is {size!r}; needed is a whole number of 1 or more")
    pp, ep = layout.get("pp", 1), layout.get("ep", 1)
    tp, dp = layout.get("tp"), layout.get("dp")
    if tp is None and dp is None:
        heads = spec.layers[0].attention.num_attention_heads
        tp = next(n for n in range(min(num_chips or 1, chip.chips_per_node, heads), 0, -1) if heads % n == 0)
        dp = max(1, ep // tp)
    tp, dp = tp or 1, dp or 1
    if tp * dp % ep and "moe_tp" not in layout:
        raise ConfigError(f"ep = {ep} does not divide tp {tp} x dp {dp} = {tp * dp} ranks; take a divisor")
    moe_tp = layout.get("moe_tp", tp * dp // ep)
    formats = formats_of(precision, kv_precision)
    return Worker(spec, chip, formats, tp, dp, ep, moe_tp, pp, overlap=overlap, imbalance=imbalance)


def as_ranks(chip: Chip, num_chips: int) -> tuple[Chip, int]:
    """What a rank is: each die of a package whose dies are an entry of their own (Ascend 910C), else the chip."""
    die = f"{chip.name}-die"
    if die in chip_names():
        return find_chip(die), num_chips * chip.dies
    return chip, num_chips
