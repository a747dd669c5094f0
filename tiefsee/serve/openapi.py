"""The OpenAPI document, made of the bodies' own types, so that it can't say anything else than the code."""

from __future__ import annotations

from typing import Any

import msgspec

from tiefsee import __version__
from tiefsee.serve.bodies import BODIES, BodyKind
from tiefsee.serve.reply import Reply

_POSTS: dict[str, tuple[BodyKind, str]] = {
    "/v1/chat/completions": ("chat", "Answer a conversation (OpenAI Chat Completions)"),
    "/v1/chat/completions/render": ("chat", "The prompt that a conversation becomes, as text and tokens"),
    "/v1/completions": ("completion", "Continue a text (OpenAI Completions)"),
    "/v1/responses": ("responses", "Answer a conversation (OpenAI Responses)"),
    "/v1/messages": ("messages", "Answer a conversation (Anthropic Messages)"),
    "/v1/messages/count_tokens": ("messages", "Tokens of a conversation"),
    "/tokenize": ("tokenize", "Tokens of a text or a conversation"),
    "/detokenize": ("detokenize", "Text of tokens"),
}
_GETS = {
    "/v1/models": "What is served",
    "/health": "Alive",
    "/ready": "Can take work now",
    "/metrics": "Figures for Prometheus",
    "/version": "The server's version",
    "/server_info": "What routers ask for",
}
_REFUSALS = {
    "400": "The request cannot be served as it stands", "401": "No key, or one that is not known",
    "404": "No such model or path", "405": "Another method", "413": "The body is too large", "415": "Not JSON",
    "431": "The headers are too large",
    "429": "Too much at once; see Retry-After", "503": "Not ready", "504": "The deadline passed",
}  # fmt: skip


def document() -> Reply:
    """GET /openapi.json."""
    return Reply.json(describe())


def describe() -> dict[str, Any]:
    kinds = list(BODIES)
    schemas, components = msgspec.json.schema_components(
        [BODIES[k] for k in kinds], ref_template="#/components/schemas/{name}"
    )
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {
        path: {"post": _operation(summary, _content(by_kind[kind]))} for path, (kind, summary) in _POSTS.items()
    }
    paths |= {path: {"get": _operation(summary)} for path, summary in _GETS.items()}
    keys = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "tiefsee", "version": __version__},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": keys},
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _operation(summary: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    error = {"application/json": {"schema": {"type": "object"}}}
    answers: dict[str, Any] = {"200": {"description": "Done", "content": {
        "application/json": {}, "text/event-stream": {}, "text/plain": {},
    }}}  # fmt: skip
    answers |= {status: {"description": text, "content": error} for status, text in _REFUSALS.items()}
    return {"summary": summary, "responses": answers, **({} if body is None else {"requestBody": body})}


def docs_page() -> Reply:
    """GET /docs: the document as a plain page; no script, nothing from elsewhere."""
    rows = [("POST", path, summary) for path, (_, summary) in _POSTS.items()]
    rows += [("GET", path, summary) for path, summary in _GETS.items()]
    lines = "".join(f"<tr><td>{m}</td><td><code>{p}</code></td><td>{s}</td></tr>" for m, p, s in rows)
    html = (
        "<!doctype html><meta charset=utf-8><title>tiefsee</title><h1>tiefsee</h1>"
        f"<p>Version {__version__}. The full description is at <a href=/openapi.json>/openapi.json</a>.</p>"
        f"<table>{lines}</table>"
    )
    csp = (b"content-security-policy", b"default-src 'none'")
    return Reply(html.encode(), content_type=b"text/html; charset=utf-8", headers=[csp])
