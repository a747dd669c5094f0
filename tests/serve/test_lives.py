"""Death, slowness and goodbye: real processes, real signals."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from tests.serve.local import serving
from tests.serve.test_door import ask, wait_for
from tiefsee.serve.admission import QueueLimits
from tiefsee.serve.keys import new_key, read_keys

LONG = {"prompt": "The", "max_tokens": 1500, "ignore_eos": True, "stream": True, "temperature": 0}


def open_stream(url, body):
    """A connection whose answer has begun, and the answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    return connection, connection.getresponse()


def test_kill_9_under_32_streams():
    with serving(max_running=40, max_context=2048) as server, server.door(server.app()) as url:
        begun = threading.Barrier(33, timeout=60)

        def read(_):
            connection, answer = open_stream(url, LONG)
            assert answer.status == 200
            answer.readline()
            begun.wait()
            rest = answer.read().decode()  # until the server ends it: an early end would be an IncompleteRead
            connection.close()
            return rest

        with ThreadPoolExecutor(32) as pool:
            ends = [pool.submit(read, n) for n in range(32)]
            begun.wait()
            os.kill(server.engine.info.pid, signal.SIGKILL)
            killed = time.monotonic()
            wait_for(lambda: ask(url, path="/ready")[0] == 503, 2)
            assert ask(url, path="/health")[0] == 200
            status, _, data = ask(url, "POST", "/v1/completions", {"prompt": "The", "max_tokens": 2})
            back = time.monotonic() - killed
            for end in ends:
                *_, failure, done = [line for line in end.result(10).splitlines() if line.startswith("data: ")]
                assert done == "data: [DONE]"
                assert "the engine died" in json.loads(failure[6:])["error"]["message"]
        print(f"a new request was answered {back:.1f} s after the kill")
        assert status == 200, data
        assert back < 15  # 5 s on an idle machine; tests share it
        assert ask(url, path="/ready")[0] == 200
        assert b"tiefsee:engine_restarts_total" in ask(url, path="/metrics")[2]


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def test_ranks_serve_and_the_death_of_one_is_survived(server, url):
    """Two ranks answer as one does. When a follower is killed in mid-stream the engine ends with its reason, and the
    next one is up soon after, with a follower of its own."""
    asked = {"prompt": "The", "max_tokens": 20, "temperature": 0}
    needed = json.loads(ask(url, "POST", "/v1/completions", asked)[2])["choices"][0]["text"]
    with serving(tp=2, max_context=2048) as shared, shared.door(shared.app()) as url_of_ranks:
        status, _, data = ask(url_of_ranks, "POST", "/v1/completions", asked)
        assert (status, json.loads(data)["choices"][0]["text"]) == (200, needed)
        first = shared.engine.info.pid
        (follower,) = children_of(first)
        connection, answer = open_stream(url_of_ranks, LONG)
        answer.readline()
        os.kill(follower, signal.SIGKILL)
        assert f"rank 1 (process {follower}) ended with status -9" in answer.read().decode()
        connection.close()
        status, _, data = ask(url_of_ranks, "POST", "/v1/completions", asked)
        assert (status, json.loads(data)["choices"][0]["text"]) == (200, needed)
        second = shared.engine.info.pid
        followers = children_of(second)
        assert second != first
        assert len(followers) == 1
        os.kill(second, signal.SIGKILL)
        wait_for(lambda: not os.path.exists(f"/proc/{followers[0]}"))


def test_one_who_does_not_read_holds_up_nobody(server, url):
    parts = urlsplit(url)
    body = json.dumps({**LONG, "logprobs": 20})
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((parts.hostname, parts.port))
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        lazy.sendall(f"{head}\r\n\r\n{body}".encode())
        wait_for(lambda: server.engine.stats.num_running)
        for _ in range(3):
            status, _, data = ask(url, "POST", "/v1/completions", {"prompt": "A king", "max_tokens": 20})
            assert status == 200
            assert json.loads(data)["usage"]["completion_tokens"] == 20
    wait_for(lambda: not server.engine.stats.num_running)


def test_a_deadline(url, server):
    status, _, data = ask(url, "POST", "/v1/completions", {**LONG, "stream": False, "deadline_s": 0.3})
    assert status == 504
    assert "deadline" in json.loads(data)["error"]["message"]
    wait_for(lambda: not server.engine.stats.num_running)


def test_too_many_are_told_when_to_come_back(server):
    """Capacity is the engine's; one may wait; the next are refused with a hint, and all others are answered."""
    with server.door(server.app(queue=QueueLimits(max_waiting=1))) as url:
        body = {"prompt": "The", "max_tokens": 60, "ignore_eos": True, "n": 40}  # one fills the engine
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: ask(url, "POST", "/v1/completions", body), range(4)))
    codes = sorted(status for status, _, _ in answers)
    assert codes == [200, 200, 429, 429]
    for status, headers, data in answers:
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert json.loads(data)["error"]["code"] == "rate_limit_exceeded"


def test_a_key_has_its_rate(server, tmp_path):
    key, lines = new_key("team")
    (tmp_path / "keys.toml").write_text(lines + "requests_per_minute = 2")
    with server.door(server.app(keys=read_keys(tmp_path / "keys.toml"))) as url:
        body = {"prompt": "The", "max_tokens": 1}
        found = [ask(url, "POST", "/v1/completions", body, x_api_key=key) for _ in range(3)]
    assert [status for status, _, _ in found] == [200, 200, 429]
    assert 25 <= int(found[-1][1]["retry-after"]) <= 31


# ------------------------------------------------------------------------------- the command


def start(*arguments, **environment):
    command = [sys.executable, "-m", "tiefsee", "serve", "--port", "0", *arguments]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def address(process):
    """The URL that a starting server names, once it is ready."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "ready:" in line:
            return re.search(r"(http://[\w.:]+) is open", "".join(lines))[1]
    raise AssertionError("".join(lines))


def test_sigterm_lets_answers_finish():
    process = start("--max-context", "1024", "--max-running", "4")
    try:
        url = address(process)
        connection, answer = open_stream(url, {**LONG, "max_tokens": 150})
        answer.readline()
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: refused(url), 5)
        assert answer.read().rstrip().endswith(b"data: [DONE]")
        connection.close()
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_loads_is_no_error(number):
    process = start("--max-context", "1024")
    try:
        for line in process.stderr:
            if "is open" in line:
                break
        engines = children(process.pid)
        process.send_signal(number)
        assert process.wait(20) in (0, 130)
        assert "Traceback" not in process.stderr.read()
        assert not any(os.path.exists(f"/proc/{pid}") for pid in engines)
    finally:
        process.kill()


def refused(url):
    """Whether a new request is turned away: 503, or no door any more."""
    try:
        return ask(url, "POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 503
    except OSError:
        return True


def test_ctrl_c_leaves_no_process():
    process = start("--max-context", "1024")
    try:
        url = address(process)
        open_stream(url, LONG)
        engines = children(process.pid)
        assert engines
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # the second does not wait for the stream
        assert process.wait(20) in (0, 130)
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in engines))
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["no/such/model"], {}, "no/such/model"),
        (["--keys", "/no/such/file"], {}, "cannot be read"),
        (["--tls-key", "/no/such/file"], {}, "needed are both"),
        (["--tls-key", __file__, "--tls-certificate", __file__], {}, "no certificate with its key"),
        (["--deadline", "-1"], {}, "--deadline is -1"),
        (["--dtype", "float3"], {}, "dtype is 'float3'"),
        (["--chat-format", "v9"], {}, "chat format is 'v9'"),
        (["--host", "203.0.113.7"], {}, "cannot listen"),
        ([], {"TIEFSEE_API_KEY": "short"}, "at least 16"),
        (["--log-format", "xml"], {}, "text or json"),
        (["--salt-per-key"], {}, "there are no keys"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(arguments, environment, words):
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not out


def test_a_public_door_without_a_key_warns():
    process = start("--host", "0.0.0.0", "--max-context", "256")
    try:
        url = address_of_any(process)
        assert ask(url, path="/health")[0] == 200
    finally:
        process.terminate()
        process.wait(20)


def address_of_any(process):
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "is open" in line:
            break
    assert any("WARNING" in line and "no key" in line for line in lines)
    return "http://127.0.0.1:" + re.search(r"http://0.0.0.0:(\d+)", lines[-1])[1]


def test_a_new_key_is_shown_once():
    done = subprocess.run(
        [sys.executable, "-m", "tiefsee", "serve", "--new-key", "team"], capture_output=True, text=True, check=True
    )
    key = re.search(r"tsk-\S+", done.stderr)[0]
    assert key not in done.stdout
    assert done.stdout.startswith("[[key]]")
