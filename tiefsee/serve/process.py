"""One life of the engine process as the front sees it: from exec to exit.

    spawn  ->  events ...  ->  the socket closes (at once when the process dies)  ->  exit, reaped

A process that is spawned is always reaped, and none outlives the front: its end of the socket goes with
the front, and the worker exits on that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from tiefsee.errors import WireError
from tiefsee.serve.wire import EngineOptions, Event, Fatal, Message, Start, events, frame

LOG = logging.getLogger("tiefsee.serve.engine")
STDERR_LINES = 50
MAX_LINE = 2000


class WorkerProcess(asyncio.Protocol):
    """A running worker. `on_event` is called for each event, `closed` is set when no more will come."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event
        self._events = events()
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self.closed = asyncio.Event()
        self.fatal: Fatal | None = None
        self.num_events = 0  # whoever watches for a heartbeat compares it
        self._fault: str | None = None  # why we ended it
        self._process: asyncio.subprocess.Process
        self._transport: asyncio.Transport
        self._reader: asyncio.Task[None]

    @classmethod
    async def spawn(cls, options: EngineOptions, on_event: Callable[[Event], None]) -> WorkerProcess:
        """Start a process and tell it what to build.

        It finds modules where this process does and nowhere else (-P: not in the current folder).
        """
        self = cls(on_event)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", "tiefsee.serve.worker", str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)
        self._reader = asyncio.create_task(self._read_stderr())
        self.send(Start(options))
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Message) -> None:
        """Queue a command; to a worker that is gone, nothing happens (its end is told elsewhere)."""
        if not self._transport.is_closing():
            self._transport.write(frame(message))

    def kill(self, why: str) -> None:
        """End it now; `why` becomes the reason that `wait` gives."""
        self._fault = self._fault or why
        with suppress(ProcessLookupError):
            self._process.kill()
        self._transport.abort()

    async def wait(self) -> str:
        """Until it is gone and reaped; a sentence about how it ended."""
        code = await self._process.wait()
        self._transport.abort()
        # Children of the worker may hold its stderr open: what they say later is not waited for.
        await asyncio.wait([self._reader], timeout=1.0)
        self._reader.cancel()
        if self._fault:
            return f"{self._fault} (process {self.pid})"
        if self.fatal is not None:
            return f"{self.fatal.kind}: {self.fatal.text} (process {self.pid})"
        if code < 0:
            return f"process {self.pid} was killed by {_signal_name(-code)}"
        return f"process {self.pid} exited with status {code}"

    def stderr_tail(self) -> str:
        """The last lines that the process wrote."""
        return "\n".join(self._stderr)

    async def _read_stderr(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while data := await self._process.stdout.read(1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-MAX_LINE:]
            for line in lines:
                self._hear(line)
        if rest:
            self._hear(rest)

    def _hear(self, line: bytes) -> None:
        text = line[:MAX_LINE].decode(errors="replace").rstrip()
        self._stderr.append(text)
        LOG.info("[%d] %s", self.pid, text)

    # ------------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.num_events += 1
        try:
            for event in self._events.feed(data):
                if isinstance(event, Fatal):
                    self.fatal = event
                self._on_event(event)
        except WireError as error:
            self.kill(f"the engine process sent {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        # A worker whose socket is closed is of no use, whatever else it does.
        with suppress(ProcessLookupError):
            self._process.kill()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
