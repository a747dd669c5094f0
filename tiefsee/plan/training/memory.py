"""What one rank keeps in its memory: weights, gradients, optimizer states, activations of micro-batches in flight.

Micro-batches in flight, in stages: 1F1B p, interleaved p + (p - 1) / v, zero-bubble p, DualPipe p + 1, of 1/p of the
network each (DeepSeek-V3's report, table 2; Megatron-LM, arXiv 2104.04473).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tiefsee.plan.training.job import TrainJob
from tiefsee.plan.training.layout import Recompute, TrainLayout
from tiefsee.plan.training.optimizer import STATE_BYTES, WEIGHT_BYTES, shards
from tiefsee.plan.training.parameters import Parameters
from tiefsee.spec import ModelSpec
from tiefsee.spec.cost import Formats
from tiefsee.spec.model import CompressedAttention, LayerSpec, MoE

# Context, libraries, buffers of collectives and of all-to-all, and what the allocator cannot use. Nothing else is held
# back: a card that is sold with 80 GB has 80 GiB, and those 7 % are what a careful run leaves free.
RESERVED_BYTES = 4e9


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank, the fullest of the pipeline."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    available: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers

    @property
    def missing(self) -> float:
        """Bytes by which it does not fit; 0 where it does."""
        return max(0.0, self.total - self.available)


@lru_cache(maxsize=4096)
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


def in_flight(layout: TrainLayout, micro_batches: int) -> float:
    """Micro-batches whose activations a rank keeps, as a share of the whole network's."""
    p, v = layout.pp, layout.virtual
    if layout.schedule == "dualpipe":
        return min(p + 1, micro_batches) / p
    if layout.schedule == "interleaved":
        return min(p + (p - 1) / v, micro_batches) / p
    return min(p, micro_batches) / p


def rank_memory(
    job: TrainJob, layout: TrainLayout, held: Sequence[Parameters], recompute: Recompute, micro_batches: int
) -> Memory:
    """`held`: parameters of each pipeline rank before ZeRO."""
    spec = job.spec
    fullest = max(held, key=lambda p: p.dense + p.experts)
    total = fullest.dense + fullest.experts
    dense_group, expert_group = shards(layout)
    own = fullest.dense / dense_group + fullest.experts / expert_group
    # With ZeRO-3 the weights of a layer in work are whole: two layers' worth, one gathered ahead.
    working = total / max(1, len(spec.layers) // layout.pp) * 2
    weights = WEIGHT_BYTES * (own + working if layout.zero == 3 else total)
    gradients = layout.gradient_bytes * (own + working / 2 if layout.zero >= 2 else total)
    optimizer = 0.0 if layout.offload else STATE_BYTES[job.optimizer] * own
    tokens = layout.micro_batch * job.sequence / layout.cp
    layers = [*spec.layers, *(spec.mtp_layers if job.with_mtp else ())]
    per_token = sum(layer_activation_bytes(spec, layer, job.formats, recompute) for layer in layers)
    activations = tokens / layout.tp * per_token * in_flight(layout, micro_batches)
    # One layer in work keeps everything; logits of the last stage, in BF16 and once in FP32.
    activations += tokens / layout.tp * layer_activation_bytes(spec, layers[-1], job.formats, "none")
    logits = tokens / layout.tp * spec.vocab_size * 6.0
    size = job.rank_chip.memory_bytes.value
    return Memory(weights, gradients, optimizer, activations, RESERVED_BYTES + logits, size)
