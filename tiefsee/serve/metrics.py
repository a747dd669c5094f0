"""What is counted, in Prometheus' text format, under vLLM's names where vLLM has them.

Routers (llm-d, AIBrix, production-stack) and dashboards read these names, so they are kept as they are;
what vLLM does not have is called `tiefsee:`. No global registry: two servers in one process count apart.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from tiefsee.engine.delta import Delta

# vLLM's buckets, seconds.
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
WHOLE = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Counts per bucket; observing costs one search (prometheus_client's own costs ten times that)."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = tuple(bounds), [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as Prometheus wants them: cumulative."""
        total, found = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            found.append(("+Inf" if bound == float("inf") else str(float(bound)), float(total)))
        return found


@dataclass
class EngineFigures:
    """The engine's own counters and gauges at one moment."""

    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    drafted: int = 0
    accepted: int = 0
    restarts: int = 0
    cache_config: dict[str, str] = field(default_factory=dict)


class Metrics(Collector):
    """All figures of one server. `engine` is asked for the engine's at each scrape."""

    def __init__(self, model: str, engine: Callable[[], EngineFigures], *, usd_per_hour: float | None = None) -> None:
        self.model, self._engine, self._usd_per_hour = model, engine, usd_per_hour
        self.started = time.monotonic()
        self.prompt_tokens = self.generated_tokens = self.cached_tokens = self.bytes_sent = 0
        self.finished: Counter[str] = Counter()
        self.answers: Counter[tuple[str, int]] = Counter()  # (path, status)
        self.first_token, self.token, self.per_token = (
            Histogram(FIRST_TOKEN),
            Histogram(PER_TOKEN),
            Histogram(PER_TOKEN),
        )
        self.whole, self.queue = Histogram(WHOLE), Histogram(WHOLE)
        self.prompt_sizes, self.answer_sizes = Histogram(TOKENS), Histogram(TOKENS)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        found = self._engine()
        gauges = {
            "vllm:num_requests_running": ("Requests in the running batch.", found.running),
            "vllm:num_requests_waiting": ("Requests that wait, at the door and in the engine.", found.waiting),
            "vllm:kv_cache_usage_perc": ("Share of the cache's blocks in use, 0 to 1.", found.cache_usage),
            "tiefsee:uptime_seconds": ("Since the server started.", time.monotonic() - self.started),
        }
        counters = {
            "vllm:prompt_tokens": ("Tokens of prompts.", self.prompt_tokens),
            "vllm:generation_tokens": ("Tokens generated.", self.generated_tokens),
            "vllm:num_preemptions": ("Requests put back for want of blocks.", found.preemptions),
            "vllm:prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", found.prefix_queries),
            "vllm:prefix_cache_hits": ("Prompt tokens found there.", found.prefix_hits),
            "vllm:spec_decode_num_draft_tokens": ("Tokens drafted.", found.drafted),
            "vllm:spec_decode_num_accepted_tokens": ("Drafted tokens accepted.", found.accepted),
            "tiefsee:engine_restarts": ("Times the engine process was started again.", found.restarts),
            "tiefsee:sent_bytes": ("Bytes of bodies sent.", self.bytes_sent),
        }
        histograms = {
            "vllm:time_to_first_token_seconds": ("From arrival to the first token.", self.first_token),
            "vllm:inter_token_latency_seconds": ("Between tokens.", self.token),
            "vllm:request_time_per_output_token_seconds": ("Mean of one request, without its first.", self.per_token),
            "vllm:e2e_request_latency_seconds": ("From arrival to the last token.", self.whole),
            "vllm:request_prompt_tokens": ("Tokens of one prompt.", self.prompt_sizes),
            "vllm:request_generation_tokens": ("Tokens of one answer.", self.answer_sizes),
        }
        yield from (self._gauge(name, *rest) for name, rest in gauges.items())
        yield from (self._counter(name, *rest) for name, rest in counters.items())
        yield from (self._histogram(name, *rest) for name, rest in histograms.items())
        yield from self._by_label()
        yield from self._costs()
        if found.cache_config:
            labels = sorted(found.cache_config)
            info = GaugeMetricFamily("vllm:cache_config_info", "How the cache is laid out.", labels=labels)
            info.add_metric([found.cache_config[name] for name in labels], 1)
            yield info

    def _by_label(self) -> Iterator[Metric]:
        done = CounterMetricFamily(
            "vllm:request_success", "Answers finished, by reason.", labels=("model_name", "finished_reason")
        )
        for reason, count in self.finished.items():
            done.add_metric((self.model, reason), count)
        yield done
        answers = CounterMetricFamily("tiefsee:http_responses", "HTTP responses.", labels=("path", "status"))
        for (path, status), count in self.answers.items():
            answers.add_metric((path, str(status)), count)
        yield answers

    def _costs(self) -> Iterator[Metric]:
        """What a million tokens has cost so far, where the price of the machine was given."""
        if self._usd_per_hour is None:
            return
        usd = self._usd_per_hour * (time.monotonic() - self.started) / 3600
        yield self._counter("tiefsee:cost_usd", "Price of the machine since the start.", usd)
        if self.generated_tokens:
            value = usd / self.generated_tokens * 1e6
            yield self._gauge("tiefsee:usd_per_million_output_tokens", "Since the start, idle time included.", value)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=("model_name",))
        family.add_metric((self.model,), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=("model_name",))
        family.add_metric((self.model,), value)
        return family

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(name, text, labels=("model_name",))
        family.add_metric((self.model,), histogram.buckets(), histogram.sum)
        return family


class Timeline:
    """The times of one request, kept as its deltas pass by."""

    def __init__(self, metrics: Metrics, prompt_tokens: int) -> None:
        self._metrics, self._arrived = metrics, time.perf_counter()
        self._last: dict[int, tuple[float, float, int]] = {}  # index -> first time, last time, tokens
        metrics.prompt_tokens += prompt_tokens
        metrics.prompt_sizes.observe(prompt_tokens)

    def note(self, index: int, delta: Delta) -> None:
        now, count, metrics = time.perf_counter(), len(delta.token_ids), self._metrics
        metrics.generated_tokens += count
        first, last, tokens = self._last.get(index, (0.0, 0.0, 0))
        if count:
            if tokens:
                metrics.token.observe((now - last) / count, count)
            else:
                first = now
                metrics.first_token.observe(now - self._arrived)
            last, tokens = now, tokens + count
            self._last[index] = (first, last, tokens)
        if delta.finish_reason is not None:
            metrics.finished[delta.finish_reason] += 1
            metrics.whole.observe(now - self._arrived)
            metrics.answer_sizes.observe(tokens)
            if tokens > 1:
                metrics.per_token.observe((last - first) / (tokens - 1))
            self._last.pop(index, None)

    def close(self) -> None:
        """The request is over; answers that did not finish were cancelled."""
        if self._last:
            self._metrics.finished["abort"] += len(self._last)
            self._last.clear()
