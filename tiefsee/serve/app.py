"""The door: one plain ASGI application. What happens to every request is on this page.

    scope -> request id -> path -> key -> body (bounded) -> handler -> reply -> log line

Handlers are functions of (service, parsed body, caller, request id); see chat, completions, responses,
messages and info. A client that goes away cancels its handler, and with it the engine's work.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from tiefsee.errors import TiefseeError
from tiefsee.serve import info, page
from tiefsee.serve.bodies import Plain, decode_json
from tiefsee.serve.chat import chat_completions, render
from tiefsee.serve.completions import completions
from tiefsee.serve.failures import HttpError, error_reply
from tiefsee.serve.keys import Caller, Keys
from tiefsee.serve.messages import count_tokens, messages
from tiefsee.serve.openapi import docs_page, document
from tiefsee.serve.reply import Headers, Receive, Reply, Scope, Send, StreamReply
from tiefsee.serve.responses import responses
from tiefsee.serve.service import Service
from tiefsee.serve.tracing import NoTracer, Tracer

log = logging.getLogger("tiefsee.serve")

Handler = Callable[[Service, Plain, Caller, str], Awaitable[Reply | StreamReply]]
POST: dict[str, Handler] = {
    "/v1/chat/completions": chat_completions,
    "/v1/chat/completions/render": render,
    "/v1/completions": completions,
    "/v1/responses": responses,
    "/v1/messages": messages,
    "/v1/messages/count_tokens": count_tokens,
    "/tokenize": info.tokenize,
    "/detokenize": info.detokenize,
}
GET: dict[str, Callable[[Service], Reply]] = {
    "/v1/models": info.models,
    "/health": info.health,
    "/ready": info.ready,
    "/metrics": info.metrics,
    "/version": lambda service: info.version(),
    "/server_info": info.server_info,
    "/model_info": info.server_info,
    "/openapi.json": lambda service: document(),
    "/docs": lambda service: docs_page(),
}
# Answered without a key: probes, and the page, which asks for the key itself.
OPEN_PATHS = {"/health", "/ready", "/version", "/", "/openapi.json", "/docs"}
REQUEST_ID = re.compile(rb"[\w.:-]{1,128}")
SECURITY: Headers = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


@dataclass(frozen=True)
class DoorOptions:
    """Limits and switches of the door itself."""

    max_body_bytes: int = 8 << 20
    max_header_bytes: int = 32 << 10
    max_streams: int = 4096
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False


@dataclass
class Exchange:
    """One request on its way: what the log line says at the end."""

    request_id: str
    method: str
    path: str
    began: float = field(default_factory=time.perf_counter)
    caller: str = "-"
    status: int = 0
    sent_bytes: int = 0

    @property
    def known_path(self) -> str:
        """A path of ours, or "other": figures and spans must not grow with what strangers type."""
        return self.path if self.path in POST or self.path in GET else "other"


class App:
    """ASGI application of one service."""

    def __init__(self, service: Service, keys: Keys, options: DoorOptions, tracer: Tracer | None = None) -> None:
        self.service, self._keys, self._options = service, keys, options
        self._tracer: Tracer = tracer or NoTracer()
        self.open_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"this server speaks HTTP, not {scope['type']}")
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
        exchange = Exchange(request_id, scope["method"], scope["path"])
        span = self._tracer.start(
            f"{exchange.method} {exchange.known_path}", headers,
            {"http.request.method": exchange.method, "url.path": exchange.path,
             "gen_ai.request.model": self.service.name},
        )  # fmt: skip
        extra = [(b"x-request-id", request_id.encode()), *SECURITY, *self._cors(headers)]
        counted = self._counting(send, exchange)
        self.open_requests += 1
        try:
            reply = await self._answer(scope, headers, receive, exchange)
            if isinstance(reply, StreamReply):
                await self._until_gone(reply.send(counted, extra), receive)
            else:
                await reply.send(counted, extra)
        except asyncio.CancelledError:
            exchange.status = exchange.status or 499  # the client went away: nginx's number for it
        except Exception as error:
            if exchange.status == 0:
                self._log_failure(error, request_id)
                await error_reply(error, exchange.path, request_id).send(counted, extra)
            else:
                log.exception("%s failed after it had begun to answer", request_id)
        finally:
            self.open_requests -= 1
            self._close(exchange)
            span.end(exchange.status, {"tiefsee.caller": exchange.caller, "tiefsee.request_id": request_id})

    async def _answer(
        self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, exchange: Exchange
    ) -> Reply | StreamReply:
        path, method = exchange.path, exchange.method
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self._options.max_header_bytes:
            raise HttpError(431, f"the headers are larger than {self._options.max_header_bytes} bytes")
        asset = page.asset(path) if method in ("GET", "HEAD") else None
        if asset is not None:
            return page_reply(asset, headers)
        if method == "OPTIONS" and self._options.cors_origins:
            return Reply(b"", 204)
        known = path in POST or path in GET or path.startswith("/v1/models/")
        if not known:
            raise HttpError(404, f"there is nothing at {path}; see /docs for what there is")
        address = (scope.get("client") or ("local",))[0]
        caller = Caller(address) if path in OPEN_PATHS else self._keys.caller(headers, address)
        exchange.caller = caller.name
        if method in ("GET", "HEAD") and path not in POST:
            return GET[path](self.service) if path in GET else info.model(self.service, path[len("/v1/models/") :])
        if method != "POST" or path not in POST:
            allowed = "POST" if path in POST else "GET"
            raise HttpError(405, f"{method} {path} is not served; use {allowed}", [(b"allow", allowed.encode())])
        body = decode_json(await self._body(headers, receive))
        return await self._until_gone(POST[path](self.service, body, caller, exchange.request_id), receive)

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        limit = self._options.max_body_bytes
        kind = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
        if kind != b"application/json":
            raise HttpError(415, f"the body is {kind.decode('latin-1')!r}; send application/json")
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise HttpError(413, f"the body is larger than {limit} bytes; send a shorter request")
            if not message.get("more_body"):
                return b"".join(parts)

    async def _until_gone(self, work: Awaitable[Reply | StreamReply | None], receive: Receive):  # type: ignore[no-untyped-def]
        """Do the work, unless the client goes away: then it is cancelled."""
        task = asyncio.ensure_future(work)
        watcher = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.wait((task,))
            raise asyncio.CancelledError
        finally:
            watcher.cancel()
            if not task.done():
                task.cancel()
            del task, watcher  # an exception's traceback holds this frame, and a task holds its exception: no ring

    def _counting(self, send: Send, exchange: Exchange) -> Send:
        async def counted(message):  # type: ignore[no-untyped-def]
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
            else:
                exchange.sent_bytes += len(message.get("body", b""))
            await send(message)

        return counted

    def _cors(self, headers: Mapping[bytes, bytes]) -> Headers:
        """Answers browsers of other origins, if those were named."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        allowed = self._options.cors_origins
        if not origin or (origin not in allowed and "*" not in allowed):
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin"),
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-allow-headers", b"authorization, content-type, x-api-key, x-request-id"),
        ]  # fmt: skip

    def _log_failure(self, error: BaseException, request_id: str) -> None:
        if not isinstance(error, TiefseeError):
            log.error("%s failed", request_id, exc_info=error)

    def _close(self, exchange: Exchange) -> None:
        """Count the exchange and write its log line. What was asked and answered is not part of it."""
        metrics = self.service.metrics
        metrics.answers[exchange.known_path, exchange.status] += 1
        metrics.bytes_sent += exchange.sent_bytes
        log.info(
            "request",
            extra={"fields": {
                "request_id": exchange.request_id, "method": exchange.method, "path": exchange.path,
                "status": exchange.status, "caller": exchange.caller,
                "seconds": round(time.perf_counter() - exchange.began, 4), "bytes": exchange.sent_bytes,
            }},
        )  # fmt: skip


async def gone(receive: Receive) -> None:
    """Returns when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def page_reply(asset: page.Asset, headers: Mapping[bytes, bytes]) -> Reply:
    """A file of the page, or 304 if the browser has it."""
    tag = asset.etag.encode()
    shown: Headers = [
        (b"etag", tag), (b"cache-control", b"no-cache"), (b"content-security-policy", asset.csp.encode()),
    ]  # fmt: skip
    if headers.get(b"if-none-match") == tag:
        return Reply(b"", 304, headers=shown)
    return Reply(asset.body, content_type=asset.content_type.encode(), headers=shown)
