"""The reference's logits and every decision that it takes on the way: picks, and by how much each was won.

transformers decides by `topk`: in routers over experts or groups, in indexers over keys or entries. A
decision that is won by less than NEAR_TIE may fall differently in another order of summation, and then
every later position differs for good reason; such positions are counted, and compared with picks forced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tiefsee.ops import Operators

TOLERANCE = 1e-4  # of max |a - b| / max |b|, position by position
NEAR_TIE = 1e-5
LARGEST_TIE_SHARE = 0.005
HIDDEN = -1e30  # scores below are masked: keys of the future, groups that do not stand for choice


@dataclass
class Reference:
    """One full pass of transformers over a sequence: logits [T, W], margins [T], picks in layer order."""

    logits: Tensor = field(repr=False)
    margins: Tensor = field(repr=False)
    experts: list[Tensor] = field(repr=False)
    entries: list[Tensor] = field(repr=False)

    def near_ties(self) -> int:
        """Positions at which some router or indexer decides by less than NEAR_TIE."""
        return int((self.margins < NEAR_TIE).sum())


def reference(model: nn.Module, tokens: Sequence[int]) -> Reference:
    """Logits and decisions of one pass without a cache."""
    with torch.inference_mode(), Decisions(model.config.n_routed_experts, len(tokens)) as decisions:
        logits = model(torch.tensor([list(tokens)]), use_cache=False).logits[0].float()
    return Reference(logits, decisions.margins, decisions.experts, decisions.entries)


class Decisions(TorchFunctionMode):
    """Watches a pass over one sequence and notes each `topk` that picks groups, experts or entries."""

    def __init__(self, num_experts: int, num_tokens: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.margins = torch.full((num_tokens,), torch.inf)
        self.experts: list[Tensor] = []
        self.entries: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in (torch.topk, Tensor.topk):
            self._note(args[0], args[1] if len(args) > 1 else kwargs["k"], result.indices)
        return result

    def _note(self, scores: Tensor, k: int, picks: Tensor) -> None:
        if scores.dim() == 3 and scores.shape[0] == 1:  # an indexer: one sequence of queries over entries
            self.entries.append(picks[0].long())
            scores = scores[0]
        elif scores.dim() != 2:
            return  # the two best of each group are summed: whichever comes first, the sum is the same
        elif scores.shape[1] == self.num_experts:
            self.experts.append(picks)
        if k < scores.shape[1]:
            best = scores.float().topk(k + 1).values
            margin = (best[:, k - 1] - best[:, k]).masked_fill(best[:, k] < HIDDEN, torch.inf)
            self.margins = torch.minimum(self.margins, margin)


def errors(found: Tensor, needed: Tensor) -> Tensor:
    """max |a - b| / max |b| of each position, [T]; nan counts as wrong, whatever is compared with it."""
    ratio = (found - needed).abs().amax(-1) / needed.abs().amax(-1)
    return ratio.nan_to_num(torch.inf)


def assert_close(found: Tensor, needed: Tensor, what: str) -> None:
    """Every position within TOLERANCE; the message names the first that is not, and the worst."""
    assert found.shape == needed.shape, f"{what}: {tuple(found.shape)} logits, needed {tuple(needed.shape)}"
    error = errors(found, needed)
    wrong = (error > TOLERANCE).nonzero().flatten().tolist()
    assert not wrong, (
        f"{what}: {len(wrong)} of {len(error)} positions differ by more than {TOLERANCE}, the first is "
        f"{wrong[0]} ({error[wrong[0]]:.1e}), the worst {int(error.argmax())} ({error.max():.1e})"
    )


@dataclass
class _Queue:
    """Recorded picks, handed out in the order of the layers' calls."""

    picks: list[Tensor]
    used: int = field(default=0)

    def __call__(self, scores: Tensor, *_others: Any) -> Tensor:
        self.used += 1
        return self.picks[self.used - 1].to(scores.device)


@contextmanager
def forced_picks(ops: Operators, experts: Sequence[Tensor], entries: Sequence[Tensor]) -> Iterator[None]:
    """Within, routers and indexers take the recorded picks instead of their own.

    For one sequence in one prefill: each call gets the picks of all positions of the next layer. The
    weights of the experts still come from the network's own scores.
    """
    queues = {"select_experts": _Queue(list(experts)), "select_entries": _Queue(list(entries))}
    for name, queue in queues.items():
        setattr(ops, name, queue)
    try:
        yield
    finally:
        for name in queues:
            delattr(ops, name)
    for name, queue in queues.items():
        assert queue.used == len(queue.picks), f"{name} was called {queue.used} times for {len(queue.picks)} layers"
