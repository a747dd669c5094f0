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
from tiefsee.ops.ascend import AscendOperators
from tiefsee.ops.ascend.chip import chip_of
from tiefsee.ops.view import Segment
from tiefsee.ops.weight import Packing, Weight
from tiefsee.spec import preset
from tiefsee.spec.streams import cache_streams
from tiefsee.streams import block_tokens

META = torch.device("meta")
ADAPTERS = Path(tiefsee.ops.ascend.__file__).parent
SEEN: set[str] = set()


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
@pytest.mark.parametrize("soc", ["Ascend910B3", "Ascend910_9391"])
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


@pytest.mark.usefixtures("npu")
def test_int8_products_at_published_dimensions():
    ops, d, f, experts = AscendOperators(chip_of("Ascend910B3")), 7168, 2048, 256
    x = torch.empty(5, d, dtype=torch.bfloat16, device=META)

    def packed(*shape):
        data = torch.empty(shape, dtype=torch.int8, device=META)
        return Weight(data, torch.empty(shape[:-1], device=META), Packing("int8"))

    with torch.inference_mode(), Recorder():
        assert ops.linear(x, packed(24576, d)).shape == (5, 24576)
        picks = torch.zeros(5, 8, dtype=torch.int64, device=META)
        stacks = packed(experts, f, d), packed(experts, d, f), packed(experts, f, d)
        assert ops.run_experts(x, picks, picks.float(), *stacks, None).shape == (5, d)
        own = packed(32, f, d), packed(32, d, f), packed(32, f, d)  # of one rank of eight
        assert ops.run_experts(x, picks, picks.float(), *own, None, (64, experts)).shape == (5, d)
    assert {"npu_dynamic_quant", "npu_quant_matmul"} <= SEEN


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
    assert call_sites() - SEEN == set()
