"""Whose software serves or trains: the names of stacks."""

from __future__ import annotations

# Who ran it. `predict(stack=...)` knows the same names.
STACKS: dict[str, str] = {
    "sglang": "SGLang, also under Dynamo",
    "trtllm": "TensorRT-LLM, also under Dynamo",
    "vllm": "vLLM on NVIDIA",
    "deepseek": "DeepSeek's own systems: serving (open-infra-index, profile-data) and training (HAI-LLM, DualPipe)",
    "vllm-ascend": "vLLM with the Ascend plugin",
    "cann-recipes": "Huawei's cann-recipes-infer and cann-recipes-train",
    "cloudmatrix": "CloudMatrix-Infer",
    "xdeepserve": "xDeepServe",
    "mindie": "MindIE",
    "mindspeed": "MindSpeed-LLM and MindFormers",
    "megatron": "Megatron-Core",
    "automodel": "NeMo AutoModel",
    "torchtitan": "TorchTitan on NVIDIA",
    "torchtitan-npu": "TorchTitan on Ascend",
}
# Engines that run collectives of one half of a batch beside the operators of the other, as they publish.
OVERLAPPING_STACKS = {"deepseek", "cloudmatrix", "cann-recipes", "xdeepserve"}
