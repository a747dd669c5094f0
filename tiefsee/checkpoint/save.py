"""From device to disk: a network under the published names, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tiefsee.errors import CheckpointError
from tiefsee.files.headers import INDEX_FILE, SINGLE_FILE
from tiefsee.ops import formats
from tiefsee.ops.weight import PackedSlice, Weight
from tiefsee.spec.model import ModelSpec
from tiefsee.spec.tensors import CheckpointTensor, checkpoint_tensors

LARGEST_SHARD = 5_000_000_000  # bytes
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def save_network(
    network: nn.Module, spec: ModelSpec, config: Mapping[str, Any], folder: Path, *, shard_bytes: int = LARGEST_SHARD
) -> None:
    """Write config.json and safetensors in `folder`, in the dtype that the config names; packed weights as they are.

    Everything is written beside the folder and moved there at the end, so that a full disk or a kill
    leaves no half checkpoint. Raises CheckpointError if it cannot be written.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        _write(network, spec, config, part, shard_bytes)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
    except Exception as error:
        free = shutil.disk_usage(folder.parent if folder.parent.exists() else Path()).free
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) or "SafetensorError" in type(error).__name__:
            raise CheckpointError(
                f"cannot save to {folder}: {error}; {_num_bytes(network) / 1e9:.2f} GB are needed and "
                f"{free / 1e9:.2f} GB free; nothing was left behind. Free space, or choose another folder"
            ) from error
        raise


def _write(network: nn.Module, spec: ModelSpec, config: Mapping[str, Any], folder: Path, shard_bytes: int) -> None:
    from safetensors.torch import save_file

    plain = DTYPES[str(config.get("torch_dtype", config.get("dtype", "bfloat16")))]
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in published_tensors(network, spec, plain):
        num_bytes = tensor.numel() * tensor.element_size()
        if size and size + num_bytes > shard_bytes:
            _flush(shards, folder, save_file)
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += num_bytes
    _flush(shards, folder, save_file)
    names = [list(shard) for shard in shards]
    if len(shards) == 1:
        (folder / _shard_name(0)).rename(folder / SINGLE_FILE)
    else:
        final = {i: f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))}
        for i, name in final.items():
            (folder / _shard_name(i)).rename(folder / name)
        weight_map = {name: final[i] for i, shard in enumerate(names) for name in shard}
        (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1))
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2))


def _flush(shards: list[dict[str, Tensor]], folder: Path, save_file: Any) -> None:
    """Write the newest shard and let its tensors go; only their names are kept."""
    save_file(shards[-1], folder / _shard_name(len(shards) - 1), metadata={"format": "pt"})
    shards[-1] = dict.fromkeys(shards[-1])  # type: ignore[assignment]


def _shard_name(index: int) -> str:
    return f"shard-{index}.safetensors"


def published_tensors(network: nn.Module, spec: ModelSpec, plain: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(published name, tensor) of everything the network holds, scales beside their weights."""
    has_mtp = any(name.startswith("mtp.") for name, _ in network.named_parameters())
    suffix = spec.quantisation.scale_suffix if spec.quantisation is not None else ".weight_scale_inv"
    tied = spec.tie_word_embeddings
    for tensor in checkpoint_tensors(spec):
        if (tensor.name.startswith("mtp.") and not has_mtp) or (tied and tensor.name == "head.weight"):
            continue
        held = _held(network, tensor)
        if tuple(held.shape) != tensor.shape:
            raise CheckpointError(
                f"{tensor.name} is {list(held.shape)} here, and {list(tensor.shape)} in a checkpoint: this network is "
                "one rank's share of a model; load the model on one rank and save it there"
            )
        if isinstance(held, Tensor):
            keeps_dtype = tensor.kind in ("fp32", "table")
            yield tensor.published, held.detach().to("cpu", held.dtype if keeps_dtype else plain).contiguous()
            continue
        if held.packing.format == "int8":
            yield tensor.published, held.dequantise(plain).cpu().contiguous()
            continue
        ue8m0 = held.packing.scales == "ue8m0"
        scale = formats.encode_ue8m0(held.scale).view(torch.float8_e8m0fnu) if ue8m0 else held.scale
        codes = held.data.view(torch.int8) if held.packing.format == "fp4" else held.data
        yield tensor.published, codes.cpu().contiguous()
        yield tensor.published.removesuffix(".weight") + suffix, scale.cpu().contiguous()


def _held(network: nn.Module, tensor: CheckpointTensor) -> Tensor | PackedSlice:
    path, _, leaf = tensor.name.rpartition(".")
    value = getattr(network.get_submodule(path), leaf)
    if isinstance(value, Weight):
        if type(value) is not Weight:
            raise CheckpointError(
                f"{tensor.name} lies in memory as a device's products want it, from which a checkpoint cannot be "
                "written; load the model on the CPU and save it there"
            )
        if tensor.expert is not None:
            return PackedSlice(value.data[tensor.expert], value.scale[tensor.expert], value.packing)
        return PackedSlice(value.data, value.scale, value.packing)
    return value if tensor.expert is None else value[tensor.expert]


def _num_bytes(network: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
