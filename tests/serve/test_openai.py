"""The door through OpenAI's own package."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.serve.same import assert_same
from tiefsee import Sampling
from tiefsee.text.bodies import read_chat
from tiefsee.text.encoding_v4 import V4Format

MODEL = "tiefsee-demo"
HELLO = [{"role": "user", "content": "Say hello."}]
QUIET = {"thinking": {"type": "disabled"}}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
    }},
}  # fmt: skip


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert model.max_model_len == 2048
    assert client.models.retrieve(MODEL).chat is True
    with pytest.raises(openai.NotFoundError, match="there is tiefsee-demo"):
        client.models.retrieve("gpt-9")


def test_a_completion_is_what_the_engine_says(client, llm):
    ids = llm.core.tokenizer.encode("Once upon a time")
    needed = llm.generate([ids], Sampling(temperature=0, max_tokens=24))[0]
    found = client.completions.create(model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=24)
    assert found.choices[0].text == needed.text
    assert found.choices[0].finish_reason == needed.finish_reason
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(ids), len(needed.token_ids))
    from_ids = client.completions.create(model=MODEL, prompt=ids, temperature=0, max_tokens=24)
    assert from_ids.choices[0].text == needed.text


def test_several_prompts_and_answers(client):
    options = {"model": MODEL, "temperature": 0.9, "seed": 3, "max_tokens": 5, "n": 2}
    both = client.completions.create(prompt=["The sea", "A king"], **options)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    alone = client.completions.create(prompt="A king", **options)
    assert [c.text for c in both.choices[2:]] == [c.text for c in alone.choices]
    assert both.usage.completion_tokens == 20
    texts = {}
    for chunk in client.completions.create(prompt=["The sea", "A king"], stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert [texts[i] for i in range(4)] == [c.text for c in both.choices]


def test_logprobs_of_a_completion(client, llm):
    found = client.completions.create(model=MODEL, prompt="The sea", temperature=0, max_tokens=4, logprobs=3)
    logprobs = found.choices[0].logprobs
    assert "".join(logprobs.tokens) == found.choices[0].text
    assert [len(top) for top in logprobs.top_logprobs] == [3] * 4
    assert logprobs.text_offset[0] == 0
    both = zip(logprobs.top_logprobs, logprobs.token_logprobs, strict=True)
    assert all(max(t.values()) == pytest.approx(p) for t, p in both)


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_probabilities_of_a_prompt(client, llm, stream):
    """What evaluation harnesses ask for: echo, logprobs, and no token or one."""
    prompt = "The sea was dark and"
    for max_tokens in (0, 2):
        made = client.completions.create(
            model=MODEL, prompt=prompt, temperature=0, max_tokens=max_tokens, echo=True, logprobs=2, stream=stream
        )
        chunks = [chunk.choices[0] for chunk in made if chunk.choices] if stream else [made.choices[0]]
        text = "".join(chunk.text for chunk in chunks)
        tokens, logprobs, offsets, tops = (
            [item for chunk in chunks for item in getattr(chunk.logprobs, name)]
            for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs")
        )
        answer = llm.generate(prompt, Sampling(temperature=0, max_tokens=2, prompt_logprobs=2, logprobs=2))
        expected = [*answer.prompt_logprobs, *answer.logprobs[:max_tokens]]
        assert len(tokens) == len(logprobs) == len(tops) == len(expected)
        assert logprobs[0] is None
        assert tops[0] is None
        assert logprobs[1:] == pytest.approx([item.logprob for item in expected[1:]], abs=1e-4)
        assert text.startswith(prompt) if max_tokens else text == prompt
        for token, offset in zip(tokens, offsets, strict=True):
            assert text[offset:].startswith(token) or token.startswith("<｜")


def test_echo(client):
    found = client.completions.create(model=MODEL, prompt="The sea", temperature=0, max_tokens=3, echo=True)
    assert found.choices[0].text.startswith("The sea")


def chat(client, **options):
    return client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, **options)


@pytest.mark.parametrize("thinking", [True, False])
def test_a_chat_answer_is_what_the_engine_says(client, llm, thinking):
    extra = {} if thinking else QUIET
    prompt = V4Format().render(read_chat({"messages": HELLO}).messages, thinking=thinking)
    ids = prompt.token_ids(llm.core.tokenizer)
    needed = llm.generate([ids], Sampling(temperature=0, max_tokens=16))[0]
    found = chat(client, max_completion_tokens=16, extra_body=extra)
    message = found.choices[0].message
    assert (message.reasoning_content if thinking else message.content).strip() == needed.text.strip()
    assert found.choices[0].finish_reason == "length"
    assert found.usage.prompt_tokens == len(ids)
    assert found.usage.completion_tokens_details.reasoning_tokens == (16 if thinking else 0)


def test_a_stream_says_the_same(client):
    whole = chat(client, max_tokens=16, extra_body=QUIET, n=2)
    chunks = list(
        chat(client, max_tokens=16, extra_body=QUIET, n=2, stream=True, stream_options={"include_usage": True})
    )
    texts, endings = ["", ""], [None, None]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            endings[choice.index] = choice.finish_reason or endings[choice.index]
    assert texts == [c.message.content for c in whole.choices]
    assert endings == ["length", "length"]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {c.choices[0].delta.role for c in chunks if c.choices and c.choices[0].delta.role} == {"assistant"}
    assert len({chunk.id for chunk in chunks}) == 1


def test_logprobs_of_a_chat(client):
    found = chat(client, max_tokens=4, logprobs=True, top_logprobs=2)
    items = found.choices[0].logprobs.content
    assert len(items) == 4
    assert all(item.top_logprobs[0].logprob >= item.logprob for item in items)
    streamed = []
    for chunk in chat(client, max_tokens=4, logprobs=True, top_logprobs=2, stream=True):
        if chunk.choices and chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [item.token for item in streamed] == [item.token for item in items]


def test_stop_seed_bias_and_penalties_arrive(client):
    free = chat(client, max_tokens=12, extra_body=QUIET).choices[0].message.content
    word = free.split()[2]
    stopped = chat(client, max_tokens=12, stop=[word], extra_body=QUIET).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == free.partition(word)[0]
    one, two = (
        client.completions.create(model=MODEL, prompt="The", temperature=1.2, seed=5, max_tokens=9).choices[0].text
        for _ in range(2)
    )
    assert one == two
    biased = client.completions.create(model=MODEL, prompt="The", max_tokens=4, temperature=0, logit_bias={"300": 100})
    assert len(set(biased.choices[0].text.split())) == 1


def test_cached_tokens_are_told(client):
    prompt = list(range(300, 900))
    for needed in (0, 512):
        found = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1, temperature=0)
        assert found.usage.prompt_tokens_details.cached_tokens == needed


def test_a_tool_that_must_be_called(client):
    found = client.chat.completions.create(
        model=MODEL, messages=HELLO, tools=[TOOL], tool_choice="required", max_tokens=200, temperature=1.0, seed=1,
        extra_body=QUIET,
    )  # fmt: skip
    choice = found.choices[0]
    if choice.finish_reason != "length":
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls[0].function.name == "weather"


def test_same_answers_alone_and_among_32_others(client, llm):
    """Greedy and float32, through HTTP and directly: differences only where two tokens are within 1e-3."""
    prompts = [llm.core.tokenizer.encode(text) for text in TEXTS]
    needed = llm.generate(prompts, Sampling(temperature=0, max_tokens=24, logprobs=2))
    with ThreadPoolExecutor(33) as pool:
        found = list(pool.map(lambda ids: streamed(client, ids), prompts))
    near_ties = sum(assert_same(f, n) for f, n in zip(found, needed, strict=True))
    print(f"{near_ties} of {len(prompts)} answers parted at a near tie")
    assert near_ties <= 2


def streamed(client, ids):
    tokens = []
    options = {"temperature": 0, "max_tokens": 24, "stream": True, "extra_body": {"return_token_ids": True}}
    for chunk in client.completions.create(model=MODEL, prompt=ids, **options):
        for choice in chunk.choices:
            tokens += choice.token_ids
    return tokens


STARTS = ("The old man", "A ship", "In the garden", "When the king", "She said", "The sea", "Tom", "It was")
TEXTS = [f"{start} {end}" for start in STARTS for end in ("was", "had never", "and the", "could not")] + ["Once"]


def test_the_responses_protocol(client):
    options = {"model": MODEL, "input": "Say hello.", "temperature": 0, "max_output_tokens": 12}
    whole = client.responses.create(**options, reasoning={"effort": "none"})
    assert whole.status == "incomplete"
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage.output_tokens == 12
    events = list(client.responses.create(**options, reasoning={"effort": "none"}, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == whole.output_text
    assert [e.type for e in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].response.output_text == text
    with pytest.raises(openai.BadRequestError, match="keeps no responses"):
        client.responses.create(**options, previous_response_id="resp_1")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": HELLO, "max_tokens": "many"}, "max_tokens: expected `int"),
        ({"messages": HELLO, "temperature": -1}, "temperature"),
        ({"messages": HELLO, "top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"messages": HELLO, "chat_template": "{{ 1 }}"}, "not executed"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "image"),
        ({"messages": HELLO, "n": 200}, "n: expected"),
        ({"messages": HELLO, "logit_bias": {"a": 1}}, "token ids as keys"),
    ],
)  # fmt: skip
def test_bad_requests_say_what_was_found(client, body, words):
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.body["type"] == "invalid_request_error"


def test_a_prompt_that_is_too_long(client):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="holds 2048 in all") as caught:
            client.completions.create(model=MODEL, prompt=[300] * 3000, stream=stream)
        assert caught.value.code == "context_length_exceeded"


def test_unknown_models_and_paths(client):
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.NotFoundError, match="there is nothing at /v1/embeddings"):
        client.embeddings.create(model=MODEL, input="x")
