"""What the worker has to say: sends that never block, a backlog that is bounded, and no token lost.

At most one Turn is encoded and partly sent; everything after it is joined into the next Turn, per
answer. So a front that does not read costs the worker one encoded Turn and the answers' own length, and
when that exceeds `MAX_HELD_TOKENS` the worker stops stepping (`is_full`) until the front has read.
"""

from __future__ import annotations

import logging
import select
import socket
import time

from tiefsee.serve.pieces import Pieces
from tiefsee.serve.wire import EngineStats, Log, Message, Piece, Refusal, Started, Turn, frame

# Tokens that may wait for the front. About 10 bytes each; 50 logprobs make 2 kB of one, so these weigh more.
MAX_HELD_TOKENS = 1 << 18
MAX_HELD_LOGS = 1000
SEND_BUFFER_BYTES = 1 << 20


class FrontGone(Exception):
    """The other end of the socket is closed: nobody is left to tell."""


class Outbox:
    """The worker's end of the socket, for sending."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._unsent = memoryview(b"")
        self._messages: list[Message] = []  # Ready, Log: sent before the next Turn
        self._num_lost_logs = 0
        self._weight = 0
        self._begin_turn()

    def _begin_turn(self) -> None:
        self._turn = Turn()
        self._pieces = Pieces()
        self._is_empty = True
        self._weight = 0

    @property
    def is_full(self) -> bool:
        return self._weight > MAX_HELD_TOKENS

    @property
    def has_unsent(self) -> bool:
        """Something waits for the socket to be writable."""
        return len(self._unsent) > 0

    def accepted(self, request: int) -> None:
        self._turn.accepted.append(request)
        self._is_empty = False

    def refused(self, refusal: Refusal) -> None:
        self._turn.refused.append(refusal)
        self._is_empty = False

    def started(self, started: Started) -> None:
        self._turn.started.append(started)
        self._is_empty = False

    def piece(self, piece: Piece) -> None:
        self._weight += len(piece.token_ids) + sum(10 * (1 + len(p.top)) for p in piece.logprobs or ())
        self._weight += sum(10 * (1 + len(p.top)) for p in piece.prompt_logprobs or () if p is not None)
        self._pieces.add(piece)
        self._is_empty = False

    def stats(self, stats: EngineStats, answers: int) -> None:
        """Only the latest is sent."""
        self._turn.stats, self._turn.answers = stats, answers
        self._is_empty = False

    def send(self, message: Message) -> None:
        """A message of its own. Logs beyond the bound are counted instead."""
        if isinstance(message, Log) and len(self._messages) >= MAX_HELD_LOGS:
            self._num_lost_logs += 1
            return
        self._messages.append(message)

    def flush(self) -> None:
        """Send what the socket takes now. Raises FrontGone."""
        while True:
            if self._unsent:
                try:
                    sent = self._connection.send(self._unsent, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return
                except OSError as error:
                    raise FrontGone(str(error)) from error
                self._unsent = self._unsent[sent:]
                continue
            following = self._next()
            if following is None:
                return
            self._unsent = memoryview(frame(following))

    def flush_all(self, timeout_s: float) -> None:
        """Send everything, waiting for the front for at most so long: the last thing that a worker does."""
        end_s = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._connection, select.POLLOUT)
        self.flush()
        while self._unsent and (left_s := end_s - time.monotonic()) > 0:
            poll.poll(left_s * 1000)
            self.flush()

    def _next(self) -> Message | None:
        if self._messages:
            return self._messages.pop(0)
        if self._num_lost_logs:
            lost, self._num_lost_logs = self._num_lost_logs, 0
            return Log(logging.WARNING, f"{lost} lines of the log were dropped: the front did not read for a while")
        if self._is_empty:
            return None
        turn = self._turn
        turn.pieces = list(self._pieces.take_all())
        self._begin_turn()
        return turn
