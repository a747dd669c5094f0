"""From disk to device: memory-mapped, one tensor at a time, converted where asked.

Peak host memory is the loaded model and one tensor more: a tensor is read from the map, converted, copied
to its place, and let go before the next one is touched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tiefsee.checkpoint.names import Matched, Source, fp8_block, match_tensors
from tiefsee.checkpoint.part import own_packed, own_part
from tiefsee.errors import CheckpointError, ConfigError
from tiefsee.files import ModelFiles, TensorEntry
from tiefsee.ops import formats
from tiefsee.ops.weight import Packing, Weight
from tiefsee.spec.model import ModelSpec, MoE
from tiefsee.spec.size import FORMATS
from tiefsee.spec.split import WHOLE, Split

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.uint8,
}  # fmt: skip
FORMAT_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class LoadReport:
    """What a load did: bytes now held, linears by the format they are held in, known tensors not used."""

    num_bytes: int
    formats: dict[str, int]
    unused: tuple[str, ...]
    has_mtp: bool


def load_network(
    network: nn.Module, spec: ModelSpec, files: ModelFiles, *, device: torch.device, dtype: torch.dtype,
    format: str = "keep", progress: bool = False, split: Split = WHOLE,
) -> LoadReport:  # fmt: skip
    """Fill a network that was built on the meta device, or the share of it that one rank has.

    `dtype` is that of plain weights. `format` "keep" holds linears as published (FP8 and FP4 packed);
    others convert them. Raises CheckpointError, and leaves nothing half-loaded in use.
    """
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}; needed one of {', '.join(FORMATS)}")
    if not files.tensors:
        raise CheckpointError(f"{files.folder} holds no safetensors; needed the weights of the model")
    matched = match_tensors(spec, files.tensors, split)
    counts: dict[str, int] = {}
    total = sum(s.entry.num_bytes for s in matched.sources)
    with _progress_bar(total, progress) as advance:
        for source in matched.sources:
            if not source.tensor.part.is_held:
                advance(source.entry.num_bytes)
                continue
            held = _convert(source, spec, device, dtype, format)
            _place(network, source, held)
            if source.tensor.kind == "linear":
                counts[held.name] = counts.get(held.name, 0) + 1
            advance(source.entry.num_bytes)
    _finish(network, spec, matched)
    return LoadReport(sum(_sizes(network)), counts, tuple(matched.unused), matched.has_mtp)


@dataclass(frozen=True)
class _Held:
    """One tensor as it will be held: plain values, or codes with a scale."""

    data: Tensor
    scale: Tensor | None = None
    packing: Packing | None = None

    @property
    def name(self) -> str:
        return str(self.data.dtype).removeprefix("torch.") if self.packing is None else self.packing.format


def read_tensor(entry: TensorEntry) -> Tensor:
    """The tensor as a view of the mapped file; nothing is read before it is used."""
    if entry.num_bytes == 0:
        return torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
    mapped = np.memmap(entry.file, dtype=np.uint8, mode="c", offset=entry.start, shape=(entry.num_bytes,))
    return torch.from_numpy(mapped).view(TORCH_DTYPES[entry.dtype]).view(entry.shape)


def _convert(source: Source, spec: ModelSpec, device: torch.device, dtype: torch.dtype, format: str) -> _Held:
    tensor, raw = source.tensor, read_tensor(source.entry)
    if tensor.kind == "table":
        _check_table(source, spec, raw)
        return _Held(raw.to(device, torch.int64))
    if tensor.kind == "fp32":
        return _Held(own_part(raw, tensor.part).to(device, torch.float32))
    packing = _packing(source, spec)
    if packing is None:
        raw = own_part(raw, tensor.part)
        if tensor.kind == "linear" and format == "int8":
            data, scale = formats.pack_int8(raw)
            return _Held(data.to(device), scale.to(device), Packing("int8"))
        wanted = FORMAT_DTYPES.get(format, dtype) if tensor.kind == "linear" else dtype
        return _Held(raw.to(device, wanted, copy=True))
    assert source.scale is not None
    raw, scale = own_packed(raw, read_tensor(source.scale), packing, tensor.part)
    scale = formats.decode_ue8m0(scale) if packing.scales == "ue8m0" else scale.float()
    if format == "keep":
        return _Held(raw.to(device, copy=True), scale.to(device).contiguous(), packing)  # a rank's may be cut columns
    held = Weight(raw, scale, packing)
    if format == "int8":
        data, rows = formats.pack_int8(held.dequantise(torch.float32))
        return _Held(data.to(device), rows.to(device), Packing("int8"))
    return _Held(held.dequantise(FORMAT_DTYPES[format]).to(device))


def _check_table(source: Source, spec: ModelSpec, expert_of: Tensor) -> None:
    """Each token's experts must be there: a table of another release would be found in the middle of an answer."""
    count = max(layer.ffn.n_routed_experts for layer in spec.layers if isinstance(layer.ffn, MoE))
    low, high = int(expert_of.min()), int(expert_of.max())
    if low < 0 or high >= count:
        raise CheckpointError(
            f"{source.tensor.published} names experts {low} to {high}; there are {count}, from 0; "
            "is it of the same release as config.json?"
        )


def _packing(source: Source, spec: ModelSpec) -> Packing | None:
    if source.scale is None:
        return None
    scales: Literal["float32", "ue8m0"] = "ue8m0" if source.scale.dtype in ("F8_E8M0", "U8") else "float32"
    if source.entry.dtype == "F8_E4M3":
        return Packing("fp8", fp8_block(spec, source.tensor.shape, source.scale.shape), scales)
    if source.entry.dtype in ("I8", "U8"):
        return Packing("fp4", scales=scales)
    return None


def _place(network: nn.Module, source: Source, held: _Held) -> None:
    """Put a tensor where its name says; experts go into a stack that their first one makes."""
    path, _, leaf = source.tensor.name.rpartition(".")
    owner: nn.Module = network.get_submodule(path)
    slot = source.tensor.part.slot
    if slot is None:
        _assign(owner, leaf, held)
        return
    present = getattr(owner, leaf)
    if isinstance(present, Weight) or not present.is_meta:
        stack = present
    else:
        count = present.shape[0]
        stack = _assign(owner, leaf, _stack(held, count))
    if (stack.packing if isinstance(stack, Weight) else None) != held.packing:
        raise CheckpointError(
            f"{source.tensor.published} is held as {held.name}, and not packed like other experts of its layer; "
            "the checkpoint mixes formats within a layer; pass --format bf16"
        )
    (stack.data if isinstance(stack, Weight) else stack.detach())[slot].copy_(held.data)
    if isinstance(stack, Weight):
        assert held.scale is not None
        stack.scale[slot].copy_(held.scale)


def _stack(held: _Held, count: int) -> _Held:
    scale = None if held.scale is None else held.scale.new_empty(count, *held.scale.shape)
    return _Held(held.data.new_empty(count, *held.data.shape), scale, held.packing)


def _assign(owner: nn.Module, leaf: str, held: _Held) -> Tensor | Weight:
    if held.packing is not None:
        assert held.scale is not None
        delattr(owner, leaf)
        weight = Weight(held.data, held.scale, held.packing)
        setattr(owner, leaf, weight)
        return weight
    if leaf in owner._buffers:
        owner.register_buffer(leaf, held.data)
        return held.data
    parameter = nn.Parameter(held.data, requires_grad=False)
    setattr(owner, leaf, parameter)
    return parameter


def _finish(network: nn.Module, spec: ModelSpec, matched: Matched) -> None:
    """Tie what is tied, drop MTP layers that the checkpoint lacks; nothing may be left on the meta device."""
    if not matched.has_mtp:
        network.mtp = nn.ModuleList()
    head, embed = network.get_submodule("head"), network.get_submodule("embed")
    if spec.tie_word_embeddings and isinstance(head.weight, Tensor) and head.weight.is_meta:
        head.weight = embed.weight
    left = [n for n, t in (*network.named_parameters(), *network.named_buffers()) if t.is_meta]
    assert not left, f"parameters that no tensor fills: {left[:5]}"


def _sizes(network: nn.Module) -> Iterator[int]:
    seen = set()
    for tensor in (*network.parameters(), *network.buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor.numel() * tensor.element_size()


@contextmanager
def _progress_bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on stderr, or nothing."""
    if not shown or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.advance(task, done)
