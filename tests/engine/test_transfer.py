"""A request that moves says what it would have said; what cannot move changes nothing on either side."""

from __future__ import annotations

import asyncio
import itertools
import struct
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import FAMILIES, prompt, tiny_llm, tiny_network, tiny_spec
from tiefsee import LLM, Engine, Sampling
from tiefsee.engine.moved import FORM, Moved
from tiefsee.engine.stored import StoredRows
from tiefsee.errors import DeviceError, LayoutError, MoveDamaged, MoveError, MoveMismatch, NoRoom
from tiefsee.layouts import LAYOUTS
from tiefsee.model import Network
from tiefsee.ops import Operators, operators_for
from tiefsee.ops.storage import checksum, convert
from tiefsee.schedule import State

GREEDY = Sampling(temperature=0, max_tokens=40, ignore_eos=True, logprobs=1)
SAMPLED = Sampling(
    temperature=0.9, top_p=0.95, seed=11, max_tokens=40, ignore_eos=True, frequency_penalty=0.3, logit_bias={5: 0.5}
)
CHUNK = 128
STEPS = {"mid-prefill": 1, "at a boundary": 2, "mid-decode": 7}


class Wide(Operators):
    """Another device: products are summed in float64, rows stored as Ascend has them."""

    name = "wide"
    layout = LAYOUTS["apart"]

    @staticmethod
    def linear(x, weight, bias=None):
        out = x.double() @ weight.double().T
        return (out if bias is None else out + bias.double()).to(x.dtype)


@pytest.fixture(scope="module", params=FAMILIES)
def networks(request, device):
    """The same weights on two devices."""
    one = tiny_network(request.param, device=device)
    other = Network(tiny_spec(request.param), Wide()).to(device).eval().requires_grad_(False)
    other.load_state_dict(one.state_dict())
    return one, other


def engine(network, **options):
    drafts = 2 if network.spec.mtp_layers else 0
    llm = tiny_llm(network, **{"max_draft": drafts, "max_step_tokens": CHUNK, **options})
    core = llm.core
    core.draft_length.choose = lambda num_requests: core.plan.max_draft
    return core


def begin(core, tokens, sampling, steps=0, **options):
    (generation,) = core.add(tokens, sampling, lambda index, delta: None, **options)
    for _ in range(steps):
        core.step()
    return generation


def finish(core):
    while core.has_work():
        core.step()


def move(source, generation, target, heard=None):
    """Over the wire, as two processes would."""
    request_id = generation.request.request_id
    moved = Moved.from_bytes(source.export(request_id).to_bytes())
    there = target.admit(moved, lambda index, delta: None if heard is None else heard.append(delta))
    source.release(request_id)
    return there


def is_clean(core):
    return not core.has_work() and core.scheduler.blocks.num_free == core.plan.num_blocks


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("stage", STEPS)
def test_same_tokens_there_and_back(networks, stage, sampling):
    one, other = networks
    needed = tiny_llm(one).generate(prompt(300), sampling)
    here, there = engine(one), engine(other)
    first = begin(here, prompt(300), sampling, STEPS[stage])
    heard = []
    second = move(here, first, there, heard)
    assert first.finish_reason == "moved"
    assert is_clean(here)
    there.step()
    there.step()
    if second.finish_reason is None:
        third = move(there, second, here)
        assert is_clean(there)
        finish(here)
    else:
        third = second
    assert tuple(third.token_ids) == needed.token_ids
    assert third.completion().finish_reason == "length"
    if sampling.logprobs is not None:
        found = torch.tensor([t.logprob for t in third.logprobs])
        assert torch.allclose(found, torch.tensor([t.logprob for t in needed.logprobs]), atol=1e-3)
    assert is_clean(here)
    assert is_clean(there)


@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_cpu_to_the_device_under_test_and_back(family, device):
    """Prefilled on the CPU, half decoded on the device that `--device` names, finished on the CPU."""
    one = tiny_network(family)
    other = Network(tiny_spec(family), operators_for(torch.device(device))).eval().requires_grad_(False)
    other.load_state_dict(one.state_dict())
    here, there = engine(one), engine(other.to(device))
    second = move(here, begin(here, prompt(300), SAMPLED, 4), there)
    for _ in range(3):
        there.step()
    third = move(there, second, here)
    finish(here)
    assert tuple(third.token_ids) == tiny_llm(one).generate(prompt(300), SAMPLED).token_ids


def test_only_new_tokens_are_told(networks):
    here, there = engine(networks[0]), engine(networks[1])
    told = []
    (first,) = here.add(prompt(20), GREEDY, lambda index, delta: told.append(delta))
    for _ in range(4):
        here.step()
    heard = []
    move(here, first, there, heard)
    finish(there)
    assert told[-1].finish_reason == "moved"
    tokens = [t for delta in (*told, *heard) for t in delta.token_ids]
    assert tuple(tokens) == tiny_llm(networks[0]).generate(prompt(20), GREEDY).token_ids


def test_blocks_that_moved_in_are_hit(networks):
    """A second prompt with the same beginning resumes behind them, and says what it would have said."""
    one, other = networks
    here, there = engine(one), engine(other)
    move(here, begin(here, prompt(300), GREEDY, 4), there)
    finish(there)
    longer = [*prompt(300)[:270], *prompt(40)]
    again = begin(there, longer, GREEDY)
    finish(there)
    assert again.request.num_cached_tokens == 256
    assert tuple(again.token_ids) == tiny_llm(one).generate(longer, GREEDY).token_ids


def test_speculation_only_on_one_side(networks):
    one, other = networks
    if not one.spec.mtp_layers:
        pytest.skip("V2 has no MTP layer")
    needed = tiny_llm(one).generate(prompt(150), SAMPLED).token_ids
    for drafts in itertools.product((0, 2), repeat=2):
        here, there = (engine(n, max_draft=d) for n, d in zip((one, other), drafts, strict=True))
        second = move(here, begin(here, prompt(150), SAMPLED, 5), there)
        finish(there)
        assert tuple(second.token_ids) == needed
        assert (there.counters.drafted_tokens > 0) == (drafts[1] > 0)


def test_drafts_go_on_as_good_as_before(networks):
    """The MTP layer's rows come along: as many drafts are right as without the move."""
    one, other = networks
    if not one.spec.mtp_layers:
        pytest.skip("V2 has no MTP layer")
    sampling = replace(GREEDY, max_tokens=120)
    stay = engine(one)
    begin(stay, prompt(200), sampling)
    finish(stay)
    here, there = engine(one), engine(other)
    move(here, begin(here, prompt(200), sampling, 4), there)
    finish(there)
    accepted = here.counters.accepted_drafts + there.counters.accepted_drafts
    assert abs(accepted - stay.counters.accepted_drafts) <= 2  # drafts that were pending are made anew


@pytest.mark.parametrize("target", ["apart", "packed", "block-first", "bfloat16"])
def test_rows_arrive_as_the_other_layout_has_them(networks, target):
    """Read back from the other engine they are the sender's rows, converted once, in every stream and layer."""
    one, other = networks
    here = engine(one)
    options = {"cache_dtype": target} if target == "bfloat16" else {"cache_layout": target}
    there = engine(other, **options)
    moved = here.export(begin(here, prompt(300), GREEDY, 4).request.request_id)
    second = there.admit(moved, lambda index, delta: None)
    back = there.export(second.request.request_id)
    for sent, rows, found, got in zip(moved.header.streams, moved.rows, back.header.streams, back.rows, strict=True):
        assert (sent.name, sent.layers, sent.first, sent.num_rows) == (
            found.name, found.layers, found.first, found.num_rows,
        )  # fmt: skip
        for layer in range(len(sent.layers)):
            needed = convert([plane[layer] for plane in rows], sent.planes, found.planes)
            assert all(torch.equal(n, g[layer]) for n, g in zip(needed, got, strict=True)), sent.name
    there.resume(second.request.request_id)
    finish(there)
    assert len(second.token_ids) == 40


def test_answers_of_one_prompt_move_one_by_one(networks):
    """Before the prompt's end its siblings go with it; behind it each is a request of its own."""
    one, other = networks
    sampling = replace(SAMPLED, n=3)
    needed = [c.token_ids for c in tiny_llm(one).generate(prompt(150), sampling).completions]
    here, there = engine(one), engine(other)
    group = here.add(prompt(150), sampling, lambda index, delta: None)
    here.step()
    first = move(here, group[0], there)
    moved = [first, *first.siblings]
    finish(there)
    assert [tuple(g.token_ids) for g in moved] == needed
    group = here.add(prompt(150), sampling, lambda index, delta: None)
    for _ in range(3):
        here.step()
    second = move(here, group[1], there)
    finish(here)
    finish(there)
    assert [tuple(g.token_ids) for g in (group[0], second, group[2])] == needed


def test_preempted_and_waiting_requests_move_without_rows(networks):
    one, other = networks
    here, there = engine(one, num_blocks=3, max_running=2, max_step_tokens=512), engine(other)
    tokens = [prompt(250, seed) for seed in range(3)]
    sampling = replace(GREEDY, max_tokens=300)
    generations = [begin(here, t, sampling) for t in tokens]
    preempted = None
    while here.has_work() and preempted is None:
        here.step()
        preempted = next((g for g in generations if g.request.state is State.PREEMPTED), None)
    waiting = next(g for g in generations if g.request.state is State.WAITING)
    gone = {id(g): move(here, g, there) for g in (preempted, waiting)}
    finish(here)
    finish(there)
    for t, g in zip(tokens, generations, strict=True):
        assert tuple(gone.get(id(g), g).token_ids) == tiny_llm(one).generate(t, sampling).token_ids


# -------------------------------------------------------------------------------------- what fails


@pytest.fixture(scope="module")
def wire(device):
    network = tiny_network("v4", device=device)
    core = engine(network)
    generation = begin(core, prompt(300), SAMPLED, 4)
    data = core.export(generation.request.request_id).to_bytes()
    return network, data


def assert_unchanged(core, refusal, moved, match):
    before = core.scheduler.statistics()
    with pytest.raises(refusal, match=match):
        core.admit(moved() if callable(moved) else moved, lambda index, delta: None)
    assert core.scheduler.statistics() == before
    assert not core._generations
    finish(core)


def test_bytes_that_are_not_what_was_sent(wire):
    network, data = wire
    core = engine(network)
    cases = [
        (data[:20], MoveDamaged, "begins with 36 bytes, found 20"), (b"x" + data[1:], MoveDamaged, "no moved request"),
        (data[:-1], MoveDamaged, "is to have .* bytes"), (data + b"x", MoveDamaged, "is to have"),
        (data[:200], MoveDamaged, "the header is to have"),
        (data[:8] + struct.pack("<I", FORM + 1) + data[12:], MoveMismatch, f"form {FORM + 1}; this tiefsee reads"),
        (data[:60] + bytes([data[60] ^ 1]) + data[61:], MoveDamaged, "header has another checksum"),
    ]  # fmt: skip
    for altered, refusal, match in cases:
        assert_unchanged(core, refusal, lambda a=altered: Moved.from_bytes(a), match)
    for place in (-1, -5000):
        flipped = bytearray(data)
        flipped[place] ^= 4
        assert_unchanged(core, MoveDamaged, Moved.from_bytes(flipped), "rows of stream .* another checksum")


@settings(max_examples=150)
@given(place=st.integers(0, 1 << 30), bit=st.integers(0, 7), cut=st.booleans())
def test_no_altered_byte_goes_unseen(wire, place, bit, cut):
    _, data = wire
    place %= len(data)
    altered = bytearray(data)
    if cut:
        del altered[place:]
    else:
        altered[place] ^= 1 << bit
    with pytest.raises((MoveDamaged, MoveMismatch)):
        Moved.from_bytes(altered).check()


def test_headers_that_lie(wire):
    network, data = wire
    core, moved = engine(network), Moved.from_bytes(data)
    header, streams = moved.header, moved.header.streams

    def changed(**fields):
        return Moved(replace(header, **fields), moved.rows)

    def request(**fields):
        return changed(request=replace(header.request, **fields))

    latest = replace(streams[0], num_rows=streams[0].num_rows - 1)
    cases = [
        (changed(model="0" * 32), MoveMismatch, "other weights"),
        (changed(streams=streams[1:]), MoveMismatch, "are missing for some layer"),
        (changed(streams=(latest, *streams[1:])), MoveMismatch, "was sent as"),
        (request(tokens=(400, *header.request.tokens[1:])), MoveMismatch, "token 400 is outside"),
        (request(num_committed_tokens=5000), MoveMismatch, "5000 rows for"),
        (request(max_tokens=2000), NoRoom, "may grow to 2300 tokens; this engine holds 1024"),
        (changed(answer=replace(header.answer, has_text=True)), MoveMismatch, "has no tokenizer.json"),
    ]
    for lie, refusal, match in cases:
        assert_unchanged(core, refusal, lie, match)


def test_no_room(wire):
    network, data = wire
    core = engine(network, num_blocks=3, max_running=2, max_context=400)
    begin(core, prompt(260), replace(GREEDY, max_tokens=3), 1)
    with pytest.raises(NoRoom, match="needs 2 blocks of 256 tokens and 1 are free"):
        core.admit(Moved.from_bytes(data), lambda index, delta: None)
    begin(core, prompt(3), replace(GREEDY, max_tokens=3), 2)
    with pytest.raises(NoRoom, match="all 2 places"):
        core.admit(Moved.from_bytes(data), lambda index, delta: None)
    finish(core)
    assert is_clean(core)
    there = core.admit(Moved.from_bytes(data), lambda index, delta: None)  # and then there is
    finish(core)
    assert len(there.token_ids) == 40


def test_a_failure_while_rows_are_written_leaves_nothing(wire, monkeypatch):
    network, data = wire
    core = engine(network)
    calls = itertools.count()
    original = StoredRows.write_stored

    def breaks(self, layer, slots, stored):
        if next(calls) == 5:
            raise RuntimeError("the device is gone")
        original(self, layer, slots, stored)

    monkeypatch.setattr(StoredRows, "write_stored", breaks)
    assert_unchanged(core, RuntimeError, Moved.from_bytes(data), "the device is gone")
    monkeypatch.undo()
    assert core.admit(Moved.from_bytes(data), lambda index, delta: None)


def test_rows_that_the_other_cannot_hold(wire):
    network, data = wire
    moved = Moved.from_bytes(data)
    rows = [tuple(plane.clone() for plane in stored) for stored in moved.rows]
    rows[0][0][0, 0, 0] = 1e6
    streams = (replace(moved.header.streams[0], checksum=checksum(rows[0])), *moved.header.streams[1:])
    large = Moved(replace(moved.header, streams=streams), tuple(rows))
    assert_unchanged(engine(network, cache_dtype="float16"), LayoutError, large, "float16 cannot hold")


def test_here_too_a_request_is_whole(networks):
    core = engine(networks[0])
    with pytest.raises(MoveError, match="no live request '77'"):
        core.export("77")
    generation = begin(core, prompt(300), GREEDY, 1)
    request_id = generation.request.request_id
    core.export(request_id)
    with pytest.raises(MoveError, match="being moved already"):
        core.export(request_id)
    assert not core.has_work()  # held: nothing to compute
    core.resume(request_id)
    with pytest.raises(MoveError, match="is not held here"):
        core.release(request_id)
    finish(core)
    assert tuple(generation.token_ids) == tiny_llm(networks[0]).generate(prompt(300), GREEDY).token_ids
    other = begin(core, prompt(300), GREEDY, 4)
    core.export(other.request.request_id)
    core.cancel(other)
    assert is_clean(core)


def test_a_held_request_is_no_busy_loop(networks):
    """What is held keeps all the room: the next one waits, without steps, until it is let go."""
    core = engine(networks[0], num_blocks=2, max_running=1, max_context=400)
    first = begin(core, prompt(300), GREEDY, 2)
    core.export(first.request.request_id)
    second = begin(core, prompt(10), GREEDY)
    assert core.has_work()
    core.step()
    assert not core.has_work()
    core.release(first.request.request_id)
    finish(core)
    assert second.finish_reason == "length"


def test_prompt_logprobs_move_when_they_are_complete(networks):
    here, there = engine(networks[0]), engine(networks[1])
    sampling = replace(GREEDY, prompt_logprobs=1)
    generation = begin(here, prompt(200), sampling, 1)
    with pytest.raises(MoveError, match="logits of the prompt"):
        here.export(generation.request.request_id)
    here.step()
    second = move(here, generation, there)
    finish(there)
    assert second.prompt_logprobs() == tiny_llm(networks[0], max_step_tokens=CHUNK).generate(
        prompt(200), sampling
    ).prompt_logprobs  # fmt: skip


# ----------------------------------------------------------------------------- text, files, asyncio


def test_text_stop_strings_and_constraints_go_on():
    from tiefsee.engine import Constraint

    options = {"dtype": "float32", "max_context": 512, "max_running": 4}
    here, there = (LLM("tiefsee-demo", **options, cache_layout=layout).core for layout in ("rows", "apart"))
    samplings = [
        Sampling(temperature=0.8, seed=3, max_tokens=60, stop=("the king", "\n\n")),
        Sampling(temperature=1.2, seed=4, max_tokens=80, constraint=Constraint("regex", "[a-f]{30}-[0-9]{20}")),
    ]
    tokens = LLM.on(here).encode("Once upon a time")
    for sampling in samplings:
        needed = LLM.on(here).generate(tokens, sampling)
        told = []
        (first,) = here.add(tokens, sampling, lambda index, delta, told=told: told.append(delta.text))
        for _ in range(6):
            here.step()
        heard = []
        second = move(here, first, there, heard)
        finish(there)
        assert (tuple(second.token_ids), second.text) == (needed.token_ids, needed.text)
        assert "".join([*told, *(d.text for d in heard)]) == needed.text


def test_the_fingerprint_is_of_the_weights(tmp_path, networks):
    import shutil

    from tiefsee.files import bundled_models, find_model, fingerprint
    from tiefsee.files.find import BUNDLED

    name = bundled_models()[0]
    copy = tmp_path / "copy"
    shutil.copytree(BUNDLED / name, copy)
    assert fingerprint(find_model(copy)) == fingerprint(find_model(name))
    entry = sorted(find_model(copy).tensors.items())[0][1]
    with entry.file.open("r+b") as stream:
        stream.seek((entry.start + entry.end) // 2)
        stream.write(b"\x01\x02")
    assert fingerprint(find_model(copy)) != fingerprint(find_model(name))
    one, other = engine(networks[0]), engine(networks[1])
    assert one.fingerprint == other.fingerprint
    assert engine(tiny_network(next(iter(FAMILIES)), seed=1)).fingerprint != one.fingerprint


def test_two_async_engines(networks):
    one, other = networks
    needed = tiny_llm(one).generate(prompt(300), SAMPLED).token_ids

    async def scenario():
        async with Engine(engine(one)) as here, Engine(engine(other)) as there:
            stream = here.generate(prompt(300), SAMPLED, name="a")
            tokens = list((await anext(stream))[1].token_ids)
            moved = await here.export("a")
            with pytest.raises(MoveMismatch):
                await there.admit(Moved(replace(moved.header, model="x"), moved.rows))
            await here.resume("a")
            tokens += (await anext(stream))[1].token_ids
            moved = await here.export("a")
            answers = await there.admit(moved, name="b")
            await here.release("a")
            reasons = []
            async for _, delta in stream:
                tokens += delta.token_ids
                reasons.append(delta.finish_reason)
            assert reasons[-1] == "moved"
            async for _, delta in answers:
                tokens += delta.token_ids
            assert delta.finish_reason == "length"
            with pytest.raises(MoveError, match="no call 'a'"):
                await here.export("a")
            return tokens

    assert tuple(asyncio.run(asyncio.wait_for(scenario(), 120))) == needed


def test_who_waits_for_a_move_hears_that_the_engine_failed(networks):
    core = engine(networks[0])

    async def scenario():
        async with Engine(core) as here:
            stream = here.generate(prompt(300), GREEDY, name="a")
            await anext(stream)

            stuck, queued = threading.Event(), threading.Event()

            def broken(batch):
                stuck.set()
                queued.wait(30)
                raise RuntimeError("the device is gone")

            core.runner.run = broken
            await asyncio.to_thread(stuck.wait, 30)
            export = asyncio.create_task(here.export("a"))
            await asyncio.sleep(0.05)  # it stands in the queue of the thread that steps
            queued.set()
            with pytest.raises(DeviceError, match="the device is gone"):
                await export
            with pytest.raises(DeviceError, match="start it again"):
                await here.release("a")

    asyncio.run(asyncio.wait_for(scenario(), 60))
