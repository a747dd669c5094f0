"""Sizes and limits of a scheduler, and the figures that it reports."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tiefsee.errors import ConfigError


@dataclass(frozen=True)
class SchedulerConfig:
    """Sizes and limits. `needs_rings`: the model has state streams, so a prefix is resumed by a snapshot.

    `snapshot_every` keeps the state at every n-th block boundary, beside the ends of prompt and turn.
    """

    block_tokens: int
    num_blocks: int
    num_rings: int
    num_snapshots: int
    needs_rings: bool
    max_step_tokens: int
    max_running: int
    max_context: int
    max_draft: int = 0
    snapshot_every: int = 0
    enable_prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("block_tokens", "num_blocks", "max_step_tokens", "max_running", "max_context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; needed at least 1")
        for name in ("num_snapshots", "max_draft", "snapshot_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; needed at least 0")
        if self.needs_rings and self.num_rings < self.max_running:
            raise ConfigError(
                f"{self.num_rings} rings for {self.max_running} running requests; needed one each. "
                "Lower max_running, or give the cache more memory"
            )

    @cached_property
    def max_tokens(self) -> int:
        """Most tokens that one request can have, prompt and answer together."""
        return min(self.max_context, self.num_blocks * self.block_tokens)

    @cached_property
    def keeps_snapshots(self) -> bool:
        return self.needs_rings and self.enable_prefix_cache and self.num_snapshots > 0


@dataclass(frozen=True)
class Statistics:
    """The scheduler at one moment, for metrics. A cached block is one that a prefix can find, held or not."""

    num_waiting: int
    num_running: int
    num_free_blocks: int
    num_used_blocks: int
    num_cached_blocks: int
    num_hit_tokens: int
    num_preemptions: int
