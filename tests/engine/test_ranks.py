"""Ranks that share a model answer as one rank does; and how such an engine starts, breaks and ends.

Every engine here is of real processes that talk through gloo. Heads, experts and vocabulary do not divide evenly.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from tests.checkpoint.packers import write_checkpoint
from tests.family import VARIANTS, make_checkpoint
from tests.tiny import CONFIGS, FAMILIES, prompt, relative_error, tiny_network, tiny_spec
from tiefsee import LLM, Sampling
from tiefsee.checkpoint import save_network
from tiefsee.engine import build
from tiefsee.errors import ConfigError, DeviceError, ModelNotFound
from tiefsee.ops.group import Group
from tiefsee.ops.weight import Weight

GREEDY = Sampling(temperature=0, max_tokens=24, ignore_eos=True)
OPTIONS = {"max_context": 1024, "cache_bytes": 2e8, "max_running": 4}


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def follower_pids(llm: LLM) -> list[int]:
    return [process.pid for process in llm.core.runner.followers._processes]


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


@pytest.fixture(autouse=True, scope="module")
def on_the_cpu_only(device):
    if device != "cpu":
        pytest.skip("these ranks are on the CPU, whatever device the other tests have")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of the tiny models, written once."""
    root, written = tmp_path_factory.mktemp("ranks"), {}

    def of(family):
        if family not in written:
            written[family] = root / family
            save_network(tiny_network(family), tiny_spec(family), CONFIGS[family], written[family])
        return written[family]

    return of


@pytest.mark.parametrize(("family", "tp"), [*((f, 2) for f in FAMILIES), ("v3", 3), ("v4", 3)])
def test_the_same_answers(folder, family, tp):
    """Logits of prompts cut in any way, and texts with drafts, prefix hits and company, as from one rank."""
    with (
        LLM(folder(family), **OPTIONS, max_step_tokens=200) as alone,
        LLM(folder(family), tp=tp, **OPTIONS, max_step_tokens=200) as shared,
    ):
        drafts = shared.core.plan.max_draft
        for llm in (alone, shared):
            llm.core.draft_length.choose = lambda num_requests: drafts
        prompts = [prompt(n) for n in (1, 5, 260, 300)]
        for chunk in (200, 7):
            both = (llm.logits(prompts, chunk=chunk) for llm in (shared, alone))
            for found, needed in zip(*both, strict=True):
                assert relative_error(found, needed) < 1e-4
        sampled = [GREEDY, Sampling(temperature=1.0, seed=4, max_tokens=30, ignore_eos=True, n=2)]
        for sampling in sampled:
            for ours, theirs in zip(shared.generate(prompts, sampling), alone.generate(prompts, sampling), strict=True):
                assert [c.token_ids for c in ours.completions] == [c.token_ids for c in theirs.completions]
        again = shared.generate(prompt(300), GREEDY)
        assert again.num_cached_tokens > 0
        assert again.token_ids == alone.generate(prompt(300), GREEDY).token_ids
        if drafts:
            assert shared.core.counters.accepted_drafts == alone.core.counters.accepted_drafts
            assert shared.core.counters.drafted_tokens > 0


def test_preempted_and_computed_again(folder):
    tight = {"max_context": 1024, "num_blocks": 4, "max_running": 3, "max_step_tokens": 128}
    sampling = Sampling(temperature=0, max_tokens=280, ignore_eos=True)
    prompts = [prompt(250, seed) for seed in range(3)]
    with LLM(folder("v4"), **tight) as alone, LLM(folder("v4"), tp=2, **tight) as shared:
        needed = [answer.token_ids for answer in alone.generate(prompts, sampling)]
        assert [answer.token_ids for answer in shared.generate(prompts, sampling)] == needed
        assert shared.core.scheduler.num_preemptions > 0


def test_a_bias_is_added_once(tmp_path):
    variant = "v3-plain"
    assert VARIANTS[variant].config["attention_bias"]
    written = make_checkpoint(tmp_path, variant)
    with LLM(written, **OPTIONS) as alone, LLM(written, tp=2, **OPTIONS) as shared:
        (found,), (needed,) = shared.logits([prompt(40)]), alone.logits([prompt(40)])
        assert relative_error(found, needed) < 1e-4


PACKED = {
    "v3": {
        **CONFIGS["v3"], "hidden_size": 96, "num_attention_heads": 5, "q_lora_rank": 32, "kv_lora_rank": 64,
        "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 40, "intermediate_size": 160,
        "moe_intermediate_size": 64, "num_nextn_predict_layers": 0,
    },
    "v4": {
        **CONFIGS["v4"], "hidden_size": 96, "num_attention_heads": 6, "head_dim": 32, "o_groups": 3, "o_lora_rank": 32,
        "q_lora_rank": 32, "moe_intermediate_size": 64, "num_nextn_predict_layers": 0,
        "compress_ratios": [0, 4, 128, 4, 128],
    },
}  # fmt: skip


@pytest.mark.parametrize("format", ["keep", "fp32"])
@pytest.mark.parametrize(("family", "experts"), [("v3", "fp8"), ("v4", "fp4")])
def test_packed_weights_are_cut_between_their_blocks(tmp_path, family, experts, format):
    """V3's heads go by fours here: 4 * (24 + 40) is the first width of whole blocks of 32 for all three."""
    packed, _ = write_checkpoint(tmp_path, PACKED[family], block=32, experts=experts, ue8m0=experts == "fp4")
    options = {**OPTIONS, "dtype": "float32", "format": format}
    with LLM(packed, **options) as alone, LLM(packed, tp=2, **options) as shared:
        weight = shared.core.runner.network.layers[-1].ffn.experts.w1
        assert weight.shape[0] == 3
        assert (format == "keep") == hasattr(weight, "packing")
        held = [m for m in shared.core.runner.network.modules() if isinstance(m, Weight)]
        assert all(w.data.is_contiguous() and w.scale.is_contiguous() for w in held)  # what kernels ask for
        (found,), (needed,) = shared.logits([prompt(150)]), alone.logits([prompt(150)])
        assert relative_error(found, needed) < 1e-4


def test_a_request_moves_to_ranks_and_back(folder):
    sampling = Sampling(temperature=0.8, seed=9, max_tokens=40, ignore_eos=True)
    with LLM(folder("v4"), **OPTIONS) as alone, LLM(folder("v4"), tp=2, **OPTIONS) as shared:
        needed = alone.generate(prompt(270), sampling).token_ids
        found: list[int] = []
        cores = [alone.core, shared.core, alone.core]
        generation = cores[0].add(prompt(270), sampling, lambda index, delta: found.extend(delta.token_ids))[0]
        for here, there in zip(cores, [*cores[1:], None], strict=True):
            goal = len(found) + 12
            while here.has_work() and (there is None or len(found) < goal):
                here.step()
            if there is not None:
                moved = here.export(generation.request.request_id)
                arrived = there.admit(moved, lambda index, delta: found.extend(delta.token_ids))
                here.release(generation.request.request_id)
                generation = arrived
        assert tuple(found) == needed


# ------------------------------------------------------------------------------ starting and ending


def test_too_many_ranks_are_refused_before_a_process_starts(folder, monkeypatch):
    monkeypatch.setattr(build, "Followers", None)
    with pytest.raises(ConfigError, match="4 ranks cannot share 3 attention heads; use 3 or fewer"):
        LLM(folder("v3"), tp=4)
    with pytest.raises(ConfigError, match="tp is 0; needed 1 or more"):
        LLM(folder("v3"), tp=0)


def test_close_ends_the_others(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    llm = LLM(folder("v2"), tp=2, **OPTIONS)
    pids = follower_pids(llm)
    assert all(map(is_alive, pids))
    assert torch.get_num_threads() == 1  # they share the threads
    llm.close()
    llm.close()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    assert not any(map(is_alive, pids))
    assert not [*tmp_path.iterdir()]
    with pytest.raises(DeviceError, match="closed; load the model again"):
        llm.generate(prompt(5), GREEDY)


def test_one_such_engine_in_a_process_at_a_time(folder):
    with LLM(folder("v2"), tp=2, **OPTIONS) as first:
        with pytest.raises(DeviceError, match="close the other engine first"):
            LLM(folder("v2"), tp=2, **OPTIONS)
        assert len(first.generate(prompt(5), GREEDY).token_ids) == 24
    with LLM(folder("v2"), tp=2, **OPTIONS) as second:
        assert len(second.generate(prompt(5), GREEDY).token_ids) == 24


def test_a_follower_that_dies_is_named(folder):
    with closing(LLM(folder("v3"), tp=3, **OPTIONS)) as llm:
        pids = follower_pids(llm)
        os.kill(pids[1], signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(DeviceError, match=rf"rank 2 \(process {pids[1]}\) ended with status -9"):
            llm.generate(prompt(5), GREEDY)
        assert time.monotonic() - began < 20
        with pytest.raises(DeviceError, match=r"have ended: rank 2 .*load the model again"):
            llm.generate(prompt(5), GREEDY)
        assert not any(map(is_alive, pids))


def test_an_interrupted_step_ends_the_engine_and_says_so(folder, monkeypatch):
    with LLM(folder("v2"), tp=2, **OPTIONS) as llm:
        network = llm.core.runner.network
        monkeypatch.setattr(network.layers[1], "forward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            llm.generate(prompt(5), GREEDY)
        monkeypatch.undo()
        with pytest.raises(DeviceError, match="KeyboardInterrupt in forward; load the model again"):
            llm.generate(prompt(5), GREEDY)


LEADER = """
import sys, time
from tiefsee import LLM, Sampling
llm = LLM(sys.argv[1], tp=2, max_context=1024, cache_bytes=2e8)
print(*(p.pid for p in llm.core.runner.followers._processes), flush=True)
while True:
    llm.generate([5, 6, 7], Sampling(max_tokens=50, ignore_eos=True))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_followers_end_with_the_leader(folder, how):
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER, str(folder("v2"))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    pids = [int(pid) for pid in leader.stdout.readline().split()]
    assert pids
    time.sleep(0.5)
    if how == signal.SIGINT:
        os.killpg(leader.pid, how)  # as a terminal sends it: to all processes
    else:
        leader.send_signal(how)
    _, said = leader.communicate(timeout=30)
    until(lambda: not any(map(is_alive, pids)))
    assert "Traceback" not in said or how == signal.SIGINT
    assert leader.returncode == -how


def test_what_a_follower_could_not_do_is_said_here(folder, monkeypatch):
    """The leader finds its weights; the other rank does not, or is killed before it can say so."""
    followers_of = build.Followers
    monkeypatch.setattr(build, "Followers", lambda leader: followers_of(replace(leader, model="elsewhere")))
    with pytest.raises(ModelNotFound, match="no model 'elsewhere'"):
        LLM(folder("v2"), tp=2, **OPTIONS)

    def killed(leader):
        followers = followers_of(leader)
        followers._processes[0].kill()
        return followers

    monkeypatch.setattr(build, "Followers", killed)
    with pytest.raises(DeviceError, match=r"rank 1 \(process \d+\) ended with status -9.* before it was ready"):
        LLM(folder("v2"), tp=2, **OPTIONS)


def test_memory_is_planned_per_rank(folder, monkeypatch):
    """Ranks on the CPU share its memory: each may take its part of it."""
    monkeypatch.setattr("tiefsee.ops.cpu.CpuOperators.free_bytes", staticmethod(lambda device: 4e9))
    with LLM(folder("v2"), tp=2, max_running=1) as shared:
        assert shared.core.plan.num_bytes <= 0.6 * 2e9


def test_gradients_are_refused():
    with pytest.raises(ConfigError, match="train a network on one rank"):
        Group(0, 2).all_reduce(torch.ones(2, requires_grad=True))
