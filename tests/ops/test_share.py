"""A rank that holds some of the experts adds what those give: the shares sum to the whole."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tiefsee.ops import Operators
from tiefsee.ops.cpu import CpuOperators

NUM_EXPERTS = 7


@pytest.mark.parametrize("num_tokens", [1, 2, 40])
@pytest.mark.parametrize("table", [Operators, CpuOperators])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("borders", [(0, 7), (0, 3, 7), (0, 1, 2, 6, 7)])
def test_shares_sum_to_the_whole(table, dtype, borders, num_tokens):
    generator = torch.Generator().manual_seed(num_tokens)

    def values(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    ops, hidden = table(), values(num_tokens, 64)
    picks = torch.stack([torch.randperm(NUM_EXPERTS, generator=generator)[:3] for _ in range(num_tokens)])
    weights = torch.rand(num_tokens, 3, generator=generator)
    w1, w2, w3 = values(NUM_EXPERTS, 32, 64) / 8, values(NUM_EXPERTS, 64, 32) / 6, values(NUM_EXPERTS, 32, 64) / 8
    with torch.inference_mode():
        whole = ops.run_experts(hidden, picks, weights, w1, w2, w3, 1.5).float()
        total = torch.zeros_like(whole)
        for first, end in pairwise(borders):
            part = ops.run_experts(
                hidden, picks, weights, w1[first:end], w2[first:end], w3[first:end], 1.5, share=(first, NUM_EXPERTS)
            )
            assert part.shape == hidden.shape
            assert part[~((picks >= first) & (picks < end)).any(1)].abs().sum() == 0
            total += part.float()
    tolerance = 1e-6 if dtype == torch.float32 else 2**-7
    assert (total - whole).abs().max() <= tolerance * whole.abs().max()
