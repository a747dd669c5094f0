"""`tiefsee serve --device npu`: a real client, streams side by side, a killed engine, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.ascend.test_door import ON_HARDWARE, PROMPT, emulates, has_torch_npu, needs_bundled, tiefsee
from tests.fakecann import environment
from tests.serve.test_door import ask, wait_for
from tests.serve.test_lives import LONG, address, children, open_stream, start

pytestmark = [
    has_torch_npu, needs_bundled, pytest.mark.skipif(os.environ.get("FAKECANN_SOC") == "Ascend950", reason="as 910"),
]  # fmt: skip
if not ON_HARDWARE:
    pytestmark.append(emulates)


def card() -> dict[str, str]:
    """The environment of a process that sees a card: this machine's, or an emulated one."""
    return dict(os.environ) if ON_HARDWARE else environment(device_bytes=4_000_000_000)


@pytest.fixture(scope="module")
def server():
    process = start("--device", "npu", "--max-context", "2048", "--max-running", "4", **card())
    try:
        yield process, address(process)
    finally:
        process.kill()
        process.wait(20)


def test_a_real_client_reads_a_stream(server):
    openai = pytest.importorskip("openai")
    words, prompt = {"temperature": 0, "max_tokens": 8}, PROMPT[0]
    with openai.OpenAI(base_url=f"{server[1]}/v1", api_key="unused", max_retries=0) as client:
        model = client.models.list().data[0].id
        chunks = list(client.completions.create(model=model, prompt=prompt, stream=True, **words))
        whole = client.completions.create(model=model, prompt=prompt, **words)
        chat = client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}], **words)
    text = "".join(c.choices[0].text for c in chunks if c.choices)
    assert len(chunks) > 3  # it came in pieces
    assert text == whole.choices[0].text
    assert whole.usage.completion_tokens == 8
    assert chat.choices[0].finish_reason == "length"
    if not ON_HARDWARE:  # kernels may break a tie otherwise
        assert tiefsee("run", *PROMPT, "--device", "npu", **card()).stdout.strip() == prompt + text


def test_streams_side_by_side(server):
    """More than run at once: all end, and equal prompts have equal answers."""

    def read(number):
        connection, answer = open_stream(server[1], {**LONG, "prompt": f"The {number % 2}", "max_tokens": 12})
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("data: {")]
        connection.close()
        return "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines)

    with ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(read, range(6)))
    assert all(texts)
    assert len(set(texts[::2])) == len(set(texts[1::2])) == 1


def test_a_killed_engine_is_told_and_comes_back(server):
    process, url = server
    (engine,) = children(process.pid)
    connection, answer = open_stream(url, LONG)
    answer.readline()
    os.kill(engine, signal.SIGKILL)
    *_, failure, done = [line for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    connection.close()
    assert done == "data: [DONE]"
    assert "the engine died" in json.loads(failure[6:])["error"]["message"]
    assert ask(url, path="/health")[0] == 200
    status, _, data = ask(url, "POST", "/v1/completions", {"prompt": "The", "max_tokens": 2})
    assert status == 200, data
    assert children(process.pid) != [engine]


def test_ctrl_c_ends_it_and_frees_the_card():
    process = start("--device", "npu", "--max-context", "1024", **card())
    try:
        url = address(process)
        open_stream(url, LONG)
        engines = children(process.pid)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # the second does not wait for the stream
        assert process.wait(20) in (0, 130)
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in engines))
        assert time.monotonic() - begun < 20
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
