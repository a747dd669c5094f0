"""What a handler gives back, and how it goes over the wire: JSON, server-sent events, errors.

Plain ASGI: a streamed token costs one `send`, and nothing stands between. A stream's first event is awaited
before the status goes out, so that a request that cannot be served is a real 4xx; after that an error is an
event, never a silent close.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tiefsee.errors import TiefseeError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

KEEP_ALIVE_S = 15.0  # of silence before a comment line tells proxies that the stream lives
encode = msgspec.json.encode
log = logging.getLogger("tiefsee.serve")


@dataclass
class Reply:
    """A whole answer."""

    body: bytes
    status: int = 200
    content_type: bytes = b"application/json"
    headers: Headers = field(default_factory=list)

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Headers | None = None) -> Reply:
        return cls(encode(value), status, headers=headers or [])

    async def send(self, send: Send, extra: Headers) -> None:
        length = (b"content-length", str(len(self.body)).encode())
        headers = [(b"content-type", self.content_type), length, *self.headers, *extra]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


@dataclass
class StreamReply:
    """Server-sent events. `on_error` turns an exception into the protocol's last events."""

    events: AsyncGenerator[bytes]
    on_error: Callable[[BaseException], bytes]

    async def send(self, send: Send, extra: Headers) -> None:
        """Send all events. An exception before the first one is the caller's to answer."""
        wire = _Wire(send, [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"), *extra])
        heart = asyncio.create_task(wire.beat())
        try:
            async for found in self.events:
                if found:
                    await wire.write(found)
        except Exception as error:
            if not wire.started:
                raise
            if not isinstance(error, TiefseeError):
                log.exception("a stream failed")
            await wire.write(self.on_error(error))
        finally:
            heart.cancel()
            await self.events.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Wire:
    """The response of one stream: started by whoever writes first."""

    def __init__(self, send: Send, headers: Headers) -> None:
        self._send, self._headers, self.started, self._silent = send, headers, False, True

    async def write(self, body: bytes) -> None:
        self._silent = False
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def beat(self) -> None:
        """Comment lines while nothing else is written."""
        while True:
            self._silent = True
            await asyncio.sleep(KEEP_ALIVE_S)
            if self._silent:
                await self.write(b": keep-alive\n\n")


def event(value: Any) -> bytes:
    """One `data:` line, as OpenAI streams."""
    return b"data: " + encode(value) + b"\n\n"


def named_event(name: str, value: Any) -> bytes:
    """An event with its name, as Responses and Messages stream."""
    return b"event: " + name.encode() + b"\ndata: " + encode(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
