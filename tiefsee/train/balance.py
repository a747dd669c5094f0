"""Auxiliary-loss-free load balancing: the expert bias moves, no gradient does.

DeepSeek-V3 (arXiv 2412.19437), section 2.1.2: after each step the bias of an expert that was chosen more
often than the mean goes down by a fixed speed, that of one chosen less often goes up.
"""

from __future__ import annotations

import torch

from tiefsee.model import Network
from tiefsee.model.experts import Gate

BIAS_SPEED = 1e-3  # V3, section 4.2


class ExpertBalance:
    """Counts the choices of every gate with a bias and moves the biases after each optimizer step."""

    def __init__(self, network: Network, speed: float = BIAS_SPEED) -> None:
        self.speed = speed
        self.gates = [m for m in network.modules() if isinstance(m, Gate) and m.bias is not None]
        for gate in self.gates:
            gate.load_E = torch.zeros(len(gate.weight), device=gate.weight.device)

    @torch.no_grad()
    def step(self) -> float:
        """Move the biases and start counting anew; returns the worst load, max over mean of any gate."""
        worst = 1.0
        for gate in self.gates:
            assert gate.load_E is not None
            assert gate.bias is not None
            mean = gate.load_E.mean()
            if mean == 0:
                continue
            worst = max(worst, float(gate.load_E.max() / mean))
            gate.bias.add_(torch.sign(mean - gate.load_E), alpha=self.speed)
            gate.load_E.zero_()
        return worst

    def discard(self) -> None:
        """Forget what was counted, as after an evaluation."""
        for gate in self.gates:
            assert gate.load_E is not None
            gate.load_E.zero_()
