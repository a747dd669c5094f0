"""Which requests to send, and when: everything that is decided before the first byte."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tiefsee.serve.load.arrivals import Arrivals
from tiefsee.serve.load.lengths import Lengths
from tiefsee.serve.load.prompts import Prompts, Sizer
from tiefsee.serve.load.record import Record
from tiefsee.serve.load.trace import BLOCK_TOKENS, Line


@dataclass(frozen=True)
class Planned:
    """One request to send. `arrival_s` counts from the start of the run; closed loops ignore it."""

    number: int
    arrival_s: float
    body: dict[str, Any]
    wanted_prompt_tokens: int | None
    wanted_output_tokens: int | None

    def record(self) -> Record:
        """A record of it, with nothing seen yet."""
        return Record(
            self.number, self.arrival_s,
            wanted_prompt_tokens=self.wanted_prompt_tokens, wanted_output_tokens=self.wanted_output_tokens,
        )  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """What requests look like, whenever they come."""

    prompt_lengths: Lengths
    output_lengths: Lengths
    prefix_tokens: int = 0
    prefix_groups: int = 1
    trace: tuple[Line, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Form:
    """How a request is written: endpoint, model, and what else goes into each body."""

    endpoint: str
    model: str
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"

    def body(self, prompt: str | tuple[dict[str, Any], ...], max_tokens: int | None) -> dict[str, Any]:
        made: dict[str, Any] = {
            "model": self.model, "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }  # fmt: skip
        if max_tokens is not None:
            made["max_tokens"] = max_tokens
        if self.endpoint == "chat":
            made["messages"] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        else:
            made["prompt"] = prompt if isinstance(prompt, str) else "\n".join(str(m.get("content")) for m in prompt)
        return made | self.extra


def plan(workload: Workload, arrivals: Arrivals, form: Form, sizer: Sizer, first: int = 0) -> Iterator[Planned]:
    """Requests number `first` and on; without end unless the workload is a trace."""
    prompts = Prompts(sizer, workload.seed)
    if workload.trace:
        times = None if workload.trace[0].arrival_s is not None else arrivals.times_s(workload.seed)
        for number, line in enumerate(workload.trace):
            arrival_s = line.arrival_s if line.arrival_s is not None else next(times or iter((0.0,)))
            prompt = line.messages or line.prompt or _made_up(line, prompts, number)
            yield Planned(number, arrival_s, form.body(prompt, line.max_tokens), line.prompt_tokens, line.max_tokens)
        return
    for number, arrival_s in enumerate(arrivals.times_s(workload.seed), first):
        chance = random.Random(f"lengths:{workload.seed}:{number}")
        num_prompt, num_output = workload.prompt_lengths.draw(chance), workload.output_lengths.draw(chance)
        group = chance.randrange(workload.prefix_groups)
        text = prompts.text(number, num_prompt, workload.prefix_tokens, group)
        yield Planned(number, arrival_s, form.body(text, num_output), num_prompt, num_output)


def _made_up(line: Line, prompts: Prompts, number: int) -> str:
    """A prompt as long as the line says; blocks that lines share have the same text."""
    assert line.prompt_tokens is not None
    left, parts = line.prompt_tokens, []
    for block in line.blocks:
        if left >= BLOCK_TOKENS:
            parts.append(prompts.piece(f"block:{block}", BLOCK_TOKENS))
            left -= BLOCK_TOKENS
    if left > 0 or not parts:
        parts.append(prompts.text(number, max(1, left)))
    return " ".join(parts)
