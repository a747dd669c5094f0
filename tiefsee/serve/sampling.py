"""Sampling of a request, from the fields of its body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiefsee.engine.constraint import Constraint
from tiefsee.engine.sampling import Sampling
from tiefsee.errors import InvalidSampling
from tiefsee.serve.bodies import SamplingFields, Stop

OPENAI_MAX_STOPS = 16


def sampling_of(
    body: SamplingFields,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    constraint: Constraint | None,
    prompt_logprobs: int | None = None,
) -> Sampling:
    """The engine's Sampling; raises InvalidSampling for values that do not fit together."""
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        temperature=body.temperature,
        top_k=max(0, body.top_k) if body.top_k is not None else None,  # vLLM writes -1 for "off"
        top_p=body.top_p,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty,
        logit_bias=bias_of(body.logit_bias),
        seed=body.seed,
        n=body.n or 1,
        stop=stops_of(body.stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        include_stop=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        constraint=constraint,
    )


def stops_of(stop: Stop) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > OPENAI_MAX_STOPS:
        raise InvalidSampling(f"stop holds {len(stops)} strings; at most {OPENAI_MAX_STOPS} are looked for")
    return stops


def bias_of(bias: Mapping[str, float] | None) -> dict[int, float]:
    """OpenAI's keys are token ids as text."""
    try:
        return {int(token): float(value) for token, value in (bias or {}).items()}
    except ValueError as error:
        raise InvalidSampling(f"logit_bias holds {next(iter(bias or {}))!r}; needed are token ids as keys") from error


def check_seed(seed: Any) -> None:
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise InvalidSampling(f"seed = {seed}; needed a 64-bit integer")
