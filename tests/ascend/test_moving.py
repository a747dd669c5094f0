"""A live request goes from the CPU to the card and back, between two layouts, and says what it would have said."""

from __future__ import annotations

import pytest

from tests.ascend.models import FAMILIES, save_checkpoint
from tests.tiny import prompt
from tiefsee import LLM, Sampling
from tiefsee.engine.moved import Moved

SAMPLINGS = {
    "greedy": Sampling(temperature=0, max_tokens=24, ignore_eos=True),
    "sampled": Sampling(temperature=0.9, seed=11, max_tokens=24, ignore_eos=True),
}


@pytest.fixture(scope="module", params=FAMILIES)
def cores(request, npu, tmp_path_factory):
    """The same float32 checkpoint, drafts included, on both devices; prompts are cut into steps of 128 tokens."""
    folder = save_checkpoint(request.param, "float32", tmp_path_factory.mktemp("model") / "m")
    return tuple(LLM(folder, device=d, max_context=1024, max_step_tokens=128).core for d in ("cpu", "npu:0"))


def move(source, generation, target):
    """As bytes, as two machines would."""
    moved = Moved.from_bytes(source.export(generation.request.request_id).to_bytes())
    there = target.admit(moved, lambda index, delta: None)
    source.release(generation.request.request_id)
    return there


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("stage", "steps"), [("mid-prefill", 1), ("mid-decode", 8)])
def test_there_and_back(cores, sampling, stage, steps):
    on_cpu, on_npu = cores
    assert (on_cpu.plan.layout.name, on_npu.plan.layout.name) == ("rows", "apart")
    needed = LLM.on(on_cpu).generate(prompt(300), SAMPLINGS[sampling])
    (first,) = on_cpu.add(prompt(300), SAMPLINGS[sampling], lambda index, delta: None)
    for _ in range(steps):
        on_cpu.step()
    second = move(on_cpu, first, on_npu)
    for _ in range(4):
        on_npu.step()
    third = move(on_npu, second, on_cpu) if second.finish_reason is None else second
    while on_cpu.has_work():
        on_cpu.step()
    assert tuple(third.token_ids) == needed.token_ids


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_half_decoded_on_the_cpu_and_finished_on_the_card(cores, sampling):
    on_cpu, on_npu = cores
    needed = LLM.on(on_cpu).generate(prompt(200, seed=1), SAMPLINGS[sampling])
    (first,) = on_cpu.add(prompt(200, seed=1), SAMPLINGS[sampling], lambda index, delta: None)
    while len(first.token_ids) < 12:
        on_cpu.step()
    second = move(on_cpu, first, on_npu)
    while on_npu.has_work():
        on_npu.step()
    assert tuple(second.token_ids) == needed.token_ids
