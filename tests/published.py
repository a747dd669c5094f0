"""From transformers' spelling of a checkpoint to that of DeepSeek's releases: names, config, MTP layer, packing.

FP8 and FP4 are packed here in a few lines of their own, so that the package's formats are tested against
something else than themselves. What the files look like: docs of the releases' model cards, and
DeepSeek's inference code (V3: `weight_scale_inv` in float32; V4: `scale` in ue8m0, experts in FP4).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.family import HEAVY, SPARSE, WINDOW, random_values, read_config

RATIOS = {WINDOW: 0, SPARSE: 4, HEAVY: 128}
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
# Matrices that the releases leave in BF16; whatever is not called `.weight` is no linear (ape, tid2eid, hc_*).
PLAIN = {"embed", "embed_tokens", "head", "lm_head", "gate", "eh_proj", "weights_proj"}

Tensors = dict[str, Tensor]


def publish(folder: Path, out: Path, *, num_mtp: int = 1, num_shards: int = 2) -> Path:
    """Write `folder`'s checkpoint as a release has it, with a random MTP layer (V2 has none); returns `out`."""
    config = read_config(folder)
    num_mtp = 0 if config["model_type"] == "deepseek_v2" else num_mtp
    write(out, {**old_spelling(config), **_mtp_field(num_mtp)}, published_tensors(folder, num_mtp), num_shards)
    return out


def publish_packed(folder: Path, packed: Path, plain: Path) -> None:
    """The same weights twice under published names: FP8 (V4: and FP4 experts) with scales, and what they stand for."""
    config = read_config(folder)
    v4 = config["model_type"] == "deepseek_v4"
    power_of_two = config["model_type"] != "deepseek_v3"
    codes, values = {}, {}
    for name, tensor in published_tensors(folder, 1).items():
        if tensor.dim() != 2 or not _is_packed(name):
            codes[name] = values[name] = tensor
            continue
        pack = pack_fp4 if v4 and ".experts." in name else pack_fp8
        codes[name], scale, values[name] = pack(tensor, power_of_two)
        suffix = ".scale" if v4 else ".weight_scale_inv"
        as_stored = scale.log2().add(127).to(torch.uint8).view(torch.float8_e8m0fnu) if v4 else scale
        codes[name.removesuffix(".weight") + suffix] = as_stored
    spelled = {**old_spelling(config), **_mtp_field(1)}
    quantisation = {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
        **({"scale_fmt": "ue8m0"} if power_of_two else {}),
    }  # fmt: skip
    experts = {"expert_dtype": "fp4"} if v4 else {}
    write(packed, {**spelled, **experts, "quantization_config": quantisation}, codes, 2)
    write(plain, spelled, values, 1)


def write(folder: Path, config: dict[str, Any], tensors: Tensors, num_shards: int) -> None:
    """config.json, and safetensors in shards with their index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    names = sorted(tensors)
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        mine = names[shard::num_shards]
        save_file({n: tensors[n].contiguous() for n in mine}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


# ------------------------------------------------------------------------------------------ config


def old_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json as the releases spell it, from what transformers writes."""
    dropped = ("rope_parameters", "dtype", "head_dim", "qk_head_dim", "mlp_layer_types", "layer_types")
    old = {k: v for k, v in config.items() if k not in dropped}
    old |= {"torch_dtype": config["dtype"], "moe_layer_freq": 1, "ep_size": 1}
    if config["model_type"] == "deepseek_v4":
        return _old_v4(config, old)
    if config["model_type"] != "deepseek_v2":
        old |= {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    return old | _old_rope(config["rope_parameters"])


def _old_v4(config: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    for name in ("compress_rates", "partial_rotary_factor", "moe_layer_freq"):
        old.pop(name)
    ratios = [RATIOS[kind] for kind in config["layer_types"]]
    old |= _old_rope({**config["rope_parameters"]["compress"], "rope_theta": config["rope_theta"]})
    return old | {
        "head_dim": config["head_dim"],
        "compress_ratios": [*ratios, 0],  # the last is the MTP layer's
        "num_hash_layers": config["mlp_layer_types"].count("hash_moe"),
        "topk_method": "noaux_tc",
    }


def _old_rope(parameters: dict[str, Any]) -> dict[str, Any]:
    scaling = {k: v for k, v in parameters.items() if k not in ("rope_theta", "rope_type", "partial_rotary_factor")}
    scaling.pop("attention_factor", None)
    theta = {"rope_theta": parameters["rope_theta"]}
    return {**theta, "rope_scaling": {**scaling, "type": "yarn"} if parameters["rope_type"] == "yarn" else None}


def _mtp_field(num_mtp: int) -> dict[str, int]:
    return {"num_nextn_predict_layers": num_mtp} if num_mtp else {}


# ------------------------------------------------------------------------------------------- names


def published_tensors(folder: Path, num_mtp: int) -> Tensors:
    """The tensors of a folder of transformers under published names, with random MTP layers."""
    config, tensors = read_config(folder), load_file(folder / "model.safetensors")
    v4 = config["model_type"] == "deepseek_v4"
    if v4:
        tensors = {_v4_name(name): tensor for name, tensor in tensors.items()}
        tensors |= {n: t.int() for n, t in tensors.items() if n.endswith("tid2eid")}
    generator = torch.Generator().manual_seed(1)
    for index in range(num_mtp):
        tensors |= _mtp_v4(tensors, config, index, generator) if v4 else _mtp_v3(tensors, config, index, generator)
    return tensors


def _v4_name(name: str) -> str:
    name = name.removeprefix("model.").replace("embed_tokens.", "embed.").replace("hc_head.hc_", "hc_head_")
    return re.sub(r"(layers\.\d+\.attn)\.norm\.", r"\1.kv_norm.", name)


def _mtp_v3(tensors: Tensors, config: dict[str, Any], index: int, generator: torch.Generator) -> Tensors:
    """`model.layers.N`: a layer like the last one, the join, and copies of embedding and head."""
    last, width = config["num_hidden_layers"] - 1, config["hidden_size"]
    prefix = f"model.layers.{last + 1 + index}."
    layer = _random_copy(tensors, f"model.layers.{last}.", prefix, config, generator)
    for name, shape in (
        ("enorm.weight", (width,)), ("hnorm.weight", (width,)), ("shared_head.norm.weight", (width,)),
        ("eh_proj.weight", (width, 2 * width)),
    ):  # fmt: skip
        layer[prefix + name] = random_values(name, torch.empty(shape), generator, 0)
    layer[prefix + "embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    layer[prefix + "shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    return layer


def _mtp_v4(tensors: Tensors, config: dict[str, Any], index: int, generator: torch.Generator) -> Tensors:
    """`mtp.K`: attention over the window alone, learned routing, its own mHC head."""
    width, streams = config["hidden_size"], config["hc_mult"]
    prefix = f"mtp.{index}."
    window = config["layer_types"].index(WINDOW)
    layer = _random_copy(tensors, f"layers.{window}.attn", prefix + "attn", config, generator)
    layer |= _random_copy(tensors, f"layers.{config['num_hidden_layers'] - 1}.", prefix, config, generator, "attn.")
    for name, shape in (
        ("enorm.weight", (width,)), ("hnorm.weight", (width,)), ("norm.weight", (width,)),
        ("e_proj.weight", (width, width)), ("h_proj.weight", (width, width)),
        ("hc_head_fn", (streams, streams * width)), ("hc_head_base", (streams,)), ("hc_head_scale", (1,)),
    ):  # fmt: skip
        layer[prefix + name] = random_values(name, torch.empty(shape), generator, 0)
    return layer


def _random_copy(
    tensors: Tensors, source: str, prefix: str, config: dict[str, Any], generator: torch.Generator, without: str = "\0"
) -> Tensors:
    """Other values for the tensors of a layer, under another prefix; those that begin with `without` are left out."""
    return {
        prefix + leaf: random_values(leaf, tensor, generator, config["n_routed_experts"])
        for name, tensor in tensors.items()
        if name.startswith(source) and not (leaf := name.removeprefix(source)).startswith(without)
    }


# ----------------------------------------------------------------------------------------- packing


def pack_fp8(weight: Tensor, power_of_two: bool, block: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    """(e4m3 codes, scale per block, the values they stand for); edge blocks may be partial."""
    rows, columns = weight.shape
    padded = F.pad(weight, (0, -columns % block, 0, -rows % block))
    tiles = padded.unflatten(1, (-1, block)).unflatten(0, (-1, block))  # [R, block, C, block]
    scale = _scale(tiles.abs().amax((1, 3)), 448.0, power_of_two)
    codes = (tiles / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    values = codes.float() * scale[:, None, :, None]
    cut = [t.flatten(2).flatten(0, 1)[:rows, :columns].contiguous() for t in (codes, values)]
    return cut[0], scale, cut[1]


def pack_fp4(weight: Tensor, power_of_two: bool, group: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """(e2m1 codes, two a byte and the even column low; scale per row and 32 columns; the values)."""
    tiles = weight.unflatten(1, (-1, group))
    scale = _scale(tiles.abs().amax(-1), 6.0, power_of_two)
    scaled = tiles / scale.unsqueeze(-1)
    magnitude = (scaled.abs().unsqueeze(-1) - E2M1).abs().argmin(-1)
    values = E2M1[magnitude] * scaled.sign() * scale.unsqueeze(-1)
    codes = (magnitude + 8 * (scaled < 0)).flatten(1).to(torch.uint8)
    return (codes[:, 0::2] | codes[:, 1::2] << 4).view(torch.int8), scale, values.flatten(1)


def _is_packed(name: str) -> bool:
    return name.endswith(".weight") and name.split(".")[-2] not in PLAIN and ".compressor." not in name


def _scale(largest: Tensor, code: float, power_of_two: bool) -> Tensor:
    scale = largest.clamp(min=1e-10) / code
    return scale.log2().ceil().exp2() if power_of_two else scale
