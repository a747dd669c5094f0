"""The confusion matrix of the gate: every planted fault and every right change, on every family.

python -m tests.parity.matrix calibrate     what right changes measure, by number format
python -m tests.parity.matrix matrix        the table of docs/parity.md, on seeds of the calibration and others
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from tests.parity.changes import CHANGES, Change
from tests.parity.faults import FAULTS, shared_expert_dropped
from tests.tiny import FAMILIES, prompt, tiny_llm, tiny_network
from tiefsee.engine import EngineCore
from tiefsee.model import Network
from tiefsee.ops import Operators, formats
from tiefsee.ops.weight import Packing, Weight
from tiefsee.parity.gate import compare, record
from tiefsee.parity.recording import Recording
from tiefsee.parity.report import Report
from tiefsee.parity.tolerances import COMPOSED

# The factor is 1 by default. "wide" has other sizes: the thresholds were not chosen on it.
SCALED = {"routed_scaling_factor": 2.5}
SIZES: dict[str, dict[str, Any]] = {
    "small": SCALED,
    "wide": {
        **SCALED,
        "hidden_size": 112,
        "n_routed_experts": 12,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
    },
}
PROMPTS = {"short": prompt(24), "middle": prompt(70), "long": prompt(300)}
FP8_BLOCK = (16, 16)  # 128 x 128 would be one block for matrices so small
PACKERS = {
    "fp8": lambda m: formats.pack_fp8(m, FP8_BLOCK, ue8m0=False),
    "fp4": formats.pack_fp4,
    "int8": formats.pack_int8,
}


def engine(network: Network, **options: Any) -> EngineCore:
    drafts = 2 if network.mtp else 0
    options = {"enable_prefix_cache": False, "max_step_tokens": 128, "max_draft": drafts, **options}
    return tiny_llm(network, **options).core


def on(network: Network, ops: Operators, dtype: str | None = None, weights: str | None = None) -> Network:
    """The same network on another operator table, in another dtype, with packed weights."""
    other = copy.deepcopy(network, {id(network.ops): ops})  # every module has the one table
    if dtype is not None:
        in_dtype(other, getattr(torch, dtype))
    if weights is not None:
        pack(other, weights)
    return other


def in_dtype(network: Network, dtype: torch.dtype) -> None:
    """Matrices and norms in a dtype, as a checkpoint is loaded; what is small and decides stays float32."""
    kept = ("bias", "attn_sink", "ape", "_fn", "_base", "_scale")
    for name, parameter in network.named_parameters():
        if not name.endswith(kept):
            parameter.data = parameter.data.to(dtype)


def pack(network: Network, format: str) -> None:
    """Every linear and every stack of experts as `Weight`, as the loader does."""
    for name, module in list(network.named_modules()):
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dim() < 2 or not (leaf in ("w1", "w2", "w3") or type(module).__name__ == "Linear"):
                continue
            if name == "head":
                continue
            matrices = parameter.data.unsqueeze(0) if parameter.dim() == 2 else parameter.data
            packed = [PACKERS[format](m) for m in matrices]
            data, scale = (torch.stack(parts) for parts in zip(*packed, strict=True))
            if parameter.dim() == 2:
                data, scale = data[0], scale[0]
            delattr(module, leaf)
            setattr(module, leaf, Weight(data, scale, Packing(format, FP8_BLOCK)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Model:
    """One random model: family, seed, sizes."""

    family: str
    seed: int = 0
    size: str = "small"


@lru_cache(maxsize=32)
def reference_network(model: Model, dtype: str, weights: str | None) -> Network:
    network = tiny_network(model.family, model.seed, **SIZES[model.size])
    return on(network, Operators(), dtype, weights)


@lru_cache(maxsize=32)
def recording(model: Model, dtype: str = "float32", weights: str | None = None) -> Recording:
    return record(engine(reference_network(model, dtype, weights)), PROMPTS, model=str(model))


def judge_fault(name: str, model: Model, dtype: str = "float32", **options: Any) -> Report:
    """The gate's report on a device with one fault."""
    weights = None
    if name == "shared expert dropped":
        network = on(reference_network(model, dtype, weights), Operators())
        shared_expert_dropped(network)
    else:
        fault = FAULTS[name]
        weights = "fp8" if fault.packed else None
        network = on(reference_network(model, dtype, weights), fault.table())
    return compare(recording(model, dtype, weights), engine(network), **options)


def judge_change(name: str, model: Model, **options: Any) -> Report:
    """The gate's report on a device that is right, but computes otherwise."""
    change: Change = CHANGES[name]
    network = on(reference_network(model, change.dtype, None), change.table(), change.other, change.weights)
    return compare(recording(model, change.dtype), engine(network, **change.options), **options)


def fault_cases() -> Iterator[tuple[str, str]]:
    """(fault, family)"""
    for name, fault in FAULTS.items():
        for family in fault.families:
            yield name, family
    for family in FAMILIES:
        yield "shared expert dropped", family


def is_named(name: str, report: Report) -> bool:
    """Whether the fault's operator is blamed, and nothing but it (and operators that call it), for what it gives: one
    that raises since the table has changed under it is no fault found."""
    fault = FAULTS.get(name)
    operator, also = (fault.operator, fault.also) if fault else ("linear", ())
    blamed = {o.operator for o in report.blamed}
    raises = any(o.failure is not None and "Error: " in o.failure for o in report.blamed)
    return operator in blamed and blamed <= {operator, *also} and not raises


def calibrate(models: Sequence[Model]) -> None:
    """Of right changes, by number format: the worst figure of each kind over all models."""
    worst: dict[tuple[str, str], tuple[float, str]] = {}

    def note(number: str, kind: str, value: float, where: str) -> None:
        if (number, kind) not in worst or value > worst[number, kind][0]:
            worst[number, kind] = value, where

    for model in models:
        for name in CHANGES:
            report = judge_change(name, model)
            where = f"{name}, {model.family}, seed {model.seed}"
            for o in report.operators:
                kind = "composed" if o.operator in COMPOSED else "operator"
                note(o.format, kind, o.worst_error, f"{o.operator} at {o.site}, {where}")
                note(o.format, f"{kind}, channel", o.worst_channel, f"{o.operator}, {where}")
                note(o.format, f"{kind}, all together", o.scale_error, f"{o.operator}, {where}")
                note(o.format, "wrong picks", o.num_wrong_picks, f"{o.operator} at {o.site}, {where}")
                if o.failure:
                    print("FAILURE", o.operator, o.failure, where)
            for p in report.prompts:
                for check in p.checks:
                    value = 1 - check.value if check.at_least else check.value
                    note(report.format, check.name, value, f"{p.name}, {where}")
    for (number, kind), (value, where) in sorted(worst.items()):
        print(f"{number:9} {kind:34} {value:10.3g}   {where}")


def matrix(models: Sequence[Model]) -> None:
    """Faults by how many of their cases were found and rightly named; changes by how many passed."""
    print(
        "| fault | operator | cases | found | named | end to end too | found in BF16 |\n|---|---|---|---|---|---|---|"
    )
    totals = [0] * 5
    for name in dict.fromkeys(n for n, _ in fault_cases()):
        cases = [m for m in models if (name, m.family) in set(fault_cases())]
        reports = [judge_fault(name, m) for m in cases]
        narrow = [judge_fault(name, m, "bfloat16", end_to_end=False) for m in cases]
        operator = FAULTS[name].operator if name in FAULTS else "linear"
        counts = [
            len(cases), sum(not r.passed for r in reports), sum(is_named(name, r) for r in reports),
            sum(any(not p.passed for p in r.prompts) for r in reports), sum(is_named(name, r) for r in narrow),
        ]  # fmt: skip
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        print(f"| {name} | `{operator}` | {' | '.join(map(str, counts))} |", flush=True)
    print(f"| **all** | | {' | '.join(map(str, totals))} |")
    print("\n| change | judged as | cases | passed | worst operator, of its limit |\n|---|---|---|---|---|")
    for name in CHANGES:
        reports = [judge_change(name, m) for m in models]
        share, passed = max(o.badness for r in reports for o in r.operators), sum(r.passed for r in reports)
        print(f"| {name} | {reports[0].format} | {len(reports)} | {passed} | {share:.2f} |", flush=True)
        for report in reports:
            if not report.passed:
                print("   FAILED", report.model, report.verdict())


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, size, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    chosen = [Model(family, seed, size) for seed in range(first, last) for family in FAMILIES]
    {"calibrate": calibrate, "matrix": matrix}[command](chosen)
