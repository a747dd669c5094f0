"""How large a model is: parameters, active parameters, and bytes of its weights by number format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from tiefsee.errors import ConfigError
from tiefsee.spec.model import ModelSpec, MoE
from tiefsee.spec.split import WHOLE, Split
from tiefsee.spec.tensors import CheckpointTensor, checkpoint_tensors

# Bytes per value of a linear; scales of packed formats are added by their blocks.
LINEAR_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5}
FORMATS = ("keep", "bf16", "fp16", "fp32", "int8")
SCALE_BYTES = 4.0  # scales are float32 in memory; ue8m0 ones too, see ops/weight.py
FP4_COLUMNS = 32


@dataclass(frozen=True)
class ParameterCount:
    """`total` with embedding, head and MTP; `active` is what one decoded token meets, as papers count it:
    K of E routed experts, no embedding look-up, no MTP. V3: 682.6e9 with 11.6e9 of MTP, active 36.6e9.
    """

    total: int
    active: int
    mtp: int


@lru_cache(maxsize=16)
def count_parameters(spec: ModelSpec) -> ParameterCount:
    """Counts from the table of tensors; the hash table of hash routing is no parameter."""
    total = mtp = 0
    active = 0.0
    for tensor in checkpoint_tensors(spec):
        if tensor.kind == "table":
            continue
        total += tensor.num_values
        if tensor.name.startswith("mtp."):
            mtp += tensor.num_values
        elif tensor.name != "embed.weight":
            active += tensor.num_values * _share(spec, tensor)
    return ParameterCount(total, round(active), mtp)


@lru_cache(maxsize=64)
def weight_bytes(spec: ModelSpec, format: str, dtype: str, *, with_mtp: bool = True, split: Split = WHOLE) -> float:
    """Bytes of the loaded weights of one rank: linears in `format` ("keep": as published), the rest in `dtype`."""
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}; needed one of {', '.join(FORMATS)}")
    plain = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}[dtype]
    return sum(
        _tensor_bytes(spec, tensor, format, plain)
        for tensor in checkpoint_tensors(spec, split)
        if with_mtp or not tensor.name.startswith("mtp.")
    )


def _tensor_bytes(spec: ModelSpec, tensor: CheckpointTensor, format: str, plain: float) -> float:
    shape = tensor.held_shape
    num_values = math.prod(shape)
    if tensor.kind == "table":
        return 8.0 * num_values
    if tensor.kind == "fp32":
        return 4.0 * num_values
    if tensor.kind != "linear":
        return plain * num_values
    stored = format
    quantisation = spec.quantisation
    if format == "keep":
        if quantisation is None:
            return plain * num_values
        stored = quantisation.expert_format if tensor.expert is not None else "fp8"
    size = LINEAR_BYTES[stored] * num_values
    rows, columns = shape
    if stored == "fp8":
        block = quantisation.block if quantisation is not None else (128, 128)
        size += SCALE_BYTES * -(-rows // block[0]) * -(-columns // block[1])
    elif stored == "fp4":
        size += SCALE_BYTES * rows * -(-columns // FP4_COLUMNS)
    elif stored == "int8":
        size += SCALE_BYTES * rows
    return size


def _share(spec: ModelSpec, tensor: CheckpointTensor) -> float:
    if tensor.expert is None:
        return 1.0
    moe = spec.layers[int(tensor.name.split(".")[1])].ffn
    assert isinstance(moe, MoE)
    return moe.router.num_experts_per_tok / moe.n_routed_experts
