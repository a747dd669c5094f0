"""What the engine knows of one answer in the making: `Generation`; and whole answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tiefsee.engine.delta import Delta, FinishReason, TokenLogprobs
from tiefsee.engine.guide import Bits, Matcher, unpacked, without
from tiefsee.engine.sample import draw, token_logprobs
from tiefsee.engine.sampling import Sampling
from tiefsee.schedule.request import Request
from tiefsee.text import Detokeniser, Tokenizer


@dataclass(frozen=True)
class Completion:
    """One finished answer. `token_ids` end with the stop token, if one ended it; `text` does not.

    `error` says what went wrong where the finish reason is "error"; what had come by then stands.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Answer:
    """All answers to one prompt; the attributes of the first stand for the usual case of one."""

    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    num_cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.completions[0].token_ids

    @property
    def text(self) -> str:
        return self.completions[0].text

    @property
    def finish_reason(self) -> FinishReason:
        return self.completions[0].finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        return self.completions[0].logprobs


@dataclass
class Generation:
    """One answer: the scheduler's request, how tokens are chosen, and the text so far.

    `on_delta` is called once per step that added something, from the thread that steps the engine.
    `prompt_rows`, if not None, collects the logits [n, W] of every prompt position. `matcher` follows the
    constraint of the answer, if it has one.
    """

    request: Request
    sampling: Sampling
    seed: int
    index: int
    tokenizer: Tokenizer | None
    eos_ids: tuple[int, ...]
    on_delta: Callable[[Delta], None]
    siblings: list[Generation] = field(default_factory=list)
    prompt_rows: list[Tensor] | None = None
    matcher: Matcher | None = None
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        s = self.sampling
        self._detokeniser = None
        if self.tokenizer is not None:
            self._detokeniser = Detokeniser(self.tokenizer, s.stop, include_stop=s.include_stop)
        self._ending = frozenset((*s.stop_token_ids, *(() if s.ignore_eos else self.eos_ids)))
        self._prompt = self.request.tokens[: self.request.num_prompt_tokens]
        self._prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
        self._told_tokens = self._told_text = self._told_ranges = 0

    def allowed(self, drafts: Sequence[int] = ()) -> Bits | None:
        """The tokens that the constraint lets stand after `drafts`; None: there is no constraint, or the drafts
        break it. Of the tokens that end the text it keeps those that the request wants held back only where it
        allows nothing else."""
        bits = None if self.matcher is None else self.matcher.allowed(drafts)
        if bits is None:
            return None
        if len(self.token_ids) + len(drafts) < self.sampling.min_tokens:
            return without(bits, (*self._ending, *self.eos_ids))
        return without(bits, self.eos_ids) if self.sampling.ignore_eos else bits

    def choose(self, row_W: Tensor, position: int, drafts: Sequence[int] = ()) -> int:
        """The token of a position behind `drafts` from its logits [W], among those that the constraint allows.

        Behind drafts that break it anything may be drawn: they will be refused, and with them what follows.
        Raises NoToken.
        """
        bits = self.allowed(drafts)
        allowed_W = None if bits is None else unpacked([bits], len(row_W), row_W.device)[0]
        ending = () if bits is not None else sorted(self._ending)  # the mask has left them out already
        return draw(row_W, self.sampling, self.seed, position, self._prompt, self.token_ids, ending, allowed_W)

    def fail(self, error: str) -> None:
        """End this answer, and no other, by an error."""
        self.error, self.finish_reason = error, "error"
        if self._detokeniser is not None:
            self.text += self._detokeniser.flush()

    def add(self, token: int, row_W: Tensor) -> None:
        """Take one drawn token; sets `finish_reason` if it ends the answer."""
        self.token_ids.append(token)
        if self.sampling.logprobs is not None:
            self.logprobs.append(token_logprobs(row_W, token, self.sampling.logprobs))
        may_stop = len(self.token_ids) >= self.sampling.min_tokens
        piece = ""
        if token in self._ending and may_stop:
            self.finish_reason = "stop"
        elif self._detokeniser is not None:
            piece = self._detokeniser.feed(token, may_stop=may_stop)
            if self._detokeniser.stopped_by is not None:
                self.finish_reason = "stop"
        if self.matcher is not None and self.finish_reason is None:
            self.matcher.advance(token)
            if self.matcher.at_end:
                self.finish_reason = "stop"
            elif self.allowed() is None:
                self.fail(f"the constraint cannot be followed any further: {self.matcher.error}")
                return
        if self.finish_reason is None and len(self.token_ids) >= (self.request.max_tokens or 0):
            self.finish_reason = "length"
        if self.finish_reason is not None and self._detokeniser is not None:
            piece += self._detokeniser.flush()
        self.text += piece

    def replay(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], prompt: Sequence[TokenLogprobs | None]
    ) -> bool:
        """Take what was drawn and told elsewhere; False if the answer would have ended on the way."""
        for count, token in enumerate(tokens, 1):
            self.token_ids.append(token)
            if self._detokeniser is not None:
                self.text += self._detokeniser.feed(token, may_stop=count >= self.sampling.min_tokens)
                if self._detokeniser.stopped_by is not None:
                    return False
            if self.matcher is not None:
                self.matcher.advance(token)
        self.logprobs, self._prompt_logprobs = list(logprobs), tuple(prompt)
        self._told_tokens, self._told_text = len(self.token_ids), len(self.text)
        self._new_ranges()
        return self.matcher is None or self.matcher.error is None

    def tell(self) -> None:
        """Report what was added since the last time, if anything was."""
        new, text = tuple(self.token_ids[self._told_tokens :]), self.text[self._told_text :]
        logprobs = tuple(self.logprobs[self._told_tokens :])
        ranges = self._new_ranges()
        self._told_tokens, self._told_text = len(self.token_ids), len(self.text)
        if new or text or self.finish_reason:
            stop = self._detokeniser.stopped_by if self.finish_reason and self._detokeniser is not None else None
            before = self.prompt_logprobs() if len(new) == len(self.token_ids) else ()
            self.on_delta(Delta(new, text, logprobs, self.finish_reason, ranges, stop, self.error, before))

    def prompt_logprobs(self) -> tuple[TokenLogprobs | None, ...]:
        """One per prompt token, None for the first; empty where they were not asked for."""
        if self.prompt_rows is not None and self.sampling.prompt_logprobs is not None and not self._prompt_logprobs:
            found = prompt_token_logprobs(self.prompt_rows, self._prompt, self.sampling.prompt_logprobs)
            self._prompt_logprobs = tuple(found)
        return self._prompt_logprobs

    def _new_ranges(self) -> tuple[tuple[int, int], ...]:
        """Where the new text holds control tokens; one that a stop string cut off is none."""
        if self._detokeniser is None:
            return ()
        told = self._told_text
        found = self._detokeniser.special_ranges[self._told_ranges :]
        new = tuple((start - told, end - told) for start, end in found if end <= len(self.text))
        self._told_ranges += len(new)
        return new

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        logprobs = tuple(self.logprobs) if self.sampling.logprobs is not None else None
        return Completion(self.index, tuple(self.token_ids), self.text, self.finish_reason, logprobs, self.error)


def sample_seed(sampling: Sampling, index: int) -> int:
    """The seed of the index-th of n answers: the request's own for the first, others derived from it."""
    assert sampling.seed is not None
    seed = sampling.seed
    return seed if index == 0 else (seed * 0x9E3779B97F4A7C15 + index) & ((1 << 63) - 1)


def prompt_token_logprobs(rows: Sequence[Tensor], prompt: Sequence[int], num_top: int) -> list[TokenLogprobs | None]:
    """One entry per prompt token; the first has none, since nothing stands before it."""
    logits = [row for chunk in rows for row in chunk]
    return [
        None,
        *(token_logprobs(row, token, num_top) for row, token in zip(logits, prompt[1:], strict=False)),
    ]
