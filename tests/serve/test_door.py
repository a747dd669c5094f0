"""What the door does to every request: keys, limits, methods, browsers, people who hang up, figures."""

from __future__ import annotations

import gc
import hashlib
import http.client
import json
import socket
import time
from collections import Counter
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tiefsee.errors import ConfigError
from tiefsee.serve.app import DoorOptions
from tiefsee.serve.keys import new_key, read_keys
from tiefsee.serve.stream import Call
from tiefsee.serve.tracing import OpenTelemetry

MODEL = "tiefsee-demo"
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "


def ask(url, method="GET", path="/", body=None, **headers):
    """(status, headers, body) of one request; a dictionary is sent as JSON."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    raw = json.dumps(body).encode() if isinstance(body, dict | list) else body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, raw, {"content-type": "application/json", **named})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, data


def error(data):
    return json.loads(data)["error"]["message"]


def test_probes(url):
    assert ask(url, path="/health")[0] == 200
    assert json.loads(ask(url, path="/ready")[2]) == {"status": "ready"}
    assert set(json.loads(ask(url, path="/version")[2])) == {"version"}
    assert json.loads(ask(url, path="/server_info")[2])["model_path"] == MODEL
    assert ask(url, "HEAD", "/health")[2] == b""


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/nothing", None, 404, "nothing at /nothing"),
        ("GET", "/v1/completions", None, 405, "use POST"),
        ("POST", "/v1/models", {}, 405, "use GET"),
        ("DELETE", "/v1/completions", None, 405, "use POST"),
        ("POST", "/v1/completions", b"{", 400, "the body is not JSON"),
        ("POST", "/v1/completions", b"\xff\xfe", 400, "the body is not JSON"),
        ("POST", "/v1/completions", b"[" * 100_000, 400, "the body is not JSON"),
        ("POST", "/v1/completions", [1], 400, "needed is an object"),
        ("POST", "/v1/completions", {}, 400, "prompt"),
        ("POST", "/v1/completions", {"prompt": []}, 400, "prompt is empty"),
        ("POST", "/v1/completions", {"prompt": [[1], "a", {}]}, 400, "needed are texts"),
        ("POST", "/v1/completions", {"prompt": [10**9]}, 400, "vocabulary"),
        ("POST", "/v1/completions", {"prompt": "x", "seed": 2**70}, 400, "seed"),
        ("POST", "/v1/completions", {"prompt": "x", "suffix": "y"}, 400, "suffix"),
        ("POST", "/detokenize", {"tokens": [10**6]}, 400, "vocabulary"),
        ("POST", "/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("POST", "/tokenize", {}, 400, "send one of them"),
    ],
)
def test_refusals(url, method, path, body, status, words):
    found, headers, data = ask(url, method, path, body)
    assert found == status
    assert words in error(data)
    assert set(json.loads(data)["error"]) == {"message", "type", "param", "code"}
    assert headers["x-request-id"]


def test_a_body_that_is_not_json_by_its_own_word(url):
    assert ask(url, "POST", "/tokenize", b"a=1", content_type="application/x-www-form-urlencoded")[0] == 415


def test_tokens_there_and_back(url):
    text = "The sea, the sea! Käse 水"
    found = json.loads(ask(url, "POST", "/tokenize", {"prompt": text, "add_special_tokens": False})[2])
    assert found["count"] == len(found["tokens"])
    assert json.loads(ask(url, "POST", "/detokenize", {"tokens": found["tokens"]})[2])["prompt"] == text
    messages = [{"role": "user", "content": text}]
    rendered = json.loads(ask(url, "POST", "/v1/chat/completions/render", {"messages": messages})[2])
    assert json.loads(ask(url, "POST", "/tokenize", {"messages": messages})[2])["tokens"] == rendered["token_ids"]
    assert text in rendered["prompt"]


def test_request_ids_are_kept_if_harmless(url):
    assert ask(url, path="/health", x_request_id="abc-1")[1]["x-request-id"] == "abc-1"
    assert ask(url, path="/health", x_request_id="a b")[1]["x-request-id"] != "a b"


def test_large_bodies_and_headers(server):
    with server.door(server.app(None, door=DoorOptions(max_body_bytes=1000, max_header_bytes=2000))) as url:
        assert ask(url, "POST", "/v1/completions", {"prompt": "x" * 2000})[0] == 413
        assert ask(url, path="/health", x_long="y" * 3000)[0] == 431
        assert ask(url, path="/health")[0] == 200


def test_a_base_model_does_not_chat(server):
    with server.door(server.app(None)) as url:
        status, _, data = ask(url, "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        assert status == 400
        assert "base model" in error(data)
        assert json.loads(ask(url, path="/v1/models")[2])["data"][0]["chat"] is False


def test_keys(server, tmp_path):
    key, lines = new_key("team-a")
    (tmp_path / "keys.toml").write_text(lines)
    keys = read_keys(tmp_path / "keys.toml", ("0123456789abcdefXYZ",), salted=True)
    salts = {caller.salt for _, caller in keys.callers}
    assert len(salts) == 2
    assert None not in salts
    with server.door(server.app(None, keys)) as url:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {key}"}, {"x_api_key": "é"}):
            status, headers, data = ask(url, path="/v1/models", **header)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert key not in data.decode()
        for header in ({"authorization": f"Bearer {key}"}, {"x_api_key": key}, {"x_api_key": "0123456789abcdefXYZ"}):
            assert ask(url, path="/v1/models", **header)[0] == 200
        assert ask(url, path="/metrics")[0] == 401
        for path in ("/health", "/ready", "/version"):
            assert ask(url, path=path)[0] == 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"no \[\[key\]\]"),
        ("[[key", "cannot be read"),
        ('[[key]]\nname = "a"\nsha256 = "12"', "64 hex digits"),
        ('[[key]]\nname = "a"\nsha256 = "%s"\ncolour = 1' % ("0" * 64), "colour"),
        ('[[key]]\nname = "a"\nsha256 = "%s"\n' % ("0" * 64) * 2, "twice"),
    ],
)
def test_bad_key_files(tmp_path, text, words):
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_keys(tmp_path / "keys.toml")
    with pytest.raises(ConfigError, match="at least 16"):
        read_keys(None, ("short",))


def test_a_key_is_told_by_its_hash_only():
    key, lines = new_key("x")
    assert key not in lines
    assert hashlib.sha256(key.encode()).hexdigest() in lines


def test_browsers_of_other_origins(server, url):
    assert "access-control-allow-origin" not in ask(url, path="/health", origin="https://a.example")[1]
    with server.door(server.app(None, door=DoorOptions(cors_origins=("https://a.example",)))) as other:
        assert ask(other, path="/health", origin="https://a.example")[1]["access-control-allow-origin"]
        assert "access-control-allow-origin" not in ask(other, path="/health", origin="https://b.example")[1]
        status, headers, _ = ask(other, "OPTIONS", "/v1/completions", origin="https://a.example")
        assert status == 204
        assert "POST" in headers["access-control-allow-methods"]


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_is_not_computed_for(url, server, stream):
    body = json.dumps({"model": MODEL, "prompt": "The", "max_tokens": 2000, "ignore_eos": True, "stream": stream})
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as line:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        line.sendall(f"{head}\r\n\r\n{body}".encode())
        wait_for(lambda: server.engine.stats.num_running)
    wait_for(lambda: not server.engine.stats.num_running)
    assert server.do(server.engine.ask_stats()).num_used_blocks == 0


def wait_for(condition, at_most_s=20.0):
    until = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_prompt_is_forgotten_at_once(url, stream):
    """Nothing of it waits in a ring of references for Python's full collection, which comes rarely."""
    gc.collect()
    gc.disable()
    try:
        for path, body in (
            ("/v1/completions", {"prompt": "sea " * 6_000}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "sea " * 6_000}]}),
            ("/v1/messages", {"messages": [{"role": "user", "content": "sea " * 6_000}], "max_tokens": 3}),
            ("/v1/responses", {"input": "sea " * 6_000}),
        ):
            assert ask(url, "POST", path, {**body, "stream": stream})[0] == 400
        wait_for(lambda: not any(type(thing) is Call for thing in gc.get_objects()))
    finally:
        gc.enable()


def test_figures_are_counted(url):
    def read():
        families = text_string_to_metric_families(ask(url, path="/metrics")[2].decode())
        found = Counter()
        for sample in (sample for family in families for sample in family.samples):
            found[sample.name] += sample.value
        return found

    before = read()
    ask(url, "POST", "/v1/completions", {"prompt": [300] * 7, "max_tokens": 5, "ignore_eos": True, "stream": True})
    after = read()
    grown = {name: after[name] - before[name] for name in after}
    assert grown["vllm:prompt_tokens_total"] == 7
    assert grown["vllm:generation_tokens_total"] == 5
    assert grown["vllm:time_to_first_token_seconds_count"] == 1
    assert grown["vllm:inter_token_latency_seconds_count"] == 4
    assert grown["vllm:e2e_request_latency_seconds_count"] == 1
    assert grown["vllm:request_success_total"] == 1
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        assert name in after


def test_the_log_tells_no_text(server, caplog):
    import logging

    logger = logging.getLogger("tiefsee")
    logger.propagate = True
    with caplog.at_level(logging.INFO, "tiefsee.serve"), server.door(server.app()) as url:
        ask(url, "POST", "/v1/completions", {"prompt": "secretword", "max_tokens": 2})
        ask(url, "POST", "/v1/completions", {"prompt": {"secretword": 1}})
    lines = [str(r.__dict__) for r in caplog.records]
    assert any("/v1/completions" in line for line in lines)
    assert not any("secretword" in line for line in lines)


def test_the_document_names_what_there_is(url):
    found = json.loads(ask(url, path="/openapi.json")[2])
    assert {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/models"} <= set(found["paths"])
    for path, operations in found["paths"].items():
        for method in operations:
            assert ask(url, method.upper(), path, {} if method == "post" else None)[0] in (200, 400)
    assert b"/v1/responses" in ask(url, path="/docs")[2]


def test_a_span_per_request(server):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with server.door(server.app(tracer=OpenTelemetry(provider))) as url:
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        ask(url, "POST", "/v1/completions", {"prompt": "x", "max_tokens": 1}, traceparent=parent)
        ask(url, path="/no/such/path")
        wait_for(lambda: len(spans.get_finished_spans()) == 2)
    first, second = spans.get_finished_spans()
    assert (first.name, first.attributes["http.response.status_code"]) == ("POST /v1/completions", 200)
    assert f"{first.context.trace_id:032x}" == parent[3:35]
    assert (second.name, second.attributes["http.response.status_code"]) == ("GET other", 404)
