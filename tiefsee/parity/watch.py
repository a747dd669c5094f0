"""Looks on while an engine runs: which operators are called with what, which experts and entries are picked, what the
layers give, what an MTP layer would draft.

`Watch` replaces the operators of one table by functions that note what passes, for as long as its `with` block
lasts. It can also give back picks that were recorded elsewhere, so that two devices decide alike and only their
numbers differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from tiefsee.engine import EngineCore
from tiefsee.model.network import Hidden
from tiefsee.parity.calls import OPERATORS, PICKS, Call, bind, keep, probes
from tiefsee.parity.replay import Player
from tiefsee.parity.report import MADE_OF
from tiefsee.parity.trace import INPUT, Trace
from tiefsee.schedule import Batch, Request


@contextmanager
def stand_in(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Within, a method of one object is another function; then what stood there stands there again."""
    before = vars(owner).get(name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        delattr(owner, name) if before is None else setattr(owner, name, before)


# Per site ("layers.3.ffn.gate") and prompt: position -> what was picked for it, [K].
Picks = dict[str, dict[int, dict[int, Tensor]]]


class Watch:
    """`prompts` numbers the requests of the run; calls are kept in steps for which `wants` says so, until
    `limit_bytes` are used up. `on_draft` hears of logits behind an MTP layer: (prompt, first position, [n, W])."""

    def __init__(
        self, core: EngineCore, *, wants: Callable[[Batch], bool] = lambda batch: False, limit_bytes: float = 0.0,
        sites: Callable[[str], bool] = lambda site: True, forced: Picks | None = None,
    ) -> None:  # fmt: skip
        self._core, self._ops, self._network = core, core.runner.network.ops, core.runner.network
        self._wants, self._limit_bytes, self._sites, self._forced = wants, limit_bytes, sites, forced
        self.prompts: dict[str, int] = {}
        self.calls: list[Call] = []
        self.picks: Picks = {}
        self.num_bytes = 0
        self.num_left_out = 0
        self.trace = Trace(self._network)
        self.on_draft: Callable[[int, int, Tensor], None] | None = None
        self._player = Player(core)
        self._stack: list[str] = []
        self._rows: list[tuple[int, int, int]] = []  # of the pass: (prompt, start, number of tokens) per segment
        self._origins: list[int] = []
        self._owners: dict[int, tuple[int, Request]] = {}  # of the step: first block -> prompt, request
        self._next_segment: dict[str, int] = {}
        self._inside = self._keeps = self._is_guess = False
        self._probed: set[tuple[str, str]] = set()
        self._num_noted = 0

    def __enter__(self) -> Watch:
        self._stood_in = ExitStack()
        for name in OPERATORS:
            watched = self._watched(name, getattr(self._ops, name))
            self._stood_in.enter_context(stand_in(self._ops, name, watched))
        self._handles = []
        for name, module in self._network.named_modules():
            self._handles.append(module.register_forward_pre_hook(lambda m, a, n=name: self._enter(n, a[0])))
            self._handles.append(module.register_forward_hook(lambda m, a, o: self._leave(o), always_call=True))
        run, draft = self._core.runner.run, self._network.draft
        self._stood_in.enter_context(stand_in(self._core.runner, "run", lambda batch: self._step(run, batch)))
        self._stood_in.enter_context(stand_in(self._network, "draft", lambda *given: self._draft(draft, *given)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._stood_in.close()

    def _enter(self, site: str, given: Tensor) -> None:
        self._stack.append(site)
        if site + INPUT in self.trace.points and not self._is_guess:
            self.trace.note(site + INPUT, given, self._rows)

    def _leave(self, output: Any) -> None:
        site = self._stack.pop()
        if site in self.trace.points and not self._is_guess and output is not None:
            self.trace.note(site, output, self._rows)

    def _step(self, run: Callable[[Batch], Any], batch: Batch) -> Any:
        prompts = [self.prompts[e.request.request_id] for e in batch.entries]
        self._rows = [(p, e.start, len(e.tokens)) for p, e in zip(prompts, batch.entries, strict=True)]
        self._origins = [0] * len(self._rows)
        self._owners = {e.block_table[0]: (p, e.request) for p, e in zip(prompts, batch.entries, strict=True)}
        self._next_segment, self._keeps = {}, self._wants(batch)
        return run(batch)

    def _draft(
        self, draft: Callable[..., Hidden], index: int, tokens: Tensor, positions: Tensor, hidden: Tensor, view: Any
    ) -> Hidden:
        """A pass of an MTP layer: over tokens that stand, or behind drafts, which are guesses and not compared."""
        owners = [self._owners[table[0]] for table in view.tables]
        self._rows = [(p, s.start, s.num_tokens) for (p, _), s in zip(owners, view.segments, strict=True)]
        self._origins, self._next_segment = [s.origin for s in view.segments], {}
        self._is_guess = any(s.end > len(r.tokens) for (_, r), s in zip(owners, view.segments, strict=True))
        self._stack.append(f"mtp.{index}")
        try:
            output = draft(index, tokens, positions, hidden, view)
            if self.on_draft is not None and not self._is_guess:
                keeps, self._keeps = self._keeps, False
                for (prompt, start, _), s in zip(self._rows, view.segments, strict=True):
                    logits = self._network.logits(output.final_TD[s.first : s.last])
                    self.on_draft(prompt, start, logits.float().cpu())
                self._keeps = keeps
            return output
        finally:
            self._stack.pop()
            self._is_guess = False

    def _watched(self, name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self._inside:  # an operator's own use of another
                return operator(*arguments, **named)
            site, noted = self._stack[-1] if self._stack else "", self._num_noted
            self._inside = name not in MADE_OF  # what these are made of is looked at as well
            try:
                result = operator(*arguments, **named)
                self._inside = True
                if self._keeps and self._sites(site):
                    self._keep(name, site, bind(name, arguments, named), result)
                if name in PICKS:
                    result = self._picked(name, site, arguments, result)
                elif name in MADE_OF and noted == self._num_noted:  # in one piece: nothing inside has picked
                    result = self._picked_in_one(name, site, bind(name, arguments, named), result)
            finally:
                self._inside = False
            return result

        return call

    def _picked_in_one(self, name: str, site: str, arguments: tuple[Any, ...], result: Any) -> Any:
        """Picks of a router or an indexer that a backend computes in one piece."""
        if name == "pick_keys":
            return [
                self._chosen(
                    site, [span], picks, [p + 1 - origin > picks.shape[1] for p in range(span[1], span[1] + span[2])]
                )
                if picks is not None else None
                for span, origin, picks in zip(self._rows, self._origins, result, strict=True)
            ]  # fmt: skip
        hidden, weight, _, router, _, experts_of_token = arguments
        if experts_of_token is not None:
            return result  # by hash: nothing is chosen
        experts = self._chosen(site, self._rows, result[0], [True] * len(result[0]))
        if experts is result[0]:
            return result
        scores = self._ops.router_scores(hidden, weight, router.scoring_func)
        return experts, self._ops.expert_weights(scores, experts, router)

    def _keep(self, name: str, site: str, arguments: tuple[Any, ...], result: Any) -> None:
        call = keep(name, site, arguments, result, self._player.parameters)
        for one in (call, *probes(call, self._player.parameters, self._player.play, self._probed)):
            if self.num_bytes + one.num_bytes > self._limit_bytes:
                self.num_left_out += 1
            else:
                self.num_bytes += one.num_bytes
                self.calls.append(one)

    # ---------------------------------------------------------------------------------- picks

    def _picked(self, name: str, site: str, arguments: tuple[Any, ...], result: Tensor | None) -> Tensor | None:
        """Note what was picked for each token that had a choice, and hand back what is to be picked instead."""
        if result is None:
            return None
        if name == "select_experts":
            spans, chose = self._rows, [True] * len(result)
        else:
            spans = [self._segment_of(site, *arguments[0].shape)]
            chose = (arguments[1] > result.shape[1]).tolist()
        return self._chosen(site, spans, result, chose)

    def _chosen(self, site: str, spans: list[tuple[int, int, int]], result: Tensor, chose: list[bool]) -> Tensor:
        """Picks [T, K] of some segments are noted; those that are given for a position stand instead."""
        self._num_noted += 1
        if self._is_guess:
            return result
        places = [(prompt, position) for prompt, start, count in spans for position in range(start, start + count)]
        noted, forced = self.picks.setdefault(site, {}), (self._forced or {}).get(site, {})
        picks, chosen = result.to("cpu", torch.int32), result
        for row, (prompt, position) in enumerate(places):
            if not chose[row]:
                continue
            noted.setdefault(prompt, {})[position] = picks[row]
            other = forced.get(prompt, {}).get(position)
            if other is not None and other.shape == picks[row].shape:
                chosen = result.clone() if chosen is result else chosen
                chosen[row] = other.to(result)
        return chosen

    def _segment_of(self, site: str, num_tokens: int, num_entries: int) -> tuple[int, int, int]:
        """The segment that an indexer chooses for: it asks in their order, but only where there is a choice."""
        spec = self._network.get_submodule(site).spec
        ratio = getattr(spec, "ratio", 1)
        for index in range(self._next_segment.get(site, 0), len(self._rows)):
            _, start, count = self._rows[index]
            if count == num_tokens and (start + count) // ratio - self._origins[index] == num_entries:
                self._next_segment[site] = index + 1
                return self._rows[index]
        raise AssertionError(f"{site} chose for {num_tokens} tokens among {num_entries} entries: no segment has those")
