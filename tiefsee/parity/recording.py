"""What a reference has said, in memory or in a file, so that another device can be judged where the first is not.

The file is safetensors with one metadata entry, "tiefsee.parity": JSON with the version and everything that is no
tensor. It holds, per prompt, the tokens and the logits of decoder and MTP layer (all of a small vocabulary, the best
256 of a large one), the picks of routers and indexers, sketches of what the layers give, and the calls with inputs
and outputs, which are bounded by `record`'s `limit_bytes`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiefsee.engine import EngineCore
from tiefsee.errors import RecordingError
from tiefsee.ops.storage import checksum
from tiefsee.ops.view import Segment
from tiefsee.ops.weight import Weight
from tiefsee.parity.calls import CachedRows, Call, Parameter
from tiefsee.parity.measures import Logits
from tiefsee.parity.report import Drafted
from tiefsee.parity.trace import Sketches
from tiefsee.parity.watch import Picks
from tiefsee.spec.model import Router

VERSION = 2
_KEY = "tiefsee.parity"
_CHECKSUM = "tiefsee.parity.checksum"
SMALL_VOCABULARY = 4096
KEPT_LOGITS = 256


@dataclass(frozen=True)
class Recording:
    """`structure` tells models of unlike shape apart, `fingerprint` unlike weights, `settings` unlike numbers of a
    config.json; `side` describes the device. `drafts` has what the MTP layer says of positions 1 and on."""

    model: str
    fingerprint: str
    structure: str
    side: Mapping[str, Any]
    prompts: Mapping[str, tuple[int, ...]]
    tokens: tuple[tuple[int, ...], ...]
    logits: tuple[Logits, ...] = field(repr=False)
    picks: Picks = field(repr=False)
    calls: tuple[Call, ...] = field(repr=False)
    trace: Sketches = field(repr=False)
    settings: Mapping[str, str] = field(repr=False)
    num_drafts: int = 0
    drafts: tuple[Logits | None, ...] = field(default=(), repr=False)
    drafted: Drafted = field(default_factory=Drafted)
    num_left_out: int = 0

    def formats(self) -> list[str]:
        return list(self.side["formats"])

    def check_fits(self, core: EngineCore) -> None:
        """RecordingError unless the engine runs a model of this very shape, and holds the prompts."""
        if structure(core) != self.structure:
            raise RecordingError(f"the recording is of another model ({self.model}); record this one on the reference")
        longest = max(len(p) for p in self.prompts.values()) + len(self.tokens[0])
        if longest > core.max_context:
            raise RecordingError(
                f"the recording has prompts of up to {longest} tokens; this engine holds {core.max_context}. Raise "
                "--max-context, or record shorter prompts"
            )

    def check_sound(self) -> None:
        """RecordingError where the reference itself gave what is no number: nothing can be held to that."""
        for name, kept in zip(self.prompts, self.logits, strict=True):
            bad = (~kept.values.isfinite()).any(-1).nonzero()
            if len(bad):
                raise RecordingError(
                    f"the logits of the reference itself are not finite, prompt {name!r} from position {int(bad[0])} "
                    "on: nothing can be held to them. Try --dtype float32, or another reference"
                )
        for call in self.calls:
            if any(o is not None and o.is_floating_point() and bool(o.isnan().any()) for o in call.outputs):
                raise RecordingError(
                    f"{call.operator} of the reference itself gives nan at {call.site}: nothing can be held to that. "
                    "Try --dtype float32, or another reference"
                )

    def save(self, path: Path) -> int:
        """Write the file; returns its bytes."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}

        def put(tensor: Tensor) -> str:
            name = f"t{len(tensors)}"
            tensors[name] = tensor.contiguous().clone()
            return name

        facts = {
            "version": VERSION, "model": self.model, "fingerprint": self.fingerprint, "structure": self.structure,
            "side": dict(self.side), "prompts": {n: list(p) for n, p in self.prompts.items()},
            "tokens": [list(t) for t in self.tokens], "num_left_out": self.num_left_out,
            "logits": [_put_logits(kept, put) for kept in self.logits],
            "drafts": [_put_logits(kept, put) for kept in self.drafts],
            "num_drafts": self.num_drafts, "drafted": asdict(self.drafted), "settings": dict(self.settings),
            "trace": [[p, i, put(rows)] for p, of_prompts in self.trace.items() for i, rows in of_prompts.items()],
            "picks": [
                [site, prompt, list(picks), put(torch.stack(list(picks.values())))]
                for site, of_prompts in self.picks.items() for prompt, picks in of_prompts.items()
            ],
            "calls": [
                {"operator": c.operator, "site": c.site, "probe": c.probe, "rows": [c.num_rows, c.num_kept],
                 "arguments": [_pack(a, put) for a in c.arguments], "outputs": [_pack(o, put) for o in c.outputs]}
                for c in self.calls
            ],
        }  # fmt: skip
        text = json.dumps(facts)
        part = path.with_name(path.name + ".part")  # whoever reads `path` never finds half a file
        try:
            save_file(tensors, part, metadata={_KEY: text, _CHECKSUM: _checksum(text, tensors)})
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise RecordingError(f"cannot write {path}: {error}") from error
        finally:
            part.unlink(missing_ok=True)
        return path.stat().st_size

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Raises RecordingError for a file that is absent, cut short, altered, of another kind or another version."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if _KEY not in metadata:
                    raise RecordingError(f"{path} is no recording but another safetensors file; make one with --record")
                facts = json.loads(metadata[_KEY])
                if facts.get("version") != VERSION:
                    raise RecordingError(
                        f"{path} has version {facts.get('version')} of a recording; this tiefsee reads {VERSION}. "
                        "Record again with the same tiefsee on both sides"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                if metadata.get(_CHECKSUM) != _checksum(metadata[_KEY], tensors):
                    raise RecordingError(f"{path} is not what was written: its checksum is another. Copy it again")
                return _read(facts, tensors.__getitem__)
        except (OSError, SafetensorError) as error:
            raise RecordingError(f"cannot read the recording {path}: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RecordingError(f"{path} is no recording that can be read ({error!r}); record again") from error


def _checksum(facts: str, tensors: Mapping[str, Tensor]) -> str:
    """Of all that is in the file, in the order of the tensors' names."""
    digest = hashlib.blake2b(facts.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {checksum((tensor,))}".encode())
    return digest.hexdigest()


def _read(facts: Mapping[str, Any], get: Any) -> Recording:
    picks: Picks = {}
    for site, prompt, positions, name in facts["picks"]:
        picks.setdefault(site, {})[prompt] = dict(zip(positions, get(name).unbind(), strict=True))
    calls = tuple(
        Call(c["operator"], c["site"], tuple(_unpack(a, get) for a in c["arguments"]),
             tuple(_unpack(o, get) for o in c["outputs"]), c["probe"], *c["rows"])
        for c in facts["calls"]
    )  # fmt: skip
    trace: Sketches = {}
    for point, prompt, name in facts["trace"]:
        trace.setdefault(point, {})[prompt] = get(name)
    return Recording(
        facts["model"], facts["fingerprint"], facts["structure"], facts["side"],
        {n: tuple(p) for n, p in facts["prompts"].items()}, tuple(tuple(t) for t in facts["tokens"]),
        tuple(Logits(*map(get, names)) for names in facts["logits"]), picks, calls, trace, facts["settings"],
        facts["num_drafts"], tuple(names and Logits(*map(get, names)) for names in facts["drafts"]),
        Drafted(**facts["drafted"]), facts["num_left_out"],
    )  # fmt: skip


def _put_logits(kept: Logits | None, put: Any) -> list[str] | None:
    return None if kept is None else [put(v) for v in (kept.ids, kept.values, kept.log_sum)]


def _pack(value: Any, put: Any) -> Any:
    """An argument as JSON, tensors by their names."""
    match value:
        case Tensor():
            return {"tensor": put(value)}
        case Parameter(name, kind):
            return {"parameter": [name, kind]}
        case CachedRows(stream, segments, rows):
            packed = [_pack(r, put) for r in rows]
            return {"cache": [stream, [[s.first, s.last, s.start, s.origin] for s in segments], packed]}
        case Router():
            return {"router": asdict(value)}
        case list() | tuple():
            return {"list": [_pack(v, put) for v in value]}
    return {"value": value}


def _unpack(packed: Mapping[str, Any], get: Any) -> Any:
    ((kind, value),) = packed.items()
    match kind:
        case "tensor":
            return get(value)
        case "parameter":
            return Parameter(*value)
        case "cache":
            stream, segments, rows = value
            return CachedRows(stream, tuple(Segment(*s) for s in segments), tuple(_unpack(r, get) for r in rows))
        case "router":
            return Router(**value)
        case "list":
            return [_unpack(v, get) for v in value]
    return value


# ------------------------------------------------------------------------------- describing a side


def describe(core: EngineCore) -> dict[str, Any]:
    """The device as a report names it, and the number formats that it computes and stores in."""
    network, plan = core.runner.network, core.plan
    kinds = [m.packing.format for m in network.modules() if isinstance(m, Weight)]
    dtype = str(network.norm.weight.dtype).removeprefix("torch.")
    activations = {kind: network.ops.activation_format(kind, network.norm.weight.dtype) for kind in sorted(set(kinds))}
    return {
        "device": str(network.device), "operators": network.ops.name, "dtype": dtype, "cache_dtype": plan.dtype,
        "layout": plan.layout.name, "weights": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "activations": activations,
        "formats": sorted({dtype, plan.dtype, *activations.values()} | ({"fp8"} if plan.layout.packed else set())),
        "torch": torch.__version__, "notes": list(core.notes),
    }  # fmt: skip


def structure(core: EngineCore) -> str:
    """Of all parameters the names, but for MTP layers, which a side may lack: the same in any number format."""
    network = core.runner.network
    names = sorted(
        f"{n.removesuffix('.data').removesuffix('.scale')}"
        for n, _ in [*network.named_parameters(), *network.named_buffers()]
        if not n.startswith("mtp.")
    )
    facts = f"{sorted(set(names))} {core.spec.kinds()} {core.spec.hidden_size} {core.spec.vocab_size}"
    return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()


def settings(core: EngineCore) -> dict[str, str]:
    """Every number of the spec but those that say how a checkpoint is stored: "layers.3.attention.rope.theta"."""
    found: dict[str, str] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{name}.{key}" if name else str(key), inner)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            for index, inner in enumerate(value):
                walk(f"{name}.{index}", inner)
        else:
            found[name] = repr(list(value) if isinstance(value, tuple) else value)

    facts = asdict(core.spec)
    walk("", {k: v for k, v in facts.items() if k not in ("dtype", "quantisation", "initializer_range", "model_type")})
    return found


def keep_logits(logits_TW: Tensor) -> Logits:
    return Logits.of(logits_TW, logits_TW.shape[1] if logits_TW.shape[1] <= SMALL_VOCABULARY else KEPT_LOGITS)
