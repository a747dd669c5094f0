"""Drawing tokens: the right distribution, from (seed, position) alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tiefsee.engine.sample import _mix, _mix_tensor, _signed, adjust, draw, gumbel, truncate
from tiefsee.engine.sampling import Sampling
from tiefsee.errors import NoToken

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])


def drawn(sampling: Sampling, count: int, logits: torch.Tensor = LOGITS) -> Counter:
    return Counter(draw(logits, sampling, 7, position, [], []) for position in range(count))


def test_frequencies_are_the_probabilities():
    probabilities = (LOGITS / 0.8).softmax(0)
    counts = drawn(Sampling(temperature=0.8), 20_000)
    for token, p in enumerate(probabilities.tolist()):
        assert counts[token] / 20_000 == pytest.approx(p, abs=4 * (p * (1 - p) / 20_000) ** 0.5)


def test_neighbouring_seeds_and_positions_are_independent():
    tokens = torch.arange(1000)
    for a, b in ((gumbel(1, 5, tokens), gumbel(2, 5, tokens)), (gumbel(1, 5, tokens), gumbel(1, 6, tokens))):
        assert abs(float(torch.corrcoef(torch.stack((a, b)))[0, 1])) < 0.12


def test_the_hash_on_tensors_is_the_hash_on_numbers():
    values = [0, 1, 2**63 - 1, 12345678901234567890 % 2**63]
    assert _mix_tensor(torch.tensor(values)).tolist() == [_signed(_mix(v)) for v in values]


def test_top_k_top_p_min_p():
    assert set(drawn(Sampling(temperature=1.0, top_k=2), 500)) == {0, 1}
    # Probabilities are .636 .234 .086 .032 .012: two reach 0.8, and the first alone 0.5.
    assert truncate(LOGITS, Sampling(top_p=0.8))[0].tolist() == [0, 1]
    assert truncate(LOGITS, Sampling(top_p=0.5))[0].tolist() == [0]
    assert truncate(LOGITS, Sampling(min_p=0.1))[0].tolist() == [0, 1, 2]


def test_truncation_draws_the_same_token_where_it_can():
    """The noise belongs to the token, so cutting the tail changes only draws from the tail."""
    free, cut = Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=3)
    for position in range(200):
        token = draw(LOGITS, free, 3, position, [], [])
        if token < 3:
            assert draw(LOGITS, cut, 3, position, [], []) == token


def test_penalties_and_bias():
    assert adjust(LOGITS, Sampling(presence_penalty=1.0), [], [1, 1]).tolist() == [2, 0, 0, -1, -2]
    assert adjust(LOGITS, Sampling(frequency_penalty=0.5), [], [1, 1]).tolist() == [2, 0, 0, -1, -2]
    assert adjust(LOGITS, Sampling(repetition_penalty=2.0), [0], [3]).tolist() == [1, 1, 0, -2, -2]
    assert adjust(LOGITS, Sampling(logit_bias={4: 5.0}), [], []).tolist() == [2, 1, 0, -1, 3]
    assert LOGITS.tolist() == [2, 1, 0, -1, -2]


def test_grammar_mask():
    allowed = torch.tensor([False, False, True, True, False])
    assert draw(LOGITS, Sampling(temperature=0), 0, 0, [], [], allowed_W=allowed) == 2


EXTREMES = st.builds(
    Sampling,
    temperature=st.one_of(st.sampled_from([0.0, 5e-324, 1e-300, 1e-9, 1.0, 100.0]), st.floats(0, 100)),
    top_k=st.integers(0, 9),
    top_p=st.one_of(st.sampled_from([5e-324, 1e-30, 1.0]), st.floats(0, 1, exclude_min=True)),
    min_p=st.floats(0, 1),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.one_of(st.sampled_from([5e-324, 1e-300, 100.0]), st.floats(0, 100, exclude_min=True)),
    logit_bias=st.dictionaries(st.integers(0, 4), st.floats(allow_nan=False, allow_infinity=False), max_size=5),
)


@given(sampling=EXTREMES, logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5), seed=st.integers())
@example(sampling=Sampling(temperature=1e-300, top_p=0.5), logits=[2.0, 1.0, 0.0, 0.0, 0.0], seed=0)
@example(sampling=Sampling(temperature=1, repetition_penalty=1e-300, min_p=0.1), logits=[2.0] * 5, seed=0)
def test_whatever_the_values_a_token_is_drawn(sampling, logits, seed):
    """Every Sampling that can be made draws a token from finite logits; the best one where it is cold."""
    found = torch.tensor(logits)
    token = draw(found, sampling, seed, 3, [0, 1], [1, 1, 2])
    assert 0 <= token < 5
    if sampling.temperature < 1e-9:
        adjusted = adjust(found, sampling, [0, 1], [1, 1, 2])
        assert adjusted[token] == adjusted.max()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[1.0, torch.nan], [torch.inf, 0.0], [-torch.inf, -torch.inf]])
def test_no_token_from_what_is_not_finite(temperature, logits):
    with pytest.raises(NoToken, match="no token can be drawn"):
        draw(torch.tensor(logits), Sampling(temperature=temperature), 0, 0, [], [])
