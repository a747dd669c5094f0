"""One answer in the making, as a client will see it: pieces, counts, log probabilities, how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tiefsee.engine.delta import Delta, TokenLogprobs
from tiefsee.text import AnswerParser, CallBegin, CallEnd, Piece, Tokenizer
from tiefsee.text import Text as TextPiece

Ending = Literal["stop", "length", "tool_calls"]


@dataclass
class Usage:
    """Tokens of one request: of its prompt (and how many of them were cached), and of all its answers."""

    prompt_tokens: int
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0

    def openai(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }

    def responses(self) -> dict[str, Any]:
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def anthropic(self) -> dict[str, Any]:
        """Anthropic counts cached tokens apart from the others."""
        return {
            "input_tokens": self.prompt_tokens - self.cached_tokens,
            "cache_read_input_tokens": self.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": self.completion_tokens,
        }


class Choice:
    """State of one of the n answers. Without a parser all text is the answer's."""

    def __init__(self, index: int, usage: Usage, parser: AnswerParser | None) -> None:
        self.index, self.usage, self._parser = index, usage, parser
        self.ending: Ending | None = None
        self.stop: str | None = None
        self._called = False

    def feed(self, delta: Delta) -> list[Piece]:
        """The pieces that became final with a delta; sets `ending` with the last."""
        usage, parser = self.usage, self._parser
        usage.completion_tokens += len(delta.token_ids)
        if parser is None:
            pieces: list[Piece] = [TextPiece(delta.text)] if delta.text else []
        else:
            if parser.in_reasoning:
                usage.reasoning_tokens += len(delta.token_ids)
            pieces = parser.feed(delta.text, delta.special_ranges) if delta.text else []
            if delta.finish_reason is not None:
                pieces += parser.flush()
        self._called = self._called or any(isinstance(p, CallBegin) for p in pieces)
        if delta.finish_reason is not None:
            self.ending = self._end(delta, pieces)
            self.stop = delta.stop
        return pieces

    def _end(self, delta: Delta, pieces: Sequence[Piece]) -> Ending:
        """A call that was cut off is no call to carry out, so such an answer ended by its length."""
        if delta.finish_reason == "length":
            return "length"
        torn = any(isinstance(p, CallEnd) and not p.complete for p in pieces)
        return "tool_calls" if self._called and not torn else "stop"


def chat_logprobs(logprobs: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> dict[str, Any]:
    """Log probabilities in the shape of Chat Completions."""
    return {"content": [_token(item, tokenizer) for item in logprobs], "refusal": None}


def _token(item: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        **_named(item.token_id, item.logprob, tokenizer),
        "top_logprobs": [_named(token, logprob, tokenizer) for token, logprob in item.top],
    }


def _named(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    return {"token": raw.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(raw)}


def finite(logprob: float) -> float:
    """JSON has no infinities; OpenAI writes -9999 for a token that cannot come."""
    return max(logprob, -9999.0)
