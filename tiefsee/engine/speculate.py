"""Drafts by the MTP layer: what it has to see, how far it looks ahead, and whether that pays.

One MTP layer is applied repeatedly (EAGLE style). Its entry at slot p + 1 joins the hidden state of p with
token p + 1, so it lags the decoder by one token and needs one hidden state from before the step (stream
"mtp_hidden"). Entries made while drafting are provisional: they are written again with the decoder's
own states in the next step. Nothing here changes a text: a draft only saves a step if the sampler draws
the same token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tiefsee.engine.generation import Generation
from tiefsee.engine.moved import MovedDrafts
from tiefsee.engine.runner import Places, Runner, StepResult
from tiefsee.errors import NoToken
from tiefsee.ops.view import Segment
from tiefsee.schedule.batch import Entry


@dataclass(frozen=True)
class Committed:
    """An entry after its commit: positions entry.start to `end - 1` stand; `wants_drafts` says go on."""

    entry: Entry
    segment: Segment
    end: int
    generation: Generation
    wants_drafts: bool


class Drafter:
    """Keeps the MTP layer's streams up to date and proposes drafts."""

    def __init__(self, runner: Runner, max_draft: int) -> None:
        self.runner, self.max_draft = runner, max_draft
        self.layer = len(runner.network.spec.layers)
        # Per request: the MTP streams are complete from `origin` up to the position before `filled`.
        self._origin: dict[str, int] = {}
        self._filled: dict[str, int] = {}

    def forget(self, request_id: str) -> None:
        self._origin.pop(request_id, None)
        self._filled.pop(request_id, None)

    def state_of(self, request_id: str) -> MovedDrafts | None:
        """What another engine must know to draft on; None before the first step of a request."""
        if request_id not in self._filled:
            return None
        return MovedDrafts(self._origin[request_id], self._filled[request_id])

    def take_up(self, request_id: str, state: MovedDrafts | None) -> None:
        """A request that came with its rows. None: with the decoder's only, so drafting begins behind them."""
        self._origin[request_id], self._filled[request_id] = (state.origin, state.filled) if state else (1, 0)

    @torch.inference_mode()
    def propose(self, committed: Sequence[Committed], result: StepResult, num_drafts: int) -> None:
        """Fill the MTP streams for the step's committed tokens and set `request.drafts`.

        With `num_drafts` 0 only prompts are filled (they may be found again); a decode without drafts
        costs nothing, and drafting begins anew at a later origin.
        """
        fills = [c for c in committed if num_drafts or c.entry.start < c.entry.request.num_prompt_tokens - 1]
        spans = [span for c in fills if (span := self._span(c, num_drafts)) is not None]
        if not spans:
            return
        draft_TXD = self._first_pass(spans, result)
        active = [i for i, s in enumerate(spans) if s.num_drafts]
        rows = [spans[i].row for i in active]
        for depth in range(1, num_drafts + 1):
            if not active:
                return
            logits = self.runner.logits(rows)
            for i, row_W in zip(active, logits, strict=True):
                spans[i].draw(row_W, depth)
            keep = [n for n, i in enumerate(active) if spans[i].num_drafts > depth]
            if not keep:
                return
            draft_TXD, active = draft_TXD[[rows[n] for n in keep]], [active[n] for n in keep]
            draft_TXD = self._next_pass([spans[i] for i in active], draft_TXD, depth)
            rows = list(range(len(active)))

    def _span(self, c: Committed, num_drafts: int) -> _Span | None:
        """The slots that the first pass computes for one request, or None where there is nothing to do."""
        request = c.entry.request
        known = self._filled.get(request.request_id)
        start, origin = c.entry.start, self._origin.get(request.request_id, 1)
        if known is None or start < known:
            origin = 1  # newly admitted: rows before `start` came with the prefix
        elif start > known:
            origin = start + 1  # drafting had paused, and the state before `start` is stale
        self._origin[request.request_id], self._filled[request.request_id] = origin, c.end
        slots = len(c.entry.block_table) * self.runner.cache.plan.block_tokens
        room = slots - c.end
        wanted = min(num_drafts, room) if c.wants_drafts else 0
        first = max(start, origin)
        last = c.end + (1 if wanted > 0 else 0)
        if c.end <= start:
            return None
        return _Span(c, first, max(first, last), origin, max(0, wanted))

    def _first_pass(self, spans: Sequence[_Span], result: StepResult) -> Tensor:
        """MTP over all committed tokens (and the newest one): fills its streams, gives the first draft."""
        cache = self.runner.cache
        committed_segments = [
            Segment(s.committed.segment.first, s.committed.segment.first + s.committed.end - s.committed.entry.start,
                    s.committed.entry.start) for s in spans
        ]  # fmt: skip
        states = Places.of(committed_segments, [s.committed.entry for s in spans]).view(cache)
        before = [
            states.recent("mtp_hidden", self.layer, i, 1) if s.first == s.committed.entry.start else None
            for i, s in enumerate(spans)
        ]
        hidden = torch.cat([s.hidden(result.draft_TXD, b) for s, b in zip(spans, before, strict=True)])
        states.remember("mtp_hidden", self.layer, result.draft_TXD)
        segments, first = [], 0
        for s in spans:
            segments.append(Segment(first, first + s.last - s.first, s.first, s.origin))
            first += s.last - s.first
            s.row = first - 1
        live = [i for i, s in enumerate(segments) if s.num_tokens]
        if not live:
            return hidden
        tokens = [t for s in spans for t in s.tokens()]
        places = Places.of([segments[i] for i in live], [spans[i].committed.entry for i in live])
        return self.runner.draft(0, tokens, places, hidden).draft_TXD

    def _next_pass(self, spans: Sequence[_Span], hidden_TXD: Tensor, depth: int) -> Tensor:
        """One more draft: the last draft token with the MTP layer's own state before it."""
        segments = [Segment(i, i + 1, s.committed.end + depth, s.origin) for i, s in enumerate(spans)]
        tokens = [s.committed.entry.request.drafts[-1] for s in spans]
        places = Places.of(segments, [s.committed.entry for s in spans])
        return self.runner.draft(0, tokens, places, hidden_TXD).draft_TXD


@dataclass
class _Span:
    """Slots `first` to `last - 1` of one request in the MTP layer's first pass, and its drafts to come."""

    committed: Committed
    first: int
    last: int
    origin: int
    num_drafts: int
    row: int = field(default=-1)

    def tokens(self) -> list[int]:
        return list(self.committed.entry.request.tokens[self.first : self.last])

    def hidden(self, draft_TXD: Tensor, before: Tensor | None) -> Tensor:
        """The decoder's state of the position before each slot: [last - first, X, D]."""
        start, row = self.committed.entry.start, self.committed.segment.first
        own = draft_TXD[row + max(0, self.first - 1 - start) : row + self.last - 1 - start]
        return own if before is None or self.last == self.first else torch.cat((before.to(own.dtype), own))

    def draw(self, row_W: Tensor, depth: int) -> None:
        """Draft for the position after slot end + depth - 1, with the noise that the sampler will use."""
        request = self.committed.entry.request
        if depth == 1:
            request.drafts = []
        if self.committed.generation.sampling.is_plain_greedy:
            token = int(row_W.argmax())
        else:
            try:
                token = self.committed.generation.choose(row_W, self.committed.end + depth, request.drafts)
            except NoToken:  # a bad draft costs nothing: it will be refused
                token = 0
        request.drafts.append(token)


class DraftLength:
    """How many tokens to draft: what was measured to give most tokens per second, for a batch of this size.

    Times and tokens are averaged per (number of requests, drafts). Every candidate is tried in short
    bursts, more and more seldom as long as it loses, so that a load on which drafts do not pay loses
    little by the looking.
    """

    BURST = 6
    FIRST_PAUSE = 64
    LONGEST_PAUSE = 4096
    SMOOTHING = 0.15

    def __init__(self, max_draft: int) -> None:
        self.max_draft = max_draft
        self._sizes: dict[int, _Measured] = {}

    def choose(self, num_requests: int) -> int:
        """Drafts for the next step of this many decoding requests."""
        return self._of(num_requests).choose(self) if self.max_draft and num_requests else 0

    def observe(self, num_requests: int, drafts: int, num_tokens: int, seconds: float) -> None:
        """A pure decode step that was run with `drafts` per request gave `num_tokens` in `seconds`."""
        if self.max_draft and num_requests:
            self._of(num_requests).observe(drafts, num_tokens / num_requests, seconds, self.SMOOTHING)

    def _of(self, num_requests: int) -> _Measured:
        return self._sizes.setdefault(1 << (num_requests - 1).bit_length(), _Measured())


@dataclass
class _Measured:
    """Averages for one size of batch: drafts -> (tokens per request and step, seconds per step)."""

    rates: dict[int, tuple[float, float]] = field(default_factory=dict)
    step: int = 0
    trial: int = 0
    trial_left: int = 0
    pause: int = DraftLength.FIRST_PAUSE
    next_trial: int = 0

    def choose(self, owner: DraftLength) -> int:
        self.step += 1
        if self.trial_left:
            self.trial_left -= 1
            return self.trial
        untried = [k for k in range(owner.max_draft + 1) if k not in self.rates]
        if untried or self.step >= self.next_trial:
            best = self.best()
            self.trial = untried[0] if untried else self._neighbour(best, owner.max_draft)
            self.trial_left = owner.BURST - 1
            self.next_trial = self.step + self.pause
            self.pause = min(self.pause * 2, owner.LONGEST_PAUSE)
            return self.trial
        return self.best()

    def best(self) -> int:
        """The draft length of most tokens per second; 0 while nothing is known."""
        return max(self.rates, key=lambda k: (self.rates[k][0] / self.rates[k][1], -k), default=0)

    def gain(self) -> float:
        """Tokens per second of the best length over those without drafts."""
        if 0 not in self.rates:
            return math.nan
        tokens, seconds = self.rates[self.best()]
        return tokens / seconds * self.rates[0][1] / self.rates[0][0]

    def observe(self, drafts: int, tokens: float, seconds: float, smoothing: float) -> None:
        if drafts not in self.rates:
            self.rates[drafts] = (tokens, seconds)
            return
        # The first steps after a pause draft from an empty window; averages forget them.
        old_tokens, old_seconds = self.rates[drafts]
        weight = smoothing
        self.rates[drafts] = (
            old_tokens + weight * (tokens - old_tokens),
            old_seconds + weight * (seconds - old_seconds),
        )

    def _neighbour(self, best: int, max_draft: int) -> int:
        """Another length to look at: up and down in turn."""
        up, down = min(best + 1, max_draft), max(best - 1, 0)
        return up if (self.step // max(1, self.pause)) % 2 == 0 and up != best else down if down != best else up
