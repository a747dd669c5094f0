"""Keeps one engine process alive: starts it, watches it, buries it, starts the next.

    starting ─► ready ─► closed
                │  ▲              death: everything in flight ends with EngineDied, a new process is
                ▼  │              started, the first time at once
             restarting ─► failed     too many deaths within the window

A first start that fails is final: whoever started the server is there to read why.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from tiefsee import errors
from tiefsee.errors import EngineDied, RequestError, TiefseeError
from tiefsee.serve.process import LOG, WorkerProcess
from tiefsee.serve.wire import EngineInfo, EngineOptions, Event, Fatal, Log, Ready, Stop, Turn

State = Literal["starting", "ready", "restarting", "failed", "closed"]


@dataclass(frozen=True)
class Supervision:
    """When a worker counts as dead, and what is done about it.

    `hang_timeout_s`: silence while it has work; the longest step, a prefill of `max_step_tokens`, must
    fit in. `start_timeout_s`: silence while it loads. `max_deaths` within `death_window_s`, and no new
    one is started. The first start after a death is immediate, the next ones wait `first_backoff_s`,
    doubled each time. `restart_wait_s` is how long a new request waits for a worker to be ready.
    """

    hang_timeout_s: float = 120.0
    start_timeout_s: float = 1800.0
    max_deaths: int = 5
    death_window_s: float = 300.0
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    restart_wait_s: float = 10.0
    stop_timeout_s: float = 5.0

    def backoff_s(self, num_deaths: int) -> float:
        """Pause before the start that follows the n-th death in the window."""
        return 0.0 if num_deaths <= 1 else min(self.max_backoff_s, self.first_backoff_s * 2 ** (num_deaths - 2))


class Supervisor:
    """The lives of one engine. `on_turn` hears what workers say, `on_death` a sentence about why one ended;
    `has_work` says whether silence means anything."""

    def __init__(
        self, options: EngineOptions, supervision: Supervision, on_turn: Callable[[Turn], None],
        on_death: Callable[[str], None], has_work: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.options, self.supervision = options, supervision
        self._on_turn, self._on_death, self._has_work = on_turn, on_death, has_work
        self.state: State = "starting"
        self.info: EngineInfo | None = None
        self.failure: str | None = None
        self.num_deaths = 0
        self.worker: WorkerProcess | None = None
        self._deaths: deque[float] = deque()
        self._start_error: TiefseeError | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Until ready. Raises what the build raised, or EngineDied."""
        assert self._task is None, "started once"
        self._task = asyncio.create_task(self._run())
        while self.state == "starting":
            await self.changed()
        if self._start_error is not None:
            raise self._start_error

    async def changed(self) -> None:
        """Until the state is another."""
        await self._changed.wait()

    async def close(self) -> None:
        """Stop the worker, by force if it does not; returns when it is reaped."""
        if self.state != "closed":
            self._set("closed")
            worker = self.worker
            if worker is not None:
                worker.send(Stop())
                with suppress(TimeoutError):
                    await asyncio.wait_for(worker.closed.wait(), self.supervision.stop_timeout_s)
                worker.kill("it did not stop when told to")
        if self._task is not None:
            await self._task

    def _set(self, state: State) -> None:
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()

    async def _run(self) -> None:
        while self.state != "closed":
            why = await self._live()
            if self.state == "closed":
                return
            now = time.monotonic()
            self._deaths.append(now)
            while self._deaths[0] < now - self.supervision.death_window_s:
                self._deaths.popleft()
            self.num_deaths, self.failure = self.num_deaths + 1, why
            gives_up = self.state == "starting" or len(self._deaths) >= self.supervision.max_deaths
            if self._start_error is None and self.state == "starting":
                self._start_error = EngineDied(f"the engine could not be started: {why}")
            self._set("failed" if gives_up else "restarting")
            self._on_death(why)
            if gives_up:
                LOG.error("the engine has failed for good after %d deaths: %s", len(self._deaths), why)
                return
            pause_s = self.supervision.backoff_s(len(self._deaths))
            LOG.error("the engine died, a new one is started in %.1f s: %s", pause_s, why)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.changed(), pause_s) if pause_s else None

    async def _live(self) -> str:
        """One life: from spawn to the reaped process. Returns how it ended."""
        try:
            worker = await WorkerProcess.spawn(self.options, self._hear)
        except OSError as error:  # no memory, no processes, no descriptors
            return f"no process could be started: {error}"
        self.worker = worker
        if self.state == "closed":
            worker.kill("closed while it was started")
        watch = asyncio.create_task(self._watch(worker))
        try:
            await worker.closed.wait()
        finally:
            watch.cancel()
            self.worker = None
        why = await worker.wait()
        if self.state != "closed":
            LOG.error("last lines of the engine process:\n%s", worker.stderr_tail() or "(none)")
        return why

    async def _watch(self, worker: WorkerProcess) -> None:
        """Kill a worker that is silent for too long while it loads or has work.

        Time is counted in ticks of this loop: if the front itself was stopped for an hour, that is one tick.
        """
        limits = self.supervision
        tick_s = min(1.0, limits.hang_timeout_s / 8)
        num_quiet, num_seen = 0, -1
        while True:
            await asyncio.sleep(tick_s)
            is_loading = self.state != "ready"
            if worker.num_events != num_seen or not (is_loading or self._has_work()):
                num_quiet, num_seen = 0, worker.num_events
                continue
            num_quiet += 1
            limit_s = limits.start_timeout_s if is_loading else limits.hang_timeout_s
            if num_quiet > math.ceil(limit_s / tick_s):
                doing = "loading" if is_loading else "with requests to serve"
                worker.kill(f"the engine process was silent for {limit_s:g} s while {doing}, and was killed")
                return

    def _hear(self, event: Event) -> None:
        match event:
            case Turn():
                self._on_turn(event)
            case Ready(info):
                self.info, self.failure = info, None
                for note in info.notes:
                    LOG.info("%s", note)
                if self.state != "closed":
                    self._set("ready")
            case Log(level, text):
                LOG.log(level, "%s", text)
            case Fatal(kind, text):
                if self.state == "starting":
                    self._start_error = _error_of(kind, text)


def _error_of(kind: str, text: str) -> TiefseeError:
    """The worker's error as the class that the caller of `start` expects."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, TiefseeError) and not issubclass(found, RequestError):
        return found(text)
    return EngineDied(f"the engine could not be started: {kind}: {text}")
