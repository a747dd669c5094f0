"""How one request wants its tokens chosen: `Sampling`, checked on construction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tiefsee.engine.constraint import Constraint
from tiefsee.errors import InvalidSampling

MAX_LOGPROBS = 50


@dataclass(frozen=True)
class Sampling:
    """Options of one request. None means: as generation_config.json says, else the usual default.

        Sampling(temperature=0, max_tokens=64)                  greedy
        Sampling(temperature=0.6, top_p=0.95, seed=7)           R1's advice, repeatable
        Sampling(stop=("\\n\\n",), logprobs=5, n=4)

    The token at a position depends on the seed and that position only, so a request that goes on
    elsewhere, or that is recomputed, goes on the same. Without a seed one is drawn per request.

    Under a `constraint` only what it allows is drawn, before temperature, penalties and truncation count. It has the
    last word: an answer ends where it is complete and nothing can be added, whatever min_tokens and ignore_eos
    say, which otherwise hold the end back; a stop string, stop_token_ids and max_tokens cut it short. Logprobs
    are those of the model without it.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop or ()))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        self._check("max_tokens", self.max_tokens, 1, math.inf, whole=True)
        self._check("min_tokens", self.min_tokens, 0, math.inf, whole=True)
        self._check("temperature", self.temperature, 0, 100)
        self._check("top_k", self.top_k, 0, math.inf, whole=True, note="0 switches it off")
        self._check("top_p", self.top_p, 0, 1, above=True)
        self._check("min_p", self.min_p, 0, 1)
        self._check("presence_penalty", self.presence_penalty, -2, 2)
        self._check("frequency_penalty", self.frequency_penalty, -2, 2)
        self._check("repetition_penalty", self.repetition_penalty, 0, 100, above=True)
        self._check("seed", self.seed, -(2**63), 2**63 - 1, whole=True)
        self._check("n", self.n, 1, 128, whole=True)
        self._check("logprobs", self.logprobs, 0, MAX_LOGPROBS, whole=True)
        self._check("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS, whole=True)
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise InvalidSampling(
                f"constraint is a {type(self.constraint).__name__}; needed a Constraint(kind, source)"
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidSampling(f"min_tokens = {self.min_tokens} is above max_tokens = {self.max_tokens}")
        if any(not isinstance(s, str) or not s for s in self.stop):
            raise InvalidSampling("stop holds an empty string; needed strings of at least one character")
        for token in self.stop_token_ids:
            if not isinstance(token, int) or token < 0:
                raise InvalidSampling(f"stop_token_ids holds {token!r}; needed token ids")
        for token, bias in self.logit_bias.items():
            if not isinstance(token, int) or token < 0 or not math.isfinite(bias):
                raise InvalidSampling(f"logit_bias {token!r}: {bias!r}; needed token ids with finite numbers")

    def _check(
        self, name: str, value: float | None, low: float, high: float,
        *, whole: bool = False, above: bool = False, note: str = "",
    ) -> None:  # fmt: skip
        if value is None:
            return
        kind = int if whole else (int, float)
        fine = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
        if not fine or (above and value == low):
            bounds = f"{'above' if above else 'from'} {low}" + ("" if high == math.inf else f" to {high}")
            what = "a whole number" if whole else "a number"
            raise InvalidSampling(f"{name} = {value!r}; needed {what} {bounds}" + (f" ({note})" if note else ""))

    def with_defaults(self, generation_config: Mapping[str, Any]) -> Sampling:
        """This, with every open field taken from a generation_config.json, or from the usual defaults.

        Files that say do_sample = false mean greedy, unless the request names a temperature.
        """
        usual = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
        if generation_config.get("do_sample") is False:
            usual["temperature"] = 0.0
            generation_config = {k: v for k, v in generation_config.items() if k != "temperature"}
        found = {k: generation_config[k] for k in usual if generation_config.get(k) is not None}
        chosen = {k: v for k, v in (usual | found).items() if getattr(self, k) is None}
        return replace(self, **chosen)

    @property
    def is_plain_greedy(self) -> bool:
        """No random number and no look at what came before: a batch of these is one argmax."""
        return (
            self.temperature == 0
            and not self.logit_bias
            and not self.presence_penalty
            and not self.frequency_penalty
            and self.repetition_penalty in (None, 1.0)
            and not self.min_tokens
            and self.constraint is None
        )


FIELD_NAMES = tuple(f.name for f in fields(Sampling))
