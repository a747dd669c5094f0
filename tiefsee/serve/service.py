"""One served model, as the protocols see it: text in, engine deltas out, everything counted.

handler:  body -> Conversation -> Call  ──►  Service.deltas  ──►  (index, Delta) ..  ──►  Choice -> pieces
                                              │ admission: fair, bounded
                                              └ engine, in its own process
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tiefsee.engine.constraint import Constraint
from tiefsee.engine.delta import Delta
from tiefsee.engine.sampling import Sampling
from tiefsee.errors import EngineDied, RequestError, Unavailable
from tiefsee.serve.admission import Admission, QueueLimits, Ticket
from tiefsee.serve.choice import Usage
from tiefsee.serve.client import EngineClient
from tiefsee.serve.failures import HttpError
from tiefsee.serve.keys import Caller
from tiefsee.serve.metrics import EngineFigures, Metrics, Timeline
from tiefsee.text import ChatFormat, ChatPrompt, Conversation, Tokenizer

# A longer text is tokenised in a thread, so that the other streams go on (about 1 ms of work). In few threads:
# malloc keeps for each as much as its largest text needed (13 MB for 120,000 characters).
SHORT_TEXT = 4_000
TEXT_THREADS = 2
# Answers computed side by side until the engine has said how many.
USUAL_CAPACITY = 16
# What a request without max_tokens counts for in the queue, beside its prompt.
USUAL_TOKENS = 512


@dataclass(frozen=True)
class Prompt:
    """A prompt in tokens; of a conversation also as it was rendered."""

    token_ids: list[int]
    chat: ChatPrompt | None = None


@dataclass(frozen=True)
class Call:
    """One prompt and what is asked of its answers."""

    prompt: Prompt
    sampling: Sampling
    caller: Caller
    priority: int = 0
    deadline_s: float | None = None


class Service:
    """A model that is served. `names` are those that requests may call it by; the first is its own."""

    def __init__(
        self, names: Sequence[str], engine: EngineClient, tokenizer: Tokenizer, chat_format: ChatFormat | None,
        *, queue: QueueLimits | None = None, default_deadline_s: float | None = None, usd_per_hour: float | None = None,
    ) -> None:  # fmt: skip
        self.names, self.engine, self.tokenizer = tuple(names), engine, tokenizer
        self.chat_format = chat_format
        self.metrics = Metrics(self.name, self._figures, usd_per_hour=usd_per_hour)
        self.default_deadline_s = default_deadline_s
        self.admission = Admission(self._capacity, queue)
        self.created = int(time.time())
        self.draining = False
        self._text_threads = ThreadPoolExecutor(TEXT_THREADS, "text")

    @property
    def name(self) -> str:
        return self.names[0]

    def check_model(self, asked: str | None) -> str:
        """The name to answer with; 404 for a model that is not served here."""
        if asked is None or asked in self.names:
            return asked or self.name
        raise HttpError(404, f"model {asked!r} is not served here; there is {', '.join(self.names)}")

    @property
    def max_context(self) -> int | None:
        """Tokens of prompt and answer together; None before the engine has said so."""
        return None if self.engine.info is None else self.engine.info.max_context

    def _capacity(self) -> int:
        return USUAL_CAPACITY if self.engine.info is None else self.engine.info.max_running

    def _figures(self) -> EngineFigures:
        stats, info = self.engine.stats, self.engine.info
        layout = {} if info is None else {
            "block_size": str(info.block_tokens), "num_gpu_blocks": str(info.num_blocks),
            "cache_dtype": "auto", "enable_prefix_caching": "True",
        }  # fmt: skip
        return EngineFigures(
            running=stats.num_running,
            waiting=stats.num_waiting + self.admission.num_waiting,
            cache_usage=stats.num_used_blocks / stats.num_blocks if stats.num_blocks else 0.0,
            preemptions=stats.num_preemptions,
            prefix_queries=stats.num_prompt_tokens,
            prefix_hits=stats.num_prefix_hit_tokens,
            drafted=stats.num_drafted_tokens,
            accepted=stats.num_accepted_drafts,
            restarts=self.engine.num_deaths,
            cache_config=layout,
        )

    # ------------------------------------------------------------------------------- prompts

    def require_chat(self) -> ChatFormat:
        if self.chat_format is None:
            raise RequestError(
                f"{self.name} is a base model without a chat format; use /v1/completions, or start the server "
                "with --chat-format"
            )
        return self.chat_format

    async def render(self, conversation: Conversation) -> Prompt:
        """The conversation in the model's format, and its tokens."""
        chat_format = self.require_chat()
        size = sum(len(str(m.get("content") or "")) for m in conversation.messages) + 200 * len(conversation.tools)

        def work() -> Prompt:
            tools = conversation.tools if conversation.may_call else ()
            prompt = chat_format.render(
                conversation.messages, thinking=conversation.thinking, tools=tools or None, effort=conversation.effort
            )
            return Prompt(prompt.token_ids(self.tokenizer), prompt)

        return await self._work(work, size)

    async def encode(self, text: str) -> Prompt:
        return await self._work(lambda: Prompt(self.tokenizer.encode(text)), len(text))

    async def _work(self, work: Callable[[], Prompt], size: int) -> Prompt:
        """Do it here, or in a thread if there is much text."""
        if size < SHORT_TEXT:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._text_threads, work)

    def constraint(self, conversation: Conversation, prompt: Prompt) -> Constraint | None:
        """What the conversation demands of the answer's form, as one grammar."""
        assert prompt.chat is not None
        source = self.require_chat().grammar(conversation, prompt.chat, self.tokenizer)
        return None if source is None else Constraint("grammar", source)

    # -------------------------------------------------------------------------------- answers

    async def deltas(self, call: Call, usage: Usage | None = None) -> AsyncGenerator[tuple[int, Delta]]:
        """(index of the answer, delta) until each of the n answers is finished; closing it cancels the rest.

        Raises RequestError for what cannot be served, Overloaded for what cannot be served now, and
        EngineDied when the engine fails under way. Tokens found in the cache are noted in `usage`.
        """
        if self.draining:
            raise Unavailable("this server is shutting down and takes no new requests; ask another one", 5.0)
        timeline = Timeline(self.metrics, len(call.prompt.token_ids))
        deadline_s = call.deadline_s or self.default_deadline_s
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        prompt, sampling, priority = call.prompt.token_ids, call.sampling, call.priority + call.caller.priority
        num_tokens = len(prompt) + sampling.n * (sampling.max_tokens or USUAL_TOKENS)
        ticket = Ticket(call.caller, num_tokens, sampling.n, priority)
        try:
            async with (
                self.admission.admit(ticket, deadline),
                self.engine.generate(
                    prompt, sampling, priority=priority, salt=call.caller.salt, deadline=deadline
                ) as stream,
            ):
                async for index, delta in stream:
                    timeline.note(index, delta)
                    if usage is not None:
                        usage.cached_tokens = stream.num_cached_tokens
                    yield index, delta
                    if delta.finish_reason in ("cancelled", "error"):
                        raise EngineDied(delta.error or "the engine gave this request up; send it again")
        finally:
            timeline.close()


def refuse(condition: object, message: str) -> None:
    if condition:
        raise RequestError(message)
