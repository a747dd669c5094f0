"""What the way from the engine process to the consumer of a stream costs the front, in CPU time.

    python benchmarks/serve_process.py [--streams 32] [--tokens 500] [--step-ms 10] [--uvloop]

A stubbed core gives every stream a token per step, at a fixed pace; the front's own CPU time (not the
worker's) is divided by tokens, and by requests for streams of one token.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import time

from tiefsee.engine import Sampling
from tiefsee.serve.client import EngineClient
from tiefsee.serve.wire import EngineOptions

PROMPT = list(range(100, 1124))


async def consume(client: EngineClient, num_tokens: int) -> int:
    count = 0
    async with client.generate(PROMPT, Sampling(max_tokens=num_tokens, temperature=0)) as stream:
        async for _, delta in stream:
            count += len(delta.token_ids)
    return count


async def measure(arguments: argparse.Namespace) -> None:
    config = {"step_s": arguments.step_ms / 1e3, "max_running": arguments.streams}
    async with EngineClient(EngineOptions(core="tiefsee.serve.stub:build", config=config)) as client:
        assert client.info is not None
        await asyncio.gather(*(consume(client, 5) for _ in range(arguments.streams)))
        for name, num_tokens, rounds in (("token", arguments.tokens, 1), ("request", 1, 20)):
            cpu_s, wall_s, worker_s, total = time.process_time(), time.monotonic(), cpu_of(client.info.pid), 0
            for _ in range(rounds):
                counts = await asyncio.gather(*(consume(client, num_tokens) for _ in range(arguments.streams)))
                total += sum(counts)
            cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
            assert total == rounds * arguments.streams * num_tokens
            worker_s = cpu_of(client.info.pid) - worker_s
            print(
                f"{arguments.streams} streams x {num_tokens} tokens x {rounds}: {cpu_s / total * 1e6:6.1f} us CPU per "
                f"{name} in the front, {worker_s / total * 1e6:6.1f} us in the worker; {total / wall_s:,.0f} tokens/s"
            )
    print(f"peak memory of the front: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def cpu_of(pid: int) -> float:
    """CPU seconds of another process, user and system."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--uvloop", action="store_true")
    arguments = parser.parse_args()
    if arguments.uvloop:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(measure(arguments))
    else:
        asyncio.run(measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
