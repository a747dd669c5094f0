"""What will run fused for a model on a chip, and what will not, told at load."""

from __future__ import annotations

import torch

from tiefsee.ops.ascend import rules
from tiefsee.ops.ascend.chip import AscendChip
from tiefsee.spec.model import CompressedAttention, LatentAttention, ModelSpec, MoE

NO_FUSED_V4 = "torch_npu has no fused operator for a window with compressed entries"


def remarks_on(chip: AscendChip, spec: ModelSpec, dtype: torch.dtype) -> tuple[str, ...]:
    """A sentence for each part that is composed of plain operators, with the reason."""
    reasons = composed_parts(chip, spec, dtype)
    return tuple(f"{chip}: {part} is composed of plain operators, since {why}" for part, why in reasons.items())


def composed_parts(chip: AscendChip, spec: ModelSpec, dtype: torch.dtype) -> dict[str, str]:
    """Part -> why it is not fused. Norms, rotations and gated activations always are."""
    found: dict[str, str] = {}

    def note(part: str, why: str | None) -> None:
        if why is not None:
            found.setdefault(part, why)

    for layer in spec.layers:
        attention = layer.attention
        if isinstance(attention, CompressedAttention):
            note("attention", NO_FUSED_V4)
        else:
            _latent(attention, dtype, note)
        if isinstance(layer.ffn, MoE):
            note("gating", rules.gating(chip.generation, layer.ffn.router, layer.ffn.n_routed_experts))
            note("the product of experts", rules.grouped_matmul(dtype, layer.ffn.n_routed_experts))
    if spec.hyper is not None:
        note("mHC", rules.hyper(chip.generation, dtype, spec.hyper.hc_mult, spec.hidden_size))
    return found


def _latent(attention: LatentAttention, dtype: torch.dtype, note: object) -> None:
    assert callable(note)
    sizes = (attention.num_attention_heads, attention.kv_lora_rank, attention.qk_rope_head_dim)
    why = rules.attention(dtype, *sizes)
    note("attention", why)
    if why is None:
        note("attention of prefills", rules.expanded_attention(attention.qk_nope_head_dim, attention.v_head_dim))
    if attention.indexer is not None:
        i = attention.indexer
        note("the indexer", rules.indexer(dtype, i.index_n_heads, i.index_head_dim, i.index_topk))
