"""Records -> figures: percentiles, throughput, goodput, and what went wrong. Defined in docs/bench.md."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.serve.load.record import Record
from tiefsee.serve.load.run import Run

PERCENTS = (50, 90, 95, 99)
TIMES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
SCHEMA = "tiefsee.bench.serve/1"


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear between the two nearest of an ascending list, as numpy's default; of [1, 2, 3, 4] P50 is 2.5."""
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Iterable[float | None]) -> dict[str, float] | None:
    """Mean, percentiles, most and count; None of nothing."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    made = {f"p{percent}": percentile(ordered, percent) for percent in PERCENTS}
    return {"mean": sum(ordered) / len(ordered), **made, "max": ordered[-1], "count": len(ordered)}


@dataclass(frozen=True)
class Slo:
    """Most seconds of each time that a good answer may take."""

    limits: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Slo:
        """`ttft=0.5,tpot=0.05,e2e=20`, in seconds."""
        limits = []
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            try:
                limit = float(value)
            except ValueError:
                limit = 0.0
            if name not in ("ttft", "tpot", "e2e") or not 0 < limit < math.inf:
                raise ConfigError(f"--slo has {part!r}; needed is ttft=S, tpot=S or e2e=S in seconds, joined by commas")
            limits.append((f"{name}_s", limit))
        return cls(tuple(limits))

    def holds(self, record: Record) -> bool:
        """Whether an answer came whole and within every limit. An answer of one token has no TPOT to break."""
        values = ((getattr(record, name), limit) for name, limit in self.limits)
        return record.ok and all(value is None or value <= limit for value, limit in values)


def summarise(run: Run, slo: Slo) -> dict[str, Any]:
    """The figures of one run, as they stand in the JSON file."""
    records, good = run.records, [r for r in run.records if r.ok]
    last_s = max((r.end_s for r in records), default=0.0)
    wall_s = max(last_s, 1e-9)
    outputs = sum(r.num_output_tokens or 0 for r in good)
    inputs = sum(r.num_prompt_tokens or 0 for r in good)
    within = [r for r in records if slo.holds(r)]
    return {
        "load": {
            "label": run.arrivals.label, "arrivals": run.arrivals.kind,
            "rate_per_s": run.arrivals.rate_per_s, "concurrency": run.arrivals.concurrency,
        },
        "wall_s": wall_s,
        "interrupted": run.interrupted,
        "requests": {"sent": len(records), "ok": len(good), **Counter(r.outcome for r in records if not r.ok)},
        "retries": sum(r.num_retries for r in records),
        "errors": dict(Counter(f"{r.status or r.outcome}: {r.error}" for r in records if not r.ok).most_common(5)),
        "finish_reasons": dict(Counter(r.finish_reason for r in good)),
        "ttft_s": spread(r.ttft_s for r in good),
        "tpot_s": spread(r.tpot_s for r in good),
        "itl_s": spread(gap for r in good for gap in r.itl_s()),
        "e2e_s": spread(r.e2e_s for r in good),
        "prompt_tokens": spread(r.num_prompt_tokens for r in good),
        "output_tokens": spread(r.num_output_tokens for r in good),
        "cached_tokens": sum(r.num_cached_tokens for r in good),
        "chunks_counted": sum(r.chunk_tokens is not None for r in good),
        "requests_per_s": len(good) / wall_s,
        "output_tokens_per_s": outputs / wall_s,
        "total_tokens_per_s": (inputs + outputs) / wall_s,
        "slo": dict(slo.limits),
        "slo_attainment": len(within) / len(records) if records else 0.0,
        "goodput_requests_per_s": len(within) / wall_s,
        "draft_acceptance": _ratio(run.counters, "spec_decode_num_accepted_tokens", "spec_decode_num_draft_tokens"),
        "client": {
            "cpu_share": run.health.cpu_share, "loop_lag_p99_s": run.health.lag_p99_s,
            "late_s": spread(r.sent_s - r.arrival_s for r in records), "complaint": run.health.complaint(),
        },
    }  # fmt: skip


def _ratio(counters: dict[str, float], above: str, below: str) -> float | None:
    """Quotient of two counters under vLLM's names, with or without Prometheus' suffix."""
    found = {n.removeprefix("vllm:").removesuffix("_total"): v for n, v in counters.items() if n.startswith("vllm:")}
    return found[above] / found[below] if found.get(below) else None
