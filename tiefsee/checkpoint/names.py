"""Which tensor on disk is which of ours; what is missing, left over or mis-shaped is one error with names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tiefsee.errors import CheckpointError
from tiefsee.files import TensorEntry
from tiefsee.ops.formats import FP4_COLUMNS, num_blocks
from tiefsee.spec.model import ModelSpec
from tiefsee.spec.split import WHOLE, Split
from tiefsee.spec.tensors import CheckpointTensor, checkpoint_tensors

SCALE_SUFFIXES = (".weight_scale_inv", ".scale")
# Known, but not used: buffers of old files, and the embedding and head that V3 repeats in its MTP layer.
UNUSED = (
    re.compile(r"rotary_emb\.inv_freq$"),
    re.compile(r"\.shared_head\.head\.weight$"),
    re.compile(r"^(model\.)?layers\.\d+\.embed_tokens\.weight$"),
    re.compile(r"^(model\.)?mtp\.\d+\.(embed|head|emb)\b"),
)
# V4-Flash-0731 stores a block drafter (DSpark) of three layers under `mtp.*`; its Markov head tells it from MTP.
DSPARK = re.compile(r"\.markov_head\.")
DRAFTER = re.compile(r"^(model\.)?mtp\.")
LISTED = 8
# What plain values, and scales, may be stored as; tables of token ids hold whole numbers.
FLOATS, WHOLE_NUMBERS = ("F64", "F32", "F16", "BF16"), ("I64", "I32", "I16")
SCALES = (*FLOATS, "F8_E8M0", "U8")


@dataclass(frozen=True)
class Source:
    """One of our tensors and its entries on disk; `scale` is there for packed ones."""

    tensor: CheckpointTensor
    entry: TensorEntry
    scale: TensorEntry | None


@dataclass
class Matched:
    """Every tensor to read, in file order; `unused` are known ones that are passed over, by name."""

    sources: list[Source] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    has_mtp: bool = False


def match_tensors(spec: ModelSpec, entries: Mapping[str, TensorEntry], split: Split = WHOLE) -> Matched:
    """Pair the spec's tensors with those on disk. Raises one CheckpointError that names all that is wrong."""
    left = dict(entries)
    matched = Matched()
    missing: list[CheckpointTensor] = []
    problems: list[str] = []
    drafter = [name for name in left if DRAFTER.match(name)] if any(map(DSPARK.search, left)) else []
    for unused in drafter:
        del left[unused]
    for tensor in checkpoint_tensors(spec, split):
        name = next((n for n in (tensor.published, *tensor.aliases) if n in left), None)
        if name is None:
            missing.append(tensor)
            continue
        entry = left.pop(name)
        scale = next((left.pop(n) for s in SCALE_SUFFIXES if (n := name.removesuffix(".weight") + s) in left), None)
        problems += _check(spec, tensor, entry, scale)
        matched.sources.append(Source(tensor, entry, scale))
    absent = _judge_missing(missing, matched)
    known = {name for name in left if any(pattern.search(name) for pattern in UNUSED)}
    matched.unused = [*drafter, *(name for name in left if name in known)]
    extra = [name for name in left if name not in known]
    if spec.mtp_layers and not matched.has_mtp:
        extra = [name for name in extra if not _is_mtp(spec, name)]
    complain(absent, extra, problems)
    matched.sources.sort(key=lambda s: (s.entry.file.name, s.entry.start))
    return matched


def complain(missing: Sequence[str], extra: Sequence[str], problems: Sequence[str]) -> None:
    """One error for everything, each kind with its count and first names."""
    parts = []
    for what, names in (("missing", missing), ("not of this model", extra), ("unfit", problems)):
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            parts.append(f"{len(names)} tensors {what}: {'; '.join(names[:LISTED])}{more}")
    if parts:
        raise CheckpointError(
            "the checkpoint does not fit its config.json. " + ". ".join(parts) + ". "
            "Is it complete, and the config.json of the same release?"
        )


def _judge_missing(missing: Sequence[CheckpointTensor], matched: Matched) -> list[str]:
    """Names of what must be there. MTP layers may lack altogether (the model then runs without drafts)."""
    mtp = [t for t in missing if t.name.startswith("mtp.")]
    found_mtp = any(s.tensor.name.startswith("mtp.") for s in matched.sources)
    matched.has_mtp = found_mtp
    optional = {t.name for t in missing if t.optional and not t.name.startswith("mtp.")}
    return [t.published for t in missing if t.name not in optional and (found_mtp or t not in mtp)]


def _is_mtp(spec: ModelSpec, name: str) -> bool:
    layer = re.match(r"(?:model\.)?layers\.(\d+)\.", name)
    return "mtp." in name or (layer is not None and int(layer[1]) >= spec.num_hidden_layers)


def _check(spec: ModelSpec, tensor: CheckpointTensor, entry: TensorEntry, scale: TensorEntry | None) -> list[str]:
    """What is wrong with shape, dtype and scale of one tensor, in words."""
    name, shape = tensor.published, tensor.shape
    if scale is not None and scale.dtype not in SCALES:
        return [f"the scale of {name} is {scale.dtype}, needed {' or '.join(SCALES)}"]
    if entry.dtype == "F8_E4M3":
        if entry.shape != shape:
            return [f"{name} is {list(entry.shape)}, needed {list(shape)}"]
        if scale is None:
            return [f"{name} is FP8 and has no scale beside it ({' or '.join(SCALE_SUFFIXES)})"]
        block = fp8_block(spec, shape, scale.shape)
        grid = num_blocks((shape[0], shape[1]), block)
        return [] if scale.shape == grid else [f"the scale of {name} is {list(scale.shape)}, needed {list(grid)}"]
    if entry.dtype in ("I8", "U8") and tensor.kind == "linear":
        packed, grid = (shape[0], shape[1] // 2), num_blocks((shape[0], shape[1]), (1, FP4_COLUMNS))
        if entry.shape != packed:
            return [f"{name} is {list(entry.shape)} of packed FP4, needed {list(packed)}"]
        if scale is None:
            return [f"{name} is FP4 and has no scale beside it ({' or '.join(SCALE_SUFFIXES)})"]
        return [] if scale.shape == grid else [f"the scale of {name} is {list(scale.shape)}, needed {list(grid)}"]
    needed = WHOLE_NUMBERS if tensor.kind == "table" else FLOATS
    if entry.dtype not in needed:
        return [f"{name} is {entry.dtype}, needed {' or '.join(needed)}"]
    wrong = entry.shape != shape
    return [f"{name} is {list(entry.shape)}, needed {list(shape)}"] if wrong else []


def fp8_block(spec: ModelSpec, shape: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, int]:
    """The scale block: as config.json says; without its word, the published one that gives this grid."""
    if spec.quantisation is not None:
        return spec.quantisation.block
    fits = [b for b in ((128, 128), (32, 32)) if num_blocks((shape[0], shape[1]), b) == grid]
    return fits[0] if fits else (128, 128)
