"""Small random models whose attention has the published widths, so that fused operators take them.

Hidden sizes, layers and vocabulary are tiny; latents are 512 and 64 wide, heads 128, indexer heads 128.
V4 is the tiny model of the other tests: no fused operator takes its attention anyway.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.tiny import CONFIGS as TINY
from tests.tiny import randomise
from tiefsee.checkpoint.save import save_network
from tiefsee.model import Network
from tiefsee.ops import Operators
from tiefsee.spec import model_spec

_LATENT = {
    "vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "q_lora_rank": 48,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 48,
    "moe_intermediate_size": 32, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_V3 = {
    **_LATENT, "n_group": 2, "topk_group": 1, "norm_topk_prob": True, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "v2": {**_LATENT, "model_type": "deepseek_v2", "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1,
           "norm_topk_prob": False},
    "v3": {**_V3, "model_type": "deepseek_v3"},
    "v3.2": {**_V3, "model_type": "deepseek_v32", "index_n_heads": 4, "index_head_dim": 128, "index_topk": 40},
    "v4": TINY["v4"],
}  # fmt: skip
FAMILIES = tuple(CONFIGS)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def save_checkpoint(family: str, dtype: str, folder: Path) -> Path:
    """A random checkpoint of the family under its published names; returns the folder."""
    config = {**CONFIGS[family], "dtype": dtype, "torch_dtype": dtype}
    spec = model_spec(config)
    network = randomise(Network(spec, Operators()), spec)
    save_network(network, spec, config, folder)
    return folder
