"""One request in the front: what has come for it, who waits for it, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from tiefsee.engine.delta import Delta
from tiefsee.serve.pieces import Pieces
from tiefsee.serve.wire import Add, Piece


class Call:
    """The engine's side of a stream: fed by events, ended by the last finish reason or by an error."""

    def __init__(self, add: Add, num_prompt_tokens: int, num_answers: int, deadline: float | None) -> None:
        self.add, self.num_prompt_tokens, self.deadline = add, num_prompt_tokens, deadline
        self.pieces = Pieces()
        self.num_open = num_answers  # answers without a finish reason yet
        self.is_accepted = False
        self.error: Exception | None = None
        self.num_cached_tokens = 0
        self.first_scheduled_s: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, piece: Piece) -> bool:
        """Take a piece; True if it was the last."""
        self.pieces.add(piece)
        if piece.finish_reason is not None:
            self.num_open -= 1
        self.wake()
        return self.num_open == 0

    def fail(self, error: Exception) -> None:
        """End with an error, after what has come already."""
        if self.error is None and self.num_open:
            self.error, self.num_open = error, 0
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Until something has changed."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Stream:
    """(index of the answer, Delta) as they come, until each of the n answers has a finish reason.

        async with client.generate(prompt_ids, sampling) as stream:
            await stream.accepted()         # optional: errors of the request before the first token
            async for index, delta in stream:
                ...

    The request is sent at the first `await`. Leaving early (the end of `async with`, `aclose`, a
    cancelled task, a forgotten stream) cancels it. Who reads slowly finds deltas joined: what is held is
    never more than the answers themselves. An error comes after the deltas that came before it.
    """

    def __init__(
        self, call: Call, open_call: Callable[[Call], Awaitable[None]], close_call: Callable[[Call], None]
    ) -> None:
        self._call, self._open, self._close = call, open_call, close_call
        self._loop: asyncio.AbstractEventLoop | None = None  # since the request was sent
        self._is_over = False

    @property
    def num_prompt_tokens(self) -> int:
        return self._call.num_prompt_tokens

    @property
    def num_cached_tokens(self) -> int:
        """Of the prompt, from the prefix cache; known with the first delta."""
        return self._call.num_cached_tokens

    @property
    def first_scheduled_s(self) -> float | None:
        """When the engine first took it up, on the clock of time.monotonic; None until then."""
        return self._call.first_scheduled_s

    async def accepted(self) -> None:
        """Until the engine has the request. Raises RequestError if it cannot be served."""
        await self._send()
        while not (self._call.is_accepted or self._call.error or self._is_over):
            await self._wait()
        if self._call.error is not None:
            self._raise_error()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> tuple[int, Delta]:
        """Raises RequestError, DeadlineExceeded, EngineDied."""
        call = self._call
        if self._loop is None:
            await self._send()
        while not call.pieces or self._is_over:
            if call.error is not None and not self._is_over:
                self._raise_error()
            if not call.num_open or self._is_over:
                raise StopAsyncIteration
            await self._wait()
        piece = call.pieces.take()
        logprobs = tuple(piece.logprobs) if piece.logprobs else ()
        ranges = tuple(piece.special_ranges) if piece.special_ranges else ()
        delta = Delta(
            tuple(piece.token_ids), piece.text, logprobs, piece.finish_reason, ranges, piece.stop, piece.error,
            tuple(piece.prompt_logprobs or ()),
        )  # fmt: skip
        return piece.index, delta

    async def aclose(self) -> None:
        self._end()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __del__(self) -> None:
        # Wherever the last reference went, the loop's thread does the work.
        if self._loop is not None and not self._is_over and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close, self._call)

    async def _send(self) -> None:
        if self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        try:
            await self._open(self._call)
        except BaseException:
            self._end()
            raise

    async def _wait(self) -> None:
        try:
            await self._call.wait()
        except BaseException:  # the waiting task was cancelled: nobody wants the rest
            self._end()
            raise

    def _raise_error(self) -> None:
        """Raise the call's error, and hold on to it no longer: its traceback leads back to the call and its prompt,
        and such a ring stays in memory until Python's rare full collection."""
        self._end()
        error, self._call.error = self._call.error, None
        assert error is not None
        try:
            raise error
        finally:
            del error

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._close(self._call)
