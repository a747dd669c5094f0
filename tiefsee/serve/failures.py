"""Exceptions as answers: an HTTP status, and a body in the shape that the protocol's clients parse.

    OpenAI      {"error": {"message", "type", "param", "code"}}
    Anthropic   {"type": "error", "error": {"type", "message"}, "request_id"}

What is not one of our own exceptions is a fault of ours: 500, its traceback in the log and never in a body.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tiefsee.errors import ConfigError, RequestError
from tiefsee.serve.reply import Headers, Reply


class HttpError(RequestError):
    """A request that HTTP itself refuses: no such path, no key, too large, ..."""

    def __init__(self, status: int, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.http_status, self.headers = status, headers or []


@dataclass(frozen=True)
class Failure:
    """An exception as HTTP knows it."""

    status: int
    message: str
    code: str | None = None
    headers: Headers = field(default_factory=list)


_OPENAI_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
}  # fmt: skip
_ANTHROPIC_TYPES = {
    **_OPENAI_TYPES, 400: "invalid_request_error", 413: "request_too_large", 503: "overloaded_error",
    504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip
_CODES = {
    "PromptTooLong": "context_length_exceeded", "Overloaded": "rate_limit_exceeded",
    "RateLimited": "rate_limit_exceeded",
}  # fmt: skip


def failure_of(error: BaseException) -> Failure:
    """Status, message and headers of an exception."""
    status = getattr(error, "http_status", None)
    if status is None:
        status = 400 if isinstance(error, ConfigError) else 500
    known = isinstance(error, RequestError | ConfigError) or status != 500
    message = str(error) if known else "the server failed on this request; it is logged under the request id"
    headers = list(getattr(error, "headers", []))
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(retry_after_s))).encode()))
    return Failure(status, message, _CODES.get(type(error).__name__), headers)


def openai_error(failure: Failure) -> dict[str, Any]:
    usual = "invalid_request_error" if failure.status < 500 else "server_error"
    kind = _OPENAI_TYPES.get(failure.status, usual)
    return {"error": {"message": failure.message, "type": kind, "param": None, "code": failure.code}}


def anthropic_error(failure: Failure, request_id: str) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(failure.status, "invalid_request_error" if failure.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": failure.message}, "request_id": request_id}


def error_reply(error: BaseException, path: str, request_id: str) -> Reply:
    """The answer to a request that failed before anything was sent."""
    failure = failure_of(error)
    shape = anthropic_error(failure, request_id) if path.startswith("/v1/messages") else openai_error(failure)
    return Reply.json(shape, failure.status, failure.headers)
