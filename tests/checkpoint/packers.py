"""Quantised checkpoints, packed by code of their own: slow, value by value, and independent of `ops.formats`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tiefsee.spec import checkpoint_tensors, model_spec

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def fp8_blocks(values: np.ndarray, block: int, *, power_of_two: bool) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Codes, scales and the values that they stand for, block by block."""
    rows, columns = values.shape
    scales = np.zeros((math.ceil(rows / block), math.ceil(columns / block)), dtype=np.float32)
    codes, real = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn), np.zeros_like(values)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = np.s_[i * block : (i + 1) * block, j * block : (j + 1) * block]
            scale = max(np.abs(values[part]).max(), 1e-9) / 448
            scale = np.float32(2.0 ** math.ceil(math.log2(scale)) if power_of_two else scale)
            scales[i, j] = scale
            codes[part] = torch.from_numpy(values[part] / scale).to(torch.float8_e4m3fn)
            real[part] = codes[part].float().numpy() * scale
    return codes, scales, real


def fp4_rows(values: np.ndarray) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Two codes a byte, lower half first; one power-of-two scale per row and 32 columns."""
    rows, columns = values.shape
    scales = np.zeros((rows, math.ceil(columns / 32)), dtype=np.float32)
    nibbles, real = np.zeros((rows, columns), dtype=np.uint8), np.zeros_like(values)
    for i in range(rows):
        for j in range(scales.shape[1]):
            part = np.s_[i, j * 32 : (j + 1) * 32]
            scale = np.float32(2.0 ** math.ceil(math.log2(max(np.abs(values[part]).max(), 1e-9) / 6)))
            scales[i, j] = scale
            nearest = np.abs(np.abs(values[part])[:, None] / scale - E2M1).argmin(1)
            nibbles[part] = nearest + 8 * (values[part] < 0)
            real[part] = np.sign(values[part]) * E2M1[nearest] * scale
    packed = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return torch.from_numpy(packed).view(torch.int8), scales, real


def exponent_bytes(scales: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((np.log2(scales) + 127).round().astype(np.uint8)).view(torch.float8_e8m0fnu)


def write_checkpoint(
    folder: Path, config: dict[str, Any], *, block: int = 128, experts: str = "fp8", ue8m0: bool = False,
    change: Callable[[dict[str, torch.Tensor]], None] = lambda tensors: None,
) -> tuple[Path, Path]:  # fmt: skip
    """A quantised checkpoint, and a plain float32 one of exactly the same values, both under published names.

    `change` may spoil the tensors of the quantised one before they are written.
    """
    v4 = config["model_type"] == "deepseek_v4"
    spec = model_spec(config)
    rng = np.random.default_rng(0)
    packed: dict[str, torch.Tensor] = {}
    plain: dict[str, torch.Tensor] = {}
    for t in checkpoint_tensors(spec):
        if t.kind == "table":
            table = np.stack([rng.permutation(6)[: t.shape[1]] for _ in range(t.shape[0])])
            packed[t.published] = plain[t.published] = torch.from_numpy(table)
            continue
        values = rng.standard_normal(t.shape).astype(np.float32)
        values = values / t.shape[-1] ** 0.5 if len(t.shape) == 2 else 1 + 0.1 * values
        if t.kind != "linear":
            packed[t.published] = plain[t.published] = torch.from_numpy(values)
            continue
        is_fp4 = experts == "fp4" and t.expert is not None
        codes, scales, real = fp4_rows(values) if is_fp4 else fp8_blocks(values, block, power_of_two=ue8m0)
        packed[t.published] = codes
        name = t.published.removesuffix(".weight") + (".scale" if v4 else ".weight_scale_inv")
        packed[name] = exponent_bytes(scales) if ue8m0 or is_fp4 else torch.from_numpy(scales)
        plain[t.published] = torch.from_numpy(real)
    quantisation = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [block, block]}
    if ue8m0:
        quantisation["scale_fmt"] = "ue8m0"
    change(packed)
    described = {**config, "quantization_config": quantisation, "expert_dtype": experts}
    for name, tensors, described_as in (("packed", packed, described), ("plain", plain, config)):
        (folder / name).mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(described_as))
    return folder / "packed", folder / "plain"
