"""`tiefsee inspect MODEL`: sizes, cache, layers, and what fits here. Answers without torch."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

from tiefsee.errors import ModelNotFound
from tiefsee.spec import ModelSpec, cache_streams, model_spec, preset, preset_names
from tiefsee.spec.size import FORMATS, count_parameters, weight_bytes
from tiefsee.spec.split import split_of
from tiefsee.streams import block_tokens
from tiefsee.units import format_bytes, format_quantity

CACHE_DTYPE = "bfloat16"


def run(options: argparse.Namespace) -> int:
    name, spec = open_spec(options.model)
    facts = describe(name, spec, free_host_bytes(), options.tp)
    print(json.dumps(facts, indent=2) if options.json else "\n".join(report(facts)))
    return 0


def open_spec(model: str) -> tuple[str, ModelSpec]:
    """A preset by its short name, else whatever `find_model` opens; a hub id that cannot be had falls back
    to the preset of the same name, which is said."""
    from tiefsee.files import find_model

    if model.lower() in preset_names():
        return f"{model.lower()} (preset)", preset(model)
    try:
        return model, model_spec(find_model(model, config_only=True).config)
    except ModelNotFound as error:
        if "/" not in model:
            raise ModelNotFound(f"{error}; presets are {', '.join(preset_names())}") from None
        if not model.lower().startswith("deepseek-ai/"):
            raise
        try:
            return f"{model} (not downloaded; preset of that name)", preset(model)
        except ModelNotFound:
            pass
        raise


def describe(name: str, spec: ModelSpec, free: float | None, tp: int = 1) -> dict[str, Any]:
    """Everything that is printed, in base units; also the --json answer. `tp` ranks share the weights."""
    split = split_of(spec, 0, tp)
    count = count_parameters(spec)
    dtype = spec.dtype if spec.dtype in ("float32", "bfloat16", "float16") else "bfloat16"
    streams = cache_streams(spec, speculate=False)
    drafting = cache_streams(spec, speculate=True)
    dtypes = {f: {"fp32": "float32"}.get(f, dtype) for f in FORMATS}
    weights = {f: weight_bytes(spec, f, dtypes[f]) for f in FORMATS}
    return {
        "model": name,
        "model_type": spec.model_type,
        "parameters": count.total,
        "active_parameters": count.active,
        "mtp_parameters": count.mtp,
        "max_position_embeddings": spec.max_position_embeddings,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "layers": [f"{attention}/{ffn}" for attention, ffn in spec.kinds()],
        "mtp_layers": [f"{layer.attention.kind}/{layer.ffn.kind}" for layer in spec.mtp_layers],
        "weight_bytes": weights,
        "tp": tp,
        "rank_weight_bytes": {f: weight_bytes(spec, f, dtypes[f], split=split) for f in FORMATS} if tp > 1 else weights,
        "block_tokens": block_tokens(streams),
        "cache": {
            s.name: {
                "family": s.family,
                "num_layers": len(s.layers),
                "bytes_per_token": s.bytes_per_token(CACHE_DTYPE),
                "bytes_per_request": s.ring_bytes(0, CACHE_DTYPE),
            }
            for s in streams
        },
        "cache_bytes_per_token": sum(s.bytes_per_token(CACHE_DTYPE) for s in streams),
        "cache_bytes_per_request": sum(s.ring_bytes(0, CACHE_DTYPE) for s in streams),
        "mtp_cache_bytes_per_token": sum(s.bytes_per_token(CACHE_DTYPE) for s in drafting)
        - sum(s.bytes_per_token(CACHE_DTYPE) for s in streams),
        "mtp_cache_bytes_per_request": sum(s.ring_bytes(0, CACHE_DTYPE) for s in drafting)
        - sum(s.ring_bytes(0, CACHE_DTYPE) for s in streams),
        "free_bytes": free,
    }


def report(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"{facts['model']}: {facts['model_type']}, {len(facts['layers'])} layers, hidden {facts['hidden_size']:,}, "
        f"vocabulary {facts['vocab_size']:,}, context {facts['max_position_embeddings']:,} tokens",
        "",
        f"parameters     {_count(facts['parameters'])} total, {_count(facts['active_parameters'])} active per token"
        + (f", {_count(facts['mtp_parameters'])} of the total in MTP" if facts["mtp_parameters"] else ""),
        "",
        "layers         " + "\n               ".join(_runs(facts["layers"], facts["mtp_layers"])),
        "",
        "weights        " + "\n               ".join(_weights(facts)),
        "",
        f"cache in BF16  {'stream':<18}{'layers':>7}{'per token':>14}{'per request':>14}",
    ]
    for name, stream in facts["cache"].items():
        lines.append(
            f"               {name:<18}{stream['num_layers']:>7}{_size(stream['bytes_per_token']):>14}"
            f"{_size(stream['bytes_per_request']):>14}"
        )
    total = f"{_size(facts['cache_bytes_per_token']):>14}{_size(facts['cache_bytes_per_request']):>14}"
    lines.append(f"               {'all':<25}{total}   (blocks of {facts['block_tokens']} tokens)")
    if facts["mtp_layers"]:
        more = f"{_size(facts['mtp_cache_bytes_per_token']):>14}{_size(facts['mtp_cache_bytes_per_request']):>14}"
        lines.append(f"               {'more, with MTP drafts':<25}{more}")
    return lines + _fits(facts)


def _weights(facts: dict[str, Any]) -> list[str]:
    names = {"keep": "as published"}
    lines = [f"{names.get(f, f):<14}{_size(size):>10}" for f, size in facts["weight_bytes"].items()]
    if facts["tp"] == 1:
        return lines
    shares = facts["rank_weight_bytes"].values()
    return [f"{line}{_size(size):>10} on each of {facts['tp']}" for line, size in zip(lines, shares, strict=True)]


def _fits(facts: dict[str, Any]) -> list[str]:
    free = facts["free_bytes"]
    if free is None:
        return []
    lines = ["", f"fits here      {_size(free)} of memory are free:"]
    for format_, size in facts["weight_bytes"].items():
        fit = context_that_fits(free - size, facts["cache_bytes_per_token"], facts["cache_bytes_per_request"])
        limit = facts["max_position_embeddings"]
        verdict = (
            f"no, {_size(size - free)} too large"
            if size > free
            else f"yes, with {min(fit, limit):,} tokens of cache" + (" (the whole context)" if fit >= limit else "")
        )
        lines.append(f"               {'as published' if format_ == 'keep' else format_:<14}{verdict}")
    return lines


def context_that_fits(left: float, per_token: float, per_request: float) -> int:
    """Tokens of one request that memory left over by the weights holds."""
    return max(0, int((left - per_request) // per_token)) if per_token else 0


def _runs(layers: list[str], mtp: list[str]) -> list[str]:
    """Kinds with how many layers have them, in order of first appearance."""
    counts = Counter(layers)
    rows = [f"{n:>3} x {kind.replace('/', ' attention, ').replace('_', ' ')}" for kind, n in counts.items()]
    return rows + [
        f"{n:>3} x {k.replace('/', ' attention, ').replace('_', ' ')} (MTP)" for k, n in Counter(mtp).items()
    ]


def free_host_bytes() -> float | None:
    """Memory that is free on this machine; None where /proc does not say."""
    try:
        with open("/proc/meminfo") as file:
            return next(float(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def _count(number: float) -> str:
    return format_quantity(number, "tokens").removesuffix("tokens").strip().replace("G", "B")


def _size(number: float) -> str:
    return format_bytes(number) if number else "-"
