"""Drawing tokens: the right distribution, from (seed, position) alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tiefsee.engine.sample import _mix, _mix_tensor, _signed, adjust, draw, gumbel, truncate
from tiefsee.engine.sampling import Sampling

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
