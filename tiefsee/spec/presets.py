"""The published models by name, as the config.json that their release carries (fields that matter here).

Sources: the config.json of each deepseek-ai repository and the papers: V2 arXiv 2405.04434, V3 and R1
arXiv 2412.19437 and 2501.12948, V3.2-Exp's inference/config_671B_v3.2.json, V4 through transformers'
configuration_deepseek_v4 and AutoModel issue 2034. They answer `inspect` and the planner offline; a
checkpoint is always read by its own config.json.
"""

from __future__ import annotations

from typing import Any

from tiefsee.errors import ModelNotFound
from tiefsee.spec.config import model_spec
from tiefsee.spec.model import ModelSpec

_YARN_V2 = {
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
    "mscale": 0.707, "mscale_all_dim": 0.707,
}  # fmt: skip
_YARN_V3 = {**_YARN_V2, "mscale": 1.0, "mscale_all_dim": 1.0}
_YARN_V4 = {
    "type": "yarn",
    "factor": 16,
    "original_max_position_embeddings": 65536,
    "beta_fast": 32,
    "beta_slow": 1,
}
_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
_FP8_UE8M0 = {**_FP8, "scale_fmt": "ue8m0"}

_V2 = {
    "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 5120, "num_hidden_layers": 60,
    "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 12288, "moe_intermediate_size": 1536,
    "n_routed_experts": 160, "num_experts_per_tok": 6, "n_shared_experts": 2, "first_k_dense_replace": 1,
    "topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3, "scoring_func": "softmax",
    "routed_scaling_factor": 16.0, "norm_topk_prob": False, "max_position_embeddings": 163840,
    "rope_theta": 10000, "rope_scaling": _YARN_V2, "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16",
    "bos_token_id": 100000, "eos_token_id": 100001,
}  # fmt: skip
_V2_LITE = {
    **_V2, "hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16, "q_lora_rank": None,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64, "topk_method": "greedy",
    "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
}  # fmt: skip
_V3 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61,
    "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3,
    "topk_method": "noaux_tc", "n_group": 8, "topk_group": 4, "scoring_func": "sigmoid",
    "routed_scaling_factor": 2.5, "norm_topk_prob": True, "num_nextn_predict_layers": 1,
    "max_position_embeddings": 163840, "rope_theta": 10000, "rope_scaling": _YARN_V3, "rms_norm_eps": 1e-6,
    "torch_dtype": "bfloat16", "quantization_config": _FP8, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_V32 = {
    **_V3, "model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048,
    "quantization_config": _FP8_UE8M0,
}  # fmt: skip


def _v4(bootstrap: list[int], num_layers: int, **sizes: Any) -> dict[str, Any]:
    rest = [(4, 128)[i % 2] for i in range(num_layers - len(bootstrap))]
    return {
        "model_type": "deepseek_v4", "vocab_size": 129280, "num_hidden_layers": num_layers, "head_dim": 512,
        "qk_rope_head_dim": 64, "o_lora_rank": 1024, "num_experts_per_tok": 6, "n_shared_experts": 1,
        "scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "norm_topk_prob": True, "num_hash_layers": 3,
        "compress_ratios": [*bootstrap, *rest, 0], "num_nextn_predict_layers": 1, "sliding_window": 128,
        "swiglu_limit": 10.0, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "index_n_heads": 64,
        "index_head_dim": 128, "max_position_embeddings": 1048576, "rope_theta": 10000,
        "compress_rope_theta": 160000, "rope_scaling": _YARN_V4, "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16",
        "quantization_config": _FP8_UE8M0, "expert_dtype": "fp4", "bos_token_id": 0, "eos_token_id": 1, **sizes,
    }  # fmt: skip


_V4_FLASH = _v4(
    [0, 0], 43, hidden_size=4096, num_attention_heads=64, q_lora_rank=1024, o_groups=8, index_topk=512,
    n_routed_experts=256, moe_intermediate_size=2048, routed_scaling_factor=1.5,
)  # fmt: skip
_V4_PRO = _v4(
    [128, 128], 61, hidden_size=7168, num_attention_heads=128, q_lora_rank=1536, o_groups=16, index_topk=1024,
    n_routed_experts=384, moe_intermediate_size=3072, routed_scaling_factor=2.5,
)  # fmt: skip

_PRESETS: dict[str, dict[str, Any]] = {
    "v2": _V2, "v2-lite": _V2_LITE, "v3": _V3, "v3.1": _V3, "r1": _V3, "v3.2": _V32,
    "v4-flash": _V4_FLASH, "v4-pro": _V4_PRO,
}  # fmt: skip


def preset_names() -> tuple[str, ...]:
    return tuple(_PRESETS)


def preset_config(name: str) -> dict[str, Any]:
    """The config.json of a preset; `deepseek-ai/DeepSeek-V3` and `deepseek-v3` name it as well."""
    short = name.lower().removeprefix("deepseek-ai/").removeprefix("deepseek-")
    if short not in _PRESETS:
        raise ModelNotFound(f"no preset named {name!r}; there are {', '.join(_PRESETS)}")
    return dict(_PRESETS[short])


def preset(name: str) -> ModelSpec:
    """The spec of a published model by its short name: `preset("v3")`."""
    return model_spec(preset_config(name))
