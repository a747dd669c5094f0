"""A server with a known pace, and known ways to go wrong."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Paced:
    """Streams `max_tokens` tokens, the first after `ttft_s`, then `per_chunk` of them every `tpot_s * per_chunk`.

    `stalls` are (from, until) seconds after the start in which nothing is sent. `wrong` is what goes wrong for
    every second request: "no_done", "no_finish", "cut", "error_event", "busy", "status_500", "not_json".
    """

    ttft_s: float = 0.05
    tpot_s: float = 0.01
    per_chunk: int = 1
    counts: bool = True  # whether chunks carry usage, as vLLM's continuous_usage_stats
    usage: bool = True
    stalls: tuple[float, float] = (0.0, 0.0)
    wrong: str = ""
    key: str = ""
    bodies: list[dict] = field(default_factory=list)
    started: float = 0.0

    async def __aenter__(self) -> Paced:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_post("/v1/completions", self.answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        self.started = time.monotonic()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "no key"}}, status=401)
        return web.json_response({"object": "list", "data": [{"id": "paced"}]})

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        begin, end = self.stalls
        if begin <= (now := time.monotonic() - self.started) < end:
            await asyncio.sleep(end - now)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        wrong = self.wrong if len(self.bodies) % 2 == 0 else ""
        if wrong == "busy":
            return web.json_response({"error": {"message": "busy"}}, status=429, headers={"Retry-After": "0.1"})
        if wrong == "status_500":
            return web.json_response({"error": {"message": "broken"}}, status=500)
        if wrong == "not_json":
            return web.json_response({"choices": []})
        text = body.get("prompt") or body["messages"][-1]["content"]
        prompt_tokens = round(len(text.split()) * 1.5) + 10
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        made, wanted = 0, body.get("max_tokens", 16)
        while made < wanted:
            count = min(self.per_chunk, wanted - made)
            await self._pause(self.ttft_s if not made else self.tpot_s * count)
            made += count
            last = made == wanted and wrong not in ("no_finish", "cut", "error_event")
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": made} if self.counts else None
            choice = {"index": 0, "finish_reason": "length" if last else None}
            choice |= {"text": "x" * count} if "prompt" in body else {"delta": {"content": "x" * count}}
            await self._event(stream, {"choices": [choice], **({"usage": usage} if usage else {})})
        if wrong == "cut":
            request.transport.abort()
            return stream
        if wrong == "error_event":
            await self._event(stream, {"error": {"message": "the engine died"}})
        elif self.usage:
            await self._event(
                stream, {"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": made}}
            )
        if wrong != "no_done":
            await stream.write(b"data: [DONE]\n\n")
        return stream

    async def _event(self, stream: web.StreamResponse, data: dict) -> None:
        await stream.write(b"data: " + json.dumps(data).encode() + b"\n\n")
