"""Every tensor of a checkpoint: our name, the published name, other spellings, shape and kind.

Our names are DeepSeek's own short ones (`layers.3.attn.wq_a.weight`), which V4's files carry as they
are and V3's inference code uses too. V2, V3 and V3.2 are published under Hugging Face names; one table
maps them. Nothing here reads a file.

Shapes are [out, in], as torch's linear has them. `w1` is the gate projection, `w3` up, `w2` down.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tiefsee.spec.model import (
    CompressedAttention,
    DenseFFN,
    LatentAttention,
    LayerSpec,
    ModelSpec,
    MoE,
)
from tiefsee.spec.split import WHOLE, Split

Kind = Literal["linear", "norm", "embedding", "plain", "fp32", "table"]

# Ours -> Hugging Face's, inside one layer of V2, V3 and V3.2.
HF_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn.wq.weight": "self_attn.q_proj.weight",
    "attn.wq_a.weight": "self_attn.q_a_proj.weight",
    "attn.wq_a.bias": "self_attn.q_a_proj.bias",
    "attn.q_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn.wq_b.weight": "self_attn.q_b_proj.weight",
    "attn.wkv_a.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn.wkv_a.bias": "self_attn.kv_a_proj_with_mqa.bias",
    "attn.kv_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn.wkv_b.weight": "self_attn.kv_b_proj.weight",
    "attn.wo.weight": "self_attn.o_proj.weight",
    "attn.wo.bias": "self_attn.o_proj.bias",
    "attn.indexer.wq_b.weight": "self_attn.indexer.wq_b.weight",
    "attn.indexer.wk.weight": "self_attn.indexer.wk.weight",
    "attn.indexer.k_norm.weight": "self_attn.indexer.k_norm.weight",
    "attn.indexer.k_norm.bias": "self_attn.indexer.k_norm.bias",
    "attn.indexer.weights_proj.weight": "self_attn.indexer.weights_proj.weight",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "enorm.weight": "enorm.weight",
    "hnorm.weight": "hnorm.weight",
    "eh_proj.weight": "eh_proj.weight",
    "norm.weight": "shared_head.norm.weight",
}
HF_LINEAR = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


@dataclass(frozen=True)
class Part:
    """What one rank holds of a tensor: some rows, some columns (None: all), or nothing. Of an expert that it holds,
    `slot` is the place in its own stack."""

    rows: range | None = None
    columns: range | None = None
    is_held: bool = True
    slot: int | None = None


ALL, NOTHING = Part(), Part(is_held=False)


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor of a checkpoint.

    `name` is our parameter; experts are stacked there, `expert` is the index in its first dim. `kind`
    says what may be done to it: "linear" may be quantised, "plain" is a matrix that DeepSeek leaves in
    BF16, "fp32" stays float32 whatever the model's dtype, "table" holds whole numbers. `part` is what one rank
    holds of it (`spec.split`).
    """

    name: str
    published: str
    shape: tuple[int, ...]
    kind: Kind
    expert: int | None = None
    aliases: tuple[str, ...] = ()
    optional: bool = False
    part: Part = ALL

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    @property
    def held_shape(self) -> tuple[int, ...]:
        """What this rank holds of it: [0, ..] where that is nothing."""
        if not self.part.is_held:
            return (0, *self.shape[1:])
        taken = (self.part.rows, self.part.columns)
        return tuple(
            len(t) if t is not None else n for t, n in itertools.zip_longest(taken, self.shape) if n is not None
        )


@dataclass(frozen=True)
class _Row:
    """A tensor inside a layer, before it is named in full."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    expert: int | None = None
    part: Part = ALL


def checkpoint_tensors(spec: ModelSpec, split: Split = WHOLE) -> list[CheckpointTensor]:
    """Every tensor that a checkpoint of this model holds, in file order, with the parts that one rank takes of them."""
    published = _publish_v4 if spec.model_type == "deepseek_v4" else _publish_hf
    d, w, words = spec.hidden_size, spec.vocab_size, Part(rows=split.vocabulary(spec.vocab_size))
    rows: list[tuple[str, _Row]] = [("", _Row("embed.weight", (w, d), "embedding", part=words))]
    for index, layer in enumerate(spec.layers):
        rows += [(f"layers.{index}.", row) for row in _layer_rows(spec, layer, split)]
    for index, layer in enumerate(spec.mtp_layers):
        rows += [(f"mtp.{index}.", row) for row in _mtp_rows(spec, layer, split)]
    rows.append(("", _Row("norm.weight", (d,), "norm")))
    rows.append(("", _Row("head.weight", (w, d), "embedding", part=words)))
    if spec.hyper is not None:
        rows += [("", row) for row in _hyper_rows("hc_head", spec.hyper.hc_mult, spec.hyper.hc_mult, 1, d)]
    return [published(spec, prefix, row) for prefix, row in rows]


# ------------------------------------------------------------------------------------------ rows


def _layer_rows(spec: ModelSpec, layer: LayerSpec, split: Split) -> Iterator[_Row]:
    d = spec.hidden_size
    yield _Row("attn_norm.weight", (d,), "norm")
    if isinstance(layer.attention, LatentAttention):
        yield from _latent_rows(layer.attention, d, split)
    else:
        yield from _compressed_rows(layer.attention, d, split)
    yield _Row("ffn_norm.weight", (d,), "norm")
    if isinstance(layer.ffn, DenseFFN):
        yield from _swiglu_rows("ffn.", d, layer.ffn.intermediate_size, split)
    else:
        yield from _moe_rows(spec, layer.ffn, split)
    if spec.hyper is not None:
        x = spec.hyper.hc_mult
        yield from _hyper_rows("hc_attn", x, (2 + x) * x, 3, d)
        yield from _hyper_rows("hc_ffn", x, (2 + x) * x, 3, d)


def _mtp_rows(spec: ModelSpec, layer: LayerSpec, split: Split) -> Iterator[_Row]:
    """V3 joins embedding and hidden state by one matrix; V4 has one for each (and its own mHC head)."""
    d = spec.hidden_size
    yield from (_Row("enorm.weight", (d,), "norm"), _Row("hnorm.weight", (d,), "norm"))
    if spec.hyper is None:
        yield _Row("eh_proj.weight", (d, 2 * d), "linear")
    else:
        yield from (_Row("e_proj.weight", (d, d), "linear"), _Row("h_proj.weight", (d, d), "linear"))
        yield from _hyper_rows("hc_head", spec.hyper.hc_mult, spec.hyper.hc_mult, 1, d)
    yield from _layer_rows(spec, layer, split)
    yield _Row("norm.weight", (d,), "norm")


def _latent_rows(a: LatentAttention, d: int, split: Split) -> Iterator[_Row]:
    heads, qk, kv = a.num_attention_heads, a.qk_nope_head_dim + a.qk_rope_head_dim, a.qk_nope_head_dim + a.v_head_dim
    own = split.heads(a)
    queries, outputs = Part(rows=_times(own, qk)), Part(columns=_times(own, a.v_head_dim))
    if a.q_lora_rank is None:
        yield _Row("attn.wq.weight", (heads * qk, d), "linear", part=queries)
    else:
        yield _Row("attn.wq_a.weight", (a.q_lora_rank, d), "linear")
        if a.bias:
            yield _Row("attn.wq_a.bias", (a.q_lora_rank,), "norm")
        yield _Row("attn.q_norm.weight", (a.q_lora_rank,), "norm")
        yield _Row("attn.wq_b.weight", (heads * qk, a.q_lora_rank), "linear", part=queries)
    yield _Row("attn.wkv_a.weight", (a.kv_lora_rank + a.qk_rope_head_dim, d), "linear")
    if a.bias:
        yield _Row("attn.wkv_a.bias", (a.kv_lora_rank + a.qk_rope_head_dim,), "norm")
    yield _Row("attn.kv_norm.weight", (a.kv_lora_rank,), "norm")
    yield _Row("attn.wkv_b.weight", (heads * kv, a.kv_lora_rank), "linear", part=Part(rows=_times(own, kv)))
    yield _Row("attn.wo.weight", (d, heads * a.v_head_dim), "linear", part=outputs)
    if a.bias:  # of a sum over ranks, so one of them adds it
        yield _Row("attn.wo.bias", (d,), "norm", part=ALL if split.rank == 0 else NOTHING)
    if a.indexer is not None and a.q_lora_rank is not None:
        i, j = a.indexer.index_n_heads, a.indexer.index_head_dim
        yield _Row("attn.indexer.wq_b.weight", (i * j, a.q_lora_rank), "linear")
        yield _Row("attn.indexer.wk.weight", (j, d), "linear")
        yield _Row("attn.indexer.k_norm.weight", (j,), "norm")
        yield _Row("attn.indexer.k_norm.bias", (j,), "norm")
        yield _Row("attn.indexer.weights_proj.weight", (i, d), "plain")


def _compressed_rows(a: CompressedAttention, d: int, split: Split) -> Iterator[_Row]:
    heads, width, own, groups = (
        a.num_attention_heads,
        a.head_dim,
        split.heads(a),
        _times(split.groups(a), a.o_lora_rank),
    )
    yield _Row("attn.attn_sink", (heads,), "fp32", part=Part(rows=own))
    yield _Row("attn.wq_a.weight", (a.q_lora_rank, d), "linear")
    yield _Row("attn.q_norm.weight", (a.q_lora_rank,), "norm")
    yield _Row("attn.wq_b.weight", (heads * width, a.q_lora_rank), "linear", part=Part(rows=_times(own, width)))
    yield _Row("attn.wkv.weight", (width, d), "linear")
    yield _Row("attn.kv_norm.weight", (width,), "norm")
    outputs = (a.o_groups * a.o_lora_rank, heads * width // a.o_groups)
    yield _Row("attn.wo_a.weight", outputs, "linear", part=Part(rows=groups))
    yield _Row("attn.wo_b.weight", (d, a.o_groups * a.o_lora_rank), "linear", part=Part(columns=groups))
    if a.ratio:
        yield from _compressor_rows("attn.compressor.", a, width, d)
    if a.indexer is not None:
        i, j = a.indexer.index_n_heads, a.indexer.index_head_dim
        yield _Row("attn.indexer.wq_b.weight", (i * j, a.q_lora_rank), "linear")
        yield _Row("attn.indexer.weights_proj.weight", (i, d), "plain")
        yield from _compressor_rows("attn.indexer.compressor.", a, j, d)


def _compressor_rows(prefix: str, a: CompressedAttention, width: int, d: int) -> Iterator[_Row]:
    series = 2 if a.overlap else 1
    yield _Row(prefix + "ape", (a.ratio, series * width), "fp32")
    yield _Row(prefix + "wkv.weight", (series * width, d), "plain")
    yield _Row(prefix + "wgate.weight", (series * width, d), "plain")
    yield _Row(prefix + "norm.weight", (width,), "norm")


def _moe_rows(spec: ModelSpec, moe: MoE, split: Split) -> Iterator[_Row]:
    d, e, f = spec.hidden_size, moe.n_routed_experts, moe.moe_intermediate_size
    own = split.experts(e)
    yield _Row("ffn.gate.weight", (e, d), "plain")
    if moe.router.has_bias:
        yield _Row("ffn.gate.bias", (e,), "fp32")
    if moe.router.selection == "hash":
        yield _Row("ffn.gate.tid2eid", (spec.vocab_size, moe.router.num_experts_per_tok), "table")
    for expert in range(e):
        part = Part(slot=own.index(expert)) if expert in own else NOTHING
        yield _Row("ffn.experts.w1", (f, d), "linear", expert, part)
        yield _Row("ffn.experts.w2", (d, f), "linear", expert, part)
        yield _Row("ffn.experts.w3", (f, d), "linear", expert, part)
    if moe.n_shared_experts:
        yield from _swiglu_rows("ffn.shared_experts.", d, moe.shared_intermediate_size, split)


def _swiglu_rows(prefix: str, d: int, f: int, split: Split) -> Iterator[_Row]:
    own = split.width(f)
    yield _Row(prefix + "w1.weight", (f, d), "linear", part=Part(rows=own))
    yield _Row(prefix + "w2.weight", (d, f), "linear", part=Part(columns=own))
    yield _Row(prefix + "w3.weight", (f, d), "linear", part=Part(rows=own))


def _hyper_rows(prefix: str, streams: int, outputs: int, num_scales: int, d: int) -> Iterator[_Row]:
    yield _Row(prefix + "_fn", (outputs, streams * d), "fp32")
    yield _Row(prefix + "_base", (outputs,), "fp32")
    yield _Row(prefix + "_scale", (num_scales,), "fp32")


def _times(items: range, width: int) -> range:
    """Rows or columns of some heads or groups, each `width` wide."""
    return range(items.start * width, items.stop * width)


# --------------------------------------------------------------------------------- published names


def _publish_v4(spec: ModelSpec, prefix: str, row: _Row) -> CheckpointTensor:
    """V4's files carry our names; transformers puts `model.` in front and renames a few."""
    name = prefix + row.name
    published = name if row.expert is None else name.replace(".experts.", f".experts.{row.expert}.") + ".weight"
    aliases = ["model." + published]
    if row.name == "attn.kv_norm.weight":
        aliases += [a.replace("attn.kv_norm", "attn.norm") for a in (published, *aliases)]
    if name == "embed.weight":
        aliases += ["model.embed_tokens.weight"]
    if name == "head.weight":
        aliases += ["lm_head.weight"]
    if name.startswith("hc_head_"):
        aliases += [f"model.hc_head.{name.replace('hc_head_', 'hc_')}"]
    optional = prefix.startswith("mtp.") or (name == "head.weight" and spec.tie_word_embeddings)
    return CheckpointTensor(name, published, row.shape, row.kind, row.expert, tuple(aliases), optional, row.part)


def _publish_hf(spec: ModelSpec, prefix: str, row: _Row) -> CheckpointTensor:
    """Hugging Face names of V2, V3 and V3.2; MTP layers are numbered on from the decoder's."""
    name, is_mtp = prefix + row.name, prefix.startswith("mtp.")
    optional = is_mtp or (name == "head.weight" and spec.tie_word_embeddings)
    if not prefix:
        published = {"embed.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}.get(
            name, "model." + name
        )
    else:
        index = int(prefix.split(".")[1]) + (spec.num_hidden_layers if is_mtp else 0)
        published = f"model.layers.{index}.{_hf_leaf(row)}"
    return CheckpointTensor(
        name, published, row.shape, row.kind, row.expert, (name,) if row.expert is None else (), optional, row.part
    )


def _hf_leaf(row: _Row) -> str:
    known = HF_NAMES.get(row.name)
    if known is not None:
        return known
    path = row.name.split(".")
    path[0] = "mlp"
    if row.expert is not None:
        return f"mlp.experts.{row.expert}.{HF_LINEAR[path[-1]]}.weight"
    return ".".join(HF_LINEAR.get(p, p) for p in path)
