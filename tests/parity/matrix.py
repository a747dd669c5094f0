"""The confusion matrix of the gate: every planted fault and every right change, on every family.

python -m tests.parity.matrix calibrate     what right changes measure, by number format
python -m tests.parity.matrix matrix        the table of docs/parity.md, on seeds of the calibration and others
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import nn

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

PROMPTS = {"short": prompt(24), "middle": prompt(70), "long": prompt(300)}
FP8_BLOCK = (16, 16)  # 128 x 128 would be one block for matrices so small
PACKERS = {
    "fp8": lambda m: formats.pack_fp8(m, FP8_BLOCK, ue8m0=False),
    "fp4": formats.pack_fp4,
    "int8": formats.pack_int8,
}


def engine(network: Network, **options: Any) -> EngineCore:
    options = {"enable_prefix_cache": False, "max_step_tokens": 128, **options}
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


@lru_cache(maxsize=32)
def reference_network(family: str, seed: int, dtype: str, weights: str | None) -> Network:
    return on(tiny_network(family, seed), Operators(), dtype, weights)


@lru_cache(maxsize=32)
def recording(family: str, seed: int, dtype: str = "float32", weights: str | None = None) -> Recording:
    network = reference_network(family, seed, dtype, weights)
    return record(engine(network), PROMPTS, model=f"{family}, seed {seed}")


def judge_fault(name: str, family: str, seed: int = 0, dtype: str = "float32", **options: Any) -> Report:
    """The gate's report on a device with one fault."""
    weights = None
    if name == "shared expert dropped":
        network = on(reference_network(family, seed, dtype, weights), Operators())
        shared_expert_dropped(network)
    else:
        fault = FAULTS[name]
        weights = "fp8" if fault.packed else None
        network = on(reference_network(family, seed, dtype, weights), fault.table())
    return compare(recording(family, seed, dtype, weights), engine(network), **options)


def judge_change(name: str, family: str, seed: int = 0, **options: Any) -> Report:
    """The gate's report on a device that is right, but computes otherwise."""
    change: Change = CHANGES[name]
    network = on(reference_network(family, seed, change.dtype, None), change.table(), change.other, change.weights)
    return compare(recording(family, seed, change.dtype), engine(network, **change.options), **options)


def fault_cases() -> Iterator[tuple[str, str, str]]:
    """(fault, family, operator to be named)"""
    for name, fault in FAULTS.items():
        for family in fault.families:
            yield name, family, fault.operator
    for family in FAMILIES:
        yield "shared expert dropped", family, "linear"


def calibrate(seeds: range) -> None:
    """Of right changes, by number format: the worst figure of each kind over all families and seeds."""
    worst: dict[tuple[str, str], tuple[float, str]] = {}

    def note(number: str, kind: str, value: float, where: str) -> None:
        if (number, kind) not in worst or value > worst[number, kind][0]:
            worst[number, kind] = value, where

    for seed in seeds:
        for family in FAMILIES:
            for name in CHANGES:
                report = judge_change(name, family, seed)
                where = f"{name}, {family}, seed {seed}"
                for o in report.operators:
                    note(o.format, f"operator {o.operator}", o.worst_error, f"{o.site}, {where}")
                    note(o.format, "wrong picks", o.num_wrong_picks, f"{o.operator} at {o.site}, {where}")
                    if o.failure:
                        print("FAILURE", o.operator, o.failure, where)
                for p in report.prompts:
                    for check in p.checks:
                        value = 1 - check.value if check.at_least else check.value
                        note(report.format, check.name, value, f"{p.name}, {where}")
    for (number, kind), (value, where) in sorted(worst.items()):
        print(f"{number:9} {kind:34} {value:10.3g}   {where}")


def matrix(seeds: range, *, faults: bool = True, changes: bool = True) -> None:
    """Faults by how many of their cases were found and rightly named; changes by how many passed."""
    if faults:
        print("| fault | operator | cases | found | named alone | end to end too |\n|---|---|---|---|---|---|")
        for name in dict.fromkeys(n for n, _, _ in fault_cases()):
            cases = [(f, o) for n, f, o in fault_cases() if n == name]
            reports = [(judge_fault(name, f, s), o) for f, o in cases for s in seeds]
            found = sum(not r.passed for r, _ in reports)
            named = sum({x.operator for x in r.blamed} == {o} for r, o in reports)
            ends = sum(any(not p.passed for p in r.prompts) for r, _ in reports)
            print(f"| {name} | `{cases[0][1]}` | {len(reports)} | {found} | {named} | {ends} |", flush=True)
    if changes:
        print("\n| change | judged as | cases | passed | worst operator, of its limit |\n|---|---|---|---|---|")
        for name in CHANGES:
            all_of = [judge_change(name, f, s) for f in FAMILIES for s in seeds]
            share = max(o.badness for r in all_of for o in r.operators)
            passed = sum(r.passed for r in all_of)
            print(f"| {name} | {all_of[0].format} | {len(all_of)} | {passed} | {share:.2f} |", flush=True)
            for report in all_of:
                if not report.passed:
                    print("   FAILED", report.model, report.verdict())


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    {"calibrate": calibrate, "matrix": matrix}[command](range(first, last))
