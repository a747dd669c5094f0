"""What one pass through the network carries besides hidden states: tokens, positions, cache view, RoPE."""

from __future__ import annotations

from torch import Tensor

from tiefsee.model.rope import Rotary
from tiefsee.ops.view import CacheView
from tiefsee.spec.model import Rope


class Step:
    """One packed step. `tokens_T` and `positions_T` are whole numbers; the view says whose they are."""

    def __init__(self, tokens_T: Tensor, positions_T: Tensor, view: CacheView, rotary: Rotary) -> None:
        self.tokens_T, self.positions_T, self.view = tokens_T, positions_T, view
        self.rotary = rotary
        self._tables: dict[Rope, tuple[Tensor, Tensor]] = {}

    def rope(self, rope: Rope) -> tuple[Tensor, Tensor]:
        """cos and sin [T, R / 2] of the step's positions; computed once per kind of RoPE."""
        if rope not in self._tables:
            self._tables[rope] = self.rotary.at(rope, self.positions_T)
        return self._tables[rope]
