"""Moves of every kind, again and again: the text is that of a request that stayed. And who hears what of a move."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_transfer import (
    CHUNK,
    GREEDY,
    SAMPLED,
    Wide,
    assert_unchanged,
    begin,
    engine,
    finish,
    is_clean,
    move,
)
from tests.tiny import FAMILIES, prompt, tiny_llm, tiny_network, tiny_spec
from tiefsee import LLM, Engine, Sampling
from tiefsee.engine import Constraint
from tiefsee.engine.moved import Moved, MovedDrafts
from tiefsee.errors import MovedAlready, MoveDamaged, MoveMismatch, NoRoom
from tiefsee.model import Network

# Engines that are unlike in all that may be unlike.
ENGINES = (
    {},
    {"cache_layout": "apart", "max_context": 700, "max_step_tokens": 77, "max_draft": 0, "max_running": 3},
    {"cache_layout": "block-first", "enable_prefix_cache": False, "max_step_tokens": 512, "num_blocks": 7},
    {"max_draft": 1, "max_step_tokens": 40, "snapshot_every": 1, "max_running": 2},
)
SAMPLINGS = (
    GREEDY,
    SAMPLED,
    replace(SAMPLED, logprobs=3, min_tokens=10, max_tokens=30, stop_token_ids=(5, 7, 9), repetition_penalty=1.2),
    replace(SAMPLED, presence_penalty=0.5, top_k=20, min_p=0.02, seed=-3, ignore_eos=False),
)


@pytest.fixture(scope="module")
def pairs(device):
    """family -> the same weights on two devices."""
    found = {}
    for family in FAMILIES:
        one = tiny_network(family, device=device)
        other = Network(tiny_spec(family), Wide()).to(device).eval().requires_grad_(False)
        other.load_state_dict(one.state_dict())
        found[family] = one, other
    return found


def built(pair, index):
    """The index-th engine, on one of the two devices in turn."""
    network = pair[index % 2]
    options = dict(ENGINES[index])
    if not network.mtp:
        options.pop("max_draft", None)
    return engine(network, **options)


# More of them: TIEFSEE_MOVES=300 pytest tests/engine/test_moves.py
@settings(max_examples=int(os.environ.get("TIEFSEE_MOVES", "12")))
@given(
    family=st.sampled_from(FAMILIES), length=st.sampled_from([1, 2, 3, 130, 255, 256, 257, 300, 513]),
    sampling=st.sampled_from(SAMPLINGS), seed=st.integers(0, 3),
    route=st.lists(st.tuples(st.integers(0, 5), st.integers(0, len(ENGINES) - 1)), min_size=1, max_size=5),
    beside=st.booleans(),
)  # fmt: skip
def test_wherever_it_goes_it_says_the_same(pairs, family, length, sampling, seed, route, beside):
    """Up to five moves, at any time, between any of four engines (or within one), alone or beside another request.
    Where there is no room it goes on where it was."""
    pair = pairs[family]
    needed = tiny_llm(pair[0]).generate(prompt(length, seed), sampling)
    cores = [built(pair, i) for i in range(len(ENGINES))]
    here = cores[0]
    now = begin(here, prompt(length, seed), sampling)
    others = [begin(core, prompt(40, 9), GREEDY) for core in cores] if beside else []
    for steps, target in route:
        for _ in range(steps):
            if here.has_work() and now.finish_reason is None:
                here.step()
        if now.finish_reason is not None:
            break
        try:
            now = move(here, now, cores[target])
            here = cores[target]
        except NoRoom:
            here.resume(now.request.request_id)
    for core in cores:
        finish(core)
    assert tuple(now.token_ids) == needed.token_ids
    assert now.completion().finish_reason == needed.finish_reason
    if sampling.logprobs is not None:
        assert [t.token_id for t in now.logprobs] == list(needed.token_ids)
        for found, due in zip(now.logprobs, needed.logprobs, strict=True):
            assert abs(found.logprob - due.logprob) < 1e-3
    if others:
        due = tiny_llm(pair[0]).generate(prompt(40, 9), GREEDY).token_ids
        assert all(tuple(g.token_ids) == due for g in others)
    assert all(is_clean(core) for core in cores)


# --------------------------------------------------------------------------------- text and constraints


@pytest.fixture(scope="module")
def texts():
    """Two engines on the bundled model, drafts included."""
    options = {"dtype": "float32", "max_context": 512, "max_running": 4}
    cores = tuple(LLM("tiefsee-demo", **options, cache_layout=layout).core for layout in ("rows", "apart"))
    for core in cores:
        core.draft_length.choose = lambda num_requests: 2
    return cores


TEXTS = {
    "a stop string in pieces": Sampling(temperature=0.8, seed=3, max_tokens=24, stop=(" and the", "e was a very")),
    "a stop string kept": Sampling(temperature=0.8, seed=4, max_tokens=40, stop=(" of ",), include_stop=True),
    "not before 12 tokens": Sampling(temperature=0.8, seed=3, max_tokens=24, stop=("e", " t"), min_tokens=12),
    "a regular expression": Sampling(
        temperature=1.2, seed=4, max_tokens=60, constraint=Constraint("regex", "[a-f]{9}-[0-9]{8}")
    ),
    "a schema": Sampling(
        temperature=1.1, seed=5, max_tokens=120, logprobs=2,
        constraint=Constraint("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}, "b": '
                              '{"type": "boolean"}}, "required": ["a", "b"], "additionalProperties": false}'),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_the_same_whenever_it_moves(texts, name):
    """A move after each single step, so that stop strings are half matched and characters half written."""
    here, there = texts
    tokens, sampling = LLM.on(here).encode("Once upon a time, an Ünïcode wolf 狼"), TEXTS[name]
    needed = LLM.on(here).generate(tokens, sampling)
    steps = 0
    while True:
        told, source = [], here
        (now,) = source.add(tokens, sampling, lambda index, delta, told=told: told.append(delta.text))
        for _ in range(steps):
            if now.finish_reason is None:
                source.step()
        if now.finish_reason is not None:
            break
        heard = []
        second = move(source, now, there, heard)
        finish(there)
        assert (tuple(second.token_ids), second.text) == (needed.token_ids, needed.text), steps
        assert "".join([*told, *(d.text for d in heard)]) == needed.text, steps
        assert second.finish_reason == needed.finish_reason
        steps += 1
    assert steps > 3


def test_back_and_forth_with_every_step(texts):
    here, there = texts
    sampling = replace(TEXTS["a schema"], n=1)
    tokens = LLM.on(here).encode("A:")
    needed = LLM.on(here).generate(tokens, sampling)
    now = begin(here, tokens, sampling, 1)
    while now.finish_reason is None:
        now = move(here, now, there)
        here, there = there, here
        here.step()
    assert (tuple(now.token_ids), now.text, now.finish_reason) == (
        needed.token_ids, needed.text, needed.finish_reason,
    )  # fmt: skip
    assert now.completion().logprobs is not None
    assert len(now.completion().logprobs) == len(needed.logprobs)


# ------------------------------------------------------------------------------------- who hears of it


def test_all_answers_of_a_prompt_hear_that_it_moved(pairs):
    """Before the prompt's end the siblings go along; whoever listens for them here must not wait for ever."""
    one, other = pairs["v3"]
    sampling = replace(SAMPLED, n=3)
    needed = [c.token_ids for c in tiny_llm(one).generate(prompt(500), sampling).completions]

    async def scenario():
        async with Engine(engine(one, max_step_tokens=8)) as here, Engine(engine(other)) as there:
            heard, said = [], [[], [], []]

            async def listen():
                async for index, delta in here.generate(prompt(500), sampling, name="a"):
                    heard.append((index, delta.finish_reason))

            task = asyncio.create_task(listen())
            while here.core.counters.steps < 2:
                await asyncio.sleep(0.002)
            moved = await here.export("a")
            answers = await there.admit(moved, name="b")
            await here.release("a")
            async for index, delta in answers:
                said[index] += delta.token_ids
            await asyncio.wait_for(task, 20)
            return heard, [tuple(s) for s in said]

    heard, said = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert sorted(heard) == [(0, "moved"), (1, "moved"), (2, "moved")]
    assert said == needed


def test_a_move_that_nobody_listens_to_is_dropped(pairs):
    """The answers of `admit` are closed without having been read: the request does not run on for nobody."""
    one, other = pairs["v3"]

    async def scenario():
        core = engine(other)
        async with Engine(engine(one)) as here, Engine(core) as there:
            stream = here.generate(prompt(300), replace(GREEDY, max_tokens=600), name="a")
            await anext(stream)
            answers = await there.admit(await here.export("a"))
            await answers.aclose()
            await here.resume("a")
            for _ in range(2000):
                if is_clean(core):
                    break
                await asyncio.sleep(0.002)
            assert is_clean(core)
            assert core.counters.generated_tokens < 500

    asyncio.run(asyncio.wait_for(scenario(), 120))


# ----------------------------------------------------------------------------------- once, and no more


def test_the_same_bytes_are_admitted_once(pairs):
    """A sender that heard no answer sends again: the request must not run twice here."""
    one, other = pairs["v4"]
    here, there = engine(one), engine(other)
    first = begin(here, prompt(300), SAMPLED, 4)
    data = here.export(first.request.request_id).to_bytes()
    second = there.admit(Moved.from_bytes(data), lambda index, delta: None)
    for _ in range(2):
        with pytest.raises(MovedAlready, match="was admitted here already"):
            there.admit(Moved.from_bytes(data), lambda index, delta: None)
        finish(there)
    assert len(there._generations) == 0
    here.release(first.request.request_id)
    assert tuple(second.token_ids) == tiny_llm(one).generate(prompt(300), SAMPLED).token_ids
    # It may come back, and go there again: those are other moves.
    again = begin(here, prompt(300), SAMPLED, 4)
    again = move(there, move(here, again, there), here)
    move(here, again, there)
    finish(there)


def test_refused_once_it_may_be_sent_again(pairs):
    """No room is no admission: the same bytes are taken later."""
    one, other = pairs["v3"]
    here, there = engine(one), engine(other, max_running=1)
    busy = begin(there, prompt(20), GREEDY, 1)
    first = begin(here, prompt(300), SAMPLED, 4)
    data = here.export(first.request.request_id).to_bytes()
    with pytest.raises(NoRoom, match="all 1 places"):
        there.admit(Moved.from_bytes(data), lambda index, delta: None)
    there.cancel(busy)
    second = there.admit(Moved.from_bytes(data), lambda index, delta: None)
    here.release(first.request.request_id)
    finish(there)
    assert tuple(second.token_ids) == tiny_llm(one).generate(prompt(300), SAMPLED).token_ids


RECEIVER = """
import sys
from tests.engine.test_transfer import engine
from tests.tiny import tiny_network
from tiefsee.engine.moved import Moved

there = engine(tiny_network("v3.2"))
moved = Moved.from_bytes(sys.stdin.buffer.read())
there.admit(moved, lambda index, delta: None)
there.step()
print("admitted", flush=True)
while True:
    there.step() if there.has_work() else None
"""


def test_the_receiver_dies_between_admit_and_release(pairs):
    """Another process takes it, says so and is killed: here it goes on as if nothing had been."""
    one, _ = pairs["v3.2"]
    here = engine(one)
    first = begin(here, prompt(300), SAMPLED, 5)
    data = here.export(first.request.request_id).to_bytes()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", RECEIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as there:
        assert there.stdin is not None
        assert there.stdout is not None
        there.stdin.write(data)
        there.stdin.close()
        assert there.stdout.readline() == b"admitted\n"
        there.send_signal(signal.SIGKILL)
    here.resume(first.request.request_id)
    finish(here)
    assert tuple(first.token_ids) == tiny_llm(one).generate(prompt(300), SAMPLED).token_ids
    assert is_clean(here)


# ------------------------------------------------------------------------------------ headers that lie


@pytest.fixture(scope="module")
def sent(pairs):
    """A request of V4 with its rows, snapshot and drafts, half decoded."""
    core = engine(pairs["v4"][0])
    generation = begin(core, prompt(300), SAMPLED, 5)
    return Moved.from_bytes(core.export(generation.request.request_id).to_bytes())


def test_what_an_engine_could_not_go_on_with_is_refused(pairs, sent):
    """Each of these would end the whole engine in a later step, or write where nothing may be written."""
    core, header = engine(pairs["v4"][1]), sent.header
    assert any(s.num_tokens is not None for s in header.streams), "no snapshot went along"

    def changed(**fields):
        return Moved(replace(header, **fields), sent.rows)

    def answer(**fields):
        return changed(answer=replace(header.answer, **fields))

    def sampling(**fields):
        return answer(sampling=replace(header.answer.sampling, **fields))

    def streams(change):
        return changed(streams=tuple(change(s) for s in header.streams))

    def kept(change):
        return streams(lambda s: s if s.num_tokens is None else change(s))

    doubled = Moved(replace(header, streams=(header.streams[0], *header.streams)), (sent.rows[0], *sent.rows))
    cases = [
        (changed(drafts=MovedDrafts(-5, 10)), "drafts"),
        (changed(drafts=MovedDrafts(1, 10**6)), "drafts"),
        (sampling(logit_bias={97: 1.0}), "logit_bias names token 97"),
        (sampling(temperature=None), "temperature"),
        (sampling(seed=None), "seed"),
        (sampling(stop_token_ids=(97,)), "stop_token_ids names token 97"),
        (sampling(stop=("x",)), "stop strings need a tokenizer"),
        (sampling(constraint=Constraint("regex", "a")), "constraint needs a tokenizer"),
        (answer(eos_ids=(97,)), "token 97 is outside"),
        (answer(index=-1), "answer -1"),
        (answer(siblings=(128,)), "answer 128"),
        (changed(request=replace(header.request, max_tokens=1)), "answer has .* tokens"),
        (doubled, "twice"),
        (kept(lambda s: replace(s, num_tokens=10**9)), "state behind"),
        (kept(lambda s: replace(s, num_tokens=-256)), "state behind"),
        (kept(lambda s: replace(s, shape=(*s.shape, 1))), "state behind"),
        (kept(lambda s: replace(s, first=s.first + 1)), "state behind"),
    ]  # fmt: skip
    for lie, match in cases:
        assert_unchanged(core, MoveMismatch, lie, match)
    assert core.admit(sent, lambda index, delta: None)  # and the truth is taken
    finish(core)


def test_numbers_that_json_cannot_say(pairs):
    """The log probability of what cannot be is minus infinity; it arrives as that."""
    one, other = pairs["v3"]
    here, there = engine(one), engine(other)
    first = begin(here, prompt(30), GREEDY, 3)
    first.logprobs[0] = replace(first.logprobs[0], logprob=-float("inf"), top=((3, -float("inf")), (4, -0.5)))
    second = move(here, first, there)
    assert second.logprobs[0] == first.logprobs[0]
    finish(there)


def test_bytes_that_are_a_header_of_something_else(sent):
    """Any JSON in the header's place, rightly signed, is refused by name."""
    import hashlib
    import struct

    for text in (
        b"{}",
        b"[]",
        b"null",
        b"1",
        b'{"model": 3}',
        b"\xff",
        msgspec.json.encode({"model": "x", "request": {}}),
    ):
        digest = hashlib.blake2b(text, digest_size=16).digest()
        data = struct.pack("<8sIQ16s", b"tiefmove", struct.unpack_from("<I", sent.to_bytes(), 8)[0], len(text), digest)
        with pytest.raises(MoveMismatch, match="another form"):
            Moved.from_bytes(data + text)
    with pytest.raises(MoveDamaged):
        Moved.from_bytes(b"")


def test_a_context_that_is_too_short_for_what_may_come(pairs):
    """`max_tokens` left out means: to the end of the sender's context."""
    one, other = pairs["v3"]
    here, there = engine(one, max_context=350), engine(other, max_context=330)
    first = begin(here, prompt(300), Sampling(temperature=0, ignore_eos=True), 3 + 300 // CHUNK)
    moved = here.export(first.request.request_id)
    with pytest.raises(NoRoom, match="may grow to 350 tokens; this engine holds 330"):
        there.admit(moved, lambda index, delta: None)
    here.resume(first.request.request_id)
    finish(here)
    needed = tiny_llm(one, max_context=350).generate(prompt(300), Sampling(temperature=0, ignore_eos=True))
    assert tuple(first.token_ids) == needed.token_ids
