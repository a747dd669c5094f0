"""A whole step: the operators of all layers, layers of a kind counted once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache

from tiefsee.errors import ConfigError
from tiefsee.spec.cost.attention import compressed_ops, latent_ops, linear
from tiefsee.spec.cost.ffn import dense_ops, embedding_ops, head_ops, moe_ops, residual_ops
from tiefsee.spec.cost.types import WHOLE, Formats, Op, Shard, Work
from tiefsee.spec.model import DenseFFN, LatentAttention, LayerSpec, ModelSpec, MoE


def step_ops(
    spec: ModelSpec, work: Work, formats: Formats, shard: Shard = WHOLE, *, imbalance: float = 1.0,
    layers: tuple[int, int] | None = None,
) -> tuple[Op, ...]:  # fmt: skip
    """The operators of one forward step on one rank. `layers` = (first, after the last) is a pipeline stage.

    Raises ConfigError where heads, experts or widths do not divide.
    """
    check_shard(spec, shard)
    first, end = layers or (0, len(spec.layers))
    ops: list[Op] = []
    if first == 0:
        ops += embedding_ops(spec.hidden_size, work.num_tokens, formats)
    for layer, count in _kinds(spec, first, end).items():
        ops += (replace(op, count=count) for op in layer_ops(spec, layer, work, formats, shard, imbalance))
    if end == len(spec.layers):
        rows = work.num_requests if work.num_logits is None else work.num_logits
        ops += head_ops(spec.hyper, spec.vocab_size, spec.hidden_size, rows, formats, shard)
    return tuple(ops)


def layer_ops(
    spec: ModelSpec, layer: LayerSpec, work: Work, formats: Formats, shard: Shard, imbalance: float
) -> tuple[Op, ...]:
    """One decoder layer."""
    attention, ffn, hidden = layer.attention, layer.ffn, spec.hidden_size
    ops: list[Op] = []
    if isinstance(attention, LatentAttention):
        ops += latent_ops(attention, hidden, work, formats, shard)
    else:
        ops += compressed_ops(attention, hidden, work, formats, shard)
    if isinstance(ffn, MoE):
        ops += moe_ops(ffn, hidden, work, formats, shard, imbalance)
    else:
        ops += dense_ops(ffn, hidden, work, formats, shard)
    ops += residual_ops(spec.hyper, hidden, work, formats)
    return tuple(ops)


def mtp_ops(spec: ModelSpec, work: Work, formats: Formats, shard: Shard, *, imbalance: float = 1.0) -> tuple[Op, ...]:
    """The MTP layer once: join hidden state and embedding (2D -> D), one layer, the shared head."""
    if not spec.mtp_layers:
        raise ConfigError(f"{spec.model_type} has no MTP layer; leave speculation out")
    ops = [linear("mtp.join", work.num_tokens, spec.hidden_size, 2 * spec.hidden_size, formats)]
    layer = layer_ops(spec, spec.mtp_layers[0], work, formats, shard, imbalance)
    ops += (replace(op, name=f"mtp.{op.name}") for op in layer)
    rows = work.num_tokens if work.num_logits is None else work.num_logits
    ops += (
        replace(op, name=f"mtp.{op.name}")
        for op in head_ops(spec.hyper, spec.vocab_size, spec.hidden_size, rows, formats, shard)
    )
    return tuple(ops)


def check_shard(spec: ModelSpec, shard: Shard) -> None:
    """Raises ConfigError for a split that leaves somebody a fraction of a head or of an expert."""
    heads = spec.layers[0].attention.num_attention_heads
    if heads % shard.tp:
        raise ConfigError(f"tp = {shard.tp} does not divide {heads} heads; take a divisor")
    moe = next((layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoE)), None)
    if moe is None:
        return
    if shard.ep > 1 and moe.n_routed_experts % shard.ep and shard.ep <= moe.n_routed_experts:
        # Redundant copies of hot experts fill the rest: V3 was served on 144 ranks with 32 of them.
        spare = -moe.n_routed_experts % shard.ep
        if spare > moe.n_routed_experts / 4:
            raise ConfigError(
                f"ep = {shard.ep} does not divide {moe.n_routed_experts} experts, and to fill up takes {spare} copies"
            )
    if moe.moe_intermediate_size % shard.moe_tp:
        raise ConfigError(f"moe_tp = {shard.moe_tp} does not divide an expert's width of {moe.moe_intermediate_size}")


@lru_cache(maxsize=256)
def _kinds(spec: ModelSpec, first: int, end: int) -> Counter[LayerSpec]:
    return Counter(spec.layers[first:end])


def is_moe(layer: LayerSpec) -> bool:
    return not isinstance(layer.ffn, DenseFFN)
