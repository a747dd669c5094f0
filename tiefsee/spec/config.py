"""From a published config.json to `ModelSpec`: V2, V3, V3.1, R1, V3.2 and V4, old and new spellings.

Spellings differ by age: `rope_scaling` with `rope_theta` beside it or `rope_parameters`; V4
`compress_ratios` per layer (with entries for the MTP layers) or `layer_types` + `compress_rates`;
`num_hash_layers` or `mlp_layer_types`; `expert_dtype` at the top or inside `quantization_config`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tiefsee.errors import ConfigError, UnsupportedModel
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

Config = Mapping[str, Any]

FAMILY = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4")

# The kind of a layer comes from its type; only old V4 files say it by ratio.
TYPE_OF_RATIO = {
    0: "sliding_attention",
    4: "compressed_sparse_attention",
    128: "heavily_compressed_attention",
}

_MISSING = object()


def model_spec(config: Config) -> ModelSpec:
    """The spec that a config.json describes.

    Raises UnsupportedModel for other families, ConfigError for a field that is missing or absurd.
    """
    model_type = _family_of(config)
    common = {
        "model_type": model_type,
        "vocab_size": _positive(config, "vocab_size"),
        "hidden_size": _positive(config, "hidden_size"),
        "max_position_embeddings": _positive(config, "max_position_embeddings"),
        "rms_norm_eps": float(_get(config, "rms_norm_eps", 1e-6)),
        "tie_word_embeddings": bool(_get(config, "tie_word_embeddings", False)),
        "bos_token_id": _get(config, "bos_token_id", None),
        "eos_token_ids": _token_ids(_get(config, "eos_token_id", ())),
        "dtype": str(_get(config, "dtype", _get(config, "torch_dtype", "bfloat16"))),
        "quantisation": _quantisation(config, model_type),
        "initializer_range": float(_get(config, "initializer_range", 0.02)),
    }
    if model_type == "deepseek_v4":
        return _spec_v4(config, common)
    return _spec_latent(config, model_type, common)


# ---------------------------------------------------------------------------------- V2, V3, V3.2


def _spec_latent(config: Config, model_type: str, common: dict[str, Any]) -> ModelSpec:
    attention = _latent_attention(config, model_type)
    dense = DenseFFN(_positive(config, "intermediate_size"))
    num_layers = _positive(config, "num_hidden_layers")
    if config.get("n_routed_experts") is None:
        sparse: MoE | None = None
    else:
        sparse = _moe_latent(config, model_type)
    is_sparse = _sparse_layers(config, num_layers, sparse is not None)
    layers = tuple(
        LayerSpec(attention, sparse if is_sparse[i] and sparse is not None else dense) for i in range(num_layers)
    )
    num_mtp = int(_get(config, "num_nextn_predict_layers", _get(config, "num_mtp_layers", 0)) or 0)
    mtp = (LayerSpec(attention, sparse if sparse is not None else dense),) * num_mtp
    return ModelSpec(layers=layers, mtp_layers=mtp, hyper=None, **common)


def _latent_attention(config: Config, model_type: str) -> LatentAttention:
    nope, rope_dim = _positive(config, "qk_nope_head_dim"), _positive(config, "qk_rope_head_dim")
    q_rank = _get(config, "q_lora_rank", None)
    parameters = _rope_parameters(config)
    indexer = None
    if model_type == "deepseek_v32":
        indexer = _indexer(config)
        if q_rank is None:
            raise ConfigError("config.json has index_n_heads but no q_lora_rank; the indexer reads the query latent")
    return LatentAttention(
        num_attention_heads=_positive(config, "num_attention_heads"),
        q_lora_rank=None if q_rank is None else int(q_rank),
        kv_lora_rank=_positive(config, "kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope_dim,
        v_head_dim=_positive(config, "v_head_dim"),
        softmax_scale=(nope + rope_dim) ** -0.5 * _yarn_softmax_gain(parameters),
        rope=_rope(parameters, rope_dim, config),
        bias=bool(_get(config, "attention_bias", False)),
        indexer=indexer,
    )


def _moe_latent(config: Config, model_type: str) -> MoE:
    softmax = model_type == "deepseek_v2"
    selection = str(_get(config, "topk_method", "greedy" if softmax else "noaux_tc"))
    if softmax and selection not in ("greedy", "group_limited_greedy"):
        raise ConfigError(f"topk_method is {selection!r}; V2 knows 'greedy' and 'group_limited_greedy'")
    if not softmax and selection != "noaux_tc":
        raise ConfigError(f"topk_method is {selection!r}; {model_type} routes by 'noaux_tc'")
    scoring = str(_get(config, "scoring_func", "softmax" if softmax else "sigmoid"))
    if scoring != ("softmax" if softmax else "sigmoid"):
        raise ConfigError(f"scoring_func is {scoring!r}; {model_type} uses {'softmax' if softmax else 'sigmoid'!r}")
    experts = _positive(config, "n_routed_experts")
    grouped = selection != "greedy"
    router = Router(
        scoring_func="softmax" if softmax else "sigmoid",
        selection=selection,  # type: ignore[arg-type]
        num_experts_per_tok=_positive(config, "num_experts_per_tok"),
        routed_scaling_factor=float(_get(config, "routed_scaling_factor", 1.0)),
        # No published V2 normalises its weights, and transformers ignores the flag there; so do we.
        norm_topk_prob=not softmax and bool(_get(config, "norm_topk_prob", True)),
        n_group=int(_get(config, "n_group", 1) or 1) if grouped else 1,
        topk_group=int(_get(config, "topk_group", 1) or 1) if grouped else 1,
    )
    _check_router(router, experts)
    return MoE(
        experts,
        _positive(config, "moe_intermediate_size"),
        int(_get(config, "n_shared_experts", 0) or 0),
        router,
    )


def _sparse_layers(config: Config, num_layers: int, has_experts: bool) -> list[bool]:
    types = config.get("mlp_layer_types")
    if types is not None:
        _check_length("mlp_layer_types", types, num_layers)
        return [t != "dense" for t in types[:num_layers]]
    first = int(_get(config, "first_k_dense_replace", 0) or 0)
    every = int(_get(config, "moe_layer_freq", 1) or 1)
    return [has_experts and i >= first and i % every == 0 for i in range(num_layers)]


# --------------------------------------------------------------------------------------------- V4


def _spec_v4(config: Config, common: dict[str, Any]) -> ModelSpec:
    num_layers = _positive(config, "num_hidden_layers")
    # V4-Flash-0731 has a block drafter (DSpark) where others have MTP; tiefsee does not run it yet.
    has_dspark = any(key.startswith("dspark_") for key in config)
    num_mtp = 0 if has_dspark else int(_get(config, "num_nextn_predict_layers", 0) or 0)
    types, mtp_types = _layer_types(config, num_layers, num_mtp)
    is_hash = _hash_layers(config, num_layers)
    learned, hashed = _moe_v4(config, "noaux_tc"), _moe_v4(config, "hash")
    attentions = {t: _compressed_attention(config, t) for t in {*types, *mtp_types}}
    layers = tuple(LayerSpec(attentions[t], hashed if h else learned) for t, h in zip(types, is_hash, strict=True))
    mtp = tuple(LayerSpec(attentions[t], learned) for t in mtp_types)
    hyper = HyperConnections(
        hc_mult=_positive(config, "hc_mult", 4),
        hc_sinkhorn_iters=_positive(config, "hc_sinkhorn_iters", 20),
        hc_eps=float(_get(config, "hc_eps", 1e-6)),
    )
    return ModelSpec(layers=layers, mtp_layers=mtp, hyper=hyper, **common)


def _layer_types(config: Config, num_layers: int, num_mtp: int) -> tuple[list[str], list[str]]:
    """Types of the decoder layers and of the MTP layers; unsaid MTP layers slide (as all published)."""
    types = config.get("layer_types")
    if types is None:
        ratios = config.get("compress_ratios")
        if ratios is None:
            # The default of transformers' config: two heavy layers, then sparse and heavy in turn.
            sparse, heavy = TYPE_OF_RATIO[4], TYPE_OF_RATIO[128]
            types = [heavy] * min(num_layers, 2) + [sparse if i % 2 else heavy for i in range(num_layers - 2)]
        else:
            unknown = sorted({r for r in ratios if r not in TYPE_OF_RATIO})
            if unknown:
                raise ConfigError(
                    f"compress_ratios holds {unknown}; V4 knows 0, 4 and 128. V4.1 (ratios 1 and 2) is not supported"
                )
            types = [TYPE_OF_RATIO[r] for r in ratios]
    _check_length("layer_types", types, num_layers)
    unknown_types = sorted(set(types) - set(TYPE_OF_RATIO.values()))
    if unknown_types:
        raise ConfigError(f"layer_types holds {unknown_types}; V4 knows {sorted(TYPE_OF_RATIO.values())}")
    sliding = TYPE_OF_RATIO[0]
    extra = [t for t in types[num_layers : num_layers + num_mtp] if t != sliding]
    if extra:
        # An MTP layer's entries begin at position 1, so its compressor windows would be out of phase.
        raise ConfigError(f"the MTP layers are of type {extra}; all published ones slide ({sliding})")
    return list(types[:num_layers]), [sliding] * num_mtp


def _hash_layers(config: Config, num_layers: int) -> list[bool]:
    types = config.get("mlp_layer_types")
    if types is not None:
        _check_length("mlp_layer_types", types, num_layers)
        return [t == "hash_moe" for t in types[:num_layers]]
    num_hash = int(_get(config, "num_hash_layers", 3))
    return [i < num_hash for i in range(num_layers)]


def _compressed_attention(config: Config, layer_type: str) -> CompressedAttention:
    head_dim = _positive(config, "head_dim", 512)
    parameters = _rope_parameters(config)
    rope_dim = _v4_rope_dim(config, parameters, head_dim)
    rates = {TYPE_OF_RATIO[4]: 4, TYPE_OF_RATIO[128]: 128, **(config.get("compress_rates") or {})}
    for key, kind in (("compress_rate_csa", TYPE_OF_RATIO[4]), ("compress_rate_hca", TYPE_OF_RATIO[128])):
        if config.get(key) is not None:
            rates[kind] = config[key]
    sliding, sparse = layer_type == TYPE_OF_RATIO[0], layer_type == TYPE_OF_RATIO[4]
    heads, groups = _positive(config, "num_attention_heads"), _positive(config, "o_groups", 8)
    if heads * head_dim % groups:
        raise ConfigError(f"{heads} heads of {head_dim} do not divide into o_groups = {groups}")
    return CompressedAttention(
        num_attention_heads=heads,
        head_dim=head_dim,
        q_lora_rank=_positive(config, "q_lora_rank"),
        o_groups=groups,
        o_lora_rank=_positive(config, "o_lora_rank", 1024),
        sliding_window=_positive(config, "sliding_window", 128),
        rope=_v4_rope(config, parameters, rope_dim, sliding),
        ratio=0 if sliding else int(rates[layer_type]),
        overlap=sparse,
        indexer=_indexer(config) if sparse else None,
    )


def _v4_rope_dim(config: Config, parameters: Mapping[str, Any], head_dim: int) -> int:
    factor = config.get("partial_rotary_factor")
    if factor is None:
        nested = parameters.get("main")
        factor = nested.get("partial_rotary_factor") if isinstance(nested, Mapping) else None
    if factor is not None:
        return int(head_dim * factor)
    return int(_get(config, "qk_rope_head_dim", head_dim // 8))


def _v4_rope(config: Config, parameters: Mapping[str, Any], dim: int, sliding: bool) -> Rope:
    """Window-only layers use rope_theta unscaled; layers with a compressor its own base, with YaRN.

    Keys and queries of a compressed layer share one base, whatever they are compared with.
    """
    nested = parameters.get("main" if sliding else "compress")
    if isinstance(nested, Mapping):
        return _rope({"attention_factor": 1.0, **nested}, dim, config)
    if sliding:
        return Rope(float(_get(config, "rope_theta", 10000.0)), dim)
    theta = float(_get(config, "compress_rope_theta", 160000.0))
    return _rope({"attention_factor": 1.0, **parameters, "rope_theta": theta}, dim, config)


def _moe_v4(config: Config, selection: str) -> MoE:
    scoring = str(_get(config, "scoring_func", "sqrtsoftplus"))
    if scoring not in ("softmax", "sigmoid", "sqrtsoftplus"):
        raise ConfigError(f"scoring_func is {scoring!r}; known are 'sqrtsoftplus', 'sigmoid' and 'softmax'")
    router = Router(
        scoring_func=scoring,  # type: ignore[arg-type]
        selection=selection,  # type: ignore[arg-type]
        num_experts_per_tok=_positive(config, "num_experts_per_tok"),
        routed_scaling_factor=float(_get(config, "routed_scaling_factor", 1.5)),
        norm_topk_prob=True,
    )
    experts = _positive(config, "n_routed_experts")
    _check_router(router, experts)
    limit = config.get("swiglu_limit", 10.0)
    shared = int(_get(config, "n_shared_experts", 1))
    return MoE(
        experts,
        _positive(config, "moe_intermediate_size"),
        shared,
        router,
        None if limit is None else float(limit),
    )


# ----------------------------------------------------------------------------------------- shared


def _family_of(config: Config) -> str:
    model_type = config.get("model_type")
    names = [str(a) for a in config.get("architectures") or []]
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


def _rope_parameters(config: Config) -> Mapping[str, Any]:
    """`rope_parameters`, or the older `rope_scaling` with `rope_theta` beside it, as one mapping."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"rope_parameters is {type(found).__name__}; needed a mapping")
    return {"rope_theta": _get(config, "rope_theta", 10000.0), **found}


def _rope(parameters: Mapping[str, Any], dim: int, config: Config) -> Rope:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    theta = float(parameters["rope_theta"])
    if dim % 2:
        raise ConfigError(f"qk_rope_head_dim is {dim}; RoPE turns pairs of channels, so it must be even")
    if kind == "default":
        return Rope(theta, dim)
    if kind != "yarn":
        raise ConfigError(f"rope type is {kind!r}; the family uses 'default' and 'yarn'")
    original = parameters.get("original_max_position_embeddings")
    if not original:
        raise ConfigError("rope type 'yarn' needs original_max_position_embeddings")
    factor = parameters.get("factor") or config["max_position_embeddings"] / original
    attention_factor = parameters.get("attention_factor")
    if attention_factor is None:
        scale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
        attention_factor = (
            yarn_mscale(factor, scale) / yarn_mscale(factor, all_dim) if scale and all_dim else yarn_mscale(factor, 1.0)
        )
    yarn = Yarn(
        factor=float(factor),
        original_max_position_embeddings=int(original),
        beta_fast=float(parameters.get("beta_fast") or 32),
        beta_slow=float(parameters.get("beta_slow") or 1),
        attention_factor=float(attention_factor),
        truncate=bool(parameters.get("truncate", True)),
    )
    return Rope(theta, dim, yarn)


def yarn_mscale(factor: float, mscale: float) -> float:
    """0.1 * mscale * ln(factor) + 1: 1.3689 for V3 (factor 40).   YaRN, section 3.4"""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_softmax_gain(parameters: Mapping[str, Any]) -> float:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    all_dim = parameters.get("mscale_all_dim")
    if kind == "default" or not all_dim:
        return 1.0
    return yarn_mscale(float(parameters["factor"]), float(all_dim)) ** 2


def _indexer(config: Config) -> Indexer:
    return Indexer(
        _positive(config, "index_n_heads", 64),
        _positive(config, "index_head_dim", 128),
        _positive(config, "index_topk"),
    )


def _quantisation(config: Config, model_type: str) -> Quantisation | None:
    found = config.get("quantization_config")
    if not found:
        return None
    method = found.get("quant_method", found.get("fmt"))
    if method not in ("fp8", "e4m3"):
        raise ConfigError(
            f"quantization_config.quant_method is {method!r}; tiefsee reads DeepSeek's 'fp8' (with FP4 experts)"
        )
    block = found.get("weight_block_size") or [128, 128]
    v4 = model_type == "deepseek_v4"
    expert_dtype = str(config.get("expert_dtype") or found.get("expert_dtype") or "fp8")
    return Quantisation(
        block=(int(block[0]), int(block[1])),
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


def _check_length(name: str, found: Any, needed: int) -> None:
    if len(found) < needed:
        raise ConfigError(f"{name} has {len(found)} entries; num_hidden_layers = {needed} needs as many")


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (int(value),)


def _get(config: Config, key: str, default: Any) -> Any:
    value = config.get(key, _MISSING)
    return default if value is _MISSING or value is None else value


def _positive(config: Config, key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise ConfigError(f"config.json has no {key!r}, which {config.get('model_type')} needs")
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ConfigError(f"config.json has {key} = {value!r}; needed a positive whole number")
    return value
