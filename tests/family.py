"""Small random checkpoints of every family, written by transformers: what tiefsee is compared with.

Sizes are odd on purpose, sparsity bites (indexers pick 8 to 32 of up to 600 entries by 16 heads or more,
so that no scores tie at exactly 0), and nothing that a real checkpoint trains is left at zero: expert
biases, sinks, hash tables, position biases and hyper-connections are random.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

VOCAB = 331


def yarn(theta: float = 10000.0, **changes: Any) -> dict[str, Any]:
    """YaRN that stretches some of the six pairs of channels, and some only in part."""
    return {
        "rope_type": "yarn", "rope_theta": theta, "factor": 4.0, "original_max_position_embeddings": 2048,
        "beta_fast": 32, "beta_slow": 1, **changes,
    }  # fmt: skip


MSCALE = {"mscale": 0.707, "mscale_all_dim": 1.2}
_COMMON = {
    "vocab_size": VOCAB, "hidden_size": 72, "moe_intermediate_size": 40, "max_position_embeddings": 8192,
    "num_experts_per_tok": 3, "n_routed_experts": 9, "bos_token_id": 0, "eos_token_id": 1, "dtype": "float32",
}  # fmt: skip
_LATENT = {
    **_COMMON, "num_hidden_layers": 3, "first_k_dense_replace": 1, "intermediate_size": 104, "kv_lora_rank": 36,
    "qk_nope_head_dim": 20, "qk_rope_head_dim": 12, "v_head_dim": 14, "n_shared_experts": 1,
}  # fmt: skip
_V4 = {
    **_COMMON, "head_dim": 28, "qk_rope_head_dim": 12, "q_lora_rank": 44, "n_shared_experts": 1, "o_lora_rank": 20,
    "swiglu_limit": 1.5, "hc_mult": 3, "index_head_dim": 20, "compress_rope_theta": 160000.0,
}  # fmt: skip
WINDOW, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"


@dataclass(frozen=True)
class Variant:
    """One kind of checkpoint: its model_type, what its config says, and the seed of its weights and tokens.

    Seeds are chosen so that no router and no indexer decides by less than 1e-5 (tests/parity counts it).
    """

    model_type: str
    config: dict[str, Any]
    seed: int = 0


VARIANTS = {
    # No query latent, plain top-k over softmax scores (as V2-Lite).
    "v2-greedy": Variant("deepseek_v2", {
        **_LATENT, "num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": None, "topk_method": "greedy",
        "rope_parameters": yarn(**MSCALE),
    }, seed=8),
    # Query latent, groups by their best expert, weights scaled by 16 (as V2).
    "v2-groups": Variant("deepseek_v2", {
        **_LATENT, "num_attention_heads": 6, "num_key_value_heads": 6, "q_lora_rank": 44, "n_shared_experts": 2,
        "topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }, seed=11),
    "v3-groups": Variant("deepseek_v3", {
        **_LATENT, "num_attention_heads": 5, "num_key_value_heads": 5, "q_lora_rank": 44, "n_group": 3,
        "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rope_parameters": yarn(**MSCALE),
    }, seed=0),
    # No query latent, one group, weights not normed, biases on the projections.
    "v3-plain": Variant("deepseek_v3", {
        **_LATENT, "num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": None, "n_group": 1,
        "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.5, "attention_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }, seed=1),
    "v3.2-yarn": Variant("deepseek_v32", {
        **_LATENT, "num_attention_heads": 5, "num_key_value_heads": 5, "q_lora_rank": 44, "n_group": 3,
        "topk_group": 2, "index_n_heads": 16, "index_head_dim": 20, "index_topk": 12, "rope_parameters": yarn(**MSCALE),
    }, seed=8),
    "v3.2-wide": Variant("deepseek_v32", {
        **_LATENT, "num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": 44, "n_group": 1,
        "topk_group": 1, "norm_topk_prob": False, "index_n_heads": 24, "index_head_dim": 18, "index_topk": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }, seed=4),
    # All three kinds of layer, twice the sparse one; the published ratios 4 and 128.
    "v4-published": Variant("deepseek_v4", {
        **_V4, "num_hidden_layers": 5, "num_attention_heads": 3, "o_groups": 3, "sliding_window": 16,
        "index_n_heads": 16, "index_topk": 9, "layer_types": [WINDOW, SPARSE, HEAVY, SPARSE, HEAVY],
        "mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe", "moe"], "rope_parameters": yarn(),
    }, seed=6),
    # Other ratios, several heads to a group of the output projection, no YaRN, another score function.
    "v4-ratios": Variant("deepseek_v4", {
        **_V4, "num_hidden_layers": 4, "num_attention_heads": 10, "o_groups": 5, "sliding_window": 24, "hc_mult": 2,
        "index_n_heads": 20, "index_topk": 24, "layer_types": [HEAVY, SPARSE, WINDOW, SPARSE],
        "compress_rates": {SPARSE: 6, HEAVY: 40}, "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
        "scoring_func": "sigmoid", "swiglu_limit": 1.0, "hc_sinkhorn_iters": 7,
    }, seed=10),
}  # fmt: skip


def make_checkpoint(folder: Path, variant: str, seed: int | None = None, **changes: Any) -> Path:
    """Write config.json and float32 safetensors as transformers' `save_pretrained` does; returns the folder."""
    chosen = VARIANTS[variant]
    model = random_model(chosen.model_type, {**chosen.config, **changes}, chosen.seed if seed is None else seed)
    model.save_pretrained(folder)
    return folder


def random_model(model_type: str, config: dict[str, Any], seed: int) -> nn.Module:
    """A model of transformers with every parameter and buffer of a checkpoint random."""
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet()
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **config), attn_implementation="eager", dtype=torch.float32
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        tensor.copy_(random_values(name, tensor, generator, config["n_routed_experts"]))
    return model


def random_values(name: str, like: Tensor, generator: torch.Generator, num_experts: int) -> Tensor:
    """Values that keep activations of order 1 and make every part of the network count."""
    noise = torch.randn(like.shape, generator=generator)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "tid2eid":
        picks = [torch.randperm(num_experts, generator=generator)[: like.shape[1]] for _ in range(like.shape[0])]
        return torch.stack(picks)
    if leaf.endswith("scale"):
        return 0.5 + noise.abs()
    if "norm" in name and leaf == "weight":
        return 1 + 0.2 * noise
    if name.endswith(("embed_tokens.weight", "embed.weight")):
        return noise
    if leaf in ("position_bias", "ape") or like.dim() == 1:
        return 0.3 * noise  # biases, sinks, hyper-connection bases
    return noise * 1.3 / like.shape[-1] ** 0.5


def load_reference(folder: Path) -> nn.Module:
    """The checkpoint as transformers computes it: float32, eager attention."""
    from transformers import AutoModelForCausalLM

    quiet()
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def quiet() -> None:
    """No bars, and no tables of the MTP tensors that transformers does not know."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def random_tokens(length: int, seed: int = 0) -> list[int]:
    """Token ids without BOS and EOS; a shorter list of the same seed is a prefix of a longer one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, (8192,), generator=generator)[:length].tolist()
