"""Engine cores that misbehave on purpose; the worker finds them by name (`EngineOptions.core`)."""

from __future__ import annotations

import os
import time

from tiefsee.serve.stub import StubCore
from tiefsee.serve.wire import EngineOptions

# What a prompt's first token does in the step that meets it.
DIE, HANG, RAISE, GARBAGE = 1, 2, 3, 4


def build(options: EngineOptions) -> Moody:
    return Moody(options.model, **options.config)


def never(options: EngineOptions) -> None:
    raise RuntimeError("there is no such card")


def slow(options: EngineOptions) -> None:
    time.sleep(3600)


class Moody(StubCore):
    """A stub that does what the first token of a prompt says."""

    def add(self, prompt, sampling, on_delta, *, priority=0, salt=None):
        group = super().add(prompt, sampling, on_delta, priority=priority, salt=salt)
        group[0].mood = prompt[0]
        return group

    def step(self) -> None:
        moods = {getattr(generation, "mood", 0) for generation in (*self._waiting, *self._running)}
        if DIE in moods:
            os._exit(7)
        if HANG in moods:
            time.sleep(3600)
        if RAISE in moods:
            raise RuntimeError("a step went wrong")
        if GARBAGE in moods:
            for number in sorted(map(int, os.listdir("/proc/self/fd"))):  # whichever is the socket to the front
                path = f"/proc/self/fd/{number}"
                if number > 2 and os.path.exists(path) and "socket" in os.readlink(path):
                    os.write(number, b"\x05\x00\x00\x00\xc1\xc1\xc1\xc1\xc1")
            time.sleep(3600)
        super().step()
