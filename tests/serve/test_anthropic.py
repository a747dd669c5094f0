"""The door through Anthropic's own package."""

from __future__ import annotations

import anthropic
import pytest

MODEL = "tiefsee-demo"
HELLO = [{"role": "user", "content": "Say hello."}]
OPTIONS = {"model": MODEL, "messages": HELLO, "max_tokens": 16, "extra_body": {"temperature": 0}}
OFF = {"type": "disabled"}


def test_a_message(claude):
    found = claude.messages.create(**OPTIONS, thinking=OFF)
    assert [block.type for block in found.content] == ["text"]
    assert found.stop_reason == "max_tokens"
    assert found.usage.output_tokens == 16


def test_a_stream_says_the_same(claude):
    for thinking in (OFF, {"type": "enabled", "budget_tokens": 1024}):
        whole = claude.messages.create(**OPTIONS, thinking=thinking)
        with claude.messages.stream(**OPTIONS, thinking=thinking) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_message()
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        assert [b.to_dict() for b in final.content] == [b.to_dict() for b in whole.content]
        assert final.usage.output_tokens == whole.usage.output_tokens
        assert final.stop_reason == whole.stop_reason


def test_stop_sequences(claude):
    text = claude.messages.create(**OPTIONS, thinking=OFF).content[0].text
    word = text.split()[1]
    found = claude.messages.create(**OPTIONS, thinking=OFF, stop_sequences=[word])
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", word)
    assert word not in found.content[0].text


def test_counting_tokens(claude):
    counted = claude.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens
    used = claude.messages.create(**OPTIONS).usage
    assert counted == used.input_tokens + used.cache_read_input_tokens


def test_errors_have_anthropics_shape(claude):
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model=MODEL, messages=[], max_tokens=3)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(**{**OPTIONS, "model": "claude-9"})
