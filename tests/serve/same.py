"""Greedy answers of two ways to the same model, compared token by token."""

from __future__ import annotations

from collections.abc import Sequence

NEAR = 1e-3


def assert_same(found: Sequence[int], needed) -> bool:
    """Same tokens as `needed`, an answer with the two best log probabilities; True if they part at a near tie.

    Behind a near tie the texts differ for good, so nothing there is compared.
    """
    for position, (one, other) in enumerate(zip(found, needed.token_ids, strict=True)):
        if one != other:
            (_, best), (_, second) = needed.logprobs[position].top
            assert best - second < NEAR, f"token {position}: {one} instead of {other}, {best - second} apart"
            return True
    return False
