"""Prompts through an engine: logits of every position, and of a continuation that is chosen or given.

All prompts run side by side, as requests of a server do: prefill in chunks, then decode in one batch, with drafts
where both sides have an MTP layer. Logits are looked at as they come and not kept: those of 2,304 tokens over V3's
vocabulary would be 1.2 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from tiefsee.engine import EngineCore, Sampling
from tiefsee.parity.report import Drafted
from tiefsee.parity.watch import Watch, stand_in

Looked = TypeVar("Looked")
# What is to be noted of logits [n, W] that stand behind the tokens first to first + n - 1 of a prompt.
Look = Callable[[int, int, Tensor], Looked]


@dataclass(frozen=True)
class Run(Generic[Looked]):
    """One prompt: the tokens that followed by the largest logit, and what was noted of the logits of all positions
    but the last, in order. Where a continuation was given, `best` says what would have followed.

    `drafts` is what was noted behind the MTP layer, each with its first position, in the order of computing.
    """

    tokens: tuple[int, ...]
    best: tuple[int, ...]
    looked: tuple[Looked, ...] = field(repr=False)
    drafts: tuple[tuple[int, Looked], ...] = field(repr=False)


def run(
    core: EngineCore, prompts: Sequence[Sequence[int]], num_new: int, watch: Watch, look: Look[Looked],
    given: Sequence[Sequence[int]] | None = None, *, num_drafts: int = 0, look_at_drafts: Look[Looked] | None = None,
) -> tuple[list[Run[Looked]], Drafted]:  # fmt: skip
    """Run prompts and `num_new` tokens after each; with `given` these tokens, whatever the logits say."""
    sampling = Sampling(temperature=0.0, max_tokens=num_new, ignore_eos=True)
    followers: list[_Follower[Looked]] = []
    for index, prompt in enumerate(prompts):
        (generation,) = core.add(list(prompt), sampling, lambda _index, _delta: None, keep_logits=True)
        follower = _Follower(index, len(prompt), look, None if given is None else given[index])
        generation.choose, generation.prompt_rows = follower, _PromptRows(follower)  # type: ignore[method-assign]
        watch.prompts[generation.request.request_id] = index
        followers.append(follower)
    drafts: list[list[tuple[int, Looked]]] = [[] for _ in prompts]
    if look_at_drafts is not None and num_drafts:
        watch.on_draft = lambda i, first, rows: drafts[i].append((first, look_at_drafts(i, first, rows)))
    before = core.counters.drafted_tokens, core.counters.accepted_drafts
    always = stand_in(core.draft_length, "choose", lambda num_requests: num_drafts if num_requests else 0)
    with watch, always:
        try:
            while core.has_work():
                core.step()
        except BaseException:
            core.cancel_all()
            raise
    after = core.counters.drafted_tokens, core.counters.accepted_drafts
    runs = [
        Run(tuple(f.chosen), tuple(f.best), tuple(f.looked), tuple(d)) for f, d in zip(followers, drafts, strict=True)
    ]
    return runs, Drafted(after[0] - before[0], after[1] - before[1])


class _Follower(Generic[Looked]):
    """Stands in for the sampler of one answer: the best token, or the one that is given; has the logits looked at."""

    def __init__(self, prompt: int, num_prompt_tokens: int, look: Look[Looked], given: Sequence[int] | None) -> None:
        self._prompt, self._first, self._look, self._given = prompt, num_prompt_tokens, look, given
        self.looked: list[Looked] = []
        self.best: list[int] = []
        self.chosen: list[int] = []
        self._num_seen = 0

    def see(self, rows_TW: Tensor) -> None:
        rows_TW = rows_TW.float().cpu()
        self.looked.append(self._look(self._prompt, self._num_seen, rows_TW))
        self._num_seen += len(rows_TW)

    def __call__(self, row_W: Tensor, position: int, drafts: Sequence[int] = (), **_: object) -> int:
        row_W = row_W.float().cpu()  # where of equals the first is the best
        if position > self._first:  # the row of the prompt's last token has been seen with the prompt
            self.see(row_W.unsqueeze(0))
        best = int(row_W.argmax()) if bool(row_W.isfinite().any()) else 0
        self.best.append(best)
        self.chosen.append(best if self._given is None else self._given[position - self._first])
        return self.chosen[-1]


class _PromptRows(list[Tensor]):
    """In place of the rows that an engine would collect of a prompt."""

    def __init__(self, follower: _Follower[Looked]) -> None:
        super().__init__()
        self._see = follower.see

    def append(self, rows: Tensor) -> None:
        self._see(rows)
