"""What a layer keeps of its forward pass for its backward pass, in bytes per token."""

from __future__ import annotations

from tiefsee.plan.training.layout import RECOMPUTES, Recompute
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import Formats
from tiefsee.spec.model import CompressedAttention, LayerSpec, MoE


def layer_activation_bytes(spec: ModelSpec, layer: LayerSpec, formats: Formats, recompute: Recompute) -> float:
    """Kept per token for one layer's backward, on all TP ranks together.

    full        the layer's input (all streams of mHC)
    selective   what V3 keeps: inputs of products in the format that they are multiplied in; norms, up-projections of
                MLA and SwiGLU are computed again (section 3.2.3)
    none        everything
    """
    hidden, streams = spec.hidden_size, spec.hyper.hc_mult if spec.hyper is not None else 1
    entry = 2.0 * hidden * streams
    if recompute == "full":
        return entry
    low = 1.0 if formats.linear in ("fp8", "fp4") else 2.0
    a = layer.attention
    if isinstance(a, CompressedAttention):
        latents, heads = a.q_lora_rank + a.head_dim, a.num_attention_heads * a.head_dim
        expanded, out = heads, heads + a.o_groups * a.o_lora_rank
    else:
        latents = (a.q_lora_rank or 0) + a.kv_lora_rank + a.qk_rope_head_dim
        expanded = a.num_attention_heads * (2 * (a.qk_nope_head_dim + a.qk_rope_head_dim) + a.v_head_dim)
        out = a.num_attention_heads * a.v_head_dim
    kept = entry + low * latents + 2.0 * out
    if isinstance(layer.ffn, MoE):
        routed = layer.ffn.router.num_experts_per_tok
        width = routed * layer.ffn.moe_intermediate_size + layer.ffn.shared_intermediate_size
        kept += low * (routed * hidden + 2 * width)
    else:
        width = layer.ffn.intermediate_size
        kept += low * 2 * width
    if recompute == "none":
        kept += 2.0 * (4 * hidden + latents + expanded + width)
    return kept


def activation_bytes(spec: ModelSpec, formats: Formats, with_mtp: bool) -> dict[Recompute, float]:
    """Kept per token for all layers. V3 in FP8: 8.9 MB with selective recomputation, 0.9 MB with full."""
    layers = [*spec.layers, *(spec.mtp_layers if with_mtp else ())]
    return {
        recompute: sum(layer_activation_bytes(spec, layer, formats, recompute) for layer in layers)
        for recompute in RECOMPUTES
    }
