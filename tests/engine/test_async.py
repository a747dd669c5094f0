"""The async engine: many callers, early leavers, failures that everyone hears of."""

from __future__ import annotations

import asyncio

import pytest

from tests.tiny import prompt, tiny_llm, tiny_network
from tiefsee import Engine, Sampling
from tiefsee.errors import DeviceError, PromptTooLong


@pytest.fixture(scope="module")
def network(device):
    return tiny_network("v4", device=device)


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 60))


async def collect(engine, tokens, sampling):
    answers: dict[int, list[int]] = {i: [] for i in range(sampling.n)}
    async for index, delta in engine.generate(tokens, sampling):
        answers[index] += delta.token_ids
    return answers


def test_callers_side_by_side_get_what_they_would_get_alone(network):
    sampling = Sampling(temperature=1.0, seed=4, max_tokens=12, n=2, ignore_eos=True)

    async def scenario():
        async with Engine(tiny_llm(network).core) as engine:
            return await asyncio.gather(*(collect(engine, prompt(n), sampling) for n in (3, 40, 300, 7)))

    for n, answers in zip((3, 40, 300, 7), run(scenario()), strict=True):
        alone = tiny_llm(network).generate(prompt(n), sampling)
        assert [tuple(answers[i]) for i in range(2)] == [c.token_ids for c in alone.completions]


def test_leaving_early_frees_the_blocks(network):
    core = tiny_llm(network).core

    async def scenario():
        async with Engine(core) as engine:
            stream = engine.generate(prompt(300), Sampling(max_tokens=600, ignore_eos=True))
            await anext(stream)
            await stream.aclose()
            await collect(engine, prompt(3), Sampling(max_tokens=2))  # the cancel is carried out before this
            assert not core.has_work()
            assert core.scheduler.blocks.num_free == core.scheduler.blocks.num_blocks

    run(scenario())


def test_a_request_that_cannot_be_served_harms_no_other(network):
    async def scenario():
        async with Engine(tiny_llm(network).core) as engine:
            good = asyncio.create_task(collect(engine, prompt(5), Sampling(max_tokens=30, ignore_eos=True)))
            with pytest.raises(PromptTooLong):
                await collect(engine, [5] * 5000, Sampling())
            assert len((await good)[0]) == 30

    run(scenario())


def test_a_failed_step_reaches_every_caller(network):
    core = tiny_llm(network).core

    async def scenario():
        async with Engine(core) as engine:
            calls = [collect(engine, prompt(n), Sampling(max_tokens=50, ignore_eos=True)) for n in (3, 4)]
            tasks = [asyncio.create_task(call) for call in calls]
            await asyncio.sleep(0.05)

            def broken(batch):
                raise RuntimeError("the device is gone")

            core.runner.run = broken
            for task in tasks:
                with pytest.raises(DeviceError, match="the device is gone"):
                    await task
            with pytest.raises(DeviceError, match="start it again"):
                await collect(engine, prompt(3), Sampling())

    run(scenario())
