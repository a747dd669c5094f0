"""Latent attention of V2, V3 and V3.2: MLA, and the lightning indexer that makes it sparse.

DeepSeek-V2 (arXiv 2405.04434), section 2.1; V3.2-Exp's report for the indexer. Shapes: see ops/reference.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tiefsee.model.layers import LayerNorm, Linear, RMSNorm
from tiefsee.model.step import Step
from tiefsee.ops import Operators
from tiefsee.spec.model import Indexer, LatentAttention
from tiefsee.spec.split import Split

# The published code norms the two latents with torch's and HF's default, not with the model's rms_norm_eps.
LATENT_NORM_EPS = 1e-6


class LatentAttentionLayer(nn.Module):
    """Heads may be split over ranks (tensor parallelism); the latents and the indexer are whole on each."""

    def __init__(self, ops: Operators, spec: LatentAttention, hidden_size: int, layer: int, split: Split) -> None:
        super().__init__()
        self.ops, self.spec, self.layer = ops, spec, layer
        self.num_heads = heads = len(split.heads(spec))
        query_width = heads * (spec.qk_nope_head_dim + spec.qk_rope_head_dim)
        if spec.q_lora_rank is None:
            self.wq = Linear(ops, hidden_size, query_width)
        else:
            self.wq_a = Linear(ops, hidden_size, spec.q_lora_rank, spec.bias)
            self.q_norm = RMSNorm(ops, spec.q_lora_rank, LATENT_NORM_EPS)
            self.wq_b = Linear(ops, spec.q_lora_rank, query_width)
        self.wkv_a = Linear(ops, hidden_size, spec.kv_lora_rank + spec.qk_rope_head_dim, spec.bias)
        self.kv_norm = RMSNorm(ops, spec.kv_lora_rank, LATENT_NORM_EPS)
        self.wkv_b = Linear(ops, spec.kv_lora_rank, heads * (spec.qk_nope_head_dim + spec.v_head_dim))
        self.wo = Linear(ops, heads * spec.v_head_dim, hidden_size, spec.bias and split.rank == 0)
        if spec.indexer is not None and spec.q_lora_rank is not None:
            self.indexer = LightningIndexer(ops, spec.indexer, spec, hidden_size, layer)

    def forward(self, hidden_TD: Tensor, step: Step) -> Tensor:
        spec, view = self.spec, step.view
        cos_TR, sin_TR = step.rope(spec.rope)
        query_latent_TQ = hidden_TD if spec.q_lora_rank is None else self.q_norm(self.wq_a(hidden_TD))
        query = self.wq(hidden_TD) if spec.q_lora_rank is None else self.wq_b(query_latent_TQ)
        query_nope_THN, query_rope_THR = query.unflatten(-1, (self.num_heads, -1)).split(
            (spec.qk_nope_head_dim, spec.qk_rope_head_dim), dim=-1
        )
        query_rope_THR = self.ops.rotate_pairs(query_rope_THR, cos_TR.unsqueeze(1), sin_TR.unsqueeze(1))
        latent_TC, rope_TR = self.wkv_a(hidden_TD).split((spec.kv_lora_rank, spec.qk_rope_head_dim), dim=-1)
        rows_TC = torch.cat((self.kv_norm(latent_TC), self.ops.rotate_pairs(rope_TR, cos_TR, sin_TR)), dim=-1)
        view.append_tokens("latent", self.layer, rows_TC)
        picks = None if spec.indexer is None else self.indexer(hidden_TD, query_latent_TQ, step)
        values_THV = self.ops.latent_attention(
            query_nope_THN, query_rope_THR, self.wkv_b.weight, view, self.layer, spec.softmax_scale,
            spec.v_head_dim, picks,
        )  # fmt: skip
        return self.wo(values_THV.flatten(1))


class LightningIndexer(nn.Module):
    """Scores all keys by a few small heads; each query attends to its best `index_topk`.

    Its RoPE is `rotate_halves` on the first R channels, where MLA's is `rotate_pairs` on the last: the
    two layouts differ in the published code, and mixing them up shows only in long contexts.
    """

    def __init__(self, ops: Operators, spec: Indexer, attention: LatentAttention, hidden_size: int, layer: int) -> None:
        super().__init__()
        assert attention.q_lora_rank is not None
        self.ops, self.spec, self.attention, self.layer = ops, spec, attention, layer
        self.wq_b = Linear(ops, attention.q_lora_rank, spec.index_n_heads * spec.index_head_dim)
        self.wk = Linear(ops, hidden_size, spec.index_head_dim)
        self.k_norm = LayerNorm(ops, spec.index_head_dim)
        self.weights_proj = Linear(ops, hidden_size, spec.index_n_heads)

    def forward(self, hidden_TD: Tensor, query_latent_TQ: Tensor, step: Step) -> list[Tensor | None]:
        """The keys of each query, one [T, K] per segment; None where a segment sees no more than K."""
        cos_TR, sin_TR = step.rope(self.attention.rope)
        query_TIJ = self.wq_b(query_latent_TQ).unflatten(-1, (self.spec.index_n_heads, -1))
        query_TIJ = self._rotate(query_TIJ, cos_TR.unsqueeze(1), sin_TR.unsqueeze(1))
        step.view.append_tokens("index", self.layer, self._rotate(self.k_norm(self.wk(hidden_TD)), cos_TR, sin_TR))
        scale = (self.spec.index_n_heads * self.spec.index_head_dim) ** -0.5
        weights_TI = self.weights_proj(hidden_TD).float() * scale
        return self.ops.pick_keys(query_TIJ, weights_TI, step.view, self.layer, self.spec.index_topk)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rope, rest = x.split((self.attention.qk_rope_head_dim, x.shape[-1] - self.attention.qk_rope_head_dim), dim=-1)
        return torch.cat((self.ops.rotate_halves(rope, cos, sin), rest), dim=-1)
