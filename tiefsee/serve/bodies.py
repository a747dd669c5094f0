"""Request bodies as typed structures: what is read of them, checked and documented (OpenAPI) from one place.

Unknown fields are tolerated: routers and clients add their own. Messages, tools and other nested items stay
plain here; `tiefsee.text` gives them their meaning.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from tiefsee.errors import RequestError

Text = str | list[str]
Tokens = list[Annotated[int, Meta(ge=0)]]
Plain = dict[str, Any]
Stop = str | list[str] | None


class StreamOptions(Struct):
    """`include_usage`: one more chunk at the end with the usage of the whole answer."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class SamplingFields(Struct, kw_only=True):
    """What chat and text completions have in common. None means: as the model's generation_config.json says."""

    model: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: int | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: Stop = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    ignore_eos: bool = False
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = None
    user: str | None = None
    deadline_s: Annotated[float, Meta(gt=0)] | None = None
    structured_outputs: Plain | None = None
    response_format: Plain | None = None
    return_token_ids: bool = False


class ChatBody(SamplingFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Plain]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Plain] | None = None
    tool_choice: str | Plain | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    thinking: Plain | bool | None = None
    chat_template: Any = None
    chat_template_kwargs: Plain | None = None


class CompletionBody(SamplingFields, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[Any]
    suffix: str | None = None
    echo: bool = False
    max_tokens: Annotated[int, Meta(ge=0)] | None = 16
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: int | None = None


class ResponsesBody(Struct, kw_only=True):
    """POST /v1/responses."""

    input: str | list[Plain]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    reasoning: Plain | None = None
    text: Plain | None = None
    tools: list[Plain] | None = None
    tool_choice: str | Plain | None = None
    parallel_tool_calls: bool | None = None
    metadata: Plain | None = None
    user: str | None = None
    seed: int | None = None
    priority: int | None = None


class MessagesBody(Struct, kw_only=True):
    """POST /v1/messages."""

    messages: list[Plain]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    model: str | None = None
    system: str | list[Plain] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: int | None = None
    thinking: Plain | None = None
    tools: list[Plain] | None = None
    tool_choice: Plain | None = None
    metadata: Plain | None = None
    priority: int | None = None


class TokenizeBody(Struct, kw_only=True):
    """POST /tokenize: a text, or a conversation as the chat endpoint takes it."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Plain] | None = None
    tools: list[Plain] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeBody(Struct, kw_only=True):
    """POST /detokenize."""

    tokens: Tokens
    model: str | None = None


BodyKind = Literal["chat", "completion", "responses", "messages", "tokenize", "detokenize"]
BODIES: dict[BodyKind, type[Struct]] = {
    "chat": ChatBody, "completion": CompletionBody, "responses": ResponsesBody, "messages": MessagesBody,
    "tokenize": TokenizeBody, "detokenize": DetokenizeBody,
}  # fmt: skip


def decode_json(body: bytes) -> Plain:
    """The JSON object of a body; RequestError says where it is broken."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}; send one JSON object as application/json") from error
    if not isinstance(found, dict):
        raise RequestError(f"the body is a JSON {type(found).__name__}; needed is an object")
    return found


T = TypeVar("T", bound=Struct)


def convert(found: Plain, kind: type[T]) -> T:
    """The object as `kind`; RequestError names the field that does not fit."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        raise RequestError(f"{place.rstrip('`') or 'the body'}: {message[:1].lower()}{message[1:]}") from error
