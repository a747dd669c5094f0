"""Mixture of experts: the gate, the routed experts, the shared ones.

DeepSeek-V2 section 2.2, V3 section 2.1.2 (bias instead of an auxiliary loss), V4 section 2.1 (hash).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tiefsee.model.layers import SwiGLU
from tiefsee.model.step import Step
from tiefsee.ops import Operators
from tiefsee.spec.model import MoE
from tiefsee.spec.split import Split


class Gate(nn.Module):
    """Chooses experts and weighs them; in float32, lowest index first on ties."""

    def __init__(self, ops: Operators, spec: MoE, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.ops, self.router = ops, spec.router
        self.weight = nn.Parameter(torch.empty(spec.n_routed_experts, hidden_size))
        self.bias = (
            nn.Parameter(torch.zeros(spec.n_routed_experts), requires_grad=False) if spec.router.has_bias else None
        )
        if spec.router.selection == "hash":
            table = torch.zeros(vocab_size, spec.router.num_experts_per_tok, dtype=torch.int64)
            self.tid2eid: Tensor
            self.register_buffer("tid2eid", table)
        # How often each expert was chosen since the trainer last asked; None outside training.
        self.load_E: Tensor | None = None

    def forward(self, hidden_TD: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        experts_of_token = self.tid2eid if self.router.selection == "hash" else None
        experts_TK, weights_TK = self.ops.route(
            hidden_TD, self.weight, self.bias, self.router, step.tokens_T, experts_of_token
        )
        if self.load_E is not None:
            self.load_E += torch.bincount(experts_TK.flatten(), minlength=len(self.load_E))
        return experts_TK, weights_TK


class Experts(nn.Module):
    """Routed experts that this rank holds, stacked: w1 and w3 [E, F, D], w2 [E, D, F]."""

    def __init__(self, num_experts: int, intermediate_size: int, hidden_size: int) -> None:
        super().__init__()
        e, f, d = num_experts, intermediate_size, hidden_size
        self.w1 = nn.Parameter(torch.empty(e, f, d))
        self.w2 = nn.Parameter(torch.empty(e, d, f))
        self.w3 = nn.Parameter(torch.empty(e, f, d))


class MixtureOfExperts(nn.Module):
    """Every rank routes every token, and adds what its own experts and its share of the shared ones give."""

    def __init__(self, ops: Operators, spec: MoE, hidden_size: int, vocab_size: int, split: Split) -> None:
        super().__init__()
        self.ops, self.spec = ops, spec
        self.gate = Gate(ops, spec, hidden_size, vocab_size)
        own = split.experts(spec.n_routed_experts)
        self.share = None if len(own) == spec.n_routed_experts else (own.start, spec.n_routed_experts)
        self.experts = Experts(len(own), spec.moe_intermediate_size, hidden_size)
        if spec.n_shared_experts:
            width = len(split.width(spec.shared_intermediate_size))
            self.shared_experts = SwiGLU(ops, hidden_size, width, spec.swiglu_limit)

    def forward(self, hidden_TD: Tensor, step: Step) -> Tensor:
        experts_TK, weights_TK = self.gate(hidden_TD, step)
        e = self.experts
        share = {} if self.share is None else {"share": self.share}
        output_TD = self.ops.run_experts(
            hidden_TD, experts_TK, weights_TK, e.w1, e.w2, e.w3, self.spec.swiglu_limit, **share
        )
        return output_TD + self.shared_experts(hidden_TD) if self.spec.n_shared_experts else output_TD
