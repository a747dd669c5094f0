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
from contextlib import suppress
from multiprocessing.connection import Connection

import torch

from tiefsee.engine.build import prepare_rank
from tiefsee.engine.cache import StreamCache
from tiefsee.engine.ranks import RankJob
from tiefsee.engine.runner import Runner
from tiefsee.errors import TiefseeError

EXIT_FAILED, EXIT_LEADER_GONE = 1, 3


def follow(connection: Connection) -> None:
    """Until the leader closes the connection (EOFError)."""
    job: RankJob = connection.recv()
    try:
        prepared = prepare_rank(job)
        connection.send("ready to meet")
        loaded = prepared.load(prepared.meet())
    except TiefseeError as error:
        connection.send(error)
        raise
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
        poll = select.poll()
        poll.register(connection.fileno(), 0)  # a hang-up is reported without being asked for
        poll.poll()
        os._exit(EXIT_LEADER_GONE)

    threading.Thread(target=watch, name="end-with-leader", daemon=True).start()


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the leader's
    connection = Connection(int(arguments[0]))
    end_with_leader(connection)
    with suppress(EOFError, TiefseeError):  # the leader says what went wrong
        follow(connection)
    return EXIT_FAILED


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
