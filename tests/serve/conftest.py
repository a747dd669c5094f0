"""One engine and one server for all tests of the door: they only differ in what they send."""

from __future__ import annotations

import pytest

from tests.serve.local import BUNDLED, serving
from tiefsee import LLM


@pytest.fixture(scope="package")
def llm():
    """The same model in this process: what the server's answers are compared with."""
    return LLM(BUNDLED, dtype="float32", max_running=40, max_context=2048)


@pytest.fixture(scope="package")
def server():
    with serving(max_running=40, max_context=2048) as found:
        yield found


@pytest.fixture(scope="package")
def url(server):
    with server.door(server.app()) as address:
        yield address


@pytest.fixture(scope="package")
def client(url):
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as found:
        yield found


@pytest.fixture(scope="package")
def claude(url):
    import anthropic

    with anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0) as found:
        yield found
