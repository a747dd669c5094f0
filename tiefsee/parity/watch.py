"""Looks on while an engine runs: which operators are called with what, which experts and entries are picked.

`Watch` replaces the operators of one table by functions that note what passes, for as long as its `with` block
lasts. It can also give back picks that were recorded elsewhere, so that two devices decide alike and only their
numbers differ.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from tiefsee.engine import EngineCore
<<<<<<< HEAD
from tiefsee.parity.calls import OPERATORS, PICKS, Call, bind, keep, probe
from tiefsee.parity.replay import Player
from tiefsee.parity.report import MADE_OF
=======
from tiefsee.ops import Operators
from tiefsee.parity.calls import COMPOSITES, OPERATORS, PICKS, Call, Parameters, bind, keep, with_ties
>>>>>>> ascend
from tiefsee.schedule import Batch

# Per site ("layers.3.ffn.gate") and prompt: position -> what was picked for it, [K].
Picks = dict[str, dict[int, dict[int, Tensor]]]


class Watch:
    """`prompts` numbers the requests of the run; calls are kept in steps for which `wants` says so, until
    `limit_bytes` are used up."""

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
        self._player = Player(core)
        self._stack: list[str] = []
        self._rows: list[tuple[int, int, int]] = []  # of the step: (prompt, start, number of tokens) per segment
        self._next_segment: dict[str, int] = {}
        self._inside = self._keeps = False
        self._num_noted = 0

    def __enter__(self) -> Watch:
        fused = [name for name in COMPOSITES if getattr(type(self._ops), name) is not getattr(Operators, name)]
        self._saved = {name: self._ops.__dict__.get(name) for name in (*OPERATORS, *fused)}
        for name in OPERATORS:
            setattr(self._ops, name, self._watched(name, getattr(self._ops, name)))
        for name in fused:
            setattr(self._ops, name, self._fused(name))
        self._handles = []
        for name, module in self._network.named_modules():
            self._handles.append(module.register_forward_pre_hook(lambda m, a, n=name: self._stack.append(n)))
            self._handles.append(module.register_forward_hook(lambda m, a, o: self._leave(), always_call=True))
        run = self._core.runner.run
        self._core.runner.run = lambda batch: self._step(run, batch)  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        del self._core.runner.run
        for handle in self._handles:
            handle.remove()
        for name, before in self._saved.items():
            if before is None:
                delattr(self._ops, name)
            else:
                setattr(self._ops, name, before)

    def _leave(self) -> None:
        self._stack.pop()

    def _step(self, run: Callable[[Batch], Any], batch: Batch) -> Any:
        self._rows = [(self.prompts[e.request.request_id], e.start, len(e.tokens)) for e in batch.entries]
        self._next_segment, self._keeps = {}, self._wants(batch)
        return run(batch)

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

<<<<<<< HEAD
    def _picked_in_one(self, name: str, site: str, arguments: tuple[Any, ...], result: Any) -> Any:
        """Picks of a router or an indexer that a backend computes in one piece."""
        if name == "pick_keys":
            return [
                self._chosen(site, [span], picks, [p + 1 > picks.shape[1] for p in range(span[1], span[1] + span[2])])
                if picks is not None else None
                for span, picks in zip(self._rows, result, strict=True)
            ]  # fmt: skip
        hidden, weight, _, router, _, experts_of_token = arguments
        if experts_of_token is not None:
            return result  # by hash: nothing is chosen
        experts = self._chosen(site, self._rows, result[0], [True] * len(result[0]))
        if experts is result[0]:
            return result
        scores = self._ops.router_scores(hidden, weight, router.scoring_func)
        return experts, self._ops.expert_weights(scores, experts, router)
=======
    def _fused(self, name: str) -> Callable[..., Any]:
        """A backend's own of an operator that is made of others: what it picks is noted. Where picks are given, it is
        made of the others again, for they take what is given."""
        if self._forced is not None:
            return MethodType(getattr(Operators, name), self._ops)
        operator = getattr(self._ops, name)

        def call(*arguments: Any, **named: Any) -> Any:
            result = operator(*arguments, **named)
            site = self._stack[-1]
            if name == "route":
                if bind(name, arguments, named)[-1] is not None:  # by hash there is no choice
                    return result
                self._note(site, self._rows, [True] * len(result[0]), result[0].cpu())
                return result
            for row, picks in zip(self._rows, result, strict=True):
                if picks is not None:
                    _, start, count = row
                    chose = [start + i + 1 > picks.shape[1] for i in range(count)]
                    self._note(site, [row], chose, picks.cpu())
            return result

        return call

    def _note(self, site: str, spans: list[tuple[int, int, int]], chose: list[bool], picks: Tensor) -> None:
        """What was picked for each token that had a choice."""
        places = [(prompt, position) for prompt, start, count in spans for position in range(start, start + count)]
        noted = self.picks.setdefault(site, {})
        for (prompt, position), had_choice, row in zip(places, chose, picks, strict=True):
            if had_choice:
                noted.setdefault(prompt, {})[position] = row
>>>>>>> ascend

    def _keep(self, name: str, site: str, arguments: tuple[Any, ...], result: Any) -> None:
        call = keep(name, site, arguments, result, self._player.parameters)
        for one in (call, probe(call, self._player.play)):
            if one is None:
                continue
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
            if count == num_tokens and (start + count) // ratio == num_entries:
                self._next_segment[site] = index + 1
                return self._rows[index]
        raise AssertionError(f"{site} chose for {num_tokens} tokens among {num_entries} entries: no segment has those")
