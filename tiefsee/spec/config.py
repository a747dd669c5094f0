"""From a published config.json to `ModelSpec`: V2, V3, V3.1, R1, V3.2 and V4, old and new spellings.

Spellings differ by age: `rope_scaling` with `rope_theta` beside it or `rope_parameters`; V4
`compress_ratios` per layer (with entries for the MTP layers) or `layer_types` + `compress_rates`;
`num_hash_layers` or `mlp_layer_types`; `expert_dtype` at the top or inside `quantization_config`.
"""

from __future__ import annotations

import math
from typing import Any

from tiefsee.errors import ConfigError, UnsupportedModel
from tiefsee.spec.fields import Config, entries, get, mapping, number, positive, token_ids, whole
from tiefsee.spec.model import (
    CompressedAttention,
    DenseFFN,
    HyperConnections,
    Indexer,
    LatentAttention,
    LayerSpec,
    ModelSpec,
    MoE,
    Quantisation,
    Rope,
    Router,
    Yarn,
)

FAMILY = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4")

# The kind of a layer comes from its type; only old V4 files say it by ratio.
TYPE_OF_RATIO = {
    0: "sliding_attention",
    4: "compressed_sparse_attention",
    128: "heavily_compressed_attention",
}


def model_spec(config: Config) -> ModelSpec:
    """The spec that a config.json describes.

    Raises UnsupportedModel for other families, ConfigError for a field that is missing or absurd.
    """
    model_type = _family_of(config)
    common = {
        "model_type": model_type,
        "vocab_size": positive(config, "vocab_size"),
        "hidden_size": positive(config, "hidden_size"),
        "max_position_embeddings": positive(config, "max_position_embeddings"),
        "rms_norm_eps": number(config, "rms_norm_eps", 1e-6),
        "tie_word_embeddings": bool(get(config, "tie_word_embeddings", False)),
        "bos_token_id": next(iter(token_ids(config, "bos_token_id")), None),
        "eos_token_ids": token_ids(config, "eos_token_id"),
        "dtype": str(get(config, "dtype", get(config, "torch_dtype", "bfloat16"))),
        "quantisation": _quantisation(config, model_type),
        "initializer_range": number(config, "initializer_range", 0.02),
    }
    if model_type == "deepseek_v4":
        return _spec_v4(config, common)
    return _spec_latent(config, model_type, common)


# ---------------------------------------------------------------------------------- V2, V3, V3.2


def _spec_latent(config: Config, model_type: str, common: dict[str, Any]) -> ModelSpec:
    attention = _latent_attention(config, model_type)
    dense = DenseFFN(positive(config, "intermediate_size"))
    num_layers = positive(config, "num_hidden_layers")
    if config.get("n_routed_experts") is None:
        sparse: MoE | None = None
    else:
        sparse = _moe_latent(config, model_type)
    is_sparse = _sparse_layers(config, num_layers, sparse is not None)
    layers = tuple(
        LayerSpec(attention, sparse if is_sparse[i] and sparse is not None else dense) for i in range(num_layers)
    )
    num_mtp = whole(config, "num_nextn_predict_layers", whole(config, "num_mtp_layers", 0))
    mtp = (LayerSpec(attention, sparse if sparse is not None else dense),) * num_mtp
    return ModelSpec(layers=layers, mtp_layers=mtp, hyper=None, **common)


def _latent_attention(config: Config, model_type: str) -> LatentAttention:
    nope, rope_dim = positive(config, "qk_nope_head_dim"), positive(config, "qk_rope_head_dim")
    q_rank = None if config.get("q_lora_rank") is None else positive(config, "q_lora_rank")
    parameters = _rope_parameters(config)
    indexer = None
    if model_type == "deepseek_v32":
        indexer = _indexer(config)
        if q_rank is None:
            raise ConfigError("config.json has index_n_heads but no q_lora_rank; the indexer reads the query latent")
    return LatentAttention(
        num_attention_heads=positive(config, "num_attention_heads"),
        q_lora_rank=q_rank,
        kv_lora_rank=positive(config, "kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope_dim,
        v_head_dim=positive(config, "v_head_dim"),
        softmax_scale=(nope + rope_dim) ** -0.5 * _yarn_softmax_gain(parameters),
        rope=_rope(parameters, rope_dim, config),
        bias=bool(get(config, "attention_bias", False)),
        indexer=indexer,
    )


def _moe_latent(config: Config, model_type: str) -> MoE:
    softmax = model_type == "deepseek_v2"
    selection = str(get(config, "topk_method", "greedy" if softmax else "noaux_tc"))
    if softmax and selection not in ("greedy", "group_limited_greedy"):
        raise ConfigError(f"topk_method is {selection!r}; V2 knows 'greedy' and 'group_limited_greedy'")
    if not softmax and selection != "noaux_tc":
        raise ConfigError(f"topk_method is {selection!r}; {model_type} routes by 'noaux_tc'")
    scoring = str(get(config, "scoring_func", "softmax" if softmax else "sigmoid"))
    if scoring != ("softmax" if softmax else "sigmoid"):
        raise ConfigError(f"scoring_func is {scoring!r}; {model_type} uses {'softmax' if softmax else 'sigmoid'!r}")
    experts = positive(config, "n_routed_experts")
    grouped = selection != "greedy"
    router = Router(
        scoring_func="softmax" if softmax else "sigmoid",
        selection=selection,  # type: ignore[arg-type]
        num_experts_per_tok=positive(config, "num_experts_per_tok"),
        routed_scaling_factor=number(config, "routed_scaling_factor", 1.0),
        # No published V2 normalises its weights, and transformers ignores the flag there; so do we.
        norm_topk_prob=not softmax and bool(get(config, "norm_topk_prob", True)),
        n_group=(whole(config, "n_group", 1) or 1) if grouped else 1,
        topk_group=(whole(config, "topk_group", 1) or 1) if grouped else 1,
    )
    _check_router(router, experts)
    return MoE(
        experts,
        positive(config, "moe_intermediate_size"),
        whole(config, "n_shared_experts", 0),
        router,
    )


def _sparse_layers(config: Config, num_layers: int, has_experts: bool) -> list[bool]:
    types = entries(config, "mlp_layer_types", num_layers)
    if types is not None:
        return [t != "dense" for t in types[:num_layers]]
    first = whole(config, "first_k_dense_replace", 0)
    every = whole(config, "moe_layer_freq", 1) or 1
    return [has_experts and i >= first and i % every == 0 for i in range(num_layers)]


# --------------------------------------------------------------------------------------------- V4


def _spec_v4(config: Config, common: dict[str, Any]) -> ModelSpec:
    num_layers = positive(config, "num_hidden_layers")
    # V4-Flash-0731 has a block drafter (DSpark) where others have MTP; tiefsee does not run it yet.
    has_dspark = any(key.startswith("dspark_") for key in config)
    num_mtp = 0 if has_dspark else whole(config, "num_nextn_predict_layers", 0)
    types, mtp_types = _layer_types(config, num_layers, num_mtp)
    is_hash = _hash_layers(config, num_layers)
    learned, hashed = _moe_v4(config, "noaux_tc"), _moe_v4(config, "hash")
    attentions = {t: _compressed_attention(config, t) for t in {*types, *mtp_types}}
    ratios = [attention.ratio for attention in attentions.values()]
    if len(set(ratios)) < len(ratios):  # the cache names its streams by them
        raise ConfigError(f"two kinds of layers have the compression ratio {max(ratios)}; needed is one ratio for each")
    layers = tuple(LayerSpec(attentions[t], hashed if h else learned) for t, h in zip(types, is_hash, strict=True))
    mtp = tuple(LayerSpec(attentions[t], learned) for t in mtp_types)
    hyper = HyperConnections(
        hc_mult=positive(config, "hc_mult", 4),
        hc_sinkhorn_iters=positive(config, "hc_sinkhorn_iters", 20),
        hc_eps=number(config, "hc_eps", 1e-6),
    )
    return ModelSpec(layers=layers, mtp_layers=mtp, hyper=hyper, **common)


def _layer_types(config: Config, num_layers: int, num_mtp: int) -> tuple[list[str], list[str]]:
    """Types of the decoder layers and of the MTP layers; unsaid MTP layers slide (as all published)."""
    types = entries(config, "layer_types", num_layers)
    if types is None:
        ratios = entries(config, "compress_ratios", num_layers)
        if ratios is None:
            # The default of transformers' config: two heavy layers, then sparse and heavy in turn.
            sparse, heavy = TYPE_OF_RATIO[4], TYPE_OF_RATIO[128]
            types = [heavy] * min(num_layers, 2) + [sparse if i % 2 else heavy for i in range(num_layers - 2)]
        else:
            unknown = sorted({str(r) for r in ratios if r not in tuple(TYPE_OF_RATIO)})
            if unknown:
                raise ConfigError(
                    f"compress_ratios holds {', '.join(unknown)}; V4 knows 0, 4 and 128. V4.1 (ratios 1 and 2) is "
                    "not supported"
                )
            types = [TYPE_OF_RATIO[r] for r in ratios]
    unknown_types = sorted({str(t) for t in types} - set(TYPE_OF_RATIO.values()))
    if unknown_types:
        raise ConfigError(f"layer_types holds {unknown_types}; V4 knows {sorted(TYPE_OF_RATIO.values())}")
    sliding = TYPE_OF_RATIO[0]
    extra = [t for t in types[num_layers : num_layers + num_mtp] if t != sliding]
    if extra:
        # An MTP layer's entries begin at position 1, so its compressor windows would be out of phase.
        raise ConfigError(f"the MTP layers are of type {extra}; all published ones slide ({sliding})")
    return list(types[:num_layers]), [sliding] * num_mtp


def _hash_layers(config: Config, num_layers: int) -> list[bool]:
    types = entries(config, "mlp_layer_types", num_layers)
    if types is not None:
        return [t == "hash_moe" for t in types[:num_layers]]
    num_hash = whole(config, "num_hash_layers", 3)
    return [i < num_hash for i in range(num_layers)]


def _compressed_attention(config: Config, layer_type: str) -> CompressedAttention:
    head_dim = positive(config, "head_dim", 512)
    parameters = _rope_parameters(config)
    rope_dim = _v4_rope_dim(config, parameters, head_dim)
    given = mapping(config, "compress_rates")
    rates = {
        TYPE_OF_RATIO[4]: positive(config, "compress_rate_csa", positive(given, TYPE_OF_RATIO[4], 4)),
        TYPE_OF_RATIO[128]: positive(config, "compress_rate_hca", positive(given, TYPE_OF_RATIO[128], 128)),
    }
    sliding, sparse = layer_type == TYPE_OF_RATIO[0], layer_type == TYPE_OF_RATIO[4]
    heads, groups = positive(config, "num_attention_heads"), positive(config, "o_groups", 8)
    if heads * head_dim % groups:
        raise ConfigError(f"{heads} heads of {head_dim} do not divide into o_groups = {groups}")
    return CompressedAttention(
        num_attention_heads=heads,
        head_dim=head_dim,
        q_lora_rank=positive(config, "q_lora_rank"),
        o_groups=groups,
        o_lora_rank=positive(config, "o_lora_rank", 1024),
        sliding_window=positive(config, "sliding_window", 128),
        rope=_v4_rope(config, parameters, rope_dim, sliding),
        ratio=0 if sliding else rates[layer_type],
        overlap=sparse,
        indexer=_indexer(config) if sparse else None,
    )


def _v4_rope_dim(config: Config, parameters: Config, head_dim: int) -> int:
    nested = mapping(parameters, "main")
    for holder in (config, nested):
        if holder.get("partial_rotary_factor") is not None:
            return int(head_dim * number(holder, "partial_rotary_factor"))
    return positive(config, "qk_rope_head_dim", head_dim // 8)


def _v4_rope(config: Config, parameters: Config, dim: int, sliding: bool) -> Rope:
    """Window-only layers use rope_theta unscaled; layers with a compressor its own base, with YaRN.

    Keys and queries of a compressed layer share one base, whatever they are compared with.
    """
    nested = mapping(parameters, "main" if sliding else "compress")
    if nested:
        return _rope({"attention_factor": 1.0, **nested}, dim, config)
    if sliding:
        return Rope(number(config, "rope_theta", 10000.0), dim)
    theta = number(config, "compress_rope_theta", 160000.0)
    return _rope({"attention_factor": 1.0, **parameters, "rope_theta": theta}, dim, config)


def _moe_v4(config: Config, selection: str) -> MoE:
    scoring = str(get(config, "scoring_func", "sqrtsoftplus"))
    if scoring not in ("softmax", "sigmoid", "sqrtsoftplus"):
        raise ConfigError(f"scoring_func is {scoring!r}; known are 'sqrtsoftplus', 'sigmoid' and 'softmax'")
    router = Router(
        scoring_func=scoring,  # type: ignore[arg-type]
        selection=selection,  # type: ignore[arg-type]
        num_experts_per_tok=positive(config, "num_experts_per_tok"),
        routed_scaling_factor=number(config, "routed_scaling_factor", 1.5),
        norm_topk_prob=True,
    )
    experts = positive(config, "n_routed_experts")
    _check_router(router, experts)
    limit = (
        None if "swiglu_limit" in config and config["swiglu_limit"] is None else number(config, "swiglu_limit", 10.0)
    )
    shared = whole(config, "n_shared_experts", 1)
    return MoE(
        experts,
        positive(config, "moe_intermediate_size"),
        shared,
        router,
        limit,
    )


# ----------------------------------------------------------------------------------------- shared


def _family_of(config: Config) -> str:
    model_type = config.get("model_type")
    names = [str(a) for a in entries(config, "architectures", 0) or []]
    if model_type is None:
        raise UnsupportedModel(f"config.json has no model_type; needed one of {', '.join(FAMILY)}")
    if model_type in ("qwen2", "qwen3", "llama"):
        raise UnsupportedModel(
            f"model_type {model_type!r} is not of the DeepSeek family (R1-Distill checkpoints are {model_type} models "
            "trained on R1's answers); tiefsee runs V2, V3, V3.1, R1, V3.2 and V4. Use an engine for that family"
        )
    if str(model_type).startswith(("deepseek_v41", "deepseek_v4_1")) or any("V41" in n for n in names):
        raise UnsupportedModel(
            "this is DeepSeek-V4.1 (vision, Engram, compression ratios 1 and 2), which tiefsee does not run yet; "
            "use a V4 checkpoint"
        )
    if model_type not in FAMILY:
        raise UnsupportedModel(f"model_type is {model_type!r}; tiefsee runs {', '.join(FAMILY)}")
    return str(model_type)


def _rope_parameters(config: Config) -> Config:
    """`rope_parameters`, or the older `rope_scaling` with `rope_theta` beside it, as one mapping."""
    found = mapping(config, "rope_parameters") or mapping(config, "rope_scaling")
    return {"rope_theta": number(config, "rope_theta", 10000.0), **found}


def _rope(parameters: Config, dim: int, config: Config) -> Rope:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    theta = number(parameters, "rope_theta", 10000.0)
    if dim % 2:
        raise ConfigError(f"qk_rope_head_dim is {dim}; RoPE turns pairs of channels, so it must be even")
    if kind == "default":
        return Rope(theta, dim)
    if kind != "yarn":
        raise ConfigError(f"rope type is {kind!r}; the family uses 'default' and 'yarn'")
    original = whole(parameters, "original_max_position_embeddings", 0)
    if not original:
        raise ConfigError("rope type 'yarn' needs original_max_position_embeddings")
    factor = number(parameters, "factor", 0.0) or positive(config, "max_position_embeddings") / original
    attention_factor = number(parameters, "attention_factor", _yarn_attention_factor(parameters, factor))
    yarn = Yarn(
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=number(parameters, "beta_fast", 32.0),
        beta_slow=number(parameters, "beta_slow", 1.0),
        attention_factor=attention_factor,
        truncate=bool(parameters.get("truncate", True)),
    )
    return Rope(theta, dim, yarn)


def _yarn_attention_factor(parameters: Config, factor: float) -> float:
    """What cos and sin are scaled by, unless the file says so itself."""
    scale, all_dim = number(parameters, "mscale", 0.0), number(parameters, "mscale_all_dim", 0.0)
    if scale and all_dim:
        return yarn_mscale(factor, scale) / yarn_mscale(factor, all_dim)
    return yarn_mscale(factor, 1.0)


def yarn_mscale(factor: float, mscale: float) -> float:
    """0.1 * mscale * ln(factor) + 1: 1.3689 for V3 (factor 40).   YaRN, section 3.4"""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_softmax_gain(parameters: Config) -> float:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    all_dim = number(parameters, "mscale_all_dim", 0.0)
    if kind == "default" or not all_dim:
        return 1.0
    return yarn_mscale(number(parameters, "factor"), all_dim) ** 2


def _indexer(config: Config) -> Indexer:
    return Indexer(
        positive(config, "index_n_heads", 64),
        positive(config, "index_head_dim", 128),
        positive(config, "index_topk"),
    )


def _quantisation(config: Config, model_type: str) -> Quantisation | None:
    found = mapping(config, "quantization_config")
    if not found:
        return None
    method = found.get("quant_method", found.get("fmt"))
    if method not in ("fp8", "e4m3"):
        raise ConfigError(
            f"quantization_config.quant_method is {method!r}; tiefsee reads DeepSeek's 'fp8' (with FP4 experts)"
        )
    block = entries(found, "weight_block_size", 0) or [128, 128]
    if len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block):
        raise ConfigError(f"weight_block_size is {block}; needed two positive whole numbers")
    v4 = model_type == "deepseek_v4"
    expert_dtype = str(config.get("expert_dtype") or found.get("expert_dtype") or "fp8")
    return Quantisation(
        block=(block[0], block[1]),
        scale_suffix=".scale" if v4 else ".weight_scale_inv",
        expert_format="fp4" if "fp4" in expert_dtype or "int4" in expert_dtype else "fp8",
    )


def _check_router(router: Router, experts: int) -> None:
    if experts % router.n_group:
        raise ConfigError(f"n_routed_experts = {experts} does not divide into n_group = {router.n_group}")
    reachable = experts // router.n_group * router.topk_group
    if router.num_experts_per_tok > reachable or router.topk_group > router.n_group:
        raise ConfigError(
            f"num_experts_per_tok = {router.num_experts_per_tok}, but only {reachable} of {experts} experts are "
            f"reachable (topk_group {router.topk_group} of n_group {router.n_group})"
        )
