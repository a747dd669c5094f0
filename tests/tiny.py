"""Small random models of each family, with odd sizes, and engines on them: what most tests run on."""

from __future__ import annotations

from typing import Any

import torch

from tiefsee.engine import EngineConfig
from tiefsee.engine.config import plan_memory
from tiefsee.engine.core import EngineCore
from tiefsee.engine.llm import LLM
from tiefsee.model import Network
from tiefsee.ops import Operators
from tiefsee.ops.view import StatelessView
from tiefsee.spec import ModelSpec, model_spec
from tiefsee.spec.model import MoE

_YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    "mscale": 0.7, "mscale_all_dim": 0.5,
}  # fmt: skip
_LATENT = {
    "vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "q_lora_rank": 20,
    "kv_lora_rank": 28, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "intermediate_size": 56,
    "moe_intermediate_size": 24, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "max_position_embeddings": 2048, "rope_parameters": _YARN, "dtype": "float32",
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "v2": {**_LATENT, "model_type": "deepseek_v2", "q_lora_rank": None, "topk_method": "greedy"},
    "v3": {
        **_LATENT, "model_type": "deepseek_v3", "n_group": 3, "topk_group": 2, "num_nextn_predict_layers": 1,
    },
    "v3.2": {
        **_LATENT, "model_type": "deepseek_v32", "n_group": 3, "topk_group": 2, "index_n_heads": 16,
        "index_head_dim": 20, "index_topk": 12, "num_nextn_predict_layers": 1,
    },
    "v4": {
        "model_type": "deepseek_v4", "vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 5,
        "num_attention_heads": 3, "head_dim": 28, "qk_rope_head_dim": 8, "q_lora_rank": 20, "o_groups": 3,
        "o_lora_rank": 12, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "moe_intermediate_size": 24, "num_hash_layers": 1, "compress_ratios": [0, 4, 128, 4, 128, 0],
        "num_nextn_predict_layers": 1, "sliding_window": 20, "swiglu_limit": 2.0, "hc_mult": 3, "index_n_heads": 16,
        "index_head_dim": 20, "index_topk": 9, "max_position_embeddings": 2048, "compress_rope_theta": 160000.0,
        "rope_scaling": _YARN, "dtype": "float32", "bos_token_id": 0, "eos_token_id": 1,
    },
}  # fmt: skip
FAMILIES = tuple(CONFIGS)


def tiny_spec(family: str, **changes: Any) -> ModelSpec:
    return model_spec({**CONFIGS[family], **changes})


def tiny_network(family: str, seed: int = 0, device: str = "cpu", **changes: Any) -> Network:
    """Random in every parameter, so that biases, sinks, hash tables and mHC matter; logits of order 1.

    `changes` are of the config.
    """
    spec = tiny_spec(family, **changes)
    return randomise(Network(spec, Operators()), spec, seed).to(device).eval().requires_grad_(False)


def randomise(network: Network, spec: ModelSpec, seed: int = 0) -> Network:
    """The same network with other numbers in all that a checkpoint holds."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() >= 2 and not name.endswith("ape"):
            values /= parameter.shape[-1] ** 0.5
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.3
        parameter.data.copy_(values)
    moe = next(layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoE))
    for name, buffer in network.named_buffers():
        if name.endswith("tid2eid"):
            for row in buffer:
                row.copy_(torch.randperm(moe.n_routed_experts, generator=generator)[: len(row)])
    return network


def tiny_llm(network: Network, tokenizer: Any = None, **options: Any) -> LLM:
    """An `LLM` on a network that was not loaded from disk; a context of 1,024 unless told otherwise."""
    options = {"max_context": 1024, "max_draft": 0, **options}
    config = EngineConfig(**options)
    dtype = config.cache_dtype or str(network.norm.weight.dtype).removeprefix("torch.")
    plan, max_context = plan_memory(network.spec, config, dtype, 4e9, network.ops.layout)
    return LLM.on(EngineCore(network, plan, max_context, config, tokenizer))


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random tokens, none of them BOS or EOS."""
    generator = torch.Generator().manual_seed(1000 * length + seed)
    return torch.randint(2, 97, (length,), generator=generator).tolist()


def fresh_logits(network: Network, tokens: list[int]) -> torch.Tensor:
    """[T, W] of one pass without any cache: what every other way has to give."""
    with torch.inference_mode():
        ids = torch.tensor(tokens, device=network.device)
        hidden = network(ids, torch.arange(len(tokens), device=network.device), StatelessView([len(tokens)]))
        return network.logits(hidden.final_TD).cpu()


def relative_error(found: torch.Tensor, needed: torch.Tensor) -> float:
    """Worst over positions of max |a - b| / max |b|."""
    return float(((found - needed).abs().amax(-1) / needed.abs().amax(-1)).max())


def greedy_continuation(network: Network, tokens: list[int], count: int) -> list[int]:
    """The next `count` tokens by fresh passes alone."""
    ids = list(tokens)
    for _ in range(count):
        ids.append(int(fresh_logits(network, ids)[-1].argmax()))
    return ids[len(tokens) :]
