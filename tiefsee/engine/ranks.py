"""Several ranks as one engine: the first leads, the others do as they are told.

    leader      schedules, samples, and tells the others each pass before it makes it     (engine/runner.py)
    follower    a process with its share of the weights and the whole cache               (engine/follower.py)

Commands go through a socket pair, tensors through the group (gloo, NCCL, HCCL). All ranks live on one machine. A
follower that dies ends the engine with an error; followers end when the leader does, however it ends.
"""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tiefsee.errors import DeviceError, TiefseeError
from tiefsee.ops.group import Group

FAREWELL_S = 5.0


@dataclass(frozen=True)
class RankJob:
    """What one rank loads. `devices` has one for each rank."""

    rank: int
    devices: tuple[str, ...]
    model: str
    dtype: str
    format: str
    num_threads: int

    @classmethod
    def lead(cls, devices: tuple[str, ...], model: str, dtype: str, format: str) -> RankJob:
        """That of the first rank. Ranks that share a device share its threads."""
        return cls(0, devices, model, dtype, format, max(1, torch.get_num_threads() // devices.count(devices[0])))

    @property
    def device(self) -> str:
        return self.devices[self.rank]

    @property
    def size(self) -> int:
        return len(self.devices)

    @property
    def device_share(self) -> float:
        """Of the device's memory, what this rank may take: ranks on the CPU share one."""
        return 1 / self.devices.count(self.device)


class Followers:
    """The other ranks of an engine, as its leader sees them."""

    def __init__(self, leader: RankJob) -> None:
        self._connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._group: Group | None = None
        self._ended: str | None = None
        self._threads_before = torch.get_num_threads()
        # Ranks find each other by a file in a folder that only this user can read. NCCL and HCCL look into it at the
        # first collective, long after the ranks have met: it is kept until the end.
        folder = tempfile.mkdtemp(prefix="tiefsee-ranks-")
        self.meeting = str(Path(folder) / "store")
        self._finalizer = weakref.finalize(self, _end, folder, self._connections, self._processes)
        for job in (replace(leader, rank=rank) for rank in range(1, leader.size)):
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, "-P", "-m", "tiefsee.engine.follower", str(theirs.fileno())]
                # Modules are found where this process finds them and nowhere else (-P: not in the current folder).
                path = os.pathsep.join(p for p in sys.path if p)
                self._processes.append(
                    subprocess.Popen(
                        command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL,
                        env={**os.environ, "PYTHONPATH": path},
                    )
                )  # fmt: skip
            self._connections.append(Connection(ours.detach()))
            self._connections[-1].send((job, self.meeting))

    def join(self, group: Group) -> None:
        """All ranks have met. From now on a follower that dies breaks off what the others wait for."""
        self._group = group
        for process in self._processes:
            threading.Thread(target=_watch, args=(weakref.ref(self), process), daemon=True).start()

    def hear(self) -> list[Any]:
        """One message of each follower; what one of them raised is raised here."""
        said = []
        for rank, connection in enumerate(self._connections, 1):
            try:
                message = connection.recv()
            except (EOFError, OSError) as error:
                raise DeviceError(f"{self._fate(rank)} before it was ready") from error
            if isinstance(message, TiefseeError):
                raise message
            said.append(message)
        return said

    def tell(self, message: Any) -> None:
        """The same to every follower."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        for rank, connection in enumerate(self._connections, 1):
            try:
                connection.send_bytes(data)
            except OSError as error:
                raise DeviceError(self._fate(rank)) from error

    @contextmanager
    def together(self, name: str, arguments: tuple[Any, ...]) -> Iterator[None]:
        """Tell the followers to do what is then done here. If it fails on any rank, the ranks are out of step, and the
        engine has ended."""
        if self._ended is not None:
            raise DeviceError(f"the ranks of this engine have ended: {self._ended}; load the model again")
        try:
            self.tell((name, arguments))
            yield
        except BaseException as error:
            dead = self._dead()
            self._ended = self._fate(dead[0]) if dead else f"{type(error).__name__} in {name}"
            self.close()
            if dead and isinstance(error, RuntimeError):
                raise DeviceError(self._ended) from error
            raise

    def close(self) -> None:
        """End the followers, and leave their group; this process has its threads to itself again."""
        self._ended = self._ended or "closed"
        torch.set_num_threads(self._threads_before)
        group, self._group = self._group, None
        self._finalizer()
        if group is not None:
            group.close()

    def _dead(self) -> list[int]:
        """Ranks whose processes have ended; one that has just broken a connection is given a moment to be gone."""
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        return [rank for rank, process in enumerate(self._processes, 1) if process.returncode is not None]

    def _fate(self, rank: int) -> str:
        """A sentence about how a follower ended."""
        process = self._processes[rank - 1]
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        if process.returncode is None:
            return f"rank {rank} (process {process.pid}) has closed its connection"
        return f"rank {rank} (process {process.pid}) ended with status {process.returncode}; see what it wrote above"


def _watch(followers: weakref.ref[Followers], process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a follower; then let nobody wait for it in a collective."""
    process.wait()
    alive = followers()
    group = None if alive is None else alive._group
    if group is not None:
        group.abort()


def _end(folder: str, connections: list[Connection], processes: list[subprocess.Popen[bytes]]) -> None:
    for connection in connections:
        connection.close()
    for process in processes:
        try:
            process.wait(FAREWELL_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    shutil.rmtree(folder, ignore_errors=True)
