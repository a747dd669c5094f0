"""What a model of the family is: `ModelSpec`, plain data that loader, network, trainer and planner read.

A spec is chosen layer by layer: each `LayerSpec` names its attention and its feed-forward by type, so
that nothing downstream asks for a version string. Field names are those of the published config.json.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

Scoring = Literal["softmax", "sigmoid", "sqrtsoftplus"]
Selection = Literal["greedy", "group_limited_greedy", "noaux_tc", "hash"]


@dataclass(frozen=True)
class Yarn:
    """Context extension of RoPE (YaRN, arXiv 2309.00071, section 3).

    `attention_factor` multiplies cos and sin. V2 and V3 give mscale / mscale_all_dim (1.0 in all
    published files); V4's reference does not scale, so it is 1.0 there.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class Rope:
    """Rotary embedding over `dim` channels, `dim / 2` frequencies."""

    theta: float
    dim: int
    yarn: Yarn | None = None


@dataclass(frozen=True)
class Indexer:
    """Lightning indexer: `index_n_heads` small heads score keys, the best `index_topk` are attended."""

    index_n_heads: int
    index_head_dim: int
    index_topk: int


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention of V2, V3 and V3.2 (DeepSeek-V2, section 2.1)."""

    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    softmax_scale: float
    rope: Rope
    bias: bool = False
    indexer: Indexer | None = None

    @property
    def kind(self) -> str:
        return "mla" if self.indexer is None else "mla_sparse"


@dataclass(frozen=True)
class CompressedAttention:
    """V4: sliding window plus compressed entries, keys and values shared by all heads.

    `ratio` 0 is the window alone; `overlap` lets an entry see the window before its own (ratio 4 in
    the published models, with an indexer); otherwise all entries are attended (ratio 128).
    """

    num_attention_heads: int
    head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    sliding_window: int
    rope: Rope
    ratio: int = 0
    overlap: bool = False
    indexer: Indexer | None = None

    @property
    def kind(self) -> str:
        if self.ratio == 0:
            return "window"
        return "window_compressed" if self.indexer is None else "window_compressed_sparse"

    @property
    def softmax_scale(self) -> float:
        return float(self.head_dim**-0.5)


Attention = LatentAttention | CompressedAttention


@dataclass(frozen=True)
class Router:
    """Which experts a token visits, and with what weight."""

    scoring_func: Scoring
    selection: Selection
    num_experts_per_tok: int
    routed_scaling_factor: float
    norm_topk_prob: bool
    n_group: int = 1
    topk_group: int = 1

    @property
    def has_bias(self) -> bool:
        """V3 and V4 balance load by a bias on the choice, not on the weight (auxiliary-loss-free)."""
        return self.selection == "noaux_tc"


@dataclass(frozen=True)
class DenseFFN:
    intermediate_size: int
    swiglu_limit: float | None = None

    kind = "dense"


@dataclass(frozen=True)
class MoE:
    n_routed_experts: int
    moe_intermediate_size: int
    n_shared_experts: int
    router: Router
    swiglu_limit: float | None = None

    @property
    def kind(self) -> str:
        return "moe_hash" if self.router.selection == "hash" else "moe"

    @property
    def shared_intermediate_size(self) -> int:
        return self.moe_intermediate_size * self.n_shared_experts


@dataclass(frozen=True)
class HyperConnections:
    """Manifold-constrained hyper-connections of V4: `hc_mult` residual streams (mHC, Xie et al., 2026)."""

    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float


@dataclass(frozen=True)
class LayerSpec:
    attention: Attention
    ffn: DenseFFN | MoE


@dataclass(frozen=True)
class Quantisation:
    """How the published linears are stored. `scale_suffix` names the tensor beside the weight.

    How the scales are stored is read from the tensors: V3.1's config says ue8m0, its files hold float32.
    """

    block: tuple[int, int]
    scale_suffix: str
    expert_format: Literal["fp8", "fp4"] = "fp8"


@dataclass(frozen=True)
class ModelSpec:
    """One model. Layers are listed one by one; MTP layers separately, since they are optional."""

    model_type: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    mtp_layers: tuple[LayerSpec, ...]
    max_position_embeddings: int
    rms_norm_eps: float
    hyper: HyperConnections | None
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    dtype: str
    quantisation: Quantisation | None = None
    initializer_range: float = 0.02

    def __hash__(self) -> int:
        """Worked out once: specs are keys of caches, and hashing 61 layers anew was half the time of a search."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)

    @property
    def all_layers(self) -> tuple[LayerSpec, ...]:
        """Decoder layers, then MTP layers: the numbering that cache streams use."""
        return self.layers + self.mtp_layers

    def kinds(self) -> list[tuple[str, str]]:
        """(attention, ffn) kinds, layer by layer."""
        return [(layer.attention.kind, layer.ffn.kind) for layer in self.layers]
