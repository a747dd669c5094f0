"""One engine process and its lives: whatever it does, every request hears of it and no process is left."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace

import pytest

from tests.serve import cores
from tiefsee.engine.sampling import Sampling
from tiefsee.errors import EngineDied, Unavailable
from tiefsee.serve.client import EngineClient
from tiefsee.serve.supervisor import Supervision
from tiefsee.serve.wire import EngineOptions

QUICK = Supervision(hang_timeout_s=2.0, first_backoff_s=0.05, max_backoff_s=0.2, restart_wait_s=20, max_deaths=3)


def options(core="build", **config):
    return EngineOptions("tiefsee-demo", core=f"tests.serve.cores:{core}", config={"step_s": 0.01, **config})


async def read(client, first, *, max_tokens=5):
    """The tokens of one answer."""
    async with client.generate([first, 9], Sampling(max_tokens=max_tokens)) as stream:
        return [token async for _, delta in stream for token in delta.token_ids]


def run(work, supervision=QUICK, **config):
    """`work(client)` with an engine; then no process of it may be left."""

    async def main():
        pids = set()
        async with EngineClient(options(**config), supervision) as client:
            pids.add(client.info.pid)
            await work(client)
            if client.info is not None:
                pids.add(client.info.pid)
        return pids

    for pid in asyncio.run(main()):
        assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        (cores.DIE, "exited with status 7"), (cores.HANG, "was silent for 2 s"),
        (cores.RAISE, "RuntimeError: a step went wrong"), (cores.GARBAGE, "none of our messages"),
    ],
)  # fmt: skip
def test_every_stream_hears_of_a_death_and_the_next_life_serves(mood, words):
    async def work(client):
        before = client.info.pid
        long = [asyncio.create_task(read(client, 9, max_tokens=10_000)) for _ in range(8)]
        await asyncio.sleep(0.1)
        with pytest.raises(EngineDied, match=words):
            await read(client, mood)
        for task in long:
            with pytest.raises(EngineDied, match=words):
                await task
        assert len(await read(client, 9)) == 5  # waits for the new process
        assert client.info.pid != before
        assert client.num_deaths == 1
        assert client.state == "ready"
        assert client.num_in_flight == 0

    # Only one that is to be taken for hung may be judged within seconds: a busy machine makes others late as well.
    run(work, QUICK if mood == cores.HANG else replace(QUICK, hang_timeout_s=60))


def test_it_gives_up_after_many_deaths_and_says_why():
    async def work(client):
        for _ in range(QUICK.max_deaths):
            with pytest.raises(EngineDied):
                await read(client, cores.DIE)
        assert client.state == "failed"
        with pytest.raises(Unavailable, match=r"will not be started again.*status 7"):
            await read(client, 9)

    run(work)


def test_pauses_between_starts_double_and_are_bounded():
    limits = Supervision(first_backoff_s=0.5, max_backoff_s=3.0)
    assert [limits.backoff_s(n) for n in range(1, 7)] == [0, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_first_start_that_fails_is_final_and_says_why():
    async def main(core, supervision):
        client = EngineClient(options(core), supervision)
        try:
            with pytest.raises(EngineDied) as caught:
                await client.start()
            return str(caught.value)
        finally:
            await client.aclose()

    assert "there is no such card" in asyncio.run(main("never", QUICK))
    hurried = Supervision(start_timeout_s=0.5, hang_timeout_s=0.4)
    assert "silent for 0.5 s while loading" in asyncio.run(main("slow", hurried))
    assert "could not be started" in asyncio.run(main("no_such_function", QUICK))


def test_a_request_does_not_wait_for_ever_for_an_engine_that_restarts():
    async def work(client):
        with pytest.raises(EngineDied):
            await read(client, cores.DIE)
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            await read(client, 9)
        assert time.monotonic() - began < 2
        assert caught.value.retry_after_s > 0

    run(work, Supervision(restart_wait_s=0.01, stop_timeout_s=0.3))


def test_an_idle_engine_may_be_silent():
    async def work(client):
        await asyncio.sleep(2.5 * QUICK.hang_timeout_s)
        assert client.num_deaths == 0
        assert len(await read(client, 9)) == 5

    run(work)


def test_closing_ends_what_runs_even_if_the_engine_hangs():
    async def work(client):
        waiting = asyncio.create_task(read(client, cores.HANG))
        await asyncio.sleep(0.3)
        await client.aclose()
        with pytest.raises(Unavailable, match="closed"):
            await waiting

    run(work, Supervision(stop_timeout_s=0.5))
