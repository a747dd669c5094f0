"""What `LLM.generate` promises: defaults, limits, stops, seeds, several answers, bad input."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import fresh_logits, prompt, relative_error, tiny_llm, tiny_network
from tiefsee import Sampling
from tiefsee.engine.core import check_generation_config
from tiefsee.errors import ConfigError, InvalidSampling, InvalidToken, PromptTooLong, RequestError


@pytest.fixture(scope="module")
def network(device):
    return tiny_network("v4", device=device)


@pytest.fixture
def llm(network):
    return tiny_llm(network)


def test_single_and_several_prompts(llm):
    sampling = Sampling(temperature=0, max_tokens=3, ignore_eos=True)
    one, two = llm.generate([prompt(5), prompt(9)], sampling)
    assert llm.generate(prompt(5), sampling).token_ids == one.token_ids
    assert len(two.token_ids) == 3
    assert two.finish_reason == "length"
    assert two.logprobs is None


def test_eos_ends_and_is_the_last_token(network):
    sampling = Sampling(temperature=1.5, seed=1, max_tokens=400)
    answer = tiny_llm(network).generate(prompt(5), sampling)
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == 1
    assert 1 not in answer.token_ids[:-1]


def test_min_tokens_hold_the_end_back(network):
    short = tiny_llm(network).generate(prompt(5), Sampling(temperature=1.5, seed=1, max_tokens=400))
    longer = Sampling(temperature=1.5, seed=1, max_tokens=400, min_tokens=len(short.token_ids) + 5)
    assert len(tiny_llm(network).generate(prompt(5), longer).token_ids) >= len(short.token_ids) + 5


def test_stop_token(llm):
    free = llm.generate(prompt(5), Sampling(temperature=0, max_tokens=20, ignore_eos=True)).token_ids
    stop = free[7]
    answer = llm.generate(prompt(5), Sampling(temperature=0, max_tokens=20, ignore_eos=True, stop_token_ids=(stop,)))
    assert answer.token_ids == free[: free.index(stop) + 1]
    assert answer.finish_reason == "stop"


def test_the_context_ends_an_answer(network):
    llm = tiny_llm(network, max_context=40)
    answer = llm.generate(prompt(30), Sampling(temperature=0, ignore_eos=True))
    assert len(answer.token_ids) == 10
    assert answer.finish_reason == "length"


def test_n_answers_are_those_of_their_seeds_alone_or_in_company(network):
    sampling = Sampling(temperature=1.0, seed=11, n=4, max_tokens=20, ignore_eos=True)
    together = tiny_llm(network).generate([prompt(270), prompt(12)], sampling)
    crowded = tiny_llm(network, max_running=2, num_blocks=6).generate([prompt(270), prompt(12)], sampling)
    for a, b in zip(together, crowded, strict=True):
        assert [c.token_ids for c in a.completions] == [c.token_ids for c in b.completions]
        assert len({c.token_ids for c in a.completions}) == 4
    first = tiny_llm(network).generate(prompt(270), Sampling(temperature=1.0, seed=11, max_tokens=20, ignore_eos=True))
    assert first.token_ids == together[0].completions[0].token_ids


def test_a_continuation_elsewhere_is_the_same(network):
    """Random numbers depend on (seed, position) alone: half an answer can be finished by another engine."""
    sampling = Sampling(temperature=1.0, seed=5, max_tokens=30, ignore_eos=True)
    whole = tiny_llm(network).generate(prompt(20), sampling).token_ids
    rest = tiny_llm(network).generate(
        [*prompt(20), *whole[:13]], Sampling(temperature=1.0, seed=5, max_tokens=17, ignore_eos=True)
    )
    assert rest.token_ids == whole[13:]


def test_logprobs_are_those_of_the_model(network, llm):
    answer = llm.generate(prompt(9), Sampling(temperature=0.5, seed=2, max_tokens=4, logprobs=3, ignore_eos=True))
    rows = fresh_logits(network, [*prompt(9), *answer.token_ids]).log_softmax(-1)[8:]
    for row, told in zip(rows, answer.logprobs, strict=False):
        assert told.logprob == pytest.approx(float(row[told.token_id]), abs=1e-4)
        assert told.rank == int((row > row[told.token_id]).sum()) + 1
        assert [t for t, _ in told.top] == row.topk(3).indices.tolist()


def test_prompt_logprobs(network, llm):
    answer = llm.generate(prompt(300), Sampling(temperature=0, max_tokens=1, prompt_logprobs=2))
    assert answer.prompt_logprobs[0] is None
    rows = fresh_logits(network, prompt(300)).log_softmax(-1)
    for position in (1, 150, 299):
        told = answer.prompt_logprobs[position]
        assert told.logprob == pytest.approx(float(rows[position - 1, prompt(300)[position]]), abs=1e-4)


def test_logits_of_several_prompts(network, llm):
    for tokens, found in zip((prompt(3), prompt(40)), llm.logits([prompt(3), prompt(40)]), strict=True):
        assert found.shape == (len(tokens), 97)
        assert relative_error(found, fresh_logits(network, tokens)) < 1e-4


def test_generation_config_gives_the_defaults():
    chosen = Sampling(top_p=0.5).with_defaults({"temperature": 0.3, "top_p": 0.9, "top_k": 7, "eos_token_id": 1})
    assert (chosen.temperature, chosen.top_p, chosen.top_k) == (0.3, 0.5, 7)
    assert Sampling().with_defaults({"do_sample": False, "temperature": 0.6}).temperature == 0
    assert Sampling().with_defaults({}).temperature == 1.0


@pytest.mark.parametrize(
    "found", [{"temperature": "hot"}, {"top_p": 0}, {"top_k": 2.5}, {"eos_token_id": "x"}, {"eos_token_id": [1, 97]}]
)
def test_a_generation_config_that_no_request_could_use(network, found):
    with pytest.raises(ConfigError):
        check_generation_config(found, network.spec)
    assert check_generation_config({"eos_token_id": None}, network.spec) == (1,)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"top_k": 1.5},
        {"min_p": 2}, {"max_tokens": 0}, {"n": 0}, {"presence_penalty": 3}, {"repetition_penalty": 0},
        {"stop": ("",)}, {"logprobs": 1000}, {"seed": "x"}, {"min_tokens": 5, "max_tokens": 3},
        {"logit_bias": {-1: 1.0}}, {"logit_bias": {3: float("inf")}}, {"max_tokens": True}, {"stop_token_ids": (-1,)},
        {"stop_token_ids": ("a",)},
    ],
)  # fmt: skip
def test_sampling_values_out_of_range(values):
    with pytest.raises(InvalidSampling, match=r"needed|above|empty"):
        Sampling(**values)


def test_bad_prompts_leave_nothing_behind(llm):
    good = Sampling(temperature=0, max_tokens=2)
    for bad, error in (([97], InvalidToken), ([-1], InvalidToken), ([], RequestError), ([5] * 1024, PromptTooLong)):
        with pytest.raises(error):
            llm.generate([prompt(4), bad], good)
    with pytest.raises(InvalidToken):
        llm.generate(prompt(4), Sampling(logit_bias={97: 1.0}))
    with pytest.raises(InvalidToken):  # min_tokens bans them: an index out of range there would end the engine
        llm.generate(prompt(4), Sampling(stop_token_ids=(97,), min_tokens=2))
    assert not llm.core.has_work()
    assert len(llm.generate(prompt(4), good).token_ids) <= 2


def test_all_blocks_come_back(llm):
    llm.generate([prompt(n) for n in (3, 300, 513)], Sampling(temperature=1.0, max_tokens=20, n=2))
    pool = llm.core.scheduler.blocks
    assert pool.num_free == pool.num_blocks


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_not_finite_end_one_answer_only(network, monkeypatch, temperature):
    llm = tiny_llm(network)
    run = llm.core.runner.run

    def spoiled(batch):
        result = run(batch)
        for entry, logits in zip(batch.entries, result.logits, strict=True):
            if entry.request.tokens[0] == 7 and entry.start > 0:
                with torch.inference_mode():
                    logits.fill_(torch.nan)
        return result

    monkeypatch.setattr(llm.core.runner, "run", spoiled)
    sampling = Sampling(max_tokens=5, temperature=temperature, ignore_eos=True)
    bad, good = llm.generate([[7, 3, 4], [8, 3, 4]], sampling)
    assert bad.finish_reason == "error"
    assert "no token can be drawn" in bad.completions[0].error
    assert len(bad.token_ids) == 1
    assert good.finish_reason == "length"
    assert len(good.token_ids) == 5
    assert llm.core.scheduler.statistics().num_used_blocks == 0
