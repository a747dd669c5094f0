"""A crowd at the door, for as long as wanted: nobody goes unanswered, nothing leaks.

CI stays 20 seconds; `make soak` 30 minutes. How leaks are counted: when the crowd is gone, the engine is asked for
its gauges, which it sends when its work ends: no request runs or waits, and no block is held by one (blocks that
only the prefix cache keeps are free by definition). Memory is that of front and engine process, resident; the
warm-up (a tenth of the time) is not counted.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import statistics
import threading
import time
from collections import Counter
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serve.test_door import HEAD, wait_for
from tests.serve.test_lives import address, children, start

SECONDS = float(os.environ.get("TIEFSEE_SOAK_S", "20"))
GUESTS = 24
WORDS = (
    "the",
    "sea",
    "was",
    "dark",
    "and",
    "a",
    "king",
    "had",
    "never",
    "seen",
    "such",
    "ships",
    "in",
    "his",
    "garden",
)


class Crowd:
    """Guests that do something at random until `stop`; `seen` counts how each visit ended."""

    def __init__(self, url: str) -> None:
        self.place = urlsplit(url)
        self.stop = threading.Event()
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self, seed: int) -> None:
        rng = random.Random(seed)
        deeds = (self.answer, self.answer, self.stream, self.stream, self.leave, self.dawdle, self.mumble, self.bury)
        while not self.stop.is_set():
            try:
                self.seen[rng.choice(deeds)(rng)] += 1
            except Exception as error:
                self.wrong.append(repr(error))

    def post(self, body: bytes, path: str = "/v1/completions") -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.place.netloc, timeout=120)
        connection.request("POST", path, body, {"content-type": "application/json"})
        return connection

    def body(self, rng: random.Random, **more: object) -> bytes:
        prompt = " ".join(rng.choices(WORDS, k=rng.randint(1, 120)))
        chosen = {"max_tokens": rng.randint(1, 40), "temperature": rng.choice((0, 0.8)), "n": rng.choice((1, 1, 1, 2))}
        return json.dumps({"prompt": prompt, **chosen, **more}).encode()

    def answer(self, rng: random.Random) -> str:
        connection = self.post(self.body(rng))
        found = connection.getresponse()
        made = json.loads(found.read())
        connection.close()
        if found.status in (429, 503):
            return "refused"
        assert found.status == 200, made
        assert all(choice["finish_reason"] in ("stop", "length") for choice in made["choices"])
        return "answered"

    def stream(self, rng: random.Random) -> str:
        connection = self.post(self.body(rng, stream=True))
        found = connection.getresponse()
        text = found.read()
        connection.close()
        if found.status in (429, 503):
            return "refused"
        assert text.rstrip().endswith(b"data: [DONE]"), text[-200:]
        assert b'"error"' not in text
        return "streamed"

    def leave(self, rng: random.Random) -> str:
        connection = self.post(self.body(rng, stream=True, max_tokens=400, ignore_eos=True))
        if rng.random() < 0.5:
            connection.getresponse().read(rng.randint(1, 2000))
        time.sleep(rng.random() * 0.2)
        connection.close()
        return "left"

    def dawdle(self, rng: random.Random) -> str:
        """Reads little by little, and not to the end."""
        with socket.create_connection((self.place.hostname, self.place.port), timeout=120) as line:
            body = self.body(rng, stream=True, max_tokens=200, ignore_eos=True, logprobs=10)
            head = f"{HEAD}{len(body)}"
            line.sendall(f"{head}\r\n\r\n".encode() + body)
            for _ in range(10):
                if not line.recv(100):
                    break
                time.sleep(0.05)
        return "dawdled"

    def mumble(self, rng: random.Random) -> str:
        raw = bytes(rng.randrange(256) for _ in range(rng.randint(0, 300)))
        connection = self.post(rng.choice((raw, b"{", b'{"prompt": 3}', b'{"prompt": "x", "n": 0}', b"[]")))
        found = connection.getresponse()
        assert found.status == 400, found.status
        json.loads(found.read())
        connection.close()
        return "mumbled"

    def bury(self, rng: random.Random) -> str:
        connection = self.post(json.dumps({"prompt": "sea " * 30_000}).encode())
        found = connection.getresponse()
        assert found.status == 400, found.status
        assert b"context_length_exceeded" in found.read()
        connection.close()
        return "buried"


def memory(*pids: int) -> int:
    """Resident bytes of processes."""
    return sum(int(open(f"/proc/{pid}/statm").read().split()[1]) for pid in pids) * os.sysconf("SC_PAGE_SIZE")


def settled_memory(*pids: int) -> float:
    """Median of nine readings, half a second apart: a large prompt that is being read comes and goes."""
    readings = []
    for _ in range(9):
        readings.append(memory(*pids))
        time.sleep(0.5)
    return statistics.median(readings)


def gauges(url: str) -> tuple[float, float, float]:
    """Requests running and waiting, and the share of blocks that requests hold."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    values = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    running, waiting, usage = (values[f"vllm:{name}"] for name in names)
    return running, waiting, usage


@pytest.mark.timeout(SECONDS * 1.5 + 300)
def test_a_crowd_leaves_nothing_behind():
    process = start("--max-running", "16", "--max-context", "1024", "--dtype", "float32")
    try:
        url = address(process)
        threading.Thread(target=process.stderr.read, daemon=True).start()  # the log must not fill its pipe
        pids = (process.pid, *children(process.pid))
        crowd = Crowd(url)
        threads = [threading.Thread(target=crowd.run, args=(seed,)) for seed in range(GUESTS)]
        for thread in threads:
            thread.start()
        time.sleep(max(5, SECONDS / 10))
        before, series = settled_memory(*pids), []
        for _ in range(10):
            time.sleep(SECONDS / 10)
            series.append(tuple(round(memory(pid) / 1e6) for pid in pids))
        after = settled_memory(*pids)
        print(f"MB of front and engine, ten times: {series}")
        crowd.stop.set()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), "a guest was never answered"
        print(f"{dict(crowd.seen)}; front and engine {before / 1e6:.0f} -> {after / 1e6:.0f} MB")
        assert not crowd.wrong, crowd.wrong[:5]
        assert {"answered", "streamed", "left", "dawdled", "mumbled", "buried"} <= set(crowd.seen)
        assert pids == (process.pid, *children(process.pid)), "the engine was restarted"
        wait_for(lambda: gauges(url) == (0, 0, 0), 30)
        assert after < before * 1.05 or SECONDS < 60  # a short stay is still filling the cache
    finally:
        process.kill()
