"""Every call of a fused operator against its registered schema, at the published dimensions, without any memory.

Meta tensors go through the real torch_npu: names, types and order of arguments, and the shapes that come out. What CANN
itself would refuse, the emulator says (test_operators.py); what a chip refuses beyond its documentation, only a chip.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiefsee.ops.ascend
from tiefsee.engine.cache import CachePlan, PagedView, StreamCache
from tiefsee.model import Network
from tiefsee.ops.ascend import AscendOperators, settle
from tiefsee.ops.ascend.chip import chip_of
from tiefsee.ops.view import Segment
from tiefsee.ops.weight import Packing, Weight
from tiefsee.spec import checkpoint_tensors, preset
from tiefsee.spec.model import MoE
from tiefsee.spec.streams import cache_streams
from tiefsee.streams import block_tokens

META = torch.device("meta")
ADAPTERS = Path(tiefsee.ops.ascend.__file__).parent
SEEN: set[str] = set()
QUANTISERS = {"int8": "quant", "blocks": "block_quant", "mx": "mx_quant"}


class Recorder(TorchDispatchMode):
    """Notes the operators of torch.ops.npu that are called."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "npu":
            SEEN.add(function.__name__.partition(".")[0])
        return function(*args, **(kwargs or {}))


def call_sites() -> set[str]:
    """Names of the operators that the adapters call, from their source."""
    nodes = [n for file in ADAPTERS.glob("*.py") for n in ast.walk(ast.parse(file.read_text()))]
    return {n.attr for n in nodes if isinstance(n, ast.Attribute) and n.attr.startswith("npu_")}


def meta_network(name: str, soc: str, layers: slice, dtype: torch.dtype = torch.bfloat16) -> Network:
    spec = preset(name)
    spec = replace(spec, layers=spec.layers[layers], mtp_layers=())
    with META:
        network = Network(spec, AscendOperators(chip_of(soc)))
    kept = [
        (n, p) for n, p in network.named_parameters() if not n.endswith(("gate.weight", "gate.bias")) and "hc_" not in n
    ]
    for _, parameter in kept:
        parameter.data = parameter.data.to(dtype)
    return network.eval().requires_grad_(False)


def run(network: Network, spans: list[tuple[int, int]]) -> torch.Tensor:
    """One step over a paged cache: (number of tokens, start) for each request."""
    streams = cache_streams(network.spec, speculate=False)
    size = block_tokens(streams)
    blocks = max(-(-(count + start) // size) for count, start in spans)
    plan = CachePlan(streams, size, blocks * len(spans), len(spans), 0, 0, "bfloat16", network.ops.layout)
    segments, first = [], 0
    for count, start in spans:
        segments.append(Segment(first, first + count, start))
        first += count
    tables = [range(i * blocks, (i + 1) * blocks) for i in range(len(spans))]
    view = PagedView(StreamCache(plan, META, network.ops), segments, tables, list(range(len(spans))))
    tokens = torch.zeros(first, dtype=torch.int64, device=META)
    with torch.inference_mode(), Recorder():
        return network.logits(network(tokens, tokens, view).final_TD)


@pytest.mark.usefixtures("npu")
@pytest.mark.parametrize("soc", ["Ascend910B3", "Ascend910_9391", "Ascend950"])
@pytest.mark.parametrize(
    ("name", "layers", "spans"),
    [
        ("v2-lite", slice(0, 2), [(1, 4000), (64, 0)]),
        ("v3", slice(2, 4), [(1, 4000), (3, 700), (1, 0)]),  # decode, drafts, a first token
        ("v3", slice(2, 4), [(512, 3000), (1, 90)]),  # a chunk of a prompt beside a decode
        ("v3.2", slice(2, 4), [(1, 5000), (200, 4000), (2, 100)]),  # picks for the long ones
        ("v4-flash", slice(0, 6), [(200, 0), (40, 1024)]),
    ],
)
def test_a_step_at_published_dimensions(name, layers, spans, soc):
    network = meta_network(name, soc, layers)
    assert run(network, spans).shape == (sum(count for count, _ in spans), network.spec.vocab_size)


@pytest.mark.usefixtures("npu")
def test_hyper_connections_and_hash_gating_of_ascend_950():
    network = meta_network("v4-flash", "Ascend950", slice(0, 6))
    assert run(network, [(200, 0)]).shape == (200, network.spec.vocab_size)
    assert {"npu_mhc_pre", "npu_mhc_sinkhorn", "npu_mhc_post"} <= SEEN


def on_meta(kind, *shape):
    """A packed weight as a checkpoint has it: INT8, FP8 in blocks of 128 or 32, FP4."""
    *lead, rows, columns = shape
    block = {"int8": (1, columns), "blocks": (128, 128), "mx": (32, 32), "mx4": (1, 32)}[kind]
    grid = (*lead, -(-rows // block[0])) if kind == "int8" else (*lead, -(-rows // block[0]), -(-columns // block[1]))
    dtype = {"int8": torch.int8, "mx4": torch.uint8}.get(kind, torch.float8_e4m3fn)
    data = torch.empty(*lead, rows, columns // 2 if kind == "mx4" else columns, dtype=dtype, device=META)
    packing = Packing({"int8": "int8", "mx4": "fp4"}.get(kind, "fp8"), block if kind == "mx" else (128, 128))
    return Weight(data, torch.empty(grid, device=META), packing)


@pytest.mark.usefixtures("npu")
@pytest.mark.parametrize(
    ("soc", "name", "kind", "experts"),
    [
        ("Ascend910B3", "v3", "int8", "int8"),
        ("Ascend910_9391", "v4-flash", "int8", "int8"),
        ("Ascend910_9391", "v4-pro", "int8", "int8"),  # 65,536 rows of wq_b: in two pieces
        ("Ascend950", "v3", "blocks", "blocks"),  # 576 rows of wkv_a: no whole number of blocks
        ("Ascend950", "v4-flash", "blocks", "mx4"),
        ("Ascend950", "v4-pro", "blocks", "mx4"),
        ("Ascend950", "v4-flash", "mx", "mx4"),
    ],
)
def test_packed_products_at_published_dimensions(soc, name, kind, experts, monkeypatch):
    """Every linear of the model and its experts, settled as after a load. (The cast to FRACTAL_NZ has no Meta kernel;
    it keeps shapes.)"""
    monkeypatch.setattr(settle, "_in_order", lambda data, fp4=False: data)
    ops, spec = AscendOperators(chip_of(soc)), preset(name)
    before, bf16 = set(SEEN), torch.bfloat16
    SEEN.clear()
    shapes = {t.shape for t in checkpoint_tensors(spec) if t.kind == "linear" and t.expert is None}
    moe = next(layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoE))
    d, f = spec.hidden_size, moe.moe_intermediate_size
    with torch.inference_mode(), Recorder():
        for rows, columns in shapes:
            weight = settle.settled(on_meta(kind, rows, columns), ops.chip.generation, in_order=True)
            x = torch.empty(5, columns, dtype=bf16, device=META)
            assert ops.linear(x, weight).shape == (5, rows)
        assert {"npu_quant_matmul", f"npu_dynamic_{QUANTISERS[kind]}"} == SEEN  # none of them was unpacked
        module = torch.nn.Module()
        for leaf, shape in (("w1", (f, d)), ("w2", (d, f)), ("w3", (f, d))):
            setattr(module, leaf, on_meta(experts, moe.n_routed_experts, *shape))
        ops.settle(module, bf16)
        assert isinstance(module.w1, settle.Half)
        x, picks = torch.empty(5, d, dtype=bf16, device=META), torch.zeros(5, 6, dtype=torch.int64, device=META)
        w = module.w1, module.w2, module.w3
        assert ops.run_experts(x, picks, picks.float(), *w, moe.swiglu_limit).shape == (5, d)
        own = torch.nn.Module()  # of one rank of eight
        for leaf, shape in (("w1", (f, d)), ("w2", (d, f)), ("w3", (f, d))):
            setattr(own, leaf, on_meta(experts, moe.n_routed_experts // 8, *shape))
        ops.settle(own, bf16)
        share = (2 * moe.n_routed_experts // 8, moe.n_routed_experts)
        w = own.w1, own.w2, own.w3
        assert ops.run_experts(x, picks, picks.float(), *w, moe.swiglu_limit, share).shape == (5, d)
        x = torch.empty(5, 8, 4096, dtype=bf16, device=META)
        assert ops.grouped_linear(x, on_meta(kind, 8 * 1024, 4096)).shape == (5, 8 * 1024)
    SEEN.update(before)


@pytest.mark.usefixtures("npu")
def test_the_schema_refuses_what_does_not_fit():
    x = torch.empty(4, 64, dtype=torch.int8, device=META)
    with pytest.raises(RuntimeError, match="k dim"):
        torch.ops.npu.npu_quant_matmul(
            x, torch.empty(65, 8, dtype=torch.int8, device=META), torch.empty(8, device=META)
        )
    with pytest.raises(RuntimeError, match=r"[Uu]nknown keyword"):
        torch.ops.npu.npu_rms_norm(x, x, eps=1e-6)


@pytest.mark.usefixtures("npu")
def test_no_call_site_is_left_out():
    """Last in this file: the tests above have called every operator that the adapters name."""
    assert call_sites() - SEEN == {"npu_format_cast"}  # which has no Meta kernel; test_operators.py runs it
