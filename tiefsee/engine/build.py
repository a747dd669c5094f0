"""From a model's name to a running `EngineCore`: find, check memory, load, plan the cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tiefsee.checkpoint import LoadReport, load_network
from tiefsee.engine.config import EngineConfig, plan_memory
from tiefsee.engine.core import EngineCore
from tiefsee.errors import ConfigError, OutOfMemory
from tiefsee.files import ModelFiles, find_model, fingerprint
from tiefsee.model import Network
from tiefsee.ops import Operators, open_device, operators_for
from tiefsee.spec import ModelSpec, model_spec
from tiefsee.spec.size import weight_bytes
from tiefsee.text import Tokenizer
from tiefsee.units import format_bytes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Drafts per step that an engine may try when the model has an MTP layer and nothing else was said.
USUAL_MAX_DRAFT = 2


def build_core(
    model: str | Path, device: str, dtype: str, format: str, config: EngineConfig, *, progress: bool = False,
    operators: Operators | None = None,
) -> EngineCore:  # fmt: skip
    """Load a model and make room for its cache. See `LLM` for the arguments and errors.

    `operators` is another table than the device's own.
    """
    torch_device = open_device(device)
    files = find_model(model)
    spec = model_spec(files.config)
    chosen = resolve_dtype(dtype, spec)
    ops = operators or operators_for(torch_device)
    format, converted = ops.resolve_format(format, spec)
    check_memory(spec, format, chosen, torch_device, ops.free_bytes(torch_device))
    network, report = load(files, spec, torch_device, ops, chosen, format, progress)
    config = resolve_config(config, spec, report)
    free = ops.free_bytes(torch_device)
    plan, max_context = plan_memory(spec, config, config.cache_dtype or chosen, free, ops.layout)
    tokenizer = None
    if (files.folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_folder(files.folder, files.config, files.generation_config)
    core = EngineCore(
        network, plan, max_context, config, tokenizer, files.generation_config, files.folder,
        config.model_id or fingerprint(files),
    )  # fmt: skip
    core.notes = [*filter(None, [converted]), *ops.remarks(spec, DTYPES[chosen]), *notes(spec, report)]
    return core


def notes(spec: ModelSpec, report: LoadReport) -> list[str]:
    """What the user should know of a load, a sentence each."""
    found = []
    if report.unused:
        names = ", ".join(report.unused[:3]) + (", .." if len(report.unused) > 3 else "")
        found.append(f"{len(report.unused)} tensors of the checkpoint are known but not used yet: {names}")
    if spec.mtp_layers and not report.has_mtp:
        found.append("the checkpoint has no MTP layer, so nothing is drafted")
    return found


def resolve_dtype(dtype: str, spec: ModelSpec) -> str:
    """The dtype of activations and plain weights: as asked, or the checkpoint's own."""
    chosen = spec.dtype if dtype == "auto" else dtype
    if chosen not in DTYPES:
        raise ConfigError(f"dtype is {chosen!r}; needed 'auto' or one of {', '.join(DTYPES)}")
    return chosen


def check_memory(spec: ModelSpec, format: str, dtype: str, device: torch.device, free: float) -> None:
    """OutOfMemory before anything is read, when the weights alone exceed what is free."""
    needed = weight_bytes(spec, format, dtype)
    if needed <= free:
        return
    others = {f: weight_bytes(spec, f, dtype) for f in ("keep", "int8") if f != format}
    fitting = [f"--format {f} ({format_bytes(size)})" for f, size in others.items() if size <= free]
    advice = (
        f"{' or '.join(fitting)} would fit" if fitting else "no format of this model fits here; use a larger machine"
    )
    raise OutOfMemory(
        f"the weights need {format_bytes(needed)} as {format}, and {device} has {format_bytes(free)} free: "
        f"{format_bytes(needed - free)} too little; {advice}"
    )


def load(
    files: ModelFiles, spec: ModelSpec, device: torch.device, ops: Operators, dtype: str, format: str, progress: bool
) -> tuple[Network, LoadReport]:
    """An empty network on the meta device, filled tensor by tensor."""
    with torch.device("meta"):
        network = Network(spec, ops)
    report = load_network(network, spec, files, device=device, dtype=DTYPES[dtype], format=format, progress=progress)
    return network.eval().requires_grad_(False), report


def resolve_config(config: EngineConfig, spec: ModelSpec, report: LoadReport) -> EngineConfig:
    """The config with its open choices made: drafts only if there is an MTP layer to draft with."""
    usual = USUAL_MAX_DRAFT if report.has_mtp else 0
    if config.max_draft is None:
        return replace(config, max_draft=usual)
    if config.max_draft and not report.has_mtp:
        raise ConfigError(
            f"max_draft = {config.max_draft}, but this checkpoint has no MTP layer to draft with; leave max_draft out"
        )
    return config
