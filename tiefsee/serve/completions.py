"""POST /v1/completions: text goes on. Several prompts at once are several requests of the engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
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


async def completions(service: Service, found: Plain, caller: Caller, request_id: str) -> Reply | StreamReply:
    body = convert(found, CompletionBody)
    model = service.check_model(body.model)
    refuse(body.suffix, "suffix: text cannot be filled in before a suffix by this model; leave it out")
    refuse(body.best_of not in (None, body.n or 1), "best_of: only as many answers are made as are returned; use n")
    refuse(body.echo and body.logprobs is not None, "echo with logprobs is not served; ask for one of them")
    wanted = response_format_of(found)
    constraint = None if wanted.kind == "text" else Constraint(wanted.kind, wanted.source)
    sampling = sampling_of(body, max_tokens=body.max_tokens, logprobs=body.logprobs, constraint=constraint)
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
        self._usages = [Usage(len(call.prompt.token_ids)) for call in calls]
        self._choices = [Choice(i, self._usages[i // self._n], None) for i in range(len(calls) * self._n)]
        self._lengths = [0] * len(self._choices)  # characters so far: logprobs say where each token begins
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

    def _echo(self, index: int) -> str:
        call = self._calls[index // self._n]
        return self._service.tokenizer.decode(call.prompt.token_ids) if self._body.echo else ""

    async def whole(self) -> Reply:
        deltas: list[list[Delta]] = [[] for _ in self._choices]
        async with aclosing(self._deltas()) as answers:
            async for index, delta in answers:
                self._choices[index].feed(delta)
                deltas[index].append(delta)
        choices = [
            self._choice(i, self._echo(i) + "".join(d.text for d in items), items) for i, items in enumerate(deltas)
        ]
        return Reply.json({**self._head, "choices": choices, "usage": self._usage()})

    async def stream(self) -> AsyncGenerator[bytes]:
        options, opened = self._body.stream_options, set()
        async with aclosing(self._deltas()) as answers:
            async for index, delta in answers:
                self._choices[index].feed(delta)
                text = delta.text if index in opened else self._echo(index) + delta.text
                opened.add(index)
                if text or delta.finish_reason is not None or self._body.logprobs is not None:
                    yield event({**self._head, "choices": [self._choice(index, text, [delta])]})
        if options is not None and options.include_usage:
            yield event({**self._head, "choices": [], "usage": self._usage()})
        yield DONE

    def _choice(self, index: int, text: str, deltas: list[Delta]) -> dict[str, Any]:
        made: dict[str, Any] = {
            "index": index, "text": text, "logprobs": None, "finish_reason": self._choices[index].ending,
        }  # fmt: skip
        if self._body.logprobs is not None:
            items = [item for delta in deltas for item in delta.logprobs]
            made["logprobs"] = text_logprobs(items, self._service.tokenizer, self._lengths[index])
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


def text_logprobs(items: list[TokenLogprobs], tokenizer: Tokenizer, first_offset: int) -> dict[str, Any]:
    """Log probabilities in the shape of Completions: four lists of equal length."""
    texts = [tokenizer.token_bytes(item.token_id).decode(errors="replace") for item in items]
    offsets, offset = [], first_offset
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    tops = [
        {tokenizer.token_bytes(token).decode(errors="replace"): finite(value) for token, value in item.top}
        for item in items
    ]
    return {
        "tokens": texts,
        "token_logprobs": [finite(item.logprob) for item in items],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
