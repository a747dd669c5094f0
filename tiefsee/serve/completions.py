"""POST /v1/completions: text goes on. Several prompts at once are several requests of the engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from tiefsee.engine.constraint import Constraint
from tiefsee.engine.delta import Delta, TokenLogprobs
from tiefsee.errors import RequestError
from tiefsee.serve.bodies import CompletionBody, Plain, convert
from tiefsee.serve.chat import stream_error
from tiefsee.serve.choice import Choice, Usage, finite
from tiefsee.serve.keys import Caller
from tiefsee.serve.reply import DONE, Reply, StreamReply, event
from tiefsee.serve.sampling import sampling_of
from tiefsee.serve.service import Call, Prompt, Service, refuse
from tiefsee.text import Tokenizer
from tiefsee.text.bodies.chat import response_format_of

MOST_PROMPTS = 64
# A token and its log probabilities; the first token of a prompt has none.
Entry = tuple[int, TokenLogprobs | None]


async def completions(service: Service, found: Plain, caller: Caller, request_id: str) -> Reply | StreamReply:
    body = convert(found, CompletionBody)
    model = service.check_model(body.model)
    refuse(body.suffix, "suffix: text cannot be filled in before a suffix by this model; leave it out")
    refuse(body.best_of not in (None, body.n or 1), "best_of: only as many answers are made as are returned; use n")
    # With `echo`, evaluation harnesses ask for no token: they want the prompt's own log probabilities.
    only_one = not body.stream or body.n in (None, 1)
    refuse(body.echo and body.logprobs is not None and not only_one, "echo with logprobs streams one answer, not n")
    refuse(body.max_tokens == 0 and not body.echo, "max_tokens is 0; needed is 1 or more, or echo")
    wanted = response_format_of(found)
    constraint = None if wanted.kind == "text" else Constraint(wanted.kind, wanted.source)
    sampling = sampling_of(body,
        max_tokens=1 if body.max_tokens == 0 else body.max_tokens, logprobs=body.logprobs, constraint=constraint,
        prompt_logprobs=body.logprobs if body.echo else None,
    )  # fmt: skip
    prompts = await read_prompts(service, body.prompt)
    calls = [Call(p, sampling, caller, body.priority or 0, body.deadline_s) for p in prompts]
    answer = TextAnswer(service, body, calls, model, request_id)
    return StreamReply(answer.stream(), stream_error) if body.stream else await answer.whole()


async def read_prompts(service: Service, prompt: str | list[Any]) -> list[Prompt]:
    """One text, one list of token ids, or a list of either."""
    several = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else prompt
    refuse(not several, "prompt is empty; needed is text or token ids")
    refuse(len(several) > MOST_PROMPTS, f"prompt holds {len(several)} prompts; at most {MOST_PROMPTS} at once")
    found = []
    for item in several:
        if isinstance(item, str):
            found.append(await service.encode(item))
        elif isinstance(item, list) and all(type(token) is int for token in item):
            found.append(Prompt(item))
        else:
            raise RequestError(f"prompt holds {json.dumps(item)[:60]}; needed are texts or lists of token ids")
    return found


class TextAnswer:
    """The n answers to each prompt; choice number prompt * n + answer."""

    def __init__(self, service: Service, body: CompletionBody, calls: list[Call], model: str, request_id: str) -> None:
        self._service, self._body, self._calls, self._n = service, body, calls, calls[0].sampling.n
        self._only_echo = body.max_tokens == 0
        self._usages = [Usage(len(call.prompt.token_ids)) for call in calls]
        self._choices = [Choice(i, self._usages[i // self._n], None) for i in range(len(calls) * self._n)]
        self._lengths = [0] * len(self._choices)  # characters so far: logprobs say where each token begins
        self._before: dict[int, list[Entry]] = {}  # of each prompt, if its log probabilities were asked for
        self._head = {
            "id": f"cmpl-{request_id}", "object": "text_completion", "created": int(time.time()), "model": model,
        }  # fmt: skip

    async def _deltas(self) -> AsyncGenerator[tuple[int, Delta]]:
        """Deltas of all prompts as they come."""
        if len(self._calls) == 1:
            async with aclosing(self._service.deltas(self._calls[0], self._usages[0])) as answers:
                async for item in answers:
                    yield item
            return
        queue: asyncio.Queue[tuple[int, Delta] | BaseException | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._pump(i, call, queue)) for i, call in enumerate(self._calls)]
        try:
            running = len(tasks)
            while running:
                found = await queue.get()
                if isinstance(found, BaseException):
                    raise found
                running -= found is None
                if found is not None:
                    yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, number: int, call: Call, queue: asyncio.Queue[Any]) -> None:
        try:
            async with aclosing(self._service.deltas(call, self._usages[number])) as answers:
                async for index, delta in answers:
                    queue.put_nowait((number * self._n + index, delta))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    def _feed(self, index: int, delta: Delta) -> Delta:
        """Count a delta; what is left of it for the client."""
        self._choices[index].feed(delta)
        if delta.prompt_logprobs:
            prompt = self._calls[index // self._n].prompt.token_ids
            self._before[index // self._n] = list(zip(prompt, delta.prompt_logprobs, strict=True))
        return replace(delta, token_ids=(), text="", logprobs=()) if self._only_echo else delta

    def _echo(self, index: int) -> str:
        call = self._calls[index // self._n]
        return self._service.tokenizer.decode(call.prompt.token_ids) if self._body.echo else ""

    async def whole(self) -> Reply:
        deltas: list[list[Delta]] = [[] for _ in self._choices]
        async with aclosing(self._deltas()) as answers:
            async for index, delta in answers:
                deltas[index].append(self._feed(index, delta))
        choices = [
            self._choice(i, self._echo(i) + "".join(d.text for d in items), items, first=True)
            for i, items in enumerate(deltas)
        ]
        return Reply.json({**self._head, "choices": choices, "usage": self._usage()})

    async def stream(self) -> AsyncGenerator[bytes]:
        options, opened = self._body.stream_options, set()
        continuous = options is not None and options.continuous_usage_stats
        async with aclosing(self._deltas()) as answers:
            async for index, found in answers:
                delta, first = self._feed(index, found), index not in opened
                text = self._echo(index) + delta.text if first else delta.text
                opened.add(index)
                if text or delta.finish_reason is not None or self._body.logprobs is not None:
                    made = {**self._head, "choices": [self._choice(index, text, [delta], first=first)]}
                    yield event({**made, "usage": self._usage()} if continuous else made)
        if options is not None and options.include_usage:
            yield event({**self._head, "choices": [], "usage": self._usage()})
        yield DONE

    def _choice(self, index: int, text: str, deltas: list[Delta], *, first: bool) -> dict[str, Any]:
        made: dict[str, Any] = {
            "index": index, "text": text, "logprobs": None, "finish_reason": self._choices[index].ending,
        }  # fmt: skip
        if self._body.logprobs is not None:
            before = self._before.get(index // self._n, []) if first else []
            items: list[Entry] = [(item.token_id, item) for delta in deltas for item in delta.logprobs]
            made["logprobs"] = text_logprobs(before + items, self._service.tokenizer, self._lengths[index])
        if self._body.return_token_ids:
            made["token_ids"] = [token for delta in deltas for token in delta.token_ids]
        self._lengths[index] += len(text)
        return made

    def _usage(self) -> dict[str, Any]:
        total = Usage(0)
        for usage in self._usages:
            total.prompt_tokens += usage.prompt_tokens
            total.completion_tokens += usage.completion_tokens
            total.cached_tokens += usage.cached_tokens
        return total.openai()


def text_logprobs(items: list[Entry], tokenizer: Tokenizer, first_offset: int) -> dict[str, Any]:
    """Log probabilities in the shape of Completions: four lists of equal length."""
    texts = [tokenizer.token_bytes(token).decode(errors="replace") for token, _ in items]
    offsets, offset = [], first_offset
    for (token, _), text in zip(items, texts, strict=True):
        offsets.append(offset)
        offset += 0 if token in tokenizer.special_ids else len(text)  # these are no part of the text
    tops = [
        item and {tokenizer.token_bytes(token).decode(errors="replace"): finite(value) for token, value in item.top}
        for _, item in items
    ]
    return {
        "tokens": texts,
        "token_logprobs": [item and finite(item.logprob) for _, item in items],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
