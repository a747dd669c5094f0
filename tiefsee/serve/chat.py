"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from tiefsee.engine.delta import Delta
from tiefsee.serve.bodies import ChatBody, Plain, convert
from tiefsee.serve.choice import Choice, Usage, chat_logprobs
from tiefsee.serve.failures import failure_of, openai_error
from tiefsee.serve.keys import Caller
from tiefsee.serve.reply import DONE, Reply, StreamReply, encode, event
from tiefsee.serve.sampling import sampling_of
from tiefsee.serve.service import Call, Service, refuse
from tiefsee.text import CallArguments, CallBegin, CallEnd, Piece, Reasoning, Text, join
from tiefsee.text.bodies import read_chat


async def chat_completions(service: Service, found: Plain, caller: Caller, request_id: str) -> Reply | StreamReply:
    body = convert(found, ChatBody)
    answer = ChatAnswer(service, body, await prepare(service, body, found, caller), request_id)
    return StreamReply(answer.stream(), stream_error) if body.stream else await answer.whole()


async def render(service: Service, found: Plain, caller: Caller, request_id: str) -> Reply:
    """POST /v1/chat/completions/render: what the model would be given. Cache-aware routers hash these tokens."""
    body = convert(found, ChatBody)
    service.check_model(body.model)
    prompt = await service.render(read_chat(found))
    assert prompt.chat is not None
    return Reply.json({"prompt": prompt.chat.text, "token_ids": prompt.token_ids, "count": len(prompt.token_ids)})


async def prepare(service: Service, body: ChatBody, found: Plain, caller: Caller) -> PreparedChat:
    """Everything that is known before the engine is asked; raises RequestError for what cannot be served."""
    model = service.check_model(body.model)
    refuse(
        body.chat_template is not None,
        "chat_template: a template of a request is not executed; leave it out, the model's own is used",
    )
    refuse(body.top_logprobs and not body.logprobs, "top_logprobs needs logprobs: true")
    conversation = read_chat(found)
    prompt = await service.render(conversation)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = sampling_of(
        body, max_tokens=body.max_completion_tokens or body.max_tokens, logprobs=logprobs,
        constraint=service.constraint(conversation, prompt),
    )  # fmt: skip
    call = Call(prompt, sampling, caller, body.priority or 0, body.deadline_s)
    return PreparedChat(model, call, conversation.may_call)


class PreparedChat:
    def __init__(self, model: str, call: Call, may_call: bool) -> None:
        self.model, self.call, self.may_call = model, call, may_call

    def choice(self, service: Service, index: int, usage: Usage) -> Choice:
        """An empty answer with a parser of its own."""
        prompt = self.call.prompt.chat
        assert prompt is not None
        parser = service.require_chat().parser(prompt, tokenizer=service.tokenizer, calls=self.may_call)
        return Choice(index, usage, parser)


class ChatAnswer:
    """All n answers to one chat request, whole or as a stream of chunks."""

    def __init__(self, service: Service, body: ChatBody, prepared: PreparedChat, request_id: str) -> None:
        self._service, self._body, self._call = service, body, prepared.call
        self._usage = Usage(len(prepared.call.prompt.token_ids))
        self._choices = [prepared.choice(service, i, self._usage) for i in range(prepared.call.sampling.n)]
        self._head = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": prepared.model}

    async def whole(self) -> Reply:
        pieces: list[list[Piece]] = [[] for _ in self._choices]
        deltas: list[list[Delta]] = [[] for _ in self._choices]
        async with aclosing(self._service.deltas(self._call, self._usage)) as answers:
            async for index, delta in answers:
                pieces[index] += self._choices[index].feed(delta)
                deltas[index].append(delta)
        choices = [self._choice(i, pieces[i], deltas[i]) for i in range(len(self._choices))]
        made = {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage.openai()}
        return Reply.json(made)

    def _choice(self, index: int, pieces: list[Piece], deltas: list[Delta]) -> dict[str, Any]:
        made: dict[str, Any] = {
            "index": index,
            "message": {**join(pieces).message(), "refusal": None},
            "logprobs": None,
            "finish_reason": self._choices[index].ending,
        }
        if self._body.logprobs:
            items = [item for delta in deltas for item in delta.logprobs]
            made["logprobs"] = chat_logprobs(items, self._service.tokenizer)
        if self._body.return_token_ids:
            made["token_ids"] = [token for delta in deltas for token in delta.token_ids]
        return made

    async def stream(self) -> AsyncGenerator[bytes]:
        options = self._body.stream_options
        include_usage = options is not None and options.include_usage
        continuous = options is not None and options.continuous_usage_stats
        opened: set[int] = set()
        async with aclosing(self._service.deltas(self._call, self._usage)) as answers:
            async for index, delta in answers:
                choice = self._choices[index]
                pieces = choice.feed(delta)
                events = b"" if index in opened else self._chunk(index, {"role": "assistant", "content": ""})
                opened.add(index)
                yield events + self._chunks(choice, pieces, delta, self._usage.openai() if continuous else None)
        if include_usage:
            usage = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage.openai()}
            yield event(usage)
        yield DONE

    def _chunks(self, choice: Choice, pieces: list[Piece], delta: Delta, usage: dict[str, Any] | None) -> bytes:
        """One chunk for the pieces of a step: in most cases a few characters of text."""
        changes = changes_of(pieces)
        ending = choice.ending
        extra: dict[str, Any] = {}
        if self._body.logprobs and delta.logprobs:
            extra["logprobs"] = chat_logprobs(delta.logprobs, self._service.tokenizer)
        if self._body.return_token_ids:
            extra["token_ids"] = delta.token_ids
        if not extra and not changes and ending is None:
            return b""
        if not changes:
            return self._chunk(choice.index, {}, ending, extra, usage)
        *before, last = changes
        events = [self._chunk(choice.index, change) for change in before]
        return b"".join(events) + self._chunk(choice.index, last, ending, extra, usage)

    def _chunk(
        self, index: int, change: dict[str, Any], ending: str | None = None, extra: dict[str, Any] | None = None,
        usage: dict[str, Any] | None = None,
    ) -> bytes:  # fmt: skip
        choice = {"index": index, "delta": change, "logprobs": None, "finish_reason": ending, **(extra or {})}
        made = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return event(made if usage is None else {**made, "usage": usage})


def changes_of(pieces: list[Piece]) -> list[dict[str, Any]]:
    """Pieces as `delta`s; neighbours of a kind are one."""
    changes: list[dict[str, Any]] = []
    for piece in pieces:
        match piece:
            case Reasoning(text):
                _extend(changes, "reasoning_content", text)
            case Text(text):
                _extend(changes, "content", text)
            case CallBegin(index, call_id, name):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": call_id, "type": "function", "function": function}
                changes.append({"tool_calls": [call]})
            case CallArguments(index, text):
                last = changes[-1].get("tool_calls") if changes else None
                if last and last[-1]["index"] == index:
                    last[-1]["function"]["arguments"] += text
                else:
                    changes.append({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            case CallEnd():
                pass
    return changes


def _extend(changes: list[dict[str, Any]], key: str, text: str) -> None:
    if changes and key in changes[-1]:
        changes[-1][key] += text
    else:
        changes.append({key: text})


def stream_error(error: BaseException) -> bytes:
    """The last events of a stream that failed."""
    return b"data: " + encode(openai_error(failure_of(error))) + b"\n\n" + DONE
