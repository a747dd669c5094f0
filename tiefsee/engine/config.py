"""What an engine is told, and what it makes of it: `EngineConfig` and the memory plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiefsee.engine.cache import CachePlan
from tiefsee.errors import ConfigError, OutOfMemory
from tiefsee.layouts import ROWS, Layout, find_layout
from tiefsee.schedule import SchedulerConfig
from tiefsee.spec.model import ModelSpec
from tiefsee.spec.streams import cache_streams
from tiefsee.streams import Stream, block_tokens
from tiefsee.units import format_bytes

# Of the memory that is free after loading, the cache takes at most this much: activations need room too.
CACHE_SHARE = 0.6
# Of the cache, snapshots of state streams; they decide how often a prompt is found again.
SNAPSHOT_SHARE = 0.2
# Full-length requests beyond `max_running` that the prefix cache may remember, if memory allows.
REMEMBERED_REQUESTS = 16


@dataclass(frozen=True)
class EngineConfig:
    """Limits of one engine. None means: chosen by `plan_memory` from the model and the free memory.

    `max_step_tokens` is the token budget of a step: the largest prefill chunk and what decodes share.
    `max_draft` is how many tokens an MTP layer may draft per step; 0 switches speculation off.
    `snapshot_every` keeps the state streams at every n-th block boundary (0: at the ends only).
    `cache_dtype` is that of cached rows (None: the model's), `cache_layout` how the device stores them, by name
    (None: as its operators want them). `model_id` names the model where requests move between engines whose
    checkpoints are the same model in unlike files (None: the fingerprint of the checkpoint).
    """

    max_step_tokens: int = 512
    max_running: int = 16
    max_context: int | None = None
    num_blocks: int | None = None
    num_snapshots: int | None = None
    cache_bytes: float | None = None
    cache_dtype: str | None = None
    cache_layout: str | None = None
    model_id: str | None = None
    enable_prefix_cache: bool = True
    max_draft: int | None = None
    snapshot_every: int = 4

    def __post_init__(self) -> None:
        for name in ("max_step_tokens", "max_running"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}; needed at least 1")
        if self.cache_layout is not None:
            find_layout(self.cache_layout)
        if self.cache_dtype not in (None, "float32", "bfloat16", "float16"):
            raise ConfigError(f"cache_dtype = {self.cache_dtype!r}; needed float32, bfloat16 or float16")
        for name in ("max_draft", "snapshot_every"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}; needed 0 or more")


def plan_memory(
    spec: ModelSpec, config: EngineConfig, dtype: str, free: float, layout: Layout = ROWS
) -> tuple[CachePlan, int]:
    """The pools of an engine, and the longest context that they hold.

    `layout` is what the operators want; the config may ask for another. Rings come first (one per running
    request), then one request of the wanted context, then snapshots and blocks for as many requests as the
    share of free memory holds. Raises OutOfMemory with the bytes that are short and the context that would fit.
    """
    max_draft = config.max_draft or 0
    layout = layout if config.cache_layout is None else find_layout(config.cache_layout)
    streams = cache_streams(spec, speculate=max_draft > 0)
    size = block_tokens(streams)
    max_context = min(config.max_context or spec.max_position_embeddings, spec.max_position_embeddings)
    budget = config.cache_bytes if config.cache_bytes is not None else CACHE_SHARE * free
    rings = config.max_running * sum(s.ring_bytes(max_draft, dtype, layout) for s in streams)
    per_block = sum(s.block_bytes(size, dtype, layout) for s in streams)
    wanted = -(-max_context // size)
    if config.num_blocks is None:
        left = budget - rings
        num_snapshots = _snapshots(streams, config, dtype, layout, left * SNAPSHOT_SHARE)
        fitting = int((left * (1 - SNAPSHOT_SHARE if num_snapshots else 1)) // per_block) if per_block else wanted
        num_blocks = min(fitting, wanted * (config.max_running + REMEMBERED_REQUESTS))
        if num_blocks < 1 or (config.max_context is not None and num_blocks < wanted):
            needed = rings + wanted * per_block
            raise OutOfMemory(
                f"the cache may take {format_bytes(budget)}, but {config.max_running} requests and a context of "
                f"{max_context} tokens need {format_bytes(needed)} ({format_bytes(needed - budget)} more); a context "
                f"of {max(0, fitting) * size} tokens would fit. Lower max_context or max_running, or give cache_bytes"
            )
    else:
        num_blocks = config.num_blocks
        num_snapshots = _snapshots(streams, config, dtype, layout, SNAPSHOT_SHARE * num_blocks * per_block + 64e6)
    plan = CachePlan(
        streams, size, num_blocks, config.max_running if _has_state(streams) else 0, num_snapshots,
        max_draft, dtype, layout,
    )  # fmt: skip
    return plan, min(max_context, num_blocks * size)


def _has_state(streams: Sequence[Stream]) -> bool:
    return any(s.family == "state" for s in streams)


def _snapshots(streams: Sequence[Stream], config: EngineConfig, dtype: str, layout: Layout, budget: float) -> int:
    """Snapshot slots: as asked for, or as many as the budget holds, at most eight per running request."""
    if not _has_state(streams) or not config.enable_prefix_cache:
        return 0
    if config.num_snapshots is not None:
        return config.num_snapshots
    per_snapshot = sum(s.snapshot_bytes(dtype, layout) for s in streams)
    return max(0, min(int(budget // per_snapshot), 8 * config.max_running)) if per_snapshot else 8 * config.max_running


def scheduler_config(config: EngineConfig, plan: CachePlan, max_context: int) -> SchedulerConfig:
    """The scheduler's part of it."""
    return SchedulerConfig(
        block_tokens=plan.block_tokens,
        num_blocks=plan.num_blocks,
        num_rings=plan.num_rings,
        num_snapshots=plan.num_snapshots,
        needs_rings=plan.num_rings > 0,
        max_step_tokens=config.max_step_tokens,
        max_running=config.max_running,
        max_context=max_context,
        max_draft=plan.max_draft,
        snapshot_every=config.snapshot_every,
        enable_prefix_cache=config.enable_prefix_cache,
    )
