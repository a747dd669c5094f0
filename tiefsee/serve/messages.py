"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's protocol."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from tiefsee.engine.sampling import Sampling
from tiefsee.serve.bodies import MessagesBody, Plain, convert
from tiefsee.serve.choice import Choice, Usage
from tiefsee.serve.failures import anthropic_error, failure_of
from tiefsee.serve.keys import Caller
from tiefsee.serve.reply import Reply, StreamReply, named_event
from tiefsee.serve.sampling import stops_of
from tiefsee.serve.service import Call, Service, refuse
from tiefsee.text import CallArguments, CallBegin, CallEnd, Piece, Reasoning, Text, join
from tiefsee.text.bodies import read_messages

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
# Thinking blocks carry a signature that clients send back; nothing is checked by it here.
SIGNATURE = ""


async def messages(service: Service, found: Plain, caller: Caller, request_id: str) -> Reply | StreamReply:
    body = convert(found, MessagesBody)
    model = service.check_model(body.model)
    refuse(body.max_tokens is None, "max_tokens is missing; this protocol requires it")
    conversation = read_messages(found)
    prompt = await service.render(conversation)
    sampling = Sampling(
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(0, body.top_k) if body.top_k is not None else None,
        stop=stops_of(body.stop_sequences),
        constraint=service.constraint(conversation, prompt),
    )
    assert prompt.chat is not None
    parser = service.require_chat().parser(prompt.chat, tokenizer=service.tokenizer, calls=conversation.may_call)
    choice = Choice(0, Usage(len(prompt.token_ids)), parser)
    answer = MessageAnswer(service, Call(prompt, sampling, caller, body.priority or 0), choice, model, request_id)
    return StreamReply(answer.stream(), answer.failed) if body.stream else await answer.whole()


async def count_tokens(service: Service, found: Plain, caller: Caller, request_id: str) -> Reply:
    service.check_model(convert(found, MessagesBody).model)
    return Reply.json({"input_tokens": len((await service.render(read_messages(found))).token_ids)})


class MessageAnswer:
    """One message: content blocks of thinking, text and tool use."""

    def __init__(self, service: Service, call: Call, choice: Choice, model: str, request_id: str) -> None:
        self._service, self._call, self._choice = service, call, choice
        self._request_id = request_id
        self._head = {"id": f"msg_{request_id}", "type": "message", "role": "assistant", "model": model}
        self._blocks = 0
        self._open: str | None = None  # type of the block that is being written

    async def whole(self) -> Reply:
        pieces: list[Piece] = []
        async with aclosing(self._service.deltas(self._call, self._choice.usage)) as answers:
            async for _, delta in answers:
                pieces += self._choice.feed(delta)
        ending = {"stop_reason": self._stop_reason(), "stop_sequence": self._choice.stop}
        usage = self._choice.usage.anthropic()
        return Reply.json({**self._head, "content": blocks_of(pieces), **ending, "usage": usage})

    async def stream(self) -> AsyncGenerator[bytes]:
        started = False
        async with aclosing(self._service.deltas(self._call, self._choice.usage)) as answers:
            async for _, delta in answers:
                pieces = self._choice.feed(delta)
                events = [] if started else [self._start()]
                started = True
                events += [e for piece in pieces for e in self._events(piece)]
                if events:
                    yield b"".join(events)
        change = {"stop_reason": self._stop_reason(), "stop_sequence": self._choice.stop}
        ending = {"type": "message_delta", "delta": change, "usage": self._choice.usage.anthropic()}
        last = [*self._close(), named_event("message_delta", ending)]
        yield b"".join(last) + named_event("message_stop", {"type": "message_stop"})

    def failed(self, error: BaseException) -> bytes:
        """The last event of a stream that failed."""
        return named_event("error", anthropic_error(failure_of(error), self._request_id))

    def _stop_reason(self) -> str:
        assert self._choice.ending is not None
        return "stop_sequence" if self._choice.stop is not None else STOP_REASONS[self._choice.ending]

    def _start(self) -> bytes:
        empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        usage = {**self._choice.usage.anthropic(), "output_tokens": 0}
        message = {**self._head, **empty, "usage": usage}
        return named_event("message_start", {"type": "message_start", "message": message})

    def _events(self, piece: Piece) -> list[bytes]:
        match piece:
            case Reasoning(text):
                block = {"type": "thinking", "thinking": "", "signature": SIGNATURE}
                return [*self._ensure(block), self._change({"type": "thinking_delta", "thinking": text})]
            case Text(text):
                return [*self._ensure({"type": "text", "text": ""}), self._change({"type": "text_delta", "text": text})]
            case CallBegin(_, call_id, name):
                return [*self._close(), self._begin({"type": "tool_use", "id": call_id, "name": name, "input": {}})]
            case CallArguments(_, text):
                return [self._change({"type": "input_json_delta", "partial_json": text})]
            case CallEnd():
                return self._close()

    def _ensure(self, block: dict[str, Any]) -> list[bytes]:
        return [] if self._open == block["type"] else [*self._close(), self._begin(block)]

    def _begin(self, block: dict[str, Any]) -> bytes:
        self._open = block["type"]
        made = {"type": "content_block_start", "index": self._blocks, "content_block": block}
        return named_event("content_block_start", made)

    def _change(self, delta: dict[str, Any]) -> bytes:
        made = {"type": "content_block_delta", "index": self._blocks, "delta": delta}
        return named_event("content_block_delta", made)

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        self._open = None
        self._blocks += 1
        return [named_event("content_block_stop", {"type": "content_block_stop", "index": self._blocks - 1})]


def blocks_of(pieces: list[Piece]) -> list[dict[str, Any]]:
    """The content blocks of a whole answer; a call that was cut off has no input that could be parsed."""
    answer = join(pieces)
    blocks: list[dict[str, Any]] = []
    if answer.reasoning:
        blocks.append({"type": "thinking", "thinking": answer.reasoning, "signature": SIGNATURE})
    if answer.text or not blocks + list(answer.calls):
        blocks.append({"type": "text", "text": answer.text})
    for call in answer.calls:
        try:
            arguments = json.loads(call.arguments or "{}")
        except ValueError:
            arguments = {}
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    return blocks
