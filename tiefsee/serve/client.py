"""`EngineClient`: the engine process, as the front's event loop knows it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

from tiefsee import errors
from tiefsee.engine.sampling import Sampling
from tiefsee.errors import DeadlineExceeded, EngineDied, PromptTooLong, RequestError, Unavailable, WireError
from tiefsee.serve.process import WorkerProcess
from tiefsee.serve.stream import Call, Stream
from tiefsee.serve.supervisor import State, Supervision, Supervisor
from tiefsee.serve.wire import (
    Ask,
    Cancel,
    EngineInfo,
    EngineOptions,
    EngineStats,
    Message,
    Refusal,
    Task,
    Turn,
    add_request,
)

RETRY_AFTER_RESTART_S = 5.0


class EngineClient:
    """One engine in a process of its own.

        async with EngineClient(EngineOptions("tiefsee-demo")) as client:
            async with client.generate(prompt_ids, Sampling(max_tokens=64)) as stream:
                async for index, delta in stream:
                    print(delta.text, end="")
            await client.drain(30)

    Everything runs on the event loop that called `start`. When the worker dies, every stream ends with
    EngineDied and a new worker is started (serve/supervisor.py); requests that come meanwhile wait for
    it, `Supervision.restart_wait_s` at most.
    """

    def __init__(self, options: EngineOptions, supervision: Supervision | None = None) -> None:
        self.stats = EngineStats()  # the latest: sent every 0.1 s of work, and when work ends
        self.is_draining = False
        self._supervisor = Supervisor(
            options, supervision or Supervision(), self._take_turn, self._lose_all, lambda: bool(self._calls)
        )  # fmt: skip
        self._calls: dict[int, Call] = {}
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[EngineStats]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def state(self) -> State:
        return self._supervisor.state

    @property
    def info(self) -> EngineInfo | None:
        """What the engine said of itself when it was last ready; None before."""
        return self._supervisor.info

    @property
    def failure(self) -> str | None:
        """Why the state is "restarting" or "failed"."""
        return self._supervisor.failure

    @property
    def num_deaths(self) -> int:
        return self._supervisor.num_deaths

    @property
    def num_in_flight(self) -> int:
        """Requests that the engine has and has not finished."""
        return len(self._calls)

    # ------------------------------------------------------------------------------- life

    async def start(self) -> None:
        """Until the engine is ready. Raises what its build raised (ModelNotFound, OutOfMemory, ...), or EngineDied."""
        await self._supervisor.start()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and let the running ones finish; True if they all did within the time."""
        self.is_draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def aclose(self) -> None:
        """End the worker, and with it whatever still runs. Leaves no process behind."""
        self._end_all(lambda: Unavailable("the server was closed before the answer was complete"))
        await self._supervisor.close()

    async def __aenter__(self) -> EngineClient:
        try:
            await self.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --------------------------------------------------------------------------- requests

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, *, priority: int = 0, salt: str | None = None,
        deadline: float | None = None,
    ) -> Stream:  # fmt: skip
        """A stream of (index of the answer, Delta). `deadline` is a time of time.monotonic().

        Nothing is sent before the stream is first awaited. Lower `priority` goes first; `salt` keeps one
        client's prefix hits from another's.
        """
        add = add_request(next(self._numbers), Task(list(prompt), sampling, priority, salt))
        return Stream(Call(add, len(prompt), sampling.n, deadline), self._open, self._close)

    async def ask_stats(self) -> EngineStats:
        """Statistics of now: every command given before has been carried out."""
        worker = await self._ready_worker(None)
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        worker.send(Ask(number))
        return await self._asked[number]

    async def _open(self, call: Call) -> None:
        worker = await self._ready_worker(call.deadline)
        try:
            worker.send(call.add)
        except WireError as error:
            raise PromptTooLong(f"the prompt has {call.num_prompt_tokens} tokens: {error}") from error
        self._calls[call.add.request] = call
        self._idle.clear()
        if call.deadline is not None:
            left_s = call.deadline - time.monotonic()
            call.timer = asyncio.get_running_loop().call_later(left_s, self._expire, call, left_s)

    async def _ready_worker(self, deadline: float | None) -> WorkerProcess:
        """The worker, waited for while it restarts. Raises Unavailable, DeadlineExceeded."""
        limit = time.monotonic() + self._supervisor.supervision.restart_wait_s
        while True:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise DeadlineExceeded("the deadline passed before the engine could take the request")
            if self.is_draining:
                raise Unavailable("the server is shutting down and takes no new requests; ask another one")
            if self.state == "closed":
                raise Unavailable("the server is closed")
            if self.state == "failed":
                raise Unavailable(f"the engine has failed and will not be started again: {self.failure}")
            if self.state == "ready" and self._supervisor.worker is not None:
                return self._supervisor.worker
            if now >= limit:
                raise Unavailable(f"the engine is {self.state}; try again in a moment", RETRY_AFTER_RESTART_S)
            try:
                await asyncio.wait_for(self._supervisor.changed(), min(limit, deadline or limit) - now)
            except TimeoutError:
                continue  # which of the two it was is seen above

    def _forget(self, call: Call) -> bool:
        """Out of the table; False if it was not in it."""
        found = self._calls.pop(call.add.request, None) is not None
        if call.timer is not None:
            call.timer.cancel()
        if not self._calls:
            self._idle.set()
        return found

    def _close(self, call: Call) -> None:
        """Nobody reads on: cancel what still runs."""
        if self._forget(call):
            self._send(Cancel(call.add.request))

    def _expire(self, call: Call, limit_s: float) -> None:
        self._close(call)
        call.fail(DeadlineExceeded(
            f"the answer was not complete at its deadline, {limit_s:.3g} s after the engine got it, and was cancelled; "
            "give it more time, or ask for fewer tokens"
        ))  # fmt: skip

    def _send(self, message: Message) -> None:
        if self._supervisor.worker is not None:
            self._supervisor.worker.send(message)

    # ------------------------------------------------------------------------------ events

    def _take_turn(self, turn: Turn) -> None:
        """One step's worth of news, for whoever it concerns; requests that were cancelled are unknown here."""
        calls = self._calls
        for number in turn.accepted:
            if (call := calls.get(number)) is not None:
                call.is_accepted = True
                call.wake()
        for refusal in turn.refused:
            if (call := calls.get(refusal.request)) is not None:
                self._forget(call)
                call.fail(_refused(refusal))
        for started in turn.started:
            if (call := calls.get(started.request)) is not None:
                call.num_cached_tokens, call.first_scheduled_s = started.num_cached_tokens, started.time_s
        for piece in turn.pieces:
            call = calls.get(piece.request)
            if call is not None and call.feed(piece):
                self._forget(call)
        if turn.stats is not None:
            self.stats = turn.stats
            for number in [n for n in self._asked if n <= turn.answers]:
                _resolve(self._asked.pop(number), turn.stats)

    def _lose_all(self, why: str) -> None:
        """The worker is dead. Its gauges are nothing's; its counters begin anew with the next."""
        self.stats = EngineStats()
        self._end_all(
            lambda: EngineDied(f"the engine died while it served this request ({why}); it can be sent again")
        )  # fmt: skip

    def _end_all(self, error: Callable[[], Exception]) -> None:
        for call in list(self._calls.values()):
            self._forget(call)
            call.fail(error())
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(error())
        self._asked.clear()


def _resolve(future: asyncio.Future[EngineStats], stats: EngineStats) -> None:
    if not future.done():
        future.set_result(stats)


def _refused(refusal: Refusal) -> RequestError:
    """The RequestError that the core raised, as the class it was."""
    kind = getattr(errors, refusal.kind, RequestError)
    return kind(refusal.text) if issubclass(kind, RequestError) else RequestError(refusal.text)
