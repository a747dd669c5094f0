"""Constraints are compiled beside the engine's loop, in a thread: 1 to 100 ms that no other request waits for."""

from __future__ import annotations

import os
import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tiefsee.errors import RequestError
from tiefsee.serve.wire import Add


class Compilations:
    """Requests whose constraint is being compiled. `descriptor` becomes readable when one is done."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK)
        self._thread = ThreadPoolExecutor(1, "compile")
        self._done: queue.SimpleQueue[tuple[Add, RequestError | None]] = queue.SimpleQueue()
        self._wanted: set[int] = set()

    def begin(self, guide: Any, constraint: Any, command: Add) -> None:
        self._wanted.add(command.request)
        self._thread.submit(self._compile, guide, constraint, command)

    def cancel(self, request: int) -> None:
        """Nobody waits for it any more."""
        self._wanted.discard(request)

    def take(self) -> list[tuple[Add, RequestError | None]]:
        """Requests that can be added now, or that cannot be served."""
        try:
            os.eventfd_read(self.descriptor)
        except BlockingIOError:
            return []
        found = []
        while not self._done.empty():
            command, error = self._done.get()
            if command.request in self._wanted:
                self._wanted.discard(command.request)
                found.append((command, error))
        return found

    def _compile(self, guide: Any, constraint: Any, command: Add) -> None:
        error = None
        try:
            guide.compile(constraint)
        except RequestError as refused:
            error = refused
        except BaseException as failure:  # the library's own; the request must be answered all the same
            error = RequestError(f"the constraint could not be compiled: {failure!r}")
        self._done.put((command, error))
        os.eventfd_write(self.descriptor, 1)
