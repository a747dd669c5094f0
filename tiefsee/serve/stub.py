"""A core without a network: tokens at a fixed pace. It shows what everything around the engine costs.

    EngineOptions("tiefsee-demo", core="tiefsee.serve.stub:build", config={"step_s": 0.02, "max_running": 256})

For benchmarks and tests only; nothing in tiefsee starts it by itself. No torch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

from tiefsee.engine.delta import Delta, FinishReason
from tiefsee.engine.sampling import Sampling
from tiefsee.errors import PromptTooLong
from tiefsee.files import find_model
from tiefsee.serve.wire import EngineOptions
from tiefsee.spec import model_spec

USUAL_MAX_TOKENS = 128


def build(options: EngineOptions) -> StubCore:
    """`options.config`: step_s, tokens_per_step, text (of one token), token_id, max_running, max_context."""
    return StubCore(options.model, **options.config)


@dataclass(eq=False)
class StubGeneration:
    """One answer that is `max_tokens` times the same token."""

    on_delta: Callable[[Delta], None]
    num_left: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    request: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(num_cached_tokens=0, num_committed_tokens=0)
    )


class StubCore:
    """What serve/worker.py uses of an EngineCore: first come, first served, `max_running` side by side."""

    def __init__(
        self, model: str, *, step_s: float = 0.01, tokens_per_step: int = 1, text: str = " word",
        token_id: int = 100, max_running: int = 256, max_context: int = 1 << 20,
    ) -> None:  # fmt: skip
        files = find_model(model)
        self.folder, self.generation_config = files.folder, dict(files.generation_config or {})
        self.spec, self.max_context = model_spec(files.config), max_context
        self.eos_ids = tuple(self.spec.eos_token_ids)
        self.config = SimpleNamespace(max_running=max_running, max_step_tokens=1 << 20)
        self.plan = SimpleNamespace(num_blocks=1, block_tokens=256, max_draft=0, num_bytes=0.0)
        self.notes = ["a stub: no model computes anything"]
        self.counters = SimpleNamespace(
            steps=0, prompt_tokens=0, generated_tokens=0, prefix_hit_tokens=0, drafted_tokens=0, accepted_drafts=0
        )
        self.scheduler = self
        self._step_s, self._tokens_per_step, self._text, self._token_id = step_s, tokens_per_step, text, token_id
        self._waiting: deque[StubGeneration] = deque()
        self._running: list[StubGeneration] = []
        self._next_step_s = 0.0

    def add(
        self, prompt: Sequence[int], sampling: Sampling, on_delta: Callable[[int, Delta], None],
        *, priority: int = 0, salt: str | None = None,
    ) -> list[StubGeneration]:  # fmt: skip
        if len(prompt) >= self.max_context:
            raise PromptTooLong(f"the prompt has {len(prompt)} tokens; the stub takes {self.max_context - 1}")
        length = sampling.max_tokens or USUAL_MAX_TOKENS
        group = [StubGeneration(partial(on_delta, index), length) for index in range(sampling.n)]
        self._waiting.extend(group)
        self.counters.prompt_tokens += len(prompt)
        return group

    def cancel(self, generation: StubGeneration) -> None:
        if generation.finish_reason is None:
            generation.finish_reason = "cancelled"
            (self._running if generation in self._running else self._waiting).remove(generation)

    def cancel_all(self) -> None:
        for generation in (*self._waiting, *self._running):
            self.cancel(generation)

    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def step(self) -> None:
        """Wait for the step's time, then a token for each that runs."""
        while self._waiting and len(self._running) < self.config.max_running:
            self._running.append(self._waiting.popleft())
        now_s = time.monotonic()
        if self._next_step_s > now_s:
            time.sleep(self._next_step_s - now_s)
        self._next_step_s = max(now_s, self._next_step_s) + self._step_s
        for generation in self._running:
            count = min(self._tokens_per_step, generation.num_left)
            tokens = (self._token_id,) * count
            generation.num_left -= count
            generation.token_ids.extend(tokens)
            if not generation.num_left:
                generation.finish_reason = "length"
            self.counters.generated_tokens += count
            generation.on_delta(Delta(tokens, self._text * count, (), generation.finish_reason))
        self._running = [g for g in self._running if g.finish_reason is None]
        self.counters.steps += 1

    def statistics(self) -> SimpleNamespace:
        """As `Scheduler.statistics`; a stub has no cache."""
        return SimpleNamespace(
            num_running=len(self._running), num_waiting=len(self._waiting), num_free_blocks=1, num_used_blocks=0,
            num_cached_blocks=0, num_preemptions=0,
        )  # fmt: skip
