"""The async engine: many callers, one thread that steps the core.

Callers and the stepping thread share nothing but a queue of commands (add, cancel, stop) and, per
request, a queue of deltas on the caller's event loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tiefsee.engine.core import EngineCore
from tiefsee.engine.delta import Delta
from tiefsee.engine.generation import Generation
from tiefsee.engine.moved import Moved
from tiefsee.engine.sampling import Sampling
from tiefsee.errors import DeviceError, MoveError, RequestError

T = TypeVar("T")


@dataclass
class _Call:
    """One request between its caller and the stepping thread."""

    loop: asyncio.AbstractEventLoop
    name: str | None = None
    deltas: asyncio.Queue[tuple[int, Delta] | BaseException] = field(default_factory=asyncio.Queue)
    group: list[Generation] = field(default_factory=list)

    def tell(self, item: tuple[int, Delta] | BaseException) -> None:
        """Hand an item to the caller's loop; a loop that is gone has no one to tell."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.deltas.put_nowait, item)


class _Answers:
    """What `admit` gives: deltas as they come. Left early, or never read, it cancels the request."""

    def __init__(self, items: AsyncGenerator[tuple[int, Delta], None], cancel: Callable[[], None]) -> None:
        self._items, self._cancel = items, cancel

    def __aiter__(self) -> _Answers:
        return self

    async def __anext__(self) -> tuple[int, Delta]:
        return await anext(self._items)

    async def aclose(self) -> None:
        await self._items.aclose()
        self._cancel()

    def __del__(self) -> None:
        self._cancel()


class Engine:
    """Continuous batching for asyncio callers.

        async with Engine(core) as engine:
            async for index, delta in engine.generate(prompt_ids, Sampling(max_tokens=64)):
                print(delta.text, end="")

    Leaving the iterator early cancels the request. If a step fails, every request in flight gets the
    error and the engine refuses new ones.
    """

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._calls: dict[int, _Call] = {}
        self._asked: dict[int, Callable[[Exception], object]] = {}
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="tiefsee-engine", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel what runs and end the thread after the step in flight."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, *, priority: int = 0, salt: str | None = None,
        name: str | None = None,
    ) -> AsyncIterator[tuple[int, Delta]]:  # fmt: skip
        """(index of the answer, delta) as they come, until each of the n answers has a finish reason.

        `name` is what `export` will call it. Raises RequestError if the prompt cannot be served, DeviceError if
        the engine has failed.
        """
        self._refuse_if_failed()
        await self._compile(sampling)
        call = _Call(asyncio.get_running_loop(), name)
        self._commands.put(lambda: self._add(call, prompt, sampling, priority, salt))
        async with aclosing(self._listen(call, sampling.n)) as items:
            async for item in items:
                yield item

    # ------------------------------------------------------------------------- moving a request

    async def export(self, name: str, index: int = 0) -> Moved:
        """One answer of the call `name` with all its rows. It is held here until `release` or `resume`, one of
        which must follow. Raises MoveError if it is not running, or cannot be moved now."""
        return await self._ask(lambda: self.core.export(self._find(name, index)))

    async def release(self, name: str, index: int = 0) -> None:
        """The exported answer goes on elsewhere: who listens here hears "moved"."""
        await self._ask(lambda: self.core.release(self._find(name, index)))

    async def resume(self, name: str, index: int = 0) -> None:
        """The exported answer was not admitted elsewhere and goes on here."""
        await self._ask(lambda: self.core.resume(self._find(name, index)))

    async def admit(self, moved: Moved, *, name: str | None = None) -> _Answers:
        """Go on with an answer that another engine has exported; returns what `generate` does, from there on.

        When this returns the request is here. Raises MoveError or LayoutError, and then nothing of it is.
        """
        self._refuse_if_failed()
        with suppress(RequestError):  # the core says it, as a MoveError
            await self._compile(moved.header.answer.sampling)
        call = _Call(asyncio.get_running_loop(), name)

        def enter() -> int:
            first = self.core.admit(moved, lambda index, delta: call.tell((index, delta)))
            call.group = [first, *first.siblings]
            self._calls[id(call)] = call
            return len(call.group)

        count = await self._ask(enter)
        return _Answers(self._listen(call, count), lambda: self._commands.put(lambda: self._cancel(call)))

    async def _compile(self, sampling: Sampling) -> None:
        """Make a constraint ready, and not in the thread that steps."""
        guide = self.core.guide
        if sampling.constraint is not None and guide is not None and guide.find(sampling.constraint) is None:
            await asyncio.to_thread(guide.compile, sampling.constraint)

    def _find(self, name: str, index: int) -> str:
        for call in self._calls.values():
            for generation in call.group if call.name == name else ():
                if generation.index == index:
                    return generation.request.request_id
        raise MoveError(f"no call {name!r} with an answer {index} is running here")

    async def _ask(self, what: Callable[[], T]) -> T:
        """Run something between two steps, in the thread that steps; its result or its exception comes back."""
        self._refuse_if_failed()
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def settle(value: Any, error: Exception | None) -> None:
            if not result.done():
                result.set_exception(error) if error is not None else result.set_result(value)

        def command() -> None:
            value, found = None, None
            try:
                value = what()
            except Exception as error:  # whoever asked has to hear of it; nothing has changed
                found = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, value, found)

        self._asked[id(result)] = lambda error: loop.is_closed() or loop.call_soon_threadsafe(settle, None, error)
        try:
            self._commands.put(command)
            self._refuse_if_failed()  # it may have failed since, and nobody takes commands any more
            return await result
        finally:
            self._asked.pop(id(result), None)

    def _refuse_if_failed(self) -> None:
        if self._failure is not None:
            raise DeviceError("the engine has stopped after an error; start it again") from self._failure

    async def _listen(self, call: _Call, open_answers: int) -> AsyncGenerator[tuple[int, Delta], None]:
        try:
            while open_answers:
                item = await call.deltas.get()
                if isinstance(item, BaseException):
                    open_answers = 0
                    raise item
                open_answers -= item[1].finish_reason is not None
                yield item
        finally:
            self._commands.put(lambda: self._cancel(call))

    # --------------------------------------------------------------------- the stepping thread

    def _work(self) -> None:
        while True:
            try:
                command = self._commands.get(block=not self.core.has_work())
                if command is None:
                    self.core.cancel_all()
                    return
                command()
                continue  # drain the queue before the next step
            except queue.Empty:
                pass
            try:
                self.core.step()
            except BaseException as error:  # whatever it was: callers must hear of it, not wait for ever
                self._fail(error)
                return

    def _add(self, call: _Call, prompt: Sequence[int], sampling: Sampling, priority: int, salt: str | None) -> None:
        try:
            call.group = self.core.add(
                prompt, sampling, lambda index, delta: call.tell((index, delta)), priority=priority, salt=salt
            )
        except RequestError as error:
            call.tell(error)
            return
        self._calls[id(call)] = call

    def _cancel(self, call: _Call) -> None:
        """Forget a call; what of it still runs is cancelled."""
        self._calls.pop(id(call), None)
        for generation in call.group:
            self.core.cancel(generation)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        for call in self._calls.values():
            call.tell(DeviceError(f"the engine failed during a step: {error!r}; the request is lost"))
        for settle in list(self._asked.values()):
            settle(DeviceError(f"the engine failed during a step: {error!r}; nothing was moved"))
