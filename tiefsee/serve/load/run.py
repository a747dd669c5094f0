"""Send the planned requests on time and keep what was seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from tiefsee.serve.load.arrivals import Arrivals
from tiefsee.serve.load.client import Target
from tiefsee.serve.load.health import Health
from tiefsee.serve.load.plan import Planned
from tiefsee.serve.load.record import Record


@dataclass
class Run:
    """One load and all that was seen of it. `counters` are the differences of the server's /metrics."""

    arrivals: Arrivals
    records: list[Record] = field(default_factory=list)
    wall_s: float = 0.0
    health: Health = field(default_factory=Health)
    counters: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False


@dataclass(frozen=True)
class Extent:
    """How much is sent: so many requests, or for so many seconds, whichever ends first."""

    num_requests: int | None = None
    duration_s: float | None = None


async def drive(
    target: Target, arrivals: Arrivals, planned: Iterator[Planned], extent: Extent,
    note: Callable[[Run], None] = lambda run: None,
) -> Run:  # fmt: skip
    """Run one load to its end. Requests under way when the time is over are read to their end.

    A cancel (Ctrl-C) ends the requests under way as "cancelled" and returns what there is, `interrupted`.
    """
    run = Run(arrivals)
    before = await target.figures()
    watching = asyncio.create_task(run.health.watch())
    start = time.monotonic()
    tasks: set[asyncio.Task[None]] = set()
    source = _limited(planned, extent)

    async def one(item: Planned) -> None:
        record = item.record()
        run.records.append(record)
        await target.send(item, record, start)
        note(run)

    async def user() -> None:
        for item in source:
            now_s = time.monotonic() - start
            if extent.duration_s is not None and now_s >= extent.duration_s:
                return
            await one(replace(item, arrival_s=now_s))

    try:
        if arrivals.kind == "closed":
            tasks = {asyncio.create_task(user()) for _ in range(arrivals.concurrency or 1)}
        else:
            for item in source:
                if extent.duration_s is not None and item.arrival_s >= extent.duration_s:
                    break
                delay_s = item.arrival_s - (time.monotonic() - start)
                if delay_s > 0:
                    await asyncio.sleep(delay_s)
                elif item.number % 64 == 0:
                    await asyncio.sleep(0)  # a burst must not keep the loop from sending
                tasks.add(asyncio.create_task(one(item)))
        await asyncio.gather(*tasks)
    except asyncio.CancelledError:
        run.interrupted = True
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        run.wall_s = time.monotonic() - start
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    after = {} if run.interrupted else await target.figures()
    run.counters = {name: value - before.get(name, 0.0) for name, value in after.items()}
    run.records.sort(key=lambda record: record.number)
    return run


def _limited(planned: Iterator[Planned], extent: Extent) -> Iterator[Planned]:
    for count, item in enumerate(planned):
        if extent.num_requests is not None and count >= extent.num_requests:
            return
        yield item
