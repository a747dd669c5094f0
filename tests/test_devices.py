"""Only tiefsee/ops asks which device it runs on; everything else takes what it is given."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tiefsee.errors import DeviceError
from tiefsee.ops import Operators, open_device, operators_for
from tiefsee.ops.table import BACKENDS, parse_device

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tiefsee"
VENDORS = {"cuda", "npu", "xpu", "mps", "hpu"}
ASKED = {"is_cuda", "is_npu", "is_xpu", "is_cpu"}
LIBRARIES = {"torch_npu", "triton", "pynvml", "acl"}


def device_branches(code: str) -> list[str]:
    """What in a piece of Python depends on a kind of device: `torch.cuda`, `x.is_cuda`, `device.type == ..`."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if (owner == "torch" and node.attr in VENDORS) or node.attr in ASKED:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            asks = any(isinstance(s, ast.Attribute) and s.attr == "type" and "device" in ast.unparse(s) for s in sides)
            names = {s.value for s in sides if isinstance(s, ast.Constant) and isinstance(s.value, str)}
            if asks or (names & (VENDORS | {"cpu"}) and "device" in ast.unparse(node)):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"line {node.lineno}: imports {m}" for m in modules if m.split(".")[0] in LIBRARIES]
    return found


def test_no_branch_on_a_device_outside_ops():
    found = {
        str(path.relative_to(ROOT)): branches
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "ops" and (branches := device_branches(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "if torch.cuda.is_available(): pass",
        "x.is_cuda",
        "if network.device.type == 'npu': pass",
        "a if device.type in ('cpu', 'cuda') else b",
        "if options.device == 'cpu': pass",
        "def f():\n    import torch_npu",
    ],
)
def test_a_planted_branch_is_found(code):
    assert len(device_branches(code)) == 1


@pytest.mark.parametrize(
    "code", ["device.index", "torch.get_device_module(device)", "LLM(device='npu')", "kind.type == 3"]
)
def test_what_is_no_branch(code):
    assert device_branches(code) == []


def test_a_device_nobody_has():
    with pytest.raises(DeviceError, match="device 'tpu' is not supported; there are 'cpu', 'cuda', 'npu'"):
        open_device("tpu")
    with pytest.raises(DeviceError, match="not a device name"):
        open_device("cpu:x")


def test_the_shortest_backend_of_the_page(monkeypatch):
    """docs/add_a_device.md, word for word: a module of two functions, and a line. Computing on such a device is the
    job of `-p tests.pure_npu`; torch says of no `meta` memory how much is free."""
    (code,) = (
        block.partition("```")[0]
        for block in (ROOT / "docs" / "add_a_device.md").read_text().split("```python\n")[1:]
        if "return Operators()" in block.partition("```")[0]
    )
    module = ModuleType("scratch_backend")
    vars(module).update(parse_device=parse_device, Operators=Operators)
    exec(code, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(BACKENDS, "meta", module.__name__)
    device = open_device("meta")
    assert type(operators_for(device)) is Operators
    x, weight = torch.ones(2, 3, device=device), torch.ones(4, 3, device=device)
    assert operators_for(device).linear(x, weight).shape == (2, 4)
    with pytest.raises(DeviceError, match=r"how much memory 'meta' has free.*`free_bytes`"):
        operators_for(device).free_bytes(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA card")
def test_no_cuda_card():
    with pytest.raises(DeviceError, match="sees no CUDA card; use --device cpu"):
        open_device("cuda")


def test_the_default_install_does_not_pull_torch_npu():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert not any("npu" in d for d in (*project["dependencies"], *extras["dev"]))
    assert any(d.startswith("torch-npu==") for d in extras["ascend"])


def test_each_backend_is_one_line():
    assert set(BACKENDS) >= {"cpu", "cuda", "npu"}
