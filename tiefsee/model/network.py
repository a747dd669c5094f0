"""The DeepSeek network: embedding, blocks, head, MTP layers. One parametrised decoder for the family.

What each layer is comes from the spec; no version string is asked. A pass goes over packed tokens and a
cache view (ops/view.py), so prefill, decode, a mixed batch and training are the same code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tiefsee.model.attention import LatentAttentionLayer
from tiefsee.model.compressed import CompressedAttentionLayer
from tiefsee.model.experts import MixtureOfExperts
from tiefsee.model.layers import (
    HyperConnection,
    Linear,
    Residual,
    RMSNorm,
    SwiGLU,
    hyper_parameters,
    register_hyper,
)
from tiefsee.model.rope import Rotary
from tiefsee.model.step import Step
from tiefsee.ops import Operators
from tiefsee.ops.group import ALONE, Group
from tiefsee.ops.view import CacheView
from tiefsee.spec.model import DenseFFN, LatentAttention, LayerSpec, ModelSpec
from tiefsee.spec.split import Split


@dataclass(frozen=True)
class Hidden:
    """What the trunk hands on: `final_TD` goes to the head, `draft_TXD` to an MTP layer.

    V3's MTP layer reads the normed state (X = 1), V4's the residual streams themselves.
    """

    final_TD: Tensor
    draft_TXD: Tensor


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm, joined by the spec's residual.

    Where a group shares the model, each rank computes a part of what the two give, and the parts are summed.
    """

    def __init__(self, ops: Operators, spec: ModelSpec, layer: LayerSpec, index: int, group: Group) -> None:
        super().__init__()
        d, eps, split = spec.hidden_size, spec.rms_norm_eps, group.split(spec)
        self.group = group
        self.attn_norm, self.ffn_norm = RMSNorm(ops, d, eps), RMSNorm(ops, d, eps)
        if isinstance(layer.attention, LatentAttention):
            self.attn: nn.Module = LatentAttentionLayer(ops, layer.attention, d, index, split)
        else:
            self.attn = CompressedAttentionLayer(ops, layer.attention, d, index, eps, split)
        self.is_dense = isinstance(layer.ffn, DenseFFN)
        if isinstance(layer.ffn, DenseFFN):
            width = len(split.width(layer.ffn.intermediate_size))
            self.ffn: nn.Module = SwiGLU(ops, d, width, layer.ffn.swiglu_limit)
        else:
            self.ffn = MixtureOfExperts(ops, layer.ffn, d, spec.vocab_size, split)
        self.attn_residual = Residual()
        self.ffn_residual = Residual()
        if spec.hyper is not None:
            self.attn_residual = HyperConnection(ops, self, "attn", spec.hyper, d, eps)
            self.ffn_residual = HyperConnection(ops, self, "ffn", spec.hyper, d, eps)

    def forward(self, streams: Tensor, step: Step) -> Tensor:
        hidden_TD, mix = self.attn_residual.enter(streams)
        output_TD = self.group.all_reduce(self.attn(self.attn_norm(hidden_TD), step))
        streams = self.attn_residual.leave(streams, output_TD, mix)
        hidden_TD, mix = self.ffn_residual.enter(streams)
        hidden_TD = self.ffn_norm(hidden_TD)
        output_TD = self.ffn(hidden_TD) if self.is_dense else self.ffn(hidden_TD, step)
        return self.ffn_residual.leave(streams, self.group.all_reduce(output_TD), mix)


class MTPBlock(Block):
    """One multi-token prediction layer: from the hidden state of p and token p + 1 to token p + 2.

    V3 (arXiv 2412.19437, section 2.2) joins the two by one matrix; V4 adds the embedding to each
    residual stream through a matrix of its own and has its own mHC head. Embedding and output head are
    the decoder's.
    """

    def __init__(self, ops: Operators, spec: ModelSpec, layer: LayerSpec, index: int, group: Group) -> None:
        super().__init__(ops, spec, layer, index, group)
        d = spec.hidden_size
        self.enorm, self.hnorm = RMSNorm(ops, d, spec.rms_norm_eps), RMSNorm(ops, d, spec.rms_norm_eps)
        self.norm = RMSNorm(ops, d, spec.rms_norm_eps)
        self.ops, self.spec = ops, spec
        if spec.hyper is None:
            self.eh_proj = Linear(ops, 2 * d, d)
        else:
            self.e_proj, self.h_proj = Linear(ops, d, d), Linear(ops, d, d)
            register_hyper(self, "hc_head", spec.hyper.hc_mult, 1, spec.hyper.hc_mult * d)

    def draft(self, embedding_TD: Tensor, hidden_TXD: Tensor, step: Step) -> Hidden:
        """`embedding_TD` of the step's tokens, `hidden_TXD` of the position before each of them."""
        if self.spec.hyper is None:
            joined = torch.cat((self.enorm(embedding_TD), self.hnorm(hidden_TXD.squeeze(1))), dim=-1)
            final_TD = self.norm(self(self.eh_proj(joined), step))
            return Hidden(final_TD, final_TD.unsqueeze(1))
        streams_TXD = self.e_proj(self.enorm(embedding_TD)).unsqueeze(1) + self.h_proj(self.hnorm(hidden_TXD))
        streams_TXD = self(streams_TXD, step)
        return Hidden(self.norm(collapse(self.ops, self, self.spec, streams_TXD)), streams_TXD)


class Embedding(nn.Module):
    """The rows of the vocabulary, or this rank's; the trunk and every MTP layer look up in it."""

    def __init__(self, words: range, hidden_size: int) -> None:
        super().__init__()
        self.words = words
        self.weight = nn.Parameter(torch.empty(len(words), hidden_size))

    def look_up(self, tokens_T: Tensor) -> Tensor:
        """[T, D]; zeros for tokens whose rows another rank holds."""
        local_T = tokens_T - self.words.start
        is_own_T = (local_T >= 0) & (local_T < len(self.words))
        rows_TD = nn.functional.embedding(local_T.clamp(0, len(self.words) - 1), self.weight)
        return torch.where(is_own_T.unsqueeze(1), rows_TD, 0)


class Network(nn.Module):
    """All parameters of one model, named as in `spec.tensors`; holds no cache and no state of a request.

    With a `group` of several ranks each holds its share (`spec.split`). All ranks make the same passes with the same
    tokens and get the same hidden states and logits. Raises ConfigError where the model cannot be dealt out to so many.
    """

    def __init__(self, spec: ModelSpec, ops: Operators, group: Group = ALONE) -> None:
        super().__init__()
        self.spec, self.ops, self.group = spec, ops, group
        words = group.split(spec).vocabulary(spec.vocab_size)
        self._widths = [len(Split(rank, group.size).vocabulary(spec.vocab_size)) for rank in range(group.size)]
        self.embed = Embedding(words, spec.hidden_size)
        self.layers = nn.ModuleList(Block(ops, spec, layer, i, group) for i, layer in enumerate(spec.layers))
        self.norm = RMSNorm(ops, spec.hidden_size, spec.rms_norm_eps)
        self.head = Linear(ops, spec.hidden_size, len(words))
        self.mtp = nn.ModuleList(
            MTPBlock(ops, spec, layer, len(spec.layers) + i, group) for i, layer in enumerate(spec.mtp_layers)
        )
        if spec.hyper is not None:
            register_hyper(self, "hc_head", spec.hyper.hc_mult, 1, spec.hyper.hc_mult * spec.hidden_size)
        self._rotary: Rotary | None = None

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def forward(self, tokens_T: Tensor, positions_T: Tensor, view: CacheView) -> Hidden:
        """One pass over packed tokens; writes the view's streams."""
        step = self.step(tokens_T, positions_T, view)
        streams = self.embedding(tokens_T)
        if self.spec.hyper is not None:
            streams = streams.unsqueeze(1).expand(-1, self.spec.hyper.hc_mult, -1)
        for layer in self.layers:
            streams = layer(streams, step)
        if self.spec.hyper is None:
            final_TD = self.norm(streams)
            return Hidden(final_TD, final_TD.unsqueeze(1))
        return Hidden(self.norm(collapse(self.ops, self, self.spec, streams)), streams)

    def draft(self, index: int, tokens_T: Tensor, positions_T: Tensor, hidden_TXD: Tensor, view: CacheView) -> Hidden:
        """MTP layer `index` on tokens whose predecessors have the hidden states `hidden_TXD`."""
        step = self.step(tokens_T, positions_T, view)
        block: MTPBlock = self.mtp[index]  # type: ignore[assignment]
        return block.draft(self.embedding(tokens_T), hidden_TXD, step)

    def logits(self, final_TD: Tensor) -> Tensor:
        """[T, W] in float32."""
        return self.group.join_columns(self.head(final_TD).float(), self._widths)

    def embedding(self, tokens_T: Tensor) -> Tensor:
        if self.group.size == 1:
            return nn.functional.embedding(tokens_T, self.embed.weight)
        return self.group.all_reduce(self.embed.look_up(tokens_T))

    def step(self, tokens_T: Tensor, positions_T: Tensor, view: CacheView) -> Step:
        if self._rotary is None:
            self._rotary = Rotary({layer.attention.rope for layer in self.spec.all_layers}, self.device)
        return Step(tokens_T, positions_T, view, self._rotary)


def collapse(ops: Operators, owner: nn.Module, spec: ModelSpec, streams_TXD: Tensor) -> Tensor:
    """mHC head of the decoder or of an MTP layer: residual streams to one hidden state [T, D]."""
    assert spec.hyper is not None
    return ops.hyper_head(streams_TXD, *hyper_parameters(owner, "hc_head"), spec.hyper.hc_eps, spec.rms_norm_eps)
