"""Muon: momentum whose every matrix is made orthogonal before it becomes an update.

Keller Jordan, "Muon: an optimizer for hidden layers" (2024); the scale that lets AdamW's learning rate and
weight decay apply is Moonlight's (arXiv 2502.16982, section 2.2); the hybrid Newton-Schulz iteration is that
of DeepSeek-V4: eight steps that quickly lift small singular values, two that settle them at 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

LIFT, SETTLE = (3.4445, -4.7750, 2.0315), (2.0, -1.5, 0.5)
HYBRID = (LIFT,) * 8 + (SETTLE,) * 2
UPDATE_RMS = 0.2  # what AdamW's updates have; Moonlight, section 2.2
EPSILON = 1e-12


def orthogonalise(
    matrices: Tensor, steps: Iterable[tuple[float, float, float]] = HYBRID, dtype: torch.dtype = torch.float32
) -> Tensor:
    """U V^T of each matrix U S V^T of a stack [..., O, I], computed in `dtype` without a decomposition.

    Directions whose singular value is 0 stay 0. After HYBRID the others lie within a few per cent of 1, if
    they were above a thousandth of the matrix's norm.
    """
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT  # the products below are then of the shorter side
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + EPSILON)
    for a, b, c in steps:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon:
    """Updates weights [O, I] and stacks of them [E, O, I] in place; `learning_rate` is AdamW's."""

    def __init__(
        self,
        parameters: list[nn.Parameter],
        learning_rate: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        assert all(p.ndim in (2, 3) for p in parameters), "Muon is for matrices and stacks of them"
        self.parameters = parameters
        self.learning_rate, self.weight_decay, self.momentum = learning_rate, weight_decay, momentum
        self.dtype = dtype
        self.buffers = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for members in self._by_shape().values():
            directions = [self._direction(i) for i in members]
            # Equal shapes go through the iteration together: small matrices are slow one at a time.
            stacked = torch.cat([d.reshape(-1, *d.shape[-2:]) for d in directions])
            updates = orthogonalise(stacked, dtype=self.dtype)
            scale = UPDATE_RMS * max(updates.shape[-2:]) ** 0.5
            counts = [d.numel() // (d.shape[-2] * d.shape[-1]) for d in directions]
            for i, update in zip(members, updates.split(counts), strict=True):
                parameter = self.parameters[i]
                parameter.mul_(1 - self.learning_rate * self.weight_decay)
                parameter.add_(update.reshape(parameter.shape), alpha=-self.learning_rate * scale)

    def _direction(self, index: int) -> Tensor:
        """Nesterov's look-ahead of the momentum, which is updated."""
        grad = self.parameters[index].grad
        assert grad is not None
        buffer = self.buffers[index].lerp_(grad, 1 - self.momentum)
        return grad.lerp(buffer, self.momentum)

    def _by_shape(self) -> dict[tuple[int, ...], list[int]]:
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                groups[tuple(parameter.shape[-2:])].append(index)
        return groups

    def state_dict(self) -> dict[str, Any]:
        return {"buffers": self.buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.buffers, state["buffers"], strict=True):
            mine.copy_(saved)
