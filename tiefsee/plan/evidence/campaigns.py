"""What InferenceX ran and when: its published configurations, to fill in what the measured table leaves out.

The table has no column for speculative decoding, and most disaggregated rows do not say how many workers there were.
The benchmark's own configuration files do (github.com/SemiAnalysisAI/InferenceX, .github/configs/nvidia-master.yaml
and the recipes that it names; all versions from 2025-11-03 to 2026-05-05, Apache-2.0). They are kept as facts in
data/inferencex.csv.gz: a worker is `number tp dp ep moe_tp`, `first` and `last` are the days on which the
configuration stood there, `concurrency` is a list or a range. Under TensorRT-LLM a listed concurrency is at times that
of one decode worker. `slots` are the requests that all decode workers hold at most, where that was published (for
SGLang in the recipes of github.com/NVIDIA/srt-slurm, Apache-2.0): others wait for one of them to end, which is most of
many a TTFT.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from importlib import resources

# Runs were made while a change was proposed, so some days before it stood in the files.
BEFORE, AFTER = timedelta(days=10), timedelta(days=3)


@dataclass(frozen=True)
class Sizes:
    """How one role's worker is laid out."""

    tp: int
    dp: int
    ep: int
    moe_tp: int

    @property
    def num_chips(self) -> int:
        return self.tp * self.dp


@dataclass(frozen=True)
class Configuration:
    """One published configuration; `prefill` is None where one kind of worker does both."""

    chip: str
    stack: str
    precision: str
    isl: int
    osl: int
    first: date
    last: date
    version: str
    concurrency: str
    prefill: Sizes | None
    num_prefill: int
    decode: Sizes
    num_decode: int
    drafts: int
    slots: int | None

    @property
    def num_chips(self) -> int:
        return (self.prefill.num_chips * self.num_prefill if self.prefill else 0) + (
            self.decode.num_chips * self.num_decode
        )

    @property
    def layout(self) -> tuple[object, ...]:
        return (self.prefill, self.num_prefill, self.decode, self.num_decode)

    @property
    def loads(self) -> tuple[int, ...]:
        """Listed concurrencies, or the ends of the range."""
        return tuple(int(part) for part in self.concurrency.replace("-", " ").split())

    def ran(self, concurrency: float) -> bool:
        if "-" in self.concurrency:
            return self.loads[0] <= concurrency <= self.loads[1]
        return concurrency in self.loads or (self.stack == "trtllm" and concurrency / self.num_decode in self.loads)

    def distance(self, concurrency: float) -> float:
        """Doublings from the nearest load that was listed."""
        return min(abs(math.log2(concurrency / load)) for load in self.loads)

    def stood_on(self, day: str) -> bool:
        return not day or self.first - BEFORE <= date.fromisoformat(day) <= self.last + AFTER


@cache
def configurations() -> dict[tuple[str, str, str, int, int], tuple[Configuration, ...]]:
    """By chip, stack, format and lengths."""
    data = resources.files("tiefsee.plan").joinpath("data/inferencex.csv.gz").read_bytes()
    found: dict[tuple[str, str, str, int, int], list[Configuration]] = {}
    for row in csv.DictReader(io.StringIO(gzip.decompress(data).decode())):
        num_prefill, prefill = _worker(row["prefill"])
        num_decode, decode = _worker(row["decode"])
        assert decode is not None
        one = Configuration(
            row["chip"], row["stack"], row["precision"], int(row["isl"]), int(row["osl"]),
            date.fromisoformat(row["first"]), date.fromisoformat(row["last"]), row["version"], row["concurrency"],
            prefill, num_prefill, decode, num_decode, int(row["drafts"]),
            int(row["slots"]) if row["slots"] else None,
        )  # fmt: skip
        found.setdefault((one.chip, one.stack, one.precision, one.isl, one.osl), []).append(one)
    return {key: tuple(ones) for key, ones in found.items()}


def _worker(text: str) -> tuple[int, Sizes | None]:
    if not text:
        return 0, None
    number, *sizes = (int(part) for part in text.split())
    return number, Sizes(*sizes)


def narrowed(found: Sequence[Configuration], day: str, version: str) -> list[Configuration]:
    """Those of that day, and of that release, as far as any are."""
    kept = [c for c in found if c.stood_on(day)] or list(found)
    return [c for c in kept if version and c.version == version] or kept


def agreed(found: Iterable[Configuration]) -> tuple[Configuration | None, int | None]:
    """(a configuration with the layout that all have, the drafts that all make); None where they differ."""
    kept = list(found)
    layouts, drafts = {c.layout for c in kept}, {c.drafts for c in kept}
    return (kept[0] if len(layouts) == 1 else None), (drafts.pop() if len(drafts) == 1 else None)
