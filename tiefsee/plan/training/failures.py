"""What failures cost: how often a job stops, how often it should save, and the share of wall time that is useful.

Failures are independent, so a job of n cards stops n times as often as one card. Saving every `interval_s` of work is
best near sqrt(2 d M) - d for a save that stops the job for d seconds and M seconds between failures (Young 1974; Daly
2006, arXiv has neither: doi 10.1145/361147.361115, 10.1016/j.future.2004.11.016). Useful share, after Daly:

    T / (M e^(R / M) (e^((T + d) / M) - 1))

with T the interval and R what a restart takes, from the last save that reached storage.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, Figure
from tiefsee.plan.figures.estimate import Estimate, Grade
from tiefsee.plan.training.optimizer import STATE_BYTES, WEIGHT_BYTES

# Into shared storage, per card: 8 cards of a node at 2 GB/s together. 400 Gbit/s of storage network carry more, disks
# behind it often less.
STORAGE_BYTES_PER_S = 0.25e9
# The formula alone would save each minute where a save is cheap; few do: saves share the network, are checked and kept.
LEAST_INTERVAL_S = 300.0


@dataclass(frozen=True)
class Reliability:
    """Figures of a vendor's cards: failures per card and hour, seconds of a restart."""

    per_card_hour: Figure
    restart_s: Figure


@dataclass(frozen=True)
class Goodput:
    """A job under failures. `share` is useful over wall time, unit "share"."""

    share: Estimate
    failures_per_day: Estimate
    mtbf_s: float
    interval_s: float
    save_s: float
    write_s: float
    restart_s: float
    checkpoint_bytes: float
    lost: dict[str, float]
    sources: tuple[str, ...]


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files("tiefsee.plan").joinpath("data/failures.toml").read_text())


def reliability(chip: Chip) -> Reliability:
    """What is known of a vendor's cards; a chip of nobody's is taken as an H100, within a wide range."""
    item = _table().get(chip.vendor, _table()["other"])

    def figure(name: str, unit: str) -> Figure:
        f = item[name]
        return Figure(float(f["value"]), unit, f["kind"], f["source"], float(f["low"]), float(f["high"]))

    return Reliability(figure("per_card_hour", "1/h"), figure("restart_s", "s"))


def checkpoint_bytes(num_parameters: float, optimizer: str) -> float:
    """Weights in BF16 and the optimizer's states: 16 bytes less gradients for AdamW. V3: 6.8 TB."""
    return num_parameters * (WEIGHT_BYTES + STATE_BYTES[optimizer])


def best_interval(save_s: float, mtbf_s: float) -> float:
    """Seconds of work between two saves."""
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    return max(save_s, math.sqrt(2 * save_s * mtbf_s) - save_s)


def useful_share(interval_s: float, save_s: float, restart_s: float, mtbf_s: float) -> float:
    """Daly's closed form; 0 where a job cannot get from one save to the next."""
    exponent = (interval_s + save_s) / mtbf_s
    if exponent + restart_s / mtbf_s > 50:
        return 0.0
    return interval_s / (mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1(exponent))


def goodput(
    chip: Chip, num_cards: int, num_parameters: float, optimizer: str, *, asynchronous: bool = True,
    storage_bytes_per_s: float = STORAGE_BYTES_PER_S, host_bytes_per_s: float = 25e9, slower: float = 1.0,
) -> Goodput:  # fmt: skip
    """`storage_bytes_per_s` is per card. Asynchronous: the job stops for the copy to the host only, but a failure
    before that copy reached storage costs what was done since the save before. `slower`: times of a slower world."""
    if storage_bytes_per_s <= 0 or host_bytes_per_s <= 0:
        raise ConfigError("bandwidths of storage and host must be above 0 bytes/s")
    known = reliability(chip)
    size = checkpoint_bytes(num_parameters, optimizer)
    copy_s, write_s = size / num_cards / host_bytes_per_s, size / num_cards / storage_bytes_per_s
    save_s = copy_s if asynchronous else copy_s + write_s

    def at(rate_per_hour: float, restart_s: float) -> tuple[float, float, float]:
        mtbf_s = 3600.0 / (rate_per_hour * num_cards) * slower
        interval = max(best_interval(save_s, mtbf_s), write_s if asynchronous else 0.0, LEAST_INTERVAL_S * slower)
        late = write_s if asynchronous else 0.0
        return useful_share(interval, save_s, restart_s * slower + late, mtbf_s), interval, mtbf_s

    rate, restart = known.per_card_hour, known.restart_s
    share, interval_s, mtbf_s = at(rate.value, restart.value)
    # Rate and restart vary on their own: their effects on the share that is lost add as squares of logarithms.
    lost = 1.0 - share

    def ratio(rate_per_hour: float, restart_s: float) -> float:
        return math.log((1.0 - at(rate_per_hour, restart_s)[0]) / lost)

    worse = math.hypot(ratio(rate.high, restart.value), ratio(rate.value, restart.high))
    better = math.hypot(ratio(rate.low, restart.value), ratio(rate.value, restart.low))
    per_day = rate.value * num_cards * 24 / slower
    grade: Grade = "fitted" if rate.kind != "estimate" else "datasheet"
    restart_s = restart.value * slower
    return Goodput(
        Estimate(share, max(0.01, 1 - lost * math.exp(worse)), 1 - lost * math.exp(-better), "share", grade),
        Estimate(per_day, per_day * rate.low / rate.value, per_day * rate.high / rate.value, "per_day", grade),
        mtbf_s, interval_s, save_s, write_s, restart_s, size,
        {
            "saving": save_s / (interval_s + save_s),
            "work lost": min(1.0, ((interval_s + save_s) / 2 + (write_s if asynchronous else 0.0)) / mtbf_s),
            "restarts": min(1.0, restart_s / mtbf_s),
        },
        (rate.source, restart.source),
    )  # fmt: skip
