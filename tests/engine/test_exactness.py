"""However a position is reached, its logits are those of a fresh prefill."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import FAMILIES, fresh_logits, greedy_continuation, prompt, relative_error, tiny_llm, tiny_network
from tiefsee import Sampling

TOLERANCE = 1e-4
LENGTHS = (1, 5, 127, 128, 129, 255, 256, 257, 600)


@pytest.fixture(scope="module", params=FAMILIES)
def network(request, device):
    return tiny_network(request.param, device=device)


@pytest.fixture(scope="module")
def reference(network):
    return {n: fresh_logits(network, prompt(n)) for n in LENGTHS}


@pytest.mark.parametrize("chunk", [600, 64, 7, 1])
def test_chunks_of_any_length(network, reference, chunk):
    llm = tiny_llm(network, max_step_tokens=1024)
    for n in LENGTHS if chunk > 1 else (1, 5, 129, 257):
        (found,) = llm.logits([prompt(n)], chunk=chunk)
        assert relative_error(found, reference[n]) < TOLERANCE, n


def test_batched_with_others(network, reference):
    llm = tiny_llm(network, max_step_tokens=300, max_running=4)
    for n, found in zip(LENGTHS, llm.logits([prompt(n) for n in LENGTHS]), strict=True):
        assert relative_error(found, reference[n]) < TOLERANCE, n


def test_same_chunking_is_bit_equal(network):
    first, second = tiny_llm(network), tiny_llm(network)
    assert torch.equal(first.logits([prompt(300)], chunk=50)[0], second.logits([prompt(300)], chunk=50)[0])


def logprob_row(answer, vocab=97):
    """The first answer token's log probabilities, [W]."""
    row = torch.empty(vocab)
    for token, value in answer.logprobs[0].top:
        row[token] = value
    return row


@pytest.fixture
def all_logprobs(monkeypatch):
    monkeypatch.setattr("tiefsee.engine.sampling.MAX_LOGPROBS", 97)
    return Sampling(temperature=0, max_tokens=8, logprobs=97, ignore_eos=True)


@pytest.mark.parametrize("length", [257, 512, 513, 600])
def test_after_a_prefix_hit(network, all_logprobs, length):
    llm = tiny_llm(network, max_step_tokens=200)
    cold = llm.generate(prompt(length), all_logprobs)
    warm = llm.generate(prompt(length), all_logprobs)
    expected = fresh_logits(network, prompt(length))[-1].log_softmax(-1)
    assert cold.num_cached_tokens == 0
    assert warm.num_cached_tokens == (length - 1) // 256 * 256 or length == 512  # its only snapshot is at 512
    assert relative_error(logprob_row(warm)[None], expected[None]) < TOLERANCE
    assert warm.token_ids == cold.token_ids == tuple(greedy_continuation(network, prompt(length), 8))


def test_a_longer_prompt_hits_the_turn_before(network, all_logprobs):
    llm = tiny_llm(network)
    turn = llm.generate(prompt(300), Sampling(temperature=0, max_tokens=250, ignore_eos=True))
    conversation = [*prompt(300), *turn.token_ids, *prompt(20)]
    answer = llm.generate(conversation, all_logprobs)
    assert answer.num_cached_tokens == 512  # passed while decoding
    expected = fresh_logits(network, conversation)[-1].log_softmax(-1)
    assert relative_error(logprob_row(answer)[None], expected[None]) < TOLERANCE


def test_after_preemption(network):
    llm = tiny_llm(network, num_blocks=4, max_running=3, max_step_tokens=128)
    prompts = [prompt(250, seed) for seed in range(3)]
    answers = llm.generate(prompts, Sampling(temperature=0, max_tokens=300, ignore_eos=True))
    assert llm.core.scheduler.num_preemptions > 0
    for tokens, answer in zip(prompts, answers, strict=True):
        rows = fresh_logits(network, [*tokens, *answer.token_ids])[len(tokens) - 1 : -1]
        best, chosen = rows.max(-1).values, rows.gather(1, torch.tensor(answer.token_ids)[:, None]).squeeze(1)
        assert (best - chosen).max() < 1e-3  # greedy, up to ties that rounding decides


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_speculation_changes_no_text(network, temperature):
    if not network.spec.mtp_layers:
        pytest.skip("V2 has no MTP layer")
    sampling = Sampling(temperature=temperature, seed=3, max_tokens=60, ignore_eos=True)
    prompts = [prompt(n) for n in (1, 30, 250, 260)]
    plain = tiny_llm(network).generate(prompts, sampling)
    llm = tiny_llm(network, max_draft=3)
    llm.core.draft_length.choose = lambda num_requests: 3
    drafted = llm.generate(prompts, sampling)
    assert llm.core.counters.drafted_tokens > 100
    assert [a.token_ids for a in drafted] == [a.token_ids for a in plain]


def test_pauses_in_drafting_change_no_text(network):
    if not network.spec.mtp_layers:
        pytest.skip("V2 has no MTP layer")
    sampling = Sampling(temperature=0.7, seed=3, max_tokens=60, ignore_eos=True)
    llm = tiny_llm(network, max_draft=3)
    lengths = iter([3, 3, 0, 0, 1, 2, 0, 3] * 100)
    llm.core.draft_length.choose = lambda num_requests: next(lengths)
    plain = tiny_llm(network).generate(prompt(250), sampling)
    assert llm.generate(prompt(250), sampling).token_ids == plain.token_ids
