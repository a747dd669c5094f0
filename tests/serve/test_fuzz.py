"""Whatever is sent, the answer is sound: no 5xx, no traceback, errors in OpenAI's or Anthropic's shape.

`make fuzz` runs the same with 10,000 bodies.
"""

from __future__ import annotations

import http.client
import json
import os
from urllib.parse import urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.local import serving
from tiefsee.serve.app import GET, POST
from tiefsee.serve.openapi import describe

EXAMPLES = int(os.environ.get("TIEFSEE_FUZZ_EXAMPLES", "300"))


@pytest.fixture(scope="module")
def small_server():
    """A short context, so that no random request asks for a long answer."""
    with serving(max_running=8, max_context=48) as server:
        yield server


@pytest.fixture(scope="module")
def small_url(small_server):
    with small_server.door(small_server.app()) as address:
        yield address


NESTED: list = []
for _ in range(200):
    NESTED = [NESTED]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from([2**64, 10**30, NESTED]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NUMBER = st.sampled_from([0, 1, 2, -1, 0.5, 1.5, 1e308, 1e-300, 2**63, -(2**63) - 1, None, "1", True, [], {}])
TEXT = st.sampled_from(["", "x", "The sea", "\ud83d\ude00", "<｜User｜>", "</think>", "\x00", "a" * 300, "́"])
PART = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["text", "image_url", "tool_use", "", 3]), "text": TEXT | JSON}
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "system", "assistant", "tool", "developer", "", None, 5]),
        "content": TEXT | st.lists(PART, max_size=3) | JSON,
        "tool_calls": JSON, "reasoning_content": TEXT | JSON, "prefix": NUMBER, "tool_call_id": TEXT,
    },
)  # fmt: skip
SCHEMA = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "string", "array", "integer", "none", 4]), "properties": JSON, "items": JSON,
        "maxLength": NUMBER, "pattern": st.sampled_from(["a*", "(", "[", "\\d{1,3}", ""]), "$ref": TEXT, "enum": JSON,
    },
)  # fmt: skip
TOOL = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["function", "x"]), "name": TEXT, "input_schema": SCHEMA,
                  "function": st.fixed_dictionaries({}, optional={"name": TEXT, "parameters": SCHEMA | JSON})},
)  # fmt: skip
FORMAT = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["text", "json_object", "json_schema", "regex", "grammar", 1]),
                  "json_schema": st.fixed_dictionaries({}, optional={"name": TEXT, "schema": SCHEMA}),
                  "pattern": TEXT | st.just("(("), "grammar": TEXT},
)  # fmt: skip
NAMES = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
    "n", "max_tokens", "min_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "priority",
    "max_output_tokens", "echo", "stream_options",
)  # fmt: skip
BODY = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(MESSAGE | JSON, max_size=4) | JSON, "prompt": TEXT | st.lists(NUMBER, max_size=5) | JSON,
        "input": TEXT | st.lists(MESSAGE | JSON, max_size=3), "tokens": st.lists(NUMBER, max_size=4),
        "stop": TEXT | JSON, "stop_token_ids": st.lists(NUMBER, max_size=2),
        "tools": st.lists(TOOL, max_size=2) | JSON, "tool_choice": st.sampled_from(["auto", "none", "required", {}, 3]),
        "response_format": FORMAT | JSON, "structured_outputs": JSON, "logit_bias": JSON, "system": TEXT | JSON,
        "thinking": JSON, "reasoning_effort": TEXT, "model": st.sampled_from(["tiefsee-demo", "x", 3, None]),
        "stream": st.booleans(), **dict.fromkeys(NAMES, NUMBER),
    },
)  # fmt: skip
PATHS = st.sampled_from(sorted(POST))


class Line:
    """One kept connection; opened again when the server closes it."""

    def __init__(self, server, url):
        self.server, self.place, self.connection = server, urlsplit(url).netloc, None

    def post(self, path, raw):
        for attempt in (0, 1):
            if self.connection is None:
                self.connection = http.client.HTTPConnection(self.place, timeout=60)
            try:
                self.connection.request("POST", path, raw, {"content-type": "application/json"})
                answer = self.connection.getresponse()
                found = answer.status, answer.getheader("content-type", ""), answer.read()
                assert not self.server.engine.num_deaths, "this request ended the engine process"
                return found
            except (http.client.HTTPException, ConnectionError):
                self.connection.close()
                self.connection = None
                assert attempt == 0, "the server hung up twice"
        raise AssertionError


@pytest.fixture(scope="module")
def line(small_server, small_url):
    return Line(small_server, small_url)


def check(status, kind, data):
    """A sound answer: 2xx, or a 4xx with the shape that clients parse. Streams end as they should."""
    assert status < 500, data
    assert b"Traceback" not in data
    if status >= 400:
        failure = json.loads(data)["error"]
        assert isinstance(failure["message"], str)
        assert len(failure["message"]) > 5
    elif kind.startswith("text/event-stream"):
        last = data.rstrip().rsplit(b"\n\n", 1)[-1]
        assert any(word in last for word in (b"[DONE]", b"message_stop", b"response.completed", b"response.incomplete"))
    else:
        json.loads(data)


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(path=PATHS, body=BODY)
def test_bodies_of_the_right_shape(line, path, body):
    check(*line.post(path, json.dumps(body).encode()))


@settings(max_examples=max(50, EXAMPLES // 6), suppress_health_check=list(HealthCheck))
@given(path=PATHS, raw=st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()))
def test_bodies_of_any_shape(line, path, raw):
    check(*line.post(path, raw))


schema = schemathesis.openapi.from_dict(describe())


@schema.parametrize()
@settings(max_examples=max(15, EXAMPLES // 20), suppress_health_check=list(HealthCheck))
def test_the_document_is_kept(case, small_url):
    if case.path in POST or case.path in GET:
        answer = case.call(base_url=small_url, timeout=120)  # n may be 128
        assert answer.status_code < 500 or answer.status_code == 504, answer.text  # its own deadline_s
        assert str(answer.status_code) in case.operation.definition.raw["responses"], answer.text
