"""POST /v1/responses: OpenAI's newer protocol. Nothing is stored, so `previous_response_id` is refused.

An answer is a list of items in the order in which the model wrote them: reasoning, message, function calls.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from tiefsee.engine.sampling import Sampling
from tiefsee.serve.bodies import Plain, ResponsesBody, convert
from tiefsee.serve.choice import Choice, Usage, chat_logprobs
from tiefsee.serve.failures import failure_of
from tiefsee.serve.keys import Caller
from tiefsee.serve.reply import Reply, StreamReply, named_event
from tiefsee.serve.service import Call, Service
from tiefsee.text import CallArguments, CallBegin, CallEnd, Piece, Reasoning, Text
from tiefsee.text.bodies import read_responses

Event = dict[str, Any]


async def responses(service: Service, found: Plain, caller: Caller, request_id: str) -> Reply | StreamReply:
    body = convert(found, ResponsesBody)
    model = service.check_model(body.model)
    conversation = read_responses(found)
    prompt = await service.render(conversation)
    sampling = Sampling(
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        logprobs=body.top_logprobs,
        constraint=service.constraint(conversation, prompt),
    )
    call = Call(prompt, sampling, caller, body.priority or 0)
    assert prompt.chat is not None
    parser = service.require_chat().parser(prompt.chat, tokenizer=service.tokenizer, calls=conversation.may_call)
    answer = ResponseAnswer(service, body, call, Choice(0, Usage(len(prompt.token_ids)), parser), model, request_id)
    return StreamReply(answer.stream(), answer.failed) if body.stream else await answer.whole()


class ResponseAnswer:
    """One response: its items as they grow, and the events that tell of it."""

    def __init__(
        self, service: Service, body: ResponsesBody, call: Call, choice: Choice, model: str, request_id: str
    ) -> None:
        self._service, self._body, self._call, self._choice, self._model = service, body, call, choice, model
        self._id, self._created = f"resp_{request_id}", int(time.time())
        self._items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the item that is being written
        self._sequence = 0

    async def whole(self) -> Reply:
        async with aclosing(self._events()) as events:
            async for _ in events:
                pass
        return Reply.json(self._response(self._status()))

    async def stream(self) -> AsyncGenerator[bytes]:
        async with aclosing(self._events()) as events:
            async for found in events:
                yield b"".join(self._number(item) for item in found)

    def failed(self, error: BaseException) -> bytes:
        """The last event of a stream that failed."""
        failure = failure_of(error)
        code = failure.code or ("server_error" if failure.status >= 500 else "invalid_prompt")
        made = self._response("failed")
        made["error"] = {"code": code, "message": failure.message}
        return self._number({"type": "response.failed", "response": made})

    def _number(self, item: Event) -> bytes:
        item["sequence_number"] = self._sequence
        self._sequence += 1
        return named_event(item["type"], item)

    async def _events(self) -> AsyncGenerator[list[Event]]:
        """The events of each step of the engine, and the state of the response with them."""
        started = False
        async with aclosing(self._service.deltas(self._call, self._choice.usage)) as answers:
            async for _, delta in answers:
                events: list[Event] = []
                if not started:
                    started = True
                    for kind in ("response.created", "response.in_progress"):
                        events.append({"type": kind, "response": self._response("in_progress")})
                logprobs = chat_logprobs(delta.logprobs, self._service.tokenizer)["content"]
                for piece in self._choice.feed(delta):
                    events += self._take(piece, logprobs)
                if events:
                    yield events
        ending = self._close()
        status = self._status()
        yield [*ending, {"type": f"response.{status}", "response": self._response(status)}]

    def _status(self) -> str:
        return "incomplete" if self._choice.ending == "length" else "completed"

    # ------------------------------------------------------------------------------- items

    def _take(self, piece: Piece, logprobs: list[dict[str, Any]]) -> list[Event]:
        match piece:
            case Reasoning(text):
                return [*self._ensure("reasoning"), self._grow("response.reasoning_text.delta", text, content_index=0)]
            case Text(text):
                more = {"content_index": 0, "logprobs": logprobs if self._body.top_logprobs is not None else []}
                return [*self._ensure("message"), self._grow("response.output_text.delta", text, **more)]
            case CallBegin(_, call_id, name):
                return [*self._close(), *self._begin(_call_item(call_id, name))]
            case CallArguments(_, text):
                return [self._grow("response.function_call_arguments.delta", text)]
            case CallEnd():
                return self._close()

    def _ensure(self, kind: str) -> list[Event]:
        """An open item of this kind: the one that is open, or a new one."""
        if self._open is not None and self._open["type"] == kind:
            return []
        item = _reasoning_item() if kind == "reasoning" else _message_item()
        return [*self._close(), *self._begin(item)]

    def _begin(self, item: dict[str, Any]) -> list[Event]:
        self._open = item
        self._items.append(item)
        shown = {**item, "content": []} if "content" in item else item
        events = [{"type": "response.output_item.added", "output_index": self._index(), "item": dict(shown)}]
        if "content" in item:
            events.append({"type": "response.content_part.added", **self._place(), "part": dict(item["content"][0])})
        return events

    def _grow(self, kind: str, text: str, **more: Any) -> Event:
        assert self._open is not None
        if "content" in self._open:
            self._open["content"][0]["text"] += text
        else:
            self._open["arguments"] += text
        return {"type": kind, "output_index": self._index(), "item_id": self._open["id"], "delta": text, **more}

    def _close(self) -> list[Event]:
        if self._open is None:
            return []
        item, events = self._open, []
        item["status"] = "completed"
        place = {"output_index": self._index(), "item_id": item["id"]}
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            events.append({"type": "response.function_call_arguments.done", **place, **done})
        else:
            part = item["content"][0]
            kind = "response.reasoning_text.done" if item["type"] == "reasoning" else "response.output_text.done"
            extra: dict[str, Any] = {} if item["type"] == "reasoning" else {"logprobs": []}
            events.append({"type": kind, **self._place(), "text": part["text"], **extra})
            events.append({"type": "response.content_part.done", **self._place(), "part": dict(part)})
        events.append({"type": "response.output_item.done", "output_index": self._index(), "item": item})
        self._open = None
        return events

    def _index(self) -> int:
        return len(self._items) - 1

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"output_index": self._index(), "item_id": self._open["id"], "content_index": 0}

    def _response(self, status: str) -> dict[str, Any]:
        body, over = self._body, status in ("completed", "incomplete")
        return {
            "id": self._id, "object": "response", "created_at": self._created, "status": status,
            "model": self._model, "output": [dict(item) for item in self._items], "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {}, "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None, "reasoning": body.reasoning or {"effort": None, "summary": None},
            "store": False, "temperature": body.temperature, "top_p": body.top_p,
            "text": body.text or {"format": {"type": "text"}}, "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [], "truncation": "disabled", "user": body.user,
            "usage": self._choice.usage.responses() if over else None,
        }  # fmt: skip


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def _reasoning_item() -> dict[str, Any]:
    return {
        "type": "reasoning", "id": _new_id("rs"), "status": "in_progress", "summary": [],
        "content": [{"type": "reasoning_text", "text": ""}],
    }  # fmt: skip


def _message_item() -> dict[str, Any]:
    return {
        "type": "message", "id": _new_id("msg"), "status": "in_progress", "role": "assistant",
        "content": [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}],
    }  # fmt: skip


def _call_item(call_id: str, name: str) -> dict[str, Any]:
    return {
        "type": "function_call", "id": _new_id("fc"), "call_id": call_id, "name": name, "arguments": "",
        "status": "in_progress",
    }  # fmt: skip
