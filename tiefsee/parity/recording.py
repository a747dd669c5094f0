"""What a reference has said, in memory or in a file, so that another device can be judged where the first is not.

The file is safetensors with one metadata entry, "tiefsee.parity": JSON with the version and everything that is no
tensor. It holds, per prompt, the tokens and the logits (all of a small vocabulary, the best 256 of a large one), the
picks of routers and indexers, and the calls with inputs and outputs, which are bounded by `record`'s `limit_bytes`.
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
from tiefsee.ops.view import Segment
from tiefsee.ops.weight import Weight
from tiefsee.parity.calls import CachedRows, Call, Parameter
from tiefsee.parity.measures import Logits
from tiefsee.parity.watch import Picks
from tiefsee.spec.model import Router

VERSION = 1
_KEY = "tiefsee.parity"
SMALL_VOCABULARY = 4096
KEPT_LOGITS = 256


@dataclass(frozen=True)
class Recording:
    """`structure` tells models of unlike shape apart, `fingerprint` unlike weights; `side` describes the device."""

    model: str
    fingerprint: str
    structure: str
    side: Mapping[str, Any]
    prompts: Mapping[str, tuple[int, ...]]
    tokens: tuple[tuple[int, ...], ...]
    logits: tuple[Logits, ...] = field(repr=False)
    picks: Picks = field(repr=False)
    calls: tuple[Call, ...] = field(repr=False)
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
            "logits": [[put(v) for v in (kept.ids, kept.values, kept.log_sum)] for kept in self.logits],
            "picks": [
                [site, prompt, list(picks), put(torch.stack(list(picks.values())))]
                for site, of_prompts in self.picks.items() for prompt, picks in of_prompts.items()
            ],
            "calls": [
                {"operator": c.operator, "site": c.site, "probe": c.probe,
                 "arguments": [_pack(a, put) for a in c.arguments], "outputs": [_pack(o, put) for o in c.outputs]}
                for c in self.calls
            ],
        }  # fmt: skip
        try:
            save_file(tensors, path, metadata={_KEY: json.dumps(facts)})
        except (OSError, SafetensorError) as error:
            raise RecordingError(f"cannot write {path}: {error}") from error
        return path.stat().st_size

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Raises RecordingError for a file that is absent, cut short, of another kind or another version."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {}).get(_KEY, "{}"))
                if facts.get("version") != VERSION:
                    raise RecordingError(
                        f"{path} has version {facts.get('version')} of a recording; this tiefsee reads {VERSION}. "
                        "Record again with the same tiefsee on both sides"
                    )
                return _read(facts, file.get_tensor)
        except (OSError, SafetensorError) as error:
            raise RecordingError(f"cannot read the recording {path}: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RecordingError(f"{path} is no recording that can be read ({error!r}); record again") from error


def _read(facts: Mapping[str, Any], get: Any) -> Recording:
    picks: Picks = {}
    for site, prompt, positions, name in facts["picks"]:
        picks.setdefault(site, {})[prompt] = dict(zip(positions, get(name).unbind(), strict=True))
    calls = tuple(
        Call(c["operator"], c["site"], tuple(_unpack(a, get) for a in c["arguments"]),
             tuple(_unpack(o, get) for o in c["outputs"]), c["probe"])
        for c in facts["calls"]
    )  # fmt: skip
    return Recording(
        facts["model"], facts["fingerprint"], facts["structure"], facts["side"],
        {n: tuple(p) for n, p in facts["prompts"].items()}, tuple(tuple(t) for t in facts["tokens"]),
        tuple(Logits(*(get(n) for n in names)) for names in facts["logits"]), picks, calls, facts["num_left_out"],
    )  # fmt: skip


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
    """Of all parameters the names, of plain ones the shapes: the same for the same model in any number format."""
    network = core.runner.network
    names = sorted(
        f"{n.removesuffix('.data').removesuffix('.scale')}"
        for n, _ in [*network.named_parameters(), *network.named_buffers()]
    )
    facts = f"{sorted(set(names))} {core.spec.kinds()} {core.spec.hidden_size} {core.spec.vocab_size}"
    return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()


def keep_logits(logits_TW: Tensor) -> Logits:
    return Logits.of(logits_TW, logits_TW.shape[1] if logits_TW.shape[1] <= SMALL_VOCABULARY else KEPT_LOGITS)
