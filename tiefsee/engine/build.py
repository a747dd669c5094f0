"""From a model's name to a running `EngineCore`: find, check memory, load, plan the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tiefsee.checkpoint import LoadReport, load_network
from tiefsee.engine.config import EngineConfig, plan_memory
from tiefsee.engine.core import EngineCore
from tiefsee.engine.ranks import Followers, RankJob
from tiefsee.errors import ConfigError, OutOfMemory
from tiefsee.files import ModelFiles, find_model, fingerprint
from tiefsee.model import Network
from tiefsee.ops import Operators, open_device, operators_for, rank_devices
from tiefsee.ops.group import ALONE, Group
from tiefsee.spec import ModelSpec, model_spec
from tiefsee.spec.size import weight_bytes
from tiefsee.spec.split import WHOLE, Split, split_of
from tiefsee.text import Tokenizer
from tiefsee.units import format_bytes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Drafts per step that an engine may try when the model has an MTP layer and nothing else was said.
USUAL_MAX_DRAFT = 2


def build_core(
    model: str | Path, device: str, dtype: str, format: str, config: EngineConfig, *, tp: int = 1,
    progress: bool = False, operators: Operators | None = None,
) -> EngineCore:  # fmt: skip
    """Load a model and make room for its cache. See `LLM` for the arguments and errors.

    `operators` is another table than the device's own; followers of several ranks (`tp`) have the device's.
    """
    if tp < 1:
        raise ConfigError(f"tp is {tp}; needed 1 or more ranks")
    devices = rank_devices(device, tp)
    for name in devices:
        open_device(name)
    prepared = prepare_rank(RankJob.lead(devices, str(model), dtype, format), operators)
    if tp == 1:
        return _engine(prepared.load(ALONE, progress), config, None)
    followers = Followers(prepared.job)
    try:
        followers.hear()  # each has found what it needs
        group = prepared.meet(followers.meeting)
        followers.join(group)
        return _engine(prepared.load(group, progress), config, followers)
    except BaseException:
        followers.close()
        raise


@dataclass(frozen=True)
class PreparedRank:
    """One rank whose model was found and fits its device; nothing is loaded yet."""

    job: RankJob
    files: ModelFiles
    spec: ModelSpec
    device: torch.device
    ops: Operators
    dtype: str
    format: str
    converted: str | None

    def meet(self, meeting: str) -> Group:
        """Wait for the other ranks, each in its process; all name the same file."""
        torch.set_num_threads(self.job.num_threads)
        return Group.open(self.job.rank, self.job.size, self.device, meeting)

    def load(self, group: Group, progress: bool = False) -> LoadedRank:
        """This rank's share of the weights; all of them where it is alone."""
        with torch.device("meta"):
            network = Network(self.spec, self.ops, group)
        dtype = DTYPES[self.dtype]
        report = load_network(
            network, self.spec, self.files, device=self.device, dtype=dtype, format=self.format, progress=progress,
            split=group.split(self.spec),
        )  # fmt: skip
        self.ops.settle(network, dtype)
        network.eval().requires_grad_(False)
        free_bytes = self.ops.free_bytes(self.device) * self.job.device_share
        remarks = (*self.ops.remarks(self.spec, dtype), *notes(self.spec, report))
        return LoadedRank(
            network, self.files, report, self.dtype, free_bytes, (*filter(None, [self.converted]), *remarks)
        )


@dataclass(frozen=True)
class LoadedRank:
    """One rank's network, and what is free on its device for its cache."""

    network: Network
    files: ModelFiles
    report: LoadReport
    dtype: str
    free_bytes: float
    notes: tuple[str, ...]


def prepare_rank(job: RankJob, operators: Operators | None = None) -> PreparedRank:
    """Find the model and check that the device can hold the rank's share. See `build_core` for the errors."""
    device = open_device(job.device)
    files = find_model(job.model)
    spec = model_spec(files.config)
    dtype = resolve_dtype(job.dtype, spec)
    ops = operators or operators_for(device)
    format, converted = ops.resolve_format(job.format, spec)
    split = split_of(spec, job.rank, job.size)
    check_memory(spec, format, dtype, device, ops.free_bytes(device) * job.device_share, split)
    return PreparedRank(job, files, spec, device, ops, dtype, format, converted)


def _engine(loaded: LoadedRank, config: EngineConfig, followers: Followers | None) -> EngineCore:
    """The engine on a loaded network: cache, tokenizer, and the followers' caches like its own."""
    files, network = loaded.files, loaded.network
    config = resolve_config(config, network.spec, loaded.report)
    free = min([loaded.free_bytes, *(followers.hear() if followers is not None else [])])
    plan, max_context = plan_memory(network.spec, config, config.cache_dtype or loaded.dtype, free, network.ops.layout)
    if followers is not None:
        followers.tell(plan)
    tokenizer = None
    if (files.folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_folder(files.folder, files.config, files.generation_config)
    core = EngineCore(
        network, plan, max_context, config, tokenizer, files.generation_config, files.folder,
        config.model_id or fingerprint(files), followers,
    )  # fmt: skip
    core.notes = list(loaded.notes)
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


def check_memory(
    spec: ModelSpec, format: str, dtype: str, device: torch.device, free: float, split: Split = WHOLE
) -> None:
    """OutOfMemory before anything is read, when the weights alone, or a rank's share of them, exceed what is free."""
    needed = weight_bytes(spec, format, dtype, split=split)
    if needed <= free:
        return
    others = {f: weight_bytes(spec, f, dtype, split=split) for f in ("keep", "int8") if f != format}
    fitting = [f"--format {f} ({format_bytes(size)})" for f, size in others.items() if size <= free]
    advice = (
        f"{' or '.join(fitting)} would fit" if fitting else "no format of this model fits here; use a larger machine"
    )
    raise OutOfMemory(
        f"{'the weights need' if split.size == 1 else f'rank {split.rank} of {split.size} needs'} "
        f"{format_bytes(needed)} as {format}, and {device} has {format_bytes(free)} free: "
        f"{format_bytes(needed - free)} too little; {advice}"
    )


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
