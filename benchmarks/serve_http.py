"""What the door costs: CPU time of the front per request and per streamed token, the engine being a stub.

    python benchmarks/serve_http.py [--streams 256] [--tokens 200] [--step-ms 50]

Three processes: this one sends, the front (HTTP, templates, tokens to events) is measured, the engine process
paces tokens without a network. CPU time is the front's own, user and system. The cost of template and
tokenizer is measured apart, in this process, and taken off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time

MESSAGES = [
    {"role": "system", "content": "You are a careful assistant. Answer in one sentence."},
    {"role": "user", "content": "What does the sea look like at a depth of four thousand metres, and why? " * 4},
]
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, user and system."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def front(step_ms: float, streams: int) -> None:
    """The measured process."""
    from tiefsee.serve.logs import start_logging
    from tiefsee.serve.options import ServeOptions
    from tiefsee.serve.run import serve
    from tiefsee.serve.wire import EngineOptions

    start_logging("json", open(os.devnull, "w"))  # noqa: SIM115
    config = {"step_s": step_ms / 1e3, "max_running": streams}
    engine = EngineOptions("tiefsee-demo", core="tiefsee.serve.stub:build", config=config)
    await serve(ServeOptions(port=0, chat_format="v4"), engine, lambda text: print(text, flush=True))


async def request(port: int, body: bytes, path: str = "/v1/chat/completions") -> bytes:
    """One request on a connection of its own; the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read(-1)
    writer.close()
    return answer


def body(tokens: int, stream: bool) -> bytes:
    return json.dumps({"messages": MESSAGES, "max_tokens": tokens, "temperature": 0, "stream": stream}).encode()


async def many(port: int, count: int, at_once: int, raw: bytes) -> list[bytes]:
    gate = asyncio.Semaphore(at_once)

    async def one() -> bytes:
        async with gate:
            return await request(port, raw)

    return await asyncio.gather(*(one() for _ in range(count)))


def preparation_s() -> float:
    """Template and tokenizer of one request."""
    from tiefsee.files import find_model
    from tiefsee.text import Tokenizer, load_chat_format
    from tiefsee.text.bodies import read_chat

    files = find_model("tiefsee-demo")
    tokenizer = Tokenizer.from_folder(files.folder, files.config, files.generation_config)
    chat_format = load_chat_format(files.folder, "v4")
    began, times = time.process_time(), 300
    for _ in range(times):
        prompt = chat_format.render(read_chat({"messages": MESSAGES}).messages)
        prompt.token_ids(tokenizer)
        chat_format.parser(prompt, tokenizer=tokenizer)
    return (time.process_time() - began) / times


async def measure(options: argparse.Namespace, port: int, pid: int) -> None:
    await many(port, options.streams, options.streams, body(3, True))  # connections, caches
    used, began = cpu_s(pid), time.monotonic()
    answers = await many(port, options.requests, 32, body(1, False))
    per_request = (cpu_s(pid) - used) / options.requests
    assert all(b"200 OK" in answer[:30] for answer in answers)
    rate, apart = options.requests / (time.monotonic() - began), preparation_s()
    print(
        f"{options.requests} requests, 32 at once, one token each: {per_request * 1e6:.0f} us CPU per request, of "
        f"them {apart * 1e6:.0f} us template and tokenizer: {(per_request - apart) * 1e6:.0f} us door; "
        f"{rate:.0f} requests/s"
    )
    used, began = cpu_s(pid), time.monotonic()
    answers = await many(port, options.streams, options.streams, body(options.tokens, True))
    total, spent = options.streams * options.tokens, cpu_s(pid) - used
    assert all(answer.rstrip().endswith(b"data: [DONE]\n\n\r\n0") for answer in answers), answers[0][-200:]
    events = sum(answer.count(b"data: ") for answer in answers)
    per_token = (spent - options.streams * per_request) / total
    print(
        f"{options.streams} streams at once x {options.tokens} tokens: {per_token * 1e6:.1f} us CPU per token, "
        f"{events / total:.2f} events per token; {total / (time.monotonic() - began):,.0f} tokens/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--step-ms", type=float, default=50.0)
    parser.add_argument("--front", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.front:
        asyncio.run(front(options.step_ms, options.streams))
        return
    arguments = [f"--step-ms={options.step_ms}", f"--streams={options.streams}"]
    process = subprocess.Popen([sys.executable, __file__, "--front", *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().rsplit(":", 1)[1].split()[0])
        process.stdout.readline()  # ready
        asyncio.run(measure(options, port, process.pid))
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    main()
