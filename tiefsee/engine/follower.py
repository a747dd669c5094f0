"""The process of one rank that does not lead: load its share, then do as it is told.

Started as `python -m tiefsee.engine.follower FD` by `engine/ranks.py`. It ends when the leader's end of the socket is
closed, even in the middle of a pass.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from multiprocessing.connection import Connection

import torch

from tiefsee.engine.build import prepare_rank
from tiefsee.engine.cache import StreamCache
from tiefsee.engine.ranks import RankJob
from tiefsee.engine.runner import Runner
from tiefsee.errors import TiefseeError

EXIT_FAILED, EXIT_LEADER_GONE = 1, 3
FAREWELL_MS = 1000


def follow(connection: Connection) -> None:
    """Until the leader closes the connection (EOFError), or this rank could not load, which the leader then says."""
    job: RankJob
    job, meeting = connection.recv()
    try:
        prepared = prepare_rank(job)
        connection.send("ready to meet")
        loaded = prepared.load(prepared.meet(meeting))
    except TiefseeError as error:
        connection.send(error)
        return
    connection.send(loaded.free_bytes)
    network = loaded.network
    runner = Runner(network, StreamCache(connection.recv(), network.device, network.ops))
    with torch.inference_mode():
        while True:
            name, arguments = connection.recv()
            getattr(runner, name)(*arguments)


def end_with_leader(connection: Connection) -> None:
    """A thread that ends this process when the leader has closed its end, whatever this one waits for."""

    def watch() -> None:
        if is_gone(connection, None):
            os._exit(EXIT_LEADER_GONE)

    threading.Thread(target=watch, name="end-with-leader", daemon=True).start()


def is_gone(connection: Connection, at_most_ms: int | None) -> bool:
    """Whether the leader has closed its end, now or within that time (None: wait for it)."""
    poll = select.poll()
    poll.register(connection.fileno(), 0)  # a hang-up is reported without being asked for
    return bool(poll.poll(at_most_ms))


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the leader's
    connection = Connection(int(arguments[0]))
    end_with_leader(connection)
    try:
        follow(connection)
    except Exception:
        # A leader that dies breaks off a collective here too: nothing to report then.
        if is_gone(connection, FAREWELL_MS):
            return EXIT_LEADER_GONE
        raise
    return EXIT_FAILED


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
