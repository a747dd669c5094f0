"""Prompts through an engine: logits of every position, and of a continuation that is chosen or given.

All prompts run side by side, as requests of a server do: prefill in chunks, then decode in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tiefsee.engine import EngineCore, Sampling
from tiefsee.parity.watch import Watch


@dataclass(frozen=True)
class Run:
    """One prompt: the tokens that followed by the largest logit, and logits [T + n, W] of all positions but the last.

    Row t is what stands behind t + 1 tokens. Where a continuation was given, `best` says what would have followed.
    """

    tokens: tuple[int, ...]
    best: tuple[int, ...]
    logits: Tensor = field(repr=False)


def run(
    core: EngineCore, prompts: Sequence[Sequence[int]], num_new: int, watch: Watch,
    given: Sequence[Sequence[int]] | None = None,
) -> list[Run]:  # fmt: skip
    """Run prompts and `num_new` tokens after each; with `given` these tokens, whatever the logits say."""
    sampling = Sampling(temperature=0.0, max_tokens=num_new, ignore_eos=True)
    followers = []
    for index, prompt in enumerate(prompts):
        (generation,) = core.add(list(prompt), sampling, lambda _index, _delta: None, keep_logits=True)
        follower = _Follower(len(prompt), None if given is None else given[index])
        generation.choose = follower  # type: ignore[method-assign]
        watch.prompts[generation.request.request_id] = index
        followers.append((generation, follower))
    with watch:
        try:
            while core.has_work():
                core.step()
        except BaseException:
            core.cancel_all()
            raise
    return [
        Run(
            tuple(g.token_ids), tuple(f.best),
            torch.cat([*(rows.float().cpu() for rows in g.prompt_rows or []), *(r.unsqueeze(0) for r in f.rows[1:])]),
        )
        for g, f in followers
    ]  # fmt: skip


class _Follower:
    """Stands in for the sampler of one answer: the best token, or the one that is given; keeps the logits."""

    def __init__(self, num_prompt_tokens: int, given: Sequence[int] | None) -> None:
        self._first, self._given = num_prompt_tokens, given
        self.rows: list[Tensor] = []
        self.best: list[int] = []

    def __call__(self, row_W: Tensor, position: int, drafts: Sequence[int] = (), **_: Any) -> int:
        self.rows.append(row_W.float().cpu())
        best = int(row_W.argmax()) if bool(row_W.isfinite().any()) else 0
        self.best.append(best)
        return best if self._given is None else self._given[position - self._first]
