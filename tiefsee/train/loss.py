"""The training loss on packed documents: next token, and the token after it by the MTP layers.

Documents are packed side by side and isolated: each is a segment of its own, in attention, window,
compressor phase, positions and MTP alike. MTP: DeepSeek-V3 (arXiv 2412.19437), section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tiefsee.model import Network
from tiefsee.ops.view import StatelessView


@dataclass(frozen=True)
class Losses:
    """Mean negative log likelihoods in nats: `next_token`, and one `mtp` per MTP layer.

    `num_targets` counts the next-token targets behind the mean; a document of n tokens has n - 1.
    """

    next_token: Tensor
    mtp: tuple[Tensor, ...]
    num_targets: int

    def total(self, mtp_weight: float) -> Tensor:
        """What is minimised: V3 weighs MTP by 0.3, later 0.1."""
        extra = sum(self.mtp, start=torch.zeros_like(self.next_token))
        return self.next_token + (mtp_weight / max(1, len(self.mtp))) * extra


def packed_losses(network: Network, tokens_T: Tensor, lengths: list[int], *, mtp: bool = True) -> Losses:
    """Losses of documents of `lengths` tokens each, packed into `tokens_T`. Documents need two tokens."""
    device = tokens_T.device
    positions_T = torch.cat([torch.arange(n, device=device) for n in lengths])
    hidden = network(tokens_T, positions_T, StatelessView(lengths))
    # Position p predicts token p + 1 of its own document: all but each document's last position.
    last_T = torch.zeros_like(tokens_T, dtype=torch.bool)
    last_T[torch.tensor(lengths, device=device).cumsum(0) - 1] = True
    predicts = (~last_T).nonzero().squeeze(1)
    next_token = _cross_entropy(network, hidden.final_TD[predicts], tokens_T[predicts + 1])
    drafts = []
    draft_TXD, kept = hidden.draft_TXD, predicts
    if mtp:
        for index in range(len(network.mtp)):
            assert index == 0, "one MTP layer is trained; published models have one"
            # Entry at slot p + 1 joins the state of p with token p + 1 and predicts token p + 2.
            slots = predicts + 1
            view = StatelessView([n - 1 for n in lengths if n > 1], origin=1)
            output = network.draft(index, tokens_T[slots], positions_T[slots], draft_TXD[kept], view)
            has_target = ~last_T[slots]
            drafts.append(_cross_entropy(network, output.final_TD[has_target], tokens_T[slots[has_target] + 1]))
    return Losses(next_token, tuple(drafts), len(predicts))


def _cross_entropy(network: Network, final_TD: Tensor, targets_T: Tensor) -> Tensor:
    if len(targets_T) == 0:
        return final_TD.sum() * 0.0
    return F.cross_entropy(network.logits(final_TD), targets_T)
